"""Numba kernels of half-space reporting in a tree of balls (see `widefit.kernels.balls.ball_tree` for the layout).

**What a query reports** is, bit for bit, every point whose product with the query is above the threshold when the
product is summed coordinate by coordinate in the dtype of the points; NaN counts as above. The bounds that drop a node
or take it whole allow for the rounding of that product and for their own, so they never decide a pair otherwise.
"""

import numpy as np
from numba import njit

from widefit.kernels.balls.ball_tree import norm
from widefit.kernels.bits import lowest_bit, without_lowest_bit
from widefit.kernels.borrowing import borrowing


@njit(nogil=True, cache=True)
def cover(query, threshold, tree, codes):
    """List nodes that together hold every answer: 2 · node + 1 where it is taken whole, 2 · node for other leaves.

    Parameters
    ----------
    query : (d,)
    threshold : float64
    codes : (leaves,) int64, written in the order of the leaves

    Returns
    -------
    size, visited : codes written, and nodes looked at
    """
    leaves, d = tree.sizes.size, query.size
    relative, absolute, overflow = tree.limits[0], tree.limits[1], tree.limits[2]
    length = norm(query)
    stack = np.empty(64, np.int64)
    stack[0] = 0
    top, size, visited = 1, 0, 0
    while top > 0:
        top -= 1
        node = stack[top]
        visited += 1
        ball = tree.balls[node]
        product = 0.0
        for c in range(d):
            product += query[c] * ball[c]
        wide = ball[d] + ball[d + 2]
        largest = length * (ball[d + 1] + wide)
        if largest < overflow:
            slack = length * wide + relative * largest + absolute
            if product + slack <= threshold:
                continue
            if product - slack > threshold:
                codes[size] = 2 * node + 1
                size += 1
                continue
        if node >= leaves - 1:
            codes[size] = 2 * node
            size += 1
        else:
            stack[top] = 2 * node + 2
            stack[top + 1] = 2 * node + 1
            top += 2
    return size, visited


@njit(nogil=True, cache=True, inline="always")
def leaves_below(node, leaves):
    """Return the half-open range of the leaves of a node."""
    span = 1
    while node < leaves - 1:
        node = 2 * node + 1
        span *= 2
    return node - (leaves - 1), node - (leaves - 1) + span


@borrowing
def products(block, query, z):
    """Write z[j] = ⟨query, point j⟩, summed coordinate by coordinate, two of them a pass."""
    d = query.size
    if d & 1:
        row, factor = block[0], query[0]
        for j in range(z.size):
            z[j] = factor * row[j]
    else:
        z[:] = 0
    for c in range(d & 1, d, 2):
        row, factor, next_row, next_factor = block[c], query[c], block[c + 1], query[c + 1]
        for j in range(z.size):
            z[j] = (z[j] + factor * row[j]) + next_factor * next_row[j]


@njit(nogil=True, cache=True)
def report(queries, threshold, tree):
    """Return the slots of the answers of some queries.

    Parameters
    ----------
    queries : (q, d), of the dtype of the points
    threshold : scalar of that dtype

    Returns
    -------
    start, slots, visited, scanned
        Answers of query i are slots[start[i]:start[i + 1]], ascending; nodes looked at; products computed.
    """
    leaves, _, cap = tree.blocks.shape
    codes, z = np.empty(leaves, np.int64), np.empty(cap, tree.blocks.dtype)
    start, slots = np.zeros(queries.shape[0] + 1, np.int64), np.empty(4 * cap, np.int32)
    k = visited = scanned = 0
    for i in range(queries.shape[0]):
        size, nodes = cover(queries[i], np.float64(threshold), tree, codes)
        visited += nodes
        for code in codes[:size]:
            first, last = leaves_below(code >> 1, leaves)
            if k + (last - first) * cap > slots.size:
                longer = np.empty(2 * slots.size + (last - first) * cap, np.int32)
                longer[:k] = slots[:k]
                slots = longer
            if code & 1:
                for leaf in range(first, last):
                    for j in range(tree.sizes[leaf]):
                        slots[k + j] = leaf * cap + j
                    k += tree.sizes[leaf]
            else:
                products(tree.blocks[first], queries[i], z)
                scanned += tree.sizes[first]
                for j in range(tree.sizes[first]):
                    # Branchless: the slot is always written and kept only when the point is an answer.
                    slots[k] = first * cap + j
                    k += not z[j] <= threshold
        start[i + 1] = k
    return start, slots[:k].copy(), visited, scanned


@njit(nogil=True, cache=True)
def ascending(start, slots, members, first, points):
    """Return the names of the points in slots[start[i]:start[i + 1]], each list in ascending order.

    Parameters
    ----------
    start, slots : from `report`
    members : (leaves, cap) int32
    first : added to every name
    points : N

    Returns
    -------
    out : (slots.size,) int32
    """
    names, out = members.reshape(-1), np.empty(slots.size, np.int32)
    bits = np.zeros((points + 63) // 64, np.uint64)
    for i in range(start.size - 1):
        own, sorted_own = slots[start[i] : start[i + 1]], out[start[i] : start[i + 1]]
        if 32 * own.size < bits.size:
            for p in range(own.size):
                sorted_own[p] = names[own[p]] + first
            sorted_own.sort()
            continue
        for p in range(own.size):
            name = names[own[p]]
            bits[name >> 6] |= np.uint64(1) << np.uint64(name & 63)
        k = 0
        for w in range(bits.size):
            word = bits[w]
            bits[w] = 0
            base = (w << 6) + first
            while word != 0:
                sorted_own[k] = base + lowest_bit(word)
                k += 1
                word = without_lowest_bit(word)
    return out


@njit(nogil=True, cache=True)
def node_sums(tree, coefficients):
    """Return Σ a_r w_r and, in the last column, Σ a_r over the points of every node: (nodes, d + 1) float64.

    `coefficients` is (leaves · cap,) float64, a_r by slot, 0 in empty slots.
    """
    leaves, d, cap = tree.blocks.shape
    sums = np.zeros((2 * leaves - 1, d + 1))
    for leaf in range(leaves):
        own = coefficients[leaf * cap : (leaf + 1) * cap]
        for c in range(d):
            row = tree.blocks[leaf, c]
            total = 0.0
            for j in range(cap):
                total += own[j] * row[j]
            sums[leaves - 1 + leaf, c] = total
        sums[leaves - 1 + leaf, d] = own.sum()
    for node in range(leaves - 2, -1, -1):
        sums[node] = sums[2 * node + 1] + sums[2 * node + 2]
    return sums


@njit(nogil=True, cache=True)
def fired_sums(queries, threshold, tree, coefficients, sums, out):
    """Write out[i] = Σ a_r (⟨w_r, x_i⟩ − b) over the answers of query i; nodes taken whole cost O(d).

    Parameters
    ----------
    queries : (q, d)
    threshold : b, scalar of the dtype of the points
    coefficients, sums : as in `node_sums`
    out : (q,) float64

    Returns
    -------
    visited, scanned : nodes looked at, products computed
    """
    leaves, d, cap = tree.blocks.shape
    codes, z, lanes = np.empty(leaves, np.int64), np.empty(cap, tree.blocks.dtype), np.empty(cap)
    visited = scanned = 0
    b = np.float64(threshold)
    for i in range(queries.shape[0]):
        query, total = queries[i], 0.0
        lanes[:] = 0
        size, nodes = cover(query, b, tree, codes)
        visited += nodes
        for code in codes[:size]:
            if code & 1:
                row = sums[code >> 1]
                for c in range(d):
                    total += row[c] * query[c]
                total -= b * row[d]
            else:
                leaf = (code >> 1) - (leaves - 1)
                products(tree.blocks[leaf], query, z)
                scanned += tree.sizes[leaf]
                own = coefficients[leaf * cap : (leaf + 1) * cap]
                # One sum a place in the leaf: the additions do not wait for each other.
                for j in range(tree.sizes[leaf]):
                    lanes[j] += 0.0 if z[j] <= threshold else own[j] * (np.float64(z[j]) - b)
        out[i] = total + lanes.sum()
    return visited, scanned
