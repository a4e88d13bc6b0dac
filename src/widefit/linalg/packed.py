"""Weight matrix laid out once for products with sparse inputs."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from widefit.kernels.sparse import packed
from widefit.kernels.threads import for_ranges, ordered_map
from widefit.linalg.sparse_rows import SparseRows

# Tiles of a task, whatever the number of threads.
_TILES = 4
# Tasks whose results are added up, at most, whatever the number of threads.
_PIECES = 16
# Samples whose pulled signals are summed at a time: every task has sums of its own.
_PANEL = 2048


class Packed:
    """Matrix W (outputs × inputs) in tiles of 64 output columns in float32, 32 in float64.

    See `widefit.kernels.sparse.packed` for the layout.

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
        """Add A Wᵀ to z for sparse rows A (n × inputs)."""
        a = rows.packed_blocks
        self._each(
            lambda first, last: packed.tile_products(self.tiles, a.edges, a.place, a.value, first, last, z), threads
        )

    def add(self, U: SparseRows, V: SparseRows, threads: int = 1) -> None:
        """Add Uᵀ V to W for sparse rows U (n × outputs) and V (n × inputs): active outputs times active inputs."""
        u = U.in_blocks(self.tiles.shape[2])
        v = V.packed_blocks
        self._each(
            lambda first, last: packed.add_to_tiles(
                self.tiles, u.edges, u.place, u.value, v.edges, v.place, v.value, first, last
            ),
            threads,
        )

    def pull_back(
        self, above: SparseRows, signals: Float[np.ndarray, "active k"], below: SparseRows, threads: int = 1
    ) -> Float[np.ndarray, "entries k"]:
        """Return D_c W for D_c at the entries of `above` (n × outputs), where `below` (n × inputs) has entries."""
        found = np.empty((below.index.size, signals.shape[1]), self.tiles.dtype)
        for first in range(0, below.rows, _PANEL):
            last = min(first + _PANEL, below.rows)
            own = signals[above.start[first] : above.start[last]]
            found[below.start[first] : below.start[last]] = self._pulled(
                above.between(first, last), own, below.between(first, last), threads
            )
        return found

    def _pulled(self, above: SparseRows, signals: np.ndarray, below: SparseRows, threads: int) -> np.ndarray:
        """Return D_c W for a few samples."""
        d = above.in_blocks(self.tiles.shape[2])
        where = below.in_blocks(packed.BLOCK_INPUTS)
        ordered = signals[d.entry]

        def part(first: int, last: int) -> np.ndarray:
            out = np.zeros((below.index.size, signals.shape[1]), self.tiles.dtype)
            packed.active_products(self.tiles, d.edges, d.place, ordered, where.edges, where.place, first, last, out)
            return out

        total = np.zeros((below.index.size, signals.shape[1]), self.tiles.dtype)
        tiles = self.tiles.shape[0]
        step = max(_TILES, -(-tiles // _PIECES))
        edges = ((first, min(first + step, tiles)) for first in range(0, tiles, step))
        for out in ordered_map(lambda edge: part(*edge), edges, threads):
            total += out
        found = np.empty_like(total)
        found[where.entry] = total
        return found

    def _each(self, work: Callable[[int, int], None], threads: int) -> None:
        """Call `work(first, last)` for all tiles, some at a time."""
        for_ranges(work, self.tiles.shape[0], _TILES, threads)
