"""Streams of samples that are seen once: no pattern is kept, only the neurons."""

from typing import Any

import numpy as np
from jaxtyping import Float

from widefit.nn import TwoLayer
from widefit.trackers.base import Stream
from widefit.trackers.counters import Counters
from widefit.trackers.descent import descend
from widefit.trackers.half_space.neuron_trees import NeuronTrees
from widefit.trackers.layer import Layer, write_readout
from widefit.trackers.minibatches import Minibatches


class DenseStream(Stream):
    """Stream of the dense tracker: a step costs 2 m b d flops for a batch of b; see `Dense`."""

    def __init__(self, name: str, network: TwoLayer, threads: int):
        self.name = name
        self.counters = Counters()
        self._network = network
        self._layer = Layer.trained_by(name, network)
        self._threads = threads
        self._moves_readout = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays of the network, which comes along."""
        return {**vars(self), "_layer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._layer = Layer.of(self._network)

    def descend(self, inputs: Float[np.ndarray, "n d"], minibatches: Minibatches) -> Float[np.ndarray, "visits k"]:
        self._moves_readout |= minibatches.trains_readout
        self.counters += Counters(pairs_evaluated=self._layer.weight.shape[0] * minibatches.samples.size)
        return descend(self._layer, inputs, minibatches, self._threads)

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        # Steps of length 0 move nothing, and compute the outputs.
        size = x.shape[0]
        still = Minibatches(
            samples=np.arange(size),
            edges=np.array([0, size]),
            rates=np.zeros(1),
            targets=np.zeros((size, self._layer.silent.size)),
            sample_weight=np.ones(size),
        )
        return self.descend(x, still)

    def publish(self) -> None:
        if self._moves_readout:
            write_readout(self._layer.coefficients, self._network)


class TreeStream(Stream):
    """Stream of the half-space tree: a step touches the neurons that fire on its batch; see `HalfSpaceTree`."""

    caches = True

    def __init__(self, name: str, leaf_size: int, network: TwoLayer, threads: int):
        self.name = name
        self._network = network
        self._layer = Layer.trained_by(name, network)
        self._trees = NeuronTrees(self._layer, leaf_size, threads)
        self._moves_readout = False

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays of the network, which comes along."""
        return {**vars(self), "_layer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._layer = Layer.of(self._network)
        self._trees.attach(self._layer)

    @property
    def counters(self) -> Counters:
        """Operations so far."""
        return self._trees.counters

    @property
    def nbytes(self) -> int:
        """Memory of the trees."""
        return self._trees.nbytes

    def descend(self, inputs: Float[np.ndarray, "n d"], minibatches: Minibatches) -> Float[np.ndarray, "visits k"]:
        self._moves_readout |= minibatches.trains_readout
        return self._trees.descend(inputs, minibatches)

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        return self._trees.evaluate(x)

    def publish(self) -> None:
        self._trees.write_weights(self._layer.weight)
        if self._moves_readout:
            write_readout(self._layer.coefficients, self._network)

    def flush(self) -> None:
        self.publish()
        self._trees.refresh()
