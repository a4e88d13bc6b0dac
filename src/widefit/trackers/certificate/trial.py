"""Where a run of the certificate tracker stands, and what a trial finds."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.memory import giving_back
from widefit.trackers.base import Update
from widefit.trackers.certificate.chunk import Certificates, CertifiedChunk
from widefit.trackers.certificate.flips import ChunkFlips, EvaluatedFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.fire_pattern import FirePattern


@dataclass(frozen=True)
class Sums:
    """G and P: what slot r has collected is C_r = s_r ∘ G + P ê_r (see `widefit.kernels.certificate.slots`)."""

    collected: Float[np.ndarray, "k n"]
    scale: Float[np.ndarray, " k"]

    def of(self, output: int) -> tuple[Float[np.ndarray, " n"], float]:
        return self.collected[output], float(self.scale[output])

    def after(self, update: Update) -> "Sums":
        keep = 1 - update.shrink
        return Sums(keep[:, None] * self.collected + update.g.T, self.scale * keep)

    def since(self, before: "Sums") -> "Sums":
        """What has come since."""
        return Sums(self.collected - before.collected, self.scale - before.scale)


@dataclass(frozen=True)
class OutputBounds:
    """Bounds of one output, rounded up to float32, and the highest of each bucket."""

    radius: Float[np.ndarray, " q"]
    level: Float[np.ndarray, "q n"]
    highest: Float[np.ndarray, " q"]


@dataclass(frozen=True)
class Bounds:
    """How far the neurons of a bucket can have moved z since the last pass, and how far they may.

    Attributes
    ----------
    level
        Sum of the bounds of the steps, for every output, bucket and sample.
    radius
        Pairs that were nearer to the threshold than this hold certificates; ascending for every output.
    """

    level: Float[np.ndarray, "k q n"]
    radius: Float[np.ndarray, "k q"]

    @classmethod
    def after_pass(cls, radius: Float[np.ndarray, "k q"], samples: int) -> "Bounds":
        return cls(np.zeros((*radius.shape, samples)), radius)

    def raised(self, step: Float[np.ndarray, "k q n"]) -> "Bounds":
        return replace(self, level=self.level + step)

    def room(self) -> Float[np.ndarray, "k q"]:
        """Drift at which a pair without a certificate may have reached the threshold."""
        return self.radius - self.level.max(axis=2) * (1 + 1e-6)

    def of(self, output: int) -> OutputBounds:
        # What is too large for float32 is infinite: every pair holds a certificate, or every one has expired.
        with np.errstate(over="ignore"):
            level = (self.level[output] * (1 + 2e-7)).astype(np.float32)
            radius = self.radius[output].astype(np.float32)
        return OutputBounds(radius, level, level.max(axis=1))

    def by_output(self) -> list[OutputBounds]:
        return [self.of(output) for output in range(self.radius.shape[0])]


@dataclass(frozen=True)
class Renewal:
    """Certificates that have expired.

    Attributes
    ----------
    expired, due
        Their positions, and when they are due again.
    touched
        Their slots.
    """

    expired: Integer[np.ndarray, " e"]
    due: Float[np.ndarray, " e"]
    touched: Integer[np.ndarray, " t"]


@dataclass(frozen=True)
class Anew:
    """Slots that were looked at as a whole: their fire rows and certificates."""

    slots: Int[np.ndarray, " a"]
    pattern: FirePattern
    certificates: Certificates


@dataclass(frozen=True)
class Found:
    """What a trial comes to in a chunk.

    Attributes
    ----------
    flips
        In order.
    drift
        After the step.
    evaluated
        Pre-activations computed.
    renewal, anew
        Certificates that were looked at one by one, and with their slots.
    """

    flips: ChunkFlips
    drift: Float[np.ndarray, " slots_or_none"]
    evaluated: int
    renewal: Renewal | None = None
    anew: Anew | None = None

    @property
    def expired(self) -> int:
        return 0 if self.renewal is None else self.renewal.expired.size


def found_in(
    geometry: Geometry,
    chunk: CertifiedChunk,
    flips: EvaluatedFlips,
    drift: Float[np.ndarray, " slots_or_none"],
    evaluated: int,
    renewal: Renewal | None = None,
    anew: Anew | None = None,
) -> tuple[Found, Float[np.ndarray, "2 n"]]:
    """What a trial comes to in a chunk, and what its flips change f and J (W − W₀) by."""
    pairs = flips.pairs(chunk.chunk.last - chunk.chunk.first, geometry.samples)
    effect = flips.effect(chunk.coefficients, geometry.threshold, geometry.samples)
    return Found(pairs, drift, evaluated, renewal, anew), effect


@dataclass(frozen=True)
class Looked:
    """What a trial comes to.

    Attributes
    ----------
    found
        For every chunk.
    effect
        What flips change f and J (W − W₀) by, beyond the linear model.
    """

    found: list[Found]
    effect: Float[np.ndarray, "2 n k"]

    @classmethod
    def at(
        cls,
        chunks: list[CertifiedChunk],
        found: Iterable[tuple[Found, Float[np.ndarray, "2 n"]]],
        outputs: int,
    ) -> "Looked":
        """Chunk after chunk, as they are looked at."""
        kept, effect = [], np.zeros((2, chunks[0].samples, outputs))
        for chunk, (own, added) in giving_back(zip(chunks, found, strict=True)):
            kept.append(own)
            effect[:, :, chunk.chunk.output] += added
        return cls(kept, effect)


@dataclass(frozen=True)
class Followed:
    """A step that was followed by bounds, by own movements or by a pass.

    Attributes
    ----------
    sums, bounds
        After the step; without bounds the next step is a pass.
    looked
        What was found.
    passed
        True when all slots were looked at.
    """

    sums: Sums
    bounds: Bounds | None
    looked: Looked
    passed: bool

    @property
    def evaluated(self) -> int:
        """Pre-activations computed."""
        return sum(found.evaluated for found in self.looked.found)

    @property
    def expired(self) -> int:
        """Certificates that were looked at."""
        return sum(found.expired for found in self.looked.found)

    @property
    def flips(self) -> int:
        return sum(len(found.flips) for found in self.looked.found)

    def handed_over(self) -> Iterator[Found]:
        """What was found in every chunk, each forgotten when it has been taken."""
        found = self.looked.found
        found.reverse()
        while found:
            yield found.pop()
