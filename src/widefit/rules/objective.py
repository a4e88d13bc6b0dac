"""The objective Q: a weighted sum of losses and a ridge towards the initial weights."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from widefit.losses.base import LocalLeastSquares
from widefit.losses.family import rule_loss
from widefit.trackers import Displacement


@dataclass(frozen=True)
class Objective:
    """Q(W) = 2 Σ_i ω_i ℓ(f(x_i), y_i) + α ‖W − W₀‖²; for the squared loss 2 ℓ = ‖f − y‖².

    Attributes
    ----------
    targets
        y, shape (n, k).
    sample_weight
        ω > 0, shape (n,).
    alpha
        α ≥ 0.
    kind
        The name of ℓ, as `widefit.losses.family.rule_loss` takes it.
    """

    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    alpha: float
    kind: str = "squared"

    def loss(self, outputs: Float[np.ndarray, "n k"]) -> float:
        """Weighted mean over samples: of the squared residual, or of ℓ for another loss."""
        loss = rule_loss(self.kind)
        return float(self.sample_weight @ (loss.scale * loss.values(outputs, self.targets)) / self.sample_weight.sum())

    @property
    def curvature(self) -> float:
        """The largest second derivative of ℓ in the outputs."""
        return rule_loss(self.kind).curvature

    def subset(self, samples: slice | Int[np.ndarray, " q"]) -> "Objective":
        """Restrict the objective to some of the samples, with the ridge scaled in proportion."""
        targets = self.targets[samples]
        return Objective(targets, self.sample_weight[samples], self.alpha * len(targets) / len(self.targets), self.kind)

    def value(self, outputs: Float[np.ndarray, "n k"], displacement: Displacement | None) -> float:
        """Q."""
        ridge = self.alpha * float(displacement.squared_norm.sum()) if displacement is not None else 0.0
        return 2 / rule_loss(self.kind).scale * self.loss(outputs) * float(self.sample_weight.sum()) + ridge

    def slope(self, outputs: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """∂ℓ/∂f; the residual for the squared loss."""
        return rule_loss(self.kind).gradients(outputs, self.targets)

    def expand(self, outputs: Float[np.ndarray, "n k"]) -> LocalLeastSquares:
        """Q near f without sample weights and ridge: Q(f + δ) ≈ Q(f) − Σ_i ‖r̃_i‖² + Σ_i ‖r̃_i + B_iᵀ δ_i‖².

        Outputs do not meet: each has parameters of its own.
        """
        return rule_loss(self.kind).separable(torch.from_numpy(outputs), torch.from_numpy(self.targets))

    def stacked(self) -> "Stacked":
        """The same objective of one column of outputs, output c of sample i in row i k + c."""
        weight = np.repeat(self.sample_weight, self.targets.shape[1])
        return Stacked(self.targets.reshape(-1, 1), weight, self.alpha, self.kind, apart=self)


@dataclass(frozen=True)
class Stacked(Objective):
    """The outputs of a sample one below the other, for networks whose outputs share what is trained.

    Attributes
    ----------
    apart
        The objective of n samples and k outputs.
    """

    apart: Objective = field(kw_only=True)

    def loss(self, outputs: Float[np.ndarray, "nk 1"]) -> float:
        return self.apart.loss(self._apart(outputs))

    def value(self, outputs: Float[np.ndarray, "nk 1"], displacement: Displacement | None) -> float:
        return self.apart.value(self._apart(outputs), displacement)

    def slope(self, outputs: Float[np.ndarray, "nk 1"]) -> Float[np.ndarray, "nk 1"]:
        return self.apart.slope(self._apart(outputs)).reshape(-1, 1)

    def expand(self, outputs: Float[np.ndarray, "nk 1"]) -> LocalLeastSquares:
        apart = torch.from_numpy(self._apart(outputs))
        local = rule_loss(self.kind).local(apart, torch.from_numpy(self.apart.targets))
        return LocalLeastSquares(local.residual.reshape(-1, 1), local.root)

    def _apart(self, outputs: Float[np.ndarray, "nk 1"]) -> Float[np.ndarray, "n k"]:
        return outputs.reshape(self.apart.targets.shape)
