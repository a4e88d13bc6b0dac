"""Columns on which the predictions of a network rest."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float

from widefit.nn import Deep, TwoLayer
from widefit.nn.evaluation import input_gradients

# Rows of which gradients are taken.
_ROWS = 256


def column_importances(
    network: TwoLayer | Deep,
    inputs: Float[np.ndarray, "r d"],
    constant: float,
    mixing: Float[np.ndarray, "columns mixed"] | None = None,
) -> Float[np.ndarray, " d"]:
    """Return the diagonal of the average gradient outer product E[∇f ∇fᵀ] of the columns, summing to 1.

    This is the matrix of recursive feature machines (Radhakrishnan et al. 2024), here with columns as the input map
    leaves them and in units of their standard deviations, so that the scale of a column has no influence.

    Parameters
    ----------
    network
        Trained.
    inputs
        Rows on the sphere.
    constant
        Last coordinate of rows before they are put on the sphere.
    mixing
        The matrix by which the input map mixes columns, of full column rank; None for the identity.
    """
    norm = constant / inputs[:, -1:]
    columns = inputs[:, :-1] * norm
    if mixing is not None:
        # Of fewer components than columns: what they tell of the columns.
        columns = np.linalg.lstsq(mixing.T, columns.T)[0].T
    x = inputs[:_ROWS]
    total = np.zeros(columns.shape[1])
    for slope in _slopes(network, x):
        # x = a / ‖a‖, so ∇_a f = (I − x xᵀ) ∇_x f / ‖a‖.
        across = slope - np.sum(slope * x, axis=1, keepdims=True) * x
        along = (across / norm[:_ROWS])[:, :-1]
        total += np.mean((along if mixing is None else along @ mixing.T) ** 2, axis=0)
    importance = total * columns.var(axis=0)
    return importance / max(float(importance.sum()), np.finfo(float).tiny)


def _slopes(network: TwoLayer | Deep, x: Float[np.ndarray, "r d"]) -> Iterator[Float[np.ndarray, "r d"]]:
    """Yield the gradients of each output in its inputs."""
    if isinstance(network, TwoLayer):
        for output in range(network.out_features):
            yield input_gradients(network, x, output)
        return
    with torch.enable_grad():
        points = torch.from_numpy(x).requires_grad_()
        for values in network(points).unbind(dim=1):
            yield torch.autograd.grad(values.sum(), points, retain_graph=True)[0].numpy()
