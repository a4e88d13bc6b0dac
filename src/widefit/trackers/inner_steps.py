"""Steps between two looks at the weights, in sample space (multiple time steps of near pairs)."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels import inner_steps as kernels

# Parts that the samples are cut into, whatever the number of threads.
_PARTS = 8
# What a bound leaves for surprises; how it grows with the number of steps; where it starts, as a part of the first step.
_ROOM, _GROWTH, _FIRST = 1.3, 1.5, 0.2


@dataclass(frozen=True)
class Forecast:
    """Steps whose sum s stays near a line, s ≈ θ ĝ with 0 ≤ θ ≤ stretch.

    Attributes
    ----------
    direction
        ĝ, the first of them.
    stretch
        Θ.
    deviation
        For k = 0 … n, the k largest |s_i − θ ĝ_i| ‖x_i‖ together are no more than this.
    swing
        Σ_{t in T} g_i(t) is no further than this, over ‖x_i‖, from 0 and from θ ĝ_i, for any steps T.
    norms
        ‖x_i‖.
    """

    direction: Float[np.ndarray, " n"]
    stretch: float
    deviation: Float[np.ndarray, " n_plus_one"]
    swing: Float[np.ndarray, " n"]
    norms: Float[np.ndarray, " n"]

    @classmethod
    def of(
        cls,
        direction: Float[np.ndarray, " n"],
        stretch: float,
        shape: Float[np.ndarray, " n_plus_one"] | None,
        norms: Float[np.ndarray, " n"],
        least: float,
    ) -> "Forecast":
        """For about `stretch` steps like this one, that leave the line as the steps before did, or by no more than `least`."""
        size = np.abs(direction)
        if shape is None:
            shape = _FIRST * _largest(size * norms) / max(float(size.sum()), 1e-300)
        room = _ROOM * float(size.sum()) * stretch**_GROWTH * shape
        return cls(direction, stretch, room + least, stretch * (1.1 * size + 0.1 * size.mean()) * norms + least, norms)

    def along(self, total: Float[np.ndarray, " n"]) -> tuple[float, Float[np.ndarray, " n_plus_one"]]:
        """θ of a sum, and how far that is from the line."""
        square = float(self.direction @ self.direction)
        theta = max(float(total @ self.direction) / square, 0.0) if square > 0 else 0.0
        return theta, _largest(np.abs(total - theta * self.direction) * self.norms)

    def holds(self, total: Float[np.ndarray, " n"], path: Float[np.ndarray, " n"]) -> bool:
        """Whether it covers steps of this sum, and of this sum of their sizes."""
        theta, off = self.along(total)
        if not (theta <= self.stretch and np.all(off <= self.deviation)):
            return False
        back = 0.5 * (path - np.sign(self.direction) * total)
        swing = np.maximum(path, back + theta * np.abs(self.direction))
        return bool(np.all(swing * self.norms <= self.swing * (1 + 1e-12)))

    def shape(self, total: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_one"]:
        """How steps leave the line, whatever their size and number."""
        theta, off = self.along(total)
        return off / (max(theta, 1.0) ** _GROWTH * max(float(np.abs(self.direction).sum()), 1e-300))


def _largest(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n_plus_one"]:
    """Sums of the k largest, k = 0 … n."""
    return np.append(0.0, np.cumsum(np.sort(values)[::-1]))


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

    Between the steps only pairs near the threshold can flip. Their pre-activations follow from K and from who fires, k_r
    operations for each, f from H g, and H from the flips; the weights follow later, from the sum of g.

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
        half: Float[np.ndarray, "n n"],
        scale: float,
    ):
        """`half` counts co-firings for `scale` = a² / m, or sums up squares of coefficients, in float64 where those differ."""
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
        self._rows = _rearranged(pairs, awake)
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
    def turned(self) -> int:
        """Near pairs that have flipped."""
        return int(np.count_nonzero(self._turned))

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

    def amounts(self) -> tuple[NearPairs, Bool[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
        """The near pairs; whether they fire now; what they add to s_i over those that fire now, in the weights."""
        fires, amounts = np.empty_like(self._fires), np.empty_like(self._carried)
        samples = self._near.samples[self._order]
        fires[self._order] = self._fires
        amounts[self._order] = self._carried - np.where(self._fires, self.total[samples], 0.0)
        return self._near, fires, amounts


@dataclass(frozen=True)
class InnerStep:
    """A step that is not taken yet; `change` is that of f."""

    steps: InnerSteps
    number: int
    g: Float[np.ndarray, " n"]
    after: Float[np.ndarray, " pairs"]
    change: Float[np.ndarray, " n"]
    flips: int


def half_of(counts: np.ndarray) -> Float[np.ndarray, "n n"]:
    """From the upper triangle of N: float32, which is exact for counts, or float64 for sums of squares."""
    half = np.triu(counts).astype(np.float32 if counts.dtype.kind == "i" else np.float64)
    np.fill_diagonal(half, half.diagonal() / 2)
    return half


def _rearranged(pairs: NearPairs, awake: Int[np.ndarray, " slots"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """first, length and words of the rows in another order."""
    room = np.diff(np.append(pairs.first, pairs.words.size))[awake]
    first = np.cumsum(room) - room
    places = np.repeat(pairs.first[awake] - first, room) + np.arange(pairs.words.size)
    return first, pairs.length[awake], pairs.words[places]


def _shared(slots: Int[np.ndarray, " pairs"], samples: Int[np.ndarray, " pairs"]) -> tuple[np.ndarray, ...]:
    """Rows with more than one pair: where each begins, their pairs, samples, and the row of each."""
    order = np.argsort(slots, kind="stable")
    count = np.bincount(slots)
    order = order[(count > 1)[slots[order]]]
    return np.append(0, np.cumsum(count[count > 1])), order, samples[order], np.flatnonzero(count > 1)
