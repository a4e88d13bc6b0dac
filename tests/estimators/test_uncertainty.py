"""Intervals cover what they say, columns that matter are important, and classes weigh what they should."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import balanced_accuracy_score, recall_score

import widefit
from widefit import WideClassifier, WideRegressor
from widefit.estimators.importances import column_importances
from widefit.estimators.training_sample import TrainingSample
from widefit.estimators.uncertainty import Uncertainty
from widefit.rules import SGD
from widefit.tuning.duplicates import merge_duplicates
from widefit.tuning.limit_kernel import limit_gram
from widefit.tuning.sphere import SphereMap

NEW = 1500


def linear(generator, X):
    return X @ [1.0, 2.0, 0.0, 1.0] + generator.standard_normal(len(X))


def waves(generator, X):
    return np.sin(2 * X[:, 0]) * X[:, 1] + 0.3 * generator.standard_normal(len(X))


def uneven(generator, X):
    return X[:, 0] + 0.5 * np.exp(0.7 * X[:, 1]) * generator.standard_normal(len(X))


def noise(generator, X):
    return 1e6 + 1e3 * generator.standard_normal(len(X))


def heavy(generator, X):
    return X[:, 0] + 0.3 * generator.standard_t(3, len(X))


def problem(truth, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((samples + NEW, 4))
    return X, truth(generator, X)


@pytest.mark.parametrize("truth", [linear, waves, uneven, noise, heavy])
def test_intervals_cover_what_they_say(truth):
    """On average over tables; one of 300 rows alone fixes the coverage to about two points."""
    found = {0.5: [], 0.9: []}
    for seed in range(4):
        X, y = problem(truth, 300, seed)
        model = WideRegressor((2048,)).fit(X[:300], y[:300])
        for coverage, shares in found.items():
            low, high = model.predict_interval(X[300:], coverage=coverage)
            shares.append(np.mean((low <= y[300:]) & (y[300:] <= high)))
    assert np.mean(found[0.9]) == pytest.approx(0.9, abs=0.03)
    assert np.mean(found[0.5]) == pytest.approx(0.5, abs=0.06)


def test_rows_that_repeat_with_other_targets():
    generator = np.random.default_rng(0)
    X = np.round(2 * generator.standard_normal((3000, 1)))
    y = np.sin(X[:, 0]) + 0.5 * generator.standard_normal(3000)
    model = WideRegressor((1024,)).fit(X[:1500], y[:1500])
    low, high = model.predict_interval(X[1500:])
    assert np.mean((low <= y[1500:]) & (y[1500:] <= high)) == pytest.approx(0.9, abs=0.03)
    _, deviation = model.predict(X[1500:], return_std=True)
    assert np.median(deviation) == pytest.approx(0.5, rel=0.15)


def test_larger_tables_than_are_looked_at():
    X, y = problem(waves, 1600, 0)
    model = WideRegressor((1024,)).fit(X[:1600], y[:1600])
    low, high = model.predict_interval(X[1600:])
    assert np.mean((low <= y[1600:]) & (y[1600:] <= high)) == pytest.approx(0.9, abs=0.04)


def test_deviations_grow_away_from_the_rows_and_survive_a_file(tmp_path):
    X, y = problem(waves, 300, 0)
    Y = np.column_stack([y, -10 * y])
    model = WideRegressor((1024,)).fit(X[:300], Y[:300])
    predicted, near = model.predict(X[:300], return_std=True)
    assert predicted.shape == near.shape == (300, 2)
    _, far = model.predict(np.array([[6.0, -6.0, 6.0, -6.0]]), return_std=True)
    assert (far > 1.5 * np.median(near, axis=0)).all()
    np.testing.assert_allclose(near[:, 1], 10 * near[:, 0], rtol=0.2)
    low, high = model.predict_interval(X[:50], coverage=0.5)
    wider_low, wider_high = model.predict_interval(X[:50], coverage=0.95)
    assert (wider_low < low).all()
    assert (high < wider_high).all()
    widefit.save(model, tmp_path / "model.widefit")
    again = widefit.load(tmp_path / "model.widefit")
    # A product of fewer rows is summed in another order.
    np.testing.assert_allclose(again.predict(X[:50], return_std=True)[1], near[:50], rtol=1e-10)
    np.testing.assert_array_equal(again.feature_importances_, model.feature_importances_)


def test_left_out_residuals_are_those_of_kernel_regression_without_the_row():
    """Against a solve without each row, with the dense kernel of the initial network."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((30, 3))
    targets = rows[:, :1] + generator.standard_normal((30, 1))
    weight = generator.uniform(0.5, 2, 30)
    merged = merge_duplicates(rows, targets, weight)
    sphere = SphereMap.fit(rows, weight, scaling="columns", constant=1.0)
    sample = TrainingSample.draw(merged, targets, weight, np.arange(len(weight)), sphere, 0)
    network = widefit.nn.TwoLayer(4, 4096, 1, threshold=1.0, seed=3)
    found = Uncertainty.of(sample, network, alpha=0.1, thresholds=(1.0,), input_share=0.5)
    fires = (network.weight.detach().double().numpy() @ sample.inputs.T > 1.0).astype(float)
    kernel = fires.T @ fires / 4096 * (sample.inputs @ sample.inputs.T)
    spread = np.empty((30, 1))
    left_out = np.empty(30)
    for index in range(30):
        kept = np.delete(np.arange(30), index)
        system = kernel[np.ix_(kept, kept)] + np.diag(0.1 / sample.sample_weight[kept])
        predicted = kernel[index, kept] @ np.linalg.solve(system, sample.targets[kept, 0])
        left_out[index] = sample.targets[index, 0] - predicted
        others = merge_duplicates(merged.rows[kept], merged.targets[kept], merged.sample_weight[kept])
        part = TrainingSample.draw(others, merged.targets[kept], merged.sample_weight[kept], kept, sphere, 0)
        without = Uncertainty.of(part, network, alpha=0.1, thresholds=(1.0,), input_share=0.5)
        variance = (without.spread(sample.inputs[index : index + 1])[0] ** 2 - without.noise) / without.scale
        spread[index] = np.sqrt(variance * found.scale + found.noise)
    ratios = np.abs(left_out)[:, None] / spread
    np.testing.assert_allclose(found.ratios, ratios[sample.member], rtol=1e-4)


def test_left_out_observations_of_rows_that_repeat():
    """Against a solve over all observations, equal rows one by one, without each."""
    generator = np.random.default_rng(0)
    rows = np.repeat(generator.standard_normal((8, 2)), 3, axis=0)
    targets = rows[:, :1] + generator.standard_normal((24, 1))
    weight = generator.uniform(0.5, 2, 24)
    merged = merge_duplicates(rows, targets, weight)
    sphere = SphereMap.fit(rows, weight, scaling="columns", constant=1.0)
    sample = TrainingSample.draw(merged, targets, weight, np.arange(len(weight)), sphere, 0)
    found = Uncertainty.of(sample, None, alpha=0.3, thresholds=(0.5,), input_share=0.5)
    drawn = np.random.default_rng(0).permutation(24)
    gram = limit_gram(sphere(rows), 0.5)
    for place, index in enumerate(drawn):
        kept = np.delete(np.arange(24), index)
        system = gram[np.ix_(kept, kept)] + np.diag(0.3 / weight[kept])
        solved = np.linalg.solve(system, np.column_stack([targets[kept], gram[kept, index]]))
        predicted, explained = gram[index, kept] @ solved
        variance = gram[index, index] - explained
        ratio = np.abs(targets[index] - predicted) / np.sqrt(variance * found.scale + found.noise)
        np.testing.assert_allclose(found.ratios[place], ratio, rtol=1e-6)


def test_samples_of_unknown_origin():
    X, y = problem(linear, 30, 0)
    model = WideRegressor((64,)).fit(X[:30], y[:30])
    sample, sphere = model._sample, model.sphere_
    arrays = sample.to_arrays()
    again = TrainingSample.from_arrays(arrays, 30, sphere)
    np.testing.assert_array_equal(again.inputs, sample.inputs)
    # Files of earlier versions have the inputs themselves.
    old = {name: array for name, array in arrays.items() if name != "rows"} | {"inputs": sample.inputs}
    np.testing.assert_array_equal(TrainingSample.from_arrays(old, 30, sphere).to_arrays()["inputs"], sample.inputs)
    bad = {
        "single": arrays["single"][:3],
        "within": np.array([np.nan]),
        "member": arrays["member"] + 7,
        "rows": arrays["rows"][:, 1:],
    }
    for name, array in bad.items():
        with pytest.raises(ValueError, match="training rows must be"):
            TrainingSample.from_arrays(arrays | {name: array}, 30, sphere)
    with pytest.raises(ValueError, match="training rows must be"):
        TrainingSample.from_arrays(arrays, 29, sphere)


def test_what_intervals_refuse():
    X, y = problem(linear, 60, 0)
    model = WideRegressor((128,), rule="sgd").partial_fit(X[:60], y[:60])
    for ask in (lambda: model.predict_interval(X), lambda: model.predict(X, return_std=True)):
        with pytest.raises(NotFittedError, match="fit the model"):
            ask()
    assert not hasattr(model, "feature_importances_")
    model.fit(X[:60], y[:60])
    for coverage in (0, 1, 90, np.nan, "0.9"):
        with pytest.raises(ValueError, match="coverage must be a number between 0 and 1"):
            model.predict_interval(X, coverage=coverage)
    with pytest.raises(NotFittedError):
        WideRegressor().predict_interval(X)


@pytest.mark.parametrize("sizes", [(512,), (60, 50)])
def test_importances_are_those_of_finite_differences(sizes):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((120, 3)) * [1.0, 10.0, 0.1]
    y = np.sin(X[:, 0]) + 0.02 * X[:, 1]
    model = WideRegressor(sizes, alpha=0.1).fit(X, np.column_stack([y, y**2]))
    importance = model.feature_importances_
    assert importance.sum() == pytest.approx(1)
    assert importance[0] == importance.max()
    sphere = model.sphere_
    spot = model._sample.inputs
    ambient = spot * (sphere.last / spot[:, -1:])
    entries = sphere.center.size
    expected = np.zeros(entries)
    for column in range(entries):
        step = np.zeros(entries + 1)
        step[column] = 1e-6

        def outputs(points):
            points = points / np.linalg.norm(points, axis=1, keepdims=True)
            return model.network_(torch.from_numpy(points)).detach().numpy()

        slope = (outputs(ambient + step) - outputs(ambient - step)) / 2e-6
        expected[column] = np.sum(slope**2) * ambient[:, column].var()
    of_columns = np.bincount(sphere.sources, expected / expected.sum())
    np.testing.assert_allclose(importance, of_columns, rtol=1e-2)
    alone = column_importances(model.network_, spot, sphere.last)
    np.testing.assert_array_equal(np.bincount(sphere.sources, alone), importance)


def test_importances_of_a_classifier_find_the_columns():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((400, 6))
    for rule in ("gauss-newton", "sgd"):
        model = WideClassifier((1024,), rule=rule).fit(X, X[:, 2] * X[:, 4] > 0)
        assert set(np.argsort(model.feature_importances_)[-2:]) == {2, 4}


def imbalanced() -> tuple[np.ndarray, ...]:
    X, y = make_blobs([300, 20, 10], centers=[[0, 0], [2, 0], [0, 2]], random_state=0)
    T, t = make_blobs([300, 300, 300], centers=[[0, 0], [2, 0], [0, 2]], random_state=1)
    return X, y, T, t


@pytest.mark.parametrize("rule", ["gauss-newton", SGD(loss="softmax")])
def test_balanced_classes(rule):
    X, y, T, t = imbalanced()
    plain = WideClassifier((512,), rule=rule).fit(X, y)
    balanced = WideClassifier((512,), rule=rule, class_weight="balanced").fit(X, y)
    assert balanced_accuracy_score(t, balanced.predict(T)) > balanced_accuracy_score(t, plain.predict(T)) + 0.05
    by_hand = len(y) / (3 * np.bincount(y))[y]
    same = WideClassifier((512,), rule=rule).fit(X, y, sample_weight=by_hand)
    np.testing.assert_allclose(balanced.predict_proba(T), same.predict_proba(T), atol=1e-6)
    weights = dict(enumerate(len(y) / (3 * np.bincount(y))))
    named = WideClassifier((512,), rule=rule, class_weight=weights).fit(X, y)
    np.testing.assert_allclose(named.predict_proba(T), same.predict_proba(T), atol=1e-6)


def test_weights_of_some_labels():
    X, y, T, t = imbalanced()
    names = np.array(["common", "few", "rare"])
    heavy = WideClassifier((512,), class_weight={"rare": 30.0}).fit(X, names[y])
    plain = WideClassifier((512,)).fit(X, names[y])
    recalls = [recall_score(names[t], model.predict(T), labels=["rare"], average=None)[0] for model in (plain, heavy)]
    assert recalls[1] > recalls[0]
    stream = WideClassifier((256,), rule="sgd", class_weight={"rare": 30.0})
    assert stream.partial_fit(X, names[y], classes=names).predict(T).shape == t.shape


def test_class_weights_come_back_from_a_file(tmp_path):
    X, y = (part[:120] for part in load_diabetes(return_X_y=True))
    for weights in ({0: 1.0, 1: 3.0}, "balanced", None):
        model = WideClassifier((64,), max_iter=1, class_weight=weights).fit(X, (y > 150).astype(int))
        widefit.save(model, tmp_path / "m.widefit")
        again = widefit.load(tmp_path / "m.widefit")
        assert again.class_weight == weights
        np.testing.assert_array_equal(again.fit(X, (y > 150).astype(int)).predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    ("weight", "message"),
    [("even", 'None, "balanced" or a dict'), ({0: -1.0}, "numbers ≥ 0"), ({0: 0, 1: 0, 2: 0}, "all rows"), (3, "dict")],
)
def test_bad_class_weights(weight, message):
    X, y, _, _ = imbalanced()
    with pytest.raises(ValueError, match=message):
        WideClassifier((64,), class_weight=weight).fit(X, y)


def test_a_stream_cannot_be_balanced():
    X, y, _, _ = imbalanced()
    with pytest.raises(ValueError, match='class_weight="balanced" takes the counts of all rows'):
        WideClassifier((64,), rule="sgd", class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
