"""Many small steps in a row: the few pairs that could flip in them, and when each has to be looked at."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.trackers.certificate.chunk import CertifiedChunk, ChunkFlips


@dataclass
class Candidates:
    """Pairs of a chunk that could flip within a window.

    Attributes
    ----------
    slots, samples, fires
        The pairs, ordered, and whether they fire.
    rate
        z moves by no more than this times ‖g‖₂ in a step.
    due
        Path length Σ ‖g‖₂ at which a pair could have reached the threshold.
    next_due
        The least of them.
    """

    slots: Int[np.ndarray, " c"]
    samples: Int[np.ndarray, " c"]
    fires: Bool[np.ndarray, " c"]
    rate: Float[np.ndarray, " c"]
    due: Float[np.ndarray, " c"]
    next_due: float


@dataclass(frozen=True)
class CandidateLook:
    """What the candidates of a chunk that were due come to.

    Attributes
    ----------
    index
        Of the chunk.
    looked_at
        Candidates.
    due
        When they are due again.
    flips
        Among them, in order.
    flipped
        Candidates that flip.
    """

    index: int
    looked_at: Int[np.ndarray, " e"]
    due: Float[np.ndarray, " e"]
    flips: ChunkFlips
    flipped: Int[np.ndarray, " f"]


@dataclass
class Window:
    """Steps that stay within a budget: only the candidates can flip.

    Attributes
    ----------
    begun
        G at the start, shape (k, n).
    budget, spent
        Σ |g| for every sample: what the candidates were chosen for, and what it has come to.
    path
        Σ ‖g‖₂ for every output.
    candidates
        For every chunk.
    steps, planned
        Taken, and expected.
    flipped
        For every chunk the slots of flips, look after look.
    """

    begun: Float[np.ndarray, "k n"]
    budget: Float[np.ndarray, "k n"]
    spent: Float[np.ndarray, "k n"]
    path: Float[np.ndarray, " k"]
    candidates: list[Candidates]
    planned: int
    steps: int = 0

    def __post_init__(self) -> None:
        self.flipped: list[list[np.ndarray]] = [[] for _ in self.candidates]

    @classmethod
    def starting(
        cls,
        collected: Float[np.ndarray, "k n"],
        budget: Float[np.ndarray, "k n"],
        candidates: list[Candidates],
        planned: int,
    ) -> "Window":
        """A window before its first step."""
        zero = np.zeros_like(collected)
        return cls(collected.copy(), budget, zero, np.zeros(len(zero)), candidates, planned)

    def holds(self, change: Float[np.ndarray, "k n"]) -> bool:
        """True when the budget covers a step."""
        return bool(np.all(self.spent + np.abs(change) <= self.budget))

    def path_after(self, change: Float[np.ndarray, "k n"]) -> Float[np.ndarray, " k"]:
        """Path length after a step."""
        return self.path + np.linalg.norm(change, axis=1)

    def advance(self, change: Float[np.ndarray, "k n"]) -> None:
        """Take a step."""
        self.path = self.path_after(change)
        self.spent = self.spent + np.abs(change)
        self.steps += 1

    @property
    def size(self) -> int:
        return sum(own.slots.size for own in self.candidates)

    def next_due(self, chunks: list[CertifiedChunk]) -> Float[np.ndarray, " k"]:
        """Path length at which the first candidate of each output is due."""
        out = np.full(self.path.size, np.inf)
        for chunk, own in zip(chunks, self.candidates, strict=True):
            out[chunk.chunk.output] = min(out[chunk.chunk.output], own.next_due)
        return out

    def renew(self, look: CandidateLook) -> None:
        """Carry out a look."""
        own = self.candidates[look.index]
        own.due[look.looked_at] = look.due
        own.fires[look.flipped] = ~own.fires[look.flipped]
        own.next_due = float(own.due.min())
        if look.flipped.size:
            self.flipped[look.index].append(look.flips.slots)
