"""Several processes with a share of the neurons each take the steps of one process with all of them."""

from pathlib import Path
from typing import Any

import pytest
from several_processes import findings, needs_gloo

SIZE = 3

pytestmark = [
    pytest.mark.slow(reason="three processes import torch, and train some thirty networks"),
    needs_gloo,
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Findings of every process but the last, which ends in the middle of a training."""
    return findings(Path(__file__).with_name("shared_training_run.py"), tmp_path_factory.mktemp("shared"), SIZE)


def test_runs_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    assert {case["name"][-11:] for case in found[0]["comparisons"]} == {"2 processes", "3 processes"}
    for own in found:
        for case in own["comparisons"]:
            assert case["apart"] < 1e-10, case
            assert case["losses"] < 1e-8, case
            assert case["flips"][0] == case["flips"][1], case
            assert case["moved"] < 0.6, case


def test_all_processes_have_the_same_in_the_end(found: list[dict[str, Any]]) -> None:
    assert found[0]["comparisons"] == found[1]["comparisons"]


def test_a_checkpoint_goes_on_with_another_number_of_processes(found: list[dict[str, Any]]) -> None:
    for own in found:
        assert len(own["resumed"]) == 6
        assert max(own["resumed"].values()) < 1e-10, own["resumed"]


def test_estimators_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    for own in found:
        for model in own["estimators"].values():
            assert model["apart"] < 1e-5
            assert model["metric"][0] == pytest.approx(model["metric"][1], abs=1e-5)
            for same in ("parts", "seeds", "choices"):
                assert model[same][0] == model[same][1]


def test_what_is_not_shared_is_refused_on_all_processes(found: list[dict[str, Any]]) -> None:
    expected = {
        "deep": "several processes share one hidden layer",
        "sgd": 'rule="sgd" takes steps too short to share',
        "regenerate": "pass network.materialize()",
        "tracker": 'several take tracker="auto", "certificate" or "dense"',
        "narrow": "3 processes need a width of at least 6",
        "rows": "process 2 has other rows",
        "options": "the same network, all rows in the same order, and the same options",
        "network": "process 2 has another network or other options",
        "after": "nothing",
    }
    for own in found:
        for name, message in expected.items():
            assert message in own["refusals"][name]


def test_the_first_process_speaks_and_writes_for_all(found: list[dict[str, Any]]) -> None:
    first, second = (own["command"] for own in found)
    assert first["code"] == second["code"] == 0
    assert first["files"] == ["model.html", "model.widefit", "table.csv"]
    assert second["files"] == ["table.csv"]
    assert first["said"] > 0
    assert second["said"] == 0
    assert first["absent"][0] == second["absent"][0] == 2
    assert "widefit: error: process 2: there is no file" in first["absent"][1]
    assert second["absent"][1] == ""


def test_others_do_not_wait_for_a_process_that_is_gone(found: list[dict[str, Any]]) -> None:
    for own in found:
        message, untouched = own["stopped"]
        assert "has ended, or has not answered for 60 seconds" in message
        assert untouched
        assert "has not answered for 1 seconds" in own["stalled"][0]
