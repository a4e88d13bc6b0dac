"""Modes that a caller has set change nothing: torch's inference mode, and errors in place of NumPy's warnings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import widefit
from widefit.nn import Deep, TwoLayer

X = np.random.default_rng(0).normal(size=(60, 4))
y = X[:, 0]
SIZES = [(64,), (16, 8)]


@pytest.mark.parametrize("sizes", SIZES, ids=["one layer", "two layers"])
def test_models_made_or_loaded_in_inference_mode(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    expected = widefit.WideRegressor(hidden_layer_sizes=sizes, max_iter=2).fit(X, y).predict(X)
    with torch.inference_mode():
        made = widefit.WideRegressor(hidden_layer_sizes=sizes, max_iter=2).fit(X, y)
        assert np.array_equal(made.predict(X), expected)
    widefit.save(made, tmp_path / "m")
    with torch.inference_mode():
        loaded = widefit.load(tmp_path / "m")
    for model in (made, loaded):
        assert np.array_equal(model.predict(X), expected)
        model.set_params(warm_start=True).fit(X, y)


def test_streams_that_begin_in_inference_mode() -> None:
    straight, crossed = (widefit.WideRegressor(hidden_layer_sizes=(64,), rule="sgd") for _ in range(2))
    for _ in range(2):
        straight.partial_fit(X, y)
    with torch.inference_mode():
        crossed.partial_fit(X, y)
        crossed.predict(X)
    crossed.partial_fit(X, y)
    assert np.array_equal(crossed.predict(X), straight.predict(X))


@pytest.mark.parametrize(
    "make",
    [lambda: TwoLayer(4, 64), lambda: TwoLayer(4, 64, store="regenerate"), lambda: Deep(4, (16, 8))],
    ids=["stored", "regenerated", "deep"],
)
def test_networks_made_and_trained_in_inference_mode(make: Callable[[], Any]) -> None:
    with torch.inference_mode():
        network = make()
        widefit.train(network, X, y, max_iter=2)
    widefit.train(network, X, y, max_iter=2)
    inputs = torch.from_numpy(X).requires_grad_()
    network(inputs).sum().backward()
    assert inputs.grad is not None


@pytest.mark.parametrize("rule", ["gauss-newton", "sgd", "gradient-descent"])
def test_floating_point_errors_that_a_caller_would_raise(rule: str) -> None:
    classes = np.digitize(X[:, 0], [-0.5, 0.5])
    settings: dict[str, Any] = {"hidden_layer_sizes": (64,), "max_iter": 4, "rule": rule}
    expected = widefit.WideClassifier(**settings).fit(X, classes).predict_proba(1e3 * X)
    with np.errstate(all="raise"):
        model = widefit.WideClassifier(**settings).fit(X, classes)
        assert np.array_equal(model.predict_proba(1e3 * X), expected)
        model.predict_log_proba(X)
        model.decision_function(X)
        widefit.WideRegressor(**settings).fit(X, 1e-150 * y).predict(X)
        assert np.geterr()["under"] == "raise"


def test_a_stream_under_errors_that_a_caller_would_raise() -> None:
    model = widefit.WideClassifier(hidden_layer_sizes=(64,), rule=widefit.rules.SGD(loss="softmax"))
    with np.errstate(all="raise"):
        for _ in range(10):
            model.partial_fit(X, X[:, 0] > 0, classes=[False, True])
        assert model.predict_proba(X).shape == (60, 2)
