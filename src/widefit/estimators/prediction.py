"""Network outputs at many inputs: from trees over the neurons where they pay, elsewhere from all that do not cancel."""

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

# Part of the neurons beyond which those that are left are not worth a copy.
_MOST_LEFT = 0.9


class Predictor:
    """Evaluate a trained network in float64; the two ways differ by the rounding of their sums.

    Two neurons of a pair that training has not moved are equal and of opposite signs: they are passed over.

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
        self._left: TwoLayer | None = None
        self._versions_of_left: tuple[int, ...] = ()

    def __call__(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return f at some inputs."""
        if self._current() is None and self.rows is not None and x.shape[0] >= self.rows and self._fits():
            self._build()
        trees = self._current()
        if trees is not None:
            return trees.evaluate(x)
        if self._versions_of_left != self._of_network():
            self._left = _without_cancelling(self._network)
            self._versions_of_left = self._of_network()
        if self._left is None:
            return evaluate(self._network, x)
        return evaluate(self._left, x) * (self._left.norm / self._network.norm)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what can be made again."""
        return {**vars(self), "_trees": None, "_left": None, "_versions_of_left": ()}

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


def _without_cancelling(network: TwoLayer) -> TwoLayer | None:
    """Return the neurons that do not cancel in pairs, as a network of their own; None where they are nearly all."""
    weight, readout = network.weight.detach(), network.readout.detach()
    pairs = 2 * (len(weight) // 2)
    cancel = (weight[:pairs:2] == weight[1:pairs:2]).all(dim=1) & (readout[:pairs:2] == -readout[1:pairs:2]).all(dim=1)
    left = torch.ones(len(weight), dtype=torch.bool)
    left[:pairs] = ~cancel.repeat_interleave(2)
    if not 0 < int(left.sum()) <= _MOST_LEFT * len(weight):
        return None
    convention = network.activation.convention
    return TwoLayer.from_tensors(weight[left], readout[left], threshold=network.threshold, convention=convention)
