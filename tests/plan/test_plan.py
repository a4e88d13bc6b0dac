"""One type of plan, whatever was planned: a fit, a step of the optimizer, a fine-tuning."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import widefit
from widefit.plan.base import Choice, Plan
from widefit.plan.step import StepPlan

PLAN = Plan((Choice("tracker", "dense", "few neurons"), Choice("solver", "cg", "little memory")), 3_000_000, 2.0e7)


def fit_plan() -> Plan:
    x = np.random.default_rng(0).normal(size=(60, 4))
    return widefit.WideRegressor((64,), max_iter=2).fit(x, x[:, 0]).plan_


def step_plan() -> Plan:
    torch.manual_seed(0)
    optimizer = widefit.GaussNewton(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))
    assert optimizer.plan is None
    optimizer.step(torch.randn(20, 3), torch.randn(20, 1))
    assert optimizer.plan is not None
    return optimizer.plan


def finetuning_plan() -> Plan:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    return widefit.finetune(model, torch.randn(30, 3), torch.randn(30), max_iter=2).finetuning_.plan


@pytest.mark.parametrize(
    ("make", "decided"),
    [
        (fit_plan, ["threshold", "input map", "alpha", "readout scale", "device", "tracker", "solver", "prediction"]),
        (step_plan, ["solver", "jacobian", "device"]),
        (finetuning_plan, ["products of 0", "products of 2", "layers", "frozen start", "device", "rows"]),
    ],
    ids=["fit", "step", "fine-tuning"],
)
def test_every_plan_can_be_read_and_kept(make, decided: list[str]) -> None:
    plan = make()
    assert isinstance(plan, Plan)
    assert [what for what, _, _ in plan.rows()] == decided
    assert all(chosen and reason for _, chosen, reason in plan.rows())
    kept = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert kept == Plan(plan.choices, plan.bytes_needed, plan.flops_per_step)
    printed = " ".join(str(plan).split())
    assert all(f"{what} {chosen} ({reason})" in printed for what, chosen, reason in plan.rows())


def test_a_plan_is_read_line_by_line() -> None:
    assert str(PLAN).splitlines() == [
        "tracker  dense (few neurons)",
        "solver   cg (little memory)",
        "memory   0.003 GB (at the peak, beyond what the process held)",
        "work     2e+07 flops (a step)",
    ]
    assert str(Plan()) == ""


def test_choices_before_and_after() -> None:
    first, last = Choice("alpha", "0", "as good"), Choice("prediction", "dense", "few rows")
    plan = PLAN.after([first]).then(last)
    assert plan.choices == (first, *PLAN.choices, last)
    assert (plan.bytes_needed, plan.flops_per_step) == (PLAN.bytes_needed, PLAN.flops_per_step)
    assert PLAN.choices[0].what == "tracker"


def test_a_step_says_what_it_is_made_of() -> None:
    plan = step_plan()
    assert isinstance(plan, StepPlan)
    assert plan.rows()[0][1] == plan.solver
    assert plan.rows()[1][1] == plan.jacobian
    traced = plan.traced()
    assert traced.rows()[1][:2] == ("jacobian", "traced")
    assert traced.rows()[0] == plan.rows()[0]


def test_sentences_of_a_fine_tuning_follow_from_its_plan() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    record = widefit.finetune(model, torch.randn(30, 3), torch.randn(30), max_iter=2, batch_size=10).finetuning_
    assert record.plan.rows()[-1] == ("rows", "10 rows a step beyond the readout", "batch_size=10")
    assert record.decisions[-1] == "rows: batch_size=10, so 10 rows a step beyond the readout"


def test_a_plan_prints_one_decision_a_line_and_as_a_table() -> None:
    reason = "a long reason " * 20
    plan = Plan(
        (Choice("tracker", "dense", "it is <faster>"), Choice("solver", "cholesky", reason)), bytes_needed=10**9
    )
    lines = str(plan).splitlines()
    assert lines[0] == "tracker  dense (it is <faster>)"
    assert lines[1].startswith("solver   cholesky (a long reason")
    assert lines[2].startswith("         ")
    assert max(map(len, lines)) <= 110
    assert lines[-1] == "memory   1 GB (at the peak, beyond what the process held)"
    assert "<td>it is &lt;faster&gt;</td>" in plan._repr_html_()
