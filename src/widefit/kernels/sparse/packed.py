"""Numba kernels of weights laid out for products with few active inputs or outputs.

**Packed weights** of a matrix (outputs × inputs) are an array (tiles, inputs, lanes): tile t holds the columns of
outputs t · lanes to (t + 1) · lanes, one input after the other, 256 bytes an input. An active input costs four whole
cache lines of a tile, whatever it is, and the sums of a tile stay in registers while its active inputs stream by.

Sparse rows are those of `widefit.kernels.sparse.rows`, here in blocks of columns (`sparse.order_by_block`). As there,
every kernel is serial and releases the GIL.
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
    """Write weight (outputs, inputs) from tiles `first` to `last`: the inverse of `pack`."""
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
def _load(packed, t, b, block):
    """Copy block b of the inputs of tile t; return the half-open range of its inputs."""
    origin = b * BLOCK_INPUTS
    end = min(origin + BLOCK_INPUTS, packed.shape[1])
    block[: end - origin] = packed[t, origin:end]
    return origin, end


@njit(nogil=True, cache=True)
def tile_products(packed, edges, place, value, first, last, z):
    """Add Σ_c a_ic W[r, c] over the entries of row i to z[i, r], for the outputs r of tiles `first` to `last`.

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
                _load(packed, t, b, block)
                for i in range(count):
                    add_scaled_rows(panel[i], block, place, value, edges[b, i0 + i], edges[b, i0 + i + 1])
            for i in range(count):
                target = z[i0 + i, t * lanes : t * lanes + used]
                source = panel[i]
                for lane in range(used):
                    target[lane] += source[lane]


@njit(nogil=True, cache=True)
def add_to_tiles(packed, lane_edges, lane, u, edges, place, value, first, last):
    """Add Σ_i u_ir v_ic to W[r, c] for the outputs r of tiles `first` to `last`, in the order of i.

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
            origin, end = _load(packed, t, b, block)
            for i in range(rows):
                for q in range(lane_edges[t, i], lane_edges[t, i + 1]):
                    at, factor = np.uint64(lane[q]), u[q]
                    for p in range(edges[b, i], edges[b, i + 1]):
                        flat[np.uint64(place[p]) * step + at] += factor * value[p]
            packed[t, origin:end] = block[: end - origin]


@njit(nogil=True, cache=True)
def active_products(packed, lane_edges, lane, d, edges, place, first, last, out):
    """Add Σ_r d_irc W[r, column of p] to out[p, c] over the outputs r of tiles `first` to `last`, p an entry of row i.

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
            _load(packed, t, b, block)
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
