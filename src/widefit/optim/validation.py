"""States of `GaussNewton.minimize` that come from a file, checked against the optimizer that is to go on from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from widefit.optim.state import StepState
from widefit.records import FileError, read
from widefit.training.history import History


@dataclass(frozen=True)
class _Preconditioner:
    """Preconditioner of a solver, without its factor."""

    factor: None
    damping: float
    products: tuple[int, int]


@dataclass(frozen=True)
class _Optimizer:
    """The state dict of a GaussNewton, without its tensors."""

    state: dict[str, dict[str, Any]]
    param_groups: list[dict[str, Any]]
    widefit: dict[str, Any]


@dataclass(frozen=True)
class _Record:
    """The document of a run."""

    model: dict[str, Any]
    optimizer: _Optimizer
    began: int
    history: History | None = None


def check_minimization(
    tensors: Mapping[str, Tensor],
    document: dict[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Check what a run is to be resumed from.

    Parameters
    ----------
    tensors, document
        From `Minimization.state`.
    model, optimizer
        As they are before.

    Raises
    ------
    FileError
        A field or a tensor that is absent, of another type or of another shape than the model's.
    """
    record = read(_Record, document, "the checkpoint")
    wanted = model.state_dict()
    if record.model.keys() != wanted.keys():
        raise FileError("the checkpoint belongs to a model with other parameters")
    for name, like in wanted.items():
        if isinstance(like, Tensor):
            _check(tensors, f"model.{name}", like)
    _check_groups(record.optimizer.param_groups, optimizer.state_dict()["param_groups"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, own in record.optimizer.state.items():
        if not number.isdecimal() or int(number) >= len(parameters):
            raise FileError(f"the checkpoint has a state of parameter {number!r}")
        for name in own:
            if f"optimizer.state.{number}.{name}" in tensors:
                _check(tensors, f"optimizer.state.{number}.{name}", parameters[int(number)])
    _check_own(record.optimizer.widefit, tensors)


def _check_groups(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    if len(found) != len(wanted):
        raise FileError(f"the checkpoint has {len(found)} groups of parameters, the optimizer {len(wanted)}")
    for own, like in zip(found, wanted, strict=True):
        if own.keys() != like.keys() or own["params"] != like["params"]:
            raise FileError("the checkpoint has other groups of parameters than the optimizer")
        for name, value in like.items():
            if isinstance(value, float | int) and not read(float, own[name], f"{name} of the checkpoint") > 0:
                raise FileError(f"{name} of the checkpoint must be positive, it is {own[name]}")


def _check_own(own: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    names = {field.name for field in fields(StepState)}
    if own.keys() != names | {"preconditioner", "history", "data"}:
        raise FileError("the checkpoint does not say what the optimizer remembers")
    memory = read(StepState, {name: own[name] for name in names}, "the checkpoint")
    # A step that momentum carries promises anything.
    counts = [value for name, value in asdict(memory).items() if name != "promise"]
    if not all(value >= 0 for value in counts) or not memory.step < 2**53:
        raise FileError(f"the checkpoint remembers {memory}")
    read(str | None, own["data"], "the digest of the data in the checkpoint")
    read(History, own["history"], "the history of the checkpoint")
    if own["preconditioner"] is not None:
        read(_Preconditioner, own["preconditioner"], "the preconditioner of the checkpoint")
        factor = tensors.get("optimizer.widefit.preconditioner.factor")
        square = factor is not None and factor.ndim == 2 and factor.shape[0] == factor.shape[1]
        if factor is None or not square or factor.dtype not in (torch.float32, torch.float64):
            raise FileError("the checkpoint has no factor of its preconditioner")


def _check(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> None:
    given = tensors.get(name)
    if given is None or given.shape != like.shape or given.dtype != like.dtype:
        found = "absent" if given is None else f"{given.dtype} of shape {tuple(given.shape)}"
        raise FileError(f"{name!r} must be {like.dtype} of shape {tuple(like.shape)}, it is {found}")
