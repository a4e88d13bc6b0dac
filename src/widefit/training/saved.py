"""States that runs are resumed from, checked before anything relies on them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from widefit.records import FileError, read
from widefit.training.history import History
from widefit.training.loop import State

_STREAM = ("lr", "seen", "first", "averaged")
_COUNTS = ("step", "epoch", "averaged", "seen")
_MOST = 2**53


@dataclass(frozen=True)
class _TrainingRecord:
    """The document of a run of `widefit.train`."""

    tracker: str
    rule: str
    history: History
    data: str
    state: dict[str, float]
    system: str | None = None


@dataclass(frozen=True)
class _StreamRecord:
    """The document of a run of `widefit.train_stream`."""

    tracker: str
    memory: dict[str, float]
    recorder: dict[str, Any]
    history: History
    steps: int
    data: str


def checked_training(state: State) -> State:
    """Return a state whose document is one of `widefit.train`.

    Raises
    ------
    FileError
        It is none.
    """
    tensors, document = state
    if "state" not in document and "memory" in document:
        # Version 0.1 called the state of a rule its memory.
        document = {**document, "state": document["memory"]}
    known = {name: value for name, value in document.items() if name != "memory"}
    record = read(_TrainingRecord, known, "the checkpoint")
    _check_numbers(record.state, ())
    _check_history(record.history)
    return tensors, known


def checked_stream(state: State) -> State:
    """Return a state whose document is one of `widefit.train_stream`.

    Raises
    ------
    FileError
        It is none.
    """
    record = read(_StreamRecord, state[1], "the checkpoint")
    _check_numbers(record.memory, _STREAM)
    _check_history(record.history)
    if not 0 <= record.steps < _MOST:
        raise FileError(f"the checkpoint has come {record.steps} steps far")
    return state


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], free: Iterable[str] = ()) -> None:
    """Check that tensors have the dtypes and shapes of those that they will replace, and that there are no others.

    Parameters
    ----------
    found
        Of a state.
    expected
        Of the run that goes on.
    free
        What the names of others may begin with.

    Raises
    ------
    FileError
        One is absent, other, or unknown.
    """
    for name, like in expected.items():
        if name not in found:
            raise FileError(f"the checkpoint has no tensor {name!r}")
        given = found[name]
        if given.dtype != like.dtype or given.shape != like.shape:
            raise FileError(
                f"{name!r} of the checkpoint must be {like.dtype} of shape {tuple(like.shape)}, it is {given.dtype} of "
                f"shape {tuple(given.shape)}"
            )
    for name in found.keys() - expected.keys():
        if not name.startswith(tuple(free)) or found[name].dtype == torch.bfloat16:
            raise FileError(f"the checkpoint has a tensor {name!r} that is not known")


def _check_numbers(memory: Mapping[str, float], needed: Iterable[str]) -> None:
    for name in needed:
        if name not in memory or (not memory[name] >= 0 and not math.isnan(memory[name])):
            raise FileError(f"the checkpoint does not say {name!r}")
    for name in memory.keys() & set(_COUNTS):
        if not 0 <= memory[name] < _MOST:
            raise FileError(f"{name!r} of the checkpoint is {memory[name]}, which is no number of steps")


def _check_history(history: History) -> None:
    if not history.steps:
        raise FileError("the checkpoint has no steps")
    if not 0 <= history[-1].step < _MOST:
        raise FileError(f"the checkpoint has come {history[-1].step} steps far")
