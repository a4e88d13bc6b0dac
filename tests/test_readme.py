"""Every example of the README and of the documentation runs as it stands, in an empty folder."""

import contextlib
import math
import os
import re
import shlex
import sys
import traceback
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from command_line import call
from forking import forks

import widefit
from widefit.cli.benches import find
from widefit.rules import StopReason

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Commands that are not run here, and why.
EXCLUDED = {
    "make": "makes its own environment; continuous integration runs the targets",
    "pip": "would change the environment of the tests",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def shown(page: Path) -> dict[str, str]:
    """Examples of a page whose output stands below them, with that output."""
    lines = r"((?:(?!```)[^\n]*\n)*)"
    pairs = rf"^```python\n{lines}```\n\n```text\n{lines}```$"
    return dict(re.findall(pairs, page.read_text(encoding="utf-8"), re.MULTILINE))


def same(found: str, expected: str) -> bool:
    """Whether two texts say the same, numbers up to what other processors round differently."""
    number = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")
    if number.sub("#", found).split() != number.sub("#", expected).split():
        return False
    pairs = zip(map(float, number.findall(found)), map(float, number.findall(expected)), strict=True)
    return all(math.isclose(one, other, rel_tol=0.2, abs_tol=1e-5) for one, other in pairs)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "console") for line in block.splitlines() if line.strip()]
    # Where prompts are shown, the lines without one are output.
    return [line[2:] for line in lines if line.startswith("$ ")] or lines


def run_in(folder: Path, block: str, errors: Path) -> None:
    """Run an example in a folder; what goes wrong is written to a file, and what it prints to one beside it."""
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "widefit"]:
        del sys.modules[name]  # the example finds widefit as its reader does
    try:
        with open(errors.with_name("printed"), "w", encoding="utf-8") as printed, contextlib.redirect_stdout(printed):
            exec(compile(block, "<example>", "exec"), {"__name__": "__main__"})
    except BaseException:
        errors.write_text(traceback.format_exc())
        raise


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


OUTPUTS = {block: output for page in PAGES for block, output in shown(page).items()}
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"), start=1)
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_python_examples_run(block: str, folder: Path, tmp_path_factory) -> None:
    errors = tmp_path_factory.mktemp("errors") / "traceback"
    process = forks().Process(target=run_in, args=(folder, block, errors), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0, errors.read_text()
    printed = errors.with_name("printed").read_text(encoding="utf-8")
    if block in OUTPUTS:
        assert same(printed, OUTPUTS[block]), f"the page shows\n{OUTPUTS[block]}and the example prints\n{printed}"


@pytest.mark.slow  # trains at the default width, as the pages do
def test_commands_run(folder: Path) -> None:
    every = [command for page in PAGES for command in commands(page)]
    for command in dict.fromkeys(every):  # the pages repeat one another
        program, *arguments = shlex.split(command)
        if program in EXCLUDED:
            continue
        assert program == "widefit"
        ran = call(*arguments, folder=folder)
        assert ran.code == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


def test_only_known_commands_are_left_out() -> None:
    left_out = {command.split()[0] for page in PAGES for command in commands(page)} - {"widefit"}
    assert left_out <= EXCLUDED.keys()


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles)
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
            led = page.parent / target if target else page
            assert led.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(led), f"{page.name} links to {target}#{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    docs = ROOT / "docs"
    assert sorted(named) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    public = {name for name in widefit.__all__ if not isinstance(getattr(widefit, name), ModuleType)} - {"__version__"}
    for name in widefit.__all__:
        public |= set(getattr(getattr(widefit, name), "__all__", ()))
    assert public <= documented


def test_the_documentation_says_why_runs_stop_as_they_do() -> None:
    rows = (f"| `{reason}` | {reason.sentence} | {'no' if reason.final else 'yes'} |" for reason in StopReason)
    table = "\n".join(rows)
    assert table in (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8"), f"the table should be\n{table}"


def test_every_bench_is_in_the_table_of_benches() -> None:
    table = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "bench" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(find(ROOT / "bench"))
