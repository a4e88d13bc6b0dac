"""What a tracker is: it knows at every moment which neurons fire on which samples."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from widefit.nn import TwoLayer
from widefit.trackers.fire_pattern import FirePattern


@dataclass(frozen=True)
class Update:
    """W ← W − shrink (W − W₀) − Jᵀ g: every step that a rule can ask for.

    Attributes
    ----------
    g
        Shape (n, k), float64, sample space.
    shrink
        Shape (k,), float64: pull of the neurons of each output towards their initial weights, 0 for none, 1 for all the
        way.
    """

    g: Float[np.ndarray, "n k"]
    shrink: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class Displacement:
    """Where W stands from W₀, seen from sample space.

    Attributes
    ----------
    response
        J (W − W₀), shape (n, k), with J at the current weights.
    squared_norm
        ‖W − W₀‖² of the neurons of each output, shape (k,).
    """

    response: Float[np.ndarray, "n k"]
    squared_norm: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class Trial:
    """What an update would do; nothing has been changed yet.

    Attributes
    ----------
    update
        The update that was tried.
    outputs
        f after it, shape (n, k), float64.
    flips
        Pairs (neuron, sample) that change between firing and not.
    rebased
        True when all neurons were looked at.
    displacement
        After the update; None unless the run was started with an anchor.
    payload
        What the tracker needs to commit.
    """

    update: Update
    outputs: Float[np.ndarray, "n k"]
    flips: int
    rebased: bool
    displacement: Displacement | None
    payload: Any


@dataclass(frozen=True)
class TrackerReport:
    """What tracking has cost so far: the same counts for every tracker, so that they can be compared.

    Attributes
    ----------
    tracker
        Name.
    full_passes
        Times all neurons were looked at.
    pairs_evaluated
        Pre-activations ⟨w_r, x_i⟩ computed.
    flips
        Pairs that changed in committed updates.
    firing_pairs
        Pairs that fire now.
    bytes_held
        Memory of the tracker's own state, without the network's weights.
    """

    tracker: str
    full_passes: int
    pairs_evaluated: int
    flips: int
    firing_pairs: int
    bytes_held: int


class Tracking(ABC):
    """One run of a tracker: a network, its samples, and who fires.

    Attributes
    ----------
    outputs
        f, shape (n, k), float64, at the committed weights.
    displacement
        Of the committed weights from W₀; None unless the run has an anchor.
    """

    outputs: Float[np.ndarray, "n k"]
    displacement: Displacement | None

    @abstractmethod
    def propose(self, update: Update) -> Trial:
        """Find out what an update would do."""

    @abstractmethod
    def commit(self, trial: Trial) -> None:
        """Carry a trial out. The trials proposed before it are void."""

    @abstractmethod
    def patterns(self) -> Sequence[FirePattern]:
        """The fire pattern, chunk by chunk, in the order of the neurons."""

    @abstractmethod
    def report(self) -> TrackerReport:
        """Operations and memory so far."""

    def fired_samples(self, neuron: int) -> Int[np.ndarray, " k_r"]:
        """Ascending indices of the samples that a neuron fires on."""
        for pattern in self.patterns():
            if pattern.chunk.first <= neuron < pattern.chunk.last:
                return pattern.fired(neuron)
        raise IndexError(f"neuron {neuron} is not one of the network's")

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        """Ascending indices of the neurons that fire on a sample."""
        return np.concatenate(
            [pattern.chunk.first + np.flatnonzero(pattern.dense()[:, sample]) for pattern in self.patterns()]
        )


class Tracker(ABC):
    """A small immutable object with its settings as fields."""

    name: str

    @abstractmethod
    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
    ) -> Tracking:
        """Find the fire pattern of a network.

        Parameters
        ----------
        network
            Its weight is updated in place by `Tracking.commit`.
        inputs
            X, contiguous, in the dtype of the weights.
        anchor
            W₀ for updates that shrink towards it, and for `Displacement`.
        threads
            Cores to use; the result does not depend on it.
        """
