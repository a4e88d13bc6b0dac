"""Initial weights that can be drawn again block by block, in any order and from any thread."""

import numpy as np

# Neurons a stream: the unit in which weights are drawn, whatever the blocks in which they are asked for.
NEURONS_PER_STREAM = 1024


def gaussian_rows(seed: int, first: int, last: int, columns: int) -> np.ndarray:
    """Rows `first` to `last` of the matrix of standard normal numbers that belongs to `seed`.

    Parameters
    ----------
    seed
        0 ≤ seed < 2⁶⁴.
    first, last
        Half-open range of neurons.
    columns
        d.

    Returns
    -------
    ndarray of shape (last − first, columns), float32. The same numbers whatever range they are asked in: neuron r
    belongs to stream r // 1024 of the counter-based generator Philox (Salmon et al. 2011), keyed by (seed, stream).
    """
    out = np.empty((last - first, columns), np.float32)
    for stream in range(first // NEURONS_PER_STREAM, -(-last // NEURONS_PER_STREAM)):
        origin = stream * NEURONS_PER_STREAM
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))
        low, high = max(first, origin), min(last, origin + NEURONS_PER_STREAM)
        rows = generator.standard_normal((high - origin, columns), dtype=np.float32)
        out[low - first : high - first] = rows[low - origin :]
    return out
