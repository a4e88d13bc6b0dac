"""Rows that are equal up to rounding are one row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefit.tuning.duplicates import merge_duplicates

pytestmark = pytest.mark.filterwarnings("error")


def rows_of(samples: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, features))


@pytest.mark.parametrize("factor", [1e-300, 1e-30, 1.0, 1e30, 1e300])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("disturbance", ["none", "float32", 1e-15, 1e-10, 3e-8])
def test_copies_up_to_rounding_are_merged(factor, offset, disturbance):
    rows = factor * (offset + 20 * rows_of(200, 3))
    noise = np.random.default_rng(1).uniform(-1, 1, rows.shape)
    if disturbance == "float32":
        copy = (rows / factor).astype(np.float32).astype(np.float64) * factor
    else:
        copy = rows if disturbance == "none" else rows * (1 + disturbance * noise)
    targets = np.arange(200.0)[:, None]
    merged = merge_duplicates(np.concatenate([rows, copy]), np.concatenate([targets, targets + 2]), np.ones(400))
    assert merged.rows.shape == rows.shape
    np.testing.assert_array_equal(merged.sample_weight, 2)
    np.testing.assert_allclose(np.sort(merged.targets, axis=0), targets + 1)
    assert merged.floor == pytest.approx(1.0)


@pytest.mark.parametrize("disturbance", [1e-5, 1e-3])
def test_rows_that_differ_by_more_stay_apart(disturbance):
    rows = rows_of(100, 3)
    merged = merge_duplicates(np.concatenate([rows, rows * (1 + disturbance)]), np.zeros((200, 1)), np.ones(200))
    assert len(merged.rows) == 200


def test_a_clock_with_a_large_offset_keeps_its_ticks():
    """Seconds since 1970, a minute apart: float32 could not tell some of them apart."""
    rows = 1.7e9 + 60.0 * np.arange(5000.0)[:, None]
    assert len(merge_duplicates(rows, np.zeros((5000, 1)), np.ones(5000)).rows) == 5000


def test_an_outlier_does_not_make_the_others_equal():
    rows = rows_of(50, 1)
    rows[3] = 1e15
    assert len(merge_duplicates(rows, np.zeros((50, 1)), np.ones(50)).rows) == 50


def test_a_dense_column_is_not_merged_into_one():
    rows = np.linspace(1, 2, 1 << 16)[:, None] ** 0.001
    merged = merge_duplicates(rows, rows, np.ones(len(rows)))
    # Values a fraction of a tolerance apart; what is merged lies within a few tolerances.
    assert np.diff(merged.rows[:, 0]).max() < 4e-6 * np.ptp(rows) + 2e-6
    assert len(merged.rows) > 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1.7e308, 1.7e308), min_size=2, max_size=2), min_size=1, max_size=20), st.randoms())
def test_weight_and_targets_are_kept_and_order_does_not_matter(rows, random):
    rows = np.array(rows)
    targets = np.random.default_rng(0).standard_normal((len(rows), 2))
    weight = np.random.default_rng(1).uniform(0.5, 2, len(rows))
    merged = merge_duplicates(rows, targets, weight)
    assert merged.sample_weight.sum() == pytest.approx(weight.sum())
    np.testing.assert_allclose(merged.sample_weight @ merged.targets, weight @ targets, atol=1e-12)
    order = random.sample(range(len(rows)), len(rows))
    again = merge_duplicates(rows[order], targets[order], weight[order])
    np.testing.assert_array_equal(again.rows, merged.rows)
    np.testing.assert_allclose(again.targets, merged.targets, atol=1e-12)
    known = {tuple(row) for row in rows.tolist()}
    assert {tuple(row) for row in merged.rows.tolist()} <= known
