"""What `widefit train` does: table in, model and report out."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import widefit
from widefit.callbacks import Callback, Progress
from widefit.cli import scores
from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, seconds, size
from widefit.cli.places import refuse_unwritable
from widefit.cli.progress import Lines
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.splitting import split_rows
from widefit.data.table import Table, listing, plural
from widefit.data.target import choose_target, learn_target
from widefit.estimators import WideClassifier, WideRegressor
from widefit.files import Checkpoint, FileError, save
from widefit.report import Report, Source, this_machine, write
from widefit.report.html import STOPPED

HELD_OUT, TRAIN = "held out", "train"


@dataclass(frozen=True)
class Job:
    """What was asked for; `widefit train --help` says what each field means."""

    data: str
    target: str | None
    task: str | None
    drop: tuple[str, ...]
    impute: bool
    test_size: float
    seed: int
    settings: dict[str, Any]
    out: Path | None
    report: Path | None
    wants_report: bool
    checkpoint: Path | None
    checkpoint_every: float
    resume: bool


@dataclass(frozen=True)
class Prepared:
    """A table ready for training.

    Attributes
    ----------
    table, encoding
        As read, and what was learnt about it.
    X, y
        The encoded rows, float64 (n, d), and the target, (n,).
    training, held_out
        Indices of rows.
    notes
        What the user should know about it.
    """

    table: Table
    encoding: TableEncoding
    X: np.ndarray
    y: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    notes: tuple[str, ...]

    @property
    def task(self) -> str:
        return self.encoding.target.task

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """Rows by the name of their part, the one that counts first."""
        parts = {HELD_OUT: self.held_out, TRAIN: self.training}
        return {name: rows for name, rows in parts.items() if len(rows)}


@dataclass(frozen=True)
class Measured:
    """Scores per part, and what the report shows of the first part."""

    part: str
    metrics: dict[str, dict[str, float]]
    prediction: np.ndarray
    probabilities: np.ndarray | None


def run(job: Job, output: Output) -> int:
    """Do the job; returns the exit code."""
    refuse_unwritable(
        {"--out": job.out, "--report": job.report, "--checkpoint": job.checkpoint}, {"the data": job.data}
    )
    _refuse_confusion_of_checkpoints(job)
    clock = {"read": time.perf_counter()}
    with output.warnings():
        prepared = prepare(job)
        clock["read"] = time.perf_counter() - clock["read"]
        model_path = job.out or Path(f"{prepared.table.name}.widefit")
        report_path = (job.report or Path(f"{prepared.table.name}.html")) if job.wants_report else None
        refuse_unwritable({"--out": model_path, "--report": report_path}, {"the data": job.data})
        for note in prepared.notes:
            output.remark(note)

        clock["train"] = time.perf_counter()
        model = _fit(job, prepared, output)
        clock["train"] = time.perf_counter() - clock["train"]
        interrupted = model.history_.stop_reason == "interrupted"

        # The model first: whatever happens to the report, the training is not lost.
        save(model, model_path, encoding=prepared.encoding.to_dict())
        files = {"model": model_path}
        measured = _measure(model, prepared)
        if report_path is not None:
            write(report_path, _report(job, model, prepared, measured, interrupted))
            files["report"] = report_path
        if job.checkpoint is not None:
            files["checkpoint"] = job.checkpoint
    _show(output, model, prepared, measured, files)
    output.document(_document(job, model, prepared, measured, clock, files, interrupted))
    return INTERRUPTED if interrupted else 0


def prepare(job: Job) -> Prepared:
    """Read, check, split and encode the table."""
    table = read_table(job.data)
    frame = table.frame
    target = learn_target(frame, choose_target(table, job.target), job.task)
    y = target.values(frame)
    training, held_out = split_rows(y, job.test_size, job.seed, stratify=target.task == "classification")
    encoding = TableEncoding.learn(frame, target, drop=job.drop, impute=job.impute, rows=training)
    X = encoding.encode(frame)
    notes = [*table.notes, f"{target.task}: {target.reason} (--task changes it)" if job.task is None else ""]
    unasked = [(name, why) for name, why in encoding.left_out if name not in job.drop]
    for why in dict.fromkeys(why for _, why in unasked):
        names = [name for name, reason in unasked if reason == why]
        notes.append(f"{plural(len(names), 'column')} left out, {why.replace('it is', 'being')}: {listing(names, 5)}")
    gaps = sum(frame[column.name].null_count() for column in encoding.columns)
    if job.impute and gaps:
        notes.append(f"{plural(gaps, 'missing value')} filled in")
    return Prepared(table, encoding, X, y, training, held_out, tuple(note for note in notes if note))


def _refuse_confusion_of_checkpoints(job: Job) -> None:
    if job.checkpoint is None:
        return
    if job.resume and not job.checkpoint.exists():
        raise FileError(f"there is no checkpoint {job.checkpoint} to resume; leave out --resume to begin afresh")
    if not job.resume and job.checkpoint.exists():
        raise FileError(f"the checkpoint {job.checkpoint} exists; go on from it with --resume, or delete it first")


def _fit(job: Job, prepared: Prepared, output: Output) -> Any:
    estimator = WideRegressor if prepared.task == "regression" else WideClassifier
    callbacks: list[Callback] = []
    if not output.quiet:
        console = output.stderr
        callbacks.append(Progress(console) if console.is_terminal else Lines(console))
    if job.checkpoint is not None:
        callbacks.append(Checkpoint(job.checkpoint, job.checkpoint_every))
    training, held_out = prepared.training, prepared.held_out
    return estimator(**job.settings).fit(
        prepared.X[training],
        prepared.y[training],
        callbacks=callbacks,
        resume=job.checkpoint if job.resume else None,
        validation=(prepared.X[held_out], prepared.y[held_out]) if len(held_out) else None,
    )


def _measure(model: Any, prepared: Prepared) -> Measured:
    y, first = prepared.y, next(iter(prepared.parts))
    found = {
        part: scores.of_model(model, prepared.X[rows], y[rows], prepared.task) for part, rows in prepared.parts.items()
    }
    metrics = {part: values for part, (values, _, _) in found.items()}
    name, baseline = scores.of_constant(y[prepared.training], y[prepared.parts[first]], prepared.task)
    metrics[f"baseline ({name})"] = baseline
    _, prediction, probabilities = found[first]
    return Measured(first, metrics, prediction, probabilities)


def _report(job: Job, model: Any, prepared: Prepared, measured: Measured, interrupted: bool) -> Report:
    table, target = prepared.table, prepared.encoding.target
    notes = list(prepared.notes)
    if interrupted:
        notes.append("the training was interrupted; this is the best model until then")
    rows = {f"rows for {name}": len(indices) for name, indices in prepared.parts.items()}
    return Report(
        title=f"{table.name}: {target.name}",
        task=target.task,
        data=Source(table.name, table.frame.height, len(prepared.encoding.feature_names), target.name),
        history=model.history_,
        truth=prepared.y[prepared.parts[measured.part]],
        prediction=measured.prediction,
        part=measured.part,
        metrics=measured.metrics,
        probabilities=measured.probabilities,
        classes=() if target.task == "regression" else model.classes_.tolist(),
        metric_name=f"{HELD_OUT} {'R²' if target.task == 'regression' else 'accuracy'}",
        tol=job.settings["tol"],
        plan=model.plan_.rows(),
        settings={name: str(value) for name, value in (job.settings | rows).items()},
        machine=this_machine(),
        notes=notes,
    )


def _show(output: Output, model: Any, prepared: Prepared, measured: Measured, files: dict[str, Path]) -> None:
    table, target, history = prepared.table, prepared.encoding.target, model.history_
    what = "regression" if target.task == "regression" else plural(len(target.labels), "class", "classes")
    features = len(prepared.encoding.feature_names)
    output.show(
        f"[bold]{table.name}[/bold]: {plural(table.frame.height, 'row')}, {plural(features, 'feature')}, "
        f"target {target.name} ({what})\n"
    )
    decisions = columns("decision", "", "why")
    decisions.columns[1].justify = decisions.columns[2].justify = "left"
    decisions.columns[2].no_wrap = False
    for row in model.plan_.rows():
        decisions.add_row(*row)
    output.show(decisions)
    names = list(next(iter(measured.metrics.values())))
    results = columns("\nrows", *(f"\n{name}" for name in names))
    for part, values in measured.metrics.items():
        rows = f" ({len(prepared.parts[part]):,})" if part in prepared.parts else ""
        results.add_row(part + rows, *(number(values[name]) for name in names))
    output.show(results)
    last = history[-1]
    why = STOPPED.get(history.stop_reason, history.stop_reason)
    output.show(
        f"\n{plural(last.step, 'step')} in {seconds(last.seconds)}, loss {number(history[0].loss)} → "
        f"{number(last.loss)}; training ended because {why}"
    )
    for name, path in files.items():
        output.show(f"{name:<11}{path} ({size(path)})")


def _document(
    job: Job,
    model: Any,
    prepared: Prepared,
    measured: Measured,
    clock: dict[str, float],
    files: dict[str, Path],
    interrupted: bool,
) -> dict[str, Any]:
    table, target = prepared.table, prepared.encoding.target
    return {
        "command": "train",
        "widefit": widefit.__version__,
        "data": {
            "name": table.name,
            "rows": table.frame.height,
            "features": list(prepared.encoding.feature_names),
            "left_out": [{"column": name, "reason": why} for name, why in prepared.encoding.left_out],
            "target": target.name,
            "task": target.task,
            "classes": list(target.labels),
            "split": {name: len(rows) for name, rows in prepared.parts.items()},
        },
        "settings": job.settings | {"test_size": job.test_size, "impute": job.impute},
        "plan": model.plan_.to_dict(),
        "metrics": measured.metrics,
        "history": model.history_.to_dict(),
        "seconds": clock,
        "files": files,
        "notes": prepared.notes,
        "interrupted": interrupted,
    }
