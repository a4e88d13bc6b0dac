"""Numba kernels of the search trees: implicit max-trees over pre-activations, and steps that change their keys.

**Max-tree.** A tree over s keys is an array of 2 s numbers: key j stands at s + j, the larger of nodes 2 p and 2 p + 1
at p, so the root is node 1 (node 0 is not used). That holds for every s, powers of two or not. A *forest* is an array
of such trees, one a row, and `forest[:, s:]` is the matrix of its keys. NaN counts as smaller than every number.

Every kernel is serial and releases the GIL (see `widefit.kernels.fire_rows`).
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, inline="always")
def _larger(a, b):
    return a if a >= b or b != b else b


@njit(nogil=True, cache=True)
def rebuild(tree):
    """Compute the inner nodes of a tree (2 s,) from its keys, level by level."""
    size = tree.size // 2
    first = 1
    while 2 * first < size:
        first *= 2
    while first >= 1:
        # Slices of two levels: the compiler sees that they do not overlap and works on many nodes at a time.
        parents = tree[first : min(2 * first, size)]
        children = tree[2 * first : 2 * first + 2 * parents.size]
        for p in range(parents.size):
            parents[p] = _larger(children[2 * p], children[2 * p + 1])
        first //= 2


@njit(nogil=True, cache=True)
def rebuild_trees(forest, first, last):
    """Rebuild the trees first to last of a forest."""
    for t in range(first, last):
        rebuild(forest[t])


@njit(nogil=True, cache=True)
def climb(tree, nodes, count):
    """Bring the ancestors of changed nodes up to date, as far as they change; nodes[:count] is overwritten.

    One generation at a time: whether a node changes cannot be foreseen, so it is never branched on.
    """
    while count > 0:
        left = 0
        for p in range(count):
            node = nodes[p] >> 1
            value = _larger(tree[2 * node], tree[2 * node + 1])
            changed = value != tree[node]
            tree[node] = value
            nodes[left] = node
            left += changed & (node > 1)
        count = left


@njit(nogil=True, cache=True)
def query(tree, threshold, scratch, out):
    """List the ascending indices of keys above the threshold; subtrees with max ≤ threshold are left out.

    Parameters
    ----------
    tree : (2 s,)
    threshold : scalar of the dtype of tree
    scratch : (2, s + 1) int32
    out : (s,) int32

    Returns
    -------
    k : number of keys found
    visited : nodes whose value was compared, at most 1 + 2 k ⌈log₂ s⌉
    """
    size = tree.size // 2
    level = scratch[0]
    below = scratch[1]
    level[0] = 1
    count = 1 if tree[1] > threshold else 0
    k = 0
    visited = 1
    while count > 0:
        # Keys stand on the last two levels, at the end of the first of them: they come out in ascending order.
        inner = count
        while inner > 0 and level[inner - 1] >= size:
            inner -= 1
        for p in range(inner, count):
            out[k] = level[p] - size
            k += 1
        count = 0
        for p in range(inner):
            # Branchless: a child is always written and kept only when it exceeds the threshold.
            child = 2 * level[p]
            below[count] = child
            count += tree[child] > threshold
            below[count] = child + 1
            count += tree[child + 1] > threshold
        visited += 2 * inner
        level, below = below, level
    return k, visited


@njit(nogil=True, cache=True)
def query_trees(forest, trees, threshold):
    """Query some trees of a forest.

    Parameters
    ----------
    forest : (t, 2 s)
    trees : (q,) integers
    threshold : scalar of the dtype of forest

    Returns
    -------
    start : (q + 1,) int64
    keys : int32; those of trees[p] that are above the threshold stand in keys[start[p]:start[p + 1]], ascending
    visited : nodes whose value was compared
    """
    size = forest.shape[1] // 2
    start = np.zeros(trees.size + 1, np.int64)
    scratch = np.empty((2, size + 1), np.int32)
    keys = np.empty(2 * size, np.int32)
    visited = 0
    for p in range(trees.size):
        used = start[p]
        if used + size > keys.size:
            larger = np.empty(2 * (used + size), np.int32)
            larger[:used] = keys[:used]
            keys = larger
        k, nodes = query(forest[trees[p]], threshold, scratch, keys[used:])
        start[p + 1] = used + k
        visited += nodes
    return start, keys[: start[-1]].copy(), visited


@njit(nogil=True, cache=True)
def look_up(forest, samples, threshold, first, last):
    """Find who fires on some samples among the neurons first to last of a forest: by the root, then by the keys.

    Parameters
    ----------
    forest : (m, 2 n)
    samples : (b,) int32, ascending

    Returns
    -------
    neurons, start, fired : rows (see `widefit.kernels.trees.steps`) of the neurons that fire on one of the samples
    visited : nodes and keys whose value was compared
    """
    size = forest.shape[1] // 2
    neurons = np.empty(last - first, np.int64)
    start = np.zeros(last - first + 1, np.int64)
    fired = np.empty((last - first) * samples.size + 1, np.int32)
    c = 0
    k = 0
    visited = last - first
    for r in range(first, last):
        if not forest[r, 1] > threshold:
            continue
        keys = forest[r, size:]
        for i in samples:
            fired[k] = i
            k += keys[i] > threshold
        visited += samples.size
        if k > start[c]:
            neurons[c] = r
            c += 1
            start[c] = k
    return neurons[:c].copy(), start[: c + 1].copy(), fired[:k].copy(), visited


@njit(nogil=True, cache=True)
def write_by_sample(forest, neurons, moved, threshold, first, last):
    """Write new keys of some neurons into the trees of samples first to last; return the number of flips.

    Parameters
    ----------
    forest : (n, 2 s)
    neurons : (c,) ascending
    moved : (n, c)
    """
    size = forest.shape[1] // 2
    # A whole tree is rebuilt in the time of some s / 48 climbs.
    in_bulk = 48 * neurons.size > size
    nodes = np.empty(neurons.size + 1, np.int32)
    flips = 0
    for i in range(first, last):
        tree = forest[i]
        keys = moved[i]
        count = 0
        for q in range(neurons.size):
            node = size + neurons[q]
            now = tree[node]
            then = keys[q]
            flips += (now > threshold) != (then > threshold)
            tree[node] = then
            nodes[count] = node
            count += (now != then) & (node > 1)
        if in_bulk:
            rebuild(tree)
        else:
            climb(tree, nodes, count)
    return flips


@njit(nogil=True, cache=True)
def write_by_neuron(forest, neurons, moved, threshold, first, last):
    """Write new keys into the trees of neurons[first:last], all keys of a tree at once; return the number of flips.

    Parameters
    ----------
    forest : (m, 2 n)
    neurons : (c,)
    moved : (c, n)
    """
    size = forest.shape[1] // 2
    flips = 0
    for q in range(first, last):
        tree = forest[neurons[q]]
        keys = tree[size:]
        values = moved[q]
        for i in range(size):
            flips += (keys[i] > threshold) != (values[i] > threshold)
            keys[i] = values[i]
        rebuild(tree)
    return flips
