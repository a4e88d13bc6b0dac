"""Numba kernel of the certificate tracker: a pass over all pre-activations, which issues certificates."""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.bits import positions
from widefit.kernels.certificate.slots import dot
from widefit.kernels.fire_rows import store_row
from widefit.kernels.products import BLOCK, find_at_least, multiply, whole_tiles

# Outward rounding, relative, of what is stored in float32.
_DOWN32 = 1 - 2e-7
# Length of a row of int16, the largest of them: products of two such rows stay below 2³¹ by Cauchy-Schwarz, with room
# for what rounding adds.
LENGTH = 32767.0
# No unit of int16 rows falls below this: a product of two units is not 0.
LEAST = 1e-150
# Above every product of int16 rows.
_BEYOND = 2147483000.0


class PassOperand(NamedTuple):
    """X as a pass multiplies by it, and room for the products, see `widefit.kernels.products`.

    Attributes
    ----------
    panels : X in the dtype of the network or as int16
    z : room for the products of `BLOCK` neurons
    held : (BLOCK, d) room for their weights in the dtype of the panels, of int16 with an even number of columns
    rounding : (3,) float64, where X is int16: its unit, the largest length of a rounded sample, and the largest of what
        one lacks
    """

    panels: np.ndarray
    z: np.ndarray
    held: np.ndarray
    rounding: np.ndarray


class PassSamples(NamedTuple):
    """Samples, threshold and rounding of a run.

    Attributes
    ----------
    inputs : (n, d) in the dtype of the network
    threshold : b, float64
    tolerance, floor : the rounding of z_ri is at most tolerance · ‖w_r‖ + floor
    bucket_of : (n + 1,) uint8, bucket of a neuron that fires on k samples
    """

    inputs: np.ndarray
    threshold: float
    tolerance: float
    floor: float
    bucket_of: np.ndarray


class Issued(NamedTuple):
    """Certificates of some neurons, one neuron behind the other; all arrays are written.

    Attributes
    ----------
    count, soonest : (rows,) int32 and float32, certificates of each neuron, and the level at which the first is due
    sample, due : their samples, and the levels at which they are due
    """

    count: np.ndarray
    soonest: np.ndarray
    sample: np.ndarray
    due: np.ndarray


@njit(nogil=True, cache=True)
def pass_block(weights, coefficients, operand, samples, radius, level, rows, scratch, issued, outputs):
    """Find who fires among some neurons, and issue certificates for the pairs near the threshold.

    Parameters
    ----------
    weights : (rows, d) float64, decide where z is too near to the threshold
    coefficients : (rows,) float64
    radius : (q,) float32, pairs get a certificate when it ends below that of their bucket; of size 0 for none
    level : (q, n) float32, the bounds so far, to which the margin is added
    rows : fire rows, written
    scratch : (2, n + 1) int32
    outputs : (n,) float64, to which f of these neurons is added in that precision: what it is off by at the start of a
        run it stays off by; neurons that fire on nothing get no certificates then. Of size 0 where f is known

    Returns
    -------
    pairs : number of certificates
    """
    n = samples.inputs.shape[0]
    z = operand.z
    held = operand.held
    fired = scratch[0]
    near = scratch[1]
    bits = np.empty((n + 63) // 64, np.uint64)
    about = np.empty((BLOCK, 2))
    beyond = _BEYOND if held.itemsize == 2 else np.inf
    adds = outputs.size > 0
    # z may decide where it is as exact as a product in float64, or where only the side of the threshold matters.
    decides = not (adds and z.itemsize < 8)
    pairs = 0
    rows.start[0] = 0
    for r in range(weights.shape[0]):
        if r % BLOCK == 0:
            block = weights[r : r + BLOCK]
            _hold(block, held, operand.rounding, samples.tolerance, samples.floor, about)
            multiply(held[: whole_tiles(block.shape[0])], operand.panels, z)
        row = z[r % BLOCK]
        unit = about[r % BLOCK, 0]
        slack = about[r % BLOCK, 1]
        low = z.dtype.type(max(-beyond, min(beyond, (samples.threshold - slack) / unit)))
        find_at_least(row, low, n, bits)
        candidates = near[: positions(bits, bits.size, near)]
        k = _fire(weights[r], coefficients[r], row, unit, slack, decides, candidates, samples, fired, outputs)

        rows.counts[r] = k
        rows.start[r + 1] = rows.start[r] + store_row(fired, k, n, rows.start[r], rows.words)
        issued.count[r] = 0
        issued.soonest[r] = np.inf
        if (k > 0 or not adds) and radius.size > 0:
            q = samples.bucket_of[k]
            # Twice the slack: the rounding of the threshold and of the cut itself are part of it.
            farthest = (samples.threshold - 2 * slack - np.float64(radius[q])) / unit
            find_at_least(row, z.dtype.type(max(-beyond, min(beyond, farthest))), n, bits)
            candidates = near[: positions(bits, bits.size, near)]
            issued.count[r], issued.soonest[r] = _issue(
                row, unit, samples.threshold, slack, radius[q], level[q], candidates, issued.sample[pairs:],
                issued.due[pairs:],
            )  # fmt: skip
            pairs += issued.count[r]
    return pairs


@njit(nogil=True, cache=True)
def _hold(block, held, rounding, tolerance, floor, about):
    """Write weights as the panels are multiplied by, into held, and unit and slack of z = unit · product ± slack.

    Rounded rows w̃ and x̃ miss ⟨w, x⟩ by ‖w − w̃‖ ‖x̃‖ + ‖w‖ ‖x − x̃‖ at most; two units are for cuts in such products.
    """
    step, longest, lost = rounding
    for r in range(block.shape[0]):
        w = block[r]
        length = np.sqrt(dot(w, w))
        about[r, 0] = 1.0
        about[r, 1] = tolerance * length + floor
        if held.itemsize > 2:
            for c in range(w.size):
                held[r, c] = w[c]
            continue
        size = max(length / LENGTH, LEAST)
        inverse = 1 / size
        for c in range(w.size):
            held[r, c] = np.int16(np.rint(w[c] * inverse))
        about[r, 0] = size * step
        about[r, 1] += 0.5001 * size * np.sqrt(w.size) * longest + length * lost + 2 * size * step


@njit(nogil=True, cache=True)
def _fire(w, coefficient, z, unit, slack, decides, candidates, samples, fired, outputs):
    """List the candidates that a neuron fires on, and add it to the outputs where there are any; return how many.

    w : (d,) its weights; unit, z : (n,) unit · z are the pre-activations, up to slack
    """
    inputs = samples.inputs
    threshold = samples.threshold
    high = threshold + slack
    k = 0
    for p in range(candidates.size):
        i = candidates[p]
        value = unit * np.float64(z[i])
        if not (decides and value > high):
            value = dot(w, inputs[i])
        if value > threshold:
            fired[k] = i
            k += 1
            if outputs.size > 0:
                outputs[i] += coefficient * (value - threshold)
    return k


@njit(nogil=True, cache=True)
def _issue(z, unit, threshold, slack, radius, spent, candidates, sample, due):
    """Issue certificates of a neuron for the samples near the threshold; return how many, and when the first is due.

    unit, z : (n,) unit · z are the pre-activations, up to slack
    radius : float32; spent : (n,) float32, the bounds so far
    candidates : samples among which those near the threshold are
    sample, due : written
    """
    found = 0
    first = np.float32(np.inf)
    for p in range(candidates.size):
        i = candidates[p]
        margin = abs(unit * np.float64(z[i]) - threshold) - slack
        if margin + spent[i] < radius:
            at = np.float32((spent[i] + max(margin, 0.0)) * _DOWN32)
            sample[found] = i
            due[found] = at
            first = min(first, at)
            found += 1
    return found, first
