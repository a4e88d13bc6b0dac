"""Half-space tree: balls whose neurons all fire, or none, are not opened."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.nn import TwoLayer
from widefit.trackers.base import Stream, Tracker, Tracking
from widefit.trackers.cost import Cost, NeuronShape, Workload
from widefit.trackers.half_space.cost import LEAF_SIZE, seconds_of_a_step
from widefit.trackers.half_space.over_samples import DataHalfSpaces
from widefit.trackers.half_space.over_weights import WeightHalfSpaces
from widefit.trackers.streams import TreeStream


@dataclass(frozen=True)
class HalfSpaceTree(Tracker):
    """Half-space reporting in a tree of balls (arXiv 2307.06565 and 2110.04622; balls and drift: this project).

    Pays off in low dimension (d ≤ 10: coordinates, physics) and on clustered data; `TrackerReport.nodes_visited` and
    `pairs_evaluated` show when it does not.

    Parameters
    ----------
    over
        "weights": a tree over the m neurons, which follows them as they move. A trial costs one query a sample; a
        stochastic step costs one query a sample of the batch and an update of the neurons that fire on it. The run also
        answers inputs that it has not seen: `query` and `evaluate` of `WeightHalfSpaces`. Memory: the weights three
        times.
        "data": a tree over the n samples. A trial costs one query a neuron that fires on a sample with g ≠ 0.
    leaf_size
        Points of a leaf, at most: below it every product is computed.

    Raises
    ------
    ValueError
        Another `over`, or a leaf size below 1.
    """

    over: str = "weights"
    leaf_size: int = LEAF_SIZE
    name: str = "half-space-tree"

    def __post_init__(self) -> None:
        if self.over not in ("weights", "data"):
            raise ValueError(f'over must be "weights" or "data", got {self.over!r}')
        if self.leaf_size < 1:
            raise ValueError(f"leaf_size must be at least 1, got {self.leaf_size}")

    @property
    def accepts_new_points(self) -> bool:
        return self.over == "weights"

    def cost(self, work: Workload) -> Cost:
        return Cost(work.pattern_bytes + 3 * work.weight_bytes + work.pairs // 4, math.inf)

    def seconds_in_a_stream(self, shape: NeuronShape) -> float:
        return seconds_of_a_step(shape) if self.over == "weights" else math.inf

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> Tracking:
        runs = {"weights": WeightHalfSpaces, "data": DataHalfSpaces}
        return runs[self.over](self.name, self.leaf_size, network, inputs, anchor, threads)

    @property
    def trains_readout(self) -> bool:
        return self.over == "weights"

    def stream(self, network: TwoLayer, *, threads: int = 1) -> Stream:
        if self.over != "weights":
            return super().stream(network, threads=threads)
        return TreeStream(self.name, self.leaf_size, network, threads)
