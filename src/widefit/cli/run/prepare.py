"""What `widefit train` does before it trains: options and table checked, without torch and so at once."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from widefit.cli.run.places import refuse_unwritable
from widefit.data.columns import missing
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.splitting import split_rows
from widefit.data.table import Table, listing, plural
from widefit.data.target import choose_target, learn_target

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
    block_rows: int = 10_000


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
    model_path, report_path
        Files to write; a report_path of None: no report.
    seconds
        Time spent on reading and checking.
    """

    table: Table
    encoding: TableEncoding
    X: np.ndarray
    y: np.ndarray
    training: np.ndarray
    held_out: np.ndarray
    notes: tuple[str, ...]
    model_path: Path
    report_path: Path | None
    seconds: float

    @property
    def task(self) -> str:
        return self.encoding.target.task

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """Rows by the name of their part, the one that counts first."""
        parts = {HELD_OUT: self.held_out, TRAIN: self.training}
        return {name: rows for name, rows in parts.items() if len(rows)}


def prepare(job: Job) -> Prepared:
    """Check where the results will go; read, check, split and encode the table.

    Raises
    ------
    ValueError
        Anything that will not work, in words.
    """
    started = time.perf_counter()
    refuse_places(job, job.out, job.report)
    table = read_table(job.data)
    model_path = job.out or Path(f"{table.name}.widefit")
    report_path = (job.report or Path(f"{table.name}.html")) if job.wants_report else None
    refuse_places(job, model_path, report_path)
    frame = table.frame
    target = learn_target(frame, choose_target(table, job.target), job.task)
    y = target.values(frame)
    training, held_out = split_rows(y, job.test_size, job.seed, stratify=target.task == "classification")
    encoding = TableEncoding.learn(frame, target, drop=job.drop, impute=job.impute, rows=training)
    X = encoding.encode(frame)
    notes = _notes(job, table, encoding)
    spent = time.perf_counter() - started
    return Prepared(table, encoding, X, y, training, held_out, notes, model_path, report_path, spent)


def _notes(job: Job, table: Table, encoding: TableEncoding) -> tuple[str, ...]:
    target = encoding.target
    notes = [*table.notes, f"{target.task}: {target.reason} (--task changes it)" if job.task is None else ""]
    unasked = [(name, why) for name, why in encoding.left_out if name not in job.drop]
    for why in dict.fromkeys(why for _, why in unasked):
        names = [name for name, reason in unasked if reason == why]
        notes.append(f"{plural(len(names), 'column')} left out, {why.replace('it is', 'being')}: {listing(names, 5)}")
    gaps = sum(int(missing(table.frame[column.name]).sum()) for column in encoding.columns)
    if gaps:
        notes.append(f"{plural(gaps, 'missing value')} filled in")
    return tuple(note for note in notes if note)


def refuse_places(job: Job, model_path: Path | None, report_path: Path | None) -> None:
    """Check where the results will go, and that a checkpoint is there exactly when it is resumed."""
    places = {"--out": model_path, "--report": report_path, "--checkpoint": job.checkpoint}
    refuse_unwritable(places, {"the data": job.data})
    if job.checkpoint is None:
        return
    if job.resume and not job.checkpoint.exists():
        raise ValueError(f"there is no checkpoint {job.checkpoint} to resume; leave out --resume to begin afresh")
    if not job.resume and job.checkpoint.exists():
        raise ValueError(f"the checkpoint {job.checkpoint} exists; go on from it with --resume, or delete it first")
