"""What stochastic steps act on: the arrays of a two-layer network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from widefit.nn import TwoLayer


@dataclass(frozen=True)
class Layer:
    """What the steps act on.

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
        """The arrays of a network: its own weights, and a copy of its coefficients."""
        weight = network.weight.detach().numpy()
        groups = [network.neurons_of(output) for output in range(network.out_features)]
        threshold = weight.dtype.type(network.threshold)
        return cls(weight, None, network.coefficients(), threshold, network.silent_outputs(), groups)


def write_readout(coefficients: Float[np.ndarray, " m"], network: TwoLayer) -> None:
    """Make a network's readout what its coefficients a_r / √m say."""
    with torch.no_grad():
        for output in range(network.out_features):
            own = slice(*network.neurons_of(output))
            entries = torch.from_numpy(coefficients[own] * math.sqrt(network.width))
            network.readout[own, output] = entries.to(network.readout.dtype)
