"""Arrays of a two-layer network, as trackers train them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from widefit.nn import TwoLayer

# Pre-activations of a block.
_BLOCK_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Layer:
    """Arrays of a two-layer network.

    Attributes
    ----------
    weight
        W, changed in place.
    anchor
        W₀ for steps that shrink towards it.
    coefficients
        a_r / √m; changed in place by steps that train the second layer.
    threshold
        b, in the dtype of W.
    silent
        Outputs where nothing fires.
    groups
        Half-open range of the neurons of each output.
    """

    weight: Float[np.ndarray, "m d"]
    anchor: Float[np.ndarray, "m d"] | None
    coefficients: Float[np.ndarray, " m"]
    threshold: np.floating
    silent: Float[np.ndarray, " k"]
    groups: Sequence[tuple[int, int]]

    @classmethod
    def of(cls, network: TwoLayer) -> "Layer":
        """Return the arrays of a network: its own weights, and a copy of its coefficients."""
        weight = network.weight.detach().numpy()
        groups = [network.neurons_of(output) for output in range(network.out_features)]
        threshold = weight.dtype.type(network.threshold)
        return cls(weight, None, network.coefficients(), threshold, network.silent_outputs(), groups)

    @classmethod
    def trained_by(cls, tracker: str, network: TwoLayer, anchor: Float[np.ndarray, "m d"] | None = None) -> "Layer":
        """Return the arrays of a network that a tracker moves.

        Raises
        ------
        ValueError
            The network holds no weights.
        """
        refuse_unstored(tracker, network)
        return replace(cls.of(network), anchor=anchor)

    def anchor_of(self, rows: slice) -> Float[np.ndarray, "rows d"]:
        """Return W₀ of some neurons, for the kernels; without rows where there is none."""
        return self.weight[:0] if self.anchor is None else self.anchor[rows]


def write_readout(coefficients: Float[np.ndarray, " m"], network: TwoLayer) -> None:
    """Write coefficients a_r / √m into a network's readout, and round them as the network does."""
    with torch.no_grad():
        for output in range(network.out_features):
            own = slice(*network.neurons_of(output))
            entries = torch.from_numpy(coefficients[own] * network.norm)
            network.readout[own, output] = entries.to(network.readout.dtype)
    coefficients[:] = network.coefficients()


def features_squared(network: TwoLayer, inputs: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Return the largest over the outputs of Σ_r φ(⟨w_r, x_i⟩)² / m, r the neurons of the output."""
    totals = np.zeros((network.out_features, inputs.shape[0]))
    rows = max(64, _BLOCK_NUMBERS // inputs.shape[0])
    for output in range(network.out_features):
        first, last = network.neurons_of(output)
        for low in range(first, last, rows):
            features = np.maximum(network.rows(low, min(low + rows, last)) @ inputs.T - network.threshold, 0)
            totals[output] += np.einsum("ri,ri->i", features, features, dtype=np.float64)
    return totals.max(axis=0) / network.width


def refuse_unstored(tracker: str, network: TwoLayer) -> None:
    """Raise a ValueError for a network that holds no weights to move."""
    if network.store != "array":
        raise ValueError(
            f'tracker "{tracker}" moves weights in memory, and this network holds none (store="regenerate"); '
            'use tracker="certificate", or train network.materialize()'
        )
