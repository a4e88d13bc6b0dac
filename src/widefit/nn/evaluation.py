"""Outputs and gradients of a two-layer network in NumPy: a span of neurons a thread, and none of them spins.

torch divides each product among its threads, and a thread that has done its part spins until the last has: where other
work holds a processor, a sum over many small blocks takes a hundred times as long as it should.
"""

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float

from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn.blocks import block_sizes
from widefit.nn.two_layer import TwoLayer

# First and last of some neurons.
Span = tuple[int, int]


def evaluate(network: TwoLayer, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
    """Return f(x) in the dtype of x; the order of the sums does not depend on the number of threads.

    Parameters
    ----------
    network
        With either store.
    x
        Inputs, float32 or float64.
    """

    def outputs_of(block: Span, weight: np.ndarray) -> np.ndarray:
        z = x @ weight.T
        z -= x.dtype.type(network.threshold)
        np.maximum(z, 0, out=z)
        z += x.dtype.type(network.activation.silent)
        return z @ network.readout_rows(*block).astype(x.dtype)

    total = network.summed(_sum(network, x, (0, network.width), outputs_of))
    return total / x.dtype.type(network.norm)


def input_gradients(network: TwoLayer, x: Float[np.ndarray, "q d"], output: int) -> Float[np.ndarray, "q d"]:
    """Return the gradient of an output in x at every input, Σ_r (a_r / √m) 1[⟨w_r, x⟩ > b] w_r over its own neurons."""

    def gradients_of(block: Span, weight: np.ndarray) -> np.ndarray:
        fires = x @ weight.T > network.threshold
        return fires.astype(x.dtype) @ (network.coefficients(*block).astype(x.dtype)[:, None] * weight)

    return _sum(network, x, network.neurons_of(output), gradients_of)


def _sum(network: TwoLayer, x: np.ndarray, neurons: Span, term: Callable[[Span, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the sum of the terms of blocks of neurons, each given with its weights in the dtype of x."""
    drawn, rows = block_sizes(*x.shape)

    def part(span: Span) -> np.ndarray:
        weight = network.rows(*span)
        blocks = _ranges(*span, rows)
        return reduce(np.add, (term((a, b), weight[a - span[0] : b - span[0]].astype(x.dtype)) for a, b in blocks))

    with serial_blas():
        return reduce(np.add, ordered_map(part, _ranges(*neurons, drawn), torch.get_num_threads()))


def _ranges(first: int, last: int, size: int) -> Iterator[Span]:
    """Yield consecutive ranges of so many neurons, the last of fewer."""
    for low in range(first, last, size):
        yield low, min(low + size, last)
