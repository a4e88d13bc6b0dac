"""Losses of the estimators against the same problems solved by SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.datasets import load_diabetes
from sklearn.linear_model import HuberRegressor
from sklearn.metrics import mean_pinball_loss

import widefit
from widefit import WideClassifier, WideRegressor
from widefit.losses.family import rule_loss
from widefit.rules import GaussNewton
from widefit.tuning.limit_kernel import limit_gram

# Every neuron fires on every row, so that the network is linear in its weights and its kernel is that of the inputs.
LINEAR = {"hidden_layer_sizes": (256,), "threshold": -20.0, "max_iter": 200}


def line(samples: int = 120) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((samples, 3))
    return X, X @ [1.0, -2.0, 0.5] + 0.5 * generator.standard_t(2, samples)


def at_best(loss: str, gram: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Outputs f = H v that minimize 2 Σ ℓ + α vᵀ H v, by L-BFGS in the eigenbasis of H."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * values.max()
    features = vectors[:, kept] * np.sqrt(values[kept])
    outputs = targets.shape[1]

    def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
        weights = u.reshape(-1, outputs)
        f = features @ weights
        slope = 2 * features.T @ rule_loss(loss).gradients(f, targets) + 2 * ridge * weights
        return float(2 * rule_loss(loss).values(f, targets).sum() + ridge * (u @ u)), slope.ravel()

    start = np.zeros(features.shape[1] * outputs)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-14})
    return features @ found.x.reshape(-1, outputs)


@pytest.mark.parametrize("loss", ["absolute", "huber", "quantile", "poisson"])
def test_the_training_ends_at_the_minimum(loss):
    X, y = line()
    if loss == "poisson":
        y = np.random.default_rng(1).poisson(np.exp(0.5 * X[:, 0])).astype(float)
    model = WideRegressor(**LINEAR, loss=loss, quantile=0.8, alpha=0.05).fit(X, y)
    inputs = model.sphere_(X)
    gram = limit_gram(inputs, -20.0) * model.network_.readout[0, 0].item() ** 2
    targets = model._loss_targets(y)
    ridge = model._ridge * model._loss_ridge
    found = model._outputs(X)
    best = at_best(model.loss_, gram, targets, ridge)

    def value(f: np.ndarray) -> float:
        smooth = np.linalg.lstsq(gram, f, rcond=1e-10)[0]
        return float(2 * rule_loss(model.loss_).values(f, targets).sum() + ridge * np.sum(f * smooth))

    start = value(np.zeros_like(best))
    assert value(found) - value(best) < 5e-3 * (start - value(best))


def test_outliers_pull_no_more_than_others():
    X, y = line(200)
    y = X @ [1.0, -2.0, 0.5] + 0.1 * np.random.default_rng(1).standard_normal(200)
    truth = X @ [1.0, -2.0, 0.5]
    outliers = y.copy()
    outliers[::10] += 1e6
    expected = HuberRegressor(max_iter=10_000).fit(X, y).predict(X)
    for loss in ("absolute", "huber"):
        found = WideRegressor((2048,), loss=loss).fit(X, outliers).predict(X)
        assert np.sqrt(np.mean((found - expected) ** 2)) < 0.25 * truth.std()
    assert np.abs(WideRegressor((2048,)).fit(X, outliers).predict(X) - truth).mean() > 100


def test_quantiles_have_their_share_below():
    generator = np.random.default_rng(0)
    X = generator.uniform(-1, 1, (900, 2))
    y = X[:, 0] + (0.2 + 0.4 * (X[:, 1] > 0)) * generator.standard_normal(900)
    predicted = {
        level: WideRegressor((2048,), loss="quantile", quantile=level).fit(X[:600], y[:600]).predict(X[600:])
        for level in (0.1, 0.5, 0.9)
    }
    for level, found in predicted.items():
        assert np.mean(y[600:] <= found) == pytest.approx(level, abs=0.07)
        constant = np.full(300, np.quantile(y[:600], level))
        assert mean_pinball_loss(y[600:], found, alpha=level) < 0.8 * mean_pinball_loss(y[600:], constant, alpha=level)
    width = predicted[0.9] - predicted[0.1]
    assert width[X[600:, 1] > 0].mean() > 1.5 * width[X[600:, 1] < 0].mean()


def test_counts():
    generator = np.random.default_rng(0)
    X = generator.uniform(-1, 1, (600, 2))
    rate = 3 * np.exp(1.5 * X[:, 0])
    y = generator.poisson(rate)
    model = WideRegressor((2048,), loss="poisson").fit(X[:400], y[:400])
    predicted = model.predict(X[400:])
    assert (predicted > 0).all()
    assert np.mean((np.log(predicted) - np.log(rate[400:])) ** 2) < 0.03
    with pytest.raises(ValueError, match="y must be numbers ≥ 0"):
        WideRegressor((64,), loss="poisson").fit(X, y - 1.0)
    for ask in (lambda: model.predict(X, return_std=True), lambda: model.predict_interval(X)):
        with pytest.raises(ValueError, match="loss='poisson' has no standard deviations"):
            ask()


def test_several_outputs_and_deep_networks():
    X, y = line()
    targets = np.column_stack([y, 2 - 3 * y])
    for widths in ((512,), (256, 256)):
        model = WideRegressor(widths, loss="huber").fit(X, targets)
        assert model.score(X, targets) > 0.5
        assert np.corrcoef(model.predict(X).T)[0, 1] < -0.9


def test_files_keep_the_loss(tmp_path):
    X, y = line()
    for loss in ("absolute", "poisson"):
        model = WideRegressor((256,), loss=loss, warm_start=True).fit(X, np.abs(y))
        widefit.save(model, tmp_path / "m.widefit")
        again = widefit.load(tmp_path / "m.widefit")
        np.testing.assert_array_equal(again.predict(X), model.predict(X))
        np.testing.assert_array_equal(again.fit(X, np.abs(y)).predict(X), model.fit(X, np.abs(y)).predict(X))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "hinge"}, "loss must be one of 'squared', 'absolute'"),
        ({"loss": "quantile", "quantile": 1}, "quantile must be a number between 0 and 1"),
        ({"loss": "absolute", "rule": "sgd"}, 'takes rule="gauss-newton"'),
        ({"loss": "absolute", "refit_readout": True}, "refit_readout must be False"),
    ],
)
def test_what_cannot_be_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        WideRegressor((64,), **parameters).fit(*line())


def test_the_softmax_loss_of_a_network_whose_outputs_have_neurons_of_their_own():
    X, y = line()
    labels = np.digitize(y, [-1.0, 1.0])
    rule = GaussNewton(loss="softmax")
    model = WideClassifier(**{**LINEAR, "hidden_layer_sizes": (384,)}, rule=rule, alpha=0.5).fit(X, labels)
    assert model.loss_ == "softmax"
    inputs = model.sphere_(X)
    # A third of the neurons has readouts that are √3 times as large.
    gram = limit_gram(inputs, -20.0) * float((model.network_.readout.detach().numpy() ** 2).sum() / 384 / 3)
    ridge = model._ridge * 0.5
    best = at_best("softmax", gram, np.eye(3)[labels], ridge)
    np.testing.assert_allclose(model.predict_proba(X), softmax(best, axis=1), atol=0.02)
    assert model.history_.losses == sorted(model.history_.losses, reverse=True)


def test_a_warm_start_keeps_its_loss(tmp_path):
    X, y = load_diabetes(return_X_y=True)
    model = WideRegressor((64,), loss="quantile", quantile=0.1, warm_start=True, max_iter=1).fit(X, y)
    widefit.save(model, tmp_path / "m.widefit")
    for fitted in (model, widefit.load(tmp_path / "m.widefit")):
        fitted.fit(X, y)
        with pytest.raises(
            ValueError, match=r"fitted to the 0\.1 quantile loss .* the 0\.9 quantile one; set warm_start=False"
        ):
            fitted.set_params(quantile=0.9).fit(X, y)
        with pytest.raises(ValueError, match="the squared one"):
            fitted.set_params(loss="squared").fit(X, y)
        fitted.set_params(warm_start=False).fit(X, y)
