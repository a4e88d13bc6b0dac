"""The examples on equations run as they stand, with fewer steps, and leave their pictures."""

import re
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
EQUATIONS = [path for path in sorted(FOLDER.glob("*.py")) if "from widefit import pinn" in path.read_text("utf-8")]
# So that each takes a second or two.
FEWER = {"STEPS": 2, "ROUNDS": 2, "SLABS": 2, "POINTS": 150}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    kind = torch.get_default_dtype()
    yield tmp_path
    torch.set_default_dtype(kind)


def shortened(source: str) -> str:
    """The source with smaller constants in the assignments that begin with STEPS."""
    names, values = re.search(r"^(STEPS\b[\w, ]*) = (.+)$", source, re.MULTILINE).groups()
    pairs = zip(names.split(", "), values.split(", "), strict=True)
    smaller = ", ".join(str(FEWER.get(name, value)) for name, value in pairs)
    return source.replace(f"{names} = {values}", f"{names} = {smaller}")


def test_there_are_equations() -> None:
    assert len(EQUATIONS) >= 8


@pytest.mark.filterwarnings("ignore:.*residuals at the same points")
@pytest.mark.parametrize("path", EQUATIONS, ids=lambda path: path.stem)
def test_example_draws_its_picture(path: Path, quiet: Path) -> None:
    source = shortened(path.read_text("utf-8"))
    exec(compile(source, str(path), "exec"), {"__name__": "__main__"})
    assert (quiet / f"{path.stem}.png").stat().st_size > 1000
