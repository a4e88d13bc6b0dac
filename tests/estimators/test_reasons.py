"""Reasons for predictions: nearest training rows, importances, partial dependence."""

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.inspection import partial_dependence, permutation_importance

import widefit
from widefit import WideClassifier, WideRegressor
from widefit.tuning.limit_kernel import limit_gram

SMALL = (512,)


def table(samples: int = 150) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((samples, 3))
    return X, 2 * X[:, 0] + np.sin(X[:, 1])


@pytest.mark.parametrize("widths", [(512,), (64, 64)])
def test_nearest_rows_are_those_of_the_dense_kernel(widths, tmp_path):
    X, y = table()
    weight = np.ones(150)
    weight[3] = 0
    model = WideRegressor(widths).fit(X, y, sample_weight=weight)
    places, likeness = model.nearest_rows(X, k=4)
    kept = weight > 0
    np.testing.assert_array_equal(places[kept, 0], np.flatnonzero(kept))
    np.testing.assert_allclose(likeness[kept, 0], 1, rtol=1e-6)
    assert 3 not in places
    if len(widths) == 1:
        gram = limit_gram(model.sphere_(X), model.network_.threshold)
        gram = gram / gram[0, 0]
        gram[:, 3] = -1
        np.testing.assert_allclose(likeness, -np.sort(-gram, axis=1)[:, :4], atol=1e-9)
    widefit.save(model, tmp_path / "m.widefit")
    again = widefit.load(tmp_path / "m.widefit").nearest_rows(X[:5], k=200)
    assert again[0].shape == (5, 149)
    np.testing.assert_array_equal(again[0][:, :4], places[:5])


def test_equal_rows_and_many_rows():
    X = np.repeat(np.arange(6.0), 3)[:, None]
    model = WideRegressor(SMALL).fit(X, X[:, 0])
    places, likeness = model.nearest_rows([[2.0]], k=4)
    assert places[0, :3].tolist() == [6, 7, 8]
    assert likeness[0, 2] > 0.999 > likeness[0, 3]
    X, y = table(1300)
    found = WideClassifier((64,)).fit(X, y > 0).nearest_rows(X[:2], k=1000)[0]
    assert found.max() > 1000
    assert len(np.unique(found[0])) == 1000


def test_what_is_refused():
    X, y = table()
    model = WideRegressor((64,)).fit(X, y)
    for k in (0, 1.5, True):
        with pytest.raises(ValueError, match="k must be an integer ≥ 1"):
            model.nearest_rows(X, k=k)
    with pytest.raises(ValueError, match="2 features"):
        model.nearest_rows(X[:, :2])
    with pytest.raises(NotFittedError):
        WideRegressor((64,), rule="sgd").partial_fit(X, y).nearest_rows(X)


def test_scikit_learn_inspects_models_of_frames():
    X, y = table()
    frame = pd.DataFrame(X, columns=list("abc")).assign(town=np.where(X[:, 2] > 0, "up", "down"))
    y = y + 3.0 * (frame.town == "up")
    model = WideRegressor(SMALL).fit(frame, y)
    rise = partial_dependence(model, frame, ["a"], grid_resolution=10)
    assert np.all(np.diff(rise["average"][0]) > 0)
    towns = partial_dependence(model, frame, ["town"], categorical_features=["town"])
    down, up = towns["average"][0]
    assert up - down == pytest.approx(3, abs=1)
    shuffled = permutation_importance(model, frame, y, n_repeats=2, random_state=0).importances_mean
    assert shuffled[0] > shuffled[1] > shuffled[2]
    assert model.feature_importances_.shape == (4,)
    assert model.feature_importances_[0] > model.feature_importances_[1]
