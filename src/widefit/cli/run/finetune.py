"""The work of `widefit finetune`: a model from a module path and weights, a table, and the new weights."""

import importlib
import os
import pickle
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import widefit
from widefit.callbacks import Callback, Progress
from widefit.cli.output import Output, columns, number, size
from widefit.cli.run.places import refuse_unwritable
from widefit.cli.run.progress import Lines
from widefit.data.columns import kind_of, missing, read_numbers
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.survey import missing_message
from widefit.data.target import choose_target, learn_target
from widefit.data.words import listing, plural
from widefit.files.atomic import replacing

SAFE = ".safetensors"


@dataclass(frozen=True)
class Job:
    """The wishes of the user; `widefit finetune --help` says what each field means."""

    factory: str
    weights: Path
    data: str
    target: str | None
    loss: str | None
    settings: dict[str, Any]
    out: Path | None
    delta: Path | None
    reading: Reading = field(default_factory=Reading)


def run(job: Job, output: Output) -> int:
    """Adapt and write; the exit code."""
    out = job.out or job.weights.with_name(f"{job.weights.stem}.tuned{job.weights.suffix}")
    refuse_unwritable({"--out": out, "--delta": job.delta}, {"the weights": str(job.weights), "the data": job.data})
    with output.warnings():
        model = load_model(job.factory, job.weights)
        X, y, classes = _rows(job)
        loss = job.loss or ("cross_entropy" if classes is not None else "mse")
        if classes is None and loss == "cross_entropy":
            raise ValueError(f"--loss cross_entropy needs classes, and the target {job.target!r} holds fractions")
        y = y.astype(np.int64) if loss == "cross_entropy" else y
        watch: list[Callback] = [] if output.quiet else [_watcher(output)]
        adapted = widefit.finetune(model, X, y, loss=loss, callbacks=watch, **job.settings)
        record: Any = adapted.finetuning_
        _write(adapted.state_dict(), out)
        if job.delta is not None:
            record.delta.save(job.delta)
    history = record.history
    best = min(history, key=lambda info: info.loss if info.metric is None else info.metric)
    facts = {
        "rows": len(X),
        "loss": loss,
        "layers": list(record.stages[-1]),
        "steps": history[-1].step,
        "stopped": history.stop_reason,
        "training loss": [history[0].loss, best.loss],
        "held-out loss": [history[0].metric, best.metric],
        "seconds": history[-1].seconds,
    }
    table = columns("", "before", "after")
    for name in ("training loss", "held-out loss"):
        table.add_row(name, *(number(value) for value in facts[name]))
    output.show(table)
    for name, why in record.structure.skipped.items():
        output.remark(f"{name}: passed over, {why}")
    for decision in record.decisions:
        output.remark(decision)
    output.remark(f"weights in {out} ({size(out)})")
    if job.delta is not None:
        output.remark(f"change in {job.delta} ({size(job.delta)})")
    files = {"weights": out, "delta": job.delta, "classes": classes}
    output.document({"command": "finetune", "widefit": widefit.__version__} | facts | files)
    return 130 if history.stop_reason == "interrupted" else 0


def _watcher(output: Output) -> Callback:
    console = output.stderr
    return Progress(console) if console.is_terminal else Lines(console)


def load_model(factory: str, weights: Path) -> nn.Module:
    """The model that MODULE:FACTORY makes, with the weights of a file; unpickles tensors alone.

    Raises
    ------
    ValueError
        No such module, factory or file; not a state dict; keys or shapes that do not match.
    """
    state = _read_state(weights)
    model = _made(factory)
    wanted = model.state_dict()
    missing, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        parts = [f"it lacks {listing(missing, 4)}"] * bool(missing) + [f"it has also {listing(extra, 4)}"] * bool(extra)
        raise ValueError(f"{weights} does not hold the weights of {factory}: {' and '.join(parts)}")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{weights}: {name!r} has shape {tuple(value.shape)}, {factory} makes {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(state)
    return model


def _made(factory: str) -> nn.Module:
    module, separator, name = factory.partition(":")
    if not separator or not module or not name:
        raise ValueError(f"{factory!r} is not MODULE:FACTORY, such as my_models:build")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's own code runs, and may fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no module {module!r} to import from {folder}") from error
        raise ValueError(f"the module {module!r} cannot be imported: {type(error).__name__}: {error}") from error
    make = getattr(found, name, None)
    if not callable(make):
        raise ValueError(f"the module {module!r} has no function or class {name!r}")
    try:
        model = make()
    except Exception as error:  # likewise
        raise ValueError(f"{factory} failed when called without arguments: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{factory} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        state = load_file(path) if path.suffix == SAFE else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is not a state dict: save model.state_dict() with torch.save or safetensors; whole pickled models "
            "are not opened, for that would run their code"
        ) from error
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is not a state dict: it holds a {type(state).__name__}, not tensors by name")
    return dict(state)


def _rows(job: Job) -> tuple[np.ndarray, np.ndarray, list | None]:
    """Inputs (n, d), targets (n,), and the classes where the targets are numbers of classes.

    Columns are read as in `widefit train`, but all of them are inputs: the network fixes their number. Whole numbers as
    classes are numbers of outputs.
    """
    table = read_table(job.data, job.reading)
    task = None if job.loss is None else "classification" if job.loss == "cross_entropy" else "regression"
    name = choose_target(table, job.target)
    target = learn_target(table.frame, name, task)
    y = target.values(table.frame)
    inputs = table.frame.drop(name)
    text = [column.name for column in inputs if not (column.dtype.is_numeric() or column.dtype == pl.Boolean)]
    if text:
        raise ValueError(f"{plural(len(text), 'column')} of {table.name} hold no numbers: {listing(text, 5)}")
    gaps = {column.name: missing(column) for column in inputs}
    absent = {name: where for name, where in gaps.items() if where.any()}
    if absent:
        raise ValueError(missing_message(absent, "; fill them in, or remove those rows"))
    X = np.column_stack(
        [read_numbers(column, gaps[column.name], kind_of(column, gaps[column.name])) for column in inputs]
    )
    if target.task == "regression":
        return X, y, None
    if target.kind == "number":
        return X, y, list(target.labels)
    return X, np.searchsorted(target.labels, y), list(target.labels)


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        if path.suffix == SAFE:
            save_file({name: value.contiguous().clone() for name, value in state.items()}, temporary)
        else:
            torch.save(dict(state), temporary)
