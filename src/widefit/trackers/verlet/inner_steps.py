"""Steps between two looks at the weights, in sample space (multiple time steps of near pairs)."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels.verlet import inner_steps as kernels
from widefit.kernels.verlet.near_lists import move
from widefit.trackers.fire_pattern import Chunk, word_dtype
from widefit.trackers.verlet.lookahead import MANY, Forecast
from widefit.trackers.verlet.near_lists import Lists

# Parts that the samples are cut into, whatever the number of threads.
_PARTS = 8


@dataclass(frozen=True)
class Ahead:
    """A block on its way along a forecast.

    Attributes
    ----------
    forecast
        Of its output.
    direction
        v_r = Σ_{i: r fires on i} ĝ_i x_i.
    coefficients
        a_r / √m.
    inputs
        X.
    """

    forecast: Forecast
    direction: Float[np.ndarray, "rows d"]
    coefficients: Float[np.ndarray, " rows"]
    inputs: Float[np.ndarray, "n d"]

    @classmethod
    def of(
        cls,
        forecast: Forecast,
        weights: Float[np.ndarray, "rows d"],
        coefficients: Float[np.ndarray, " rows"],
        inputs: Float[np.ndarray, "n d"],
        lists: Lists,
    ) -> "Ahead":
        direction = np.zeros_like(weights)
        move(
            direction, weights[:0], weights.dtype.type(0), np.full(len(weights), -1.0), forecast.direction, inputs,
            lists.entries, direction,
        )  # fmt: skip
        return cls(forecast, direction, coefficients, inputs)

    def reach(self, lists: Lists) -> Float[np.ndarray, " rows"]:
        """How far each neuron can go, apart from what its near pairs add."""
        out = np.empty(len(self.direction))
        kernels.reach(
            lists.entries, self.direction, self.coefficients, self.forecast.stretch, self.forecast.deviation, out
        )
        return out

    def near(
        self,
        lists: Lists,
        margins: Float[np.ndarray, " listed"],
        norms: Float[np.ndarray, " n"],
        rounding: Float[np.ndarray, " rows"],
    ) -> tuple[Bool[np.ndarray, " listed"] | None, Float[np.ndarray, " rows"]]:
        """The listed pairs that can come to the threshold, None if there are many; how far each neuron can go."""
        near, reached = np.zeros(margins.size, np.bool_), np.zeros(len(self.direction))
        most = 64 + int(np.count_nonzero(lists.fires)) // MANY
        found = kernels.choose(
            lists.entries, margins, self.direction, self.inputs, norms, self.coefficients, self.forecast.stretch,
            self.forecast.deviation, self.forecast.swing, rounding, most, near, reached,
        )  # fmt: skip
        return (near if found <= most else None), reached


@dataclass(frozen=True)
class NearPairs:
    """Pairs of the neurons of an output that can come to the threshold, in the order of the neurons.

    Attributes
    ----------
    neurons, samples
        The pairs.
    margins
        ⟨w, x⟩ − b.
    fires
        Whether they fire.
    awake, length, words
        The neurons that have some, and the samples that each fires on, one neuron after the other.
    """

    neurons: Int[np.ndarray, " pairs"]
    samples: Int[np.ndarray, " pairs"]
    margins: Float[np.ndarray, " pairs"]
    fires: Bool[np.ndarray, " pairs"]
    awake: Int[np.ndarray, " slots"]
    length: Int[np.ndarray, " slots"]
    first: Int[np.ndarray, " slots"]
    words: np.ndarray

    @classmethod
    def of(
        cls, block: Chunk, lists: Lists, margins: Float[np.ndarray, " listed"], near: Bool[np.ndarray, " listed"]
    ) -> "NearPairs":
        """Those of a block, some of the listed pairs."""
        places = np.flatnonzero(near)
        rows = np.searchsorted(lists.start, places, side="right") - 1
        awake, count = np.unique(rows, return_counts=True)
        room = np.diff(np.append(0, np.cumsum(lists.fires))[lists.start])[awake] + count
        first, length = np.cumsum(room) - room, np.empty(awake.size, np.int64)
        words = np.empty(int(room.sum()), lists.samples.dtype)
        kernels.rows_of(lists.entries, awake, first, length, words)
        return cls(
            rows + block.first, lists.samples[places].astype(np.int64), margins[places], lists.fires[places],
            awake + block.first, length, first, words,
        )  # fmt: skip

    @classmethod
    def join(cls, parts: Sequence["NearPairs"]) -> "NearPairs":
        """Those of consecutive blocks."""
        shift = np.cumsum([0, *(part.words.size for part in parts[:-1])])
        first = np.concatenate([part.first + by for part, by in zip(parts, shift, strict=True)])
        whole = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("neurons", "samples", "margins", "fires", "awake", "length", "words")
        }
        return cls(first=first, **whole)


class InnerSteps:
    """Steps of one output for which a forecast holds.

    Between the steps only pairs near the threshold can flip. Their pre-activations follow from K and from who fires,
    k_r operations for each, f from H g, and H from the flips; the weights follow later, from the sum of g.

    Attributes
    ----------
    forecast
        What holds for as long as they last.
    total, path
        Σ g and Σ |g|.
    steps
        Their number.
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
        """`half` counts co-firings, float32, for `scale` = a² / m; or sums up squares of coefficients, float64."""
        samples = forecast.direction.size
        self.forecast, self.half, self.steps = forecast, half, 0
        self.total, self.path = np.zeros(samples), np.zeros(samples)
        self._similarity, self._near = similarity, pairs
        order = np.argsort(pairs.samples, kind="stable")
        start = np.searchsorted(pairs.samples[order], np.arange(samples + 1))
        # Rows in the order in which the pairs come to them: memory is read as it stands.
        mine = np.searchsorted(pairs.awake, pairs.neurons)
        _, seen = np.unique(mine[order], return_index=True)
        awake, place = np.argsort(seen), np.empty(seen.size, np.int64)
        place[awake] = np.arange(seen.size)
        self._order, self._pairs = order, (start, place[mine[order]])
        self._margins, self._fires = pairs.margins[order], pairs.fires[order]
        self._turned, self._flipped = np.zeros(order.size, np.bool_), np.zeros(order.size, np.int8)
        self._carried = np.zeros(order.size)
        self._awake, self._rows = awake, _rearranged(pairs.first, pairs.length, pairs.words, awake)
        self._coefficients = coefficients[pairs.awake[awake]]
        plain = half.dtype == np.float32
        self._squares = np.ones(awake.size) if plain else self._coefficients**2
        self._scale = scale if plain else 1.0
        self._of_slots = _shared(self._pairs[1], np.repeat(np.arange(samples), np.diff(start)))
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
        return 60 * self.size + self._rows[2].nbytes + self.half.nbytes + self._similarity.nbytes

    def covers(self, g: Float[np.ndarray, " n"]) -> bool:
        return self.forecast.holds(self.total + g, self.path + np.abs(g))

    def propose(self, g: Float[np.ndarray, " n"], threads: int, executor: Executor) -> "InnerStep":
        """What a step does."""
        after, bends, images = np.empty(self.size), np.empty(g.size), np.zeros((_PARTS, g.size))

        def parts(first: int, last: int) -> int:
            return kernels.evaluate(
                self._edges[first : last + 1], self._pairs, self._margins, self._fires, self._flipped, self._rows,
                self._coefficients, self._squares, g, self._similarity, self.half, after, images[first:last], bends,
            )  # fmt: skip

        shares = np.linspace(0, _PARTS, min(threads, _PARTS) + 1).astype(np.int64).tolist()
        others = [executor.submit(parts, *share) for share in pairwise(shares[1:])]
        flips = parts(*shares[:2]) + sum(other.result() for other in others)
        return InnerStep(self, self.steps, g, after, bends - self._scale * images.sum(0), flips)

    def commit(self, step: "InnerStep") -> None:
        g = step.g
        kernels.commit(
            self._pairs, self._margins, self._fires, self._flipped, self._turned, self._carried, self._rows, g,
            step.after,
        )  # fmt: skip
        kernels.count_twice(self._flipped, self._squares, self.half, self._of_slots)
        self.total += g
        self.path += np.abs(g)
        self.steps += 1

    def settle(self) -> Float[np.ndarray, "n n"]:
        """`half`, up to date."""
        kernels.settle(0, len(self.half), self._pairs, self._flipped, self._rows, self._squares, self.half)
        return self.half

    def carried(self) -> "Carried":
        """What the steps come to in the weights."""
        fires, amounts = np.empty_like(self._fires), np.empty_like(self._carried)
        samples = self._near.samples[self._order]
        fires[self._order] = self._fires
        amounts[self._order] = self._carried - np.where(self._fires, self.total[samples], 0.0)
        return Carried(self.total, self._near.neurons, self._near.samples, fires, amounts)

    def state(self) -> dict[str, np.ndarray]:
        """What `restored` needs beside what the constructor is given, but for the pairs."""
        self.settle()
        awake = np.argsort(self._awake)
        first, length, words = _rearranged(*self._rows, awake)
        by_neuron = np.empty((4, self.size))
        by_neuron[:, self._order] = self._margins, self._fires, self._turned, self._carried
        forecast = self.forecast
        return {
            "near": by_neuron, "pairs": np.stack([self._near.neurons, self._near.samples]),
            "rows": np.stack([self._near.awake, first, length]), "words": words.astype(np.int32),
            "sums": np.stack([self.total, self.path, forecast.direction, forecast.swing]),
            "deviation": forecast.deviation, "numbers": np.array([forecast.stretch, self.steps]), "half": self.half,
        }  # fmt: skip

    @classmethod
    def restored(
        cls,
        state: dict[str, np.ndarray],
        norms: Float[np.ndarray, " n"],
        coefficients: Float[np.ndarray, " m"],
        similarity: Float[np.ndarray, "n n"],
        scale: float,
    ) -> "InnerSteps":
        """In the middle of a run, to go on to the same bits."""
        margins, fires, turned, carried = state["near"]
        neurons, samples = state["pairs"]
        awake, first, length = state["rows"]
        total, path, direction, swing = state["sums"]
        stretch, steps = state["numbers"]
        pairs = NearPairs(
            neurons, samples, margins, fires > 0, awake, length, first, state["words"].astype(word_dtype(len(norms)))
        )
        forecast = Forecast(direction, float(stretch), state["deviation"], swing, norms)
        self = cls(forecast, pairs, coefficients, similarity, scale, state["half"].copy())
        self.total, self.path, self.steps = total.copy(), path.copy(), int(steps)
        self._turned, self._carried = turned[self._order] > 0, carried[self._order]
        return self


@dataclass(frozen=True)
class Carried:
    """Steps that the weights have not taken yet.

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

    def of(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Neurons counted from `first`, samples, fires and amounts of some neurons."""
        own = slice(*np.searchsorted(self.neurons, [first, last]))
        return self.neurons[own] - first, self.samples[own], self.fires[own], self.amounts[own]


@dataclass(frozen=True)
class InnerStep:
    """A step that is not taken yet; `change` is that of f."""

    steps: InnerSteps
    number: int
    g: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " pairs"]
    change: Float[np.ndarray, " n"]
    flips: int

    def fits(self, steps: Sequence[InnerSteps]) -> bool:
        """Whether it is the next of some steps."""
        return any(self.steps is inner and self.number == inner.steps for inner in steps)


def half_of(counts: np.ndarray) -> Float[np.ndarray, "n n"]:
    """From the upper triangle of N: float32, which is exact for counts, or float64 for sums of squares."""
    half = np.triu(counts).astype(np.float32 if counts.dtype.kind == "i" else np.float64)
    np.fill_diagonal(half, half.diagonal() / 2)
    return half


def _rearranged(
    first: Int[np.ndarray, " slots"],
    length: Int[np.ndarray, " slots"],
    words: np.ndarray,
    to: Int[np.ndarray, " slots"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for rows that stand one after the other, in another order."""
    room = np.diff(np.append(first, words.size))[to]
    after = np.cumsum(room) - room
    places = np.repeat(first[to] - after, room) + np.arange(words.size)
    return after, length[to], words[places]


def _shared(slots: Int[np.ndarray, " pairs"], samples: Int[np.ndarray, " pairs"]) -> tuple[np.ndarray, ...]:
    """Rows with more than one pair: where each begins, their pairs, samples, and the row of each."""
    order = np.argsort(slots, kind="stable")
    count = np.bincount(slots)
    order = order[(count > 1)[slots[order]]]
    return np.append(0, np.cumsum(count[count > 1])), order, samples[order], np.flatnonzero(count > 1)
