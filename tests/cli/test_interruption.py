"""Ctrl-C keeps the best model, a checkpoint goes on to the same bits, and nothing is ever half written."""

import json
import signal
import time
from pathlib import Path

import pytest
from command_line import call_all, start, start_interpreter, write_houses
from safetensors.torch import load_file

import widefit
from widefit.files import read_checkpoint

# Thousands of small steps that never reach their goal: there is always one to interrupt.
ENDLESS = ("--rule", "gradient-descent", "--tol", 0, "--width", 64, "--drop", "age", "--threads", 1, "--json")


def wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def interrupt(folder: Path, times: int, number: signal.Signals = signal.SIGINT) -> tuple[int | None, str, str]:
    """Start endless training, wait for its first checkpoint, press Ctrl-C so many times, or send another signal.

    An interpreter has its own answer to Ctrl-C, and none to other signals.
    """
    arguments = ("--max-iter", 10**9, "--checkpoint", "state", "--checkpoint-every", 0.05)
    begin = start_interpreter if number == signal.SIGINT else start
    process = begin("train", "h.csv", *ENDLESS, *arguments, folder=folder)
    wait_for(folder / "state")
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.05)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder in which training was interrupted, and the JSON it printed."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_houses(folder / "h.csv", 60, 0)
    code, stdout, stderr = interrupt(folder, times=1)
    assert code == 130
    assert "Traceback" not in stderr
    return folder, json.loads(stdout)


def test_interrupt_keeps_model_report_and_checkpoint(interrupted: tuple[Path, dict]) -> None:
    folder, document = interrupted
    assert document["interrupted"]
    assert document["history"]["stop_reason"] == "interrupted"
    assert sorted(path.name for path in folder.iterdir()) == ["h.csv", "h.html", "h.widefit", "state"]
    model = widefit.load(folder / "h.widefit")
    assert model.n_iter_ == len(document["history"]["steps"]) - 1 > 0
    assert load_file(folder / "state")["weight"].equal(model.network_.weight.detach())
    assert "interrupted" in (folder / "h.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_requests_to_end_keep_the_model_as_well(tmp_path: Path, number: signal.Signals) -> None:
    write_houses(tmp_path / "h.csv", 60, 0)
    code, stdout, stderr = interrupt(tmp_path, 1, number)
    assert code == 130
    assert "Traceback" not in stderr
    assert json.loads(stdout)["interrupted"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.csv", "h.html", "h.widefit", "state"]
    widefit.load(tmp_path / "h.widefit")


def test_resuming_reaches_the_same_bits(interrupted: tuple[Path, dict]) -> None:
    folder, document = interrupted
    steps = len(document["history"]["steps"]) - 1 + 100
    more = ("--max-iter", steps, "--no-report")
    cases = {
        "resumed": ["train", "h.csv", *ENDLESS, *more, "--checkpoint", "state", "--resume", "--out", "resumed"],
        "straight": ["train", "h.csv", *ENDLESS, *more, "--out", "straight"],
    }
    ran = call_all(cases, folder)
    assert [result.code for result in ran.values()] == [0, 0]
    first, second = load_file(folder / "resumed"), load_file(folder / "straight")
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    losses = [[step["loss"] for step in json.loads(result.stdout)["history"]["steps"]] for result in ran.values()]
    assert losses[0] == losses[1]
    assert len(losses[0]) == steps + 1
    assert read_checkpoint(folder / "state")[1]["history"]["steps"][-1]["step"] == steps


def test_second_interrupt_ends_at_once_with_nothing_half_written(tmp_path: Path) -> None:
    write_houses(tmp_path / "h.csv", 60, 0)
    code, _, _ = interrupt(tmp_path, times=2)
    assert code in (130, -signal.SIGINT)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"h.csv", "state"} <= names <= {"h.csv", "state", "h.widefit", "h.html"}
    read_checkpoint(tmp_path / "state")
    if "h.widefit" in names:
        widefit.load(tmp_path / "h.widefit")
