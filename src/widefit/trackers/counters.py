"""Counts of the operations of tracking."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """Operations so far, as in `TrackerReport`."""

    full_passes: int = 0
    pairs_evaluated: int = 0
    nodes_visited: int = 0
    keys_updated: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(
            self.full_passes + other.full_passes,
            self.pairs_evaluated + other.pairs_evaluated,
            self.nodes_visited + other.nodes_visited,
            self.keys_updated + other.keys_updated,
        )
