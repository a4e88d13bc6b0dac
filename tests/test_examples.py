"""Every example runs with a small setting of its constants, and leaves the picture that the gallery shows."""

import ast
import contextlib
import io
import json
import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot
import pytest
import torch

from widefit.cli.benches import load

ROOT = Path(__file__).parents[1]
# Constants at the top of an example, and values with which it takes a second.
SMALL = {
    "burgers": {"STEPS": 1, "POINTS": 100},
    "classification": {"ROWS": 80, "WIDTH": 512},
    "convection": {"STEPS": 2},
    "failure": {"ROWS": 60, "WIDTH": 512},
    "finetune_digits": {"SIZES": (50,), "WIDTH": 32, "EPOCHS": 5},
    "fit_image": {"STRIDE": 40, "WIDTH": 512, "SHOWN": (1, 2)},
    "heat_1d": {"STEPS": 1},
    "intervals": {"ROWS": 60, "WIDTH": 512},
    "helmholtz": {"STEPS": 2, "ROUNDS": 2},
    "inverse_problem": {"STEPS": 1},
    "korteweg_de_vries": {"STEPS": 2, "POINTS": 150, "SLABS": 2},
    "kovasznay": {"STEPS": 2},
    "million_neurons": {"WIDTH": 1024, "ROWS": 100},
    "poisson_2d": {"STEPS": 1},
    "travelling_wave": {"STEPS": 2, "POINTS": 100},
    "stream": {"BATCHES": 3, "BATCH": 60, "WIDTH": 256},
    "surrogate": {"RUNS": 40, "WIDTH": 512},
}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def with_constants(source: str, values: dict[str, object]) -> ast.Module:
    """A module whose constants have other values; each must be assigned once, or a later line would undo it."""
    tree = ast.parse(source)
    for name, value in values.items():
        assignments = [node for node in tree.body if isinstance(node, ast.Assign) and name in _assigned(node)]
        assert len(assignments) == 1, f"{name} must be assigned once, it is {len(assignments)} times"
        node = assignments[0]
        new = ast.parse(repr(value), mode="eval").body
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            node.value.elts[_assigned(node).index(name)] = new
        else:
            node.value = new
    return ast.fix_missing_locations(tree)


def _assigned(node: ast.Assign) -> list[str]:
    """Names of an assignment, those of a tuple one by one."""
    target = node.targets[0]
    return [name.id for name in getattr(target, "elts", [target]) if isinstance(name, ast.Name)]


@pytest.mark.parametrize("source", ["STEPS = 5\nSTEPS = 5", "STEPS = 5\nSTEPS, BETA = 5, 2", "BETA = 2"])
def test_constants_that_another_line_would_undo_are_found(source: str) -> None:
    with pytest.raises(AssertionError, match="STEPS must be assigned once"):
        with_constants(source, {"STEPS": 1})
    tree = with_constants("BETA, STEPS = 2, 5", {"STEPS": 1})
    assert ast.unparse(tree) == "BETA, STEPS = (2, 1)"
    assert ast.unparse(with_constants("SIZES = (2, 5)", {"SIZES": (1,)})) == "SIZES = (1,)"


def test_every_example_has_a_small_setting() -> None:
    assert {path.stem for path in EXAMPLES} == SMALL.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # sizes at which some methods complain
def test_examples_run(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    tree = with_constants(path.read_text(encoding="utf-8"), SMALL[path.stem])
    default = torch.get_default_dtype()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(tree, path.name, "exec"), {"__name__": "__main__"})
    finally:
        torch.set_default_dtype(default)
        mpl.pyplot.close("all")
    assert os.path.getsize(f"{path.stem}.png") > 1000


NOTEBOOKS = {"tables": {"WIDTH": 512}, "equations": {"POINTS": 20, "STEPS": 2}}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_and_carry_no_output(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    cells = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(with_constants(code, NOTEBOOKS[name]), name, "exec"), {"__name__": "__main__"})
    finally:
        mpl.pyplot.close("all")


def test_the_gallery_shows_every_example() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for path in EXAMPLES:
        assert f"examples/{path.name}" in page
        assert f"](pictures/{path.stem}.png)" in page
        assert (ROOT / "docs" / "pictures" / f"{path.stem}.png").stat().st_size < 100_000


@pytest.mark.parametrize("name", ["poisson-2d", "flip", "certificate", "flips"])
def test_pictures_of_the_method_are_drawn(name: str, tmp_path: Path) -> None:
    pictures = load(ROOT / "docs" / "make" / "pictures.py")
    settings = {"exponents": (8, 10)} if name == "flips" else {}
    pictures.PICTURES[name](tmp_path / f"{name}.svg", **settings)
    drawn = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    words = {
        "poisson-2d": "Adam, tuned",
        "flip": "after the step",
        "certificate": "has to be looked at",
        "flips": "1,024 neurons",
    }
    assert words[name] in drawn
    assert pictures.PICTURES.keys() == words.keys()
