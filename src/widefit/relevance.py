"""How much each column matters: scales of the input map that minimize the leave-one-out error of the limit kernel."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from widefit.data.sphere import SphereMap
from widefit.gram.limit import co_firing_density, co_firing_probability

# Steps of L-BFGS; most of the decrease comes in the first ten.
_STEPS = 20
# Prior on the logarithms of the scales, which keeps columns that do not matter where they are.
_PRIOR = 0.02
_LARGEST_LOG_SCALE = 4.0
# Larger constants press all rows into a narrow cone, in which the same neurons fire on all of them.
_LOG_CONSTANTS = (-2.0, 1.5)


class _CoFiring(torch.autograd.Function):
    """P(both fire) as a function of ⟨x, x'⟩; its derivative is not finite on the diagonal, which is fixed."""

    @staticmethod
    def forward(ctx, similarity: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(similarity)
        ctx.threshold = threshold
        return torch.from_numpy(co_firing_probability(similarity.detach().numpy(), threshold))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        (similarity,) = ctx.saved_tensors
        density = torch.from_numpy(co_firing_density(similarity.numpy(), ctx.threshold))
        return gradients[0] * density.fill_diagonal_(0), None


@dataclass(frozen=True)
class _Objective:
    """Logarithm of the leave-one-out error, as a function of log scales (d), log constant and log ridge."""

    rows: Float[Tensor, "n d"]
    targets: Float[Tensor, "n k"]
    root_weight: Float[Tensor, " n"]
    threshold: float

    def __call__(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient, for scipy."""
        leaf = torch.tensor(parameters, requires_grad=True)
        value = self._value(leaf)
        value.backward()
        assert leaf.grad is not None
        return value.item(), leaf.grad.numpy()

    def _value(self, parameters: Tensor) -> Tensor:
        samples, features = self.rows.shape
        log_scales, constant, ridge = parameters[:-2], parameters[-2].exp(), parameters[-1].exp()
        last = constant * math.sqrt(features) * torch.ones(samples, 1, dtype=torch.float64)
        inputs = torch.cat([self.rows * log_scales.exp(), last], dim=1)
        inputs = inputs / torch.linalg.vector_norm(inputs, dim=1, keepdim=True)
        similarity = inputs @ inputs.T
        gram = similarity * _CoFiring.apply(similarity, self.threshold)
        system = self.root_weight[:, None] * gram * self.root_weight
        identity = torch.eye(samples, dtype=torch.float64)
        factor = torch.linalg.cholesky(system + ridge * system.diagonal().mean() * identity)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        fitted = inverse.T @ (inverse @ (self.root_weight[:, None] * self.targets))
        # √ω times the residual without the sample: the weights of the mean are already in.
        left_out = fitted / inverse.square().sum(0)[:, None]
        error = left_out.square().sum() / self.root_weight.square().sum()
        return error.log() + _PRIOR * log_scales.square().mean()


def learn_scales(
    rows: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    start: SphereMap,
    threshold: float,
) -> SphereMap:
    """Improve a map: multiply its column scales and its constant to lower the leave-one-out error (this project).

    The kernel is that of the network at infinite width; the ridge is optimized along and dropped. This is automatic
    relevance determination (MacKay 1994) with the leave-one-out error in place of the marginal likelihood.

    Parameters
    ----------
    rows, targets, sample_weight
        A few hundred distinct rows, centred targets that are not all zero, and ω > 0.
    start
        Where to begin; its center stays.
    threshold
        b.

    Returns
    -------
    The map with the smallest objective; about `_STEPS` · 3 n³ flops.
    """
    features = rows.shape[1]
    scaled = start.scaled(rows)
    root = torch.from_numpy(np.sqrt(sample_weight))
    objective = _Objective(torch.from_numpy(scaled), torch.from_numpy(targets), root, threshold)
    initial = np.concatenate([np.zeros(features), [math.log(start.constant), math.log(1e-3)]])
    bounds = [(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)] * features + [_LOG_CONSTANTS, (math.log(1e-8), math.log(10.0))]
    found = minimize(objective, initial, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}).x
    # Rounded, so that the last bits of the data, which the steps amplify, do not reach the model.
    found = np.round(found, 2)
    return SphereMap(start.center, start.scale * np.exp(found[:features]), float(np.exp(found[features])))
