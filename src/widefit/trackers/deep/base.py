"""Interface of trackers of deep networks: a run knows who fires, and the rows of J, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from widefit.linalg.coupled_layer import Layer
from widefit.nn.deep import Deep
from widefit.trackers.base import Displacement, TrackerReport, Update


@dataclass(frozen=True)
class DeepTrial:
    """Effect of a step that has not been carried out.

    Attributes
    ----------
    outputs
        f after it, shape (n, k), float64.
    flips
        Pairs (neuron, sample) of all layers that change between firing and not.
    squared_norm
        ‖W − W₀‖² after it; 0 where the run is not anchored.
    payload
        Data that the run needs to commit.
    """

    outputs: Float[np.ndarray, "n k"]
    flips: int
    squared_norm: float
    payload: Any


class DeepTracking(ABC):
    """Run over a deep network and its samples.

    Attributes
    ----------
    outputs
        f, shape (n, k), float64, at the committed weights.
    wants_image
        True where `propose` of an anchored run needs H g.
    """

    outputs: Float[np.ndarray, "n k"]
    wants_image: ClassVar[bool] = False

    @abstractmethod
    def signals(self) -> Any:
        """Return Δ_1, …, Δ_L at the committed weights: derivatives of the outputs by z_l, where a neuron fires."""

    @abstractmethod
    def factors(self) -> Sequence[Layer]:
        """Return the rows of J, layer by layer, at the committed weights."""

    @property
    @abstractmethod
    def displacement(self) -> Displacement | None:
        """Displacement of the committed weights from W₀, outputs in one column; None unless the run is anchored."""

    @abstractmethod
    def propose(self, update: Update, image: Float[np.ndarray, " nk"] | None = None) -> DeepTrial:
        """Find out the effect of an update, g and shrink of one column; trials before it are void.

        Parameters
        ----------
        update
            The step.
        image
            H g at the committed weights, where the run `wants_image`.
        """

    @abstractmethod
    def commit(self, trial: DeepTrial) -> None:
        """Carry the latest trial out."""

    @abstractmethod
    def publish(self) -> None:
        """Write the committed weights into the network."""

    @abstractmethod
    def finish(self) -> None:
        """Leave the network with the committed weights, and without anything that the run keeps in it."""

    @abstractmethod
    def report(self) -> TrackerReport:
        """Return the operations so far, and the memory held beside the network."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return what a run over the same network goes on from to the same bits."""

    @contextmanager
    def materialized(self) -> Iterator[None]:
        """Give the network the committed weights inside the context."""
        self.publish()
        yield


class DeepTracker(ABC):
    """Tracker of deep networks."""

    name: str

    @abstractmethod
    def start(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        threads: int = 1,
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ) -> DeepTracking:
        """Find who fires in a network.

        Parameters
        ----------
        network
            Trained in place.
        inputs
            X, contiguous, in the dtype of the network.
        threads
            Cores to use; no result depends on it.
        anchored
            Keep W − W₀, for updates that shrink it.
        state
            `DeepTracking.state` of an earlier run over the same network and inputs, to continue from.
        """
