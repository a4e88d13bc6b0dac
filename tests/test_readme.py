"""Every example of the README and of the documentation runs as it stands, in an empty folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are not run here, and why.
EXCLUDED = {
    "make": "makes its own environment; continuous integration runs the targets",
    "pip": "would change the environment of the tests",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if line.strip()]
    # Where prompts are shown, the lines without one are output.
    return [line[2:] for line in lines if line.startswith("$ ")] or lines


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the command `widefit` of this interpreter first on the path."""
    folder = Path(sys.executable).parent
    if shutil.which("widefit", path=str(folder)) is None:
        folder = tmp_path_factory.mktemp("bin")
        script = folder / "widefit"
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom widefit.cli import main\nsys.exit(main())\n")
        script.chmod(0o755)
    path = os.pathsep.join((str(folder), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the tables that the examples call houses."""
    generator = np.random.default_rng(0)
    for name, rows in (("houses.csv", 200), ("houses_test.csv", 50), ("houses_new.csv", 10)):
        area, rooms = generator.uniform(40, 200, rows), generator.integers(1, 7, rows)
        town = generator.choice(["Ulm", "Bonn", "Jena"], rows)
        price = 2000 * area + 10_000 * rooms + 5000 * generator.normal(size=rows)
        lines = [f"{a:.1f},{r},{t},{p:.0f}" for a, r, t, p in zip(area, rooms, town, price, strict=True)]
        head = "area,rooms,town,price"
        if name == "houses_new.csv":
            head, lines = head.removesuffix(",price"), [line.rpartition(",")[0] for line in lines]
        (tmp_path / name).write_text("\n".join([head, *lines, ""]))
    return tmp_path


EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"), start=1)
]


@pytest.mark.slow  # each example is a process of its own, as for its reader
@pytest.mark.parametrize("block", EXAMPLES)
def test_python_examples_run(block: str, folder: Path, environment: dict[str, str]) -> None:
    ran = subprocess.run([sys.executable, "-c", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow  # each command is a process of its own, as for its reader
def test_commands_run(folder: Path, environment: dict[str, str]) -> None:
    every = [command for page in PAGES for command in commands(page)]
    for command in dict.fromkeys(every):  # the pages repeat one another
        if command.split()[0] in EXCLUDED:
            continue
        ran = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


def test_only_known_commands_are_left_out() -> None:
    left_out = {command.split()[0] for page in PAGES for command in commands(page)} - {"widefit"}
    assert left_out <= EXCLUDED.keys()


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
