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


class Fired(NamedTuple):
    """Who fires on a batch, a record a leaf and sample; records of a leaf stand together.

    Attributes
    ----------
    leaves : (records,) int32, ascending
    samples : (records,) int32, which of the batch
    lanes : (records, cap) bool, which points of the leaf fire; at least one does
    """

    leaves: np.ndarray
    samples: np.ndarray
    lanes: np.ndarray


@njit(nogil=True, cache=True)
def fire(queries, threshold, tree, coefficients, level, first, last, outputs, room):
    """Who fires on a batch in some parts of a tree, and what they add to the outputs.

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
    count, depth = queries.shape[0], 2
    while (leaves >> level) >> (depth - 2) > 0:
        depth += 1
    relative, absolute, overflow = tree.limits[0], tree.limits[1], tree.limits[2]
    b, exact = np.float64(threshold), queries.astype(np.float64)
    lengths, longest = np.empty(count), 0.0
    for i in range(count):
        lengths[i] = norm(queries[i])
        longest = max(longest, lengths[i])
    # By depth: samples that the balls so far have not decided, and those that all points below fire on.
    open_, whole = np.empty((depth, count), np.int32), np.empty((depth, count), np.int32)
    opens, wholes = np.zeros(depth, np.int64), np.zeros(depth, np.int64)
    nodes, depths = np.empty(depth, np.int64), np.empty(depth, np.int64)
    open_[0], opens[0] = np.arange(count), count
    # Terms are no better than their pre-activations: they are added in the dtype of the points, place by place.
    dtype = tree.blocks.dtype
    z, near, places = np.empty(cap, dtype), np.empty(cap, dtype), np.zeros((count, cap), dtype)
    sums, terms = np.empty(d + 1), np.empty(cap)
    found_leaves, found_samples, lanes = room.leaves, room.samples, room.lanes
    outputs[:] = 0
    k = visited = scanned = 0
    for part in range(first, last):
        out, looked = outputs[part - first], False
        nodes[0], depths[0], top = (1 << level) - 1 + part, 0, 1
        while top > 0:
            top -= 1
            node, t = nodes[top], depths[top]
            ball = tree.balls[node]
            wide = ball[d] + ball[d + 2]
            q, f = opens[t], wholes[t]
            whole[t + 1, :f] = whole[t, :f]
            if longest * (ball[d + 1] + wide) < overflow:
                slack = wide + relative * (ball[d + 1] + wide)
                q, f = _decide(exact, lengths, ball, slack, absolute, b, open_[t, :q], open_[t + 1], whole[t + 1], f)
            else:
                open_[t + 1, :q] = open_[t, :q]
            visited += opens[t]
            opens[t + 1], wholes[t + 1] = q, f
            if q + f == 0:
                continue
            if node < leaves - 1:
                nodes[top], nodes[top + 1] = 2 * node + 2, 2 * node + 1
                depths[top], depths[top + 1] = t + 1, t + 1
                top += 2
                continue
            leaf = node - (leaves - 1)
            block, size, own = tree.blocks[leaf], tree.sizes[leaf], coefficients[leaf * cap : (leaf + 1) * cap]
            if k + q + f > found_leaves.size:
                longer = 2 * found_leaves.size + q + f
                found_leaves = _longer(found_leaves, k, longer)
                found_samples = _longer(found_samples, k, longer)
                more = np.empty((longer, cap), np.bool_)
                more[:k] = lanes[:k]
                lanes = more
            if f > 0:
                _sum_of(block, own, sums, terms)
            for p in range(f):
                i = whole[t + 1, p]
                total = -b * sums[d]
                for c in range(d):
                    total += sums[c] * exact[i, c]
                out[i] += total
                lanes[k, :size], lanes[k, size:] = True, False
                found_leaves[k], found_samples[k] = leaf, i
                k += 1
            scanned += q * size
            for j in range(cap):
                near[j] = own[j]
            for p in range(q):
                i = open_[t + 1, p]
                products(block, queries[i], z)
                # Kept only when some point fires.
                found_leaves[k], found_samples[k] = leaf, i
                k += _add_firing(z, threshold, near, size, places[i], lanes[k])
                looked = True
        if looked:
            for i in range(count):
                out[i] += _folded(places[i])
            places[:] = 0
    return Fired(found_leaves, found_samples, lanes), k, visited, scanned


@njit(nogil=True, cache=True)
def _decide(exact, lengths, ball, slack, absolute, b, candidates, open_, whole, f):
    """Samples a ball leaves open, into open_[:q], and those all its points fire on, into whole[f:]; gives q, f."""
    q = 0
    for p in range(candidates.size):
        i = candidates[p]
        product = 0.0
        for c in range(exact.shape[1]):
            product += exact[i, c] * ball[c]
        # Branchless: the sample is always written, and kept where it belongs.
        all_fire = product - (lengths[i] * slack + absolute) > b
        none_fires = product + (lengths[i] * slack + absolute) <= b
        whole[f] = i
        f += all_fire
        open_[q] = i
        q += not (all_fire or none_fires)
    return q, f


@njit(nogil=True, cache=True)
def _add_firing(z, threshold, coefficients, size, into, mask):
    """into += a (z − b) where a point of a leaf fires, which mask tells; whether one does. z is overwritten."""
    some, zero = False, z.dtype.type(0)
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


@njit(nogil=True, cache=True)
def _longer(array, kept, size):
    longer = np.empty(size, array.dtype)
    longer[:kept] = array[:kept]
    return longer


@njit(nogil=True, cache=True)
def _sum_of(block, own, sums, terms):
    """Σ a_r w_r and, in the last column, Σ a_r over the points of a leaf."""
    for c in range(block.shape[0]):
        row = block[c]
        for j in range(own.size):
            terms[j] = own[j] * row[j]
        sums[c] = _folded(terms)
    terms[:] = own
    sums[-1] = _folded(terms)


@njit(nogil=True, cache=True)
def _folded(values):
    """The sum of some numbers, which are overwritten: half added to half, for vectors."""
    width = values.size
    while width > 1:
        half = (width + 1) >> 1
        for j in range(width - half):
            values[j] += values[j + half]
        width = half
    return values[0]


@njit(nogil=True, cache=True)
def step(queries, g, coefficients, fired, tree, keys, share, level, averaged, moves, grown):
    """w_r −= a_r Σ_i g_i x_i over the samples i of a batch that r fires on, and the balls follow.

    Parameters
    ----------
    queries : (b, d)
    g : (b,) float64
    coefficients : (leaves · cap,) float64, a_r by slot
    fired : of some parts
    tree, keys, share, grown : see `widefit.kernels.balls.ball_tree.settle`
    level : of the parts; nodes above it are left as they are
    averaged : iterates that are averaged so far
    moves : (leaves, d, cap) float64; the moves times `averaged` are added. Without leaves where nothing is averaged

    Returns
    -------
    rekeyed : points with new keys
    """
    _, d, cap = tree.blocks.shape
    touched, size, p = np.empty(fired.leaves.size, np.int32), 0, 0
    dtype = tree.blocks.dtype
    sums, own, zero = np.empty((d, cap), dtype), np.empty(cap, dtype), dtype.type(0)
    while p < fired.leaves.size:
        leaf, moved = fired.leaves[p], False
        sums[:] = 0
        while p < fired.leaves.size and fired.leaves[p] == leaf:
            i, lanes = fired.samples[p], fired.lanes[p]
            p += 1
            if g[i] == 0:
                continue
            moved = True
            for c in range(d):
                x, row = dtype.type(g[i] * queries[i, c]), sums[c]
                for j in range(cap):
                    row[j] += x if lanes[j] else zero
        if not moved:
            continue
        for j in range(cap):
            own[j] = coefficients[leaf * cap + j]
        for c in range(d):
            row, total = tree.blocks[leaf, c], sums[c]
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


@njit(nogil=True, cache=True)
def readout_moves(queries, threshold, g, fired, tree):
    """Σ_i g_i (⟨w_r, x_i⟩ − b) over the samples i of a batch that r fires on, w_r as it is now.

    Parameters
    ----------
    queries, threshold, fired, tree : as in `fire`
    g : (b,) float64

    Returns
    -------
    leaves, moves : (touched,) int32; (touched, cap) float64
    """
    cap, b = tree.blocks.shape[2], np.float64(threshold)
    leaves, moves = np.empty(fired.leaves.size, np.int32), np.zeros((fired.leaves.size, cap))
    z, size = np.empty(cap, tree.blocks.dtype), 0
    for p in range(fired.leaves.size):
        leaf, i, lanes = fired.leaves[p], fired.samples[p], fired.lanes[p]
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
    """Take what `readout_moves` gave from the coefficients.

    `weighted`, (leaves · cap,) float64, has the moves times `averaged` added; empty where nothing is averaged.
    """
    cap = moves.shape[1]
    for p in range(leaves.size):
        slots = slice(leaves[p] * cap, (leaves[p] + 1) * cap)
        coefficients[slots] -= moves[p]
        if weighted.size > 0:
            weighted[slots] += averaged * moves[p]


@njit(nogil=True, cache=True)
def pull_back(slope, coefficients, fired, tree, level, first, out):
    """out[part, i] = slope_i Σ a_r w_r over the points of a part that fire on sample i of a batch.

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
        leaf, i, lanes = fired.leaves[p], fired.samples[p], fired.lanes[p]
        into = out[leaf // (leaves >> level) - first, i]
        own = coefficients[leaf * cap : (leaf + 1) * cap]
        for c in range(d):
            row = tree.blocks[leaf, c]
            for j in range(cap):
                terms[j] = own[j] * row[j] if lanes[j] else 0.0
            into[c] += slope[i] * _folded(terms)
