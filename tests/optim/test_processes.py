"""Several processes with rows of their own take the step of one process on all rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import findings, needs_gloo

from widefit import GaussNewton, Processes

SIZE = 3
# Conjugate gradients that end at a tolerance magnify rounding, the more the longer they take: "auto" leaves these out.
UNSTEADY = {"cg": 1e-4}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Findings of every process but the last, which ends before the others are done."""
    return findings(Path(__file__).with_name("processes_run.py"), tmp_path_factory.mktemp("processes"), SIZE)


pytestmark = [
    pytest.mark.slow(reason="three processes import torch, and compare eleven ways to take a step"),
    needs_gloo,
]


def test_steps_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    for own in found:
        for case in own["comparisons"] + own["pair"]:
            assert case["solvers"][0] == case["solvers"][1], case
            assert case["fell"] < 0.9, case
            tolerance = UNSTEADY.get(case["name"], 1e-10)
            assert case["apart"] < tolerance, case
            assert max(*case["losses"], case["evaluated"]) < tolerance, case


def test_all_processes_find_the_same(found: list[dict[str, Any]]) -> None:
    assert found[0]["comparisons"] == found[1]["comparisons"]
    assert found[0]["refusals"]["after"] == found[1]["refusals"]["after"]


def test_what_is_wrong_on_one_process_ends_all(found: list[dict[str, Any]]) -> None:
    expected = {
        "nan": "process 2: step: argument 0 is not finite in 1 of 20 samples, first in sample 3",
        "kinds": "process 2 passes Tensor of (2,)",
        "count": "process 2 passes Tensor of (3,)",
        "empty": "no sample on any process",
        "model": "process 2 has other parameters: seed torch alike",
        "options": "process 2 has other options or another state",
        "state": "process 2 has other options or another state",
        "covariance": "no such derivative",
        "covariance memory": "covariance stores J",
        "covariance data": "process 2: step needs the data",
        "derivative": "no such derivative",
        "residual": "process 2: a residual is called with ONE sample",
    }
    for own in found:
        for name, message in expected.items():
            assert message in own["refusals"][name]


def test_a_state_goes_on_with_another_number_of_processes(found: list[dict[str, Any]]) -> None:
    assert all(own["resumed"] < 1e-12 for own in found)


def test_covariance(found: list[dict[str, Any]]) -> None:
    assert all(own["covariance"] < 1e-8 for own in found)


def test_one_process_ends_the_run_of_all(found: list[dict[str, Any]]) -> None:
    assert all(own["minimized"] == [3, "callback"] for own in found)


def test_others_do_not_wait_for_a_process_that_is_gone(found: list[dict[str, Any]]) -> None:
    for own in found:
        assert "has ended, or has not answered for 60 seconds" in own["stopped"]
    assert "has not answered for 1 seconds" in found[0]["stalled"]
    assert "Ranks 1 failed to pass" in found[0]["stalled"]


def test_several_processes_need_a_group() -> None:
    with pytest.raises(ValueError, match="start them with torchrun"):
        GaussNewton(torch.nn.Linear(2, 1), process_group=Processes())
