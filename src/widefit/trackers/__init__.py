"""Trackers: which neurons fire on which samples. A tracker is one file or folder here and one line below."""

from widefit.trackers.averaging import IterateAverage
from widefit.trackers.base import (
    Displacement,
    Flips,
    Gram,
    Grams,
    Stream,
    SummedGrams,
    Tracker,
    TrackerReport,
    Tracking,
    Trial,
    Update,
)
from widefit.trackers.certificate import Certificate
from widefit.trackers.dense import Dense
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.half_space.half_space_tree import HalfSpaceTree
from widefit.trackers.layer import features_squared, refuse_unstored
from widefit.trackers.masks import MaskTracking, Torch
from widefit.trackers.minibatches import Adversary, Minibatches, attack
from widefit.trackers.shared import SharedTracking
from widefit.trackers.trees.data_tree import DataTree
from widefit.trackers.trees.weight_tree import WeightTree
from widefit.trackers.verlet.verlet_list import VerletList

__all__ = [
    "Adversary",
    "Certificate",
    "Chunk",
    "DataTree",
    "Dense",
    "Displacement",
    "FirePattern",
    "Flips",
    "Gram",
    "Grams",
    "HalfSpaceTree",
    "IterateAverage",
    "MaskTracking",
    "Minibatches",
    "SharedTracking",
    "Stream",
    "SummedGrams",
    "Torch",
    "Tracker",
    "TrackerReport",
    "Tracking",
    "Trial",
    "Update",
    "VerletList",
    "WeightTree",
    "attack",
    "features_squared",
    "partition",
    "refuse_unstored",
]
