"""When to find the neurons that fire in a tree, and when to look at all of them."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit import trackers
from widefit.nn import TwoLayer
from widefit.plan.base import Choice, Plan
from widefit.plan.names import TRACKERS, resolve
from widefit.plan.two_layer import firing_probability

# Measured on one core (AMD Zen 4), seconds: products; a neuron and sample of a dense stochastic step and of a
# prediction in float64; a neuron in a leaf of the half-space tree that a prediction looks into; the same of a step, and
# more for each feature; a neuron that it moves, and more for each feature; what a sample takes besides; a neuron and
# level of building, and more for each feature. Neurons of a leaf.
_FLOPS = 1e11
_DENSE_NEURON, _DENSE_VALUE, _LOOK = 0.65e-9, 1.3e-9, 1.7e-9
_LOOK_IN_STEP, _LOOK_FEATURE, _TOUCH, _TOUCH_FEATURE, _SAMPLE = 0.8e-9, 0.12e-9, 1e-9, 0.5e-9, 1.5e-6
_SORT, _SORT_FEATURE, _LEAF = 1e-8, 2.5e-9, 64
# A tree has to promise more than a rough model can be wrong by.
_WORTHWHILE = 0.5


@dataclass(frozen=True)
class NeuronShape:
    """Sizes that decide what it costs to find the neurons that fire on an input.

    Attributes
    ----------
    features, width, outputs
        d, m, k.
    firing
        p, the expected part of the neurons that fire.
    """

    features: int
    width: int
    outputs: int
    firing: float

    @classmethod
    def of(cls, network: TwoLayer, inputs: Float[np.ndarray, "n d"]) -> "NeuronShape":
        """The shape of a network on inputs like these."""
        norm = float(np.sqrt(np.mean(np.einsum("ij,ij->i", inputs, inputs, dtype=np.float64))))
        probability = firing_probability(network.threshold, norm)
        return cls(network.in_features, network.width, network.out_features, probability)

    def opened(self) -> float:
        """Part of the neurons that stand in leaves which the edge of a half-space cuts (measured on Gaussian weights).

        A plane through l leaves in d dimensions cuts about l^(1 − 1/d) of them.
        """
        leaves = max(1.0, self.width / self.outputs / _LEAF)
        return min(1.0, min(1.8, 0.5 + 0.2 * self.features) * leaves ** (-1 / self.features))

    def seconds_of_a_dense_step(self, threads: int) -> float:
        """A sample of a stochastic step that looks at all neurons."""
        return self.width * (_DENSE_NEURON + 4 * self.features / _FLOPS) / threads

    def seconds_of_a_tree_step(self, threads: int) -> float:
        """A sample of a stochastic step that finds its neurons in trees."""
        looked = self.opened() * (_LOOK_IN_STEP + _LOOK_FEATURE * self.features)
        touched = self.firing * (_TOUCH + _TOUCH_FEATURE * self.features)
        at_once = threads if self.width >= trackers.WORTH_THREADS else 1
        return _SAMPLE + self.width * (looked + touched) / at_once

    def seconds_of_a_dense_prediction(self, threads: int) -> float:
        """f at one input, from all neurons, in float64."""
        return self.width * (_DENSE_VALUE + 4 * self.features / _FLOPS) / threads

    def seconds_of_a_tree_prediction(self, threads: int) -> float:
        """f at one input; nodes that fire as a whole are not looked into."""
        # In float64, which takes twice as long for each feature as the steps do.
        return self.opened() * self.width * (_LOOK + 2 * _LOOK_FEATURE * self.features) / threads

    def seconds_of_a_build(self) -> float:
        """Trees over all neurons, with the sums of their nodes."""
        return self.width * math.log2(max(2.0, self.width)) * (_SORT + _SORT_FEATURE * self.features)


def plan_stream(shape: NeuronShape, tracker: "str | trackers.Tracker", threads: int) -> "tuple[Plan, trackers.Tracker]":
    """Choose how a stream finds the neurons that fire.

    Parameters
    ----------
    shape
        Sizes of the network.
    tracker
        "auto", a name, or the object itself.
    threads
        Cores to be used.

    Raises
    ------
    ValueError
        An unknown name.
    """
    dense, tree = shape.seconds_of_a_dense_step(threads), shape.seconds_of_a_tree_step(threads)
    if tracker != "auto":
        chosen = resolve(tracker, TRACKERS)
        return Plan(flops_per_step=4.0 * shape.width * shape.features), chosen
    chosen = trackers.HalfSpaceTree() if tree < dense else trackers.Dense()
    reason = (
        f"with {shape.features} features a tree would look at {shape.opened():.0%} of the neurons: about "
        f"{tree * 1e6:.2g} µs a sample against {dense * 1e6:.2g} µs for looking at all on {threads} "
        f"{'core' if threads == 1 else 'cores'}"
    )
    return Plan((Choice("tracker", chosen.name, reason),), flops_per_step=4.0 * shape.width * shape.features), chosen


def plan_prediction(shape: NeuronShape, threads: int) -> tuple[int | None, Choice]:
    """From how many rows on predictions should come from trees over the neurons (None: never), and why."""
    dense, tree = shape.seconds_of_a_dense_prediction(threads), shape.seconds_of_a_tree_prediction(threads)
    said = f"{shape.features} features: a tree looks at {shape.opened():.0%} of the neurons"
    if tree > _WORTHWHILE * dense:
        return None, Choice("prediction", "dense", f"{said}, which takes it as long")
    rows = math.ceil(shape.seconds_of_a_build() / (dense - tree))
    return rows, Choice(
        "prediction", "half-space tree", f"{said}; it is built once, for {rows:,} rows or more at a time"
    )
