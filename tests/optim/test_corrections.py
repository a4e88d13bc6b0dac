"""Corrections of a point: when they are worth it, where they lead, and what λ follows."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from widefit import GaussNewton
from widefit.optim.damping import DampingPolicy

POLICY = DampingPolicy()
MISSES = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=40)


@given(MISSES, st.integers(1, 30))
def test_there_are_never_more_than_affordable(misses: list[float], most: int) -> None:
    if len(misses) > most:
        assert not POLICY.worth_correcting(misses, most)


@given(MISSES, st.integers(1, 30))
def test_more_is_affordable_does_not_end_corrections_earlier(misses: list[float], most: int) -> None:
    assert POLICY.worth_correcting(misses, most) <= POLICY.worth_correcting(misses, most + 1)


@pytest.mark.parametrize(("rate", "worth"), [(0.1, True), (0.5, True), (0.95, False), (1.0, False), (3.0, False)])
def test_they_go_on_while_the_outputs_come_nearer(rate: float, worth: bool) -> None:
    assert POLICY.worth_correcting([8.0 * rate**k for k in range(4)], 24) is worth


def test_they_end_where_what_is_affordable_cannot_suffice() -> None:
    slow = [1e6 * 0.5**k for k in range(4)]  # 24 more halvings to a tenth
    assert not POLICY.worth_correcting(slow, 12)
    assert POLICY.worth_correcting(slow, 40)


@given(st.integers(1, 10**9))
def test_what_is_affordable_grows_with_the_system(size: int) -> None:
    assert POLICY.fewest <= POLICY.affordable(size) <= POLICY.affordable(2 * size) <= POLICY.most


def test_the_harder_a_step_was_the_less_damping_falls() -> None:
    levels = [POLICY.after_success(1e-6, 1.0, 1e-15, True, corrections, 20) for corrections in range(21)]
    assert levels == sorted(levels)
    assert levels[0] == pytest.approx(1e-7)
    assert levels[-1] == 1e-6


def fitted(steps: int, policy: DampingPolicy = POLICY, solver: str = "auto") -> tuple[float, set[str | None]]:
    """The loss of a wave's fit, and the solvers that its steps took."""
    t = torch.linspace(-1, 1, 1500, dtype=torch.float64)[:, None]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    optimizer = GaussNewton(network, solver=solver)
    optimizer.policy = policy
    infos = [optimizer.step(t, torch.sin(7 * t)) for _ in range(steps)]
    return infos[-1].loss, {info.solver for info in infos}


def test_corrections_follow_a_valley_with_smaller_damping() -> None:
    alone = fitted(40, replace(POLICY, fewest=1, most=1), "qr")[0]
    assert fitted(40, replace(POLICY, fewest=24), "qr")[0] < 0.5 * alone


def test_damping_that_squares_would_lose_is_solved_for_by_a_triangle() -> None:
    free, taken = fitted(120)
    squared, same = fitted(120, solver="primal")
    assert taken == {"primal-cholesky", "qr"}
    assert same == {"primal-cholesky"}
    assert free < 0.5 * squared
