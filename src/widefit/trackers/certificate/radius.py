"""Radius around the threshold within which certificates are issued."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.movement import drift_of_budget, movements
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.certificate.weights import weights_of

# Slots on which movements and margins are surveyed before certificates are issued.
SURVEY = 192
# Part of the slots of a bucket that may move farther than the radius is made for.
_TAIL = 0.1


@dataclass(frozen=True)
class Reach:
    """Radius that is wanted.

    Attributes
    ----------
    steps
        Radius in units of the movement of the step.
    most, least
        Part of the pairs that may hold certificates.
    widely
        As wide as `most` allows without waste: many steps like the last are to come.
    """

    steps: float
    most: float
    least: float = 0.0
    widely: bool = False


@dataclass(frozen=True)
class _Survey:
    """Slots of an output: the movement of each, its bucket, and |z − b| after the step."""

    moved: Float[np.ndarray, " s"]
    bucket: Int[np.ndarray, " s"] | np.ndarray
    margins: Float[np.ndarray, "s n"]

    @classmethod
    def joined(cls, parts: list["_Survey"]) -> "_Survey":
        """Return the slots of several surveys of an output."""
        return cls(
            np.concatenate([part.moved for part in parts]),
            np.concatenate([part.bucket for part in parts]),
            np.concatenate([part.margins for part in parts]),
        )


def choose_radius(
    geometry: Geometry, chunks: list[CertifiedChunk], change: RunningUpdate, after: RunningUpdate, reach: Reach
) -> Float[np.ndarray, "k q"] | None:
    """Choose a radius wide enough for steps to come, with few enough certificates to pay; None where there is none.

    Parameters
    ----------
    change, after
        Change of G and P in the step, and G and P after it.
    """
    unit = np.zeros((after.scale.size, geometry.caps.size))
    ratios = [np.empty(0)]
    for output, survey in enumerate(_surveys(geometry, chunks, change, after, reach.widely)):
        if survey is not None:
            unit[output] = _typical_movements(survey, geometry.caps, reach.widely)
            with np.errstate(over="ignore"):
                ratios.append((survey.margins / np.maximum(unit[output][survey.bucket], 1e-300)[:, None]).ravel())
    ratio = np.concatenate(ratios)
    if ratio.size == 0 or not np.all(np.isfinite(unit)):
        return None
    # Between two ratios that have overflowed a quantile is NaN: no radius is known to be wide enough.
    with np.errstate(invalid="ignore"):
        widest, least = np.quantile(ratio, [reach.most, reach.least]).tolist()
    if not (widest >= reach.steps and not np.isnan(least)):
        return None
    factor = widest / 2 if reach.widely else 0.0
    return unit * max(reach.steps, factor, least)


def _surveys(
    geometry: Geometry, chunks: list[CertifiedChunk], change: RunningUpdate, after: RunningUpdate, widely: bool
) -> list[_Survey | None]:
    """Survey about `SURVEY` slots of each output, from all of its chunks."""
    outputs = after.scale.size
    total = max(1, sum(chunk.neurons.size for chunk in chunks))
    surveyed: list[list[_Survey]] = [[] for _ in range(outputs)]
    for chunk in chunks:
        output = chunk.chunk.output
        size = chunk.neurons.size
        if size == 0:
            continue
        take = min(size, 1 + SURVEY * outputs * size // total)
        if widely:
            # Many steps to come may have any signs.
            moved = drift_of_budget(geometry, chunk, np.abs(change.collected[output]), slice(0, take))
        else:
            moved = movements(geometry, chunk, *change.of(output), slice(0, take))
        weights = np.concatenate(list(weights_of(geometry, chunk, np.arange(take, dtype=np.int32), after)))
        margins = np.abs(weights @ geometry.inputs64.T - geometry.threshold)
        surveyed[output].append(_Survey(moved, chunk.bucket[:take], margins))
    return [_Survey.joined(parts) if parts else None for parts in surveyed]


def _typical_movements(survey: _Survey, caps: Int[np.ndarray, " q"], widely: bool) -> Float[np.ndarray, " q"]:
    """Return a movement that few neurons of each bucket exceed.

    Buckets without an example follow √κ, or κ without signs.
    """
    growth = caps if widely else np.sqrt(caps)
    relative = survey.moved / growth[survey.bucket]
    out = np.empty(caps.size)
    for q in range(caps.size):
        own = relative[survey.bucket == q]
        # Neurons of other buckets count where there are too few examples for a quantile.
        own = own if own.size >= 1 / _TAIL else relative
        out[q] = np.quantile(own, 1 - (_TAIL / 5 if widely else _TAIL)) * growth[q]
    return np.maximum.accumulate(out)
