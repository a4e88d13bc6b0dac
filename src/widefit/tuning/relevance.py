"""Relevance of columns: scales of the input map that minimize the leave-one-out error of the limit kernel."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from widefit.tuning.leave_one_out import symmetric_inverse
from widefit.tuning.limit_kernel import co_firing_density, co_firing_probability
from widefit.tuning.sphere import SphereMap

# Steps of L-BFGS, of which the first ten bring most of the decrease; fewer where they would take more flops than this.
_STEPS = 20
_FLOPS = 2e10
# Prior on the logarithms of the scales, which keeps columns that do not matter where they are.
_PRIOR = 0.02
_LARGEST_LOG_SCALE = 4.0
# Larger constants press all rows into a narrow cone, in which the same neurons fire on all of them: at infinite width
# they would be good, and in a network the few neurons that tell the rows apart are noise.
_LOG_CONSTANTS = (-2.0, 1.1)
# A step that lowers the logarithm of the error by so small a part of it is the last.
_FLAT = 1e-4


@dataclass(frozen=True)
class Objective:
    """Logarithm of the leave-one-out error plus a prior, as a function of log scales (s), log constant and log ridge.

    Attributes
    ----------
    rows
        Centred and scaled, shape (n, e).
    groups
        Which of the log scales each entry of a row has, shape (e,).
    targets
        Shape (n, k).
    sample_weight
        ω > 0, shape (n,).
    threshold
        b.
    """

    rows: Float[np.ndarray, "n e"]
    groups: Int[np.ndarray, " e"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    threshold: float

    def __call__(self, parameters: Float[np.ndarray, " s_plus_two"]) -> tuple[float, Float[np.ndarray, " s_plus_two"]]:
        """Return value and gradient: one inverse and a few products, about 4 n³ flops."""
        samples, features = self.rows.shape
        log_scales, constant, ridge = parameters[:-2], np.exp(parameters[-2]), np.exp(parameters[-1])
        last = np.full((samples, 1), constant * math.sqrt(features))
        ambient = np.hstack([self.rows * np.exp(log_scales)[self.groups], last])
        norm = np.linalg.norm(ambient, axis=1, keepdims=True)
        inputs = ambient / norm
        similarity = inputs @ inputs.T
        both_fire = co_firing_probability(similarity, self.threshold)

        root = np.sqrt(self.sample_weight)
        system = root[:, None] * (similarity * both_fire) * root
        damping = ridge * float(system.diagonal().mean())
        system.flat[:: samples + 1] += damping
        inverse = symmetric_inverse(system, damping)
        coefficients = inverse @ (root[:, None] * self.targets)
        diagonal = inverse.diagonal()[:, None]
        # √ω times the residual without the sample: the weights of the mean are already in.
        left_out = coefficients / diagonal
        error = float(np.sum(left_out**2))

        # d error = tr(slope dA) for A the system: dv = −G dA v and dG = −G dA G, G the inverse and v the coefficients.
        pulled = inverse @ (2 * left_out / diagonal)
        # B Bᵀ in place of G D G takes half of the flops.
        half = inverse * np.sqrt((2 * left_out**2 / diagonal).sum(1))
        slope = half @ half.T - pulled @ coefficients.T
        slope = (slope + slope.T) / 2
        # The diagonal of the similarity is 1 whatever the scales.
        density = co_firing_density(similarity, self.threshold)
        np.fill_diagonal(density, 0)
        of_similarity = root[:, None] * slope * root * (both_fire + similarity * density)
        of_inputs = 2 * of_similarity @ inputs
        of_ambient = (of_inputs - np.sum(of_inputs * inputs, axis=1, keepdims=True) * inputs) / norm
        of_logs = np.sum(of_ambient * ambient, axis=0)
        of_logs = np.append(np.bincount(self.groups, of_logs[:-1], log_scales.size), of_logs[-1])
        gradient = np.append(of_logs, damping * float(np.trace(slope))) / error
        gradient[:-2] += 2 * _PRIOR / log_scales.size * log_scales
        value = math.log(error / self.sample_weight.sum()) + _PRIOR * float(np.mean(log_scales**2))
        return value, gradient


def steps_within_budget(samples: int, features: int, budget: float = 1.0) -> int:
    """Return how many steps of `learn_scales` are worth their time, of which there is `budget` times the usual."""
    return min(_STEPS, int(budget * _FLOPS / (4 * samples**3 + 6 * samples**2 * features)))


def learn_scales(
    rows: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    start: SphereMap,
    threshold: float,
    steps: int = _STEPS,
) -> SphereMap:
    """Improve a map: multiply its column scales and its constant to lower the leave-one-out error (this project).

    The kernel is that of the network at infinite width; the ridge is optimized along and dropped. This is automatic
    relevance determination (MacKay 1994) with the leave-one-out error in place of the marginal likelihood.

    Parameters
    ----------
    rows, targets, sample_weight
        A few hundred distinct rows, centred targets that are not all zero, and ω > 0.
    start
        The map to begin with; only its scales and its constant change.
    threshold
        b.
    steps
        Largest number of steps of L-BFGS, of some 4 n³ + 6 n² d flops each.

    Returns
    -------
    The map with the smallest objective.
    """
    groups = start.groups
    count = int(groups.max()) + 1
    objective = Objective(start.scaled(rows), groups, targets, sample_weight, threshold)
    initial = np.concatenate([np.zeros(count), [math.log(start.constant), math.log(1e-3)]])
    bounds = [(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)] * count + [_LOG_CONSTANTS, (math.log(1e-8), math.log(10.0))]
    found = minimize(
        objective, initial, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps, "ftol": _FLAT}
    ).x
    # Rounded, so that the last bits of the data, which the steps amplify, do not reach the model.
    found = np.round(found, 2)
    return replace(start, scale=start.scale * np.exp(found[:count])[groups], constant=float(np.exp(found[count])))
