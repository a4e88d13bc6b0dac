"""The benches: modules with a function `run(size)`, in the repository or in the installed package."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
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


def further_options(name: str, run: Callable[..., Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Read options of a bench itself, --some-name VALUE or --some-name=VALUE, in the types of its defaults.

    Raises
    ------
    ValueError
        An option that the bench does not take, without a value, or of another type.
    """
    known = {
        f"--{option.name.replace('_', '-')}": option
        for option in inspect.signature(run).parameters.values()
        if option.name != "size"
    }
    found = {}
    left = list(arguments)
    while left:
        word, equals, value = left.pop(0).partition("=")
        if word not in known:
            raise ValueError(f"{word}: the bench {name} takes {', '.join(known) or 'no options of its own'}")
        if not equals and not left:
            raise ValueError(f"{word} needs a value")
        value = value if equals else left.pop(0)
        default = known[word].default
        try:
            found[known[word].name] = value if default is None else type(default)(value)
        except ValueError:
            raise ValueError(f"{word} must be of the kind of {default!r}, got {value!r}") from None
    return found


def load(path: Path) -> ModuleType:
    """Import a bench, which may import its neighbours by their names."""
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))
