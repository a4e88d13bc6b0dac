"""Callbacks see real runs: early stopping ends them, progress names what it shows."""

import io
import math

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_diabetes

import widefit
from widefit.callbacks import EarlyStopping, Log, Progress
from widefit.cli.run.progress import ALL, Lines
from widefit.training.history import History

X, y = load_diabetes(return_X_y=True)
X, y = X[:120] / np.linalg.norm(X[:120], axis=1, keepdims=True), (y[:120] - 150) / 80
HELD_OUT = slice(80, None)


def run(*callbacks: widefit.callbacks.Callback, metric: bool = True, max_iter: int = 60) -> History:
    """Descent on 80 rows, watched on 40: they overfit sooner or later."""
    network = widefit.nn.TwoLayer(10, 256, threshold=0.5, seed=0)

    def score(given: widefit.nn.TwoLayer) -> float:
        outputs = given(given.weight.new_tensor(X[HELD_OUT])).detach().numpy()[:, 0]
        return -float(np.mean((outputs - y[HELD_OUT]) ** 2))

    rule = widefit.rules.GradientDescent(lr=0.02)
    return widefit.train(
        network, X[:80], y[:80], rule=rule, tol=0.0, max_iter=max_iter, metric=score if metric else None,
        callbacks=callbacks, threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> History:
    return run()


@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("monitor", ["metric", "loss"])
def test_a_run_ends_after_so_many_steps_without_an_improvement(whole: History, patience: int, monitor: str) -> None:
    scores = [info.metric if monitor == "metric" else -info.loss for info in whole]
    delta = 0.05 * (max(scores) - scores[0])
    best, waited, expected = scores[0], 0, len(scores) - 1
    for step, score in enumerate(scores[1:], 1):
        best, waited = (score, 0) if score > best + delta else (best, waited + 1)
        if waited == patience:
            expected = step
            break
    assert expected < len(scores) - 1, "the run has to be one that stops"
    ended = run(EarlyStopping(patience, delta, monitor))
    assert ended[-1].step == expected
    assert ended.stop_reason == "callback"
    assert ended.losses == whole.losses[: expected + 1]


def test_an_error_is_better_when_it_is_lower(whole: History) -> None:
    watch = EarlyStopping(2, higher_is_better=False)
    assert run(watch)[-1].step == next(
        step
        for step in range(2, len(whole))
        if min(whole[step].metric, whole[step - 1].metric) >= min(info.metric for info in whole[: step - 1])
    )


def test_a_callback_that_is_used_again_begins_anew() -> None:
    watch = EarlyStopping(1, 0.5, "loss")
    assert run(watch).losses == run(watch).losses


def test_a_run_can_end_before_its_first_step() -> None:
    class Enough(widefit.callbacks.Callback):
        def start(self, run: widefit.callbacks.Run) -> bool:
            return True

    history = run(Enough())
    assert len(history) == 1
    assert history.stop_reason == "callback"


def test_refused() -> None:
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        EarlyStopping(0)
    for delta in (-1.0, math.nan):
        with pytest.raises(ValueError, match="min_delta must be a finite number ≥ 0"):
            EarlyStopping(min_delta=delta)
    with pytest.raises(ValueError, match='monitor must be "metric" or "loss", got \'accuracy\''):
        EarlyStopping(monitor="accuracy")
    with pytest.raises(ValueError, match='there is none: give metric or validation, or monitor="loss"'):
        run(EarlyStopping(), metric=False)


def test_lines_show_every_step_of_a_short_run_and_name_the_metric() -> None:
    said = io.StringIO()
    run(Lines(Console(file=said, width=200), "R²"), max_iter=ALL)
    lines = said.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [f"step {number}" for number in range(ALL + 1)]
    assert all(" · R² " in line for line in lines)


def test_lines_of_a_long_run_are_few_and_end_with_the_last() -> None:
    said = io.StringIO()
    history = run(Lines(Console(file=said, width=200)), max_iter=400)
    lines = said.getvalue().splitlines()
    assert len(lines) < 400
    assert lines[-1].startswith(f"step {history[-1].step} · ")


def test_the_bar_comes_to_its_end() -> None:
    said = io.StringIO()
    run(Progress(Console(file=said, force_terminal=True, width=200), "R²"), max_iter=5)
    assert "5/5" in said.getvalue()
    assert "R² " in said.getvalue()


def test_the_log_has_a_line_a_step(logged: list[str]) -> None:
    run(Log("error"), max_iter=5)
    lines = [line for line in logged if line.startswith("step")]
    assert len(lines) == 5
    assert all(" · error " in line for line in lines)
