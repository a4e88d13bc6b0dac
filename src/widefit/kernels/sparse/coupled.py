"""Numba kernels of H where several outputs read the same neurons: J Jᵀ v from sparse factors.

Like those of `widefit.kernels.sparse.rows`, every kernel is serial and releases the GIL. The *pattern* of who fires on
which sample is sparse rows ``start`` and ``index``; ``signals`` (entries, k) holds δ of every output at its entries.

**Blocks of samples** are the same or another pattern in sparse columns, cut into blocks of so many samples: neuron r
fires on the samples b · width + place[q] with edges[b, r] ≤ q < edges[b, r + 1]. What is held about the neurons of a
block then stays in the cache while the samples of the pattern stream by.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def combine_signals(start, signals, weights, first, last, out):
    """Write out[p] = Σ_c weights[i, c] signals[p, c] for the entries p of samples `first` to `last`."""
    for i in range(first, last):
        for p in range(start[i], start[i + 1]):
            total = 0.0
            for c in range(signals.shape[1]):
                total += weights[i, c] * signals[p, c]
            out[p] = total


@njit(nogil=True, cache=True)
def spread_signals(start, signals, at_entries, first, last, out):
    """Add Σ_p signals[p, c] at_entries[p] over the entries of sample i to out[i, c], for samples `first` to `last`."""
    for i in range(first, last):
        for p in range(start[i], start[i + 1]):
            for c in range(signals.shape[1]):
                out[i, c] += signals[p, c] * at_entries[p]


@njit(nogil=True, cache=True)
def signal_products(start, signals, similarity, first, last, out):
    """Add similarity_ii Σ_p signals[p, c] signals[p, e] to out[i, c, e] for samples `first` to `last`."""
    outputs = signals.shape[1]
    total = np.empty((outputs, outputs))
    for i in range(first, last):
        total[:] = 0
        for p in range(start[i], start[i + 1]):
            for c in range(outputs):
                for e in range(outputs):
                    total[c, e] += np.float64(signals[p, c]) * signals[p, e]
        out[i] += similarity[i, i] * total


@njit(nogil=True, cache=True)
def sum_over_samples(similarity, start, index, edges, place, width, u, first, last, out):
    """Write out[p] = Σ_j similarity_ij u_jr for the entries p = (i, r) of samples `first` to `last`.

    Parameters
    ----------
    similarity : (n, n'), float64
    start, index : the pattern, n rows
    edges, place, width : the pattern of u, n' rows, in blocks of samples
    u : (entries,) float64, in the order of the blocks
    """
    out[start[first] : start[last]] = 0
    for b in range(edges.shape[0]):
        for i in range(first, last):
            near = similarity[i, b * width :]
            for p in range(start[i], start[i + 1]):
                r = index[p]
                low, count = np.uint64(edges[b, r]), edges[b, r + 1] - edges[b, r]
                even = odd = 0.0
                # Two sums, as each addition waits for the one before; unsigned places need no check for negative ones.
                for h in range(count // 2):
                    q = low + np.uint64(2 * h)
                    even += near[np.uint64(place[q])] * u[q]
                    q += np.uint64(1)
                    odd += near[np.uint64(place[q])] * u[q]
                if count % 2:
                    q = low + np.uint64(count - 1)
                    even += near[np.uint64(place[q])] * u[q]
                out[p] += even + odd


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def signal_gram(start, index, signals, edges, place, width, other, first, last, out):
    """Write out[i, j] = Σ_c ⟨δ_ic, δ_jc⟩ for samples `first` to `last` and j in their own and later blocks.

    Products of the outputs are summed in the dtype of the signals, over the neurons in float64.

    Parameters
    ----------
    start, index, signals : the pattern and δ
    edges, place, width : the same pattern in blocks of samples
    other : (entries, k), δ in the order of the blocks
    out : (n, n) float64
    """
    outputs = signals.shape[1]
    out[first:last] = 0
    for b in range(edges.shape[0]):
        for i in range(first, min(last, (b + 1) * width)):
            target = out[i, b * width :]
            for p in range(start[i], start[i + 1]):
                r, mine = index[p], signals[p]
                for q in range(edges[b, r], edges[b, r + 1]):
                    theirs, total = other[q], signals.dtype.type(0)
                    for c in range(outputs):
                        total += mine[c] * theirs[c]
                    target[np.uint64(place[q])] += total
