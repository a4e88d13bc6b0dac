"""Cost of Verlet lists: long ones early in a run, short ones later."""

import math

from widefit.trackers.cost import REFERENCE_THREADS, Cost, Steps, Workload

# Part of a pass that a short step takes, the first hundred included, whose lists are the longest (measured: less).
_STEP = 0.1
# Seconds of an epoch of minibatches: for each sample; and on one core for each pair that fires, more for each feature
# and for each of the other pairs of its neuron, up to so many samples.
_SECONDS_A_VISIT = 4e-5
_SECONDS_A_PAIR = 7e-8
_SECONDS_A_FEATURE = 4.5e-10
_SECONDS_AN_ADDITION = 1e-9
_ADDITIONS = 1024
# The first epochs of a run are longer than those that were measured.
_FIRST_EPOCHS = 1.5
# Samples of an epoch in which neurons do not move farther than lists pay for (measured: of 4,000, products are almost
# four times as fast).
_LARGEST_EPOCH = 2048


def cost(work: Workload) -> Cost:
    """Return what `VerletList` takes; see `Tracker.cost`."""
    return Cost(work.pattern_bytes + _bytes(work), _seconds(work))


def _seconds(work: Workload) -> float:
    if work.steps is Steps.SHORT:
        return 100 * _STEP * work.seconds_of_a_pass
    if work.steps is not Steps.MINIBATCHES or work.samples > _LARGEST_EPOCH:
        return math.inf
    additions = _SECONDS_AN_ADDITION * work.firing * min(work.samples, _ADDITIONS)
    pair = _SECONDS_A_PAIR + _SECONDS_A_FEATURE * work.features + additions
    epoch = _SECONDS_A_VISIT * work.samples + work.firing * work.pairs * pair / REFERENCE_THREADS
    return _FIRST_EPOCHS * epoch


def _bytes(work: Workload) -> int:
    """Weights where lists were made and after a step, lists before and after it, long ones early in a run."""
    fixed = 80 * work.width
    listed = work.pairs * min(1.0, 6 * work.firing)
    if work.anchored:
        return 2 * work.weight_bytes + fixed + int(6 * listed)
    # In float64 without W₀; and K and half of N, or for minibatches margins, and pairs in the order of the visits.
    steps = 24 * work.width * work.features + fixed
    if work.steps.sees_few:
        return steps + int(23 * listed)
    return steps + int(6 * listed) + (8 + 4 * work.outputs) * work.samples**2
