"""Network outputs at many inputs: from trees over the neurons where they pay, from all neurons elsewhere."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.nn.evaluation import evaluate
from widefit.plan.neurons import plan_prediction
from widefit.trackers.cost import NeuronShape
from widefit.trackers.half_space.cost import LEAF_SIZE
from widefit.trackers.half_space.neuron_trees import NeuronTrees
from widefit.trackers.layer import Layer


class Predictor:
    """Evaluate a trained network in float64; the two ways differ by the rounding of their sums.

    Parameters
    ----------
    network
        With store="array". Code that writes its weights without telling torch has to make a new predictor.
    norm
        Norm of the inputs to come.

    Attributes
    ----------
    choice
        The way that was chosen, and the reason.
    rows
        Inputs at a time from which on trees are built; None: never.
    """

    def __init__(self, network: TwoLayer, norm: float = 1.0):
        self._network = network
        shape = NeuronShape.of(network, np.full((1, 1), norm))
        self.rows, self.choice = plan_prediction(shape)
        self._trees: NeuronTrees | None = None
        self._versions: tuple[int, ...] = ()

    def __call__(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return f at some inputs."""
        if self._current() is None and self.rows is not None and x.shape[0] >= self.rows and self._fits():
            self._build()
        trees = self._current()
        if trees is not None:
            return trees.evaluate(x)
        return evaluate(self._network, x)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the trees."""
        return {**vars(self), "_trees": None}

    def _current(self) -> NeuronTrees | None:
        return self._trees if self._versions == self._of_network() else None

    def _build(self) -> None:
        layer = Layer.of(self._network)
        exact = Layer(
            layer.weight.astype(np.float64),
            None,
            layer.coefficients,
            np.float64(self._network.threshold),
            layer.silent,
            layer.groups,
        )
        self._trees = NeuronTrees(exact, LEAF_SIZE, torch.get_num_threads())
        self._versions = self._of_network()

    def _of_network(self) -> tuple[int, ...]:
        """Return numbers that change with every change of the network that torch knows of."""
        network = self._network
        return network.weight._version, network.readout._version, network.weight.data_ptr(), network.readout.data_ptr()

    def _fits(self) -> bool:
        return 6 * 8 * self._network.weight.nelement() < available_memory()
