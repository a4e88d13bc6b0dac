"""Cost of the certificate tracker: one pass over all neurons, and a look at every certificate that expires."""

import math

from widefit.trackers.certificate.geometry import LARGEST_SIMILARITY
from widefit.trackers.cost import REFERENCE_THREADS, Cost, Steps, Workload

# Seconds that a flip takes with all that is looked at for it, on one core; and of a run whatever its width, on two.
_SECONDS_A_FLIP = 1.2e-6
_SECONDS_A_RUN = 0.3
# Seconds more that a short run has to save: the kernels are compiled once in an environment, which takes some four.
_COMPILING = 0.6
# A pass that issues certificates, in passes that do not; and with the pass of the first step, where H is applied from
# fire lists: nothing foretells how long that step is, so the opening issues none, and the step many (measured with
# 100,000 samples and a million).
_FIRST_PASS = 1.1
_TWO_PASSES = 4.2
# Certificates issued for each pair that flips in a run, and how many of them are looked at.
_CERTIFICATES_A_FLIP = 11.0
_LOOKS_A_FLIP = 4.8
# Part of the pairs of living neurons from which certificates on the tracker rather makes another pass.
_LARGEST_PART = 0.04
# Flips of a step that are listed one by one.
_LISTED = 1 << 21
# What the allocator holds for a byte in use, with a reserve; and buffers of a thread at work.
_ALLOCATED = 1.12
_BUFFERS = 50_000_000
# Bytes an entry of K, N and H.
_SQUARE = 20
# Where H is applied from fire lists: bytes of the bounds of a sample and an output in each bucket while they are made,
# and seconds for all of them on one core (measured with 60,000 samples and ten outputs, and with a million).
_BOUNDS = 136
_SECONDS_OF_BOUNDS = 2e-5


def expected_flips(work: Workload) -> float:
    """Return about how many pairs flip in a Gauss-Newton run, from runs on digits: they grow as √m in all."""
    group = work.width / work.outputs
    return work.outputs * 1.1e6 * math.sqrt(group / 2**18) * (work.samples / 1000) ** 1.5 / work.readout_scale


def cost(work: Workload) -> Cost:
    """Return what `Certificate` takes; see `Tracker.cost`."""
    held = _held(work)
    # A minibatch is a step of its own, and H of all samples follows it.
    squares = _SQUARE * work.samples**2 if work.steps.sees_few else 0
    if not work.arrays:
        squares = _beside_lists(work)
    return Cost(math.ceil(_ALLOCATED * held) + squares, _seconds(work), min(_BUFFERS, int(held)))


def _beside_lists(work: Workload) -> int:
    """Return bytes of K in both precisions while it is made, or of levels without it, and of X in several forms."""
    buckets = 2 * math.log2(max(work.samples, 2)) + 2
    levels = _BOUNDS * work.outputs * buckets * work.samples
    similarity = 12 * work.samples**2 if work.samples <= LARGEST_SIMILARITY else 0
    return int(max(levels, similarity) + work.samples * (28 * work.features + 1024))


def _seconds(work: Workload) -> float:
    if work.steps not in (Steps.LONG, Steps.FEW):
        return math.inf
    flips = _SECONDS_A_FLIP * expected_flips(work) / REFERENCE_THREADS
    passes = _FIRST_PASS if work.arrays else _TWO_PASSES
    fixed = _SECONDS_A_RUN + (_COMPILING if work.steps is Steps.FEW else 0.0)
    if not work.arrays:
        fixed += _SECONDS_OF_BOUNDS * work.outputs * work.samples / REFERENCE_THREADS
    return passes * work.seconds_of_a_pass + flips + fixed


def _held(work: Workload) -> float:
    """Bytes of the neurons that are alive with their fire rows and certificates, and of the longest step."""
    word = 2 if work.samples < 1 << 16 else 4
    slots = work.width * work.alive
    flips = expected_flips(work)
    rows = work.width * min(work.samples / 8, word * work.firing * work.samples)
    fixed = slots * (8 + 2 * word) + rows
    drift = 4 * slots
    certificates = _CERTIFICATES_A_FLIP * flips
    looked_at = _LOOKS_A_FLIP * flips
    # The place of a certificate in a chunk takes two bytes while a neuron has less than one.
    place = 2 if certificates < 0.9 * work.width else 4
    if certificates > _LARGEST_PART * slots * work.samples:
        # The first step is another pass: everything of every slot once more.
        certificates /= 3
        step = fixed + drift
    else:
        # The first step has its flips and what is looked at, a later one corrections for every flip before it.
        renewals = (place + 4) * looked_at + word * min(slots, looked_at) / 2
        first = renewals + drift + (3 + word) * flips
        later = renewals / 6 + 2 * drift + (10 + word) * flips
        step = max(first, later)
    return fixed + (word + 4) * certificates + step + 40 * min(flips, _LISTED)
