"""The work of `widefit train`: table in, model and report out."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, seconds
from widefit.cli.run import outcome, scores
from widefit.cli.run.prepare import HELD_OUT, Job, Prepared
from widefit.cli.run.progress import callbacks_of
from widefit.data.table import plural
from widefit.estimators import WideClassifier, WideRegressor
from widefit.files import save
from widefit.kernels.clock import seconds_compiling
from widefit.losses.family import rule_loss
from widefit.processes import Processes
from widefit.report import Report, Source, this_machine, write

COVERAGE = 0.9
# Intervals take an inverse of the size of the training rows.
MOST_ROWS_FOR_INTERVALS = 3000


@dataclass(frozen=True)
class Measured:
    """Scores per part, and what the report shows of the first part."""

    part: str
    metrics: dict[str, dict[str, float]]
    prediction: np.ndarray
    probabilities: np.ndarray | None


def run(job: Job, prepared: Prepared, output: Output, processes: Processes | None = None) -> int:
    """Train, measure, write model and report; returns the exit code. Of several processes the first one writes."""
    started = time.perf_counter()
    model = _fit(job, prepared, output, processes)
    if processes is not None and processes.rank > 0:
        return INTERRUPTED if model.history_.stop_reason == "interrupted" else 0
    compiled = seconds_compiling()
    if compiled >= 1:
        output.remark(f"kernels were compiled in {seconds(compiled)}, once on this machine; training does not count it")
    spent = time.perf_counter() - started - compiled
    clock = {"read": prepared.seconds, "compile": compiled, "train": spent}
    interrupted = model.history_.stop_reason == "interrupted"

    # The model first: whatever happens to the report, the training is not lost.
    save(model, prepared.model_path, encoding=prepared.encoding.to_dict())
    files = {"model": prepared.model_path}
    measured = _measure(model, prepared)
    if prepared.report_path is not None:
        write(prepared.report_path, _report(job, model, prepared, measured, interrupted))
        files["report"] = prepared.report_path
    if job.checkpoint is not None:
        files["checkpoint"] = job.checkpoint
    _show(output, model, prepared, measured, files)
    output.document(_document(job, model, prepared, measured, clock, files, interrupted))
    return INTERRUPTED if interrupted else 0


def _fit(job: Job, prepared: Prepared, output: Output, processes: Processes | None) -> Any:
    estimator = WideRegressor if prepared.task == "regression" else WideClassifier
    name = "R²" if prepared.task == "regression" else "accuracy"
    callbacks = callbacks_of(output, job.checkpoint, job.checkpoint_every, name)
    training, held_out = prepared.training, prepared.held_out
    return estimator(**job.settings).fit(
        prepared.X[training],
        prepared.y[training],
        callbacks=callbacks,
        resume=job.checkpoint if job.resume else None,
        validation=(prepared.X[held_out], prepared.y[held_out]) if len(held_out) else None,
        process_group=processes,
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
        data=_source(prepared),
        history=model.history_,
        truth=prepared.y[prepared.parts[measured.part]],
        prediction=measured.prediction,
        part=measured.part,
        metrics=measured.metrics,
        probabilities=measured.probabilities,
        importances=_importances(model, prepared),
        classes=() if target.task == "regression" else model.classes_.tolist(),
        loss_name=rule_loss(model.loss_).title,
        metric_name=f"{HELD_OUT} {'R²' if target.task == 'regression' else 'accuracy'}",
        tol=None if job.settings["tol"] == "auto" else job.settings["tol"],
        plan=model.plan_.rows(),
        settings={name: str(value) for name, value in (job.settings | rows).items()},
        machine=this_machine(),
        notes=notes,
        rows=(prepared.parts[measured.part] + 1).tolist(),
        interval=_interval(model, prepared, measured.part),
        coverage=COVERAGE,
    )


def _importances(model: Any, prepared: Prepared) -> dict[str, float]:
    """Shares of the columns of the table in the predictions."""
    names = [column.name for column in prepared.encoding.columns]
    shares = np.bincount(prepared.encoding.sources, model.feature_importances_, len(names))
    return dict(zip(names, shares.tolist(), strict=True))


def _interval(model: Any, prepared: Prepared, part: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Prediction intervals of held-out quantities, where they cost less than the training."""
    if prepared.task != "regression" or part != HELD_OUT or len(prepared.training) > MOST_ROWS_FOR_INTERVALS:
        return None
    return model.predict_interval(prepared.X[prepared.parts[part]], COVERAGE)


def _show(output: Output, model: Any, prepared: Prepared, measured: Measured, files: dict[str, Path]) -> None:
    names = list(next(iter(measured.metrics.values())))
    results = columns("\nrows", *(f"\n{name}" for name in names))
    for part, values in measured.metrics.items():
        rows = f" ({len(prepared.parts[part]):,})" if part in prepared.parts else ""
        results.add_row(part + rows, *(number(values[name]) for name in names))
    history = model.history_
    first, last = history[0], history[-1]
    ended = (
        f"{plural(last.step, 'step')} in {seconds(last.seconds)}, loss {number(first.loss)} → {number(last.loss)}; "
        f"training ended because {history.why}"
    )
    outcome.show(output, _source(prepared), prepared.encoding, model.plan_, results, ended, files)


def _document(
    job: Job,
    model: Any,
    prepared: Prepared,
    measured: Measured,
    clock: dict[str, float],
    files: dict[str, Path],
    interrupted: bool,
) -> dict[str, Any]:
    document = outcome.document(_source(prepared), prepared.encoding, model, files)
    document["data"]["split"] = {name: len(rows) for name, rows in prepared.parts.items()}
    return document | {
        "settings": job.settings | {"test_size": job.test_size, "impute": job.impute},
        "metrics": measured.metrics,
        "seconds": clock,
        "notes": prepared.notes,
        "interrupted": interrupted,
    }


def _source(prepared: Prepared) -> Source:
    return outcome.source(prepared.table.name, prepared.table.frame.height, prepared.encoding)
