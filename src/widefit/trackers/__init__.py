"""Trackers: who fires on what. A tracker is one file here and one line below."""

from widefit.trackers.base import Displacement, Flips, Gram, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.certificate import Certificate
from widefit.trackers.dense import Dense
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.minibatches import LOSSES, Minibatches, check_targets

__all__ = [
    "LOSSES",
    "Certificate",
    "Chunk",
    "Dense",
    "Displacement",
    "FirePattern",
    "Flips",
    "Gram",
    "Grams",
    "Minibatches",
    "Tracker",
    "TrackerReport",
    "Tracking",
    "Trial",
    "Update",
    "check_targets",
    "partition",
]
