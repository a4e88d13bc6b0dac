"""train_stream(): fit a network to samples that are seen once."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from widefit import trackers
from widefit.kernels.surroundings import insulated
from widefit.nn import TwoLayer
from widefit.rules import Rule, StopReason
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.loop import Loop, State
from widefit.training.phases import Phases
from widefit.training.saved import check_tensors, checked_stream
from widefit.training.stream import BLOCK, Recorder, Streaming
from widefit.training.stream_blocks import Samples, as_triple, of_size

# Blocks between two states that are kept.
_KEPT = 64


class StreamSteps:
    """Blocks of a stream, predicted and learnt one after the other; the stepper of `widefit.train_stream`.

    Parameters
    ----------
    streaming
        Learns them.
    blocks
        The stream, as `widefit.train_stream` takes it.
    recorder
        Of the history of the run.
    """

    def __init__(self, streaming: Streaming, blocks: Iterable[Any], recorder: Recorder):
        self.phases = Phases()
        self._streaming = streaming
        self._recorder = recorder
        self._step = 0
        self._weight = 0.0
        # Blocks since the state was kept.
        self._blocks = 0
        self._kept: State | None = None
        size = -(-BLOCK // streaming.rule.batch_size) * streaming.rule.batch_size
        self._pieces = of_size(blocks, size)
        first = next(self._pieces, None)
        if first is None:
            raise ValueError("the stream is empty: there are no samples to learn from")
        self._next: Samples | None = first
        # Taken before anything is learnt, which may change the readout.
        network = streaming.network
        settings = repr((network.threshold, network.in_features, network.out_features, streaming.rule)).encode()
        self._fingerprint = _digest(settings + network.readout_identity(), first)

    def begin(self) -> StepInfo:
        """Look at the first block without learning it."""
        assert self._next is not None
        first = StepInfo(0, self._streaming.begin(*self._next), samples=0)
        self._blocks = _KEPT
        return first

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """Predict a block and learn it."""
        assert self._next is not None
        piece = self._next
        if self._blocks == _KEPT:
            self._keep()
        self._blocks += 1
        with self.phases("pass"):
            before = self._streaming.learn(*piece)
        _, y, sample_weight = as_triple(piece)
        loss = self._streaming.loss(before, y, sample_weight)
        self._weight = float(len(before) if sample_weight is None else np.sum(sample_weight))
        self._step += math.ceil(len(before) / self._streaming.rule.batch_size)
        self._next = next(self._pieces, None)
        info = StepInfo(self._step, loss, samples=self._streaming.seen)
        return info, None if self._next is not None else StopReason.END

    def record(self, info: StepInfo) -> None:
        """Add an entry to the history."""
        self._recorder.add(info, self._weight)

    def state(self) -> State:
        """Everything needed to go on to the same bits, from here or from a few blocks before."""
        return self._state() if self._kept is None else self._kept

    def _keep(self) -> None:
        """Drop what a stream in trees has cached, and keep the state from which another run comes to the same bits.

        Done after a fixed number of blocks, whoever looks, so that looking makes no difference.
        """
        self._blocks = 0
        if self._streaming.caches:
            self._streaming.flush()
            tensors, document = self._state()
            kept = {name: tensor.clone() for name, tensor in tensors.items()}
            self._kept = kept, {**document, "history": self._recorder.history.to_dict()}

    def _state(self) -> State:
        document = {
            "tracker": self._streaming.tracker,
            "memory": dict(self._streaming.memory),
            "recorder": self._recorder.document(),
            "steps": self._step,
            "data": self._fingerprint,
        }
        return self._streaming.state(), document

    def restore(self, state: State) -> StopReason | None:
        """Go on from what `state` gave: the stream begins anew, and samples that were seen are passed over."""
        tensors, document = checked_stream(state)
        if document["data"] != self._fingerprint:
            raise ValueError(
                "resume: the checkpoint belongs to another stream or other settings; resume with those it was made with"
            )
        check_tensors(tensors, self._streaming.state())
        self._streaming.memory = dict(document["memory"])
        self._streaming.restore(tensors)
        self._recorder.restore(document["recorder"])
        self._step = document["steps"]
        passed = 0
        while self._next is not None and passed < self._streaming.seen:
            passed += len(self._next[0])
            self._next = next(self._pieces, None)
        self._kept = state
        self._blocks = _KEPT
        return None if self._next is not None else StopReason.END

    @contextmanager
    def network(self) -> Iterator[TwoLayer]:
        """The network, which is up to date after every block."""
        yield self._streaming.network

    def finish(self) -> None:
        """Nothing is left to do: the network is up to date."""


@insulated()
def train_stream(
    network: TwoLayer,
    blocks: Iterable[Any],
    *,
    rule: str | Rule = "sgd",
    tracker: str | trackers.Tracker = "auto",
    metric: Callable[[Any], float] | None = None,
    callbacks: Sequence[Callback] = (),
    resume: State | None = None,
    threads: int | None = None,
) -> History:
    """Fit a two-layer network to a stream, in place: every sample is seen once, and memory does not grow with them.

    A step touches the neurons that fire on its batch where a tree finds them sooner than a look at all of them
    (arXiv 2307.06565); there is no ridge.

    Parameters
    ----------
    network
        `widefit.nn.TwoLayer` with store="array".
    blocks
        (X, y) or (X, y, sample_weight) of any number of samples, as a `torch.utils.data.DataLoader` gives them: X of
        shape (n, d), taken as it is, y of shape (n,) or (n, k). How the samples are cut into blocks does not matter;
        one without any is passed over.
    rule
        "sgd" or `widefit.rules.SGD`.
    tracker
        "auto", "dense", "half-space-tree", or a tracker that takes streams.
    metric
        Called with the network after every 1024 samples or so; its value is recorded in `StepInfo.metric`.
    callbacks
        See `widefit.callbacks`; called as often.
    resume
        A state from `widefit.files.read_checkpoint`: the stream begins anew, what was seen is skipped, and training
        goes on to the same bits.
    threads
        Cores to use, None: `torch.get_num_threads()`. The result does not depend on it.

    Returns
    -------
    History
        At most some four hundred entries. The loss of each is the mean over the samples since the entry before, each
        predicted before it was learnt (progressive validation, Blum, Kalai and Langford 1999).

    Raises
    ------
    ValueError
        No samples, blocks of the wrong shape, of other columns than those before, or with numbers that are not finite
        (named by block and row), weights that overflow, a state that belongs to another stream.
    """
    recorder = Recorder()
    streaming = Streaming(network, rule=rule, tracker=tracker, threads=threads)
    steps = StreamSteps(streaming, blocks, recorder)
    loop = Loop(steps, metric=metric, callbacks=callbacks, history=recorder.history, record=steps.record)
    return loop.run(resume)


def _digest(identity: bytes, piece: Samples) -> str:
    digest = hashlib.sha256(identity)
    for part in piece:
        if part is not None:
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
