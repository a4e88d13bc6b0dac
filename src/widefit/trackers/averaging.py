"""Average of the iterates of stochastic descent, at the cost of the neurons that move."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from widefit.nn import TwoLayer
from widefit.trackers.layer import write_readout


@dataclass
class IterateAverage:
    """Polyak-Ruppert averaging (Polyak and Juditsky 1992) in sums that change only where a step does (this project).

    Step s takes W to W_s = W_{s−1} − Δ_s. With N iterates averaged, n_s of them before step s, every W_t is W_T plus
    the steps after it, so that

        (1 / N) Σ_t W_t = W_T + (1 / N) Σ_s n_s Δ_s.

    Trackers add n_s Δ_s for the neurons that they move; the others cost nothing.

    Attributes
    ----------
    weight
        Σ_s n_s Δ_s of the first layer, shape (m, d).
    readout
        Σ_s n_s Δ_s of the coefficients a_r / √m, shape (m,); without entries where the second layer stays as it is.
    """

    weight: Float[np.ndarray, "m d"]
    readout: Float[np.ndarray, " _"]

    @classmethod
    def of(cls, network: TwoLayer, *, readout: bool) -> tuple["IterateAverage", TwoLayer]:
        """Return sums of no steps, and a copy of the network to take the steps: the network itself gets the average.

        Raises
        ------
        ValueError
            The network holds no weights.
        """
        if network.store != "array":
            raise ValueError('average takes a network that holds its weights; this one has store="regenerate"')
        width = network.width
        average = cls(np.zeros((width, network.in_features)), np.zeros(width if readout else 0))
        return average, copy.deepcopy(network)

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        return self.weight.nbytes + self.readout.nbytes

    def follow(self, rows: np.ndarray | slice, before: np.ndarray, after: np.ndarray, averaged: float) -> None:
        """Add a step that has moved some neurons, none twice, after so many averaged iterates."""
        self.weight[rows] += averaged * (before.astype(np.float64) - after)

    def write(self, iterate: TwoLayer, averaged: float, network: TwoLayer) -> None:
        """Write the average into a network; `iterate` has taken the steps, `averaged` iterates among them."""
        share = 1 / averaged if averaged else 0.0
        with torch.no_grad():
            network.weight.copy_(torch.from_numpy(iterate.weight.detach().cpu().numpy() + share * self.weight))
        if self.readout.size:
            write_readout(iterate.coefficients() + share * self.readout, network)

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums by name, for a checkpoint; not copied."""
        return {"average.weight": torch.from_numpy(self.weight), "average.readout": torch.from_numpy(self.readout)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the sums of `tensors()`."""
        self.weight[:] = tensors["average.weight"].cpu().numpy()
        self.readout[:] = tensors["average.readout"].cpu().numpy()
