"""Columns mixed by the gradient outer product, against finite differences of the regression."""

from dataclasses import replace

import numpy as np
import pytest

import widefit
from widefit import WideRegressor
from widefit.tuning.gradient_outer_product import _gradients, mix_columns
from widefit.tuning.leave_one_out import leave_one_out
from widefit.tuning.limit_kernel import co_firing_probability, limit_gram
from widefit.tuning.sphere import SphereMap

THRESHOLD = 1.2


def ridge_function(samples: int, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A function of one direction that is no column."""
    X = np.random.default_rng(0).standard_normal((samples, features))
    return X, np.sin(1.5 * (X[:, 0] + X[:, 1] - X[:, 2]))


def regression(sphere: SphereMap, rows: np.ndarray, targets: np.ndarray, at: np.ndarray) -> np.ndarray:
    gram = limit_gram(sphere(rows), THRESHOLD)
    weight = np.ones(len(rows))
    ridges = [ridge * float(gram.diagonal().mean()) for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    fit = min((leave_one_out(gram, targets, weight, ridge) for ridge in ridges), key=lambda fit: fit.error)
    near = sphere(at) @ sphere(rows).T
    return (near * co_firing_probability(near, THRESHOLD)) @ fit.coefficients


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_are_those_of_the_regression(mixed):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((40, 3)) * [1.0, 5.0, 0.1]
    targets = np.stack([rows[:, 0] * rows[:, 1], np.sin(10 * rows[:, 2])], axis=1)
    weight = np.ones(40)
    sphere = SphereMap.fit(rows, weight, scaling="columns", constant=1.0)
    if mixed:
        sphere = replace(sphere, mixing=generator.standard_normal((3, 3)))
    found = _gradients(sphere, rows, targets, weight, THRESHOLD)
    # At its own row the kernel has a kink, and symmetric differences pass over it.
    for row in (0, 7):
        for column in range(3):
            shift = np.zeros(3)
            shift[column] = 1e-5 / sphere.scale[column]
            ahead, behind = (regression(sphere, rows, targets, (rows[row] + sign * shift)[None])[0] for sign in (1, -1))
            expected = (ahead - behind) / 2e-5
            np.testing.assert_allclose(found[row, :, column], expected, rtol=2e-3, atol=2e-3 * np.abs(found).max())


def test_a_direction_that_is_no_column_is_found():
    X, y = ridge_function(500)
    targets = (y - y.mean())[:, None]
    weight = np.ones(300)
    start = SphereMap.fit(X[:300], weight, scaling="columns", constant=1.0)
    mixed = mix_columns(X[:300], targets[:300], weight, start, THRESHOLD)
    errors = [
        np.mean((regression(sphere, X[:300], targets[:300], X[300:]) - targets[300:]) ** 2) for sphere in (start, mixed)
    ]
    assert errors[1] < 0.5 * errors[0]
    _, vectors = np.linalg.eigh(mixed.mixing)
    assert abs(vectors[:, -1] @ [1, 1, -1, 0, 0, 0]) / np.sqrt(3) > 0.97
    before, after = (np.mean((sphere.scaled(X[:300])) ** 2) for sphere in (start, mixed))
    assert after == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_degenerate_rows(scale):
    rows = scale * np.random.default_rng(0).standard_normal((20, 4))
    rows[:, 1] = scale
    rows[10:] = rows[:10] * (1 + 1e-12)
    targets = np.arange(20.0)[:, None] - 9.5
    start = SphereMap.fit(rows, np.ones(20), scaling="columns", constant=1.0)
    for y in (targets, 0 * targets, 1e-200 * targets):
        mixed = mix_columns(rows, y, np.ones(20), start, THRESHOLD)
        assert np.isfinite(mixed(rows)).all()
    assert np.isfinite(mix_columns(rows[:1], targets[:1], np.ones(1), start, THRESHOLD)(rows)).all()


def test_the_estimator_mixes_where_other_rows_confirm_it(tmp_path):
    X, y = ridge_function(500)
    model = WideRegressor((2048,)).fit(X[:300], y[:300])
    assert model.sphere_.mixing is not None
    assert "mixed" in model.plan_.rows()[1][1]
    assert model.score(X[300:], y[300:]) > 0.8
    importances = model.feature_importances_
    np.testing.assert_allclose(importances[:3], 1 / 3, atol=0.06)
    widefit.save(model, tmp_path / "m.widefit")
    np.testing.assert_array_equal(widefit.load(tmp_path / "m.widefit").predict(X), model.predict(X))
    tensors, document = model.to_parts()
    for bad in (tensors["mixing"][:2], tensors["mixing"] * np.nan):
        with pytest.raises(widefit.files.FileError, match="mixing"):
            WideRegressor.from_parts(tensors | {"mixing": bad}, document)
    noise = np.random.default_rng(1).standard_normal(300)
    assert WideRegressor((256,)).fit(X[:300], noise).sphere_.mixing is None
