"""Numba kernel of the certificate tracker: stochastic steps in which no neuron can flip."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def walk_minibatches(
    samples, edges, rates, first, last, targets, sample_weight, loss, grams, outputs, response, collected, budget,
    spent, path, due, squared_norm,
):  # fmt: skip
    """Stochastic steps first to last while no neuron can flip; returns the step to go on from.

    Ends before a step that would exceed the budget, and after one that makes a certificate due.

    Parameters
    ----------
    samples, edges, rates, targets, sample_weight : as in `widefit.trackers.Minibatches`
    loss : 0 squared, 1 logistic, 2 softmax
    grams : tuple of k (n, n) float64, H of every output
    outputs, response, collected, spent : (k, n) float64, updated: f, J (W − W₀), G and Σ |g|
    budget : (k, n), what `spent` must not exceed
    path, due : (k,) float64: Σ ‖g‖₂, updated, and the value at which the first certificate is due
    squared_norm : (k,) float64, updated
    """
    k = outputs.shape[0]
    longest = 0
    for t in range(first, last):
        longest = max(longest, edges[t + 1] - edges[t])
    g = np.empty((longest, k), np.float64)
    f = np.empty(k, np.float64)
    for t in range(first, last):
        batch = samples[edges[t] : edges[t + 1]]
        for b in range(batch.size):
            i = batch[b]
            for o in range(k):
                f[o] = outputs[o, i]
            _slope(f, targets[i], loss, g[b])
            for o in range(k):
                g[b, o] *= rates[t] * sample_weight[i]
                if not spent[o, i] + abs(g[b, o]) <= budget[o, i]:
                    return t
        ready = False
        for o in range(k):
            size = 0.0
            for b in range(batch.size):
                i, step = batch[b], g[b, o]
                size += step * step
                squared_norm[o] -= 2 * step * response[o, i]
                spent[o, i] += abs(step)
                collected[o, i] += step
            matrix, own, moved = grams[o], outputs[o], response[o]
            for b in range(batch.size):
                i, step = batch[b], g[b, o]
                row = matrix[i]
                for c in range(b):
                    squared_norm[o] += 2 * step * g[c, o] * row[batch[c]]
                squared_norm[o] += step * step * row[i]
                for j in range(own.size):
                    own[j] -= step * row[j]
                    moved[j] -= step * row[j]
            path[o] += np.sqrt(size)
            ready |= path[o] >= due[o]
        if ready:
            return t + 1
    return last


@njit(nogil=True, cache=True)
def _slope(f, y, loss, out):
    """∂ℓ/∂f of one sample."""
    if loss == 0:
        for o in range(f.size):
            out[o] = f[o] - y[o]
    elif loss == 1:
        for o in range(f.size):
            t = y[o] * f[o]
            out[o] = -y[o] / (1 + np.exp(t)) if t < 0 else -y[o] * np.exp(-t) / (1 + np.exp(-t))
    else:
        largest = f.max()
        total = 0.0
        for o in range(f.size):
            out[o] = np.exp(f[o] - largest)
            total += out[o]
        for o in range(f.size):
            out[o] = out[o] / total - y[o]
