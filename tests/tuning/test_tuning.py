"""What the data decide before training."""

import tracemalloc

import numpy as np
import pytest

from widefit.tuning.duplicates import WeightedRows, merge_duplicates
from widefit.tuning.leave_one_out import RIDGES, leave_one_out, symmetric_inverse
from widefit.tuning.limit_kernel import limit_gram
from widefit.tuning.relevance import Objective, learn_scales, steps_within_budget
from widefit.tuning.rows import draw_rows
from widefit.tuning.sphere import SphereMap
from widefit.tuning.tune import bytes_needed, tune

pytestmark = pytest.mark.filterwarnings("error")


def table(samples: int = 300, features: int = 6, noise: float = 0.05):
    """A target that one column decides, wiggly enough that the others disturb."""
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((samples, features))
    targets = np.sin(3 * rows[:, :1]) + noise * generator.standard_normal((samples, 1))
    return rows, targets - targets.mean(0), np.ones(samples)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.1])
def test_gradient_of_the_objective(threshold):
    rows, targets, _ = table(30, 3)
    weight = np.random.default_rng(0).uniform(0.5, 2, 30)
    targets = np.hstack([targets, rows[:, 1:2] ** 2])
    objective = Objective(rows, np.arange(rows.shape[1]), targets, weight, threshold)
    at = np.array([0.3, -0.2, 0.1, 0.2, -3.0])
    value, gradient = objective(at)
    for index in range(at.size):
        step = 1e-4 * np.eye(at.size)[index]
        slope = (objective(at + step)[0] - objective(at - step)[0]) / 2e-4
        assert gradient[index] == pytest.approx(slope, rel=2e-2, abs=2e-3)
    # Its value is the leave-one-out error of the limit kernel, up to the prior.
    sphere = SphereMap(np.zeros(3), np.exp(at[:3]), float(np.exp(at[3])))
    gram = limit_gram(sphere(rows), threshold)
    ridge = np.exp(at[4]) * float(weight @ gram.diagonal()) / 30
    error = leave_one_out(gram, targets, weight, ridge).error
    assert value - 0.02 * np.mean(at[:3] ** 2) == pytest.approx(np.log(error), abs=1e-6)


def test_scales_find_the_column_that_matters():
    rows, targets, weight = table()
    start = SphereMap.fit(rows, weight, scaling="columns", constant=1.0)
    learnt = learn_scales(rows, targets, weight, start, 2.1)
    factors = learnt.scale / start.scale
    assert factors[0] > 3 * factors[1:].max()


def test_tuning_improves_with_relevant_columns_and_says_so():
    rows, targets, weight = table(900)
    merged = merge_duplicates(rows, targets / targets.std(), weight)
    tuning = tune(merged, threshold=2.1, width=4096, alpha="auto", readout_scale="auto", seed=0)
    what = {choice.what: choice for choice in tuning.choices}
    assert "scales learnt on 400 rows: error on other rows" in what["input map"].reason
    assert tuning.readout_scale >= 1
    assert np.mean((tuning.held_out - merged.targets[tuning.held_out_rows]) ** 2) < 0.2


def test_few_rows_keep_a_fixed_map():
    rows, targets, weight = table(8, 6)
    tuning = tune(
        merge_duplicates(rows, targets, weight), threshold=1.0, width=512, alpha=0.1, readout_scale=2.0, seed=0
    )
    assert "best leave-one-out error of 6 maps" in tuning.choices[0].reason
    assert (tuning.alpha, tuning.readout_scale) == (0.1, 2.0)
    assert len(tuning.choices) == 1


def test_noise_calls_for_a_ridge_and_clean_data_for_none():
    rows, targets, weight = table(300, 2, noise=0.0)
    clean = tune(
        merge_duplicates(rows, targets, weight), threshold=1.0, width=1 << 20, alpha="auto", readout_scale=1.0, seed=0
    )
    noisy_targets = np.random.default_rng(0).standard_normal((300, 1))
    noisy = tune(
        merge_duplicates(rows, noisy_targets, weight),
        threshold=1.0,
        width=4096,
        alpha="auto",
        readout_scale=1.0,
        seed=0,
    )
    assert noisy.alpha > 0.01
    assert clean.alpha < noisy.alpha / 100


def test_merged_rows():
    rows = np.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [5.0, 5.0]])
    targets = np.array([[1.0], [2.0], [4.0], [9.0]])
    merged = merge_duplicates(rows, targets, np.array([1.0, 1.0, 2.0, 0.0]))
    assert merged.rows.tolist() == [[0.0, 1.0], [1.0, 2.0]]
    assert merged.targets.ravel().tolist() == [2.0, 3.0]
    assert merged.sample_weight.tolist() == [1.0, 3.0]
    assert merged.floor == pytest.approx((1 * 4 + 2 * 1) / 4)


@pytest.mark.parametrize("scaling", ["columns", "common"])
@pytest.mark.parametrize("factor", [1e-200, 1.0, 1e200])
def test_sphere_map(scaling, factor):
    rows = factor * np.array([[1.0, 7.0, 1e3], [2.0, 7.0, -1e3], [4.0, 7.0, 5.0]])
    sphere = SphereMap.fit(rows, np.ones(3), scaling=scaling, constant=0.5)
    mapped = sphere(rows)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1)
    assert not mapped[:, 1].any()
    assert np.isfinite(sphere(np.full((1, 3), 1e300))).all()
    assert (mapped[:, -1] > 0).all()


@pytest.mark.parametrize("scale", [1e-140, 1.0, 1e140])
@pytest.mark.parametrize("distance", [0.0, 1e-16, 1e-12, 1e-9, 1e-6, 1e-3])
def test_left_out_residuals_of_rows_that_are_almost_equal(distance, scale):
    """Against a fit without each row in turn, in float64, by least squares that take a singular H."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((15, 3))
    inputs = np.concatenate([rows, rows + distance * generator.standard_normal(rows.shape)])
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    targets = scale * np.concatenate([rows[:, :1], rows[:, :1] + 0.1])
    weight = generator.uniform(0.5, 2, 30)
    gram = limit_gram(inputs, 1.0)
    for ridge in RIDGES * gram.diagonal().mean():
        found = leave_one_out(gram, targets, weight, ridge)
        assert np.isfinite(found.error)
        if ridge < 1e-5:
            continue
        for index in range(0, 30, 7):
            kept = np.delete(np.arange(30), index)
            system = gram[np.ix_(kept, kept)] + np.diag(ridge / weight[kept])
            predicted = gram[index, kept] @ np.linalg.solve(system, targets[kept])
            np.testing.assert_allclose(found.residuals[index], targets[index] - predicted, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_inverse_where_rounding_makes_eigenvalues_negative(rank):
    generator = np.random.default_rng(rank)
    vectors = np.linalg.qr(generator.standard_normal((20, 20)))[0]
    values = np.append(generator.uniform(1, 2, rank), np.zeros(20 - rank))
    exact = (vectors / (values + 1e-7)) @ vectors.T
    noisy = (vectors * (values + 1e-7)) @ vectors.T
    noisy -= 3e-7 * (rank < 20) * np.outer(vectors[:, -1], vectors[:, -1])
    found = symmetric_inverse((noisy + noisy.T) / 2, 1e-7)
    np.testing.assert_allclose(found, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("sizes", [(2495, 5), (1000, 1000, 1000, 2), (700, 1), (3,) * 500])
def test_rows_are_drawn_from_every_class(sizes):
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    weight = np.random.default_rng(1).uniform(0.5, 2, classes.size)
    merged = WeightedRows(np.arange(classes.size, dtype=float)[:, None], np.zeros((classes.size, 1)), weight)
    rows, drawn = draw_rows(merged, 640, classes, np.random.default_rng(2))
    assert np.unique(rows).size == rows.size == 640
    counts = np.bincount(classes[rows], minlength=len(sizes))
    fair = 320 // len(sizes)
    assert (counts >= np.minimum(sizes, fair)).all()
    if fair:
        totals = np.bincount(classes, weight)
        np.testing.assert_allclose(np.bincount(classes[rows], drawn) / drawn.sum(), totals / totals.sum())
    everything, all_of_it = draw_rows(merged, classes.size, classes, np.random.default_rng(2))
    np.testing.assert_array_equal(all_of_it, weight[everything])


def test_scales_are_learnt_of_any_number_of_columns_within_a_budget():
    assert steps_within_budget(400, 10) == steps_within_budget(400, 81) == 20
    steps = [steps_within_budget(400, features) for features in (500, 2000, 8000, 30000)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 10
    assert steps[-1] == 0


@pytest.mark.parametrize(("samples", "features"), [(200, 5), (1500, 10), (1500, 300)])
def test_memory_of_the_tuning(samples, features):
    rows = np.random.default_rng(0).standard_normal((samples, features))
    targets = rows[:, :1] ** 2 - 1
    tracemalloc.start()
    try:
        merged = merge_duplicates(rows, targets, np.ones(samples))
        tune(merged, threshold=2.0, width=4096, alpha="auto", readout_scale="auto", seed=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.4 * bytes_needed(samples, features, 4096) < peak < bytes_needed(samples, features, 4096)
