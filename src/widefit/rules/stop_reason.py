"""Reasons for which a run ends."""

from enum import StrEnum


class StopReason(StrEnum):
    """Reason for which a run ended; a plain string, so that files and comparisons with strings work."""

    TOL = "tol"
    SETTLED = "settled"
    CONVERGED = "converged"
    MAX_ITER = "max_iter"
    STALLED = "stalled"
    DIVERGED = "diverged"
    INTERRUPTED = "interrupted"
    CALLBACK = "callback"
    END = "end"

    @property
    def sentence(self) -> str:
        """The reason in words: "training ended because …"."""
        return _SENTENCES[self]

    @property
    def final(self) -> bool:
        """True where going on from the same state would end at once for the same reason."""
        return self in (StopReason.CONVERGED, StopReason.STALLED, StopReason.DIVERGED)


_SENTENCES = {
    StopReason.TOL: "the loss fell below the tolerance",
    StopReason.SETTLED: "what is left of the loss is little beside the leave-one-out error",
    StopReason.CONVERGED: "the loss no longer changed",
    StopReason.MAX_ITER: "the largest number of steps was reached",
    StopReason.STALLED: "no step lowered the loss any more",
    StopReason.DIVERGED: "the loss grew beyond all bounds",
    StopReason.INTERRUPTED: "it was interrupted; the best state so far was kept",
    StopReason.CALLBACK: "a callback asked for it",
    StopReason.END: "the stream came to its end",
}
