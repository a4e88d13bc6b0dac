"""Streams behind `partial_fit`, in which every row is seen once."""

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from widefit.nn import TwoLayer
from widefit.plan.base import Plan
from widefit.rules import SGD, Rule
from widefit.trackers import Tracker
from widefit.training.history import History, StepInfo
from widefit.training.stream import Recorder, Streaming

# Rows of the first batch from which the input map and the scale of the readout are chosen.
TUNING_ROWS = 4000


def can_stream(model: Any) -> bool:
    """Return True for rules that learn from a stream; for scikit-learn's `available_if`.

    Raises
    ------
    AttributeError
        The rule takes all samples at once.
    """
    if isinstance(model.rule, SGD) or (isinstance(model.rule, str) and model.rule == "sgd"):
        return True
    raise AttributeError(f'partial_fit takes stochastic steps: it needs rule="sgd" or an SGD, not {model.rule!r}')


class StreamState:
    """Run of a stream over the network of an estimator, and its history.

    A copy or a pickle of it, together with its network, goes on to the same bits; so does `from_parts` after `flush`.

    Parameters
    ----------
    network
        Trained in place.
    rule, tracker
        As `Streaming` takes them.
    recorder, memory, state
        From an earlier stream over the same network; None begins anew.
    """

    def __init__(
        self,
        network: TwoLayer,
        rule: str | Rule[Any],
        tracker: str | Tracker,
        *,
        recorder: Recorder | None = None,
        memory: dict[str, float] | None = None,
        state: dict[str, Tensor] | None = None,
    ):
        self._run = Streaming(network, rule=rule, tracker=tracker, memory=memory, state=state)
        self._recorder = recorder

    @property
    def plan(self) -> Plan:
        """Choices of "auto", from the first rows on."""
        return self._run.plan

    @property
    def history(self) -> History:
        """History of all batches."""
        assert self._recorder is not None
        return self._recorder.history

    @property
    def last(self) -> StepInfo:
        """Loss and counts of the last batch."""
        assert self._recorder is not None
        return self._recorder.last or self._recorder.history[-1]

    def learn(
        self,
        inputs: Float[np.ndarray, "n d"],
        targets: Float[np.ndarray, "n k"],
        sample_weight: Float[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n k"]:
        """Take a step along every minibatch of a batch; return f at every row before it was learnt."""
        return self._run.learn(inputs, targets, sample_weight)

    def record(
        self,
        outputs: Float[np.ndarray, "n k"],
        targets: Float[np.ndarray, "n k"],
        sample_weight: Float[np.ndarray, " n"],
        seconds: float,
    ) -> None:
        """Add a batch, with what was predicted for it and the time it took, to the history."""
        if self._recorder is None:
            self._recorder = Recorder(History([StepInfo(0, self._run.memory["first"], samples=0)]))
        info = StepInfo(
            step=self.last.step + -(-len(outputs) // self._run.rule.batch_size),
            loss=self._run.loss(outputs, targets, sample_weight),
            seconds=self.last.seconds + seconds,
            samples=self._run.seen,
        )
        self._recorder.add(info, float(sample_weight.sum()))

    def flush(self) -> None:
        """Drop cached state, so that continuing and resuming from `to_parts` give the same bits."""
        self._run.flush()

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and plain values, without the network and the history; `from_parts` is the inverse."""
        assert self._recorder is not None
        # Where the rule averages, the network has the average and not the last iterate.
        tensors = self._run.state() if self._run.rule.averages else {}
        return tensors, {"memory": dict(self._run.memory), "recorder": self._recorder.document()}

    @classmethod
    def from_parts(
        cls,
        network: TwoLayer,
        rule: str | Rule[Any],
        tracker: str | Tracker,
        history: History,
        tensors: dict[str, Tensor],
        document: dict[str, Any],
    ) -> "StreamState":
        """Go on with a stream from what `to_parts` returned."""
        recorder = Recorder.from_document(history, document["recorder"])
        return cls(network, rule, tracker, recorder=recorder, memory=dict(document["memory"]), state=tensors)
