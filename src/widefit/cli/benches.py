"""The benches: modules with a function `run(size)`, in the repository or in the installed package."""

import ast
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import widefit


@dataclass(frozen=True)
class Bench:
    """A bench that can be run.

    Attributes
    ----------
    path
        Its file.
    summary
        The first line of its docstring.
    """

    path: Path
    summary: str


def folder_of_benches() -> Path:
    """`_bench` in the installed package, or `bench` at the root of the repository it was installed from.

    Raises
    ------
    ValueError
        Neither is there.
    """
    package = Path(widefit.__file__).parent
    for folder in (package / "_bench", package.parents[1] / "bench"):
        if folder.is_dir():
            return folder
    raise ValueError("this installation has no benches")


def find(folder: Path) -> dict[str, Bench]:
    """The benches of a folder by name: `two_layer.py` is called two-layer. Nothing is imported."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[path.stem.replace("_", "-")] = Bench(path, summary)
    return found


def compared(line: Mapping[str, Any]) -> str:
    """Say how a figure compares, so that it reads one way: "3.1 × faster than dense", "1.8 × slower than bare product".

    Parameters
    ----------
    line
        A figure of a bench; its "ratio" says how many times better than "against" it is.
    """
    ratio, against, unit = line.get("ratio"), line.get("against"), line["unit"]
    if ratio is None or not ratio > 0:
        return f"beside {against}" if against else ""
    if abs(ratio - 1) < 0.005:
        return f"as {against}"
    times = f"{max(ratio, 1 / ratio):.3g} ×"
    if unit in ("s", "ms", "µs") or unit.endswith(("processor s", "s of CPU")) or unit.startswith("µs a"):
        return f"{times} {'faster' if ratio > 1 else 'slower'} than {against}"
    if unit in ("MB", "GB"):
        return f"1/{ratio:.3g} of {against}" if ratio > 1 else f"{times} {against}"
    return f"{times} {'better' if ratio > 1 else 'worse'} than {against}"


def load(path: Path) -> ModuleType:
    """Import a bench, which may import its neighbours by their names."""
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))
