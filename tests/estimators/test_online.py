"""partial_fit keeps scikit-learn's contract and learns from batches; rules for log losses."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

import widefit
from widefit import WideClassifier, WideRegressor
from widefit.rules import SGD, GradientDescent

SMALL = (256,)
FEW = {"hidden_layer_sizes": (64,), "rule": "sgd", "max_iter": 5}


def not_promised(estimator) -> dict[str, str]:
    """A row of weight 2 is not two rows to a rule that draws minibatches; the regressor merges equal rows first."""
    if isinstance(estimator, WideRegressor):
        return {}
    reason = "minibatches of a log loss take rows one by one"
    return dict.fromkeys((f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")), reason)


@parametrize_with_checks([WideRegressor(**FEW), WideClassifier(**FEW)], expected_failed_checks=not_promised)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def wave(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(seed).uniform(-1, 1, (count, 2))
    return X, 5 + 2 * np.sin(3 * X[:, 0]) * X[:, 1]


def test_a_regressor_learns_from_batches(tmp_path):
    X, y = wave(6000)
    model = WideRegressor((2048,), rule="sgd")
    for first in range(0, 6000, 500):
        now = None if first == 0 else model.predict(X[first : first + 32])
        model.partial_fit(X[first : first + 500], y[first : first + 500])
        if now is not None:
            np.testing.assert_allclose(model.progressive_predictions_[:32], now, atol=1e-4)
    assert model.score(*wave(500, 1)) > 0.98
    assert model.history_[-1].samples == 6000
    assert {"tracker", "prediction"} <= {what for what, _, _ in model.plan_.rows()}
    pickled = pickle.loads(pickle.dumps(model))
    widefit.save(model, tmp_path / "model.widefit")
    for other in (pickled, widefit.load(tmp_path / "model.widefit")):
        other.partial_fit(X[:100], y[:100])
        assert other.history_[-1].samples == 6100
        np.testing.assert_allclose(other.predict(X[:50]), model.predict(X[:50]), atol=0.05)


def test_a_classifier_learns_from_batches_that_lack_classes():
    X, X_test, y, y_test = train_test_split(*load_digits(return_X_y=True), random_state=0)
    names = np.array([f"digit {label}" for label in range(10)])
    model = WideClassifier((2048,), rule=SGD(loss="softmax"))
    order = np.concatenate([np.arange(300), 300 + np.argsort(y[300:600], kind="stable"), np.arange(600, len(y))])
    for first in range(0, len(y), 60):
        rows = order[first : first + 60]
        model.partial_fit(X[rows], names[y[rows]], classes=names[::-1] if first == 0 else None)
    assert model.score(X_test, names[y_test]) > 0.8
    np.testing.assert_allclose(model.predict_proba(X_test).sum(1), 1)
    assert model.progressive_predictions_.shape == (len(y) % 60 or 60, 10)


@pytest.mark.parametrize(
    "rule", ["sgd", SGD(loss="logistic"), SGD(train_readout=True), GradientDescent(loss="softmax")]
)
def test_log_losses_give_probabilities(rule):
    X, X_test, y, y_test = train_test_split(*load_breast_cancer(return_X_y=True), random_state=0)
    model = WideClassifier((1024,), rule=rule, alpha=0.0, max_iter=20).fit(X, y)
    assert model.loss_ == ("squared" if isinstance(rule, SGD) and rule.loss == "squared" else "logistic")
    assert model.score(X_test, y_test) > 0.92
    share = model.predict_proba(X_test)[np.arange(len(y_test)), y_test]
    assert -np.log(np.maximum(share, 1e-12)).mean() < 0.3


def test_logits_are_those_of_the_loss():
    """The training loss is the log loss of the probabilities on the training rows."""
    X, y = load_digits(n_class=3, return_X_y=True)
    for rule, labels in (("sgd", y), ("sgd", y % 2)):
        model = WideClassifier(SMALL, rule=rule, max_iter=3).fit(X, labels)
        codes = np.searchsorted(model.classes_, labels)
        log_loss = -model.predict_log_proba(X)[np.arange(len(y)), codes].mean()
        assert log_loss == pytest.approx(model.loss_curve_[-1], rel=1e-4)


def test_the_seed_fixes_the_order():
    X, y = wave(200)
    fits = [
        WideRegressor(SMALL, rule=rule, random_state=seed, max_iter=2, alpha=0.0).fit(X, y).network_.weight.detach()
        for rule, seed in (("sgd", 0), ("sgd", 0), (SGD(seed=7), 0), (SGD(seed=8), 0))
    ]
    assert fits[0].equal(fits[1])
    assert not fits[0].equal(fits[2])
    assert not fits[2].equal(fits[3])


def test_streams_take_stochastic_rules():
    assert not hasattr(WideRegressor(), "partial_fit")
    assert hasattr(WideRegressor(rule="sgd"), "partial_fit")
    X, y = wave(20)
    with pytest.raises(ValueError, match="alpha must be"):
        WideRegressor(SMALL, rule="sgd", alpha=1.0).partial_fit(X, y)
    with pytest.raises(ValueError, match="not the squared loss"):
        WideClassifier(SMALL, rule=SGD()).partial_fit(X, y > 5, classes=[False, True])
    with pytest.raises(ValueError, match="the first batch fixes the units of y"):
        WideRegressor(SMALL, rule="sgd").partial_fit(X, np.ones(20))


def test_a_column_that_is_constant_at_first_counts_later():
    X, y = wave(2000)
    model = WideRegressor((1024,), rule="sgd")
    model.partial_fit(np.column_stack([X[:300], np.full(300, 0.5)]), y[:300])
    third = np.where(np.arange(1700) % 2, 1.5, 0.5)
    model.partial_fit(np.column_stack([X[300:], third]), y[300:] + 3 * (third - 0.5))
    ones = np.ones((50, 1))
    rise = model.predict(np.hstack([X[:50], 1.5 * ones])) - model.predict(np.hstack([X[:50], 0.5 * ones]))
    # Left out it would rise by nothing.
    assert 1.5 < rise.mean() < 4


@pytest.mark.parametrize(
    ("X", "y", "classes", "message"),
    [
        (np.zeros((4, 3)), [0, 1, 0, 1], None, "X has 3 features, but WideClassifier is expecting 2"),
        (np.zeros((0, 2)), [], None, "0 sample"),
        (np.zeros((2, 2)), [0, 7], None, r"y has labels \[7\] that the first fit has not seen"),
        (np.zeros((2, 2)), [0, 1], [0, 1], "is not the same as on last call"),
        (np.array([[0, 0], [0, np.nan]]), [0, 1], None, "X contains NaN or infinity, first in row 1, column 1"),
        (np.zeros((2, 2)), [0, 1, 2], None, "inconsistent numbers of samples"),
    ],
)
def test_bad_batches(X, y, classes, message):
    rows, values = wave(30)
    model = WideClassifier(SMALL, rule="sgd")
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(rows, values > 5)
    model.partial_fit(rows, (values > 5).astype(int), classes=[2, 1, 0])
    before = model.predict_proba(rows)
    with pytest.raises(ValueError, match=message):
        model.partial_fit(X, y, classes)
    np.testing.assert_array_equal(model.predict_proba(rows), before)


@pytest.mark.parametrize("tracker", ["dense", "half-space-tree"])
@pytest.mark.parametrize("rule", [SGD(), SGD(average=True, train_readout=True), SGD(train_readout=True, batch_size=7)])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_between_batches_makes_no_difference(tracker, rule, duplicate):
    X, y = wave(900)
    Y = np.column_stack([y, X[:, 0] - y])
    whole = WideRegressor((512,), rule=rule, tracker=tracker)
    parts = WideRegressor((512,), rule=rule, tracker=tracker)
    for first in range(0, 900, 150):
        rows = slice(first, first + 150)
        whole.partial_fit(X[rows], Y[rows])
        before = parts
        parts = duplicate(parts).partial_fit(X[rows], Y[rows])
        if first:
            frozen = before.network_.weight.detach().clone()
            parts.predict(X[:20])
            assert before.network_.weight.equal(frozen)
            assert not parts.network_.weight.equal(frozen)
        assert parts.network_.weight.equal(whole.network_.weight)
        assert parts.network_.readout.equal(whole.network_.readout)
        np.testing.assert_array_equal(parts.progressive_predictions_, whole.progressive_predictions_)
    assert [info.loss for info in parts.history_] == [info.loss for info in whole.history_]


def test_going_on_from_a_file_after_a_flush_gives_the_same_bits(tmp_path):
    X, y = wave(900)
    model = WideRegressor((512,), rule="sgd", tracker="half-space-tree")
    for first in range(0, 600, 150):
        model.partial_fit(X[first : first + 150], y[first : first + 150])
        model.stream_.flush()
    widefit.save(model, tmp_path / "model.widefit")
    again = widefit.load(tmp_path / "model.widefit")
    for one in (model, again):
        one.partial_fit(X[600:], y[600:])
    assert again.network_.weight.equal(model.network_.weight)
