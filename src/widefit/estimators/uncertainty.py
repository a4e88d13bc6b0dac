"""Spread of new observations around predictions, from leave-one-out residuals in closed form."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from widefit.estimators.training_sample import TrainingSample
from widefit.kernels.threads import serial_blas
from widefit.nn import TwoLayer
from widefit.tuning.leave_one_out import RIDGES, LeaveOneOut, leave_one_out, symmetric_inverse
from widefit.tuning.limit_kernel import deep_limit_kernel

# Largest ratio of rows over which the fall of the error is extrapolated.
_FARTHEST = 8.0
_TINY = np.finfo(np.float64).tiny


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
