"""Trainings end when what is left of the way is small beside the error of predictions."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_friedman1

from widefit import WideClassifier, WideRegressor
from widefit.estimators.settled import Settled
from widefit.training.history import History, StepInfo


class _Run:
    """The part of a run that the callback looks at."""

    def __init__(self) -> None:
        self.history = History([StepInfo(0, 1.0)])
        self.max_iter = None
        self.tol = None

    def state(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("losses", "accepted", "steps"),
    [
        ([0.5, 0.2, 0.04], None, 3),  # below a twentieth of the error
        ([0.5, 0.4, 0.37], None, 3),  # no longer changes
        ([0.5, 0.5, 0.2, 0.19], 1, 4),  # a rejected step changes nothing either, and says nothing
    ],
)
def test_when_it_is_reached(losses, accepted, steps):
    run, settled = _Run(), Settled(error=1.0, floor=0.0)
    for number, loss in enumerate(losses, start=1):
        info = StepInfo(number, loss, accepted=number != (accepted or 0) + 1 if accepted else True)
        run.history.steps.append(info)
        assert settled.step(run, info) == settled.reached == (number == steps)


def test_the_floor_counts():
    run, settled = _Run(), Settled(error=1.0, floor=0.3)
    run.history.steps.append(StepInfo(1, 0.34))
    assert settled.step(run, run.history[-1])


def test_fewer_steps_predict_as_well():
    X, y = make_friedman1(500, noise=1.0, random_state=0)
    errors = {}
    for tol in ("auto", 1e-6):
        model = WideRegressor((4096,), tol=tol).fit(X[:250], y[:250])
        errors[tol] = (model.n_iter_, np.sqrt(np.mean((model.predict(X[250:]) - y[250:]) ** 2)))
    assert errors["auto"][0] < errors[1e-6][0]
    assert errors["auto"][1] < 1.05 * errors[1e-6][1]


def test_it_says_why_and_leaves_other_rules_alone():
    X, y = load_diabetes(return_X_y=True)
    assert WideRegressor((1024,)).fit(X, y).history_.stop_reason in ("settled", "tol")
    assert WideRegressor((256,), rule="sgd", max_iter=7).fit(X, y).n_iter_ == 7
    labels = y > np.median(y)
    assert WideClassifier((1024,)).fit(X, labels).history_.stop_reason in ("settled", "tol", "converged")
    for bad in (-1, "never"):
        with pytest.raises(ValueError, match='tol must be "auto" or a finite number'):
            WideRegressor((64,), tol=bad).fit(X, y)


@pytest.mark.parametrize(
    ("gain_ratio", "damping", "ridge", "reached"),
    [
        (0.97, 2.0, 2.0, True),  # the linear model was right, and the step went to its minimum
        (0.8, 2.0, 2.0, False),
        (0.97, 3.0, 2.0, False),  # a step that was held back
        (0.97, 2.0, None, False),
        (None, 2.0, 2.0, False),
    ],
)
def test_where_steps_are_dear_a_linear_model_that_was_right_ends_it(gain_ratio, damping, ridge, reached):
    run, settled = _Run(), Settled(error=1.0, floor=0.0, ridge=ridge)
    run.history.steps.append(StepInfo(1, 0.3, damping=damping, gain_ratio=gain_ratio))
    assert settled.step(run, run.history[-1]) == reached
