"""H of every output at the committed weights, kept while it can be brought up to date."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from widefit.gram.co_firing import CoFiringGram, squared_coefficients
from widefit.trackers.base import Flips, Tracking
from widefit.trackers.fire_pattern import FirePattern


def similarity(inputs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """K = X Xᵀ in float64, whatever the dtype of X."""
    exact = inputs.astype(np.float64)
    return exact @ exact.T


class CurrentGrams:
    """H by output: counted from the fire pattern when first asked for, then followed flip by flip.

    Parameters
    ----------
    tracking
        The run whose pattern counts.
    similarity
        K = X Xᵀ, float64, or what makes it: called when H is first asked for, which stochastic steps never do.
    coefficients
        Gives a_r / √m of a range of neurons (`TwoLayer.coefficients`).
    held
        Outputs whose H is kept, at most.
    threads
        Cores to use; the result does not depend on it.
    """

    def __init__(
        self,
        tracking: Tracking,
        similarity: Float[np.ndarray, "n n"] | Callable[[], Float[np.ndarray, "n n"]],
        coefficients: Callable[[int, int], Float[np.ndarray, " rows"]],
        held: int,
        threads: int = 1,
    ):
        self._tracking, self._coefficients = tracking, coefficients
        self._similarity = similarity
        self._most, self._threads = held, threads
        self._held: dict[int, CoFiringGram] = {}
        self._squares: dict[int, tuple[float, np.ndarray | None]] = {}

    def __call__(self, output: int) -> CoFiringGram:
        """H of an output; the caller must not change it."""
        if output not in self._held:
            if len(self._held) >= self._most:
                self._held.clear()
            if callable(self._similarity):
                self._similarity = self._similarity()
            patterns = self._patterns_of(output)
            scale, squares = self._squares_of(output, patterns)
            self._held[output] = CoFiringGram(patterns, self._similarity, scale, squares, self._threads)
        return self._held[output]

    def _squares_of(self, output: int, patterns: Sequence[FirePattern]) -> tuple[float, np.ndarray | None]:
        """Weight of a co-firing; found chunk by chunk, so that equal readouts take no memory."""
        if output not in self._squares:
            scales = set()
            for pattern in patterns:
                scale, squares = squared_coefficients(self._coefficients(pattern.chunk.first, pattern.chunk.last))
                scales.add(scale if squares is None else None)
            if len(scales) == 1 and None not in scales:
                self._squares[output] = (scales.pop(), None)
            else:
                first, last = patterns[0].chunk.first, patterns[-1].chunk.last
                self._squares[output] = (1.0, self._coefficients(first, last) ** 2)
        return self._squares[output]

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
