"""Ridge regression of the second layer on the features of a trained first layer."""

import math

import numpy as np
from jaxtyping import Float

from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.plan.base import Choice
from widefit.tuning.leave_one_out import RIDGES, leave_one_out

_BLOCK_NUMBERS = 1 << 21


def refuse_many_rows(samples: int) -> None:
    """Raise a MemoryError where the n × n numbers of `refit_readout` do not fit."""
    needed = 40 * samples**2
    if needed > available_memory():
        raise MemoryError(
            f"refit_readout takes {samples:,} × {samples:,} numbers several times, {needed / 1e9:.3g} GB, and "
            f"{available_memory() / 1e9:.3g} GB are free; set refit_readout=False"
        )


def refit_readout(
    network: TwoLayer,
    inputs: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
) -> Choice:
    """Replace the readout of every output by the ridge regression of its target on φ(W x) / √m, in place.

    Solved in sample space: a = Φᵀ (Φ Φᵀ + β Ω⁻¹)⁻¹ y with Φ (n, m_c) the features of the neurons of the output, and β
    from the closed-form leave-one-out error. Costs n² m flops for Φ Φᵀ, which are done block by block.

    Parameters
    ----------
    network
        Trained; the neurons of an output go on feeding it alone.
    inputs, targets, sample_weight
        As in training.

    Returns
    -------
    The choice of β, for the plan.
    """
    errors = []
    for output in range(network.out_features):
        first, last = network.neurons_of(output)
        rows = max(64, _BLOCK_NUMBERS // inputs.shape[0])
        blocks = [(low, min(low + rows, last)) for low in range(first, last, rows)]
        gram = np.zeros((inputs.shape[0],) * 2)
        for block in blocks:
            features = _features(network, inputs, *block)
            gram += features.T @ features
        target = targets[:, output : output + 1]
        mean = max(float(sample_weight @ gram.diagonal()) / inputs.shape[0], np.finfo(float).tiny)

        fits = [leave_one_out(gram, target, sample_weight, ridge * mean) for ridge in RIDGES]
        best = min(fits, key=lambda fit: fit.error)
        readout = network.readout.detach().numpy()
        for low, high in blocks:
            # Φ carries 1/√m, and so does the network around its readout.
            readout[low:high, output] = _features(network, inputs, low, high) @ best.coefficients[:, 0]
        errors.append(best.error)
    return Choice(
        "readout", "ridge regression", f"leave-one-out error {math.sqrt(sum(errors)):.3g} on trained features"
    )


def _features(network: TwoLayer, inputs: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return φ(w_r · x_i) / √m without the constant of silent neurons, shape (last − first, n), float64."""
    weight = network.rows(first, last)
    z = weight @ inputs.astype(weight.dtype).T
    return np.maximum(z - network.threshold, 0).astype(np.float64) / math.sqrt(network.width)
