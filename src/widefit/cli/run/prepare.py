"""The part of `widefit train` before the training: options and table checked, without torch and so at once."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from widefit.cli.run.places import refuse_checkpoint, refuse_unwritable
from widefit.data.effects import Outcomes
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.splitting import split_rows
from widefit.data.survey import Survey, survey
from widefit.data.table import Table
from widefit.data.target import choose_target
from widefit.data.words import listing, plural, shell

HELD_OUT, TRAIN = "held out", "train"


@dataclass(frozen=True)
class Job:
    """The wishes of the user; `widefit train --help` says what each field means."""

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
    reading: Reading = field(default_factory=Reading)
    indicate: bool = False


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
    """Read, check, split and encode the table, and check where the results will go.

    Raises
    ------
    ValueError
        Anything that will not work, in words.
    """
    started = time.perf_counter()
    table = read_table(job.data, job.reading)
    model_path = job.out or Path(f"{table.name}.widefit")
    report_path = (job.report or model_path.with_suffix(".html")) if job.wants_report else None
    refuse_places(job, model_path, report_path)
    found = look(job, table, many_allowed=True)
    y = found.target.values(table.frame)
    training, held_out = split_rows(y, job.test_size, job.seed, stratify=found.target.task == "classification")
    outcomes = found.target.outcomes(y[training])
    encoding = learn(job, table, found, training, outcomes)
    X = encoding.encode_survey(found, training, outcomes)
    notes = remarks(job, table, found, encoding)
    spent = time.perf_counter() - started
    return Prepared(table, encoding, X, y, training, held_out, notes, model_path, report_path, spent)


def look(job: Job, table: Table, many_allowed: bool = False) -> Survey:
    """Look through a table, or the first block of one, for everything that the job cannot use."""
    return survey(
        table.frame,
        choose_target(table, job.target),
        task=job.task,
        drop=job.drop,
        gaps_allowed=job.impute or job.indicate,
        many_allowed=many_allowed,
        doubts=table.doubts,
    )


def learn(
    job: Job, table: Table, found: Survey, rows: np.ndarray | None = None, outcomes: Outcomes | None = None
) -> TableEncoding:
    """Learn the encoding from some rows, by default from all, with what another table needs to be read alike."""
    encoding = TableEncoding.of(found, impute=job.impute, indicate=job.indicate, rows=rows, outcomes=outcomes)
    return replace(encoding, decimal=table.decimal, na_values=job.reading.na_values)


def remarks(job: Job, table: Table, found: Survey, encoding: TableEncoding) -> tuple[str, ...]:
    """Sentences about what was decided on the way from the table to its encoding."""
    target = found.target
    notes = [*table.notes, f"{target.task}: {target.reason} (--task changes it)" if job.task is None else ""]
    unasked = [(name, why) for name, why in encoding.left_out if name not in job.drop]
    for why in dict.fromkeys(why for _, why in unasked):
        names = [name for name, reason in unasked if reason == why]
        notes.append(f"{plural(len(names), 'column')} left out, {why.replace('it is', 'being')}: {listing(names, 5)}")
    if found.gaps:
        how = "taken as values of their own" if job.indicate else "filled in"
        notes.append(f"{plural(found.gaps, 'missing value')} {how}")
    notes += [
        f"column {name!r} has a different whole number in every row; if it only names the rows, leave it out with "
        f"--drop {shell(name)}"
        for name in found.numberings
    ]
    return tuple(note for note in notes if note)


def refuse_places(job: Job, model_path: Path | None, report_path: Path | None) -> None:
    """Check where the results will go, and that a checkpoint is there exactly when it is resumed."""
    places = {"--out": model_path, "--report": report_path, "--checkpoint": job.checkpoint}
    refuse_unwritable(places, {"the data": job.data})
    refuse_checkpoint(job.checkpoint, job.resume)
