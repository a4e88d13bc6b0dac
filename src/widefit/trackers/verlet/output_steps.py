"""Steps of one output between two looks at the weights, in sample space."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels.verlet import inner_steps as kernels
from widefit.trackers.fire_pattern import word_dtype
from widefit.trackers.verlet.forecast import Forecast
from widefit.trackers.verlet.near_pairs import NearPairs

# Parts that the samples are cut into, whatever the number of threads.
_PARTS = 8


class OutputSteps:
    """Steps of one output for which a forecast holds.

    Between the steps only pairs near the threshold can flip. Their pre-activations follow from K and from who fires,
    k_r operations for each, f from H g, and H from the flips; the weights follow later, from the sum of g.

    Parameters
    ----------
    pairs
        Pairs near the threshold.
    coefficients
        a / √m of all neurons.
    similarity
        K.
    scale
        a² / m.
    half
        Counts of co-firings, float32, for `scale`; or sums of squares of coefficients, float64.

    Attributes
    ----------
    forecast
        Forecast that holds for as long as they last.
    total, path
        Σ g and Σ |g|.
    steps
        Number of steps.
    half
        H = a² / m K ∘ (half + halfᵀ) but for the flips of the last step, changed in place.
    """

    def __init__(
        self,
        forecast: Forecast,
        pairs: NearPairs,
        coefficients: Float[np.ndarray, " m"],
        similarity: Float[np.ndarray, "n n"],
        scale: float,
        half: Float[np.ndarray, "n n"],
    ):
        samples = forecast.direction.size
        self.forecast = forecast
        self.half = half
        self.steps = 0
        self.total = np.zeros(samples)
        self.path = np.zeros(samples)
        self._similarity = similarity
        self._near = pairs
        self._order = np.argsort(pairs.samples, kind="stable")
        start = np.searchsorted(pairs.samples[self._order], np.arange(samples + 1))
        # Rows in the order in which the pairs come to them: memory is read as it stands.
        slot, self._awake = _by_appearance(np.searchsorted(pairs.awake, pairs.neurons)[self._order])
        self._pairs = kernels.SamplePairs(
            start, slot, pairs.margins[self._order], pairs.fires[self._order], np.zeros(slot.size, np.int8)
        )
        self._turned = np.zeros(slot.size, np.bool_)
        self._carried = np.zeros(slot.size)
        self._rows = _rearranged(kernels.SlotRows(pairs.first, pairs.length, pairs.words), self._awake)
        self._coefficients = coefficients[pairs.awake[self._awake]]
        plain = half.dtype == np.float32
        self._squares = np.ones(self._awake.size) if plain else self._coefficients**2
        self._scale = scale if plain else 1.0
        self._shared = _shared(slot, np.repeat(np.arange(samples), np.diff(start)))
        work = start + 20.0 * np.arange(samples + 1)
        self._edges = np.searchsorted(work, np.linspace(0, work[-1], _PARTS + 1))

    @property
    def size(self) -> int:
        """Near pairs."""
        return self._order.size

    @property
    def idle(self) -> int:
        """Near pairs that have not flipped."""
        return self.size - int(np.count_nonzero(self._turned))

    @property
    def nbytes(self) -> int:
        """Memory of pairs, rows and matrices."""
        return 60 * self.size + self._rows.words.nbytes + self.half.nbytes + self._similarity.nbytes

    def covers(self, g: Float[np.ndarray, " n"]) -> bool:
        """Return True where the forecast still holds after a step."""
        return self.forecast.holds(self.total + g, self.path + np.abs(g))

    def propose(self, g: Float[np.ndarray, " n"], threads: int, executor: Executor) -> "OutputStep":
        """Find out the effect of a step."""
        after = np.empty(self.size)
        bends = np.empty(g.size)
        images = np.zeros((_PARTS, g.size))

        def evaluate(first: int, last: int) -> int:
            return kernels.evaluate(
                self._edges[first : last + 1], self._pairs, self._rows, self._coefficients, self._squares, g,
                self._similarity, self.half, after, images[first:last], bends,
            )  # fmt: skip

        shares = np.linspace(0, _PARTS, min(threads, _PARTS) + 1).astype(np.int64).tolist()
        others = [executor.submit(evaluate, *share) for share in pairwise(shares[1:])]
        flips = evaluate(*shares[:2]) + sum(other.result() for other in others)
        return OutputStep(self, self.steps, g, after, bends - self._scale * images.sum(0), flips)

    def commit(self, step: "OutputStep") -> None:
        """Carry a step out."""
        kernels.commit(self._pairs, self._rows, step.g, step.after, self._turned, self._carried)
        kernels.subtract_double(self._pairs.flipped, self._squares, self.half, self._shared)
        self.total += step.g
        self.path += np.abs(step.g)
        self.steps += 1

    def updated_counts(self) -> Float[np.ndarray, "n n"]:
        """Return `half`, up to date."""
        kernels.update_counts(self._pairs, self._rows, self._squares, self.half)
        return self.half

    def pending(self) -> "PendingUpdate":
        """Return the sum of the steps, for the weights."""
        fires = np.empty_like(self._pairs.fires)
        amounts = np.empty_like(self._carried)
        samples = self._near.samples[self._order]
        fires[self._order] = self._pairs.fires
        amounts[self._order] = self._carried - np.where(self._pairs.fires, self.total[samples], 0.0)
        return PendingUpdate(self.total, self._near.neurons, self._near.samples, fires, amounts)

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that `restored` needs beside the constructor's arguments."""
        self.updated_counts()
        first, length, words = _rearranged(self._rows, np.argsort(self._awake))
        by_neuron = np.empty((4, self.size))
        by_neuron[:, self._order] = self._pairs.z, self._pairs.fires, self._turned, self._carried
        forecast = self.forecast
        return {
            "near": by_neuron,
            "pairs": np.stack([self._near.neurons, self._near.samples]),
            "rows": np.stack([self._near.awake, first, length]),
            "words": words.astype(np.int32),
            "sums": np.stack([self.total, self.path, forecast.direction, forecast.swing]),
            "deviation": forecast.deviation,
            "numbers": np.array([forecast.stretch, self.steps]),
            "half": self.half,
        }

    @classmethod
    def restored(
        cls,
        state: dict[str, np.ndarray],
        norms: Float[np.ndarray, " n"],
        coefficients: Float[np.ndarray, " m"],
        similarity: Float[np.ndarray, "n n"],
        scale: float,
    ) -> "OutputSteps":
        """Continue in the middle of a run, to the same bits."""
        margins, fires, turned, carried = state["near"]
        neurons, samples = state["pairs"]
        awake, first, length = state["rows"]
        total, path, direction, swing = state["sums"]
        stretch, steps = state["numbers"]
        words = state["words"].astype(word_dtype(len(norms)))
        pairs = NearPairs(neurons, samples, margins, fires > 0, awake, length, first, words)
        forecast = Forecast(direction, float(stretch), state["deviation"], swing, norms)
        self = cls(forecast, pairs, coefficients, similarity, scale, state["half"].copy())
        self.total = total.copy()
        self.path = path.copy()
        self.steps = int(steps)
        self._turned = turned[self._order] > 0
        self._carried = carried[self._order]
        return self


@dataclass(frozen=True)
class PendingUpdate:
    """Sum of steps that the weights have not taken yet.

    Attributes
    ----------
    total
        s = Σ g.
    neurons, samples, fires
        The near pairs in the order of the neurons, and whether they fire now.
    amounts
        Σ g_i over the steps in which a near pair fired, less s_i where it fires now.
    """

    total: Float[np.ndarray, " n"]
    neurons: Int[np.ndarray, " pairs"]
    samples: Int[np.ndarray, " pairs"]
    fires: Bool[np.ndarray, " pairs"]
    amounts: Float[np.ndarray, " pairs"]

    def of(self, first: int, last: int) -> "PendingUpdate":
        """Return that of neurons `first` to `last`, counted from `first`."""
        own = slice(*np.searchsorted(self.neurons, [first, last]))
        return PendingUpdate(
            self.total, self.neurons[own] - first, self.samples[own], self.fires[own], self.amounts[own]
        )


@dataclass(frozen=True)
class OutputStep:
    """Step of one output that is not taken yet; `change` is that of f."""

    steps: OutputSteps
    number: int
    g: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " pairs"]
    change: Float[np.ndarray, " n"]
    flips: int

    def fits(self, steps: Sequence[OutputSteps]) -> bool:
        """Return True where it is the next of some steps."""
        return any(self.steps is own and self.number == own.steps for own in steps)


def half_counts(counts: np.ndarray) -> Float[np.ndarray, "n n"]:
    """Return the upper triangle of N with half its diagonal: float32 for counts, float64 for sums of squares."""
    half = np.triu(counts).astype(np.float32 if counts.dtype.kind == "i" else np.float64)
    np.fill_diagonal(half, half.diagonal() / 2)
    return half


def _by_appearance(slots: Int[np.ndarray, " pairs"]) -> tuple[np.ndarray, np.ndarray]:
    """Number slots in the order in which they appear first; return the new numbers, and the old ones by new number."""
    _, seen = np.unique(slots, return_index=True)
    old = np.argsort(seen)
    new = np.empty(seen.size, np.int64)
    new[old] = np.arange(seen.size)
    return new[slots], old


def _rearranged(rows: kernels.SlotRows, order: Int[np.ndarray, " slots"]) -> kernels.SlotRows:
    """Return rows that stand one after the other, in another order."""
    room = np.diff(np.append(rows.first, rows.words.size))[order]
    first = np.cumsum(room) - room
    positions = np.repeat(rows.first[order] - first, room) + np.arange(rows.words.size)
    return kernels.SlotRows(first, rows.length[order], rows.words[positions])


def _shared(slots: Int[np.ndarray, " pairs"], samples: Int[np.ndarray, " pairs"]) -> kernels.SharedSlots:
    """Return the slots with more than one pair."""
    order = np.argsort(slots, kind="stable")
    count = np.bincount(slots)
    several = count > 1
    order = order[several[slots[order]]]
    return kernels.SharedSlots(np.append(0, np.cumsum(count[several])), order, samples[order], np.flatnonzero(several))
