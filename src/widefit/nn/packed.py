"""A weight matrix laid out once for products with sparse inputs."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import sparse
from widefit.kernels.threads import ordered_map
from widefit.nn.sparse_rows import SparseRows

# Tiles a task, whatever the number of threads.
_TILES = 4


class Packed:
    """W (outputs × inputs) in tiles of 64 output columns in float32, 32 in float64 (see `widefit.kernels.sparse`).

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
        lanes = sparse.LANE_BYTES // weight.itemsize
        # At least one input, so that the address of a tile exists.
        self.tiles = np.empty((-(-self.outputs // lanes), max(1, self.inputs), lanes), weight.dtype)
        self.pack(weight, threads)

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes

    def pack(self, weight: Float[np.ndarray, "outputs inputs"], threads: int = 1) -> None:
        """Take over the numbers of a matrix."""
        self._each(lambda first, last: sparse.pack(weight, first, last, self.tiles), threads)

    def add_products(self, rows: SparseRows, z: Float[np.ndarray, "n outputs"], threads: int = 1) -> None:
        """z += A Wᵀ for sparse rows A (n × inputs)."""
        edges = rows.blocks()
        self._each(
            lambda first, last: sparse.tile_products(self.tiles, edges, rows.index, rows.value, first, last, z), threads
        )

    def add(self, U: SparseRows, V: SparseRows, threads: int = 1) -> None:
        """W += Uᵀ V for sparse rows U (n × outputs) and V (n × inputs): active outputs times active inputs."""
        columns, edges = U.by_column, V.blocks()
        self._each(
            lambda first, last: sparse.add_to_tiles(
                self.tiles, columns.start, columns.row, columns.value, edges, V.index, V.value, first, last
            ),
            threads,
        )

    def _each(self, work, threads: int) -> None:
        tiles = self.tiles.shape[0]
        edges = ((first, min(first + _TILES, tiles)) for first in range(0, tiles, _TILES))
        for _ in ordered_map(lambda edge: work(*edge), edges, threads):
            pass
