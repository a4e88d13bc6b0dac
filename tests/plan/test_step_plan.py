"""What "auto" chooses, and when it says no."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from widefit.optim.damping import DampingPolicy
from widefit.plan.step import StepShape, named_solver, plan_step
from widefit.solvers import Cholesky


def test_small_systems_are_solved_directly() -> None:
    assert plan_step(StepShape(1020, 257, 8), torch.float64, 10**10).solver == "primal"
    assert plan_step(StepShape(150, 10**5, 8), torch.float64, 10**10).solver == "cholesky"


def test_few_parameters_are_solved_in_their_space() -> None:
    plan = plan_step(StepShape(10**5, 2000, 4), torch.float32, 10**9)
    assert (plan.solver, plan.jacobian) == ("primal", "function")


def test_a_step_of_several_processes_does_not_depend_on_them() -> None:
    large = StepShape(20_000, 10**6, 4)
    assert plan_step(large, torch.float32, 10**8).solver == "cg"
    with pytest.raises(ValueError, match="takes at least"):
        plan_step(replace(large, processes=2, own_rows=10_000), torch.float32, 10**7)
    assert plan_step(replace(large, processes=2, own_rows=10_000), torch.float32, 10**10).solver == "nystrom-cg"


def test_very_many_rows_are_sketched() -> None:
    shape = StepShape(10**6, 1000, 4, factor_flops=400.0, factor_numbers=210.0)
    plan = plan_step(shape, torch.float32, 3 * 10**9)
    assert (plan.solver, plan.jacobian, plan.group) == ("primal-cg", "factors", 41)
    # Where inputs and signals do not fit, they are made again for every product.
    assert plan_step(shape, torch.float32, 5 * 10**8).jacobian == "function"
    assert plan_step(StepShape(10**7, 1000, 4, processes=8, own_rows=2 * 10**6), torch.float32, 10**10).group == 416


def test_factors_beat_a_stored_jacobian() -> None:
    shape = StepShape(2000, 10**6, 4, factor_flops=8000.0, factor_numbers=4000.0)
    plan = plan_step(shape, torch.float32, 10**10)
    assert (plan.solver, plan.jacobian) == ("cholesky", "factors")
    assert plan.bytes_needed < 0.2 * 4 * 2000 * 10**6


def test_little_is_done_in_float64_where_it_is_slow() -> None:
    shape = StepShape(2000, 10**5, 4, factor_flops=8000.0, factor_numbers=4000.0)
    assert "its factor in float64" in plan_step(shape, torch.float32, 10**11).rows()[1][2]
    plan = plan_step(replace(shape, double=64.0), torch.float32, 10**11)
    assert "H in float32, its factor in float32, refined" in plan.rows()[1][2]
    assert (plan.narrow, named_solver(plan.solver, 0, narrow=True)) == (True, Cholesky(narrow=True))
    # JᵀJ is summed in float64.
    tall = StepShape(10**5, 2000, 4)
    assert plan_step(tall, torch.float32, 10**11).solver == "primal"
    assert plan_step(replace(tall, double=64.0), torch.float32, 10**11).solver == "nystrom-cg"
    # Networks of float64 are solved in it, wherever they are.
    wide = plan_step(replace(shape, itemsize=8, double=64.0), torch.float64, 10**11)
    assert wide.dtype == torch.float64


def test_many_rows_iterate() -> None:
    shape = StepShape(200_000, 10**6, 4, factor_flops=8000.0, factor_numbers=4000.0)
    assert plan_step(shape, torch.float32, 10**10).solver in ("cg", "nystrom-cg", "sketched-cg")


def test_iterations_that_take_long_give_way_to_a_factorization() -> None:
    shape = StepShape(3500, 10_065, 4)
    assert plan_step(shape, torch.float32, 10**10, products=50).solver == "nystrom-cg"
    assert plan_step(shape, torch.float32, 10**10, products=1000).solver == "cholesky"


@given(st.integers(1, 10**5), st.integers(1, 10**7), st.integers(20, 40))
@example(6692, 116, 20)
def test_fits_or_says_what_would(rows: int, parameters: int, log_bytes: int) -> None:
    free, shape = 2**log_bytes, StepShape(rows, parameters, 4)
    try:
        plan = plan_step(shape, torch.float32, free)
    except ValueError:
        # What refuses this budget accepts the one that it names.
        with pytest.raises(ValueError, match="takes at least") as caught:
            plan_step(shape, torch.float32, free)
        named = float(str(caught.value).split("takes at least ")[1].split()[0]) * 1e9
        plan = plan_step(shape, torch.float32, free := int(named * 1.01))
    assert plan.bytes_needed <= free


def test_refusal_names_a_batch_that_fits() -> None:
    with pytest.raises(ValueError, match=r"at most (\d+) outputs fit") as caught:
        plan_step(StepShape(4000, 4000, 8), torch.float64, 10**7, "cholesky")
    fitting = int(str(caught.value).split("at most ")[1].split()[0])
    assert plan_step(StepShape(fitting, 4000, 8), torch.float64, 10**7, "cholesky").bytes_needed <= 10**7


def test_damping_moves_both_ways() -> None:
    policy = DampingPolicy(bend=0.75)
    assert policy.length(0.1) == 1.0
    assert policy.length(1.5) == 0.5
    assert policy.after_success(1e-6, 1.0, 1e-15) == pytest.approx(1e-7)
    assert policy.after_success(1e-6, 1.0, 1e-15, at_once=False) == 1e-6
    assert policy.after_success(1e-6, 0.3, 1e-15) == 1e-6
    assert policy.after_success(1e-6, 0.1, 1e-15) == pytest.approx(3e-6)
    assert policy.after_success(1e-6, 1.0, 1e-6) == 1e-6
    levels = [policy.after_failure(1e-6, failures) for failures in range(1, 6)]
    assert levels[0] == levels[1] == pytest.approx(3e-6)
    assert levels == sorted(levels)
    assert policy.after_failure(1e3, 1) == policy.largest


@given(st.floats(0, 1e30) | st.just(math.inf), st.floats(0, 1e30))
def test_steps_that_miss_more_become_shorter(defect: float, less: float) -> None:
    policy = DampingPolicy()
    found = policy.shortening(defect)
    assert 0.1 <= found <= 0.7
    assert policy.shortening(max(policy.near, min(defect, less))) >= found
    if defect < policy.near:
        return
    # The defect grows as α³: at the α that is tried next it is what was aimed at.
    if 0.1 < found < 0.7:
        assert defect * found**3 == pytest.approx(policy.missed)


def test_damping_leaves_a_part_of_fresh_residuals_over() -> None:
    policy = DampingPolicy(overfit=0.1)
    assert policy.after_fresh(1e-6, 1e-7, 0.01) == pytest.approx(3e-6)
    assert policy.after_fresh(1e-6, 1e-7, 0.2) == 1e-6
    assert policy.after_fresh(1e-6, 1e-7, 0.9) == 1e-7
    assert policy.after_fresh(policy.largest, 1.0, 0.0) == policy.largest


def test_float32_is_left_where_batches_are_alike_and_it_holds_damping_up() -> None:
    policy = DampingPolicy(known=2.0)
    assert policy.surprise(0.5, 0.75) == 1.5
    assert policy.surprise(0.0, 1.0) == math.inf
    assert policy.alike(2.0)
    assert not policy.alike(2.1)
    assert policy.exact(False, 1.5, level=1e-8, floor=1e-8)
    assert not policy.exact(False, 1.5, level=1e-7, floor=1e-8)
    assert not policy.exact(False, 3.0, level=1e-8, floor=1e-8)
    assert policy.exact(True, 3.0, level=1e-12, floor=1e-8)
    assert not policy.exact(True, 3.0, level=1e-7, floor=1e-8)
    assert not policy.exact(True, 30.0, level=1e-12, floor=1e-8)


def test_pace_slows_where_fresh_losses_no_longer_fall() -> None:
    policy = DampingPolicy(slowest=0.1)
    pace, trend = policy.pace(1.0, math.inf, 1.0)
    assert (pace, trend) == (1.0, 1.0)
    for _ in range(20):  # each loss well below the trend
        pace, trend = policy.pace(pace, trend, trend / 2)
    assert pace == 1.0
    seen = []
    for _ in range(100):
        pace, trend = policy.pace(pace, trend, trend)
        seen.append(pace)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.1
    assert policy.pace(0.5, 2.0, 0.0) == (0.5, 2.0)
    assert policy.pace(0.5, 2.0, math.inf) == (0.5, 2.0)


@given(st.floats(1e-6, 0.1), st.booleans(), st.floats(0, 10))
def test_tolerance_follows_what_steps_gain(previous: float, accepted: bool, ratio: float) -> None:
    policy = DampingPolicy()
    found = policy.tolerance(previous, accepted, ratio)
    assert policy.tightest <= found <= policy.loosest
    if not accepted:
        assert found <= max(previous, policy.tightest)
    elif policy.tightest < found < policy.loosest:
        assert found == pytest.approx(0.1 * ratio**0.5)
