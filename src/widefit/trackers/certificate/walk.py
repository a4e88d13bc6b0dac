"""Stochastic steps of the certificate tracker in windows: what a step costs does not grow with the width."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import certificate_front as kernels
from widefit.trackers.base import Displacement
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.window import Window
from widefit.trackers.minibatches import LOSSES, Minibatches, gradient


def budget_for(
    minibatches: Minibatches, step: int, steps: int, outputs: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "k n"]:
    """About Σ |g| of every sample in so many steps, from the gradients as they are now, with something to spare.

    The coming batches count one by one; those beyond the last of them are taken to be like them.
    """
    slope = np.abs(gradient(minibatches.loss, outputs, minibatches.targets)).T * minibatches.sample_weight
    spare = slope.mean(axis=1, keepdims=True)
    coming = minibatches.part(step, min(step + steps, len(minibatches)))
    rates = np.repeat(coming.rates, np.diff(coming.edges))
    visits = np.bincount(coming.samples, weights=rates, minlength=slope.shape[1])
    visits += (steps - len(coming)) * visits.sum() / visits.size / len(coming)
    return visits * (1.25 * slope + 0.25 * spare)


def walk(geometry: Geometry, window: Window, minibatches: Minibatches, step: int, displacement: Displacement) -> int:
    """Steps from `step` on until the budget of the window is used up; returns the step to go on from.

    The window keeps account of them, ‖W − W₀‖² is updated in place; nothing else of the run is.
    """
    fronts, samples = window.fronts, geometry.samples
    path = np.stack([front.path for front in fronts])
    reached, close, lap = path.copy(), np.zeros_like(path), np.zeros((len(fronts), samples))
    tally = np.zeros((len(fronts), kernels.OCTAVES), np.int64)
    tally[:, -1] = samples
    clock, counters = np.zeros(1, np.int64), np.zeros(2, np.int64)
    length = max(1, round(samples * len(minibatches) / max(1, minibatches.samples.size)))
    done, full = step, -1
    while full < len(fronts):
        done, full = kernels.descend_minibatches(
            minibatches.samples, minibatches.edges, minibatches.rates, done, len(minibatches), minibatches.targets,
            minibatches.sample_weight, LOSSES.index(minibatches.loss), tuple(front.plane for front in fronts),
            tuple(front.rows for front in fronts), tuple(front.near for front in fronts),
            tuple(front.hot for front in fronts), tuple(front.now for front in fronts), geometry.threshold,
            geometry.caps, length, window.budget, window.spent, lap, tally, path, reached, close, clock,
            displacement.squared_norm, counters,
        )  # fmt: skip
        if full < len(fronts):
            fronts[full].make_room()
    for front, length_of_path in zip(fronts, reached, strict=True):
        front.path = length_of_path.copy()
    fronts[0].counters[:] += counters
    return done
