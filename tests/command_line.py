"""The command line: in this process where its answer is what counts, in one of its own where the process is.

A process of its own is a fork; an interpreter is started for what happens before libraries are imported and at its end.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from forking import Running
from typer.testing import CliRunner

from widefit.cli.app import app

ROOT = Path(__file__).parents[1]
TERMINAL = {"COLUMNS": "120", "NO_COLOR": "1"}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")} | TERMINAL


class Result(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def start(*arguments: object, folder: Path, **streams: str) -> Running:
    """`widefit ARGUMENTS` in a folder and a process of its own, not waited for; streams as `Running` takes them."""
    return Running(*arguments, module="widefit", folder=folder, environment=ENVIRONMENT, **streams)


def start_interpreter(*arguments: object, folder: Path) -> "subprocess.Popen[str]":
    """`python -m widefit ARGUMENTS` in a folder, not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "widefit", *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, folder: Path, code: int = 0, **streams: str) -> Result:
    """`widefit ARGUMENTS` in a folder and a process of its own, which must end with an exit code."""
    return _ended(start(*arguments, folder=folder, **streams), code)


def run_interpreter(*arguments: object, folder: Path) -> Result:
    """`python -m widefit ARGUMENTS` in a folder, which must succeed."""
    return _ended(start_interpreter(*arguments, folder=folder), 0)


def _ended(process: "Running | subprocess.Popen[str]", code: int) -> Result:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    return Result(code, stdout, stderr)


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Takes back what `--threads` does to a process."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def call(*arguments: object, folder: Path) -> Result:
    """`widefit ARGUMENTS` in a folder, in this process; faults in widefit are raised."""
    with chdir(folder), _threads_restored():
        found = CliRunner().invoke(
            app, [str(argument) for argument in arguments], prog_name="widefit", env=TERMINAL, catch_exceptions=False
        )
    return Result(found.exit_code, found.stdout, found.stderr)


def call_all(cases: dict[str, list[object]], folder: Path) -> dict[str, Result]:
    """Every command of `cases` in a folder; the results by the names of the cases."""
    return {name: call(*arguments, folder=folder) for name, arguments in cases.items()}


def write_houses(path: Path, rows: int, seed: int, *, price: bool = True) -> None:
    """A table with numbers, a boolean, categories, a constant and a column of gaps."""
    generator = np.random.default_rng(seed)
    lines = ["area,rooms,garden,town,planet,age" + (",price" if price else "")]
    for row in range(rows):
        area, rooms = generator.uniform(40, 200), generator.integers(1, 7)
        garden, town = bool(generator.integers(2)), generator.choice(["Ulm", "Bonn", "Jena"])
        age = "" if row % 10 == 3 else f"{generator.uniform(0, 99):.1f}"
        cost = 2000 * area + 9000 * rooms + 20000 * garden + 5000 * generator.normal()
        fields = [f"{area:.1f}", str(rooms), str(garden), town, "Earth", age]
        lines.append(",".join([*fields, f"{cost:.2f}"] if price else fields))
    path.write_text("\n".join(lines) + "\n")
