"""The command line as people run it: a process of its own, in a folder of its own."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120", "NO_COLOR": "1"}


class Result(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def start(*arguments: object, folder: Path) -> "subprocess.Popen[str]":
    """`widefit ARGUMENTS` in a folder, not waited for."""
    return subprocess.Popen(
        [sys.executable, "-m", "widefit", *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, folder: Path, code: int = 0) -> Result:
    """`widefit ARGUMENTS` in a folder, which must end with an exit code."""
    (result,) = run_all({"": list(arguments)}, folder).values()
    assert result.code == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def run_all(cases: dict[str, list[object]], folder: Path) -> dict[str, Result]:
    """Every command of `cases` in a folder, several at a time; the results by the names of the cases."""

    def result(arguments: list[object]) -> Result:
        process = start(*arguments, folder=folder)
        stdout, stderr = process.communicate(timeout=240)
        return Result(process.returncode, stdout, stderr)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(cases, pool.map(result, cases.values()), strict=True))


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
