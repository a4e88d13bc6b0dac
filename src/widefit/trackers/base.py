"""Interface of trackers: a tracker knows at every moment which neurons fire on which samples."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from widefit.nn import TwoLayer
from widefit.trackers.averaging import IterateAverage
from widefit.trackers.cost import Cost, NeuronShape, Steps, Workload
from widefit.trackers.counters import Counters
from widefit.trackers.fire_pattern import FirePattern
from widefit.trackers.minibatches import Minibatches


@dataclass(frozen=True)
class Update:
    """Step W ← W − shrink (W − W₀) − Jᵀ g: every step that a rule can ask for.

    Attributes
    ----------
    g
        Shape (n, k), float64, in sample space.
    shrink
        Shape (k,), float64: pull of the neurons of each output towards their initial weights, from 0, none, to 1, all
        the way.
    image
        H g, shape (n, k), float64, at the weights before the update; None where nobody has found it yet.
    """

    g: Float[np.ndarray, "n k"]
    shrink: Float[np.ndarray, " k"]
    image: Float[np.ndarray, "n k"] | None = None

    @classmethod
    def none(cls, samples: int, outputs: int) -> "Update":
        """Return the update that moves nothing."""
        return cls(np.zeros((samples, outputs)), np.zeros(outputs))


@dataclass(frozen=True)
class Displacement:
    """Displacement of W from W₀, seen from sample space.

    Attributes
    ----------
    response
        J (W − W₀), shape (n, k), with J at the current weights.
    squared_norm
        ‖W − W₀‖² of the neurons of each output, shape (k,).
    """

    response: Float[np.ndarray, "n k"]
    squared_norm: Float[np.ndarray, " k"]

    @classmethod
    def none(cls, samples: int, outputs: int) -> "Displacement":
        """Return the displacement of W₀ itself, in arrays of its own."""
        return cls(np.zeros((samples, outputs)), np.zeros(outputs))


@dataclass(frozen=True)
class Flips:
    """Pairs that change between firing and not, ordered by neuron and, for a neuron, by sample.

    Attributes
    ----------
    neurons, samples
        The pairs.
    fires
        True where the pair fires after the change.
    """

    neurons: Int[np.ndarray, " q"]
    samples: Int[np.ndarray, " q"]
    fires: Bool[np.ndarray, " q"]

    def __len__(self) -> int:
        return self.neurons.size


@runtime_checkable
class Gram(Protocol):
    """Gram matrix H of one output at the committed weights, as far as a tracker needs it.

    Attributes
    ----------
    counts
        Upper triangle of N with H = a² / m K ∘ N, or of H / K in float64 where |a| differs between neurons; None where
        H is applied without it.
    """

    @property
    def counts(self) -> np.ndarray | None: ...

    def matvec(self, vectors: Tensor) -> Tensor:
        """H v."""
        ...


@runtime_checkable
class Grams(Protocol):
    """Gram matrices of all outputs at the committed weights of a run."""

    def __call__(self, output: int) -> Gram:
        """Return H of an output; the caller must not change it."""
        ...

    def follow(self, changes: Flips | None) -> None:
        """Prepare for flips that the run is about to commit; None: the pattern is new as a whole."""
        ...


@runtime_checkable
class SummedGrams(Grams, Protocol):
    """Gram matrices of all neurons, which several processes share out.

    Attributes
    ----------
    own
        Those of the neurons of this process.
    """

    own: Grams


@dataclass(frozen=True)
class Trial:
    """Effect of an update that has not been carried out.

    Attributes
    ----------
    update
        The update that was tried.
    outputs
        f after it, shape (n, k), float64.
    flips
        Pairs (neuron, sample) that change between firing and not.
    rebased
        True when all neurons were evaluated.
    displacement
        Displacement after the update; None unless the run was started with an anchor.
    payload
        Data that the tracker needs to commit.
    changes
        The pairs that change, where the tracker knows them one by one; None after a full pass, or where they are more
        than it pays to list.
    """

    update: Update
    outputs: Float[np.ndarray, "n k"]
    flips: int
    rebased: bool
    displacement: Displacement | None
    payload: Any
    changes: Flips | None = None


@dataclass(frozen=True)
class TrackerReport:
    """Cost of tracking so far: the same counts for every tracker, so that they can be compared.

    Attributes
    ----------
    tracker
        Name of the tracker.
    full_passes
        Number of times that all neurons were evaluated.
    pairs_evaluated
        Pre-activations ⟨w_r, x_i⟩ computed.
    nodes_visited
        Nodes of search trees, or entries of certificates, that queries visited.
    keys_updated
        Stored keys (pre-activations, weights, certificates) that were written anew.
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
    nodes_visited: int = 0
    keys_updated: int = 0


class Tracking(ABC):
    """Run of a tracker: a network, its samples, and who fires.

    Attributes
    ----------
    outputs
        f, shape (n, k), float64, at the committed weights.
    displacement
        Displacement of the committed weights from W₀; None unless the run has an anchor.
    """

    outputs: Float[np.ndarray, "n k"]
    displacement: Displacement | None

    @abstractmethod
    def propose(self, update: Update, gram: Grams) -> Trial:
        """Find out the effect of an update.

        Parameters
        ----------
        update
            The step.
        gram
            Gram matrices at the committed weights.
        """

    @abstractmethod
    def commit(self, trial: Trial) -> None:
        """Carry a trial out. The trials proposed before it are void."""

    @abstractmethod
    def patterns(self) -> Sequence[FirePattern]:
        """Return the fire pattern, chunk by chunk, in the order of the neurons."""

    @abstractmethod
    def report(self) -> TrackerReport:
        """Return the operations and the memory so far."""

    @abstractmethod
    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        """Write the committed weights W into `out`, which may be the network's own array."""

    @abstractmethod
    def finish(self) -> None:
        """Bring the network's weights up to date and end the run."""

    @contextmanager
    def materialized(self) -> Iterator[None]:
        """Give the network the committed weights inside the context."""
        yield

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps, with no way back, and return the number of flips.

        `outputs`, `displacement` and `patterns` are up to date when it returns. This default follows every step and
        counts every flip; a tracker that evaluates the batch alone counts the pairs that differ in the end. When the
        steps train the second layer, the network's readout is up to date as well, and `gram` is not: the caller needs
        another. For an average of the iterates the default compares all weights in each step, a tracker those that
        move.

        Raises
        ------
        ValueError
            The steps train the second layer, and the tracker does not.
        """
        if minibatches.trains_readout:
            raise ValueError(f"{type(self).__name__} keeps the second layer as it is")
        flips = 0
        for step in range(len(minibatches)):
            g = np.zeros_like(self.outputs)
            g[minibatches.batch(step)] = minibatches.g(step, self.outputs[minibatches.batch(step)])
            trial = self.propose(Update(g, np.full(g.shape[1], minibatches.pull(step))), gram)
            gram.follow(trial.changes)
            averaged, average = minibatches.kept(step)
            before = self._written(average)
            self.commit(trial)
            if average is not None:
                average.follow(slice(None), before, self._written(average), averaged)
            flips += trial.flips
        return flips

    def _written(self, average: IterateAverage | None) -> Float[np.ndarray, "_ _"]:
        """Return a copy of the weights, from which the move of a step follows; empty where no average asks for it."""
        out = np.empty((0, 0)) if average is None else np.empty_like(average.weight)
        if average is not None:
            self.write_weights(out)
        return out

    def state(self) -> dict[str, np.ndarray]:
        """Return what `Tracker.start` needs beside weights and anchor to continue to the same bits."""
        return {}

    def fired_samples(self, neuron: int) -> Int[np.ndarray, " k_r"]:
        """Return the ascending indices of the samples that a neuron fires on."""
        for pattern in self.patterns():
            if pattern.chunk.first <= neuron < pattern.chunk.last:
                return pattern.fired(neuron)
        raise IndexError(f"neuron {neuron} is not one of the network's")

    def fired_neurons(self, sample: int) -> Int[np.ndarray, " fired"]:
        """Return the ascending indices of the neurons that fire on a sample."""
        return np.concatenate(
            [pattern.chunk.first + np.flatnonzero(pattern.dense()[:, sample]) for pattern in self.patterns()]
        )


class Stream(ABC):
    """Stochastic steps over samples that are not known in advance: only the neurons are kept, memory does not grow.

    Attributes
    ----------
    name
        Name of the tracker.
    counters
        Operations so far.
    caches
        True where it goes on to other bits than a stream that begins from the network as it is.
    """

    name: str
    counters: Counters
    caches: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        """Memory held beside the network."""
        return 0

    @abstractmethod
    def descend(self, inputs: Float[np.ndarray, "n d"], minibatches: Minibatches) -> Float[np.ndarray, "visits k"]:
        """Take stochastic steps; return f at every visited sample before the step of its batch, visit by visit.

        Parameters
        ----------
        inputs
            Samples of the batches, contiguous, in the dtype of the weights.
        minibatches
            The batches; they do not shrink.
        """

    @abstractmethod
    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """Return f at some inputs, float64."""

    @abstractmethod
    def publish(self) -> None:
        """Bring the network up to date."""

    def flush(self) -> None:
        """Drop cached state, so that continuing and resuming from a checkpoint give the same bits."""
        self.publish()


class Tracker(ABC):
    """Way to know which neurons fire: a small immutable object with its settings as fields.

    Attributes
    ----------
    name
        Name of the tracker.
    defers_weights
        True where the network's weights stay as they were at the start until `Tracking.finish`; then the network need
        not hold them.
    shares_neurons
        True where it can follow the neurons of one process, each of several having its own.
    """

    name: str
    defers_weights: ClassVar[bool] = False
    shares_neurons: ClassVar[bool] = False

    @property
    def trains_readout(self) -> bool:
        """True where stochastic steps can train the second layer as well."""
        return False

    @property
    def accepts_new_points(self) -> bool:
        """True where a run can take steps at points that it was not started with."""
        return False

    def can_follow(self, work: Workload) -> bool:
        """Whether it can follow the steps on the network; most trackers move weights that the CPU holds."""
        if work.processes > 1 and not self.shares_neurons:
            return False
        return (
            work.stored
            and work.device == "cpu"
            and (self.accepts_new_points or work.steps is not Steps.PERTURBED_MINIBATCHES)
        )

    def cost(self, work: Workload) -> Cost:
        """Predicted cost; here fire patterns, and a time that nobody has measured."""
        return Cost(work.pattern_bytes, math.inf)

    def seconds_in_a_stream(self, shape: NeuronShape) -> float:
        """Predicted time of a sample of `stream`; infinity where that raises."""
        return math.inf

    def stream(self, network: TwoLayer, *, threads: int = 1) -> Stream:
        """Start to learn from samples that are seen once.

        Raises
        ------
        ValueError
            The tracker has to know all samples at the start.
        """
        raise ValueError(
            f'tracker "{self.name}" has to know all samples at the start; a stream takes "dense" or "half-space-tree"'
        )

    @abstractmethod
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
        """Find the fire pattern of a network.

        Parameters
        ----------
        network
            Its weight is up to date after `Tracking.finish`, with some trackers after every `Tracking.commit`.
        inputs
            X, contiguous, in the dtype of the weights.
        anchor
            W₀ for updates that shrink towards it, and for `Displacement`. None: no displacement is reported, and
            updates must not shrink; a tracker that defers the weights takes those at the start instead.
        threads
            Cores to use; the result does not depend on it.
        state
            `Tracking.state` of an earlier run over the same weights, anchor and inputs, to continue from.
        expected
            Estimate of the sum of g over the run, to prepare for: it may change the cost of the run, never the result.
        """
