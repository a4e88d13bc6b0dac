"""Results reach whatever standard output is, remarks cost no work, and outputs that are no files stay what they are."""

import io
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import ENVIRONMENT, call, run, start, write_houses

import widefit
from widefit.cli import failure
from widefit.cli.output import Output
from widefit.cli.streams import Dispensable

TRAIN = ("train", "h.csv", "--width", "64", "--max-iter", "2", "--drop", "age", "--no-report", "--threads", "1")
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    write_houses(folder / "h.csv", 40, 0)
    assert call(*TRAIN, folder=folder).code == 0
    return folder


def shell(folder: Path, *arguments: str, to: str = "", **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """`widefit ARGUMENTS` with redirections as a shell makes them."""
    command = " ".join([f"'{sys.executable}'", "-m", "widefit", *arguments, to])
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=ENVIRONMENT | environment, capture_output=True, timeout=240
    )


def test_results_in_letters_that_the_encoding_lacks(folder: Path) -> None:
    ran = shell(folder, *TRAIN, PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert b"\\u221a(0.4 ln width)" in ran.stdout
    document = json.loads(run(*TRAIN, "--json", folder=folder, encoding="cp1252").stdout)
    assert any("√(0.4 ln width)" in choice["reason"] for choice in document["plan"]["choices"])


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_remarks_on_a_full_disk_cost_no_work(folder: Path) -> None:
    (folder / "h.widefit").unlink()
    ran = run(*TRAIN, folder=folder, errors="/dev/full")
    assert "h.widefit" in ran.stdout
    widefit.load(folder / "h.widefit")


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_results_on_a_full_disk_are_a_failure_in_words(folder: Path) -> None:
    ran = shell(folder, "predict", "h.widefit", "h.csv", to=">/dev/full")
    assert ran.returncode == 1
    assert ran.stderr.decode().splitlines()[-1] == "widefit: error: No space left on device"


def test_closed_streams(folder: Path) -> None:
    (folder / "h.widefit").unlink()
    assert shell(folder, *TRAIN, to=">&- 2>&- <&-").returncode == 0
    widefit.load(folder / "h.widefit")


def test_outputs_that_are_no_files_stay_what_they_are(tmp_path: Path) -> None:
    write_houses(tmp_path / "h.csv", 40, 0)
    os.mkfifo(tmp_path / "page")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "page").read_text()))
    reader.start()
    ran = call(*(part for part in TRAIN if part != "--no-report"), "--report", "page", folder=tmp_path)
    reader.join(60)
    assert ran.code == 0
    assert found[0].startswith("<!doctype html>")
    assert stat.S_ISFIFO((tmp_path / "page").stat().st_mode)
    assert call(*TRAIN, "--out", "/dev/null", folder=tmp_path).code == 0
    assert Path("/dev/null").is_char_device()


def test_a_read_only_output_and_a_link_to_itself_are_refused_before_the_work(tmp_path: Path) -> None:
    write_houses(tmp_path / "h.csv", 40, 0)
    (tmp_path / "m.widefit").touch(0o444)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("m.widefit", "loop", "é" * 200):
        ran = call(*TRAIN, "--out", name, folder=tmp_path)
        assert ran.code == 2
        assert ran.stderr.splitlines()[-1].startswith(f"widefit: error: --out: {name} cannot be written (")
        assert "loss" not in ran.stderr
    assert call("train", "~nosuchuser/h.csv", folder=tmp_path).code == 2


@pytest.mark.parametrize("mode", ["a table", "a stream"])
def test_a_checkpoint_that_cannot_be_written_any_more_costs_no_work(tmp_path: Path, mode: str) -> None:
    write_houses(tmp_path / "h.csv", 600, 0)
    (tmp_path / "kept").mkdir()
    process = start(
        *(part for part in TRAIN if part not in ("2", "--max-iter")),
        *("--stream", "--block", 4) if mode == "a stream" else ("--rule", "gradient-descent", "--max-iter", 300),
        *("--tol", 0, "--checkpoint", "kept/state", "--checkpoint-every", 0),
        folder=tmp_path,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "kept" / "state").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    (tmp_path / "kept").rename(tmp_path / "gone")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "warning: the checkpoint kept/state could not be written: No such file or directory" in stderr
    assert "kept/state (could not be written)" in stdout
    widefit.load(tmp_path / "h.widefit")


ERRORS: dict[str, tuple[BaseException, int, str]] = {
    "torch": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: ..."), 1, "out of memory"),
    "polars": (pl.exceptions.ComputeError("no such thing"), 1, "no such thing"),
    "a panic": (pl.exceptions.PanicException("a thread panicked"), 1, "a thread panicked"),
    "threads": (RuntimeError("can't start new thread"), 1, "no more threads can be started"),
    "a home": (RuntimeError("Could not determine home directory."), 2, "there is no home folder"),
    "numbers": (FloatingPointError("overflow"), 1, "overflow"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_libraries_end_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, code, message = ERRORS[name]

    def command() -> int:
        raise error

    with pytest.raises(failure.typer.Exit) as ended:
        failure.guarded(command)()
    assert ended.value.exit_code == code
    assert capsys.readouterr().err.startswith(f"widefit: error: {message}")


def test_faults_of_our_own_keep_their_traceback() -> None:
    def command() -> int:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        failure.guarded(command)()


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_stream_of_remarks_drops_what_it_cannot_write() -> None:
    for stream in (Full(), None):
        assert Dispensable(stream).write("a remark") == 8


def test_json_of_rules_and_random_states(capsys: pytest.CaptureFixture[str]) -> None:
    content: dict[str, Any] = {"rule": widefit.rules.SGD(lr=0.5, adversary=widefit.rules.PGD(0.1)), "path": Path("a")}
    Output(json=True).document(content)
    found = json.loads(capsys.readouterr().out)
    assert found["rule"]["type"] == "SGD"
    assert found["rule"]["adversary"]["radius"] == 0.1
    assert found["path"] == "a"


def test_info_of_a_model_whose_rule_is_an_object(folder: Path) -> None:
    from widefit.data.readers import read_table

    X = read_table(str(folder / "h.csv")).frame[["area", "rooms"]].to_numpy()
    model = widefit.WideRegressor(hidden_layer_sizes=(32,), rule=widefit.rules.SGD(lr=0.01), max_iter=2)
    widefit.save(model.fit(X, X[:, 0]), folder / "sgd.widefit")
    ran = call("info", "sgd.widefit", "--json", folder=folder)
    assert ran.code == 0
    assert json.loads(ran.stdout)["parameters"]["rule"]["lr"] == 0.01
    assert call("info", "sgd.widefit", folder=folder).code == 0
