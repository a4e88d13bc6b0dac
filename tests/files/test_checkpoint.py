"""A checkpoint goes on to the same bits; one that cannot be written does not end the training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

import widefit
from widefit.callbacks import Callback, Run
from widefit.files import Checkpoint, FileError, read_checkpoint
from widefit.training.history import StepInfo

X, y = load_diabetes(return_X_y=True)
X, y = X[:80], y[:80]


class StopAfter(Callback):
    """Ends the training after some steps."""

    def __init__(self, steps: int):
        self.steps = steps

    def step(self, run: Run, info: StepInfo) -> bool | None:
        return info.step >= self.steps


class Count(Callback):
    """How often the file had changed, seen after each step."""

    def __init__(self, path: Path):
        self.path, self.contents = path, []

    def step(self, run: Run, info: StepInfo) -> bool | None:
        self.contents.append(self.path.read_bytes() if self.path.exists() else None)
        return None


def model(**settings: object) -> widefit.WideRegressor:
    return widefit.WideRegressor(hidden_layer_sizes=(48,), **{"max_iter": 12, "tol": 0.0} | settings)


@pytest.mark.parametrize("rule", ["gauss-newton", "gradient-descent", "sgd"])
@pytest.mark.parametrize("alpha", ["auto", 0.0])
def test_resuming_reaches_the_same_bits(tmp_path: Path, rule: str, alpha: float | str) -> None:
    straight = model(rule=rule, alpha=alpha).fit(X, y)
    model(rule=rule, alpha=alpha).fit(X, y, callbacks=[StopAfter(1), Checkpoint(tmp_path / "c")])
    resumed = model(rule=rule, alpha=alpha).fit(X, y, resume=tmp_path / "c")
    assert straight.n_iter_ > 1
    assert torch.equal(resumed.network_.weight, straight.network_.weight)
    assert resumed.loss_curve_ == straight.loss_curve_
    assert np.array_equal(resumed.predict(X), straight.predict(X))


def test_written_as_often_as_asked(tmp_path: Path) -> None:
    always, seldom = Count(tmp_path / "always"), Count(tmp_path / "seldom")
    callbacks = [Checkpoint(always.path, every_seconds=0), Checkpoint(seldom.path, every_seconds=3600), always, seldom]
    history = model(rule="gradient-descent", max_iter=4).fit(X, y, callbacks=callbacks).history_
    assert len(set(always.contents)) == len(history) - 1 == 4
    assert None not in always.contents
    assert seldom.contents == [None] * 4
    _, document = read_checkpoint(seldom.path)
    assert document["history"]["steps"][-1]["step"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["always", "seldom"]


def test_a_checkpoint_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "c"
    with pytest.warns(RuntimeWarning, match="the checkpoint .*gone/c could not be written: No such file or directory"):
        fitted = model(max_iter=2).fit(X, y, callbacks=[Checkpoint(path, every_seconds=0)])
    assert fitted.n_iter_ == 2


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_seconds must be at least 0, got -1"):
        Checkpoint(tmp_path / "c", every_seconds=-1)
    widefit.save(model(max_iter=1).fit(X, y), tmp_path / "m.widefit")
    with pytest.raises(FileError, match=r"m\.widefit is a model file, not a checkpoint"):
        model().fit(X, y, resume=tmp_path / "m.widefit")
    model(max_iter=1).fit(X, y, callbacks=[Checkpoint(tmp_path / "c")])
    with pytest.raises(ValueError, match="the checkpoint belongs to other data or settings"):
        model().fit(X[:60], y[:60], resume=tmp_path / "c")
