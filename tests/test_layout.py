"""The house keeps its order: imports run downwards, there are no circles, and `import widefit` stays light."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "widefit"

# Upper floors may import lower ones, and neighbours of their own floor as long as no circle arises.
FLOORS = [
    {"cli", "__main__"},
    {"report"},
    {"estimators"},
    {"finetuning"},
    {"optim"},
    {"callbacks"},
    {"files"},
    {"training"},
    {"tuning"},
    {"plan"},
    {"rules"},
    {"solvers"},
    {"gram"},
    {"trackers"},
    {"nn"},
    {"linalg"},
    {"sketches"},
    {"losses"},
    {"data", "pinn"},
    {"kernels", "records", "processes"},
]
HEIGHT = {part: len(FLOORS) - number for number, floor in enumerate(FLOORS) for part in floor}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def module_of(path: Path) -> str:
    return ".".join(("widefit", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imported_by(path: Path) -> set[str]:
    """Modules of widefit that a file imports, at its top or inside a function."""
    known = {module_of(file) for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in inner}
    return {name for name in found if name.split(".")[0] == "widefit"}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    here = part_of(module_of(path))
    assert here in HEIGHT, f"{here} has no floor yet: give it one in FLOORS"
    below = {name for name in imported_by(path) if HEIGHT.get(part_of(name), 0) <= HEIGHT[here]}
    assert imported_by(path) <= below


def test_nothing_is_loose_at_the_top() -> None:
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py"}
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == HEIGHT.keys() - {"__main__"}


def test_contributing_tells_the_floors() -> None:
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z`, ]+`) \|", text, re.MULTILINE)
    assert [set(re.findall(r"[a-z]+", row)) for row in rows] == [floor - {"__main__"} for floor in FLOORS]


def test_no_circles() -> None:
    modules = {module_of(path): imported_by(path) - {module_of(path)} for path in FILES}
    parts: dict[str, set[str]] = {}
    for module, imported in modules.items():
        here = part_of(module)
        parts.setdefault(here, set()).update({part_of(name) for name in imported} - {here, ""})
    for graph in (modules, parts):
        order = list(TopologicalSorter(graph).static_order())  # raises CycleError
        assert graph.keys() <= set(order)


def test_kernels_import_nothing_of_ours() -> None:
    for path in FILES:
        if part_of(module_of(path)) == "kernels":
            assert {part_of(name) for name in imported_by(path)} <= {"kernels"}


def test_import_is_light() -> None:
    heavy = ["sklearn", "numba", "scipy", "matplotlib", "polars", "pandas", "rich", "typer"]
    code = f"import sys, widefit; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
