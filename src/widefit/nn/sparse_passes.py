"""Forward and backward passes of a deep network, every layer from the columns of its active inputs alone."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from widefit.kernels.sparse import rows as sparse
from widefit.kernels.threads import for_ranges, serial_blas
from widefit.linalg.sparse_rows import SparseRows
from widefit.nn.deep import Deep

# Neurons a task, whatever the number of threads.
_NEURONS = 512


def forward(
    network: Deep, input_weights: Sequence[np.ndarray], inputs: Float[np.ndarray, "n d"], threads: int = 1
) -> tuple[list[SparseRows], Float[np.ndarray, "n k"]]:
    """Return h_1, …, h_L and f, in float64, with the given A_l and the W_l of the network: 2 p m² flops a sample."""
    activations: list[SparseRows] = []
    outputs = np.zeros((inputs.shape[0], network.out_features))
    for layer, linear in enumerate([None, *network.low_rank()]):
        if linear is None:
            z = np.zeros((inputs.shape[0], network.hidden_layer_sizes[0]), inputs.dtype)
        else:
            z = linear.query(activations[-1], threads)
            z *= z.dtype.type(network.hidden_factor(layer))
        if layer < len(input_weights):
            _add_fed(z, inputs, input_weights[layer], network.input_factor(layer), threads)
        rows = SparseRows.above(z, network.thresholds[layer], network.scales[layer], threads)
        activations.append(rows)
        outputs += rows.times(network.readouts[layer].detach().numpy())
    return activations, outputs


def backward(
    network: Deep, activations: Sequence[SparseRows], threads: int = 1
) -> list[Float[np.ndarray, "_entries k"]]:
    """Return Δ_1, …, Δ_L, derivatives of f by z_l at the entries of h_l: p² m² products a sample and output."""
    signals: list[np.ndarray] = []
    upper = [*network.low_rank(), None]
    for layer in reversed(range(len(activations))):
        pattern = activations[layer]
        linear = upper[layer]
        slope = network.readouts[layer].detach().numpy()[pattern.index]
        if linear is not None:
            pulled = linear.pull_back(activations[layer + 1], signals[-1], pattern, threads)
            slope += pulled * pulled.dtype.type(network.hidden_factor(layer + 1))
        signals.append(slope * slope.dtype.type(network.scales[layer]))
    return signals[::-1]


def add_outer(
    weight: Float[np.ndarray, "m d"], U: SparseRows, inputs: Float[np.ndarray, "n d"], factor: float, threads: int = 1
) -> None:
    """Add factor · Uᵀ X to A for sparse U (n × m): p m d operations a sample."""
    columns = U.scaled(np.full(U.rows, factor)).by_column

    def add(first: int, last: int) -> None:
        sparse.add_dense_to_rows(weight, columns.start, columns.row, columns.value, inputs, first, last)

    for_ranges(add, weight.shape[0], _NEURONS, threads)


def _add_fed(z: np.ndarray, inputs: np.ndarray, weight: np.ndarray, factor: float, threads: int) -> None:
    """Add factor · X Aᵀ to z, in blocks of neurons."""
    scale = z.dtype.type(factor)

    def add(first: int, last: int) -> None:
        z[:, first:last] += scale * (inputs @ weight[first:last].T)

    with serial_blas():
        for_ranges(add, weight.shape[0], _NEURONS, threads)
