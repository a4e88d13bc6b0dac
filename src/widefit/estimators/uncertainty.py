"""How far predictions are from the truth, and which columns they rest on, from a sample of the training rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from widefit.kernels.threads import serial_blas
from widefit.nn import Deep, TwoLayer
from widefit.tuning.duplicates import MergedRows
from widefit.tuning.leave_one_out import RIDGES, LeaveOneOut, leave_one_out, symmetric_inverse
from widefit.tuning.limit_kernel import deep_limit_kernel
from widefit.tuning.sphere import SphereMap

# Rows of the table that are kept: n³ work when intervals are first asked for.
_ROWS = 1000
# Largest ratio of rows over which the fall of the error is extrapolated.
_FARTHEST = 8.0
# Rows of which gradients are taken.
_GRADIENTS = 256
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class TrainingSample:
    """Some rows of the training table, and the distinct rows that they are equal to.

    Attributes
    ----------
    inputs
        Distinct rows on the sphere, shape (r, d + 1).
    targets
        Encoded mean targets of equal rows, shape (r, k).
    sample_weight
        Total weight of equal rows, shape (r,).
    member
        Which of the distinct rows each row of the table is, shape (s,).
    single, single_weight
        Encoded targets and weights of the rows of the table, shapes (s, k) and (s,).
    within
        Variance of the targets of equal rows around their mean, of each output, shape (k,).
    samples
        n, the number of distinct rows in training.
    """

    inputs: Float[np.ndarray, "r d"]
    targets: Float[np.ndarray, "r k"]
    sample_weight: Float[np.ndarray, " r"]
    member: Int[np.ndarray, " s"]
    single: Float[np.ndarray, "s k"]
    single_weight: Float[np.ndarray, " s"]
    within: Float[np.ndarray, " k"]
    samples: int

    @classmethod
    def draw(
        cls,
        merged: MergedRows,
        encoded: Float[np.ndarray, "N k"],
        sample_weight: Float[np.ndarray, " N"],
        sphere: SphereMap,
        seed: int,
    ) -> "TrainingSample":
        """Draw rows of the table.

        Parameters
        ----------
        merged
            All distinct rows.
        encoded, sample_weight
            Targets and weights of the rows of the table, of those of positive weight.
        sphere
            The input map.
        seed
            Of the draws.
        """
        drawn = np.random.default_rng(seed).permutation(len(encoded))[:_ROWS]
        distinct, member = np.unique(merged.group[drawn], return_inverse=True)
        samples = len(merged.rows)
        deviations = sample_weight @ (encoded - merged.targets[merged.group]) ** 2 / sample_weight.sum()
        # Unbiased: each mean has followed one of its observations.
        within = deviations * len(encoded) / max(len(encoded) - samples, 1)
        return cls(
            sphere(merged.rows[distinct]),
            merged.targets[distinct],
            merged.sample_weight[distinct],
            member.reshape(-1),
            encoded[drawn],
            sample_weight[drawn],
            within,
            samples,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name; `from_arrays` is the inverse."""
        return {name: value for name, value in vars(self).items() if name != "samples"}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], samples: int) -> "TrainingSample":
        """Build the sample from its arrays."""
        names = [field.name for field in fields(cls) if field.name != "samples"]
        return cls(**{name: arrays[name] for name in names}, samples=samples)


@dataclass(frozen=True)
class Uncertainty:
    """Leave-one-out residuals over the spread that kernel regression expects of single observations.

    The variance is that of the regression with the limit kernel, which grows with the distance from the training rows,
    plus that of the noise: α, or more where equal rows have other targets. The quantiles of the ratios make intervals
    (normalized conformal prediction, Papadopoulos et al. 2008, with left-out residuals as in the jackknife of Barber
    et al. 2021). Residuals are those of the kernel that the network had at its initial weights.

    Attributes
    ----------
    inverse
        √ω (√ω H √ω + α I)⁻¹ √ω of the limit kernel, shape (r, r).
    scale, noise
        Factor of the variance of the regression, and variance of the noise, shape (k,).
    ratios
        |y − f| over the spread for every row of the table in the sample, shape (s, k).
    """

    sample: TrainingSample
    inverse: Float[np.ndarray, "r r"]
    thresholds: tuple[float, ...]
    input_share: float
    scale: Float[np.ndarray, " k"]
    noise: Float[np.ndarray, " k"]
    ratios: Float[np.ndarray, "s k"]

    @classmethod
    @serial_blas()
    def of(
        cls,
        sample: TrainingSample,
        initial: TwoLayer | None,
        *,
        alpha: float,
        thresholds: tuple[float, ...],
        input_share: float,
    ) -> "Uncertainty":
        """Leave every row of the sample out in turn, in closed form.

        Parameters
        ----------
        sample
            Of the training rows.
        initial
            The network before training, with readouts of ±1; None: the limit kernel stands for that of a deep one.
        alpha
            α.
        thresholds, input_share
            Of the limit kernel.
        """
        limit = deep_limit_kernel(sample.inputs @ sample.inputs.T, thresholds, input_share)
        alpha = max(alpha, float(RIDGES[0] * limit.diagonal().mean()), float(_TINY))
        root = np.sqrt(sample.sample_weight)
        system = root[:, None] * limit * root
        system.flat[:: root.size + 1] += alpha
        inverse = symmetric_inverse(system, alpha)
        # The variance of the fit is α times its leverage over the weight; that of a left-out mean follows from it.
        precision = sample.sample_weight * inverse.diagonal()
        leverage = np.clip(1 - alpha * inverse.diagonal(), 0.0, 1.0)[sample.member]
        without = np.maximum(sample.sample_weight[sample.member] - leverage * sample.single_weight, _TINY)
        variance = alpha * leverage / without
        share = sample.sample_weight / sample.sample_weight.sum()
        scale = np.empty(sample.targets.shape[1])
        left_out = np.empty(sample.single.shape)
        for output in range(scale.size):
            kernel = limit if initial is None else _kernel(initial, sample.inputs, output)
            fit = _leave_one_out(sample, kernel, output, alpha)
            scale[output] = max(float(share @ (fit.residuals[:, 0] ** 2 * precision)), _TINY)
            left_out[:, output] = _single_residuals(sample, fit, output)
        noise = np.maximum(scale * alpha, sample.within)
        ratios = np.abs(left_out) / np.sqrt(variance[:, None] * scale + noise)
        return cls(sample, root[:, None] * inverse * root, thresholds, input_share, scale, noise, ratios)

    def spread(self, inputs: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return the expected spread of single observations around predictions, up to the ratios."""
        known = deep_limit_kernel(inputs @ self.sample.inputs.T, self.thresholds, self.input_share)
        own = deep_limit_kernel(np.ones((1, 1)), self.thresholds, self.input_share)[0, 0]
        variance = np.maximum(own - np.einsum("qr,qr->q", known @ self.inverse, known), 0.0)
        return np.sqrt(variance[:, None] * self.scale + self.noise)

    def deviation(self) -> Float[np.ndarray, " k"]:
        """Return root mean squared ratios."""
        weight = self.sample.single_weight
        return np.sqrt(weight @ self.ratios**2 / weight.sum())

    def quantile(self, coverage: float) -> Float[np.ndarray, " k"]:
        """Return the ratios that a share of single observations stays within."""
        weight = self.sample.single_weight
        found = np.empty(self.ratios.shape[1])
        for output, ratios in enumerate(self.ratios.T):
            order = np.argsort(ratios)
            # The new observation counts as one of them.
            reached = np.cumsum(weight[order]) / (weight.sum() + weight.mean())
            found[output] = ratios[order[min(np.searchsorted(reached, coverage), ratios.size - 1)]]
        return found


def _single_residuals(sample: TrainingSample, fit: LeaveOneOut, output: int) -> Float[np.ndarray, " s"]:
    """Return residuals of the fit without one row of the table, whose equals stay (PRESS, Allen 1974)."""
    member = sample.member
    leverage = fit.leverage[member]
    residual = sample.single[:, output] - sample.targets[member, output] + (1 - leverage) * fit.residuals[member, 0]
    share = sample.single_weight / sample.sample_weight[member]
    # All of the weight: the residual of a distinct row that is left out.
    alone = share > 1 - 1e-9
    return np.where(alone, fit.residuals[member, 0], residual / np.where(alone, 1.0, 1 - leverage * share))


def _leave_one_out(sample: TrainingSample, kernel: Float[np.ndarray, "r r"], output: int, alpha: float) -> LeaveOneOut:
    """Leave out distinct rows; residuals as they would be with all training rows, on which errors are smaller."""
    targets = sample.targets[:, output : output + 1]
    weight = sample.sample_weight
    fit = leave_one_out(kernel, targets, weight, alpha)
    half = weight.size // 2
    if sample.samples == weight.size or half == 0 or fit.error == 0:
        return fit
    order = np.random.default_rng(0).permutation(weight.size)
    parts = (order[:half], order[half : 2 * half])
    errors = [leave_one_out(kernel[np.ix_(part, part)], targets[part], weight[part], alpha).error for part in parts]
    # The error falls by a power of the number of rows.
    power = min(max(math.log2(sum(errors) / 2 / fit.error), 0.0), 2.0)
    smaller = min(sample.samples / weight.size, _FARTHEST) ** (-power / 2)
    return replace(fit, residuals=smaller * fit.residuals)


def _kernel(network: TwoLayer, inputs: Float[np.ndarray, "r d"], output: int) -> Float[np.ndarray, "r r"]:
    """Return J Jᵀ of an output, K ∘ Σ a_r² [both fire] / m."""
    from scipy import sparse

    first, last = network.neurons_of(output)
    size = 2048 * max(1, (1 << 11) // len(inputs))
    both_fire = np.zeros((len(inputs),) * 2)
    for low in range(first, last, size):
        high = min(low + size, last)
        weight = network.rows(low, high)
        fires = sparse.csr_matrix(weight @ inputs.T.astype(weight.dtype) > network.threshold, dtype=np.float64)
        both_fire += (fires.T @ sparse.diags_array(network.coefficients(low, high) ** 2) @ fires).toarray()
    return both_fire * (inputs @ inputs.T)


def column_importances(
    network: TwoLayer | Deep, inputs: Float[np.ndarray, "r d"], constant: float
) -> Float[np.ndarray, " d"]:
    """Return the diagonal of the average gradient outer product E[∇f ∇fᵀ] of the columns, summing to 1.

    The gradient is that along columns as the network sees them, after the input map and in their own standard
    deviations (Radhakrishnan et al. 2024, on which the scale of a column has no influence here).

    Parameters
    ----------
    network
        Trained.
    inputs
        Rows on the sphere.
    constant
        Last coordinate of rows before they are put on the sphere.
    """
    points = torch.from_numpy(inputs[:_GRADIENTS]).requires_grad_()
    total = np.zeros(inputs.shape[1] - 1)
    norm = constant / inputs[:, -1:]
    columns = inputs[:, :-1] * norm
    with torch.enable_grad():
        outputs = network(points)
        for output in range(outputs.shape[1]):
            (along,) = torch.autograd.grad(outputs[:, output].sum(), points, retain_graph=True)
            slope: Any = along.numpy()
            x = inputs[: len(slope)]
            tangent = (slope - np.sum(slope * x, axis=1, keepdims=True) * x) / norm[: len(slope)]
            total += np.mean(tangent[:, :-1] ** 2, axis=0)
    importance = total * columns.var(axis=0)
    return importance / max(float(importance.sum()), np.finfo(float).tiny)
