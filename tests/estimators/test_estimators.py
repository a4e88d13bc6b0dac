"""The estimators keep scikit-learn's contract and learn real data."""

import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import widefit
from widefit import WideClassifier, WideRegressor

SMALL = (512,)


@parametrize_with_checks([WideRegressor(hidden_layer_sizes=SMALL), WideClassifier(hidden_layer_sizes=SMALL)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return train_test_split(X, y, random_state=0)


def test_regression_is_as_good_as_a_linear_model(diabetes):
    X, X_test, y, y_test = diabetes
    found = WideRegressor(hidden_layer_sizes=(8192,)).fit(X, y).score(X_test, y_test)
    assert found > LinearRegression().fit(X, y).score(X_test, y_test) - 0.05


@pytest.mark.parametrize(("load", "least"), [(load_iris, 0.9), (load_wine, 0.95), (load_breast_cancer, 0.94)])
def test_classification_of_real_tables(load, least):
    X, X_test, y, y_test = train_test_split(*load(return_X_y=True), random_state=0)
    model = WideClassifier(hidden_layer_sizes=(8192,)).fit(X, y)
    assert model.score(X_test, y_test) >= least
    probabilities = model.predict_proba(X_test)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert -np.mean(np.log(probabilities[np.arange(len(y_test)), y_test])) < 0.3


def test_stochastic_steps_learn_as_well(diabetes):
    X, X_test, y, y_test = diabetes
    model = WideRegressor(hidden_layer_sizes=(2048,), rule="sgd").fit(X, y)
    assert model.n_iter_ == 20
    assert model.alpha_ > 0
    assert model.score(X_test, y_test) > LinearRegression().fit(X, y).score(X_test, y_test) - 0.05
    X, X_test, y, y_test = train_test_split(*load_iris(return_X_y=True), random_state=0)
    model = WideClassifier(hidden_layer_sizes=(2048,), rule=widefit.rules.SGD(batch_size=16), max_iter=40).fit(X, y)
    assert model.score(X_test, y_test) >= 0.9


def test_steps_that_are_too_long_are_an_error(diabetes):
    rule = widefit.rules.SGD(lr=1e9)
    with pytest.raises(ValueError, match=r"the training diverged.*give rule a smaller lr"):
        WideRegressor(hidden_layer_sizes=SMALL, rule=rule).fit(*diabetes[::2])


def test_digits_parity_interpolates_and_generalizes():
    data = load_digits()
    X, X_test, y, y_test = train_test_split(data.data, data.target % 2, test_size=797, random_state=0)
    model = WideClassifier(hidden_layer_sizes=(16384,), alpha=0, tol=1e-8).fit(X, y)
    assert model.loss_curve_[-1] <= 1e-8
    assert model.n_iter_ <= 6
    assert model.score(X_test, y_test) > 0.97


def test_inputs_of_every_kind_give_one_model(diabetes):
    X, _, y, _ = diabetes
    columns = [f"c{i}" for i in range(X.shape[1])]
    kinds = {
        "numpy": (X, y),
        "pandas": (pd.DataFrame(X, columns=columns), pd.Series(y)),
        "polars": (pl.DataFrame(X, schema=columns), pl.Series(y)),
        "torch": (torch.from_numpy(X), torch.from_numpy(y).requires_grad_()),
        "sparse": (sparse.csr_matrix(X), y),
        "list": (X.tolist(), y.tolist()),
    }
    expected = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y).predict(X)
    for name, (rows, targets) in kinds.items():
        model = WideRegressor(hidden_layer_sizes=SMALL).fit(rows, targets)
        np.testing.assert_array_equal(model.predict(rows), expected, err_msg=name)
        assert hasattr(model, "feature_names_in_") == (name in ("pandas", "polars"))


def test_pipelines_searches_and_copies(diabetes):
    X, X_test, y, _y_test = diabetes
    pipeline = make_pipeline(MinMaxScaler(), WideRegressor(hidden_layer_sizes=SMALL))
    search = GridSearchCV(pipeline, {"wideregressor__threshold": [0.5, "auto"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.2
    assert cross_val_score(WideRegressor(hidden_layer_sizes=SMALL), X, y, cv=3).mean() > 0.2
    model = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y)
    assert clone(model).get_params() == model.get_params()
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict(X_test), model.predict(X_test))


def test_several_targets(diabetes):
    X, X_test, y, y_test = diabetes
    model = WideRegressor(hidden_layer_sizes=(4096,)).fit(X, np.column_stack([y, -3 * y, X[:, 0]]))
    predicted = model.predict(X_test)
    assert predicted.shape == (X_test.shape[0], 3)
    assert np.corrcoef(predicted[:, 0], y_test)[0, 1] > 0.5
    assert np.corrcoef(predicted[:, 2], X_test[:, 0])[0, 1] > 0.95
    assert WideRegressor(hidden_layer_sizes=SMALL).fit(X, y[:, None]).predict(X_test).shape == (X_test.shape[0], 1)


def test_string_labels_and_order_of_classes():
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    model = WideClassifier(hidden_layer_sizes=SMALL).fit(X, names[y])
    assert model.classes_.tolist() == sorted(names)
    assert set(model.predict(X)) == set(names)
    binary = WideClassifier(hidden_layer_sizes=SMALL).fit(X[:100], names[y[:100]])
    decision = binary.decision_function(X[:100])
    assert decision.shape == (100,)
    assert np.array_equal(binary.predict(X[:100]), binary.classes_[(decision > 0).astype(int)])


def test_weights_repetitions_and_order_agree(diabetes):
    X, X_test, y, _ = diabetes
    X, y = X[:80], y[:80]
    weight = np.arange(80) % 4
    weighted = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y, sample_weight=weight)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(80), weight))
    repeated = WideRegressor(hidden_layer_sizes=SMALL).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.predict(X_test), repeated.predict(X_test), rtol=1e-5)


def test_disagreeing_duplicates_leave_a_floor():
    X = np.repeat(np.arange(10.0)[:, None], 2, axis=0)
    y = np.tile([-1.0, 1.0], 10) + np.repeat(np.arange(10.0), 2)
    model = WideRegressor(hidden_layer_sizes=SMALL, alpha=0.0).fit(X, y)
    assert model.loss_curve_[-1] == pytest.approx(1 / y.var(), rel=1e-3)
    np.testing.assert_allclose(model.predict(X), np.repeat(np.arange(10.0), 2), atol=0.05)


def test_reproducible_and_seeded(diabetes):
    X, X_test, y, _ = diabetes
    one, same, other = (
        WideRegressor(hidden_layer_sizes=SMALL, random_state=seed).fit(X, y).predict(X_test) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_warm_start_goes_on_from_the_weights(diabetes):
    X, _, y, _ = diabetes
    model = WideRegressor(hidden_layer_sizes=SMALL, alpha=0.0, max_iter=1, warm_start=True).fit(X, y)
    first = model.loss_curve_
    model.fit(X, y)
    assert model.loss_curve_[0] == pytest.approx(first[-1], rel=1e-6)
    with pytest.raises(ValueError, match="2 outputs, the model was fitted with 1"):
        model.fit(X, np.column_stack([y, y]))
    classifier = WideClassifier(hidden_layer_sizes=SMALL, warm_start=True).fit(X, y > 100)
    with pytest.raises(ValueError, match="has not seen"):
        classifier.fit(X, np.where(y > 100, "a", "b"))


@pytest.mark.parametrize("activation", ["relu", "shifted_relu", "floored_relu"])
def test_activations(activation, diabetes):
    X, X_test, y, y_test = diabetes
    model = WideRegressor(hidden_layer_sizes=(2048,), activation=activation).fit(X, y)
    assert model.score(X_test, y_test) > 0.2
    assert (model.network_.threshold == 0) == (activation == "relu")


def test_the_plan_says_what_was_chosen(diabetes):
    X, _, y, _ = diabetes
    model = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y)
    chosen = {what: value for what, value, _ in model.plan_.rows()}
    assert {"threshold", "input map", "alpha", "readout scale", "tracker", "solver"} <= set(chosen)
    assert all(reason for _, _, reason in model.plan_.rows())
    forced = WideRegressor(
        hidden_layer_sizes=SMALL, threshold=1.0, alpha=0.5, readout_scale=2.0, tracker="dense", solver="cg"
    ).fit(X, y)
    assert forced.alpha_ == 0.5
    assert not {"alpha", "readout scale", "tracker", "solver"} & {what for what, _, _ in forced.plan_.rows()}


def test_refitting_the_readout_keeps_the_groups(diabetes):
    X, X_test, y, y_test = diabetes
    model = WideRegressor(hidden_layer_sizes=(2048,), refit_readout=True).fit(X, np.column_stack([y, y]))
    assert model.score(X_test, np.column_stack([y_test, y_test])) > 0.2
    assert (model.network_.coefficients() != 0).any()
    assert model.plan_.rows()[-1][0] == "readout"


def test_validation_is_recorded_each_step(diabetes):
    X, X_test, y, y_test = diabetes
    model = WideRegressor(hidden_layer_sizes=SMALL, max_iter=2).fit(X, y, validation=(X_test, y_test))
    assert model.history_[-1].metric == pytest.approx(model.score(X_test, y_test), rel=1e-9)
    with pytest.raises(ValueError, match="validation has"):
        WideRegressor(hidden_layer_sizes=SMALL).fit(X, y, validation=(X_test, y))


def test_scales_do_not_matter(diabetes):
    X, X_test, y, _ = diabetes
    expected = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y).predict(X_test)
    for factor in (1e-150, 1e150):
        model = WideRegressor(hidden_layer_sizes=SMALL).fit(X * factor, y)
        np.testing.assert_allclose(model.predict(X_test * factor), expected, rtol=1e-3)
    for factor in (1e-100, 1e100):
        model = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y * factor)
        np.testing.assert_allclose(model.predict(X_test), expected * factor, rtol=1e-3)


def test_degenerate_tables():
    X = np.zeros((6, 3))
    model = WideRegressor(hidden_layer_sizes=SMALL).fit(X, np.arange(6.0))
    np.testing.assert_allclose(model.predict(X), 2.5, atol=0.3)
    two = WideRegressor(hidden_layer_sizes=SMALL, alpha=0.0).fit([[0.0], [1.0]], [0.0, 1.0])
    np.testing.assert_allclose(two.predict([[0.0], [1.0]]), [0.0, 1.0], atol=0.1)
    wide = np.random.default_rng(0).standard_normal((5, 400))
    assert np.isfinite(WideRegressor(hidden_layer_sizes=SMALL).fit(wide, np.arange(5.0)).predict(wide)).all()
    assert WideRegressor(hidden_layer_sizes=(2,)).fit(wide, np.arange(5.0)).predict(wide).shape == (5,)


BAD = [
    ({"hidden_layer_sizes": (4, 1)}, "hidden_layer_sizes must be widths"),
    ({"hidden_layer_sizes": (1,)}, "hidden_layer_sizes must be widths"),
    ({"activation": "tanh"}, "activation must be one of 'relu'"),
    ({"threshold": "low"}, 'threshold must be "auto" or a finite number'),
    ({"threshold": float("nan")}, "threshold must be"),
    ({"activation": "relu", "threshold": 1.0}, "threshold belongs to"),
    ({"alpha": -1.0}, 'alpha must be "auto" or a finite number ≥ 0'),
    ({"alpha": True}, "alpha must be"),
    ({"readout_scale": 0.0}, "readout_scale must be"),
    ({"max_iter": 0}, "max_iter must be an integer ≥ 1"),
    ({"tol": -1.0}, 'tol must be "auto" or a finite number'),
    ({"rule": "adam"}, "rule must be one of"),
    ({"rule": widefit.rules.SGD(loss="logistic")}, 'rule must descend the squared loss.*got one with loss="logistic"'),
    ({"tracker": "magic"}, "tracker must be one of"),
    ({"solver": "magic"}, "solver must be one of"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        WideRegressor(**{"hidden_layer_sizes": SMALL, **parameters}).fit(np.eye(4), np.arange(4.0))


@pytest.mark.parametrize(
    ("estimator", "X", "y", "message"),
    [
        (WideRegressor, np.eye(4), np.ones(4), "y is constant over the 4 rows"),
        (WideRegressor, np.eye(4), np.column_stack([np.arange(4.0), np.ones(4)]), r"y \(output 1\) is constant"),
        (WideRegressor, np.eye(4), [0, 1, np.nan, 2], "Input y contains NaN"),
        (WideRegressor, [[0.0], [np.inf]], [0, 1], "Input X contains infinity"),
        (WideRegressor, np.eye(4), ["a", "b", "c", "d"], "could not convert string to float"),
        (WideRegressor, np.empty((0, 3)), [], "0 sample"),
        (WideClassifier, np.eye(4), ["a"] * 4, "y has one class"),
        (WideClassifier, np.eye(4), [0.1, 0.2, 0.3, 0.4], "Unknown label type"),
        (WideClassifier, np.eye(4), [0, 1, 0], "inconsistent numbers of samples"),
    ],
)
def test_bad_tables(estimator, X, y, message):
    with pytest.raises(ValueError, match=message):
        estimator(hidden_layer_sizes=SMALL).fit(X, y)


def test_columns_have_to_be_the_same_ones(diabetes):
    X, _, y, _ = diabetes
    model = WideRegressor(hidden_layer_sizes=SMALL).fit(X, y)
    with pytest.raises(ValueError, match="X has 9 features, but WideRegressor is expecting 10"):
        model.predict(X[:, :9])


def test_public_names_are_there():
    for name in widefit.__all__:
        assert getattr(widefit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        widefit.nonsense  # noqa: B018


def test_several_hidden_layers_classify_and_survive_a_file(tmp_path):
    X, y = load_digits(return_X_y=True)
    train, test = slice(0, 150), slice(150, 600)
    model = WideClassifier(hidden_layer_sizes=(300, 260), max_iter=6).fit(X[train], y[train])
    assert isinstance(model.network_, widefit.nn.Deep)
    assert model.network_.hidden_layer_sizes == (300, 260)
    assert model.score(X[test], y[test]) > 0.6
    chosen = {what: value for what, value, _ in model.plan_.rows()}
    assert chosen["solver"] == "block-cg"
    assert {"threshold", "alpha", "readout scale", "tracker"} <= set(chosen)
    widefit.save(model, tmp_path / "deep.widefit")
    again = widefit.load(tmp_path / "deep.widefit")
    np.testing.assert_array_equal(again.predict_proba(X[test]), model.predict_proba(X[test]))
    assert again.set_params(max_iter=1).fit(X[:40], y[:40]).network_.hidden_layer_sizes == (300, 260)


def test_several_hidden_layers_fit_with_the_ridge_that_leave_one_out_chooses():
    X, y = load_diabetes(return_X_y=True)
    targets = np.stack([y, -2.0 * y + X[:, 0]], axis=1)
    model = WideRegressor(hidden_layer_sizes=(400, 300), max_iter=5).fit(X[:150], targets[:150])
    assert model.alpha_ > 0
    assert model.predict(X[150:]).shape == (len(X) - 150, 2)
    assert model.score(X[150:], targets[150:]) > 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "floored_relu"}, "floored_relu"),
        ({"refit_readout": True}, "refit_readout"),
        ({"hidden_layer_sizes": (30, 1)}, "hidden_layer_sizes"),
        ({"hidden_layer_sizes": ()}, "hidden_layer_sizes"),
        ({"tracker": "dense"}, "tracker"),
    ],
)
def test_refuses_what_several_hidden_layers_cannot(options, message):
    X, y = np.random.default_rng(0).standard_normal((20, 3)), np.arange(20.0)
    with pytest.raises(ValueError, match=message):
        WideRegressor(**{"hidden_layer_sizes": (30, 30), **options}).fit(X, y)
