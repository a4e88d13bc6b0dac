"""Any mean-reduced loss, through its generalized Gauss-Newton matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, hessian, vmap

from widefit.losses.base import FLOOR, LocalLeastSquares, OutputLoss, given


@dataclass(frozen=True)
class Custom(OutputLoss):
    """A twice-differentiable mean-reduced loss(outputs, targets), through its generalized Gauss-Newton matrix.

    Directions in which the loss is concave or flat get the curvature `1e-4` of the largest one.

    Parameters
    ----------
    function
        Takes the outputs of a batch in the model's own shape, and the targets as they were given.
    shape
        The model's own shape of the outputs of a sample; None: a row.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, ...] | None = None

    def values(self, outputs: Float[Tensor, "n k"], targets: Tensor) -> Float[Tensor, " n"]:
        return vmap(self._of_one)(outputs, targets)

    def gradients(self, outputs: Float[Tensor, "n k"], targets: Tensor) -> Float[Tensor, "n k"]:
        return vmap(grad(self._of_one))(outputs, targets)

    def local(self, outputs: Float[Tensor, "n k"], targets: Tensor) -> LocalLeastSquares:
        slope = self.gradients(outputs, targets)
        values, vectors = torch.linalg.eigh(vmap(hessian(self._of_one))(outputs, targets))
        values = values.clamp_min(FLOOR * values.max().clamp_min(torch.finfo(values.dtype).tiny))
        root = vectors * values.sqrt()[:, None, :]
        return LocalLeastSquares(torch.einsum("nab,na->nb", vectors, slope) / values.sqrt(), root)

    def prepared(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Tensor:
        return given(targets)

    def on(self, shape: Sequence[int], targets: Tensor | None) -> "Custom":
        return replace(self, shape=tuple(shape))

    def mean_weight(self, outputs: Float[Tensor, "n k"]) -> float:
        return 1 / max(len(outputs), 1)

    def value(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> Float[Tensor, ""]:
        return self.function(self._shaped(outputs), given(targets))

    def expand(self, outputs: Float[Tensor, "n k"], targets: Tensor | None) -> LocalLeastSquares:
        wanted = given(targets)
        whole = self.value(outputs, wanted)
        parts = self.values(outputs, wanted).mean()
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-8):
            raise ValueError(
                f"loss must be the mean over samples (reduction='mean'): it gives {float(whole):.6g} for the batch, "
                f"its samples average {float(parts):.6g}"
            )
        return super().expand(outputs, wanted)

    def _of_one(self, output: Float[Tensor, " k"], target: Tensor) -> Float[Tensor, ""]:
        return self.function(self._shaped(output[None]), target[None]).reshape(())

    def _shaped(self, outputs: Float[Tensor, "n k"]) -> Tensor:
        return outputs if self.shape is None else outputs.reshape(len(outputs), *self.shape)
