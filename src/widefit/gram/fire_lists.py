"""H of a two-layer network applied from its fire pattern: nothing of size n × n is ever formed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator
from widefit.gram.fired_rows import ListedRows, Samples, fired_rows
from widefit.kernels.threads import ordered_map
from widefit.trackers.base import Flips, Tracking
from widefit.trackers.fire_pattern import FirePattern

# Vectors that one walk over the pairs serves.
_VECTORS = 8
# Columns that a task counts.
_COLUMNS = 64
# Products of samples that are held at a time.
_NUMBERS = 1 << 22

Item = TypeVar("Item")


def _go_on() -> None:
    """Return at once."""


class FireListGram(Operator):
    """H = (1/m) Σ_r a_r² D_r X (Xᵀ D_r), D_r the samples on which neuron r fires, as an operator (this project).

    A product takes 4 d operations a pair that fires, or a pair at all of neurons that fire on many samples, and memory
    for X, the fire rows and the sums of a thousand neurons; neighboring neurons that fire on nearly the same samples,
    as those of a pair do, take half of that. It is the sum over neurons of what each contributes: those of another
    process would be added. Sums over samples and columns are taken in the dtype of X: with float64 a product is that of
    `CoFiringGram` to about 1e-14 of ‖|H| |v|‖, with float32 to about 1e-6. Neurons are added up in float64, those
    behind masks a few hundred at a time; what goes in and comes out is float64.

    Parameters
    ----------
    patterns
        The chunks that feed the output, in order.
    samples
        X.
    coefficients
        Gives a_r / √m of a range of neurons (`TwoLayer.coefficients`).
    threads
        Cores to use; the result does not depend on it.
    pause
        Called again and again during products and columns; what it raises gives them up.
    """

    dtype = torch.float64
    device = torch.device("cpu")
    counts = None

    def __init__(
        self,
        patterns: Sequence[FirePattern],
        samples: Samples,
        coefficients: Callable[[int, int], Float[np.ndarray, " rows"]],
        threads: int = 1,
        pause: Callable[[], None] = _go_on,
    ):
        self.size = samples.inputs.shape[0]
        self._samples = samples
        self._threads = threads
        self._pause = pause
        features = samples.inputs.shape[1]
        self._tasks = [rows for pattern in patterns for rows in fired_rows(pattern, coefficients, features)]

    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        columns = np.ascontiguousarray(vectors.reshape(self.size, -1).numpy().T, self._samples.inputs.dtype)
        out = np.zeros(columns.shape)
        for first in range(0, len(columns), _VECTORS):
            own = slice(first, first + _VECTORS)
            for part in self._parts(columns[own]):
                out[own] += part
        return torch.from_numpy(out.T).reshape(vectors.shape).contiguous()

    def _parts(self, vectors: Float[np.ndarray, "c n"]) -> Iterator[Float[np.ndarray, "c n"]]:
        """Yield what the neurons of one task after the other contribute to H v."""

        def part(rows: ListedRows) -> np.ndarray:
            return rows.apply(self._samples, vectors)

        return ordered_map(part, self._paused(self._tasks), self._threads)

    def _paused(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the same items, with a pause before each, in the thread that reads them."""
        for item in items:
            self._pause()
            yield item

    def diagonal(self) -> Float[Tensor, " n"]:
        fired = np.zeros(self.size)
        for task in self._tasks:
            task.add_weights(fired)
        return torch.from_numpy(fired * self._samples.squared_norms)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        chosen, back = np.unique(indices.numpy(), return_inverse=True)
        found = np.empty((self.size, chosen.size))

        def fill(first: int) -> None:
            own = chosen[first : first + _COLUMNS]
            counted = np.zeros((own.size, self.size))
            for task in self._tasks:
                task.add_columns(own, counted)
            self._times_similarity(counted, own, None)
            found[:, first : first + own.size] = counted.T

        for _ in ordered_map(fill, self._paused(range(0, chosen.size, _COLUMNS)), self._threads):
            pass
        return torch.from_numpy(found if np.array_equal(chosen, indices) else found[:, back.reshape(-1)])

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        chosen, back = np.unique(indices.numpy(), return_inverse=True)
        counted = np.zeros((chosen.size, chosen.size))
        for task in self._tasks:
            task.add_block(chosen, counted, self.size)
        self._times_similarity(counted, chosen, chosen)
        back = back.reshape(-1)
        return torch.from_numpy(counted[back[:, None], back])

    def _times_similarity(
        self,
        counted: Float[np.ndarray, "r rows"],
        chosen: Int[np.ndarray, " r"],
        rows: Int[np.ndarray, " rows"] | None,
    ) -> None:
        """Multiply by K = X Xᵀ, entry by entry and in place."""
        inputs = self._samples.inputs
        others = np.ascontiguousarray(inputs[chosen])
        step = max(1, _NUMBERS // max(1, inputs.shape[1], chosen.size))
        for first in range(0, counted.shape[1], step):
            own = slice(first, first + step)
            counted[:, own] *= others @ inputs[own if rows is None else rows[own]].T


class FireListGrams:
    """H by output at the committed weights, each as a `FireListGram`.

    Parameters
    ----------
    tracking
        The run whose pattern counts.
    samples
        X.
    coefficients
        Gives a_r / √m of a range of neurons (`TwoLayer.coefficients`).
    threads
        Cores to use; the result does not depend on it.
    pause
        Called again and again during products and columns; what it raises gives them up.
    """

    def __init__(
        self,
        tracking: Tracking,
        samples: Samples,
        coefficients: Callable[[int, int], Float[np.ndarray, " rows"]],
        threads: int = 1,
        pause: Callable[[], None] = _go_on,
    ):
        self._tracking = tracking
        self._samples = samples
        self._coefficients = coefficients
        self._threads = threads
        self._pause = pause

    def __call__(self, output: int) -> FireListGram:
        """H of an output, for as long as the pattern stays as it is."""
        own = [pattern for pattern in self._tracking.patterns() if pattern.chunk.output == output]
        return FireListGram(own, self._samples, self._coefficients, self._threads, self._pause)

    def follow(self, changes: Flips | None) -> None:
        """Nothing to do: the pattern itself is all there is."""
