"""J of the layers of a stage at a point, rows weighted by the loss: by passes through the module, or from signals."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.gram.jacobian import apply_root, apply_root_transposed
from widefit.gram.layer_rows import LayerRows


class StageJacobian(ABC):
    """Row (i, c) of J is δ_ic ⊗ a_i for every layer: weighted derivative of an output by the layer's, times its input.

    Attributes
    ----------
    behind
        Inputs and signals of the layers that are not direct.
    """

    behind: Sequence[LayerRows]

    @abstractmethod
    def vjp(self, step: Float[Tensor, "n k"]) -> list[Float[Tensor, "n t _"]]:
        """Σ_c g_ic δ_ic of every layer, direct ones first, by positions t."""

    @abstractmethod
    def jvp(self, changes: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n k"]:
        """Σ over direct layers of ⟨δ_ic, y_i⟩: what changes y of their outputs do to the weighted outputs."""


class PassJacobian(StageJacobian):
    """Direct layers alone: a backward pass pulls, the derivative of that pass by its seeds pushes. No δ is stored.

    Parameters
    ----------
    module
        What comes behind the direct layers.
    ends, frozen
        What it takes: their outputs, and the rest.
    root
        Of the loss, as `widefit.losses.base.LocalLeastSquares` has it.
    """

    behind = ()

    def __init__(self, module: nn.Module, ends: Sequence[Tensor], frozen: Sequence[Tensor], root: Float[Tensor, "..."]):
        self._root = root
        self._leaves = [end.detach().clone().requires_grad_() for end in ends]
        with torch.enable_grad():
            outputs = module(*(leaf + 0 for leaf in self._leaves), *frozen)  # + 0: an activation may work in place
            self._outputs = outputs.reshape(len(outputs), -1)
            self._seeds = torch.zeros_like(self._outputs, requires_grad=True)
            self._backward = torch.autograd.grad(
                self._outputs, self._leaves, self._seeds, create_graph=True, materialize_grads=True
            )

    def vjp(self, step: Float[Tensor, "n k"]) -> list[Float[Tensor, "n t _"]]:
        seeds = apply_root_transposed(self._root, step)
        found = torch.autograd.grad(
            self._outputs, self._leaves, seeds, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        return [change[:, None] for change in found]

    def jvp(self, changes: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n k"]:
        (found,) = torch.autograd.grad(self._backward, self._seeds, changes, retain_graph=True)
        return apply_root(self._root, found)


class SignalJacobian(StageJacobian):
    """All layers, from inputs and root-weighted signals that a backward pass an output has found.

    Parameters
    ----------
    parts
        Of all layers, direct ones first.
    direct
        How many those are.
    """

    def __init__(self, parts: Sequence[LayerRows], direct: int):
        self.parts = tuple(parts)
        self._direct = direct
        self.behind = self.parts[direct:]

    def vjp(self, step: Float[Tensor, "n k"]) -> list[Float[Tensor, "n t _"]]:
        return [torch.einsum("nk,nkto->nto", step, part.signals) for part in self.parts]

    def jvp(self, changes: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n k"]:
        signals = [part.signals[:, :, 0] for part in self.parts[: self._direct]]
        total = torch.zeros_like(self.parts[0].signals[:, :, 0, 0])
        for signal, change in zip(signals, changes, strict=True):
            total += torch.einsum("nko,no->nk", signal, change)
        return total
