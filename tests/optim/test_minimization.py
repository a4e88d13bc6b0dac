"""The loop around an optimizer: when it ends, what callbacks see, and that it takes the steps of a loop by hand."""

import io
import os
import signal

import pytest
import torch
from rich.console import Console
from small_systems import mlp, regression

from widefit import GaussNewton, Residual
from widefit.callbacks import Callback, Progress
from widefit.files import Checkpoint, read_checkpoint


def test_takes_the_steps_of_a_loop_by_hand() -> None:
    x, y = regression(40)
    looped, stepped = mlp(3, 8, 1), mlp(3, 8, 1)
    by_hand = GaussNewton(stepped)
    for _ in range(4):
        by_hand.step(x, y)
    history = GaussNewton(looped).minimize(x, y, max_iter=4)
    assert history.losses == by_hand.history.losses
    assert history.stop_reason == "max_iter"
    assert all(torch.equal(a, b) for a, b in zip(looped.parameters(), stepped.parameters(), strict=True))
    assert history.to_dict()["steps"][-1]["step"] == 4


def test_goes_on_and_ends_at_the_goal() -> None:
    x, y = regression(40)
    optimizer = GaussNewton(mlp(3, 16, 16, 1))
    assert len(optimizer.minimize(x, y, max_iter=2)) == 3
    assert len(optimizer.minimize(x, y, max_iter=2)) == 5
    history = optimizer.minimize(x, y, max_iter=60, tol=1e-3)
    assert history.stop_reason == "tol"
    assert history.losses[-1] <= 1e-3 < history.losses[-2]


def test_data_are_drawn_before_every_step() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = []

    def draw():
        x = torch.rand(8, 3, generator=generator, dtype=torch.float64)
        drawn.append(x)
        return x, x.sum(dim=1, keepdim=True)

    history = GaussNewton(mlp(3, 8, 1)).minimize(draw, max_iter=5)
    assert len(drawn) == 5
    assert len(history) == 6


def test_stalls_where_nothing_is_left_to_gain() -> None:
    x = torch.zeros(5, 3, dtype=torch.float64)
    model = mlp(3, 4, 1)
    y = model(x).detach() * 0
    history = GaussNewton(model).minimize(x, y, max_iter=200)
    assert history.stop_reason in ("stalled", "tol")
    assert len(history) < 100


def test_metric_is_recorded_and_shown() -> None:
    x, y = regression(30)
    written = io.StringIO()
    shown = Console(file=written, force_terminal=True, width=200)
    history = GaussNewton(mlp(3, 6, 1)).minimize(
        x, y, max_iter=3, metric=lambda model: float(model(x).detach().mean()), callbacks=[Progress(shown)]
    )
    assert [info.metric is None for info in history] == [False] * 4
    assert "3/3" in written.getvalue()
    assert f"loss {history.losses[-1]:.3e}" in written.getvalue()


class Watcher(Callback):
    def __init__(self, end_at: int = 0, interrupt_at: int = 0):
        self.calls: list[str] = []
        self.end_at, self.interrupt_at = end_at, interrupt_at
        self.tensors: dict = {}

    def start(self, run) -> None:
        self.calls.append("start")

    def step(self, run, info):
        self.calls.append(f"step {info.step}")
        if info.step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        return info.step == self.end_at

    def finish(self, run, history) -> None:
        self.calls.append(history.stop_reason)
        self.tensors, self.document = run.state()


def test_callbacks_see_every_step_and_end_the_run() -> None:
    x, y = regression(30)
    watcher, model = Watcher(end_at=2), mlp(3, 6, 1)
    GaussNewton(model).minimize(x, y, callbacks=[watcher])
    assert watcher.calls == ["start", "step 1", "step 2", "callback"]
    assert torch.equal(watcher.tensors["model.0.weight"], model.get_parameter("0.weight"))
    assert watcher.document["optimizer"]["widefit"]["step"] == 2


def test_an_interrupt_ends_after_the_step() -> None:
    x, y = regression(30)
    watcher = Watcher(interrupt_at=2)
    history = GaussNewton(mlp(3, 6, 1)).minimize(x, y, callbacks=[watcher])
    assert history.stop_reason == "interrupted"
    assert history[-1].step == 2


@pytest.mark.parametrize("solver", ["svd", "sketched-cg"])
def test_a_checkpoint_goes_on_to_the_same_bits(solver: str, tmp_path) -> None:
    x, y = regression(40)
    whole, model, again = mlp(3, 8, 1), mlp(3, 8, 1), mlp(3, 8, 1, seed=5)
    straight = GaussNewton(whole, solver=solver, momentum=0.5).minimize(x, y, max_iter=6)
    path = tmp_path / "run.state"
    watch = [Checkpoint(path), Watcher(end_at=3)]
    GaussNewton(model, solver=solver, momentum=0.5).minimize(x, y, max_iter=6, callbacks=watch)
    resumed = GaussNewton(again, solver=solver, momentum=0.5)
    history = resumed.minimize(x, y, max_iter=6, resume=read_checkpoint(path))
    assert history.losses == straight.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_the_state_of_another_run_is_refused() -> None:
    x, y = regression(5)
    with pytest.raises(ValueError, match="not the state of a GaussNewton"):
        GaussNewton(mlp(3, 1)).minimize(x, y, resume=({}, {"rule": "sgd"}))


@pytest.mark.parametrize(("options", "message"), [({"max_iter": 0}, "max_iter"), ({"tol": -1.0}, "tol")])
def test_refusals(options: dict, message: str) -> None:
    x, y = regression(5)
    with pytest.raises(ValueError, match=message):
        GaussNewton(mlp(3, 1)).minimize(x, y, **options)


@pytest.mark.parametrize("kind", ["residual", "tensor", "array", "tuple", "list"])
def test_functions_that_draw_one_thing(kind: str) -> None:
    def function(u, x):
        return u(x) - x.sum(dim=-1)

    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {
        "residual": Residual(function, x),
        "tensor": x,
        "array": x.numpy(),
        "tuple": (Residual(function, x),),
        "list": [x],
    }[kind]
    plain = GaussNewton(mlp(3, 4, 1), residual=function)
    expected = plain.minimize(Residual(function, x), max_iter=2, validation=(Residual(function, x),))
    for validation in (found, lambda: found):
        optimizer = GaussNewton(mlp(3, 4, 1), residual=function)
        history = optimizer.minimize(lambda: found, max_iter=2, validation=validation)
        assert history.losses == expected.losses
        assert [info.metric for info in history] == [info.metric for info in expected]


@pytest.mark.parametrize("found", [{"x": torch.ones(3, 3)}, None, 3.0])
def test_functions_that_draw_something_else_are_refused(found: object) -> None:
    x = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"function draws must be a tensor.* got {type(found).__name__}"):
        GaussNewton(mlp(3, 4, 1)).minimize(lambda: found)
    with pytest.raises(ValueError, match=f"validation must be a tensor.* got {type(found).__name__}"):
        GaussNewton(mlp(3, 4, 1)).minimize(x, x[:, :1], validation=lambda: found)
