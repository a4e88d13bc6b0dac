"""H of a network whose neurons several processes share out: the sum of what those of each contribute (this project)."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import DenseGram, Operator
from widefit.gram.co_firing import fill_gram
from widefit.gram.current import CurrentGrams
from widefit.gram.fire_lists import FireListGrams
from widefit.processes import Alone
from widefit.trackers.base import Flips


class SummedOperator(Operator):
    """H applied; a product sends as many numbers as it has. Every method is called by all processes at once.

    Parameters
    ----------
    own
        H of the neurons of this process.
    processes
        All of them.
    """

    counts = None

    def __init__(self, own: Operator, processes: Alone):
        self._own, self.processes = own, processes
        self.size, self.outputs = own.size, own.outputs
        self.dtype, self.device = own.dtype, own.device

    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        return self.processes.sum(self._own.matvec(vectors))

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        return self.processes.sum(self._own.columns(indices))

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        return self.processes.sum(self._own.block(indices))

    def diagonal(self) -> Float[Tensor, " n"]:
        return self.processes.sum(self._own.diagonal())


class SummedCounts(DenseGram):
    """H = scale · K ∘ N with N the sum over the processes.

    Attributes
    ----------
    counts
        Upper triangle of N.
    """

    def __init__(self, counts: np.ndarray, similarity: Float[np.ndarray, "n n"], scale: float, threads: int):
        self.counts = counts
        super().__init__(torch.from_numpy(np.empty(similarity.shape)))
        fill_gram(counts, similarity, scale, threads, self.matrix.numpy())


class SummedCurrentGrams:
    """H by output as arrays: N is sent once for every output and step, four bytes an entry where readouts are ±a.

    Attributes
    ----------
    own
        Those of the neurons of this process.

    Parameters
    ----------
    own
        As above.
    similarity
        Returns K = X Xᵀ, float64.
    held
        Outputs whose H is kept, at most.
    processes
        All of them.
    threads
        Cores to use.
    """

    def __init__(
        self,
        own: CurrentGrams,
        similarity: Callable[[], Float[np.ndarray, "n n"]],
        held: int,
        processes: Alone,
        threads: int = 1,
    ):
        self.own = own
        self._similarity, self._most = similarity, held
        self._processes, self._threads = processes, threads
        self._held: dict[int, SummedCounts] = {}
        self._scales: dict[int, float | None] = {}

    def __call__(self, output: int) -> SummedCounts:
        """H of an output, on every process; the caller must not change it."""
        if output not in self._held:
            if len(self._held) >= self._most:
                self._held.clear()
            counts, scale = self._counts(output)
            total = self._processes.sum(torch.from_numpy(counts)).numpy()
            self._held[output] = SummedCounts(total, self._similarity(), scale, self._threads)
        return self._held[output]

    def at(self, output: int, rank: int) -> SummedCounts | None:
        """H of an output on one process, None on the others; all of them call it."""
        counts, scale = self._counts(output)
        total = self._processes.sum_at(torch.from_numpy(counts), rank)
        return None if total is None else SummedCounts(total.numpy(), self._similarity(), scale, self._threads)

    def _counts(self, output: int) -> tuple[np.ndarray, float]:
        """N of the neurons of this process, in the units of all processes, and its factor."""
        own = self.own(output)
        scale = self._common_scale(output, own.scale, own.counts.dtype)
        return (own.scale * own.counts, 1.0) if scale is None else (own.counts, scale)

    def follow(self, changes: Flips | None) -> None:
        """Prepare for flips that the run is about to commit; None: the pattern is new as a whole."""
        self.own.follow(changes)
        self._held.clear()

    def _common_scale(self, output: int, scale: float, dtype: np.dtype) -> float | None:
        """The factor of N where all processes count with the same one; None where they do not."""
        if output not in self._scales:
            told = self._processes.gathered((scale, str(dtype)))
            self._scales[output] = scale if len(set(told)) == 1 else None
        return self._scales[output]


class SummedFireLists:
    """H by output, applied.

    Attributes
    ----------
    own
        Those of the neurons of this process.
    """

    def __init__(self, own: FireListGrams, processes: Alone):
        self.own, self._processes = own, processes

    def __call__(self, output: int) -> SummedOperator:
        """H of an output, for as long as the pattern stays as it is."""
        return SummedOperator(self.own(output), self._processes)

    def follow(self, changes: Flips | None) -> None:
        """Prepare for flips that the run is about to commit."""
        self.own.follow(changes)
