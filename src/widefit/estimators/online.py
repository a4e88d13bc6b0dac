"""partial_fit: the estimators on a stream, in which every row is seen once."""

import time
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from widefit.rules import SGD
from widefit.training.history import History, StepInfo
from widefit.training.stream import Recorder, Streaming
from widefit.tuning.duplicates import merge_duplicates

# Rows of the first batch from which the input map and the scale of the read-out are chosen.
_TUNING_ROWS = 4000


def is_stochastic(rule: Any) -> bool:
    """True for rules that can learn from a stream."""
    return isinstance(rule, SGD) or (isinstance(rule, str) and rule == "sgd")


def can_stream(model: Any) -> bool:
    """For scikit-learn's `available_if`.

    Raises
    ------
    AttributeError
        The rule takes all samples at once.
    """
    if not is_stochastic(model.rule):
        raise AttributeError(f'partial_fit takes stochastic steps: it needs rule="sgd" or an SGD, not {model.rule!r}')
    return True


def learn(
    model: Any,
    rows: Float[np.ndarray, "n d"],
    y: np.ndarray,
    weight: Float[np.ndarray, " n"],
    sizes: tuple[int, ...],
    thresholds: tuple[float, ...],
) -> None:
    """Take a step along every minibatch of some rows; the first time, decide what the stream rests on."""
    if model.alpha not in ("auto", 0):
        raise ValueError(
            f'alpha must be "auto" or 0 with partial_fit, got {model.alpha!r}: a stream has no sum over all rows that '
            "a ridge could be weighed against"
        )
    started = time.perf_counter()
    first = not hasattr(model, "network_")
    encoded = model._encode_batch(y, weight, first)
    loss = model._loss()
    if first:
        centred = model._as_scores(encoded, loss)[:_TUNING_ROWS]
        shares = weight[:_TUNING_ROWS] / weight[:_TUNING_ROWS].sum()
        merged = merge_duplicates(rows[:_TUNING_ROWS], centred - shares @ centred, weight[:_TUNING_ROWS])
        model._prepare(merged, sizes, thresholds, 0.0)
        model.sphere_ = model.sphere_.with_every_column()
    elif model.loss_ != loss:
        raise ValueError(f"rule descends the {loss} loss, and the model has been fitted to the {model.loss_} one")
    model.loss_ = loss
    streaming = getattr(model, "_streaming", None)
    if streaming is None:
        memory = getattr(model, "_stream_memory", None)
        streaming = Streaming(
            model.network_, rule=model._rule(loss), tracker=model.tracker, memory=memory, state=stream_tensors(model)
        )
    outputs = streaming.learn(model.sphere_(rows), encoded, weight)
    model._streaming, model._stream_memory = streaming, streaming.memory
    model.plan_ = streaming.plan.after(model._choices)
    model._predict_from_now_on()
    model.progressive_predictions_ = model._predictions(outputs)
    _record(model, outputs, encoded, weight, time.perf_counter() - started)


def forget(model: Any) -> None:
    """A fit begins: streams before it have ended."""
    for name in ("_streaming", "_stream_memory", "_stream_state", "_recorder", "progressive_predictions_"):
        vars(model).pop(name, None)


def settle(model: Any) -> None:
    """Let the model go on exactly as a copy of it would that is read from a file."""
    if hasattr(model, "_streaming"):
        model._streaming.settle()


def progress(model: Any) -> StepInfo:
    """What the last batch came to."""
    return model._recorder.last


def stream_document(model: Any) -> dict[str, Any] | None:
    """What a stream needs to go on, as plain values."""
    if not hasattr(model, "_recorder"):
        return None
    return {"memory": dict(model._stream_memory), "recorder": model._recorder.document()}


def stream_tensors(model: Any) -> dict[str, Tensor]:
    """What a stream whose rule averages needs to go on beside the network, which has the average."""
    streaming = getattr(model, "_streaming", None)
    if streaming is not None and streaming.rule.averages:
        return streaming.state()
    return getattr(model, "_stream_state", {})


def restore_stream(model: Any, document: dict[str, Any] | None, tensors: dict[str, Tensor]) -> None:
    """The inverse of `stream_document` and `stream_tensors`; the model has its history."""
    if document is not None:
        model._stream_state = tensors
        model._stream_memory = dict(document["memory"])
        model._recorder = Recorder.from_document(model.history_, document["recorder"])


def _record(model: Any, outputs: np.ndarray, encoded: np.ndarray, weight: np.ndarray, seconds: float) -> None:
    streaming = model._streaming
    recorder = getattr(model, "_recorder", None)
    if recorder is None:
        recorder = model._recorder = Recorder(History([StepInfo(0, streaming.memory["first"], samples=0)]))
    last = recorder.last or recorder.history[-1]
    info = StepInfo(
        step=last.step + -(-len(outputs) // streaming.rule.batch_size),
        loss=streaming.loss(outputs, encoded, weight),
        seconds=last.seconds + seconds,
        samples=streaming.seen,
    )
    recorder.add(info, float(weight.sum()))
    model.history_ = recorder.history
    model.loss_curve_, model.n_iter_ = model.history_.losses, info.step
