"""The parameters that a step moves: their order, their learning rates, and what is kept of each between steps."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class MovingParameters:
    """The parameters that train, in the order of the columns of J.

    Attributes
    ----------
    tensors
        By their names in the model.
    rates
        Learning rate of each, positive.
    dtype, device
        Those of every parameter of the model that trains.
    """

    tensors: dict[str, nn.Parameter]
    rates: tuple[float, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: nn.Module, groups: list[dict[str, Any]]) -> "MovingParameters":
        """The parameters of some groups; those at rest, frozen or with a rate of 0, are left out.

        Raises
        ------
        ValueError
            Parameters that are not the model's or cannot be changed, none that trains, several types or devices, a
            rate below 0.
        """
        groups_of = {id(parameter): group for group in groups for parameter in group["params"]}
        named = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in groups_of]
        if len(named) < len(groups_of):
            raise ValueError(f"{len(groups_of) - len(named)} of the parameters given do not belong to the model")
        named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        if not named:
            raise ValueError("no trainable parameter: set requires_grad_(True) on what should be trained")
        kinds = {(parameter.dtype, parameter.device) for _, parameter in named}
        if len(kinds) > 1:
            raise ValueError(f"trainable parameters must share one type and device, got {sorted(map(str, kinds))}")
        _check_kind(*named[0])
        rates = {name: _rate(groups_of[id(parameter)]) for name, parameter in named}
        moving = {name: parameter for name, parameter in named if rates[name] > 0}
        return cls(moving, tuple(rates[name] for name in moving), named[0][1].dtype, named[0][1].device)

    @property
    def rate(self) -> float:
        """The largest learning rate; 0 where nothing moves."""
        return max(self.rates, default=0.0)

    @property
    def count(self) -> int:
        """P."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def values(self) -> dict[str, Tensor]:
        """The parameters as tensors apart from any graph; they share the memory."""
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    def metric(self) -> Float[Tensor, " P"] | None:
        """√(rate / largest rate) of every parameter; None where all groups share one.

        Groups with different rates are a metric: J's columns are scaled, so that the step still goes down the loss.
        """
        if min(self.rates) == self.rate:
            return None
        pieces = [
            torch.full((tensor.numel(),), (rate / self.rate) ** 0.5, dtype=tensor.dtype, device=tensor.device)
            for tensor, rate in zip(self.tensors.values(), self.rates, strict=True)
        ]
        return torch.cat(pieces)

    def several(self) -> Int[Tensor, " q"]:
        """Places of the entries of parameters of more than one number."""
        edges = [0, *accumulate(tensor.numel() for tensor in self.tensors.values())]
        ranges = [torch.arange(*edge, device=self.device) for edge in pairwise(edges) if edge[1] - edge[0] > 1]
        return torch.cat([torch.arange(0, device=self.device), *ranges])

    def single(self) -> Bool[Tensor, " P"]:
        """Which entries are parameters of one number."""
        counts = [tensor.numel() for tensor in self.tensors.values()]
        return torch.cat([torch.full((count,), count == 1, device=self.device) for count in counts])

    def flat(self) -> Float[Tensor, " P"]:
        """All of them in one vector."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in self.tensors.values()])

    def norm(self) -> Float[Tensor, ""]:
        """‖θ‖, left on the device."""
        return torch.stack([torch.linalg.vector_norm(tensor.detach()) for tensor in self.tensors.values()]).norm()

    def split(self, vector: Float[Tensor, " P"]) -> dict[str, Tensor]:
        """A vector of parameter space in the shapes of the parameters."""
        pieces = vector.split([tensor.numel() for tensor in self.tensors.values()])
        return {name: piece.view_as(tensor) for (name, tensor), piece in zip(self.tensors.items(), pieces, strict=True)}

    def move(self, change: Float[Tensor, " P"]) -> None:
        """Add a change in place."""
        with torch.no_grad():
            for name, piece in self.split(change).items():
                self.tensors[name].add_(piece)

    def kept(self, state: dict[Any, Any], key: str) -> Float[Tensor, " P"] | None:
        """The vector that `keep` left under a key; None where a parameter has nothing."""
        pieces = [state[tensor].get(key) for tensor in self.tensors.values()]
        if any(piece is None for piece in pieces):
            return None
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def keep(self, state: dict[Any, Any], key: str, vector: Float[Tensor, " P"]) -> None:
        """Keep a vector of parameter space in the state of an optimizer, piece by piece."""
        for name, piece in self.split(vector).items():
            state[self.tensors[name]][key] = piece.clone()


def _check_kind(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise ValueError(
            f"parameter {name!r} is {parameter.dtype}, but a Gauss-Newton step needs real parameters: keep real and "
            "imaginary part as two of them and combine them by torch.complex"
        )
    if parameter.is_inference():
        raise ValueError(
            f"parameter {name!r} was made under torch.inference_mode and cannot be changed: build or load the model "
            "outside of it"
        )


def _rate(group: dict[str, Any]) -> float:
    rate = float(group["lr"])
    if not 0 <= rate < float("inf"):
        raise ValueError(f"lr must be at least 0 and finite, got {rate}")
    return rate
