"""The prose of the house, as far as it can be counted: how docstrings begin, and words that have one spelling."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "widefit"
# A docstring begins with a noun or an imperative.
OPENINGS = ("What", "Of", "Where", "As", "In", "Let", "When", "How")
SPELLINGS = {
    r"\bread-outs?\b": "readout",
    r"\bso-manieth\b": "the number itself",
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FOLDERS = sorted(path for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "bench").glob("*.md")]


def told(offenders: list[str]) -> str:
    """Offenders, a line each."""
    return "\n".join(["", *offenders])


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_docstrings_begin_with_a_noun_or_an_imperative(folder: Path) -> None:
    opening = re.compile(rf"({'|'.join(OPENINGS)})\b")
    offenders = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for path in sorted(folder.rglob("*.py"))
        for line, text in docstrings(path)
        if opening.match(text)
    ]
    assert not offenders, told(offenders)


@pytest.mark.parametrize("word", SPELLINGS)
def test_words_have_one_spelling(word: str) -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*sorted(SOURCE.rglob("*.py")), *PAGES]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(word, line, re.IGNORECASE)
    ]
    assert not offenders, f"{SPELLINGS[word]}:{told(offenders)}"
