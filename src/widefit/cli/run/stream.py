"""The work of `widefit train --stream`: a file in, row by row, model and report out, in memory that does not grow."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from widefit.callbacks import describe
from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, seconds
from widefit.cli.run import outcome
from widefit.cli.run.prepare import Job, learn, look, refuse_places, remarks
from widefit.cli.run.progress import callbacks_of
from widefit.cli.run.progressive import Progressive
from widefit.data.blocks import Block, TableBlocks
from widefit.data.encoding import TableEncoding
from widefit.data.table import TableError, plural
from widefit.estimators import WideClassifier, WideRegressor
from widefit.files import read_checkpoint, save
from widefit.files.container import altered
from widefit.kernels import clock
from widefit.losses.family import rule_loss
from widefit.records import read
from widefit.report import Report, Source, this_machine, write
from widefit.rules import StopReason
from widefit.training.history import History, StepInfo
from widefit.training.loop import Loop, State
from widefit.training.phases import Phases


class FileSteps:
    """Blocks of a file, predicted and learnt one after the other; the stepper of `widefit train --stream`.

    Parameters
    ----------
    job, blocks
        What is to be done, on which blocks.
    model, encoding
        What learns, and how columns become numbers.
    notes
        Remarks on what was decided.
    rows
        Rows that were learnt in an earlier run.
    """

    def __init__(
        self,
        job: Job,
        blocks: Iterable[Block],
        model: Any,
        encoding: TableEncoding,
        notes: tuple[str, ...],
        rows: int = 0,
    ):
        self.phases = Phases()
        self.model = model
        self.encoding = encoding
        self.notes = notes
        self.rows = rows
        self.scores = Progressive(_classes(encoding))
        self.history = History()
        self._job = job
        self._blocks = iter(blocks)
        self._next = next(self._blocks, None)
        self._learnt = False

    def begin(self) -> StepInfo:
        """Learn the first block, which decides what the others rest on."""
        self._learn()
        self._learnt = True
        return self.model.history_[0]

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """Learn a block."""
        if not self._learnt:
            self._learn()
        self._learnt = False
        return self.model.stream_.last, StopReason.END if self._next is None else None

    def record(self, info: StepInfo) -> None:
        """Show the history of the model, which keeps it in bounded memory."""
        self.history.steps[:] = self.model.history_.steps

    def state(self) -> State:
        """Everything needed to go on from here to the same bits."""
        tensors, document = self.model.to_parts()
        return tensors, {"model": document, "encoding": self.encoding.to_dict(), "rows": self.rows}

    def restore(self, state: State) -> StopReason | None:
        """Pass over the rows that the model has seen."""
        while self._next is not None and self._next.first + self._next.frame.height <= self.rows:
            self._next = next(self._blocks, None)
        if self._next is None:
            seen = plural(self.rows, "row")
            raise ValueError(f"the checkpoint {self._job.checkpoint} has seen all {seen} of {self._job.data}")
        self.history.steps[:] = self.model.history_.steps
        return None

    @contextmanager
    def network(self) -> Iterator[Any]:
        """The model, which is up to date after every block."""
        yield self.model

    def finish(self) -> None:
        """Nothing is left to do: the model is up to date."""

    def _learn(self) -> None:
        """Predict the rows of the next block, and learn them."""
        block = self._next
        assert block is not None
        if block.first < self.rows:
            # A resumed run whose blocks were cut elsewhere.
            block = Block(block.frame.slice(self.rows - block.first), self.rows)
        try:
            y = self.encoding.target.values(block.frame)
            X = self.encoding.encode(block.frame)
        except TableError as error:
            last = block.first + block.frame.height
            advice = "" if block.first == 0 else "; rows are counted from there"
            raise TableError(f"rows {block.first + 1:,} to {last:,} of the file: {error}{advice}") from error
        if self.scores.classes.size:
            self.model.partial_fit(X, y, classes=self.scores.classes)
        else:
            self.model.partial_fit(X, y)
        # After every block, so that it makes no difference when checkpoints are written.
        self.model.stream_.flush()
        self.scores.add(y, self.model.progressive_predictions_)
        self.rows += len(y)
        self._next = next(self._blocks, None)


@dataclass(frozen=True)
class _Kept:
    """The document of a checkpoint."""

    model: dict[str, Any]
    encoding: dict[str, Any]
    rows: int


def stream(job: Job, output: Output) -> int:
    """Learn a file block by block; returns the exit code."""
    refuse_places(job, job.out, job.report)
    blocks = TableBlocks(job.data, job.block_rows, job.reading)
    model_path = job.out or Path(f"{blocks.name}.widefit")
    report_path = (job.report or model_path.with_suffix(".html")) if job.wants_report else None
    refuse_places(job, model_path, report_path)
    started = clock.now()
    steps, resume = _prepare(job, blocks)
    for note in steps.notes:
        output.remark(note)
    loop = Loop(
        steps,
        callbacks=callbacks_of(output, job.checkpoint, job.checkpoint_every),
        history=steps.history,
        record=steps.record,
    )
    was_interrupted = loop.run(resume).stop_reason == StopReason.INTERRUPTED
    save(steps.model, model_path, encoding=steps.encoding.to_dict())
    files = {"model": model_path}
    if report_path is not None:
        write(report_path, _report(job, blocks, steps, was_interrupted))
        files["report"] = report_path
    if job.checkpoint is not None:
        files["checkpoint"] = job.checkpoint
    _show(output, blocks, steps, files, clock.now() - started)
    output.document(_document(job, blocks, steps, files, clock.now() - started, was_interrupted))
    return INTERRUPTED if was_interrupted else 0


def _prepare(job: Job, blocks: TableBlocks) -> tuple[FileSteps, State | None]:
    """Steps from what a checkpoint has kept, or from what the first block decides."""
    if job.resume and job.checkpoint is not None:
        return _resumed(job, blocks, job.checkpoint)
    pieces = iter(blocks)
    head = next(pieces, None)
    if head is None:
        raise TableError(f"{blocks.path} has a header and no rows")
    table = blocks.table(head)
    rows = plural(head.frame.height, "row")
    try:
        found = look(job, table)
        encoding = learn(job, table, found)
    except TableError as error:
        raise TableError(f"{error} (seen in the first {rows}, see --block)") from error
    estimator = WideRegressor if encoding.target.task == "regression" else WideClassifier
    notes = (*remarks(job, table, found, encoding), f"columns and classes are those of the first {rows}")
    return FileSteps(job, chain([head], pieces), estimator(**job.settings), encoding, notes), None


def _resumed(job: Job, blocks: TableBlocks, checkpoint: Path) -> tuple[FileSteps, State]:
    tensors, document = read_checkpoint(checkpoint)
    if "rows" not in document:
        raise ValueError(f"{checkpoint} is no checkpoint of --stream; resume it as it was begun")
    with altered(checkpoint):
        kept = read(_Kept, {name: document.get(name) for name in ("model", "encoding", "rows")}, "its document")
        encoding = TableEncoding.from_dict(kept.encoding)
        blocks.reading = encoding.reading(job.reading)
        estimator = WideRegressor if encoding.target.task == "regression" else WideClassifier
        model = estimator.from_parts(tensors, kept.model)
    notes = (f"goes on after {plural(kept.rows, 'row')}; scores are of the rows from there on",)
    return FileSteps(job, blocks, model, encoding, notes, kept.rows), (tensors, document)


def _classes(encoding: TableEncoding) -> np.ndarray:
    return np.array(sorted(encoding.target.labels)) if encoding.target.labels else np.empty(0)


def _metrics(steps: FileSteps) -> dict[str, dict[str, float]]:
    recent = f"last {steps.scores.truth.size:,} rows"
    return {recent: steps.scores.recent(), f"all {steps.scores.rows:,} rows": steps.scores.metrics()}


def _report(job: Job, blocks: TableBlocks, steps: FileSteps, interrupted: bool) -> Report:
    target, metrics = steps.encoding.target, _metrics(steps)
    notes = [*steps.notes, "a stream: every row was predicted before it was learnt, and learnt once"]
    if interrupted:
        notes.append(f"the training was interrupted after {plural(steps.rows, 'row')}")
    return Report(
        title=f"{blocks.name}: {target.name}",
        task=target.task,
        data=_source(blocks, steps),
        history=steps.history,
        truth=steps.scores.truth,
        prediction=steps.scores.prediction,
        part=next(iter(metrics)),
        metrics=metrics,
        probabilities=steps.scores.probabilities,
        classes=steps.scores.classes.tolist(),
        loss_name=rule_loss(steps.model.loss_).title,
        metric_name="progressive",
        plan=steps.model.plan_.rows(),
        settings={name: str(value) for name, value in (job.settings | {"rows": steps.rows}).items()},
        machine=this_machine(),
        notes=notes,
    )


def _show(output: Output, blocks: TableBlocks, steps: FileSteps, files: dict[str, Path], spent: float) -> None:
    metrics = _metrics(steps)
    names = list(next(iter(metrics.values())))
    results = columns("\npredicted before learnt", *(f"\n{name}" for name in names))
    for part, values in metrics.items():
        results.add_row(part, *(number(values[name]) for name in names))
    reason = steps.history.why
    ended = f"{describe(steps.model.stream_.last)} in {seconds(spent)}; training ended because {reason}"
    outcome.show(output, _source(blocks, steps), steps.encoding, steps.model.plan_, results, ended, files)


def _document(
    job: Job, blocks: TableBlocks, steps: FileSteps, files: dict[str, Path], spent: float, interrupted: bool
) -> dict[str, Any]:
    return outcome.document(_source(blocks, steps), steps.encoding, steps.model, files) | {
        "settings": job.settings | {"block_rows": job.block_rows, "impute": job.impute},
        "metrics": _metrics(steps),
        "seconds": {"train": spent},
        "notes": steps.notes,
        "interrupted": interrupted,
    }


def _source(blocks: TableBlocks, steps: FileSteps) -> Source:
    return outcome.source(blocks.name, steps.rows, steps.encoding)
