"""Gaussian matrix whose rows can be drawn block by block, in any order and from any thread; initial weights from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

# Neurons a stream: the unit in which weights are drawn, whatever the blocks in which they are asked for.
NEURONS_PER_STREAM = 1024
# Numbers of a matrix from which on our kernel draws, four times as fast as NumPy: compiling it takes seconds.
_WORTH_COMPILING = 1 << 25


def gaussian_rows(
    seed: int, first: int, last: int, columns: int, out: np.ndarray | None = None, *, rows: int | None = None
) -> np.ndarray:
    """Draw rows `first` to `last` of the matrix of standard normal numbers that belongs to `seed`.

    The fastest ranges begin at a multiple of 1024: the numbers of a stream can only be drawn from its beginning.

    Parameters
    ----------
    seed
        0 ≤ seed < 2⁶⁴.
    first, last
        Half-open range of neurons.
    columns
        d.
    out
        Array for them, shape (last − first, columns), of any floating-point dtype; None: a new float32 array. Drawn in
        place when it is float32 and contiguous.
    rows
        Rows of the whole matrix; None: `last`. It decides alone who draws, so that a matrix has one source.

    Returns
    -------
    ndarray of shape (last − first, columns). The same numbers whatever range they are asked in: neuron r belongs to
    stream r // 1024, which is `numpy.random.Generator(Philox(key=(seed, stream)))` (Salmon et al. 2011) in float32.
    """
    draw = _kernel() if (last if rows is None else rows) * columns >= _WORTH_COMPILING else _numpy
    out = np.empty((last - first, columns), np.float32) if out is None else out
    in_place = out.dtype == np.float32 and out.flags.c_contiguous
    for stream in range(first // NEURONS_PER_STREAM, -(-last // NEURONS_PER_STREAM)):
        origin = stream * NEURONS_PER_STREAM
        low = max(first, origin)
        high = min(last, origin + NEURONS_PER_STREAM)
        own = out[low - first : high - first]
        drawn = own if in_place else np.empty(own.shape, np.float32)
        draw(seed, stream, (low - origin) * columns, drawn.reshape(-1))
        if not in_place:
            own[...] = drawn
    return out


def _numpy(seed: int, stream: int, skip: int, out: Float[np.ndarray, " size"]) -> None:
    """Write numbers `skip` and following of a stream by NumPy's generator."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
    generator.standard_normal(skip, np.float32)
    generator.standard_normal(dtype=np.float32, out=out)


@cache
def _kernel() -> Callable[[int, int, int, np.ndarray], None]:
    """Return our kernel, which writes the same numbers; imported when first used."""
    from widefit.kernels.compilation import announce_compilation
    from widefit.kernels.normal import standard_normal, ziggurat_tables

    announce_compilation()
    tables = ziggurat_tables()
    return lambda seed, stream, skip, out: standard_normal(np.uint64(seed), np.uint64(stream), skip, *tables, out)


@dataclass(frozen=True)
class Initial:
    """Two-layer network before training, without a number of it in memory.

    Attributes
    ----------
    seed
        Seed of `gaussian_rows`.
    in_features, width, out_features
        d, m, k.
    paired
        Neurons 2j and 2j + 1 share row j of the Gaussian matrix.
    entry
        |a_rc| of neuron r and its output c; positive for even neurons, negative for odd ones.
    """

    seed: int
    in_features: int
    width: int
    out_features: int
    paired: bool
    entry: float

    def neurons_of(self, output: int) -> tuple[int, int]:
        """Return the half-open range of the neurons that feed an output; it begins at an even neuron."""
        return group_edge(self.width, self.out_features, output), group_edge(self.width, self.out_features, output + 1)

    def write_rows(self, first: int, last: int, out: Float[np.ndarray, "rows d"]) -> None:
        """Write W₀ of a range of neurons into `out`, of any floating-point dtype."""
        if not self.paired:
            gaussian_rows(self.seed, first, last, self.in_features, out, rows=self.width)
            return
        drawn = gaussian_rows(self.seed, first // 2, -(-last // 2), self.in_features, rows=-(-self.width // 2))
        for offset in (0, 1):
            own = out[offset::2]
            # The second neuron asked for has the row of the first, unless the first is the second half of a pair.
            begin = first % 2 if offset else 0
            own[...] = drawn[begin : begin + len(own)]

    def write_readout(self, first: int, last: int, out: Float[np.ndarray, "rows k"]) -> None:
        """Write a of a range of neurons into `out`, of any floating-point dtype."""
        out[...] = 0
        for output in range(self.out_features):
            edges = self.neurons_of(output)
            low = max(first, edges[0])
            high = min(last, edges[1])
            if low < high:
                own = out[low - first : high - first, output]
                own[low % 2 :: 2] = self.entry
                own[1 - low % 2 :: 2] = -self.entry


def group_edge(width: int, outputs: int, group: int) -> int:
    """Return the first neuron of a group: contiguous, equal up to two neurons, each beginning at an even neuron."""
    return width if group == outputs else 2 * (group * width // (2 * outputs))


def readout_entry(scale: float, outputs: int, dtype: np.dtype) -> float:
    """Return |a_rc| = scale · √k, rounded once to the dtype of the network."""
    return float(dtype.type(scale * math.sqrt(outputs)))
