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
from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, seconds, size
from widefit.cli.run.parts import held_out_and_training
from widefit.cli.run.places import refuse_checkpoint, refuse_unwritable
from widefit.cli.run.progress import callbacks_of
from widefit.cli.run.scores import of_numbers
from widefit.data.columns import kind_of, missing, read_numbers
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.survey import missing_message
from widefit.data.target import Task, choose_target, learn_target
from widefit.data.words import listing, plural
from widefit.files import read_checkpoint
from widefit.files.atomic import replacing
from widefit.kernels.devices import device_named

SAFE = ".safetensors"
# Rows that go through a model at a time when it is scored.
_BATCH = 1000


@dataclass(frozen=True)
class Job:
    """The wishes of the user; `widefit finetune --help` says what each field means."""

    factory: str
    weights: Path
    data: str
    target: str | None = None
    loss: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    delta: Path | None = None
    validation: float = 0.2
    checkpoint: Path | None = None
    checkpoint_every: float = 30.0
    resume: bool = False
    reading: Reading = field(default_factory=Reading)
    device: str = "auto"


@dataclass(frozen=True)
class Samples:
    """Rows of the table as the model takes them.

    Attributes
    ----------
    X, y
        Inputs (n, d) and targets (n,).
    loss
        The loss to train with.
    classes
        Labels in the order of their numbers; None for quantities.
    parts
        Indices of rows, "training" and "held-out"; the latter is absent where none are held out.
    """

    X: np.ndarray
    y: np.ndarray
    loss: str
    classes: list | None
    parts: dict[str, np.ndarray]

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and targets of a part."""
        rows = self.parts[name]
        return self.X[rows], self.y[rows]


def run(job: Job, output: Output) -> int:
    """Adapt the model and write its weights; return the exit code."""
    out = job.out or job.weights.with_name(f"{job.weights.stem}.tuned{job.weights.suffix}")
    places = {"--out": out, "--delta": job.delta, "--checkpoint": job.checkpoint}
    refuse_unwritable(places, {"the weights": str(job.weights), "the data": job.data})
    refuse_checkpoint(job.checkpoint, job.resume)
    with output.warnings():
        model = load_model(job.factory, job.weights)
        samples = _samples(job)
        adapted = _finetuned(job, model, samples, output)
        record: Any = adapted.finetuning_
        _write(adapted.state_dict(), out)
        if job.delta is not None:
            record.delta.save(job.delta)
        scores = _scores(samples, model, adapted)
    history = record.history
    best = min(history, key=lambda info: info.loss if info.metric is None else info.metric)
    losses = {"training loss": [history[0].loss, best.loss], "held-out loss": [history[0].metric, best.metric]}
    table = columns("", "before", "after")
    for name, values in (scores | losses).items():
        if values[0] is not None:
            table.add_row(name, *map(number, values))
    output.show(table)
    for name, why in record.structure.skipped.items():
        output.remark(f"{name}: passed over, {why}")
    for decision in record.decisions:
        output.remark(decision)
    last = history[-1]
    output.remark(f"{plural(last.step, 'step')} in {seconds(last.seconds)}; training ended because {history.why}")
    files = {"weights": out, "change": job.delta, "checkpoint": job.checkpoint}
    for name, path in files.items():
        if path is not None and path.exists():
            output.remark(f"{name} in {path} ({size(path)})")
    document = {
        "command": "finetune",
        "widefit": widefit.__version__,
        "rows": len(samples.X),
        "loss": samples.loss,
        "layers": list(record.stages[-1]),
        "steps": last.step,
        "stopped": history.stop_reason,
        **scores,
        **losses,
        "seconds": last.seconds,
        "weights": out,
        "delta": job.delta,
        "checkpoint": job.checkpoint,
        "classes": samples.classes,
    }
    output.document(document)
    return INTERRUPTED if history.stop_reason == "interrupted" else 0


def _finetuned(job: Job, model: nn.Module, samples: Samples, output: Output) -> nn.Module:
    callbacks = callbacks_of(output, job.checkpoint, job.checkpoint_every)
    X_val, y_val = samples.part("held-out") if "held-out" in samples.parts else (None, None)
    adapted = widefit.finetune(
        model.to("cpu" if job.device == "auto" else device_named(job.device)),
        *samples.part("training"),
        loss=samples.loss,
        X_val=X_val,
        y_val=y_val,
        validation=0,
        callbacks=callbacks,
        resume=read_checkpoint(job.checkpoint) if job.checkpoint is not None and job.resume else None,
        **job.settings,
    )
    model.to("cpu")
    return adapted.to("cpu")


def _scores(samples: Samples, *models: nn.Module) -> dict[str, list[float]]:
    """Accuracy of classes or R² of quantities by part, a number a model."""
    by_classes = samples.loss in ("cross_entropy", "bce")
    found = {}
    for part in samples.parts:
        X, y = samples.part(part)
        outputs = [_outputs(model, X) for model in models]
        if by_classes:
            found[f"{part} accuracy"] = [_accuracy(each, y) for each in outputs]
        else:
            found[f"{part} R²"] = [of_numbers(y, each[:, 0])["R²"] for each in outputs]
    return found


def _accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """Share of rows whose class is the likeliest of several, or the likelier one by a single logit."""
    right = (logits[:, 0] > 0) == (y > 0.5) if logits.shape[1] == 1 else logits.argmax(1) == y
    return float(right.mean())


def _outputs(model: nn.Module, X: np.ndarray) -> np.ndarray:
    """Outputs of a model in evaluation mode, shape (n, k)."""
    kind = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    model = model.eval()
    with torch.no_grad():
        parts = [model(rows).reshape(len(rows), -1) for rows in torch.from_numpy(X).to(kind).split(_BATCH)]
    return torch.cat(parts).numpy()


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


def _samples(job: Job) -> Samples:
    """The rows of the table, some of them held out.

    Columns are read as in `widefit train`, but all of them are inputs: the network fixes their number. Whole numbers as
    classes are numbers of outputs.
    """
    table = read_table(job.data, job.reading)
    tasks: dict[str | None, Task] = {"cross_entropy": "classification", "mse": "regression", "huber": "regression"}
    target = learn_target(table.frame, choose_target(table, job.target), tasks.get(job.loss))
    y = target.values(table.frame)
    X = _inputs(table.frame.drop(target.name), table.name)
    classes = None if target.task == "regression" else list(target.labels)
    if classes is not None and target.kind != "number":
        y = np.searchsorted(classes, y)
    loss = job.loss or ("mse" if classes is None else "cross_entropy")
    y = y.astype(np.int64 if loss == "cross_entropy" else np.float64)
    seed = job.settings.get("seed", 0)
    parts = held_out_and_training(y, job.validation, seed, stratify=classes is not None)
    return Samples(X, y, loss, classes, parts)


def _inputs(frame: pl.DataFrame, name: str) -> np.ndarray:
    """All columns as numbers, shape (n, d)."""
    text = [column.name for column in frame if not (column.dtype.is_numeric() or column.dtype == pl.Boolean)]
    if text:
        raise ValueError(f"{plural(len(text), 'column')} of {name} hold no numbers: {listing(text, 5)}")
    gaps = {column.name: missing(column) for column in frame}
    absent = {name: where for name, where in gaps.items() if where.any()}
    if absent:
        raise ValueError(missing_message(absent, "; fill them in, or remove those rows"))
    numbers = [read_numbers(column, gaps[column.name], kind_of(column)) for column in frame]
    return np.column_stack(numbers)


def _write(state: Mapping[str, Tensor], path: Path) -> None:
    with replacing(path) as temporary:
        if path.suffix == SAFE:
            save_file({name: value.contiguous().clone() for name, value in state.items()}, temporary)
        else:
            torch.save(dict(state), temporary)
