"""The package says the same thing everywhere: versions, pins and ranges."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest
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


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("widefit") == widefit.__version__


def test_every_public_name_can_be_imported() -> None:
    for name in widefit.__all__:
        assert getattr(widefit, name) is not None, name


def test_the_command_is_what_is_installed_under_its_name(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["widefit", "--version"])
    with pytest.raises(SystemExit) as end:
        resolve_name(PROJECT["scripts"]["widefit"])()
    assert not end.value.code
    assert capsys.readouterr().out == f"widefit {widefit.__version__}\n"
