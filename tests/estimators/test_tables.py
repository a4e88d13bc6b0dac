"""Tables as they come: copies, outliers, skewed columns, indicators, rare classes, any scale, many columns."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.metrics import log_loss

import widefit
from widefit import WideClassifier, WideRegressor

pytestmark = pytest.mark.filterwarnings("error")


def waves(samples: int = 900, features: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Three columns that matter, and noise of a tenth."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((samples, features))
    y = np.sin(2 * X[:, 0]) * X[:, 1] + 0.5 * X[:, 2] ** 2
    return X, y + 0.1 * generator.standard_normal(samples)


def error(X: np.ndarray, y: np.ndarray, training: int = 600, **parameters) -> tuple[float, WideRegressor]:
    """Root mean squared error on the other rows, in spreads."""
    model = WideRegressor(**{"hidden_layer_sizes": (2048,), **parameters}).fit(X[:training], y[:training])
    residual = model.predict(X[training:]) - y[training:]
    return float(np.sqrt(np.mean(residual**2)) / y[training:].std()), model


def test_outliers_and_skewed_columns_cost_little(tmp_path):
    X, y = waves()
    clean, _ = error(X, y)
    assert clean < 0.45
    outlier = X.copy()
    outlier[3, 0] = 1e8
    for table in (outlier, np.exp(2 * X)):
        found, model = error(table, y)
        assert found < 1.3 * clean
        assert any(words in model.plan_.rows()[1][1] for words in ("heavy tails to normal scores", "steps"))
        widefit.save(model, tmp_path / "model.widefit")
        again = widefit.load(tmp_path / "model.widefit")
        np.testing.assert_array_equal(again.predict(table[:50]), model.predict(table[:50]))


def test_rows_equal_up_to_rounding_fit_as_equal_rows_do():
    X, y = load_diabetes(return_X_y=True)
    training = slice(0, 150)
    expected = WideRegressor((512,)).fit(np.repeat(X[training], 2, axis=0), np.repeat(y[training], 2))
    copies = np.concatenate([X[training], X[training].astype(np.float32).astype(float)])
    model = WideRegressor((512,)).fit(copies, np.tile(y[training], 2))
    assert model.alpha_ == pytest.approx(expected.alpha_, rel=1e-5)
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=0.02)


@pytest.mark.parametrize("distance", [1e-12, 1e-7, 1e-5, 1e-3])
def test_rows_that_are_almost_equal_can_be_fitted(distance):
    X, y = load_diabetes(return_X_y=True)
    near = X[:100] * (1 + distance * np.random.default_rng(0).standard_normal((100, 10)))
    model = WideRegressor((512,)).fit(np.concatenate([X[:100], near]), np.concatenate([y[:100], y[:100] + 1]))
    assert np.isfinite(model.predict(X)).all()


def test_many_columns_are_no_cliff():
    X, y = waves(900, 120)
    few, _ = error(X[:, :60], y)
    many, model = error(X, y)
    assert "scales learnt" in model.plan_.rows()[1][2]
    assert many < 1.5 * few < 0.75


def test_indicators_among_other_columns():
    generator = np.random.default_rng(0)
    numbers = generator.standard_normal((900, 5))
    y = numbers[:, 0] + np.sin(numbers[:, 1])
    columns = [numbers]
    for _ in range(12):
        level = generator.choice(8, 900, p=[0.4, 0.2, 0.2, 0.1, 0.04, 0.03, 0.02, 0.01])
        y = y + 0.3 * generator.standard_normal(8)[level]
        columns.append(np.eye(8)[level])
    found, _ = error(np.hstack(columns), y)
    standardized = np.hstack(columns)
    standardized = (standardized - standardized.mean(0)) / standardized.std(0)
    assert found < 0.5
    assert found < 1.02 * error(standardized, y)[0]


def test_a_rare_class_is_there_when_parameters_are_chosen():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((1500, 10))
    labels = np.zeros(1500, int)
    positive = generator.permutation(1500)[:5]
    labels[positive] = 1
    X[positive, :3] += 2.2
    T = generator.standard_normal((4000, 10))
    truth = (np.arange(4000) < 40).astype(int)
    T[:40, :3] += 2.2
    model = WideClassifier((1024,)).fit(X, labels)
    assert log_loss(truth, model.predict_proba(T)) < 0.025


@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e-30, 1e30, 1e300])
def test_one_column_of_any_scale(scale):
    X, y = waves(150, 4)
    _, expected = error(X, y, 100, hidden_layer_sizes=(256,))
    table = X * np.array([1.0, 1.0, scale, 1.0])
    _, model = error(table, y, 100, hidden_layer_sizes=(256,))
    if scale > 1e-305:
        np.testing.assert_allclose(model.predict(table), expected.predict(X), rtol=1e-2, atol=2e-2)
    assert np.isfinite(model.predict(np.array([[1e308, -1e308, 1e308, 0.0]]))).all()


@pytest.mark.parametrize("threshold", [38.0, 1e6, 1e300, 6.0])
def test_thresholds_at_which_nothing_fires_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold must leave neurons that fire"):
        WideRegressor((512,), threshold=threshold).fit(*waves(50, 3))
    with pytest.raises(ValueError, match="threshold must leave neurons that fire"):
        WideRegressor((4096, 64), threshold=threshold).fit(*waves(50, 3))


def test_thresholds_at_which_everything_fires():
    X, y = waves(100, 3)
    with pytest.raises(ValueError, match='threshold must be "auto" or a finite number ≥ -100'):
        WideRegressor((512,), threshold=-1e6).fit(X, y)
    linear = X @ [1.0, 2.0, 3.0]
    model = WideRegressor((512,), threshold=-20.0).fit(X, linear)
    assert model.score(X, linear) > 0.9


def test_equal_rows_are_scored_as_if_they_were_different():
    X = np.repeat(np.arange(30.0)[:, None], 10, axis=0)
    y = np.sin(X[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(300)
    model = WideRegressor((512,), max_iter=2).fit(X[::2], y[::2], validation=(X[1::2], y[1::2]))
    assert model.history_[-1].metric == pytest.approx(model.score(X[1::2], y[1::2]), rel=1e-6)
    one_by_one = [model.predict(row[None])[0] for row in X[:40:10]]
    np.testing.assert_allclose(model.predict(X[:40]), np.repeat(one_by_one, 10), rtol=1e-6)


def test_the_plan_counts_the_matrices_of_the_tuning():
    X, y = waves(900, 4)
    model = WideRegressor((64,)).fit(X, y)
    assert model.plan_.bytes_needed > 7 * 8 * 800**2
