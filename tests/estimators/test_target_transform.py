"""Logarithms of targets: taken where they predict better, and turned back into means."""

import numpy as np
import pytest

import widefit
from widefit import WideRegressor
from widefit.tuning.target_scale import may_be_logarithmic, smearing

SMALL = (1024,)


def factors(samples: int = 500, noise: float = 0.15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, targets whose noise is a factor, and their means."""
    generator = np.random.default_rng(0)
    X = generator.uniform(-1, 1, (samples, 5))
    logarithm = np.sin(2 * X).sum(axis=1)
    y = np.exp(logarithm + noise * generator.standard_normal(samples))
    return X, y, np.exp(logarithm + noise**2 / 2)


def test_logarithms_are_taken_where_noise_is_a_factor(tmp_path):
    X, y, truth = factors()
    model = WideRegressor(SMALL).fit(X[:300], y[:300])
    plain = WideRegressor(SMALL, target_transform=None).fit(X[:300], y[:300])
    assert model.plan_.rows()[4][:2] == ("target", "logarithm")
    errors = [np.mean((fitted.predict(X[300:]) - truth[300:]) ** 2) for fitted in (model, plain)]
    assert errors[0] < 0.8 * errors[1]
    # Means, not medians.
    assert model.predict(X[300:]).mean() == pytest.approx(truth[300:].mean(), rel=0.1)
    low, high = model.predict_interval(X[300:], coverage=0.8)
    assert (low > 0).all()
    assert np.mean((y[300:] >= low) & (y[300:] <= high)) == pytest.approx(0.8, abs=0.08)
    _, deviation = model.predict(X[300:], return_std=True)
    assert np.corrcoef(deviation, truth[300:])[0, 1] > 0.8
    assert np.mean(np.abs(y[300:] - model.predict(X[300:])) < 2 * deviation) > 0.85
    widefit.save(model, tmp_path / "m.widefit")
    again = widefit.load(tmp_path / "m.widefit")
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.predict_interval(X)[1], model.predict_interval(X)[1])


def test_they_are_left_alone_where_noise_is_a_term():
    X, _, truth = factors()
    y = 5 + X[:, 0] + 0.2 * np.random.default_rng(1).standard_normal(500)
    assert WideRegressor(SMALL).fit(X, y).smearing_ is None
    assert WideRegressor(SMALL).fit(X, truth - 1).smearing_ is None
    assert not may_be_logarithmic(np.array([[0.0], [9.0]]))
    assert not may_be_logarithmic(np.array([[1.0], [2.0]]))
    assert may_be_logarithmic(np.array([[1.0], [4.0]]))


def test_asked_for_and_refused():
    X, y, _ = factors(100)
    model = WideRegressor((4096,), target_transform="log", warm_start=True).fit(X, np.column_stack([y, 2 * y]))
    ratios = model.predict(X)[:, 1] / model.predict(X)[:, 0]
    np.testing.assert_allclose(ratios, 2, rtol=0.5)
    assert np.median(ratios) == pytest.approx(2, rel=0.05)
    with pytest.raises(ValueError, match="y must be positive"):
        model.fit(X, -np.column_stack([y, y]))
    for parameters, message in (
        ({"target_transform": "log"}, "y must be positive"),
        ({"target_transform": "sqrt"}, "target_transform must be"),
        ({"target_transform": "log", "loss": "huber"}, 'target_transform="log" takes loss="squared"'),
    ):
        with pytest.raises(ValueError, match=message):
            WideRegressor((64,), **parameters).fit(X, y - 1)
    with pytest.raises(ValueError, match="takes fit"):
        WideRegressor((64,), rule="sgd", target_transform="log").partial_fit(X, y)


def test_smearing_is_the_mean_of_exponentials():
    residuals = np.random.default_rng(0).standard_normal((1000, 2)) * [0.1, 0.5]
    found = smearing(residuals, np.ones(1000))
    np.testing.assert_allclose(found, np.exp(residuals).mean(0))
    assert np.isfinite(smearing(np.full((3, 1), 1e9), np.ones(3))).all()
