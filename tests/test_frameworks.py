"""The recipes for other frameworks, as their page has them, where the framework is installed."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "frameworks.md"
RECIPES = dict(
    zip(
        ("lightning", "skorch", "deepxde", "pina"),
        re.findall(r"^```py\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL),
        strict=True,
    )
)


@pytest.mark.parametrize("framework", RECIPES)
def test_recipe_works(framework: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(framework)
    kind = torch.get_default_dtype()
    try:
        exec(compile(RECIPES[framework], framework, "exec"), {"__name__": "__main__"})
    finally:
        torch.set_default_dtype(kind)
