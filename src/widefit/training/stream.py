"""Learning from a stream: every sample is seen once, in the order in which it comes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from widefit import rules, trackers
from widefit.kernels.compilation import announce_compilation
from widefit.nn import TwoLayer
from widefit.plan.base import AVERAGED, Plan
from widefit.plan.neurons import plan_stream
from widefit.records import read
from widefit.rules import Objective, Rule
from widefit.trackers.cost import NeuronShape
from widefit.training.history import History, StepInfo
from widefit.training.problem import checked_problem, linearize, refuse_floor, rule_of

# Samples from which an automatic rate is made, and that `train_stream` hands over at once.
BLOCK = 1024
# Entries of a history; when there are more, every second goes.
_ENTRIES = 400


@dataclass
class Recorder:
    """The history of a stream in bounded memory: the loss of each entry is the mean since the entry before.

    Attributes
    ----------
    history
        The entries.
    every
        Blocks an entry; doubles whenever there are too many entries.
    last
        The last block, in an entry or not.
    waiting, weight, total
        Of the latest entry while it is not full: its blocks, their weight, and the sum of their losses.
    """

    history: History = field(default_factory=History)
    every: int = 1
    last: StepInfo | None = None
    waiting: int = 0
    weight: float = 0.0
    total: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 1 or self.waiting < 0 or (self.waiting and not self.weight > 0):
            raise ValueError("an entry must have blocks, and those a weight")

    @classmethod
    def from_document(cls, history: History, document: dict[str, Any]) -> "Recorder":
        """The inverse of `document`, given the history."""
        return replace(read(cls, document, "the recorder"), history=history)

    def document(self) -> dict[str, Any]:
        """All but the history as plain values."""
        return {name: value for name, value in asdict(self).items() if name != "history"}

    def restore(self, document: dict[str, Any]) -> None:
        """Take what `document` gave."""
        last = document["last"]
        self.every, self.waiting = document["every"], document["waiting"]
        self.weight, self.total = document["weight"], document["total"]
        self.last = None if last is None else StepInfo(**last)

    def add(self, info: StepInfo, weight: float) -> None:
        """Add a block whose samples weigh so much; the entry of step 0 stands alone."""
        if info.step == 0:
            self.history.steps.append(info)
            return
        self.last = info
        if self.waiting == 0:
            self.history.steps.append(info)
        self.waiting += 1
        self.weight += weight
        self.total += weight * info.loss
        self.history.steps[-1] = replace(info, loss=self.total / self.weight)
        if self.waiting >= self.every:
            self._close()

    def _close(self) -> None:
        """End the entry; where there are too many, make one of every two."""
        self.waiting = 0
        self.weight = 0.0
        self.total = 0.0
        if len(self.history) > _ENTRIES:
            first, *others = self.history.steps
            pairs = zip(others[::2], others[1::2], strict=False)
            self.history.steps[:] = [first, *(_merged(*pair) for pair in pairs), *others[2 * (len(others) // 2) :]]
            self.every *= 2


class Streaming:
    """Stochastic descent over samples that are seen once; `widefit.train_stream` is the loop around it.

    Parameters
    ----------
    network
        Trained in place: up to date after every `learn`.
    rule
        "sgd" or `widefit.rules.SGD`.
    tracker
        "auto", "dense", "half-space-tree", or a tracker that takes streams. "auto" looks the first samples up.
    threads
        Cores to use, None: `torch.get_num_threads()`. The result does not depend on it.
    memory
        What `learn` remembered in an earlier run over the same network; None begins anew.
    state
        What `state` gave in that run, for a rule that averages: the network has the average, not the last iterate.

    Attributes
    ----------
    plan
        What "auto" chose; there is one from the first `learn` on.
    memory
        Numbers: "lr", the rate before the schedule; "seen", the samples so far; "first", the loss of the first of them
        before any step.

    Raises
    ------
    ValueError
        A rule that needs all samples at once, a second layer that is to be trained and cannot be.
    """

    plan: Plan

    def __init__(
        self,
        network: TwoLayer,
        *,
        rule: str | Rule = "sgd",
        tracker: str | trackers.Tracker = "auto",
        threads: int | None = None,
        memory: dict[str, float] | None = None,
        state: Mapping[str, Tensor] | None = None,
    ):
        chosen = rule_of(rule)
        if not isinstance(chosen, rules.SGD):
            raise ValueError(f'rule must be "sgd" or a widefit.rules.SGD for a stream, got {chosen.name!r}')
        if chosen.train_readout:
            refuse_floor(network)
        self.network, self.rule = network, chosen
        # What the steps move: the network itself, or a copy where it is to have the average of the iterates.
        self._iterate, self._average = network, None
        self.memory: dict[str, float] = dict(memory or {})
        if chosen.averages:
            self._average, self._iterate = trackers.IterateAverage.of(network, readout=chosen.train_readout)
            if state:
                self.restore(state)
        self._tracker = tracker
        self._threads = torch.get_num_threads() if threads is None else threads
        self._stream: trackers.Stream | None = None

    @property
    def seen(self) -> int:
        """Samples so far."""
        return int(self.memory.get("seen", 0))

    @property
    def tracker(self) -> str:
        """The name of the tracker, "auto" before the first samples."""
        return self._stream.name if self._stream is not None else str(getattr(self._tracker, "name", self._tracker))

    def begin(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | Tensor | None = None
    ) -> float:
        """The loss of some samples before any step; `lr="auto"` and "auto" trackers are chosen by them."""
        inputs, objective = checked_problem(self.network, X, y, sample_weight, 0.0, self.rule.loss)
        self._started(inputs, objective)
        return self.memory["first"]

    def learn(
        self, X: ArrayLike | Tensor, y: ArrayLike | Tensor, sample_weight: ArrayLike | Tensor | None = None
    ) -> Float[np.ndarray, "n k"]:
        """Take a step along every minibatch of some samples, in their order.

        Parameters
        ----------
        X
            Shape (n, d) with n ≥ 1; taken as it is, cast to the dtype of the network.
        y
            Shape (n,) or (n, k), as the loss of the rule takes it.
        sample_weight
            ω ≥ 0, shape (n,), not all 0; None: ones.

        Returns
        -------
        f at every sample before the step of its batch, float64.

        Raises
        ------
        ValueError
            An argument of the wrong shape or value, numbers that are not finite; weights that have overflowed.
        """
        inputs, objective = checked_problem(self.network, X, y, sample_weight, 0.0, self.rule.loss)
        stream = self._started(inputs, objective)
        averaged = int(self.memory.get("averaged", 0))
        minibatches = self.rule.stretch(objective, self.seen, self.memory["lr"], averaged)
        # Weights that overflow are seen in the outputs.
        with np.errstate(over="ignore", invalid="ignore"):
            before = stream.descend(inputs, replace(minibatches, average=self._average))
            stream.publish()
            self.memory |= {"seen": self.seen + inputs.shape[0], "averaged": minibatches.averaged_after(averaged)}
            if self._average is not None:
                self._average.write(self._iterate, self.memory["averaged"], self.network)
        if not np.isfinite(before).all():
            raise ValueError('the training diverged, its weights have overflowed: give rule a smaller lr, or lr="auto"')
        return before

    def loss(
        self, outputs: Float[np.ndarray, "n k"], y: ArrayLike | Tensor, sample_weight: ArrayLike | Tensor | None = None
    ) -> float:
        """Weighted mean over samples of the squared residual, or of ℓ for another loss."""
        targets = np.asarray(y, dtype=np.float64).reshape(outputs.shape)
        weight = np.ones(len(outputs)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        return Objective(targets, weight, 0.0, self.rule.loss).loss(outputs)

    @property
    def caches(self) -> bool:
        """True where the stream goes on to other bits than one that begins from the network as it is."""
        return self._stream is not None and self._stream.caches

    def flush(self) -> None:
        """Drop cached state, so that going on and beginning anew from the network give the same bits."""
        if self._stream is not None:
            self._stream.flush()

    def state(self) -> dict[str, Tensor]:
        """Everything that has been trained, by name, for another run to go on from; not copied."""
        trained = {"weight": self._iterate.weight.detach(), "readout": self._iterate.readout.detach()}
        return trained | ({} if self._average is None else self._average.tensors())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave; before the first samples."""
        with torch.no_grad():
            self._iterate.weight.copy_(state["weight"])
            self._iterate.readout.copy_(state["readout"])
        if self._average is not None:
            self._average.restore(state)
            self._average.write(self._iterate, self.memory.get("averaged", 0), self.network)

    def evaluate(self, x: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q k"]:
        """f at some inputs in the dtype of the network, as the steps see it."""
        assert self._stream is not None
        return self._stream.evaluate(x)

    def _started(self, inputs: np.ndarray, objective: Objective) -> trackers.Stream:
        """The stream, begun with the first samples."""
        if self._stream is None:
            announce_compilation()
            shape = NeuronShape.of(self._iterate, inputs)
            self.plan, tracker = plan_stream(shape, self._tracker)
            if self._average is not None:
                self.plan = self.plan.then(AVERAGED)
            if self.rule.train_readout and not tracker.trains_readout:
                raise ValueError(f'tracker "{tracker.name}" keeps the second layer as it is; take tracker="dense"')
            self._stream = tracker.stream(self._iterate, threads=self._threads)
        if "lr" not in self.memory:
            first = slice(BLOCK)
            problem = linearize(self._iterate, inputs[first], objective.subset(first), self._threads)
            loss = problem.objective.loss(problem.outputs)
            self.memory = {"lr": self.rule.start(problem).lr, "seen": 0, "first": loss, "averaged": 0}
        return self._stream


def _merged(one: StepInfo, two: StepInfo) -> StepInfo:
    """Two neighbouring entries as one; they hold as many samples."""
    return replace(two, loss=(one.loss + two.loss) / 2)
