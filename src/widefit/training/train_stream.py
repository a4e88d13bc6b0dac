"""train_stream(): the loop over a stream."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from widefit import trackers
from widefit.kernels.surroundings import insulated
from widefit.nn import TwoLayer
from widefit.rules import Rule
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.interruption import interrupt_flag
from widefit.training.saved import check_tensors, checked_stream
from widefit.training.stream import BLOCK, Recorder, Streaming
from widefit.training.two_layer import State

Samples = tuple[Any, Any] | tuple[Any, Any, Any]


class StreamRun:
    """The loop of `widefit.train_stream`, which documents the arguments; callbacks see it."""

    max_iter = 0
    tol = 0.0

    def __init__(self, streaming: Streaming, metric: Callable[[Any], float] | None, callbacks: Sequence[Callback]):
        self.streaming = streaming
        self._metric, self._callbacks = metric, tuple(callbacks)
        self._recorder = Recorder()
        self.history = self._recorder.history
        self._step, self._first_block = 0, ""
        self._started = 0.0
        # Before anything is learnt, which may change the readout.
        network = streaming.network
        settings = repr((network.threshold, network.in_features, network.out_features, streaming.rule)).encode()
        self._identity = settings + network.readout_identity()

    def state(self) -> State:
        """Everything needed to go on from here to the same bits."""
        self.streaming.settle()
        recorder = self._recorder
        document = {
            "tracker": self.streaming.tracker,
            "memory": dict(self.streaming.memory),
            "recorder": recorder.document(),
            "history": self.history.to_dict(),
            "steps": self._step,
            "data": self._first_block,
        }
        return self.streaming.state(), document

    def run(self, blocks: Iterable[Any], resume: State | None) -> History:
        size = -(-BLOCK // self.streaming.rule.batch_size) * self.streaming.rule.batch_size
        pieces = _of_size(blocks, size)
        first = next(pieces, None)
        if first is None:
            raise ValueError("the stream is empty: there are no samples to learn from")
        self._first_block = self._digest(first)
        skipped = self._restore(resume)
        before = self.history[-1].seconds if skipped else 0.0
        self._started = time.perf_counter() - before
        with interrupt_flag() as interrupted:
            for callback in self._callbacks:
                if self.history.steps:
                    callback.start(self)
            self.history.stop_reason = self._loop(_chained(first, pieces), skipped, interrupted)
        for callback in self._callbacks:
            callback.finish(self, self.history)
        return self.history

    def _loop(self, pieces: Iterator[Samples], skipped: int, interrupted: Any) -> str:
        last = self.history[-1] if self.history.steps else StepInfo(0, 0.0)
        for piece in pieces:
            if skipped > 0:
                skipped -= len(piece[0])
                continue
            before = self.streaming.learn(*piece)
            last = self._record(before, piece)
            ended = [bool(callback.step(self, last)) for callback in self._callbacks]
            if interrupted.is_set() or any(ended):
                self._recorder.close(last)
                return "interrupted" if interrupted.is_set() else "callback"
        self._recorder.close(last)
        return "end"

    def _record(self, before: np.ndarray, piece: Samples) -> StepInfo:
        streaming = self.streaming
        _, y, sample_weight = _three(piece)
        loss = streaming.loss(before, y, sample_weight)
        weight = float(len(before) if sample_weight is None else np.sum(sample_weight))
        if not self.history.steps:
            self.history.steps.append(StepInfo(0, streaming.memory["first"], samples=0))
            for callback in self._callbacks:
                callback.start(self)
        metric = None if self._metric is None else float(self._metric(streaming.network))
        self._step += math.ceil(len(before) / streaming.rule.batch_size)
        info = StepInfo(self._step, loss, metric, seconds=time.perf_counter() - self._started, samples=streaming.seen)
        self._recorder.add(info, weight)
        return info

    def _digest(self, piece: Samples) -> str:
        digest = hashlib.sha256(self._identity)
        for part in piece:
            if part is not None:
                digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def _restore(self, state: State | None) -> int:
        """Samples that a resumed run has seen already."""
        if state is None:
            return 0
        tensors, document = checked_stream(state)
        if document["data"] != self._first_block:
            raise ValueError(
                "resume: the checkpoint belongs to another stream or other settings; resume with those it was made with"
            )
        check_tensors(tensors, self.streaming.state())
        self.streaming.memory = dict(document["memory"])
        self.streaming.restore(tensors)
        self._recorder = Recorder.from_document(History.from_dict(document["history"]), document["recorder"])
        self.history = self._recorder.history
        self._step = document["steps"]
        return self.streaming.seen


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
    streaming = Streaming(network, rule=rule, tracker=tracker, threads=threads)
    return StreamRun(streaming, metric, callbacks).run(blocks, resume)


def _of_size(blocks: Iterable[Any], size: int) -> Iterator[Samples]:
    """The same samples in blocks of one size, the last one shorter; weights are None where no block has had any."""
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    held, columns = 0, None
    for number, block in enumerate(blocks):
        X, y, weight = _checked_block(block, number)
        columns = columns or (X.shape[1], y.shape[1])
        if (X.shape[1], y.shape[1]) != columns:
            raise ValueError(
                f"the blocks of a stream must have the same columns: block {number} has {(X.shape[1], y.shape[1])} in "
                f"(X, y), those before it {columns}"
            )
        while len(X):
            taken = min(size - held, len(X))
            waiting.append((X[:taken], y[:taken], None if weight is None else weight[:taken]))
            held += taken
            X, y, weight = X[taken:], y[taken:], None if weight is None else weight[taken:]
            if held == size:
                yield _joined(waiting)
                waiting, held = [], 0
    if waiting:
        yield _joined(waiting)


def _checked_block(block: Any, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    if not isinstance(block, tuple | list) or len(block) not in (2, 3):
        raise ValueError(f"blocks must give (X, y) or (X, y, sample_weight), got {type(block).__name__} in {number}")
    X, y, weight = (_plain(part) for part in _three(tuple(block)))
    if X.ndim != 2 or y.ndim not in (1, 2) or len(X) != len(y) or (weight is not None and weight.shape != (len(X),)):
        shapes = ", ".join(str(part.shape) for part in (X, y, weight) if part is not None)
        raise ValueError(f"block {number} must have the shapes (n, d), (n,) or (n, k), and (n,), got {shapes}")
    for name, array in (("X", X), ("y", y), ("sample_weight", weight)):
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(f"{name} of block {number} contains NaN or infinity, first in row {row}")
    return X, y[:, None] if y.ndim == 1 else y, weight


def _plain(part: Any) -> Any:
    if part is None:
        return None
    return part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> Samples:
    weight = None
    if any(part[2] is not None for part in parts):
        weight = np.concatenate([np.ones(len(part[0])) if part[2] is None else part[2] for part in parts])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), weight


def _three(piece: Samples) -> tuple[Any, Any, Any]:
    return piece[0], piece[1], piece[2] if len(piece) == 3 else None


def _chained(first: Samples, rest: Iterator[Samples]) -> Iterator[Samples]:
    yield first
    yield from rest
