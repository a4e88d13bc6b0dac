"""Kernels find a folder to be cached in, whoever runs them and wherever they are installed."""

import os
import stat
from pathlib import Path

import numba
import pytest

from widefit.kernels import cache_folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch) -> Path:
    """Neither the package nor the home can be written; temporary files go to the folder that is given."""
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(cache_folder, "_places_of_numba", lambda: (Path("/dev/null/a"), Path("/dev/null/b")))
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(cache_folder.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", numba.config.CACHE_DIR)
    return tmp_path


def test_a_folder_for_temporary_files_takes_their_place(nowhere: Path) -> None:
    cache_folder.ensure()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert chosen.parent == nowhere
    assert str(chosen) == numba.config.CACHE_DIR
    assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
    del os.environ["NUMBA_CACHE_DIR"]
    cache_folder.ensure()
    assert Path(os.environ["NUMBA_CACHE_DIR"]) == chosen


def test_a_folder_that_others_can_write_to_is_not_taken(nowhere: Path) -> None:
    open_to_all = nowhere / f"widefit-kernels-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    cache_folder.ensure()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert chosen != open_to_all
    assert chosen.parent == nowhere


def test_what_can_be_written_stays(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(cache_folder, "_places_of_numba", lambda: (Path("/dev/null/a"), tmp_path / "cache" / "numba"))
    cache_folder.ensure()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")
    cache_folder.ensure()
    assert os.environ["NUMBA_CACHE_DIR"] == "/somewhere"


def test_a_user_without_a_home(tmp_path: Path, monkeypatch) -> None:
    """A user that the system does not know, as in containers: `~` leads nowhere."""
    monkeypatch.setattr(cache_folder, "__file__", "/dev/null/package.py")
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", numba.config.CACHE_DIR)
    cache_folder.ensure()
    assert Path(os.environ["NUMBA_CACHE_DIR"]).parent == tmp_path
