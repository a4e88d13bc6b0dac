"""Neighboring neurons that fire on nearly the same samples, put together (this project)."""

import numpy as np
from jaxtyping import Float

from widefit.kernels import twins as kernels
from widefit.kernels.fire_lists import Twins
from widefit.kernels.fire_rows import FireRows
from widefit.trackers.fire_pattern import FirePattern

# Differences, in parts of what the two fire on, up to which they are put together: what differs costs twice.
_MOST = 0.25


def twins_of(pattern: FirePattern, weights: Float[np.ndarray, " rows"]) -> Twins:
    """Return the rows of a chunk; neurons 2j and 2j + 1 share one where they fire on nearly the same samples.

    Parameters
    ----------
    pattern
        The chunk.
    weights
        w_r of each row.
    """
    counts, start, words = pattern.rows
    rows = FireRows(counts, start, words)
    local = np.arange(counts.size) if pattern.neurons is None else pattern.neurons.astype(np.int64)
    neurons = pattern.chunk.first + local
    first = np.flatnonzero((neurons[:-1] % 2 == 0) & (neurons[1:] == neurons[:-1] + 1))
    differ = np.empty(first.size, np.int64)
    kernels.count_differences(rows, first, first + 1, pattern.samples, _MOST, differ)
    first = first[differ >= 0]
    differ = differ[differ >= 0]
    alone = np.ones(counts.size, bool)
    alone[first + 1] = False
    kept = np.flatnonzero(alone)
    size = np.zeros(counts.size, np.int64)
    size[first] = differ
    edges = np.append(0, np.cumsum(size[kept]))
    places = np.empty(edges[-1], np.int32)
    gained = np.empty(edges[-1], bool)
    begins = np.append(0, np.cumsum(differ))
    kernels.list_differences(rows, first, first + 1, pattern.samples, begins, places, gained)
    others = np.zeros(counts.size)
    others[first] = weights[first + 1]
    held = FireRows(counts[kept], np.ascontiguousarray(start[kept]), words)
    return Twins(held, np.ascontiguousarray(weights[kept]), others[kept], edges, places, gained)
