"""Columns with heavy tails, indicators, and the map of tables to the sphere at any scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefit.tuning.columns import QuantileMap, heavy_tailed, indicators, spreads
from widefit.tuning.sphere import SphereMap

pytestmark = pytest.mark.filterwarnings("error")

SCALES = [1e-310, 1e-300, 1e-100, 1.0, 1e100, 1e300]


def normal(samples: int = 500, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, features))


@pytest.mark.parametrize("scale", SCALES)
def test_spread_of_normal_columns(scale):
    np.testing.assert_allclose(spreads(scale * normal(4000)) / scale, 1, rtol=0.06)
    assert not heavy_tailed(scale * normal(4000)).any()


@pytest.mark.parametrize("scale", SCALES)
def test_heavy_tails_and_indicators_are_seen(scale):
    clean, skewed, outlier, rare = normal(500, 4).T
    outlier[7] = 1e7
    rows = scale * np.stack([clean, np.exp(2 * skewed), outlier, (rare > 2) + 1.0, np.ones(500)], axis=1)
    assert heavy_tailed(rows).tolist() == [False, True, True, False, False]
    assert indicators(rows).tolist() == [False, False, False, True, False]
    assert spreads(rows)[-1] == 0


def test_indicators_up_to_rounding():
    flags = (normal(100, 1) > 0).astype(float)
    assert indicators(flags * (1 + 1e-9 * normal(100, 1))).all()


@given(st.lists(st.floats(-1.7e308, 1.7e308), min_size=2, max_size=60), st.integers(0, 5))
def test_quantile_maps_are_monotone_and_bounded(values, seed):
    column = np.array(values)[:, None]
    weight = np.random.default_rng(seed).integers(1, 4, len(column)).astype(float)
    quantiles = QuantileMap.fit(column, weight, np.array([True]))
    QuantileMap.of(quantiles.columns, quantiles.values, quantiles.scores, 1)
    everywhere = np.sort(np.concatenate([column[:, 0], column[:, 0] / 3, [-1.7e308, 0.0, 1.7e308]]))[:, None]
    scores = quantiles(everywhere)[:, 0]
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= -1e-12).all()
    repeated = QuantileMap.fit(
        np.repeat(column, weight.astype(int), axis=0), np.ones(int(weight.sum())), np.array([True])
    )
    np.testing.assert_allclose(repeated.scores, quantiles.scores, atol=1e-9)


def test_quantile_maps_make_normal_scores():
    rows = np.exp(3 * normal(2000, 2))
    quantiles = QuantileMap.fit(rows, np.ones(2000), np.array([False, True]))
    scores = quantiles(rows)
    np.testing.assert_array_equal(scores[:, 0], rows[:, 0])
    np.testing.assert_allclose(scores[:, 1], normal(2000, 2)[:, 1], atol=0.4)
    assert np.std(scores[:, 1]) == pytest.approx(1, abs=0.02)
    # A value that half of the rows share has the mean of their scores.
    half = np.where(np.arange(100) < 50, 0.0, np.arange(100.0))[:, None]
    mapped = QuantileMap.fit(half, np.ones(100), np.array([True]))(half)[:, 0]
    assert np.unique(mapped[:50]).size == 1
    assert mapped[0] == pytest.approx(-0.8, abs=0.2)


@pytest.mark.parametrize("scaling", ["columns", "common", "indicators"])
@pytest.mark.parametrize("scale", SCALES)
def test_maps_of_one_table_at_any_scale(scaling, scale):
    rows = np.column_stack([normal(200, 3), normal(200, 1) > 0])
    expected = SphereMap.fit(rows, np.ones(200), scaling=scaling, constant=1.0)(rows)
    sphere = SphereMap.fit(scale * rows, np.ones(200), scaling=scaling, constant=1.0)
    mapped = sphere(scale * rows)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1)
    if scale > 1e-305:
        np.testing.assert_allclose(mapped, expected, atol=1e-6)
    for far in (-1.7e308, 1.7e308):
        assert np.isfinite(sphere(np.full((1, 4), far))).all()
        assert np.isfinite(sphere.with_every_column()(np.full((1, 4), far))).all()


def test_columns_over_the_whole_range_of_float64():
    rows = np.array([[-1.7e308, 1e-310], [1.7e308, 2e-310], [0.0, 1.5e-310], [1e308, 1.2e-310]])
    mapped = SphereMap.fit(rows, np.ones(4), scaling="columns", constant=1.0)(rows)
    assert np.isfinite(mapped).all()
    assert np.unique(np.round(mapped[:, 0], 3)).size == 4


def test_indicators_keep_their_distance():
    rows = np.column_stack([normal(400, 1), np.arange(400) < 8])
    mapped = SphereMap.fit(rows, np.ones(400), scaling="indicators", constant=1.0).scaled(rows)
    assert np.ptp(mapped[:, 1]) == pytest.approx(1)
    assert mapped[:, 0].std() == pytest.approx(1)


def test_arrays_of_a_map_and_what_they_must_be():
    rows = np.exp(2 * normal(300))
    quantiles = QuantileMap.fit(rows, np.ones(300), np.array([True, False, True]))
    sphere = SphereMap.fit(rows, np.ones(300), scaling="columns", constant=0.5, quantiles=quantiles)
    arrays = sphere.to_arrays()
    np.testing.assert_array_equal(SphereMap.from_arrays(arrays, 0.5)(rows), sphere(rows))
    old = {name: arrays[name] for name in ("center", "scale")}
    assert SphereMap.from_arrays(old, 0.5).quantiles.columns.size == 0
    bad = {
        "scale": np.ones(2),
        "center": np.array([0.0, np.nan, 0.0]),
        "quantile_columns": np.array([0, 3]),
        "quantile_values": arrays["quantile_values"][:, ::-1],
        "quantile_scores": arrays["quantile_scores"][:1],
    }
    for name, array in bad.items():
        with pytest.raises(ValueError, match=name):
            SphereMap.from_arrays(arrays | {name: array}, 0.5)
    with pytest.raises(ValueError, match="constant"):
        SphereMap.from_arrays(arrays, 0.0)
