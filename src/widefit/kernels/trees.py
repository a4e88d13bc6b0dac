"""Numba kernels of the search trees: implicit max-trees over pre-activations, and what a step does to their keys.

**Max-tree.** A tree over s keys is an array of 2 s numbers: key j stands at s + j, the larger of nodes 2 p and 2 p + 1
at p, so the root is node 1 (node 0 is not used). That holds for every s, powers of two or not. A *forest* is an array
of such trees, one a row, and `forest[:, s:]` is the matrix of its keys. NaN counts as smaller than every number.

**Rows.** Who fires on what is passed as three arrays: ``neurons`` (c,) ascending, ``start`` int64 (c + 1,) and
``samples`` int32: neuron neurons[q] fires on samples[start[q]:start[q + 1]], ascending.

Every kernel is serial and releases the GIL (see `widefit.kernels.cpu`). No result depends on how the callers cut the
work: a key is the same to the last bit whatever else is computed beside it.
"""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, inline="always")
def _larger(a, b):
    return a if a >= b or b != b else b


@njit(nogil=True, cache=True)
def rebuild(tree):
    """Inner nodes of a tree (2 s,) from its keys, level by level."""
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
    """`rebuild` for trees first to last of a forest."""
    for t in range(first, last):
        rebuild(forest[t])


@njit(nogil=True, cache=True)
def climb(tree, node):
    """Bring the ancestors of a changed key up to date, as far as they change."""
    node //= 2
    while node >= 1:
        value = _larger(tree[2 * node], tree[2 * node + 1])
        if value == tree[node]:
            return
        tree[node] = value
        node //= 2


@njit(nogil=True, cache=True)
def query(tree, threshold, out):
    """Keys above the threshold: their ascending indices into out[:k], subtrees with max ≤ threshold left out.

    Parameters
    ----------
    tree : (2 s,)
    threshold : scalar of the dtype of tree
    out : (s,) int32

    Returns
    -------
    k : number of keys found
    visited : nodes whose value was compared, at most 1 + 2 k ⌈log₂ s⌉
    """
    size = tree.size // 2
    visited = 1
    if not tree[1] > threshold:
        return 0, visited
    deepest = 1
    while deepest < size:
        deepest *= 2
    stack = np.empty(64, np.int64)
    stack[0] = 1
    height = 1
    k = split = 0
    while height > 0:
        height -= 1
        node = stack[height]
        if node >= size:
            out[k] = node - size
            k += 1
            # Keys of the deepest level come first on the way through the tree and last in the order of the keys.
            split += node >= deepest
            continue
        visited += 2
        if tree[2 * node + 1] > threshold:
            stack[height] = 2 * node + 1
            height += 1
        if tree[2 * node] > threshold:
            stack[height] = 2 * node
            height += 1
    if 0 < split < k:
        out[:split] = out[:split][::-1].copy()
        out[split:k] = out[split:k][::-1].copy()
        out[:k] = out[:k][::-1].copy()
    return k, visited


@njit(nogil=True, cache=True)
def query_trees(forest, trees, threshold):
    """`query` for some trees of a forest.

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
    keys = np.empty(2 * size, np.int32)
    visited = 0
    for p in range(trees.size):
        used = start[p]
        if used + size > keys.size:
            larger = np.empty(2 * (used + size), np.int32)
            larger[:used] = keys[:used]
            keys = larger
        k, nodes = query(forest[trees[p]], threshold, keys[used:])
        start[p + 1] = used + k
        visited += nodes
    return start, keys[: start[-1]].copy(), visited


@njit(nogil=True, cache=True)
def look_up(forest, samples, threshold, first, last):
    """Rows of the trees first to last of a forest of neurons, at some samples: the root, then the keys themselves.

    Parameters
    ----------
    forest : (m, 2 n)
    samples : (b,) int32, ascending

    Returns
    -------
    neurons, start, fired : rows of the neurons that fire on one of the samples
    visited : nodes and keys whose value was compared
    """
    size = forest.shape[1] // 2
    neurons = np.empty(last - first, np.int64)
    start = np.zeros(last - first + 1, np.int64)
    fired = np.empty((last - first) * samples.size + 1, np.int32)
    c, k, visited = 0, 0, last - first
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
def turn_lists(start, keys, samples, count):
    """Rows from the lists of some samples: neurons keys[start[p]:start[p + 1]] fire on samples[p].

    Parameters
    ----------
    start, keys : as `query_trees` returns them, one list a sample
    samples : (b,) int32, ascending
    count : (m,) int64, zeros; zeros again on return

    Returns
    -------
    neurons, row_start, fired : rows
    """
    found = np.empty(min(keys.size, count.size), np.int64)
    c = 0
    for r in keys:
        if count[r] == 0:
            found[c] = r
            c += 1
        count[r] += 1
    neurons = np.sort(found[:c])
    row_start = np.zeros(c + 1, np.int64)
    for q in range(c):
        row_start[q + 1] = row_start[q] + count[neurons[q]]
        count[neurons[q]] = row_start[q]
    fired = np.empty(keys.size, np.int32)
    for p in range(samples.size):
        for r in keys[start[p] : start[p + 1]]:
            fired[count[r]] = samples[p]
            count[r] += 1
    for r in neurons:
        count[r] = 0
    return neurons, row_start, fired


@njit(nogil=True, cache=True)
def pack_rows(neurons, start, samples, n, first, last):
    """Rows of the neurons first to last as fire rows (`widefit.kernels.cpu`): counts, start and words."""
    limit = (n + 31) // 32
    counts, word_start = np.zeros(last - first, np.int32), np.zeros(last - first + 1, np.int64)
    low, high = np.searchsorted(neurons, first), np.searchsorted(neurons, last)
    for q in range(low, high):
        counts[neurons[q] - first] = start[q + 1] - start[q]
    for r in range(counts.size):
        word_start[r + 1] = word_start[r] + min(counts[r], limit)
    words = np.zeros(word_start[-1], np.uint32)
    for q in range(low, high):
        base = word_start[neurons[q] - first]
        row = samples[start[q] : start[q + 1]]
        if row.size <= limit:
            for p in range(row.size):
                words[base + p] = row[p]
        else:
            for i in row:
                words[base + (i >> 5)] |= np.uint32(1) << np.uint32(i & 31)
    return counts, word_start, words


@njit(nogil=True, cache=True)
def sum_rows(keys, neurons, start, samples, threshold, coefficients, output_of, outputs):
    """outputs[i, c_r] += coefficient_r (z_ri − threshold) for every neuron r and sample i of the rows.

    Parameters
    ----------
    keys : (m, n) pre-activations, in any layout
    coefficients : (m,) float64
    output_of : (m,) the output that a neuron feeds
    outputs : (n, k) float64
    """
    for q in range(neurons.size):
        r = neurons[q]
        a, c = coefficients[r], output_of[r]
        for i in samples[start[q] : start[q + 1]]:
            outputs[i, c] += a * (keys[r, i] - threshold)


@njit(nogil=True, cache=True)
def step_rows(weights, anchor, shrink, coefficients, output_of, g, inputs, neurons, start, samples, out):
    """out_q = w_r − shrink (w_r − anchor_r) − coefficient_r Σ_i g_i x_i over row q, r = neurons[q].

    Parameters
    ----------
    weights : (m, d)
    anchor : (m, d), or (0, d) where shrink is 0
    shrink : (k,) of the dtype of weights
    g : (n, k) float64
    inputs : (n, d)
    out : (c, d)
    """
    d = weights.shape[1]
    for q in range(neurons.size):
        r = neurons[q]
        c = output_of[r]
        target = out[q]
        target[:] = weights[r]
        if shrink[c] != 0:
            for p in range(d):
                target[p] -= shrink[c] * (target[p] - anchor[r, p])
        for i in samples[start[q] : start[q + 1]]:
            factor = inputs.dtype.type(coefficients[r] * g[i, c])
            x = inputs[i]
            for p in range(d):
                target[p] -= factor * x[p]


@njit(nogil=True, cache=True, fastmath={"contract"})
def products(weights, inputs_t, out):
    """out = weights · inputs_t, each number summed in the order of the features whatever stands beside it.

    Half as fast as a matrix product of blocks, whose last bits depend on the shape of the block.

    Parameters
    ----------
    weights : (c, d)
    inputs_t : (d, n), contiguous
    out : (c, n), contiguous
    """
    d = inputs_t.shape[0]
    whole = d - d % 4
    for q in range(weights.shape[0]):
        target, w = out[q], weights[q]
        target[:] = 0
        for p in range(0, whole, 4):
            x0, x1, x2, x3 = inputs_t[p], inputs_t[p + 1], inputs_t[p + 2], inputs_t[p + 3]
            w0, w1, w2, w3 = w[p], w[p + 1], w[p + 2], w[p + 3]
            for i in range(target.size):
                target[i] = (((target[i] + w0 * x0[i]) + w1 * x1[i]) + w2 * x2[i]) + w3 * x3[i]
        for p in range(whole, d):
            x0, w0 = inputs_t[p], w[p]
            for i in range(target.size):
                target[i] += w0 * x0[i]


@njit(nogil=True, cache=True)
def compare(keys, neurons, moved, threshold, coefficients, output_of, anew, first, last, outputs, flips):
    """What new pre-activations of some neurons do to the outputs, and which pairs flip, for samples first to last.

    Parameters
    ----------
    keys : (m, n) pre-activations now, in any layout
    neurons : (c,), ascending
    moved : (c, n) their pre-activations to be
    anew : (k,) bool; True: the terms now are not in `outputs` and need not be taken back
    outputs : (n, k) float64, changed
    flips : (3, c (last − first)) int32, written: neurons, samples, 1 where the pair fires afterwards

    Returns
    -------
    count : number of flips, ordered by neuron and then by sample
    """
    count = 0
    for q in range(neurons.size):
        r = neurons[q]
        a, c = coefficients[r], output_of[r]
        for i in range(first, last):
            now, then = keys[r, i], moved[q, i]
            if then > threshold:
                outputs[i, c] += a * (then - threshold)
            if now > threshold and not anew[c]:
                outputs[i, c] -= a * (now - threshold)
            if (now > threshold) != (then > threshold):
                flips[0, count] = r
                flips[1, count] = i
                flips[2, count] = then > threshold
                count += 1
    return count


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"})
def _dot(a, b):
    total = 0.0
    for p in range(a.size):
        total += np.float64(a[p]) * np.float64(b[p])
    return total


@njit(nogil=True, cache=True)
def respond(
    keys, rows, neurons, threshold, coefficients, output_of, anew, offsets, inputs, sign, first, last, response
):
    """response[i, c_r] += sign · coefficient_r ⟨offset_r, x_i⟩ where r fires on i: part of J (W − W₀).

    Parameters
    ----------
    keys : pre-activations, in any layout; those of neurons[q] stand in row rows[q]
    neurons : (c,)
    anew : (k,) bool; outputs that are left out
    offsets : (c, d), w_r − anchor_r
    first, last : the samples to work on
    response : (n, k) float64
    """
    for q in range(neurons.size):
        c = output_of[neurons[q]]
        if anew[c]:
            continue
        a = sign * coefficients[neurons[q]]
        for i in range(first, last):
            if keys[rows[q], i] > threshold:
                response[i, c] += a * _dot(offsets[q], inputs[i])


@njit(nogil=True, cache=True)
def squared_norms(offsets, neurons, output_of, sign, anew, out):
    """out[c_r] += sign ‖offset_r‖² for the neurons of outputs that are not `anew`."""
    for q in range(neurons.size):
        c = output_of[neurons[q]]
        if not anew[c]:
            out[c] += sign * _dot(offsets[q], offsets[q])


@njit(nogil=True, cache=True)
def write_by_sample(forest, neurons, moved, threshold, first, last):
    """New keys of some neurons in the trees of samples first to last; returns the number of flips.

    Parameters
    ----------
    forest : (n, 2 m)
    neurons : (c,) ascending
    moved : (c, n)
    """
    size = forest.shape[1] // 2
    # A whole tree is rebuilt in the time of some s / 16 climbs.
    in_bulk = 16 * neurons.size > size
    flips = 0
    for i in range(first, last):
        tree = forest[i]
        for q in range(neurons.size):
            node = size + neurons[q]
            value = moved[q, i]
            flips += (tree[node] > threshold) != (value > threshold)
            tree[node] = value
            if not in_bulk:
                climb(tree, node)
        if in_bulk:
            rebuild(tree)
    return flips


@njit(nogil=True, cache=True)
def write_by_neuron(forest, neurons, moved, threshold, first, last):
    """New keys in the trees of neurons[first:last], all keys of a tree at once; returns the number of flips.

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
        keys, values = tree[size:], moved[q]
        for i in range(size):
            flips += (keys[i] > threshold) != (values[i] > threshold)
            keys[i] = values[i]
        rebuild(tree)
    return flips
