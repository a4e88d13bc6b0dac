"""Trackers: who fires on what. A tracker is one file here and one line below."""

from widefit.trackers.base import Displacement, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.dense import Dense
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition

__all__ = [
    "Chunk",
    "Dense",
    "Displacement",
    "FirePattern",
    "Tracker",
    "TrackerReport",
    "Tracking",
    "Trial",
    "Update",
    "partition",
]
