"""Result of evaluating a step: in a chunk, in all chunks, and the candidate that a trial carries."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.memory import trimming_freed_memory
from widefit.trackers.certificate.bounds import Bounds
from widefit.trackers.certificate.certificates import Certificates
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.flips import ChunkFlips, EvaluatedFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.fire_pattern import FirePattern


@dataclass(frozen=True)
class Renewal:
    """Certificates that have expired.

    Attributes
    ----------
    expired, due
        Their positions, and the levels at which they are due again.
    touched
        Their slots.
    """

    expired: Integer[np.ndarray, " e"]
    due: Float[np.ndarray, " e"]
    touched: Integer[np.ndarray, " t"]


@dataclass(frozen=True)
class Rescanned:
    """Slots that were evaluated as a whole: their fire rows and certificates."""

    slots: Int[np.ndarray, " a"]
    pattern: FirePattern
    certificates: Certificates


@dataclass(frozen=True)
class ChunkResult:
    """Result of a step in a chunk.

    Attributes
    ----------
    flips
        Pairs that flip, in order.
    drift
        Drift of the slots after the step.
    evaluated
        Pre-activations computed.
    renewal, rescanned
        Certificates that were looked at one by one, and with their slots.
    """

    flips: ChunkFlips
    drift: Float[np.ndarray, " slots_or_none"]
    evaluated: int
    renewal: Renewal | None = None
    rescanned: Rescanned | None = None

    @property
    def expired(self) -> int:
        return 0 if self.renewal is None else self.renewal.expired.size


def chunk_result(
    geometry: Geometry,
    chunk: CertifiedChunk,
    flips: EvaluatedFlips,
    drift: Float[np.ndarray, " slots_or_none"],
    evaluated: int,
    renewal: Renewal | None = None,
    rescanned: Rescanned | None = None,
) -> tuple[ChunkResult, Float[np.ndarray, "2 n"]]:
    """Return the result of a step in a chunk, and the effect of its flips on f and J (W − W₀)."""
    pairs = flips.pairs(chunk.chunk.last - chunk.chunk.first, geometry.samples)
    effect = flips.effect(chunk.coefficients, geometry.threshold, geometry.samples)
    return ChunkResult(pairs, drift, evaluated, renewal, rescanned), effect


@dataclass(frozen=True)
class StepResult:
    """Result of a step in all chunks.

    Attributes
    ----------
    chunks
        Result in every chunk.
    effect
        Effect of the flips on f and J (W − W₀), beyond the linear model.
    """

    chunks: list[ChunkResult]
    effect: Float[np.ndarray, "2 n k"]

    @classmethod
    def collect(
        cls,
        chunks: list[CertifiedChunk],
        results: Iterable[tuple[ChunkResult, Float[np.ndarray, "2 n"]]],
        outputs: int,
    ) -> "StepResult":
        """Sum up results and effects chunk after chunk, as they are computed."""
        kept = []
        effect = np.zeros((2, chunks[0].samples, outputs))
        for chunk, (result, added) in trimming_freed_memory(zip(chunks, results, strict=True)):
            kept.append(result)
            effect[:, :, chunk.chunk.output] += added
        return cls(kept, effect)


@dataclass(frozen=True)
class CandidateStep:
    """Step that was evaluated by bounds, by own movements or by a pass.

    Attributes
    ----------
    update, bounds
        Running sums and bounds after the step; without bounds the next step is a pass.
    result
        Flips and certificates.
    full_pass
        True when all slots were evaluated.
    """

    update: RunningUpdate
    bounds: Bounds | None
    result: StepResult
    full_pass: bool

    @property
    def evaluated(self) -> int:
        """Pre-activations computed."""
        return sum(chunk.evaluated for chunk in self.result.chunks)

    @property
    def expired(self) -> int:
        """Certificates that were looked at."""
        return sum(chunk.expired for chunk in self.result.chunks)

    @property
    def flips(self) -> int:
        """Pairs that flip."""
        return sum(len(chunk.flips) for chunk in self.result.chunks)

    def drain(self) -> Iterator[ChunkResult]:
        """Yield the result of every chunk, and forget each when it has been taken."""
        results = self.result.chunks
        results.reverse()
        while results:
            yield results.pop()
