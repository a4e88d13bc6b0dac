"""H of every output at the committed weights, kept while it can be brought up to date."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from widefit.gram.co_firing import CoFiringGram, co_firing
from widefit.trackers.base import Flips, Tracking
from widefit.trackers.fire_pattern import FirePattern


class CurrentGrams:
    """H by output: counted from the fire pattern when first asked for, then followed flip by flip.

    Parameters
    ----------
    tracking
        The run whose pattern counts.
    similarity
        K = X Xᵀ, float64.
    coefficients
        a_r / √m of every neuron.
    held
        Outputs whose H is kept, at most.
    threads
        Cores to use; the result does not depend on it.
    """

    def __init__(
        self,
        tracking: Tracking,
        similarity: Float[np.ndarray, "n n"],
        coefficients: Float[np.ndarray, " m"],
        held: int,
        threads: int = 1,
    ):
        self._tracking, self._similarity, self._coefficients = tracking, similarity, coefficients
        self._most, self._threads = held, threads
        self._held: dict[int, CoFiringGram] = {}

    def __call__(self, output: int) -> CoFiringGram:
        """H of an output; the caller must not change it."""
        if output not in self._held:
            if len(self._held) >= self._most:
                self._held.clear()
            self._held[output] = co_firing(
                self._patterns_of(output), self._similarity, self._coefficients, self._threads
            )
        return self._held[output]

    def follow(self, changes: Flips | None) -> None:
        """Prepare for flips that the run is about to commit; None: the pattern is new as a whole."""
        if changes is None:
            self._held.clear()
            return
        for output in list(self._held):
            patterns = self._patterns_of(output)
            if _dearer_than_a_recount(patterns, changes):
                del self._held[output]
            else:
                self._held[output].flip(patterns, changes)

    def _patterns_of(self, output: int) -> Sequence[FirePattern]:
        return [pattern for pattern in self._tracking.patterns() if pattern.chunk.output == output]


# Firing pairs that a recount adds in the time in which a flip changes one entry of N and of H (measured).
_RECOUNTED = 6


def _dearer_than_a_recount(patterns: Sequence[FirePattern], flips: Flips) -> bool:
    """True when following the flips takes longer than counting anew: 2 k_r entries a flip against k_r² / 2 a neuron."""
    first, last = patterns[0].chunk.first, patterns[-1].chunk.last
    own = int(np.diff(np.searchsorted(flips.neurons, [first, last]))[0])
    if own == 0:
        return False
    counts = [pattern.counts.astype(np.float64) for pattern in patterns]
    pairs, squares = sum(float(count.sum()) for count in counts), sum(float(count @ count) for count in counts)
    # A pair that flips belongs to neurons in proportion to what they fire on.
    return own * squares / max(pairs, 1.0) * _RECOUNTED > squares / 2 + 1e6
