"""Steps of columns: distances, files, and what they bring where targets change at thresholds."""

import numpy as np
import pytest

import widefit
from widefit import WideRegressor
from widefit.tuning.sphere import SphereMap
from widefit.tuning.steps import Steps, most_entries


def test_codes_are_as_far_apart_as_the_share_of_the_table_between_them():
    rows = np.exp(np.random.default_rng(0).standard_normal((800, 1)))
    steps = Steps.fit(rows, np.array([False]))
    edges = np.quantile(rows[:, 0], np.linspace(0, 1, 9), method="nearest")
    codes = steps(edges[:, None])
    squares = ((codes[:, None] - codes[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squares, np.abs(np.subtract.outer(range(9), range(9))), atol=1e-12)


def test_columns_of_two_values_and_wide_tables_have_none():
    rows = np.random.default_rng(0).standard_normal((50, 3))
    rows[:, 1] = rows[:, 1] > 0
    assert set(Steps.fit(rows, np.zeros(3, bool)).columns) == {0, 2}
    assert set(Steps.fit(rows, np.array([True, False, False])).columns) == {2}
    assert Steps.fit(np.tile(rows, 100), np.zeros(300, bool)).columns.size == 0
    assert (most_entries(10), most_entries(300)) == (90, 300)


def test_a_map_keeps_the_variance_of_its_columns():
    rows = np.random.default_rng(0).standard_normal((400, 4)) * [1, 10, 0.1, 1]
    weight = np.random.default_rng(1).uniform(0.5, 2, 400)
    plain = SphereMap.fit(rows, weight, scaling="columns", constant=1.0)
    found = plain.with_steps(rows, weight, Steps.fit(rows, np.zeros(4, bool)), 0.9)
    share = weight / weight.sum()
    variance = share @ found.scaled(rows) ** 2
    assert variance.mean() == pytest.approx(1)
    np.testing.assert_allclose(variance[:4] / np.bincount(found.sources, variance), 0.1)


def test_jumps_are_found_and_files_keep_the_steps(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.uniform(size=(600, 5))
    y = (X[:, 0] > 0.5) + 2.0 * (X[:, 1] > 0.3) - (X[:, 2] > 0.7) + 0.05 * generator.standard_normal(600)
    model = WideRegressor((4096,), threshold=1).fit(X[:300], y[:300])
    assert model.sphere_.steps.columns.size > 0
    assert np.sqrt(np.mean((model.predict(X[300:]) - y[300:]) ** 2)) < 0.4 * y.std()
    assert set(np.argsort(model.feature_importances_)[-3:]) == {0, 1, 2}
    widefit.save(model, tmp_path / "model.widefit")
    again = widefit.load(tmp_path / "model.widefit")
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.feature_importances_, model.feature_importances_)


@pytest.mark.parametrize(
    ("columns", "low", "high"),
    [([3], [0.0], [1.0]), ([0], [1.0], [1.0]), ([0], [0.0], [np.inf]), ([0], [0.0, 1.0], [1.0, 2.0])],
)
def test_arrays_of_a_file_are_checked(columns, low, high):
    with pytest.raises(ValueError, match="step_"):
        Steps.of(np.array(columns), np.array(low), np.array(high), 3)
