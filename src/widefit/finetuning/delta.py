"""Change of a module by fine-tuning: low-rank factors a layer, saved alone and merged later."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.files.container import altered, read_container, write_container
from widefit.records import FileError, read

_KIND = "delta"


@dataclass(frozen=True)
class LayerDelta:
    """W − W₀ of one linear layer as U Vᵀ, and the change of its bias.

    Attributes
    ----------
    U, V
        Shapes (outputs, r) and (inputs, r); V is None where U is the whole difference, outputs × inputs, because that
        takes less room.
    bias
        Shape (outputs,); None for layers without one.
    """

    U: Float[Tensor, "outputs r"]
    V: Float[Tensor, "inputs r"] | None
    bias: Float[Tensor, " outputs"] | None = None

    @classmethod
    def of(
        cls, U: Float[Tensor, "outputs r"], V: Float[Tensor, "inputs r"], bias: Float[Tensor, " outputs"] | None
    ) -> "LayerDelta":
        """Return U Vᵀ in the smaller of its two forms."""
        whole = U.shape[1] * (len(U) + len(V)) >= len(U) * len(V)
        return cls(U @ V.T, None, bias) if whole else cls(U, V, bias)

    @property
    def rank(self) -> int:
        """Columns of U and V, or the smaller side of the whole difference."""
        return min(self.U.shape) if self.V is None else self.U.shape[1]

    def dense(self) -> Float[Tensor, "outputs inputs"]:
        """Return U Vᵀ."""
        return self.U if self.V is None else self.U @ self.V.T

    def plus(self, other: "LayerDelta") -> "LayerDelta":
        """Return the sum of two changes of the same layer."""
        bias = self.bias if other.bias is None else other.bias if self.bias is None else self.bias + other.bias
        if self.V is None or other.V is None:
            return LayerDelta(self.dense() + other.dense(), None, bias)
        return LayerDelta.of(torch.cat([self.U, other.U], 1), torch.cat([self.V, other.V], 1), bias)

    def truncated(self, rank: int) -> "LayerDelta":
        """Return the nearest change of at most that rank (Eckart and Young 1936)."""
        if self.V is None:
            left, singular, right = torch.linalg.svd(self.U, full_matrices=False)
            return LayerDelta(left[:, :rank] * singular[:rank], right[:rank].T.contiguous(), self.bias)
        (a, upper), (b, lower) = torch.linalg.qr(self.U), torch.linalg.qr(self.V)
        left, singular, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        return LayerDelta(a @ (left[:, :rank] * singular[:rank]), b @ right[:rank].T, self.bias)


@dataclass(frozen=True)
class LowRankDelta:
    """Adapted minus given weights of a module.

    Attributes
    ----------
    layers
        By the names of the layers in the module.
    """

    layers: Mapping[str, LayerDelta]

    @property
    def nbytes(self) -> int:
        """Bytes that the factors take."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def plus(self, other: "LowRankDelta") -> "LowRankDelta":
        """Return the sum of two deltas to the same module."""
        merged = dict(self.layers)
        for name, layer in other.layers.items():
            merged[name] = merged[name].plus(layer) if name in merged else layer
        return LowRankDelta(merged)

    def truncated(self, rank: int) -> "LowRankDelta":
        """Return an approximation with every layer cut to a rank, for a smaller file.

        Raises
        ------
        ValueError
            A rank below 1.
        """
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        return LowRankDelta({name: layer.truncated(rank) for name, layer in self.layers.items()})

    def merged(self, model: nn.Module) -> nn.Module:
        """Return a copy of a module with the delta added to its weights.

        Parameters
        ----------
        model
            The module that was fine-tuned, or one with the same layers; it stays as it is.

        Raises
        ------
        ValueError
            A layer of the delta is missing in the module, or has another shape or no bias there.
        """
        modules = dict(model.named_modules())
        for name, delta in self.layers.items():
            _check_layer(name, delta, modules.get(name))
        result = copy.deepcopy(model)
        with torch.no_grad():
            for name, delta in self.layers.items():
                layer = result.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                layer.weight.add_(delta.dense().to(layer.weight))
                if delta.bias is not None:
                    layer.bias.add_(delta.bias.to(layer.bias))
        return result

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `NAME.U` and `NAME.V` or `NAME.delta`, and `NAME.bias` for every layer.

        Raises
        ------
        OSError
            The folder does not exist or is not writable, or the disk is full.
        """
        write_container(path, self.tensors(), {"layers": list(self.layers)}, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> "LowRankDelta":
        """Read a file that `save` wrote.

        Raises
        ------
        FileError
            No such file, or not a delta of widefit, or an altered one.
        """
        tensors, document = read_container(path, _KIND)
        with altered(path):
            return cls({name: _read_layer(name, tensors) for name in read(_Document, document, "its document").layers})

    def tensors(self) -> dict[str, Tensor]:
        """Return all factors by name, as in the file."""
        found = {}
        for name, layer in self.layers.items():
            if layer.V is None:
                found[f"{name}.delta"] = layer.U
            else:
                found |= {f"{name}.U": layer.U, f"{name}.V": layer.V}
            if layer.bias is not None:
                found[f"{name}.bias"] = layer.bias
        return found


@dataclass(frozen=True)
class _Document:
    """Document beside the tensors of a file."""

    layers: list[str]


def _read_layer(name: str, tensors: dict[str, Tensor]) -> LayerDelta:
    def read_part(part: str, dimensions: int) -> Tensor:
        tensor = tensors.get(f"{name}.{part}")
        if tensor is None or tensor.ndim != dimensions or not tensor.dtype.is_floating_point:
            raise FileError(f"it has no tensor of {dimensions} dimensions '{name}.{part}'")
        return tensor

    whole = f"{name}.delta" in tensors
    U = read_part("delta" if whole else "U", 2)
    V = None if whole else read_part("V", 2)
    bias = read_part("bias", 1) if f"{name}.bias" in tensors else None
    others = [tensor for tensor in (V, bias) if tensor is not None]
    fits = (V is None or V.shape[1] == U.shape[1]) and (bias is None or len(bias) == len(U))
    if not fits or any(tensor.dtype != U.dtype for tensor in others):
        raise FileError(f"the tensors of {name!r} do not belong together")
    return LayerDelta(U, V, bias)


def _check_layer(name: str, delta: LayerDelta, layer: nn.Module | None) -> None:
    where = f"layer {name!r} of the delta"
    if not isinstance(layer, nn.Linear):
        there = "nothing of that name" if layer is None else f"a {type(layer).__name__}"
        raise ValueError(f"{where} must be a linear layer of the model, which has {there}")
    shape = (delta.U.shape[0], delta.U.shape[1] if delta.V is None else delta.V.shape[0])
    if shape != tuple(layer.weight.shape):
        raise ValueError(f"{where} has weights of shape {shape}, the model's are {tuple(layer.weight.shape)}")
    if delta.bias is not None and layer.bias is None:
        raise ValueError(f"{where} has a bias, the model's has none")
