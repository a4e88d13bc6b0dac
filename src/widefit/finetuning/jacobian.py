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
    suffix_layers
        Inputs and signals of the layers in the suffix.
    """

    suffix_layers: Sequence[LayerRows]

    @abstractmethod
    def vjp(self, step: Float[Tensor, "n k"]) -> list[Float[Tensor, "n t _"]]:
        """Return Σ_c g_ic δ_ic of every layer, boundary layers first, by positions t."""

    @abstractmethod
    def jvp(self, changes: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n k"]:
        """Return Σ ⟨δ_ic, y_i⟩ over boundary layers: what changes y of their outputs do to the weighted outputs."""


class PassJacobian(StageJacobian):
    """Boundary layers alone: a backward pass is the vjp, the derivative of that pass by its seeds the jvp.

    No δ is stored.

    Parameters
    ----------
    suffix
        The module behind the boundary layers.
    layer_outputs, frozen
        What it takes: their outputs, and the other values.
    root
        Of the loss, as `widefit.losses.base.LocalLeastSquares` has it.
    """

    suffix_layers = ()

    def __init__(
        self, suffix: nn.Module, layer_outputs: Sequence[Tensor], frozen: Sequence[Tensor], root: Float[Tensor, "..."]
    ):
        self._root = root
        self._leaves = [values.detach().clone().requires_grad_() for values in layer_outputs]
        with torch.enable_grad():
            outputs = suffix(*(leaf + 0 for leaf in self._leaves), *frozen)  # + 0: an activation may work in place
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
    layers
        Of all layers, boundary layers first.
    boundary_count
        Number of boundary layers.
    """

    def __init__(self, layers: Sequence[LayerRows], boundary_count: int):
        self.layers = tuple(layers)
        self.suffix_layers = self.layers[boundary_count:]
        self._boundary = self.layers[:boundary_count]

    def vjp(self, step: Float[Tensor, "n k"]) -> list[Float[Tensor, "n t _"]]:
        return [torch.einsum("nk,nkto->nto", step, layer.signals) for layer in self.layers]

    def jvp(self, changes: Sequence[Float[Tensor, "n _"]]) -> Float[Tensor, "n k"]:
        total = torch.zeros_like(self.layers[0].signals[:, :, 0, 0])
        for layer, change in zip(self._boundary, changes, strict=True):
            total += torch.einsum("nko,no->nk", layer.signals[:, :, 0], change)
        return total
