"""Stochastic steps of the certificate tracker in windows: a step costs b n operations, whatever the width."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels import certificate_walk as kernels
from widefit.trackers.base import Displacement, Grams
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.trial import Sums
from widefit.trackers.certificate.window import Window
from widefit.trackers.minibatches import LOSSES, Minibatches, gradient


@dataclass(frozen=True)
class Walk:
    """Where a walk has ended: the step to go on from, and the run there."""

    step: int
    sums: Sums
    outputs: Float[np.ndarray, "n k"]
    displacement: Displacement


def budget_for(
    minibatches: Minibatches, step: int, steps: int, outputs: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "k n"]:
    """About Σ |g| of every sample in the coming steps, from the gradients as they are now, with something to spare."""
    slope = np.abs(gradient(minibatches.loss, outputs, minibatches.targets)).T * minibatches.sample_weight
    spare = slope.mean(axis=1, keepdims=True)
    coming = minibatches.part(step, min(step + steps, len(minibatches)))
    rates = np.repeat(coming.rates, np.diff(coming.edges))
    visits = np.bincount(coming.samples, weights=rates, minlength=slope.shape[1])
    return visits * (1.25 * slope + 0.25 * spare)


def walk(
    minibatches: Minibatches,
    step: int,
    grams: Grams,
    window: Window,
    chunks: list[CertifiedChunk],
    sums: Sums,
    outputs: Float[np.ndarray, "n k"],
    displacement: Displacement,
) -> Walk:
    """Steps from `step` on until a candidate is due or the window ends; the window keeps account of them."""
    matrices = tuple(grams(output).matrix.numpy() for output in range(outputs.shape[1]))
    moved, response = outputs.T.copy(), displacement.response.T.copy()
    collected, squared_norm = sums.collected.copy(), displacement.squared_norm.copy()
    last = min(step + window.planned - window.steps, len(minibatches))
    done = kernels.walk_minibatches(
        minibatches.samples, minibatches.edges, minibatches.rates, step, last, minibatches.targets,
        minibatches.sample_weight, LOSSES.index(minibatches.loss), matrices, moved, response, collected, window.budget,
        window.spent, window.path, window.next_due(chunks), squared_norm,
    )  # fmt: skip
    window.steps += done - step
    displacement = Displacement(np.ascontiguousarray(response.T), squared_norm)
    return Walk(done, Sums(collected, sums.scale), np.ascontiguousarray(moved.T), displacement)
