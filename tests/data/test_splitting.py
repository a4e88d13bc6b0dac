"""Held-out rows: a partition, of the size asked for, the same for the same seed, fair to every class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefit.data.splitting import split_rows
from widefit.data.table import TableError


@given(
    st.lists(st.integers(0, 4), min_size=12, max_size=80), st.floats(0.1, 0.5), st.integers(0, 2**32 - 1), st.booleans()
)
def test_partition(labels: list[int], fraction: float, seed: int, stratify: bool) -> None:
    y = np.array(labels)
    training, held_out = split_rows(y, fraction, seed, stratify=stratify)
    assert sorted([*training, *held_out]) == list(range(len(y)))
    assert np.all(np.diff(training) > 0)
    again = split_rows(y, fraction, seed, stratify=stratify)
    assert np.array_equal(training, again[0])
    if not stratify:
        assert len(held_out) == max(2, round(fraction * len(y)))
        return
    for label, size in zip(*np.unique(y, return_counts=True), strict=True):
        assert np.any(y[training] == label)
        assert abs(np.sum(y[held_out] == label) - fraction * size) <= 1


def test_stratified_size_is_exact_for_large_classes() -> None:
    y = np.repeat([0, 1, 2], [33, 34, 33])
    assert len(split_rows(y, 0.2, 0, stratify=True)[1]) == 20


def test_seed_matters_and_zero_holds_out_none() -> None:
    y = np.zeros(50)
    assert not np.array_equal(split_rows(y, 0.2, 0, stratify=False)[1], split_rows(y, 0.2, 1, stratify=False)[1])
    training, held_out = split_rows(y, 0.0, 0, stratify=False)
    assert (len(training), len(held_out)) == (50, 0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(TableError, match="the held-out fraction must be at least 0 and below 1, got"):
        split_rows(np.zeros(9), fraction, 0, stratify=False)


def test_too_few_rows() -> None:
    with pytest.raises(TableError, match=r"2 rows are too few to hold out a share of 0\.5; use --test-size 0"):
        split_rows(np.zeros(2), 0.5, 0, stratify=False)
    with pytest.raises(TableError, match="2 rows are too few"):
        split_rows(np.array([0, 1]), 0.5, 0, stratify=True)
