"""What `widefit train --stream` does: a file in, row by row, model and report out, in memory that does not grow."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from widefit.callbacks import Progress, describe
from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, plain, seconds
from widefit.cli.run import outcome
from widefit.cli.run.prepare import Job, refuse_places
from widefit.cli.run.progress import Lines
from widefit.cli.run.progressive import Progressive
from widefit.data.blocks import Block, TableBlocks
from widefit.data.encoding import TableEncoding
from widefit.data.table import Table, TableError, plural
from widefit.data.target import choose_target, learn_target
from widefit.estimators import WideClassifier, WideRegressor
from widefit.files import read_checkpoint, save, write_container
from widefit.report import Report, Source, this_machine, write
from widefit.report.html import LOSS_NAMES, STOPPED
from widefit.training.interruption import interrupt_flag


@dataclass
class _Stream:
    """A stream under way, as the callbacks see it."""

    model: Any
    encoding: TableEncoding
    scores: Progressive
    notes: tuple[str, ...]
    rows: int = 0
    history: Any = None
    max_iter: Any = None
    tol: float = 0.0

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything needed to go on from here to the same bits."""
        tensors, document = self.model.to_parts()
        document = {"model": document, "encoding": self.encoding.to_dict(), "rows": self.rows}
        return tensors, document


def stream(job: Job, output: Output) -> int:
    """Learn a file block by block; returns the exit code."""
    refuse_places(job, job.out, job.report)
    blocks = TableBlocks(job.data, job.block_rows)
    model_path = job.out or Path(f"{blocks.name}.widefit")
    report_path = (job.report or Path(f"{blocks.name}.html")) if job.wants_report else None
    refuse_places(job, model_path, report_path)
    started = time.perf_counter()
    pieces = iter(blocks)
    head = next(pieces, None)
    if head is None:
        raise TableError(f"{blocks.path} has a header and no rows")
    run = _begin(job, blocks, head)
    for note in run.notes:
        output.remark(note)
    was_interrupted = _learn_all(job, run, chain([head], pieces), output)
    save(run.model, model_path, encoding=run.encoding.to_dict())
    files = {"model": model_path}
    if report_path is not None:
        write(report_path, _report(job, blocks, run, was_interrupted))
        files["report"] = report_path
    if job.checkpoint is not None:
        files["checkpoint"] = job.checkpoint
    _show(output, blocks, run, files, time.perf_counter() - started)
    output.document(_document(job, blocks, run, files, time.perf_counter() - started, was_interrupted))
    return INTERRUPTED if was_interrupted else 0


def _begin(job: Job, blocks: TableBlocks, head: Block) -> _Stream:
    """What the first block decides, or a checkpoint has kept."""
    if job.resume and job.checkpoint is not None:
        tensors, document = read_checkpoint(job.checkpoint)
        if "rows" not in document:
            raise ValueError(f"{job.checkpoint} is no checkpoint of --stream; resume it as it was begun")
        encoding = TableEncoding.from_dict(document["encoding"])
        estimator = WideRegressor if encoding.target.task == "regression" else WideClassifier
        model = estimator.from_parts(tensors, document["model"])
        notes = (f"goes on after {plural(document['rows'], 'row')}; scores are of the rows from there on",)
        return _Stream(model, encoding, Progressive(_classes(encoding)), notes, document["rows"])
    table = Table(head.frame, blocks.name)
    name = choose_target(table, job.target)
    try:
        target = learn_target(head.frame, name, job.task)
        encoding = TableEncoding.learn(head.frame, target, drop=job.drop, impute=job.impute)
    except TableError as error:
        raise TableError(f"{error} (seen in the first {plural(head.frame.height, 'row')}, see --block)") from error
    estimator = WideRegressor if target.task == "regression" else WideClassifier
    model = estimator(**job.settings)
    notes = [f"{target.task}: {target.reason} (--task changes it)" if job.task is None else ""]
    notes.append(f"columns and classes are those of the first {plural(head.frame.height, 'row')}")
    for left_out, why in encoding.left_out:
        if left_out not in job.drop:
            notes.append(f"column {left_out!r} left out, {why.replace('it is', 'being')}")
    return _Stream(model, encoding, Progressive(_classes(encoding)), tuple(note for note in notes if note))


def _classes(encoding: TableEncoding) -> np.ndarray:
    return np.array(sorted(encoding.target.labels)) if encoding.target.labels else np.empty(0)


def _learn_all(job: Job, run: _Stream, blocks: Iterable[Block], output: Output) -> bool:
    """Learn block after block, with progress and checkpoints; whether the user broke off."""
    skipped = run.rows
    watch = None if output.quiet else (Progress if output.stderr.is_terminal else Lines)(output.stderr)
    written_at = time.monotonic()
    with interrupt_flag() as interrupted:
        for block in blocks:
            if block.first + block.frame.height <= skipped:
                continue
            fresh = not hasattr(run.model, "network_")
            _learn(run, block)
            if watch is not None:
                if fresh or block.first == skipped:
                    watch.start(run)
                watch.step(run, run.model.stream_.last)
            if job.checkpoint is not None and time.monotonic() - written_at >= job.checkpoint_every:
                _keep(run, job.checkpoint)
                written_at = time.monotonic()
            if interrupted.is_set():
                break
        was_interrupted = interrupted.is_set()
    if run.rows == skipped and skipped:
        raise ValueError(f"the checkpoint {job.checkpoint} has seen all {plural(skipped, 'row')} of {job.data}")
    run.history.stop_reason = "interrupted" if was_interrupted else "end"
    if watch is not None:
        watch.finish(run, run.history)
    if job.checkpoint is not None:
        _keep(run, job.checkpoint)
    return was_interrupted


def _learn(run: _Stream, block: Block) -> None:
    """Predict the rows of a block, and learn them."""
    if block.first < run.rows:
        # A resumed run whose blocks were cut elsewhere.
        block = Block(block.frame.slice(run.rows - block.first), run.rows)
    try:
        y = run.encoding.target.values(block.frame)
        X = run.encoding.encode(block.frame)
    except TableError as error:
        last = block.first + block.frame.height
        advice = "" if block.first == 0 else "; rows are counted from there"
        raise TableError(f"rows {block.first + 1:,} to {last:,} of the file: {error}{advice}") from error
    if run.scores.classes.size:
        run.model.partial_fit(X, y, classes=run.scores.classes)
    else:
        run.model.partial_fit(X, y)
    # After every block, so that it makes no difference when checkpoints are written.
    run.model.stream_.flush()
    run.scores.add(y, run.model.progressive_predictions_)
    run.rows, run.history = run.rows + len(y), run.model.history_


def _keep(run: _Stream, path: Path) -> None:
    tensors, document = run.state()
    write_container(path, tensors, plain(document), "checkpoint")


def _metrics(run: _Stream) -> dict[str, dict[str, float]]:
    recent = f"last {run.scores.truth.size:,} rows"
    return {recent: run.scores.recent(), f"all {run.scores.rows:,} rows": run.scores.metrics()}


def _report(job: Job, blocks: TableBlocks, run: _Stream, interrupted: bool) -> Report:
    target, metrics = run.encoding.target, _metrics(run)
    notes = [*run.notes, "a stream: every row was predicted before it was learnt, and learnt once"]
    if interrupted:
        notes.append(f"the training was interrupted after {plural(run.rows, 'row')}")
    return Report(
        title=f"{blocks.name}: {target.name}",
        task=target.task,
        data=_source(blocks, run),
        history=run.history,
        truth=run.scores.truth,
        prediction=run.scores.prediction,
        part=next(iter(metrics)),
        metrics=metrics,
        probabilities=run.scores.probabilities,
        classes=run.scores.classes.tolist(),
        loss_name=LOSS_NAMES[run.model.loss_],
        metric_name="progressive",
        plan=run.model.plan_.rows(),
        settings={name: str(value) for name, value in (job.settings | {"rows": run.rows}).items()},
        machine=this_machine(),
        notes=notes,
    )


def _show(output: Output, blocks: TableBlocks, run: _Stream, files: dict[str, Path], spent: float) -> None:
    metrics = _metrics(run)
    names = list(next(iter(metrics.values())))
    results = columns("\npredicted before learnt", *(f"\n{name}" for name in names))
    for part, values in metrics.items():
        results.add_row(part, *(number(values[name]) for name in names))
    why = STOPPED.get(run.history.stop_reason, run.history.stop_reason)
    ended = f"{describe(run.model.stream_.last)} in {seconds(spent)}; training ended because {why}"
    outcome.show(output, _source(blocks, run), run.encoding, run.model.plan_, results, ended, files)


def _document(
    job: Job, blocks: TableBlocks, run: _Stream, files: dict[str, Path], spent: float, interrupted: bool
) -> dict[str, Any]:
    return outcome.document(_source(blocks, run), run.encoding, run.model, files) | {
        "settings": job.settings | {"block_rows": job.block_rows, "impute": job.impute},
        "metrics": _metrics(run),
        "seconds": {"train": spent},
        "notes": run.notes,
        "interrupted": interrupted,
    }


def _source(blocks: TableBlocks, run: _Stream) -> Source:
    return outcome.source(blocks.name, run.rows, run.encoding)
