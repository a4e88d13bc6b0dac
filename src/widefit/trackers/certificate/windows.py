"""Windows of the certificate tracker: many small steps in a row, in which only a few pairs can flip."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.bounds import beyond, movements, rebucket
from widefit.trackers.certificate.candidates import REISSUED, candidates, drift_within, issue_anew, look_at_due
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.trial import Bounds, FollowedInWindow, Sums
from widefit.trackers.certificate.window import CandidateLook, Candidates, Window

# Steps of a window at least and at most, and pairs that may be candidates in it before it is made shorter.
_SHORTEST, _LONGEST, _MOST_CANDIDATES = 4, 1024, 20_000


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


class Pace:
    """Whether steps have become alike.

    Attributes
    ----------
    alike
        Steps in a row that were within a factor of 2 of the one before.
    """

    def __init__(self) -> None:
        self.alike, self._last = 0, 0.0

    def resembles(self, change: Float[np.ndarray, "k n"]) -> bool:
        """True when a step is like the one before."""
        return self._last > 0 and bool(0.5 < np.abs(change).sum() / self._last < 2)

    def record(self, change: Float[np.ndarray, "k n"]) -> None:
        self.alike = self.alike + 1 if self.resembles(change) else 0
        self._last = float(np.abs(change).sum())


class Windows:
    """Opens windows, follows steps in them, and closes them.

    Attributes
    ----------
    current
        The window that is open.
    opened
        How many there have been.
    """

    def __init__(self, geometry: Geometry, standing: Standing):
        self._geometry, self._standing = geometry, standing
        self.current: Window | None = None
        self.opened, self._horizon = 0, 8

    def covers(self, change: Float[np.ndarray, "k n"], pace: Pace) -> bool:
        """True when a window covers the step; opens one where steps have become small and steady."""
        if self._standing.bounds is None or not self._geometry.initial.stored:
            return False
        if self.current is not None:
            if self.current.holds(change):
                return True
            self.close()
        if pace.alike < 2 or not pace.resembles(change):
            return False
        size = np.abs(change)
        return self.open(lambda steps: steps * (1.25 * size + 0.25 * size.mean(axis=1, keepdims=True)))

    # Opening.

    def open(self, budget_of: Callable[[int], Float[np.ndarray, "k n"]]) -> bool:
        """Choose candidates for the longest window that the radius allows, up to the horizon.

        Parameters
        ----------
        budget_of
            Σ |g| of every sample in so many steps.
        """
        standing, steps = self._standing, self._horizon
        assert standing.bounds is not None
        while steps >= _SHORTEST:
            budget = budget_of(steps)
            chosen = self._candidates(standing.bounds, budget)
            if chosen is not None:
                self.current = Window.starting(standing.sums.collected, budget, chosen, steps)
                self.opened += 1
                if self.current.size > _MOST_CANDIDATES:
                    self._horizon = max(_SHORTEST, steps // 2)
                return True
            steps //= 4
        # The radius is used up: the next step makes a pass.
        standing.bounds = None
        return False

    def _candidates(self, bounds: Bounds, budget: Float[np.ndarray, "k n"]) -> list[Candidates] | None:
        """Pairs of every chunk that could flip within the budget; None where neurons could leave the radius."""
        drift = self._covered(bounds, budget)
        if drift is None:
            return None
        chunks, geometry, by_output = self._standing.chunks, self._geometry, bounds.by_output()
        for _ in range(2):
            chosen = [
                candidates(geometry, chunk, by_output[chunk.chunk.output], own, budget[chunk.chunk.output])
                for chunk, own in zip(chunks, drift, strict=True)
            ]
            outside = beyond(chunks, [most for _, most in chosen], bounds.room())
            if not any(slots.size for slots in outside):
                return [pairs for pairs, _ in chosen]
            if sum(slots.size for slots in outside) > REISSUED * sum(own.size for own in drift):
                return None
            drift = issue_anew(geometry, chunks, self._standing.sums, bounds, outside, drift)
        return None

    def _covered(self, bounds: Bounds, budget: Float[np.ndarray, "k n"]) -> list[np.ndarray] | None:
        """Drift once the budget is used up, of neurons that stay within the radius; None where too many do not."""
        chunks, room = self._standing.chunks, bounds.room()
        drift = drift_within(self._geometry, chunks, budget)
        outside = beyond(chunks, drift, room)
        if sum(slots.size for slots in outside) > REISSUED * sum(own.size for own in drift):
            return None
        drift = issue_anew(self._geometry, chunks, self._standing.sums, bounds, outside, drift)
        return None if any(slots.size for slots in beyond(chunks, drift, room)) else drift

    # Following.

    def follow(self, after: Sums) -> FollowedInWindow:
        """A step that the window covers."""
        assert self.current is not None
        path = self.current.path_after(after.collected - self._standing.sums.collected)
        return FollowedInWindow(after, self.look(after, path))

    def look(self, sums: Sums, path: Float[np.ndarray, " k"]) -> list[CandidateLook]:
        """Evaluate the candidates that are due."""
        assert self.current is not None
        return look_at_due(self._geometry, self._standing.chunks, self.current.candidates, sums, path)

    def commit(self, step: FollowedInWindow) -> None:
        """Carry out a step within the window."""
        assert self.current is not None
        self.current.advance(step.sums.collected - self._standing.sums.collected)
        self._standing.sums = step.sums
        self.renew(step.looks)

    def renew(self, looks: list[CandidateLook]) -> None:
        """Carry out looks, at the present sums."""
        assert self.current is not None
        outgrown = False
        for look in looks:
            self.current.renew(look)
            if len(look.flips):
                chunk = self._standing.chunks[look.index]
                chunk.apply(look.flips, *self._standing.sums.of(chunk.chunk.output))
                slots = look.flips.touched()
                outgrown |= bool(np.any(chunk.counts[slots] > self._geometry.caps[chunk.bucket[slots]]))
        if outgrown:
            self.close()

    # Closing.

    def close(self) -> None:
        """Go back to bounds: those of what the window has moved in all, which is less than the path."""
        window, self.current = self.current, None
        if window is None:
            return
        if window.steps >= window.planned // 2 and window.size < _MOST_CANDIDATES // 2:
            self._horizon = min(2 * self._horizon, _LONGEST)
        change = self._standing.sums.collected - window.begun

        def settle(item: tuple[CertifiedChunk, list[np.ndarray]]) -> None:
            chunk, flipped = item
            output = chunk.chunk.output
            moved = movements(self._geometry, chunk, change[output], 0.0)
            chunk.drift = moved + chunk.drift * np.float32(1 + 2e-7) if chunk.drift.size else moved
            if flipped:
                self._settle_flipped(chunk, np.concatenate(flipped), window.spent[output])

        items = zip(self._standing.chunks, window.flipped, strict=True)
        for _ in ordered_map(settle, items, self._geometry.threads):
            pass

    def _settle_flipped(
        self, chunk: CertifiedChunk, flipped: Int[np.ndarray, " f"], spent: Float[np.ndarray, " n"]
    ) -> None:
        """Neurons whose fire rows have changed may have followed any part of the path.

        `flipped` has a slot once for every flip: samples that have moved it are those it fires on now and the flipped.
        """
        most = np.sort(spent)[::-1].cumsum()
        slots, flips = np.unique(flipped, return_counts=True)
        moving = np.minimum(chunk.counts[slots] + flips, chunk.samples)
        moved = np.abs(chunk.coefficients[slots]) * most[moving - 1] * self._geometry.steepest
        chunk.drift[slots] += (moved * (1 + 1e-6)).astype(np.float32)
        if self._standing.bounds is not None:
            rebucket(self._geometry, self._standing.bounds, chunk, slots)
