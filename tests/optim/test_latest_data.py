"""Whether every step sees other data is known after a run was saved, copied or has rested as if it had gone on."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from small_systems import mlp, regression
from torch import nn

from widefit import GaussNewton, Residual
from widefit.files import Checkpoint, read_checkpoint
from widefit.optim.latest import LatestData

Pair = tuple[nn.Module, GaussNewton]


def loaded(pair: Pair) -> Pair:
    model, optimizer = copy.deepcopy(pair[0]), pair[1]
    other = GaussNewton(model)
    other.load_state_dict(optimizer.state_dict())
    return model, other


def equation(u, x):
    return u(x).sum()


def points(seed: int, count: int = 20) -> torch.Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "duplicate", [loaded, copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["state", "copy", "pickle"]
)
@pytest.mark.parametrize("seeds", [(0, 1), (0, 0), (0, 1, 1), (0, 0, 2)])
def test_a_copy_tells_fresh_data_from_fixed_ones(duplicate: Callable[[Pair], Pair], seeds: tuple[int, ...]) -> None:
    model = mlp(3, 20, 1)
    optimizer = GaussNewton(model)
    batches = [(x, x.sum(dim=1, keepdim=True).sin()) for x in map(points, seeds)]
    for batch in batches[:-1]:
        optimizer.step(*batch)
    twin, other = duplicate((model, optimizer))
    optimizer.step(*batches[-1])
    other.step(*(tensor.clone() for tensor in batches[-1]))
    assert other.state_dict()["widefit"]["changing"] == optimizer.state_dict()["widefit"]["changing"]
    assert optimizer.state_dict()["widefit"]["changing"] == (seeds[-1] != seeds[-2])
    assert torch.equal(twin[0].weight, model[0].weight)


def test_data_changed_in_place_are_other_data() -> None:
    x = points(0)
    latest = LatestData()
    assert latest.replace([x]) is None
    assert latest.replace([x]) is False
    x[0, 0] += 1
    assert LatestData(latest.digest).replace([x]) is True
    assert latest.replace([x]) is True
    assert latest.replace([x.float()]) is True
    assert LatestData(latest.digest).replace([x.float()]) is False
    assert LatestData(None).replace([x]) is None


def test_a_loaded_optimizer_knows_how_its_latest_step_went() -> None:
    x, y = regression(30)
    model = nn.Linear(3, 1).double()
    optimizer = GaussNewton(model)
    history = optimizer.minimize(x, y, max_iter=40)
    assert history.stop_reason == "stalled"
    _, other = loaded((model, optimizer))
    assert other.stationary == optimizer.stationary
    assert other.status == optimizer.status != "no step has been taken"


def test_a_stalled_run_that_is_resumed_says_the_same(tmp_path) -> None:
    x, y = regression(30)
    path = tmp_path / "run.state"
    first = GaussNewton(nn.Linear(3, 1).double()).minimize(x, y, max_iter=40, callbacks=[Checkpoint(path)])
    again = GaussNewton(nn.Linear(3, 1).double()).minimize(x, y, max_iter=40, resume=read_checkpoint(path))
    assert first.stop_reason == again.stop_reason == "stalled"
    assert again.why == first.why


@pytest.mark.parametrize("case", ["rest", "loaded"])
@pytest.mark.parametrize("fixed", [True, False])
def test_few_points_are_only_warned_of_where_they_were_seen_twice(case: str, fixed: bool) -> None:
    model = mlp(3, 20, 1)
    optimizer = GaussNewton(model)
    optimizer.param_groups[0]["lr"] = 0.0 if case == "rest" else 1.0
    optimizer.step(Residual(equation, points(0)))
    optimizer.param_groups[0]["lr"] = 1.0
    if case == "loaded":
        model, optimizer = loaded((model, optimizer))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step(Residual(equation, points(0 if fixed else 1)))
        optimizer.step(Residual(equation, points(0 if fixed else 2)))
    assert len(caught) == fixed
