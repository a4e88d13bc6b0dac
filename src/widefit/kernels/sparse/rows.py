"""Numba kernels of sparse rows: activations, backward signals and their products.

Every kernel is serial and releases the GIL; the callers run fixed chunks in threads of their own and combine them in
order (see `widefit.kernels.fire_rows`).

**Sparse rows** are three arrays: ``start`` int64 (rows + 1,), ``index`` int32 ascending within a row, and ``value``.
Row i has value[p] in column index[p] for start[i] ≤ p < start[i + 1]. **Sparse columns** of the same matrix are
``column_start`` int64 (columns + 1,), ``row`` int32 ascending within a column, and ``entry`` int64, where that entry
stands among the rows.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def order_by_block(start, index, block, edges, entry, place):
    """Cut sparse rows into blocks of columns: block by block, and row by row within a block, so that kernels stream.

    Parameters
    ----------
    start, index : the rows
    block : columns a block
    edges : (blocks, rows + 1) int64, written: row i has the entries edges[b, i] to edges[b, i + 1] in block b
    entry : (entries,) int64, written: where each stands among the rows
    place : (entries,) int32, written: its column within the block
    """
    blocks, rows = edges.shape[0], edges.shape[1] - 1
    cursor = start[:-1].copy()
    k = 0
    for b in range(blocks):
        for i in range(rows):
            edges[b, i] = k
            p = cursor[i]
            while p < start[i + 1] and index[p] < (b + 1) * block:
                entry[k] = p
                place[k] = index[p] - b * block
                k += 1
                p += 1
            cursor[i] = p
        edges[b, rows] = k


@njit(nogil=True, cache=True)
def add_to_rows(weight, column_start, row, column_value, start, index, value, first, last):
    """Add Σ_i u_ir v_ic to W[r, c] for rows `first` to `last` of weight (outputs, inputs), in the order of i.

    Parameters
    ----------
    weight : changed, to the same bits as by `add_to_tiles`
    column_start, row, column_value : sparse columns of u (rows, outputs), the values in their order
    start, index, value : sparse rows v (rows, inputs)
    """
    # A copy streams; adding to the row itself waits for each of its lines.
    target = np.empty(weight.shape[1], weight.dtype)
    for r in range(first, last):
        if column_start[r] == column_start[r + 1]:
            continue
        target[:] = weight[r]
        for q in range(column_start[r], column_start[r + 1]):
            u = column_value[q]
            i = row[q]
            for p in range(start[i], start[i + 1]):
                target[index[p]] += u * value[p]
        weight[r] = target


@njit(nogil=True, cache=True)
def add_dense_to_rows(weight, column_start, row, column_value, inputs, first, last):
    """Add Σ_i u_ir inputs[i] to weight[r] for rows `first` to `last` of weight (outputs, d), u in sparse columns."""
    for r in range(first, last):
        target = weight[r]
        for q in range(column_start[r], column_start[r + 1]):
            u = column_value[q]
            x = inputs[row[q]]
            for c in range(target.size):
                target[c] += u * x[c]


@njit(nogil=True, cache=True)
def inner_products(start, index, value, column_start, row, column_value, place, first, last, out):
    """Write out[i, j] = Σ_c a_ic a_jc for first ≤ i < last and j ≥ i, in float64.

    Parameters
    ----------
    start, index, value : sparse rows a
    column_start, row, column_value : the same in sparse columns
    place : (entries,) int64, where entry p of the rows stands among the columns
    out : (rows, rows) float64; the part below the diagonal is left alone
    """
    for i in range(first, last):
        target = out[i]
        target[i:] = 0
        for p in range(start[i], start[i + 1]):
            a = np.float64(value[p])
            for q in range(place[p], column_start[index[p] + 1]):
                target[row[q]] += a * column_value[q]


@njit(nogil=True, cache=True)
def cross_products(start, index, value, column_start, row, column_value, first, last, out):
    """Write out[i, j] = Σ_c a_ic b_jc for rows `first` to `last` of sparse rows a and all of b, in sparse columns."""
    for i in range(first, last):
        target = out[i]
        target[:] = 0
        for p in range(start[i], start[i + 1]):
            c = index[p]
            a = np.float64(value[p])
            for q in range(column_start[c], column_start[c + 1]):
                target[row[q]] += a * column_value[q]


@njit(nogil=True, cache=True)
def add_combinations(factors, start, index, value, first, last, z):
    """Add Σ_j factors[i, j] a_j to z[i] for first ≤ i < last and sparse rows a."""
    for i in range(first, last):
        target = z[i]
        for j in range(start.size - 1):
            factor = factors[i, j]
            if factor != 0:
                for p in range(start[j], start[j + 1]):
                    target[index[p]] += factor * value[p]


@njit(nogil=True, cache=True)
def mirror(first, last, out):
    """Copy the part above the diagonal of rows `first` to `last` below it."""
    for i in range(first, last):
        for j in range(i):
            out[i, j] = out[j, i]


@njit(nogil=True, cache=True)
def turn_around(start, index, column_start, row, entry, place):
    """Turn sparse rows into sparse columns; place is the inverse of entry. All but `start` and `index` are written."""
    column_start[:] = 0
    for p in range(index.size):
        column_start[index[p] + 1] += 1
    for c in range(column_start.size - 1):
        column_start[c + 1] += column_start[c]
    cursor = column_start[:-1].copy()
    for i in range(start.size - 1):
        for p in range(start[i], start[i + 1]):
            q = cursor[index[p]]
            cursor[index[p]] = q + 1
            row[q] = i
            entry[q] = p
            place[p] = q


@njit(nogil=True, cache=True)
def count_above(z, threshold, first, last, counts):
    """Write counts[i], the number of entries of row i above the threshold, for first ≤ i < last."""
    for i in range(first, last):
        k = 0
        for x in z[i]:
            k += x > threshold
        counts[i] = k


@njit(nogil=True, cache=True)
def take_above(z, threshold, scale, start, first, last, index, value):
    """Write sparse rows of scale · max(z − threshold, 0) for first ≤ i < last; `start` comes from `count_above`."""
    columns = z.shape[1]
    scratch = np.empty(columns + 1, np.int32)
    for i in range(first, last):
        row = z[i]
        k = 0
        for c in range(columns):
            # Branchless: the index is always written and kept only when the pair fires.
            scratch[k] = c
            k += row[c] > threshold
        base = start[i]
        for p in range(k):
            index[base + p] = scratch[p]
            value[base + p] = scale * (row[scratch[p]] - threshold)


@njit(nogil=True, cache=True)
def count_flips(start_a, index_a, start_b, index_b):
    """Count the entries that stand in one of two patterns of sparse rows and not in the other."""
    flips = 0
    for i in range(start_a.size - 1):
        p, q = start_a[i], start_b[i]
        while p < start_a[i + 1] and q < start_b[i + 1]:
            if index_a[p] == index_b[q]:
                p += 1
                q += 1
            elif index_a[p] < index_b[q]:
                flips += 1
                p += 1
            else:
                flips += 1
                q += 1
        flips += start_a[i + 1] - p + start_b[i + 1] - q
    return flips


@njit(nogil=True, cache=True)
def rows_times_dense(start, index, value, matrix, out):
    """Add Σ_p value[p] matrix[index[p]] to out[i] over the entries of row i, in the dtype of out (rows, k)."""
    for i in range(start.size - 1):
        target = out[i]
        for p in range(start[i], start[i + 1]):
            source = matrix[index[p]]
            for c in range(target.size):
                target[c] += value[p] * source[c]
