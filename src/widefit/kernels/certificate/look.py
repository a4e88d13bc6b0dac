"""Numba kernels of the certificate tracker: certificates that expire are renewed, or their pairs evaluated."""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing
from widefit.kernels.certificate.slots import dot, move_slot
from widefit.kernels.fire_rows import fired_samples

# Outward rounding, relative: of a sum of float32 terms, and of what is stored in float32.
_UP = 1 + 3e-4
_DOWN32 = 1 - 2e-7


class CertificateRuns(NamedTuple):
    """Certificates of the slots of a chunk; those of a slot stand together.

    Attributes
    ----------
    start, count : (slots,) integers, where the certificates of each slot begin, and how many there are
    soonest : (slots,) float32, level at which the first of them is due, or lower
    sample : integers, sample of each certificate
    due : float32, level at which each is due
    """

    start: np.ndarray
    count: np.ndarray
    soonest: np.ndarray
    sample: np.ndarray
    due: np.ndarray


class StepLevels(NamedTuple):
    """Levels that certificates are compared with after a step, and what the step has raised them by.

    Attributes
    ----------
    bucket : (slots,) uint8
    drift : (slots,) float32 or of size 0, after the step: movement that the bounds do not cover
    level : (q, n) float32, bounds after the step
    highest : (q,) float32, largest of each row of `level`
    step : (q, n) float64, bounds of the step alone; without rows where the drift has all of it
    change : (n,) float64, G after the step less G before
    reach : (n,) float64, max_i |K_ij|
    """

    bucket: np.ndarray
    drift: np.ndarray
    level: np.ndarray
    highest: np.ndarray
    step: np.ndarray
    change: np.ndarray
    reach: np.ndarray


class Findings(NamedTuple):
    """Certificates that have expired, and pairs that flip; all arrays are written.

    Attributes
    ----------
    position, due : certificates that have expired, and the level at which each is due again
    touched : their slots
    slot, sample, fires : pairs that flip, and whether they fire afterwards
    z, y : pre-activation of each, and its difference from the start
    totals : (4,) int64, numbers written so far of the first two, of slots and of pairs, and of z computed
    """

    position: np.ndarray
    due: np.ndarray
    touched: np.ndarray
    slot: np.ndarray
    sample: np.ndarray
    fires: np.ndarray
    z: np.ndarray
    y: np.ndarray
    totals: np.ndarray


EXPIRED, TOUCHED, FLIPPED, EVALUATED = range(4)


@njit(nogil=True, cache=True)
def look_at_certificates(first, last, runs, levels, origin, collected, inputs, threshold, found):
    """Look at the certificates that expire in a step, for slots `first` to `last`: renew them, or report flips.

    A certificate is first renewed from what its own neuron can have moved in this step, Σ |change| over its fire row,
    which is often far less than the bound for its bucket; only then is z computed.

    Parameters
    ----------
    origin, collected : weights after the step, see `widefit.kernels.certificate.slots`
    inputs : (n, d)
    threshold : b, float64
    found : counted on from its totals
    """
    n, d = inputs.shape
    blocks = origin.blocks
    fired = np.empty(2 * n + 1, np.int32)
    late = np.empty(n + 1, np.int64)
    on = np.zeros(n, np.bool_)
    values = np.empty(2 * n)
    moved = np.empty(blocks.shape[0] * blocks.shape[2])
    weight = np.empty(d)
    bucket = levels.bucket
    drift = levels.drift
    highest = levels.highest
    soonest = runs.soonest
    for slot in range(first, last):
        q = bucket[slot]
        extra = drift[slot] if drift.size > 0 else np.float32(0)
        if highest[q] + extra < soonest[slot]:
            continue
        count = _expired(runs, slot, levels.level[q], extra, late)
        if count == 0:
            continue
        k = fired_samples(collected.rows, slot, n, fired)
        if levels.step.size > 0:
            size = abs(origin.coefficients[slot])
            count = _renew_from_own_move(fired[:k], size, runs, levels, q, extra, late, count, found)
        if count > 0:
            for t in range(k):
                on[fired[t]] = True
            move_slot(fired, k, slot, origin, collected, values, moved, weight)
            _evaluate(slot, late[:count], weight, moved[:d], on, runs, levels.level[q], extra, inputs, threshold, found)
            for t in range(k):
                on[fired[t]] = False
        found.touched[found.totals[TOUCHED]] = slot
        found.totals[TOUCHED] += 1


@borrowing
def _expired(runs, slot, level, extra, late):
    """List the certificates of a slot that have expired; return how many."""
    sample = runs.sample
    due = runs.due
    first = runs.start[slot]
    count = 0
    for p in range(first, first + runs.count[slot]):
        # Branchless: which ones expire cannot be foretold.
        late[count] = p
        count += not (level[sample[p]] + extra < due[p])
    return count


@borrowing
def _renew_from_own_move(fired, size, runs, levels, q, extra, late, count, found):
    """Renew the certificates that the neuron's own movement leaves valid; keep the others in `late`, return how many.

    fired : (k,) samples that the neuron fires on; size : |c_r|
    """
    level = levels.level[q]
    step = levels.step[q]
    change = levels.change
    reach = levels.reach
    sample = runs.sample
    due = runs.due
    position = found.position
    new_due = found.due
    own = 0.0
    for t in range(fired.size):
        own += abs(change[fired[t]])
    own *= size * _UP
    total = found.totals[EXPIRED]
    left = 0
    for t in range(count):
        p = late[t]
        j = sample[p]
        spent = own * reach[j]
        later = np.float64(due[p]) + step[j] - spent
        at = np.float32(later - 1e-6 * abs(later))
        if step[j] <= spent or at <= level[j] + extra:
            late[left] = p
            left += 1
            continue
        position[total] = p
        new_due[total] = at
        total += 1
    found.totals[EXPIRED] = total
    return left


@borrowing
def _evaluate(slot, late, weight, moved, on, runs, level, extra, inputs, threshold, found):
    """Compute z of a slot's expired certificates: report the pairs that flip, and issue certificates anew.

    Parameters
    ----------
    late : the certificates
    weight, moved : (d,) w after the step, and its difference from the start
    on : (n,) bool, samples that the slot fired on before the step
    """
    sample = runs.sample
    position = found.position
    due = found.due
    expired = found.totals[EXPIRED]
    flips = found.totals[FLIPPED]
    for p in late:
        j = sample[p]
        z = dot(weight, inputs[j])
        if (z > threshold) != on[j]:
            found.slot[flips] = slot
            found.sample[flips] = j
            found.fires[flips] = not on[j]
            found.z[flips] = z
            found.y[flips] = dot(moved, inputs[j])
            flips += 1
        margin = max(abs(z - threshold) - 1e-12 * (abs(z) + abs(threshold)), 0.0)
        position[expired] = p
        due[expired] = np.float32((np.float64(level[j] + extra) + margin) * _DOWN32)
        expired += 1
    found.totals[EXPIRED] = expired
    found.totals[FLIPPED] = flips
    found.totals[EVALUATED] += late.size
