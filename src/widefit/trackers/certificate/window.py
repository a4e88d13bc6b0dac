"""Many small steps in a row, in which only the pairs of a few fronts could flip."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from widefit.trackers.base import Displacement
from widefit.trackers.certificate.front import Front, FrontTrial
from widefit.trackers.certificate.price import Price
from widefit.trackers.certificate.trial import Sums

# Hot pairs beyond those of the first steps, summed over steps, that take as long as finding a neuron's candidates anew,
# and as long as putting a candidate in its place (measured).
_PER_NEURON, _PER_CANDIDATE = 20, 2


@dataclass(frozen=True)
class FollowedInWindow:
    """A step within a window: G and P after it, and what it does to the front of every output."""

    sums: Sums
    fronts: list[FrontTrial]


@dataclass
class Window:
    """Steps that stay within a budget: only the candidates can flip.

    Attributes
    ----------
    begun
        G at the start, shape (k, n).
    budget, spent
        Σ |g| for every sample: what the candidates were chosen for, and what it has come to.
    fronts
        For every output.
    price
        What its steps were expected to take.
    neurons
        That were looked at to find the candidates.
    steps, planned
        Taken, and expected.
    flipped
        Slots whose fire rows have changed, by chunk.
    """

    begun: Float[np.ndarray, "k n"]
    budget: Float[np.ndarray, "k n"]
    spent: Float[np.ndarray, "k n"]
    fronts: list[Front]
    price: Price
    neurons: int
    planned: int
    steps: int = 0
    flipped: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list), init=False)
    _hot: int = field(default=0, init=False)
    _now_hot: int = field(default=0, init=False)
    _excess: int = field(default=0, init=False)

    def holds(self, change: Float[np.ndarray, "k n"]) -> bool:
        """True when the budget covers a step, and another window would not be cheaper."""
        worn = self._excess > _PER_NEURON * self.neurons + _PER_CANDIDATE * self.size
        dear = self.steps > 0 and self.price.step(self._now_hot) > max(self.price.outside, self.price.step(self._hot))
        return not worn and not dear and bool(np.all(self.spent + np.abs(change) <= self.budget))

    def propose(self, after: Sums, before: Sums, displacement: Displacement) -> FollowedInWindow | None:
        """What a full-batch step would do; None where the window ends before it."""
        change = after.collected - before.collected
        trials = [
            front.propose(change[output], displacement.response[:, output], float(displacement.squared_norm[output]))
            for output, front in enumerate(self.fronts)
        ]
        fronts = [trial for trial in trials if trial is not None]
        return FollowedInWindow(after, fronts) if len(fronts) == len(trials) else None

    def commit(self, step: FollowedInWindow, before: Sums) -> None:
        """Carry it out."""
        self.spent = self.spent + np.abs(step.sums.collected - before.collected)
        for front, trial in zip(self.fronts, step.fronts, strict=True):
            front.commit(trial)
        self.count(1)

    def count(self, steps: int) -> None:
        """Take account of steps that were taken."""
        hot = sum(front.hot_pairs for front in self.fronts)
        self._hot = hot if self.steps == 0 else self._hot
        self._now_hot = hot
        self._excess += steps * (hot - self._hot)
        self.steps += steps

    @property
    def size(self) -> int:
        """Candidates."""
        return sum(front.size for front in self.fronts)

    @property
    def counters(self) -> Int[np.ndarray, " two"]:
        """Pairs evaluated, and flips that were seen in it, but for those of full-batch steps."""
        return np.sum([front.counters for front in self.fronts], axis=0)
