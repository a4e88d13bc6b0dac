"""Numba kernels of sparse layers: products with few active inputs or outputs.

Every kernel is serial and releases the GIL; the callers run fixed chunks in threads of their own and combine them in
order (see `widefit.kernels.cpu`).

**Sparse rows** are three arrays: ``start`` int64 (rows + 1,), ``index`` int32 ascending within a row, and ``value``.
Row i has value[p] in column index[p] for start[i] ≤ p < start[i + 1]. **Sparse columns** of the same matrix are
``column_start`` int64 (columns + 1,), ``row`` int32 ascending within a column, and ``entry`` int64, where that entry
stands among the rows.

**Packed weights** of a matrix (outputs × inputs) are an array (tiles, inputs, lanes): tile t holds the columns of
outputs t · lanes to (t + 1) · lanes, one input after the other, 256 bytes an input. An active input costs four whole
cache lines of a tile, whatever it is, and the sums of a tile stay in registers while its active inputs stream by.
"""

import numpy as np
from numba import njit

from widefit.kernels.vector import add_scaled_rows

# Bytes of a tile that one input takes: four cache lines, as many registers of 64 bytes as hide the latency of a sum.
LANE_BYTES = 256
# Inputs of a tile worked on at a time: their 256 KB are copied, which streams, and then stay in a second-level cache of
# 1 MB beside the sums of 1024 samples. Gathering from the tile itself waits for every line once and takes half as long
# again.
BLOCK_INPUTS = 1024
# Samples whose sums are kept beside the block.
PANEL_SAMPLES = 1024


@njit(nogil=True, cache=True)
def pack(weight, first, last, packed):
    """Lay out tiles `first` to `last` of weight (outputs, inputs); lanes beyond the outputs become 0."""
    outputs, inputs = weight.shape
    lanes = packed.shape[2]
    for t in range(first, last):
        tile = packed[t]
        used = min(lanes, outputs - t * lanes)
        # Square pieces, so that both sides stay in the first-level cache.
        for c0 in range(0, inputs, 32):
            c1 = min(c0 + 32, inputs)
            for c in range(c0, c1):
                for lane in range(used):
                    tile[c, lane] = weight[t * lanes + lane, c]
                for lane in range(used, lanes):
                    tile[c, lane] = 0


@njit(nogil=True, cache=True)
def unpack(packed, first, last, weight):
    """The inverse of `pack`: weight (outputs, inputs) from tiles `first` to `last`."""
    outputs, inputs = weight.shape
    lanes = packed.shape[2]
    for t in range(first, last):
        tile = packed[t]
        used = min(lanes, outputs - t * lanes)
        for c0 in range(0, inputs, 32):
            c1 = min(c0 + 32, inputs)
            for lane in range(used):
                for c in range(c0, c1):
                    weight[t * lanes + lane, c] = tile[c, lane]


@njit(nogil=True, cache=True)
def order_by_block(start, index, block, edges, entry, place):
    """Sparse rows cut into blocks of columns: block by block, and row by row within a block, so that kernels stream.

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
def tile_products(packed, edges, place, value, first, last, z):
    """z[i, r] += Σ_c a_ic W[r, c] over the entries of row i, for the outputs r of tiles `first` to `last`.

    Parameters
    ----------
    packed : (tiles, inputs, lanes)
    edges, place, value : sparse rows a, in blocks of `BLOCK_INPUTS` columns
    z : (rows, outputs)
    """
    _, inputs, lanes = packed.shape
    rows, outputs = z.shape
    panel = np.empty((min(rows, PANEL_SAMPLES), lanes), z.dtype)
    block = np.empty((min(inputs, BLOCK_INPUTS), lanes), z.dtype)
    for t in range(first, last):
        used = min(lanes, outputs - t * lanes)
        for i0 in range(0, rows, PANEL_SAMPLES):
            count = min(PANEL_SAMPLES, rows - i0)
            panel[:] = 0
            for b in range(edges.shape[0]):
                origin = b * BLOCK_INPUTS
                end = min(origin + BLOCK_INPUTS, inputs)
                block[: end - origin] = packed[t, origin:end]
                for i in range(count):
                    add_scaled_rows(panel[i], block, place, value, edges[b, i0 + i], edges[b, i0 + i + 1])
            for i in range(count):
                target = z[i0 + i, t * lanes : t * lanes + used]
                source = panel[i]
                for lane in range(used):
                    target[lane] += source[lane]


@njit(nogil=True, cache=True)
def add_to_tiles(packed, lane_edges, lane, u, edges, place, value, first, last):
    """W[r, c] += Σ_i u_ir v_ic for the outputs r of tiles `first` to `last`, in the order of i.

    Parameters
    ----------
    packed : (tiles, inputs, lanes), changed
    lane_edges, lane, u : sparse rows u (rows, outputs), in blocks of as many columns as there are lanes
    edges, place, value : sparse rows v (rows, inputs), in blocks of `BLOCK_INPUTS` columns
    """
    _, inputs, lanes = packed.shape
    rows = edges.shape[1] - 1
    block = np.empty((min(inputs, BLOCK_INPUTS), lanes), packed.dtype)
    # Unsigned places need no check for negative ones.
    flat, step = block.reshape(-1), np.uint64(lanes)
    for t in range(first, last):
        if lane_edges[t, 0] == lane_edges[t, rows]:
            continue
        for b in range(edges.shape[0]):
            origin = b * BLOCK_INPUTS
            end = min(origin + BLOCK_INPUTS, inputs)
            block[: end - origin] = packed[t, origin:end]
            for i in range(rows):
                for q in range(lane_edges[t, i], lane_edges[t, i + 1]):
                    at, factor = np.uint64(lane[q]), u[q]
                    for p in range(edges[b, i], edges[b, i + 1]):
                        flat[np.uint64(place[p]) * step + at] += factor * value[p]
            packed[t, origin:end] = block[: end - origin]


@njit(nogil=True, cache=True)
def active_products(packed, lane_edges, lane, d, edges, place, first, last, out):
    """out[p, c] += Σ_r d_irc W[r, column of p] over the outputs r of tiles `first` to `last`, p an entry of row i.

    Only active outputs (those of d) and active inputs (those of the pattern) are touched, once for all c.

    Parameters
    ----------
    packed : (tiles, inputs, lanes)
    lane_edges, lane, d : sparse rows (rows, outputs) with k numbers an entry, in blocks of as many columns as there
        are lanes; d is (entries, k)
    edges, place : the pattern (rows, inputs), in blocks of `BLOCK_INPUTS` columns
    out : (entries of the pattern, k), in the order of its blocks
    """
    _, inputs, lanes = packed.shape
    rows, many = edges.shape[1] - 1, out.shape[1]
    block = np.empty((min(inputs, BLOCK_INPUTS), lanes), packed.dtype)
    # Unsigned places need no check for negative ones.
    flat, step = block.reshape(-1), np.uint64(lanes)
    for t in range(first, last):
        if lane_edges[t, 0] == lane_edges[t, rows]:
            continue
        for b in range(edges.shape[0]):
            origin = b * BLOCK_INPUTS
            end = min(origin + BLOCK_INPUTS, inputs)
            block[: end - origin] = packed[t, origin:end]
            for i in range(rows):
                for q in range(lane_edges[t, i], lane_edges[t, i + 1]):
                    at, factors, factor = np.uint64(lane[q]), d[q], d[q, 0]
                    if many == 1:
                        for p in range(edges[b, i], edges[b, i + 1]):
                            out[p, 0] += factor * flat[np.uint64(place[p]) * step + at]
                        continue
                    for p in range(edges[b, i], edges[b, i + 1]):
                        weight, target = flat[np.uint64(place[p]) * step + at], out[p]
                        for c in range(many):
                            target[c] += factors[c] * weight


@njit(nogil=True, cache=True)
def add_to_rows(weight, column_start, row, column_value, start, index, value, first, last):
    """W[r, c] += Σ_i u_ir v_ic for rows `first` to `last` of weight (outputs, inputs), in the order of i.

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
    """weight[r] += Σ_i u_ir inputs[i] for rows `first` to `last` of weight (outputs, d), u in sparse columns."""
    for r in range(first, last):
        target = weight[r]
        for q in range(column_start[r], column_start[r + 1]):
            u = column_value[q]
            x = inputs[row[q]]
            for c in range(target.size):
                target[c] += u * x[c]


@njit(nogil=True, cache=True)
def inner_products(start, index, value, column_start, row, column_value, place, first, last, out):
    """out[i, j] = Σ_c a_ic a_jc for first ≤ i < last and j ≥ i, in float64.

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
    """out[i, j] = Σ_c a_ic b_jc for rows `first` to `last` of sparse rows a and all of b, in sparse columns."""
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
    """z[i] += Σ_j factors[i, j] a_j for first ≤ i < last and sparse rows a."""
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
    """Sparse columns of sparse rows; place is the inverse of entry. All but `start` and `index` are written."""
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
    """counts[i] = number of entries of row i above the threshold, for first ≤ i < last."""
    for i in range(first, last):
        k = 0
        for x in z[i]:
            k += x > threshold
        counts[i] = k


@njit(nogil=True, cache=True)
def take_above(z, threshold, scale, start, first, last, index, value):
    """Sparse rows of scale · max(z − threshold, 0) for first ≤ i < last; `start` comes from `count_above`."""
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
    """Entries that stand in one of two patterns of sparse rows and not in the other."""
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
    """out[i] += Σ_p value[p] matrix[index[p]] over the entries of row i, in the dtype of out (rows, k)."""
    for i in range(start.size - 1):
        target = out[i]
        for p in range(start[i], start[i + 1]):
            source = matrix[index[p]]
            for c in range(target.size):
                target[c] += value[p] * source[c]
