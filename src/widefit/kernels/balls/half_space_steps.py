"""Numba kernels of stochastic steps in a tree of balls (see `ball_tree`): a whole batch at a time.

The tree is cut into parts, the subtrees below one level. A part is visited once a batch, with all samples that its
balls do not decide, leaf after leaf: what is read of a leaf serves every sample. Sums are kept part by part, so that
they do not depend on who works on which.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from widefit.kernels.balls.ball_tree import norm, settle
from widefit.kernels.balls.half_space import products
from widefit.kernels.borrowing import borrowing
from widefit.kernels.growth import longer


class Fired(NamedTuple):
    """Pairs that fire on a batch, a record for each leaf and sample; records of a leaf stand together.

    Attributes
    ----------
    leaves : (records,) int32, ascending
    samples : (records,) int32, which of the batch
    lanes : (records, cap) bool, which points of the leaf fire; at least one does
    """

    leaves: np.ndarray
    samples: np.ndarray
    lanes: np.ndarray


class Batch(NamedTuple):
    """Samples of a batch, as queries.

    Attributes
    ----------
    queries : (b, d), of the dtype of the points
    exact : the same in float64
    lengths : (b,) float64, ‖x‖, rounded up
    threshold : scalar of the dtype of the points
    """

    queries: np.ndarray
    exact: np.ndarray
    lengths: np.ndarray
    threshold: np.floating


class Undecided(NamedTuple):
    """Samples of the batch on the way from a part's root to a node, by depth.

    Attributes
    ----------
    some, whole : (depth, b) int32, samples that the balls so far have not decided, and those that all points below
        fire on
    some_count, whole_count : (depth,) int64, number of each
    """

    some: np.ndarray
    whole: np.ndarray
    some_count: np.ndarray
    whole_count: np.ndarray


@njit(nogil=True, cache=True)
def fire(queries, threshold, tree, coefficients, level, first, last, outputs, room):
    """Find who fires on a batch in some parts of a tree, and the terms of these points in the outputs.

    Parameters
    ----------
    queries : (b, d), of the dtype of the points
    threshold : scalar of that dtype
    coefficients : (leaves · cap,) float64, a_r by slot
    level : the 2^level subtrees below it are the parts
    first, last : half-open range of the parts
    outputs : (parts, b) float64; Σ a_r (⟨w_r, x_i⟩ − b) is written, a row for each of the parts
    room : a `Fired` whose arrays are overwritten: fresh memory would cost more than the work

    Returns
    -------
    room, records, visited, scanned : the room, or a larger one; records in it; nodes compared, products computed
    """
    leaves, d, cap = tree.blocks.shape
    count = queries.shape[0]
    batch = Batch(queries, queries.astype(np.float64), _lengths(queries), threshold)
    longest = batch.lengths.max()
    depth = 2
    while (leaves >> level) >> (depth - 2) > 0:
        depth += 1
    undecided = Undecided(
        np.empty((depth, count), np.int32), np.empty((depth, count), np.int32),
        np.zeros(depth, np.int64), np.zeros(depth, np.int64),
    )  # fmt: skip
    undecided.some[0] = np.arange(count)
    undecided.some_count[0] = count
    nodes = np.empty(depth, np.int64)
    depths = np.empty(depth, np.int64)
    # Terms are no better than their pre-activations: they are added in the dtype of the points, lane by lane.
    z = np.empty(cap, tree.blocks.dtype)
    near = np.empty(cap, tree.blocks.dtype)
    lane_sums = np.zeros((count, cap), tree.blocks.dtype)
    sums = np.empty(d + 1)
    terms = np.empty(cap)
    outputs[:] = 0
    records = 0
    visited = 0
    scanned = 0
    for part in range(first, last):
        out = outputs[part - first]
        looked = False
        nodes[0] = (1 << level) - 1 + part
        depths[0] = 0
        top = 1
        while top > 0:
            top -= 1
            node = nodes[top]
            t = depths[top]
            visited += undecided.some_count[t]
            q, f = _descend(tree, node, batch, longest, undecided, t)
            if q + f == 0:
                continue
            if node < leaves - 1:
                nodes[top] = 2 * node + 2
                nodes[top + 1] = 2 * node + 1
                depths[top] = t + 1
                depths[top + 1] = t + 1
                top += 2
                continue
            leaf = node - (leaves - 1)
            own = coefficients[leaf * cap : (leaf + 1) * cap]
            room = _with_space(room, records, q + f)
            if f > 0:
                _sum_of(tree.blocks[leaf], own, sums, terms)
                records = _fire_whole(
                    leaf, tree.sizes[leaf], undecided.whole[t + 1, :f], batch, sums, out, room, records
                )
            if q > 0:
                for j in range(cap):
                    near[j] = own[j]
                records = _fire_some(tree, leaf, undecided.some[t + 1, :q], batch, near, z, lane_sums, room, records)
                scanned += q * tree.sizes[leaf]
                looked = True
        if looked:
            for i in range(count):
                out[i] += _folded(lane_sums[i])
            lane_sums[:] = 0
    return room, records, visited, scanned


@njit(nogil=True, cache=True)
def _lengths(queries):
    """Return ‖x‖ of every query, rounded up."""
    out = np.empty(queries.shape[0])
    for i in range(queries.shape[0]):
        out[i] = norm(queries[i])
    return out


@borrowing
def _descend(tree, node, batch, longest, undecided, t):
    """Decide the samples at depth t by the ball of a node; return how many stay undecided, and how many fire whole."""
    d = tree.blocks.shape[1]
    ball = tree.balls[node]
    relative = tree.limits[0]
    wide = ball[d] + ball[d + 2]
    q = undecided.some_count[t]
    f = undecided.whole_count[t]
    candidates = undecided.some[t, :q]
    some = undecided.some[t + 1]
    whole = undecided.whole[t + 1]
    for p in range(f):
        whole[p] = undecided.whole[t, p]
    if longest * (ball[d + 1] + wide) < tree.limits[2]:
        slack = wide + relative * (ball[d + 1] + wide)
        threshold = np.float64(batch.threshold)
        q, f = _decide(batch.exact, batch.lengths, ball, slack, tree.limits[1], threshold, candidates, some, whole, f)
    else:
        for p in range(q):
            some[p] = candidates[p]
    undecided.some_count[t + 1] = q
    undecided.whole_count[t + 1] = f
    return q, f


@njit(nogil=True, cache=True)
def _with_space(room, used, more):
    """Return the room, or a larger one with the records so far."""
    if used + more <= room.leaves.size:
        return room
    size = 2 * room.leaves.size + more
    return Fired(longer(room.leaves, used, size), longer(room.samples, used, size), longer(room.lanes, used, size))


@borrowing
def _fire_whole(leaf, size, samples, batch, sums, out, room, records):
    """Record samples that all points of a leaf fire on, and add their terms; return the records so far.

    sums : (d + 1,) from `_sum_of`
    """
    exact = batch.exact
    b = np.float64(batch.threshold)
    d = exact.shape[1]
    for p in range(samples.size):
        i = samples[p]
        total = -b * sums[d]
        for c in range(d):
            total += sums[c] * exact[i, c]
        out[i] += total
        room.lanes[records, :size] = True
        room.lanes[records, size:] = False
        room.leaves[records] = leaf
        room.samples[records] = i
        records += 1
    return records


@borrowing
def _fire_some(tree, leaf, samples, batch, coefficients, z, lane_sums, room, records):
    """Record samples that some points of a leaf fire on, and add their terms; return the records so far.

    coefficients : (cap,), of the dtype of the points
    z : (cap,) scratch
    lane_sums : (b, cap), added to
    """
    block = tree.blocks[leaf]
    size = tree.sizes[leaf]
    for p in range(samples.size):
        i = samples[p]
        products(block, batch.queries[i], z)
        # Kept only when some point fires.
        room.leaves[records] = leaf
        room.samples[records] = i
        records += _add_firing(z, batch.threshold, coefficients, size, lane_sums[i], room.lanes[records])
    return records


@borrowing
def _decide(exact, lengths, ball, slack, absolute, threshold, candidates, some, whole, f):
    """List the samples a ball leaves undecided in some[:q], those all its points fire on in whole[f:]; return q, f."""
    q = 0
    for p in range(candidates.size):
        i = candidates[p]
        product = 0.0
        for c in range(exact.shape[1]):
            product += exact[i, c] * ball[c]
        # Branchless: the sample is always written, and kept where it belongs.
        all_fire = product - (lengths[i] * slack + absolute) > threshold
        none_fires = product + (lengths[i] * slack + absolute) <= threshold
        whole[f] = i
        f += all_fire
        some[q] = i
        q += not (all_fire or none_fires)
    return q, f


@borrowing
def _add_firing(z, threshold, coefficients, size, into, mask):
    """Add a (z − b) where a point of a leaf fires, as mask then tells; return whether one does. z is overwritten."""
    some = False
    zero = z.dtype.type(0)
    # One thing a loop, for vectors.
    for j in range(z.size):
        mask[j] = not z[j] <= threshold
    mask[size:] = False
    for j in range(z.size):
        z[j] = coefficients[j] * (zero if z[j] <= threshold else z[j] - threshold)
    for j in range(z.size):
        into[j] += z[j]
    for j in range(z.size):
        some = some | mask[j]
    return some


@borrowing
def _sum_of(block, own, sums, terms):
    """Write Σ a_r w_r and, in the last column, Σ a_r over the points of a leaf into sums."""
    for c in range(block.shape[0]):
        row = block[c]
        for j in range(own.size):
            terms[j] = own[j] * row[j]
        sums[c] = _folded(terms)
    for j in range(own.size):
        terms[j] = own[j]
    sums[-1] = _folded(terms)


@borrowing
def _folded(values):
    """Return the sum of some numbers, which are overwritten: half added to half, for vectors."""
    width = values.size
    while width > 1:
        half = (width + 1) >> 1
        for j in range(width - half):
            values[j] += values[j + half]
        width = half
    return values[0]


@njit(nogil=True, cache=True)
def step(queries, g, coefficients, fired, tree, keys, share, level, averaged, moves, grown):
    """Move w_r by −a_r Σ_i g_i x_i over the samples i of a batch that r fires on, and let the balls follow.

    Parameters
    ----------
    queries : (b, d)
    g : (b,) float64
    coefficients : (leaves · cap,) float64, a_r by slot
    fired : records of some parts
    tree, keys, share, grown : see `widefit.kernels.balls.ball_tree.settle`
    level : level of the parts; nodes above it are left as they are
    averaged : iterates that are averaged so far
    moves : (leaves, d, cap) float64; the moves times `averaged` are added. Without leaves where nothing is averaged

    Returns
    -------
    rekeyed : points with new keys
    """
    _, d, cap = tree.blocks.shape
    dtype = tree.blocks.dtype
    touched = np.empty(fired.leaves.size, np.int32)
    sums = np.empty((d, cap), dtype)
    own = np.empty(cap, dtype)
    size = 0
    last = 0
    while last < fired.leaves.size:
        first = last
        leaf = fired.leaves[first]
        while last < fired.leaves.size and fired.leaves[last] == leaf:
            last += 1
        if not _sum_moves(queries, g, fired.samples[first:last], fired.lanes[first:last], sums):
            continue
        for j in range(cap):
            own[j] = coefficients[leaf * cap + j]
        for c in range(d):
            row = tree.blocks[leaf, c]
            total = sums[c]
            for j in range(cap):
                total[j] *= own[j]
                row[j] -= total[j]
            if moves.shape[0] > 0:
                to_average = moves[leaf, c]
                for j in range(cap):
                    to_average[j] += averaged * total[j]
        touched[size] = leaf
        size += 1
    return settle(tree, keys, touched[:size], share, (1 << level) - 1, grown)


@borrowing
def _sum_moves(queries, g, samples, lanes, sums):
    """Write Σ_i g_i x_i for every point of a leaf into sums (d, cap); return False where all g are 0."""
    dtype = sums.dtype
    zero = dtype.type(0)
    moved = False
    sums[:] = 0
    for p in range(samples.size):
        i = samples[p]
        if g[i] == 0:
            continue
        moved = True
        fires = lanes[p]
        for c in range(sums.shape[0]):
            x = dtype.type(g[i] * queries[i, c])
            row = sums[c]
            for j in range(row.size):
                row[j] += x if fires[j] else zero
    return moved


@njit(nogil=True, cache=True)
def readout_moves(queries, threshold, g, fired, tree):
    """Sum g_i (⟨w_r, x_i⟩ − b) over the samples i of a batch that r fires on, w_r as it is now.

    Parameters
    ----------
    queries, threshold, fired, tree : as in `fire`
    g : (b,) float64

    Returns
    -------
    leaves, moves : (touched,) int32; (touched, cap) float64
    """
    cap = tree.blocks.shape[2]
    b = np.float64(threshold)
    leaves = np.empty(fired.leaves.size, np.int32)
    moves = np.zeros((fired.leaves.size, cap))
    z = np.empty(cap, tree.blocks.dtype)
    size = 0
    for p in range(fired.leaves.size):
        leaf = fired.leaves[p]
        i = fired.samples[p]
        lanes = fired.lanes[p]
        if size == 0 or leaves[size - 1] != leaf:
            leaves[size] = leaf
            size += 1
        products(tree.blocks[leaf], queries[i], z)
        into = moves[size - 1]
        for j in range(cap):
            into[j] += g[i] * (np.float64(z[j]) - b) if lanes[j] else 0.0
    return leaves[:size], moves[:size]


@njit(nogil=True, cache=True)
def move_readout(leaves, moves, coefficients, averaged, weighted):
    """Subtract the result of `readout_moves` from the coefficients.

    weighted : (leaves · cap,) float64, to which the moves times `averaged` are added; empty where nothing is averaged
    """
    cap = moves.shape[1]
    for p in range(leaves.size):
        slots = slice(leaves[p] * cap, (leaves[p] + 1) * cap)
        coefficients[slots] -= moves[p]
        if weighted.size > 0:
            weighted[slots] += averaged * moves[p]


@njit(nogil=True, cache=True)
def pull_back(slope, coefficients, fired, tree, level, first, out):
    """Write out[part, i] = slope_i Σ a_r w_r over the points of a part that fire on sample i of a batch.

    Parameters
    ----------
    slope : (b,) float64
    coefficients, fired, tree, level : as in `fire`
    first : the part of the first row of out
    out : (parts, b, d) float64
    """
    leaves, d, cap = tree.blocks.shape
    terms = np.empty(cap)
    out[:] = 0
    for p in range(fired.leaves.size):
        leaf = fired.leaves[p]
        i = fired.samples[p]
        lanes = fired.lanes[p]
        into = out[leaf // (leaves >> level) - first, i]
        own = coefficients[leaf * cap : (leaf + 1) * cap]
        for c in range(d):
            row = tree.blocks[leaf, c]
            for j in range(cap):
                terms[j] = own[j] * row[j] if lanes[j] else 0.0
            into[c] += slope[i] * _folded(terms)
