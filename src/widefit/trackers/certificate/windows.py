"""Windows of the certificate tracker: many small steps in a row, in which only a few pairs can flip."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.threads import ordered_map
from widefit.trackers.base import Displacement, Grams
from widefit.trackers.certificate.bounds import beyond, movements, rebucket
from widefit.trackers.certificate.candidates import REISSUED, Candidates, candidates, drift_within, issue_anew
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.front import Front
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.price import price
from widefit.trackers.certificate.trial import Bounds, Sums
from widefit.trackers.certificate.window import FollowedInWindow, Window

# Steps of a window at least and at most, and pairs that may be candidates in it before it is made shorter.
_SHORTEST, _LONGEST, _MOST_CANDIDATES = 4, 1 << 14, 4_000_000
# Steps that the first window is to have.
_FIRST = 32
# Steps at most before another window is tried where one was too short.
_LONGEST_WAIT = 32


@dataclass
class Standing:
    """Where a run stands.

    Attributes
    ----------
    chunks
        The neurons that can move.
    sums
        G and P.
    bounds
        What certificates are measured against; None: the next step is a pass.
    """

    chunks: list[CertifiedChunk]
    sums: Sums
    bounds: Bounds | None


@dataclass(frozen=True)
class Here:
    """What a window begins with: f, J (W − W₀), and H of every output."""

    outputs: Float[np.ndarray, "n k"]
    displacement: Displacement
    grams: Grams


class Pace:
    """Whether steps have become alike.

    Attributes
    ----------
    alike
        Steps in a row that were like the one before: as long to a factor of 2, and over the same samples.
    """

    def __init__(self) -> None:
        self.alike, self._last = 0, np.zeros((1, 1))

    def resembles(self, change: Float[np.ndarray, "k n"]) -> bool:
        """True when a step is like the one before."""
        size, last = np.abs(change), float(self._last.sum())
        return bool(0.5 * last < size.sum() < 2 * last and np.abs(size - self._last).sum() < 1.2 * last)

    def record(self, change: Float[np.ndarray, "k n"]) -> None:
        self.alike = self.alike + 1 if self.resembles(change) else 0
        self._last = np.abs(change)


class Windows:
    """Opens windows and closes them.

    Attributes
    ----------
    gain
        How many times as long steps must take outside a window for it to be opened.
    current
        The window that is open.
    opened
        How many there have been.
    """

    def __init__(self, geometry: Geometry, standing: Standing, gain: float):
        self._geometry, self._standing, self.gain = geometry, standing, gain
        self._similarity = geometry.inputs64 @ geometry.inputs64.T
        self._grams: list[np.ndarray] | None = None
        self.current: Window | None = None
        self.opened, self._horizon, self._wait, self._patience = 0, _FIRST, 0, 1

    def propose(self, after: Sums, pace: Pace, here: Here) -> FollowedInWindow | None:
        """What a full-batch step would do, where a window covers it; opens one where steps are small and steady."""
        standing = self._standing
        if standing.bounds is None or not self._geometry.initial.stored:
            return None
        change = after.collected - standing.sums.collected
        if self.current is not None:
            step = self.current.propose(after, standing.sums, here.displacement) if self.current.holds(change) else None
            if step is not None:
                return step
            self.close()
        if self.waits() or pace.alike < 2 or not pace.resembles(change):
            return None
        size = np.abs(change)
        if self.open(lambda steps: steps * (1.25 * size + 0.25 * size.mean(axis=1, keepdims=True)), here, 1.0):
            assert self.current is not None
            step = self.current.propose(after, standing.sums, here.displacement)
            if step is None:
                self.close()
            return step
        return None

    # Opening.

    def open(self, budget_of: Callable[[int], Float[np.ndarray, "k n"]], here: Here, visited: float) -> bool:
        """Choose candidates for the longest window that the radius allows, up to the horizon; False where none pays.

        Parameters
        ----------
        budget_of
            Σ |g| of every sample in so many steps.
        here
            Where the run stands.
        visited
            Part of the samples that a step looks at.
        """
        standing = self._standing
        assert standing.bounds is not None
        steps = self._steps_within(standing.bounds, budget_of(self._horizon))
        while steps >= _SHORTEST:
            budget = budget_of(steps)
            chosen = self._candidates(standing.bounds, budget)
            if chosen is not None:
                cost = price(self._geometry, standing.chunks, chosen, budget_of(round(1 / visited)), visited)
                if not cost.gain(steps) >= self.gain:
                    break
                fronts = [self._front(chosen, output, here) for output in range(len(budget))]
                neurons = sum(chunk.neurons.size for chunk in standing.chunks)
                begun = standing.sums.collected.copy()
                self.current = Window(begun, budget, np.zeros_like(budget), fronts, cost, neurons, steps)
                self.opened, self._patience = self.opened + 1, 1
                self._grams = None
                if self.current.size > _MOST_CANDIDATES:
                    self._horizon = max(_SHORTEST, steps // 2)
                return True
            steps //= 2
        # Steps are too long as yet.
        self.wait()
        return False

    def wait(self) -> None:
        """Do without for some steps, for longer every time."""
        self._wait = self._patience = min(2 * self._patience, _LONGEST_WAIT)

    def waits(self) -> bool:
        """True when another window is not to be tried at this step."""
        self._wait -= 1
        return self._wait >= 0

    def _steps_within(self, bounds: Bounds, budget: Float[np.ndarray, "k n"]) -> int:
        """About as many steps, up to the horizon, as keep most neurons within the radius; the budget is of them all."""
        chunks, room, ratios = self._standing.chunks, bounds.room(), [np.empty(0)]
        for chunk, end in zip(chunks, drift_within(self._geometry, chunks, budget), strict=True):
            used = chunk.drift if chunk.drift.size else np.zeros_like(end)
            left = room[chunk.chunk.output][chunk.bucket] - used
            ratios.append(left / np.maximum(end - used, left * np.float32(1e-6) + 1e-30))
        ratio = np.concatenate(ratios)
        return int(self._horizon * min(1.0, float(np.quantile(ratio, REISSUED)))) if ratio.size else self._horizon

    def _front(self, chosen: list[Candidates], output: int, here: Here) -> Front:
        gram = here.grams(output).matrix.numpy().copy() if self._grams is None else self._grams[output]
        return Front.opened(
            self._geometry, self._standing.chunks, chosen, output, self._standing.sums, gram, self._similarity,
            here.outputs[:, output], here.displacement.response[:, output],
        )  # fmt: skip

    def _candidates(self, bounds: Bounds, budget: Float[np.ndarray, "k n"]) -> list[Candidates] | None:
        """Pairs of every chunk that could flip within the budget; None where neurons could leave the radius."""
        drift = self._covered(bounds, budget)
        if drift is None:
            return None
        geometry, by_output, room = self._geometry, bounds.by_output(), bounds.room()

        def choose(item: tuple[CertifiedChunk, np.ndarray]) -> Candidates:
            chunk, own = item
            output = chunk.chunk.output
            return candidates(geometry, chunk, by_output[output], own, room[output][chunk.bucket], budget[output])

        return list(ordered_map(choose, zip(self._standing.chunks, drift, strict=True), geometry.threads))

    def _covered(self, bounds: Bounds, budget: Float[np.ndarray, "k n"]) -> list[np.ndarray] | None:
        """Drift once the budget is used up, of neurons that stay within the radius; None where too many do not."""
        chunks, room = self._standing.chunks, bounds.room()
        drift = drift_within(self._geometry, chunks, budget)
        outside = beyond(chunks, drift, room)
        if sum(slots.size for slots in outside) > REISSUED * sum(own.size for own in drift):
            return None
        drift = issue_anew(self._geometry, chunks, self._standing.sums, bounds, outside, drift)
        return None if any(slots.size for slots in beyond(chunks, drift, room)) else drift

    # Going back to fire rows and bounds.

    def settle(self) -> None:
        """Bring the fire rows and corrections of the neurons up to date; an open window goes on."""
        window, standing = self.current, self._standing
        if window is None:
            return
        for output, front in enumerate(window.fronts):
            flipped = front.settle(standing.chunks, float(standing.sums.scale[output]))
            for index, slots in zip(front.chunks, flipped, strict=True):
                window.flipped[index].append(slots)

    def close(self) -> None:
        """Go back to bounds: those of what the window has moved in all, which is less than the path."""
        window = self.current
        if window is None:
            return
        self.settle()
        self.current = None
        if window.steps >= window.planned // 2 and window.size < _MOST_CANDIDATES // 2:
            self._horizon = min(2 * self._horizon, _LONGEST)
        change, chunks = self._standing.sums.collected - window.begun, self._standing.chunks
        displaced = {}
        for front in window.fronts:
            displaced |= dict(zip(front.chunks, front.displaced(), strict=True))

        def rest(index: int) -> None:
            chunk = chunks[index]
            moved = movements(self._geometry, chunk, change[chunk.chunk.output], 0.0)
            slots, length = displaced[index]
            moved[slots] = np.nextafter(length.astype(np.float32), np.float32(np.inf))
            chunk.drift = moved + chunk.drift * np.float32(1 + 2e-7) if chunk.drift.size else moved
            self._rebucket(chunk, np.unique(np.concatenate([np.empty(0, np.int32), *window.flipped[index]])))

        for _ in ordered_map(rest, range(len(chunks)), self._geometry.threads):
            pass
        self._grams = [front.whole_gram() for front in window.fronts]

    def forget(self) -> None:
        """The run has gone on without a window."""
        self._grams = None

    def _rebucket(self, chunk: CertifiedChunk, flipped: Int[np.ndarray, " s"]) -> None:
        if self._standing.bounds is not None and flipped.size:
            rebucket(self._geometry, self._standing.bounds, chunk, flipped)
