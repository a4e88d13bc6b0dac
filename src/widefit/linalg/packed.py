"""A weight matrix laid out once for products with sparse inputs."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from widefit.kernels.sparse import packed
from widefit.kernels.threads import ordered_map
from widefit.linalg.sparse_rows import SparseRows

Result = TypeVar("Result")

# Tiles a task, and tasks whose results are added up, whatever the number of threads.
_TILES = 4
_PIECES = 16
# Samples whose pulled signals are summed at a time: every task has sums of its own.
_PANEL = 2048


class Packed:
    """W (outputs × inputs) in tiles of 64 output columns in float32, 32 in float64 (see
    `widefit.kernels.sparse.packed`).

    A product with n sparse inputs of p · m active entries each reads only the columns of active inputs: 2 n p m² flops
    (section 5 of arXiv 2112.07628; the tiles are this project's).

    Parameters
    ----------
    weight
        W, contiguous, float32 or float64.
    threads
        Cores to use; no result depends on it.
    """

    def __init__(self, weight: Float[np.ndarray, "outputs inputs"], threads: int = 1):
        self.outputs, self.inputs = weight.shape
        lanes = packed.LANE_BYTES // weight.itemsize
        # At least one input, so that the address of a tile exists.
        self.tiles = np.empty((-(-self.outputs // lanes), max(1, self.inputs), lanes), weight.dtype)
        self.pack(weight, threads)

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes

    def pack(self, weight: Float[np.ndarray, "outputs inputs"], threads: int = 1) -> None:
        """Take over the numbers of a matrix."""
        self._each(lambda first, last: packed.pack(weight, first, last, self.tiles), threads)

    def unpack(self, weight: Float[np.ndarray, "outputs inputs"], threads: int = 1) -> None:
        """Write W into a matrix."""
        self._each(lambda first, last: packed.unpack(self.tiles, first, last, weight), threads)

    def add_products(self, rows: SparseRows, z: Float[np.ndarray, "n outputs"], threads: int = 1) -> None:
        """z += A Wᵀ for sparse rows A (n × inputs)."""
        a = rows.packed_blocks
        self._each(
            lambda first, last: packed.tile_products(self.tiles, a.edges, a.place, a.value, first, last, z), threads
        )

    def add(self, U: SparseRows, V: SparseRows, threads: int = 1) -> None:
        """W += Uᵀ V for sparse rows U (n × outputs) and V (n × inputs): active outputs times active inputs."""
        u, v = U.in_blocks(self.tiles.shape[2]), V.packed_blocks
        self._each(
            lambda first, last: packed.add_to_tiles(
                self.tiles, u.edges, u.place, u.value, v.edges, v.place, v.value, first, last
            ),
            threads,
        )

    def pull_back(
        self, above: SparseRows, signals: Float[np.ndarray, "active k"], below: SparseRows, threads: int = 1
    ) -> Float[np.ndarray, "entries k"]:
        """D_c W for the numbers D_c at the entries of `above` (n × outputs), where `below` (n × inputs) has entries."""
        found = np.empty((below.index.size, signals.shape[1]), self.tiles.dtype)
        for first in range(0, below.rows, _PANEL):
            last = min(first + _PANEL, below.rows)
            own = signals[above.start[first] : above.start[last]]
            found[below.start[first] : below.start[last]] = self._pulled(
                above.between(first, last), own, below.between(first, last), threads
            )
        return found

    def _pulled(self, above: SparseRows, signals: np.ndarray, below: SparseRows, threads: int) -> np.ndarray:
        d, where = above.in_blocks(self.tiles.shape[2]), below.in_blocks(packed.BLOCK_INPUTS)
        ordered = signals[d.entry]

        def part(first: int, last: int) -> np.ndarray:
            out = np.zeros((below.index.size, signals.shape[1]), self.tiles.dtype)
            packed.active_products(self.tiles, d.edges, d.place, ordered, where.edges, where.place, first, last, out)
            return out

        total = np.zeros((below.index.size, signals.shape[1]), self.tiles.dtype)
        pieces = max(_TILES, -(-self.tiles.shape[0] // _PIECES))
        for out in self._map(part, pieces, threads):
            total += out
        found = np.empty_like(total)
        found[where.entry] = total
        return found

    def _each(self, work: Callable[[int, int], None], threads: int) -> None:
        for _ in self._map(work, _TILES, threads):
            pass

    def _map(self, work: Callable[[int, int], Result], size: int, threads: int) -> Iterator[Result]:
        tiles = self.tiles.shape[0]
        edges = ((first, min(first + size, tiles)) for first in range(0, tiles, size))
        return ordered_map(lambda edge: work(*edge), edges, threads)
