"""Numba kernels that build a balanced tree of balls over points, and follow them when they move.

**Layout.** N points are cut by medians into 2^L leaves whose sizes differ by one at most. Node 0 is the root, the
children of node i are 2 i + 1 and 2 i + 2, leaf l is node 2^L − 1 + l. The points of a leaf stand in a block (d, cap),
one coordinate a row, so that a scan runs over points, eight or more at a time; slot l · cap + j is point j of leaf l.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.borrowing import borrowing


class Tree(NamedTuple):
    """Tree of balls.

    Attributes
    ----------
    balls : (nodes, d + 3) float64, a row a node: its center; radius, ‖key − center‖ at most; ‖center‖; drift,
        ‖point − key‖ at most, 0 while the points are where their keys are. The last three are rounded up
    blocks : (leaves, d, cap) the points where they are
    members : (leaves, cap) int32, which point stands in a slot; -1 for none
    sizes : (leaves,) int32
    limits : (3,) float64: relative and absolute rounding, and the size from which a product may overflow
    """

    balls: np.ndarray
    blocks: np.ndarray
    members: np.ndarray
    sizes: np.ndarray
    limits: np.ndarray


@njit(nogil=True, cache=True)
def split(points, levels, order):
    """Permute `order` so that leaf l holds points order[l N >> levels:(l + 1) N >> levels]: medians, widest coordinate.

    Parameters
    ----------
    points : (N, d)
    levels : L with 2^L ≤ N
    order : (N,) int32, a permutation, rearranged
    """
    n, d = points.shape
    values = np.empty(n, points.dtype)
    low = np.empty(d, points.dtype)
    high = np.empty(d, points.dtype)
    for level in range(levels):
        width = 1 << (levels - level)
        for node in range(1 << level):
            first = (node * width * n) >> levels
            middle = ((node * width + (width >> 1)) * n) >> levels
            last = ((node + 1) * width * n) >> levels
            low[:] = points[order[first]]
            high[:] = low
            for p in range(first + 1, last):
                point = points[order[p]]
                for c in range(d):
                    low[c] = min(low[c], point[c])
                    high[c] = max(high[c], point[c])
            widest = 0
            for c in range(1, d):
                if high[c] - low[c] > high[widest] - low[widest]:
                    widest = c
            for p in range(first, last):
                values[p] = points[order[p], widest]
            _select(values[first:last], order[first:last], middle - first)


@njit(nogil=True, cache=True)
def _select(values, order, nth):
    """Bring the nth smallest value to its place, the smaller ones before it; `order` moves along."""
    left, right, rounds = 0, values.size - 1, 0
    while left < right:
        rounds += 1
        if rounds > 64:  # an order made to defeat the choice of pivots: sort what is left
            rest = np.argsort(values[left : right + 1])
            order[left : right + 1] = order[left : right + 1][rest]
            return
        a, b, c = values[left], values[(left + right) >> 1], values[right]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = left, right
        while i <= j:
            while i < right and values[i] < pivot:
                i += 1
            while j > left and values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if nth <= j:
            right = j
        elif nth >= i:
            left = i
        else:
            return


@njit(nogil=True, cache=True)
def place(points, order, tree, slots):
    """Fill the blocks of a tree in the given order, and slots[point] (N,) int32; then `fit` the balls."""
    n = points.shape[0]
    leaves, d, cap = tree.blocks.shape
    tree.members[:] = -1
    tree.blocks[:] = 0
    for leaf in range(leaves):
        first, last = (leaf * n) // leaves, ((leaf + 1) * n) // leaves
        tree.sizes[leaf] = last - first
        for p in range(first, last):
            j = p - first
            tree.members[leaf, j] = order[p]
            slots[order[p]] = leaf * cap + j
            for c in range(d):
                tree.blocks[leaf, c, j] = points[order[p], c]


@njit(nogil=True, cache=True)
def fit(tree):
    """Fit the balls around the points where they are; no point is away from its key."""
    leaves = tree.sizes.size
    span, first_node = leaves, 0
    while span > 0:
        for node in range(leaves // span):
            _enclose(tree, first_node + node, node * span, (node + 1) * span)
        first_node = 2 * first_node + 1
        span >>= 1
    tree.balls[:, -1] = 0


@njit(nogil=True, cache=True)
def _enclose(tree, node, first, last):
    """Fit the ball of a node around the points of leaves `first` to `last`."""
    d = tree.blocks.shape[1]
    center = tree.balls[node, :d]
    count = 0
    for leaf in range(first, last):
        count += tree.sizes[leaf]
    for c in range(d):
        total = 0.0
        for leaf in range(first, last):
            row = tree.blocks[leaf, c]
            for j in range(tree.sizes[leaf]):
                total += row[j]
        center[c] = total / count
    radius, squares = 0.0, np.empty(tree.blocks.shape[2])
    for leaf in range(first, last):
        radius = max(radius, _farthest(tree.blocks[leaf], tree.sizes[leaf], center, squares))
    tree.balls[node, d] = radius
    tree.balls[node, d + 1] = norm(center)


@borrowing
def norm(vector):
    """Return ‖vector‖ in float64, rounded up, with no overflow or underflow on the way; infinite for NaN."""
    largest = 0.0
    for c in range(vector.size):
        size = abs(np.float64(vector[c]))
        if not size <= largest:
            largest = size if size == size else np.inf
    if largest == 0 or largest == np.inf:
        return largest
    total = 0.0
    for c in range(vector.size):
        total += (np.float64(vector[c]) / largest) ** 2
    return _up(largest * np.sqrt(total), vector.size)


@njit(nogil=True, cache=True, inline="always")
def _up(value, d):
    """Round a norm of d computed differences up."""
    return value * (1 + (d + 8) * 2.220446049250313e-16) + 2.2250738585072014e-308


@njit(nogil=True, cache=True)
def _farthest(block, size, origin, squares):
    """Return the largest distance of `size` points from `origin` (d,), rounded up; `squares` is overwritten."""
    d = block.shape[0]
    squares[:size] = 0
    for c in range(d):
        row, o = block[c, :size], origin[c]
        for j in range(size):
            squares[j] += (row[j] - o) ** 2
    largest = _largest(squares[:size])
    if 1e-200 < largest < 1e200:
        return _up(np.sqrt(largest), d)
    return _farthest_scaled(block, size, origin.reshape(d, 1))


@njit(nogil=True, cache=True)
def _drift(tree, leaf, keys, squares):
    """Return the largest distance of the points of a leaf from their keys, rounded up; `squares` is overwritten.

    Twice as many differences a vector as in float64, with the rounding of the points' dtype allowed for.
    """
    block, d, size = tree.blocks[leaf], tree.blocks.shape[1], tree.sizes[leaf]
    squares[:] = 0
    for c in range(d):
        row, key = block[c], keys[c]
        for j in range(squares.size):
            difference = row[j] - key[j]
            squares[j] += difference * difference
    largest = np.float64(_largest(squares))
    if tree.limits[1] / tree.limits[0] ** 2 < largest < tree.limits[2]:
        return np.sqrt(largest) * (1 + tree.limits[0])
    return _farthest_scaled(block, size, keys)


@borrowing
def _largest(values):
    """Return the largest of some numbers, which are overwritten: half against half, for vectors. NaN is above all."""
    width = values.size
    while width > 1:
        half = (width + 1) >> 1
        for j in range(width - half):
            other = values[j + half]
            values[j] = other if other > values[j] or other != other else values[j]
        width = half
    return values[0]


@njit(nogil=True, cache=True)
def _farthest_scaled(block, size, origin):
    """Do as `_farthest` where squares may leave their range; origin is (d, 1) for all or (d, cap), one each."""
    d = block.shape[0]
    shared = origin.shape[1] == 1
    largest = 0.0
    difference = np.empty(d)
    for j in range(size):
        for c in range(d):
            difference[c] = np.float64(block[c, j]) - np.float64(origin[c, 0 if shared else j])
        largest = max(largest, norm(difference))
    return _up(largest, d)


@njit(nogil=True, cache=True)
def move(points, where, tree, slots):
    """Move point where[t] to points[t] (q, d); return the leaves that hold them, int32."""
    leaves, d, cap = tree.blocks.shape
    touched, out, size = np.zeros(leaves, np.bool_), np.empty(leaves, np.int32), 0
    for t in range(where.size):
        leaf, j = slots[where[t]] // cap, slots[where[t]] % cap
        for c in range(d):
            tree.blocks[leaf, c, j] = points[t, c]
        if not touched[leaf]:
            touched[leaf] = True
            out[size] = leaf
            size += 1
    return out[:size].copy()


@njit(nogil=True, cache=True)
def points_of(tree, out):
    """Write the points where they are, (N, d), in their own order."""
    leaves, d, _ = tree.blocks.shape
    for leaf in range(leaves):
        for j in range(tree.sizes[leaf]):
            for c in range(d):
                out[tree.members[leaf, j], c] = tree.blocks[leaf, c, j]


@njit(nogil=True, cache=True)
def settle(tree, keys, leaves, share, above, grown):
    """Bring the balls up to date after points of some leaves have moved: their drift, and new keys where that is large.

    Parameters
    ----------
    tree : with the points where they are
    keys : (leaves, d, cap) the points as the balls know them
    leaves : (q,) int32, where points have moved
    share : a leaf that has drifted more than this share of its radius is re-keyed; infinite to re-key none
    above : nodes before this one are left as they are; 0 for none
    grown : (parts,) float64; what the radii of re-keyed leaves have grown by is added, part by part of the leaves

    Returns
    -------
    rekeyed : points with new keys
    """
    rekeyed = 0
    count, d, cap = tree.blocks.shape
    squares, apart, a_part = np.empty(cap), np.empty(cap, keys.dtype), count // grown.size
    for leaf in leaves:
        node, size = count - 1 + leaf, tree.sizes[leaf]
        drift = _drift(tree, leaf, keys[leaf], apart)
        if drift > share * tree.balls[node, d]:
            keys[leaf] = tree.blocks[leaf]
            before = tree.balls[node, d]
            _enclose(tree, node, leaf, leaf + 1)
            grown[leaf // a_part] += tree.balls[node, d] - before
            rekeyed += size
            drift = 0.0
            up = node
            while up > above:
                up = (up - 1) >> 1
                if up >= above:
                    outer = _farthest(tree.blocks[leaf], size, tree.balls[up, :d], squares)
                    tree.balls[up, d] = max(tree.balls[up, d], outer)
        tree.balls[node, d + 2] = drift
        _raise(tree, node, above)
    return rekeyed


@njit(nogil=True, cache=True, inline="always")
def _raise(tree, node, above):
    """Raise the drift of the nodes above one to that of the farther of their children."""
    last = tree.balls.shape[1] - 1
    while node > 0:
        node = (node - 1) >> 1
        if node < above:
            return
        largest = max(tree.balls[2 * node + 1, last], tree.balls[2 * node + 2, last])
        if tree.balls[node, last] == largest:
            return
        tree.balls[node, last] = largest


@njit(nogil=True, cache=True)
def crown(tree, above):
    """Fit nodes before `above` around the balls of their children, after points below them have moved."""
    d = tree.blocks.shape[1]
    apart = np.empty(d)
    for node in range(above - 1, -1, -1):
        ball = tree.balls[node]
        for child in (2 * node + 1, 2 * node + 2):
            for c in range(d):
                apart[c] = tree.balls[child, c] - ball[c]
            # A few roundings of what is added: of the difference, the norm and the sum.
            reach = (norm(apart) + tree.balls[child, d]) * (1 + 1e-14)
            ball[d] = reach if not reach <= ball[d] else ball[d]
            ball[d + 2] = max(ball[d + 2], tree.balls[child, d + 2])
