"""Logistic models beside the network of a classifier."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from widefit import WideClassifier
from widefit.estimators.blend import Blend
from widefit.tuning.duplicates import WeightedRows


def lines(samples: int, classes: int = 2):
    """Classes that a line tells apart, up to noise, among columns that do not matter."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((samples, 8))
    logits = 2 * X[:, :1] * np.arange(classes)
    return X, np.argmax(logits + generator.gumbel(size=(samples, classes)), axis=1)


@pytest.fixture(scope="module", params=[2, 3])
def fitted(request):
    X, y = lines(600, request.param)
    return WideClassifier((2048,)).fit(X[:200], y[:200]), X[200:], y[200:]


def test_a_line_is_found(fitted):
    model, X, y = fitted
    assert model.blend_.shares[1:].sum() > 0.3
    choice = next(choice for choice in model.plan_.choices if choice.what == "logistic models")
    assert "of columns" in choice.chosen
    blended = log_loss(y, model.predict_proba(X))
    network = WideClassifier.__new__(WideClassifier)
    vars(network).update(vars(model), blend_=None)
    assert blended < log_loss(y, network.predict_proba(X))


def test_scores_labels_and_probabilities_agree(fitted):
    model, X, y = fitted
    shares = model.predict_proba(X)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-12)
    parts = [np.exp(part.log_shares(X)) for part in model.blend_.parts]
    others = sum(share * part for share, part in zip(model.blend_.shares[1:], parts, strict=True))
    network = (shares - others) / model.blend_.shares[0]
    np.testing.assert_allclose(network.sum(1), 1, atol=1e-9)
    assert network.min() > -1e-9
    assert (model.classes_[shares.argmax(1)] == model.predict(X)).all()
    scores = model.decision_function(X)
    if shares.shape[1] == 2:
        assert ((scores > 0) == (model.predict(X) == 1)).all()
    else:
        assert (scores.argmax(1) == shares.argmax(1)).all()
    assert model.score(X, y) > 0.5


def test_a_validation_sees_what_is_predicted():
    X, y = lines(300)
    model = WideClassifier((512,)).fit(X[:200], y[:200], validation=(X[200:], y[200:]))
    assert model.history_[-1].metric == pytest.approx(model.score(X[200:], y[200:]))


def test_what_the_network_knows_better_is_left_to_it():
    generator = np.random.default_rng(1)
    X = generator.uniform(-1, 1, (300, 2))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    model = WideClassifier((4096,)).fit(X, y)
    assert model.blend_.shares[0] > 0.8


def test_too_many_coefficients_are_none_at_all():
    generator = np.random.default_rng(0)
    rows = WeightedRows(generator.standard_normal((30, 400)), np.eye(2)[np.arange(30) % 2], np.ones(30))
    logs = np.log(np.full((30, 2), 0.5))
    assert Blend.fit(rows, np.arange(30), np.ones(30), logs) is not None
    wide = WeightedRows(generator.standard_normal((30, 400)), np.eye(3)[np.arange(30) % 3], np.ones(30))
    assert Blend.fit(wide, np.arange(30), np.ones(30), np.log(np.full((30, 3), 1 / 3))) is None


def test_far_outliers_have_finite_probabilities():
    X, y = lines(100)
    model = WideClassifier((256,)).fit(X, y)
    assert np.isfinite(model.predict_log_proba(np.full((1, 8), 1e300))).all()


def test_arrays_of_unknown_origin(fitted):
    model, X, _ = fitted
    arrays = model.blend_.to_arrays()
    outputs = model.target_mean_.size
    again = Blend.from_arrays(arrays, 8, outputs)
    np.testing.assert_array_equal(again.parts[0].log_shares(X), model.blend_.parts[0].log_shares(X))
    bad = {
        "shares": np.array([0.5, np.nan, 0.5]),
        "0.coefficients": arrays["0.coefficients"][1:],
        "1.coefficients": arrays["1.coefficients"] * np.nan,
    }
    for name, array in bad.items():
        with pytest.raises(ValueError, match="logistic model"):
            Blend.from_arrays(arrays | {name: array}, 8, outputs)
    with pytest.raises(ValueError, match="other columns than the table, which has 9"):
        Blend.from_arrays(arrays, 9, outputs)
    for lacking in ("shares", "0.center"):
        with pytest.raises(ValueError, match="lack"):
            Blend.from_arrays({name: array for name, array in arrays.items() if name != lacking}, 8, outputs)
