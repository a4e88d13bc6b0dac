"""Cost of half-space trees over the neurons, for a sample of a step and for a prediction."""

import math

from widefit.trackers.cost import REFERENCE_THREADS, NeuronShape
from widefit.trackers.half_space.tree_descent import WORTH_THREADS

# Points of a leaf.
LEAF_SIZE = 64
# Measured on one core (AMD Zen 4), seconds. A neuron in a leaf that a step looks into, and more for each feature; a
# neuron that it moves, and more for each feature; what a sample takes besides.
_LOOK = 0.8e-9
_LOOK_FEATURE = 0.12e-9
_MOVE = 1e-9
_MOVE_FEATURE = 0.5e-9
_SAMPLE = 1.5e-6
# A neuron in a leaf that a prediction looks into, and more for each feature: in float64, at half the speed.
_PREDICTION_LOOK = 1.7e-9
_PREDICTION_LOOK_FEATURE = 2 * _LOOK_FEATURE
# A neuron and level of building, and more for each feature.
_SORT = 1e-8
_SORT_FEATURE = 2.5e-9


def opened_part(shape: NeuronShape) -> float:
    """Return the part of the neurons in leaves which the edge of a half-space cuts (measured on Gaussian weights).

    A plane through l leaves in d dimensions cuts about l^(1 − 1/d) of them.
    """
    leaves = max(1.0, shape.width / shape.outputs / LEAF_SIZE)
    return min(1.0, min(1.8, 0.5 + 0.2 * shape.features) * leaves ** (-1 / shape.features))


def seconds_of_a_step(shape: NeuronShape) -> float:
    """Return the time of a sample of a stochastic step that finds its neurons in trees."""
    looked = opened_part(shape) * (_LOOK + _LOOK_FEATURE * shape.features)
    moved = shape.firing * (_MOVE + _MOVE_FEATURE * shape.features)
    at_once = REFERENCE_THREADS if shape.width >= WORTH_THREADS else 1
    return _SAMPLE + shape.width * (looked + moved) / at_once


def seconds_of_a_prediction(shape: NeuronShape) -> float:
    """Return the time of f at one input; nodes that fire as a whole are not looked into."""
    look = _PREDICTION_LOOK + _PREDICTION_LOOK_FEATURE * shape.features
    return opened_part(shape) * shape.width * look / REFERENCE_THREADS


def seconds_of_a_build(shape: NeuronShape) -> float:
    """Return the time of trees over all neurons, with the sums of their nodes."""
    return shape.width * math.log2(max(2.0, shape.width)) * (_SORT + _SORT_FEATURE * shape.features)
