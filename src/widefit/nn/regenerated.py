"""Weights that are never stored, but drawn again from the seed whenever they are needed (this project)."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.kernels.threads import ordered_map
from widefit.linalg.gaussian_rows import Initial
from widefit.nn.blocks import aligned_empty, block_sizes, span_sum, spans
from widefit.nn.shifted_relu import ShiftedReLU
from widefit.nn.weight_change import WeightChange, is_restorable, name_in_files, restore
from widefit.records import FileError, read


class Regenerated(nn.Module):
    """Weights of a network that keeps its seed in their place, and their change in training.

    Parameters
    ----------
    initial
        Seed and sizes from which W₀ and a are drawn.
    dtype
        Dtype of the rows.

    Attributes
    ----------
    initial
        As above.
    delta
        W − W₀, or None before training.
    like
        An empty tensor that has the dtype and device of the network, and follows `Module.to`.
    """

    like: Tensor

    def __init__(self, initial: Initial, dtype: torch.dtype):
        super().__init__()
        self.initial = initial
        self.delta: WeightChange | None = None
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def write_rows(self, first: int, last: int, out: np.ndarray) -> None:
        """Write the current weights of a range of neurons into `out`."""
        self.initial.write_rows(first, last, out)
        if self.delta is not None:
            self.delta.add_to(first, last, out)

    def readout_rows(self, first: int, last: int) -> Float[Tensor, "rows k"]:
        """Return a of a range of neurons, in the dtype of the network."""
        readout = aligned_empty(last - first, self.initial.out_features, self.like.dtype)
        self.initial.write_readout(first, last, readout.numpy())
        return readout

    def span(self, first: int, last: int, x: Tensor) -> tuple[Float[Tensor, "rows d"], Float[Tensor, "rows k"]]:
        """Return the current weights and a of a range of neurons, on the device of x."""
        weight = aligned_empty(last - first, self.initial.in_features, self.like.dtype)
        self.write_rows(first, last, weight.numpy())
        return weight.to(x.device), self.readout_rows(first, last).to(x.device)

    def weighted_sum(self, x: Float[Tensor, "n d"], activation: ShiftedReLU) -> Float[Tensor, "n k"]:
        """Return Σ_r a_r φ(⟨w_r, x⟩) in the dtype of x: the same bits as from arrays.

        Weights are drawn ahead of the products in `torch.get_num_threads()` threads. Where x requires a gradient they
        are drawn a second time in the backward pass, and nothing of size m is kept for it.
        """
        ranges = spans(self.initial.width, *x.shape)
        outputs = x.new_zeros(x.shape[0], self.initial.out_features)
        if torch.is_grad_enabled() and x.requires_grad:
            for first, last in ranges:
                outputs = outputs + _Span.apply(x, self, first, last, activation)
            return outputs
        for weight, readout in self._drawn_ahead(ranges, min(self.initial.width, block_sizes(*x.shape)[0])):
            outputs = outputs + span_sum(x, weight.to(x.device), readout.to(x.device), activation)
        return outputs

    def _drawn_ahead(self, ranges: Iterable[tuple[int, int]], longest: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weights and readouts of ranges, in order."""
        threads = torch.get_num_threads()
        shape = (longest, self.initial.in_features)
        # `ordered_map` starts an item when the one 2 threads + 1 before it has been used. Where gradients are recorded,
        # a caller's transformation of this function may keep the weights.
        ring = 0 if torch.is_grad_enabled() else 2 * threads + 1
        buffers = [aligned_empty(*shape, self.like.dtype) for _ in range(ring)]

        def draw(item: tuple[int, tuple[int, int]]) -> tuple[Tensor, Tensor]:
            number, (first, last) = item
            buffer = buffers[number % ring] if ring else aligned_empty(*shape, self.like.dtype)
            weight = buffer[: last - first]
            self.write_rows(first, last, weight.numpy())
            return weight, self.readout_rows(first, last)

        yield from ordered_map(draw, enumerate(ranges), threads)

    def get_extra_state(self) -> dict[str, Any]:
        """Return seed, sizes and the weight change as tensors: plain values that `torch.load` takes.

        Raises
        ------
        ValueError
            The weight change cannot be read back.
        """
        state: dict[str, Any] = asdict(self.initial)
        if self.delta is not None:
            if not is_restorable(self.delta):
                raise ValueError(
                    f"a {type(self.delta).__name__} could not be read back from a state dict; "
                    "save that of network.materialize()"
                )
            arrays = {name: torch.from_numpy(array) for name, array in self.delta.state().items()}
            state["delta"] = {"class": name_in_files(type(self.delta)), "state": arrays}
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` has returned.

        Raises
        ------
        ValueError
            The state belongs to a network of another size, or is not one of `get_extra_state`.
        """
        own = {name: value for name, value in state.items() if name != "delta"}
        initial = read(Initial, own, "the state dict")
        for name in ("in_features", "width", "out_features"):
            given, ours = getattr(initial, name), getattr(self.initial, name)
            if given != ours:
                raise ValueError(f"the state dict belongs to a network with {name}={given}, this one has {ours}")
        if not 0 <= initial.seed < 2**64:
            raise FileError(f"seed of the state dict must be at least 0 and below 2**64, it is {initial.seed}")
        # First the displacement, which may be refused: a network must not be left half loaded.
        self.delta = _read_delta(state.get("delta"), initial)
        self.initial = initial

    def extra_repr(self) -> str:
        moved = "as drawn" if self.delta is None else f"as drawn + {type(self.delta).__name__}"
        return f"{moved}, dtype={self.like.dtype}"


def _read_delta(saved: Any, initial: Initial) -> WeightChange | None:
    if saved is None:
        return None
    kind = read(dict[str, Any], saved, "the displacement")
    if not kind.keys() >= {"class", "state"} or not isinstance(kind["state"], dict):
        raise FileError("the displacement must have a class and a state")
    tensors = kind["state"]
    if not all(isinstance(tensor, Tensor) and tensor.dtype != torch.bfloat16 for tensor in tensors.values()):
        raise FileError("the state of a displacement must be tensors that NumPy has")
    delta = restore(
        read(str, kind["class"], "the class of the displacement"),
        {str(name): tensor.detach().cpu().numpy() for name, tensor in tensors.items()},
    )
    if check_fits := getattr(delta, "check_fits", None):
        check_fits(initial.width, initial.in_features, initial.out_features)
    return delta


class _Span(torch.autograd.Function):
    """Sum over a span of neurons, whose weights are drawn again in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, source: Regenerated, first: int, last: int, activation: ShiftedReLU) -> Tensor:
        return span_sum(x, *source.span(first, last, x), activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, *ctx.rest = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (source, first, last, activation) = ctx.saved_tensors, ctx.rest
        weight, readout = (part.to(x.dtype) for part in source.span(first, last, x))
        fires = (x @ weight.T > activation.threshold).to(x.dtype)
        return ((gradients[0] @ readout.T * fires) @ weight, None, None, None, None)
