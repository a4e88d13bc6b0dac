"""A model comes back from its file as it was, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression

import widefit
from widefit import WideClassifier, WideRegressor, rules, solvers, trackers
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.estimators.networks import network_parts
from widefit.files import FileError, load_parts, write_container

X = np.random.default_rng(0).normal(size=(60, 4))
TARGETS = {
    "numbers": X[:, 0] + X[:, 1] ** 2,
    "two outputs": np.stack([X[:, 0], X[:, 1] - X[:, 2]], axis=1),
    "text": np.array(["low", "high", "médium"])[np.digitize(X[:, 0], [-0.5, 0.5])],
    "two texts": np.where(X[:, 0] > 0, "yes", "no"),
    "integers": np.digitize(X[:, 0], [-0.5, 0.5]) * 7 - 3,
    "booleans": X[:, 0] > 0,
    "floats": np.where(X[:, 0] > 0, 1.0, -1.0),
}


def fitted(name: str) -> WideRegressor | WideClassifier:
    estimator = WideRegressor if name in ("numbers", "two outputs") else WideClassifier
    return estimator(hidden_layer_sizes=(64,), max_iter=3).fit(X, TARGETS[name])


@pytest.mark.parametrize("name", TARGETS)
def test_round_trip(tmp_path: Path, name: str) -> None:
    model = fitted(name)
    widefit.save(model, tmp_path / "m.widefit")
    found = widefit.load(tmp_path / "m.widefit")
    assert type(found) is type(model)
    assert found.get_params() == model.get_params()
    assert found.history_ == model.history_
    assert found.plan_ == model.plan_
    new = np.random.default_rng(1).normal(size=(20, 4))
    assert np.array_equal(found.predict(new), model.predict(new))
    if isinstance(model, WideClassifier):
        assert np.array_equal(found.classes_, model.classes_)
        assert found.classes_.dtype.kind == model.classes_.dtype.kind
        assert np.array_equal(found.predict_proba(new), model.predict_proba(new))
    widefit.save(found, tmp_path / "again.widefit")
    assert (tmp_path / "again.widefit").read_bytes() == (tmp_path / "m.widefit").read_bytes()


def test_what_can_be_drawn_again_is_not_stored(tmp_path: Path) -> None:
    model = WideClassifier(hidden_layer_sizes=(2048,)).fit(X, TARGETS["text"])
    tensors, document = model.to_parts()
    assert "readout" not in tensors
    assert 0 < len(tensors["weight"]) < 0.9 * model.network_.width
    widefit.save(model, tmp_path / "m.widefit")
    found = widefit.load(tmp_path / "m.widefit")
    assert torch.equal(found.network_.weight, model.network_.weight)
    assert torch.equal(found.network_.readout, model.network_.readout)
    assert found.network_.initial == model.network_.initial
    assert np.array_equal(found.feature_importances_, model.feature_importances_)
    # Pairs that are left out cancel: predictions do not rest on how they are drawn.
    document["network"]["drawn"]["seed"] += 1
    other = WideClassifier.from_parts(tensors, document)
    assert not torch.equal(other.network_.weight, model.network_.weight)
    np.testing.assert_allclose(other.predict_proba(X), model.predict_proba(X), rtol=1e-9)


def test_networks_that_were_stored_whole_are_read(tmp_path: Path) -> None:
    model = WideRegressor(hidden_layer_sizes=(64,), max_iter=3).fit(X, TARGETS["numbers"])
    tensors, document = model.to_parts()
    whole, network = network_parts(model.network_, whole=True)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ("moved", "sample.rows")} | whole
    tensors["sample.inputs"] = torch.from_numpy(model._sample.inputs)
    write_container(tmp_path / "m", tensors, {"model": document | {"network": network}, "encoding": None}, "model")
    found = widefit.load(tmp_path / "m")
    assert np.array_equal(found.predict(X), model.predict(X))
    assert np.array_equal(found.predict_interval(X), model.predict_interval(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 62}, "moved"),
        ({"in_features": 3}, "cannot be drawn"),
        ({"seed": -1}, "cannot be drawn"),
        ({"entry": 0.0}, "cannot be drawn"),
        ({"paired": False}, "cannot be drawn"),
        ({"out_features": 40}, "cannot be drawn"),
    ],
)
def test_networks_that_cannot_be_drawn_again(change: dict, message: str) -> None:
    model = WideRegressor(hidden_layer_sizes=(64,), max_iter=3).fit(X, TARGETS["numbers"])
    tensors, document = model.to_parts()
    document["network"]["drawn"] |= change
    with pytest.raises(FileError, match=message):
        WideRegressor.from_parts(tensors, document)


def test_the_encoding_rides_along(tmp_path: Path) -> None:
    table = read_table("iris")
    encoding = TableEncoding.learn(table.frame, "species")
    model = WideClassifier(hidden_layer_sizes=(32,), max_iter=2)
    model.fit(encoding.encode(table.frame), encoding.target.values(table.frame))
    widefit.save(model, tmp_path / "m.widefit", encoding=encoding.to_dict())
    found, record = load_parts(tmp_path / "m.widefit")
    assert record is not None
    assert TableEncoding.from_dict(record) == encoding
    assert found.predict(encoding.encode(table.frame)).tolist() == model.predict(encoding.encode(table.frame)).tolist()
    widefit.save(model, tmp_path / "m.widefit")
    assert load_parts(tmp_path / "m.widefit")[1] is None


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": rules.GaussNewton(damping=1e-2, increase=10.0)},
        {"rule": rules.GradientDescent(lr=0.5, schedule="cosine", period=3)},
        {"rule": rules.SGD(lr=0.1, batch_size=7, seed=3, average=20), "tracker": trackers.HalfSpaceTree(leaf_size=5)},
        {"rule": rules.SGD(lr=0.1, adversary=rules.PGD(radius=0.1, steps=2)), "tracker": "dense"},
        {"tracker": trackers.Certificate(reach=0.25), "solver": solvers.CG(tolerance=1e-3)},
        {"tracker": trackers.VerletList(price=0.2), "solver": solvers.Cholesky()},
        {"hidden_layer_sizes": [64], "max_iter": np.int64(2), "alpha": np.float64(0.5), "threshold": 1},
    ],
    ids=["gauss-newton", "descent", "averaged", "adversarial", "certificate", "verlet", "numbers of numpy"],
)
def test_parameters_come_back_with_their_settings(tmp_path: Path, settings: dict) -> None:
    model = WideRegressor(**{"hidden_layer_sizes": (64,), "max_iter": 2} | settings).fit(X, TARGETS["numbers"])
    widefit.save(model, tmp_path / "m.widefit")
    found = widefit.load(tmp_path / "m.widefit")
    wanted = model.get_params()
    wanted["hidden_layer_sizes"] = tuple(wanted["hidden_layer_sizes"])
    assert found.get_params() == wanted
    again, straight = (each.fit(X, TARGETS["numbers"]) for each in (found, model))
    assert np.array_equal(again.predict(X), straight.predict(X))


def test_a_random_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = np.random.RandomState(5)
    state.normal(size=3)
    model = WideRegressor(hidden_layer_sizes=(64,), max_iter=2, random_state=state).fit(X, TARGETS["numbers"])
    widefit.save(model, tmp_path / "m.widefit")
    found = widefit.load(tmp_path / "m.widefit")
    assert np.array_equal(found.random_state.normal(size=9), state.normal(size=9))
    found.fit(X, TARGETS["numbers"])


def test_a_rule_of_ones_own_comes_back_as_its_name(tmp_path: Path) -> None:
    class Careful(rules.GaussNewton):
        name = "careful"

    model = WideRegressor(hidden_layer_sizes=(64,), max_iter=2, rule=Careful()).fit(X, TARGETS["numbers"])
    widefit.save(model, tmp_path / "m.widefit")
    found = widefit.load(tmp_path / "m.widefit")
    assert found.rule == model.rule.name
    assert np.array_equal(found.predict(X), model.predict(X))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        widefit.save(WideRegressor(), tmp_path / "m.widefit")
    with pytest.raises(TypeError, match="model must be a fitted WideClassifier or WideRegressor, got LinearRegression"):
        widefit.save(LinearRegression(), tmp_path / "m.widefit")
    assert list(tmp_path.iterdir()) == []


def test_models_of_another_time(tmp_path: Path) -> None:
    write_container(tmp_path / "m", {}, {"model": {"estimator": "WideRanker"}, "encoding": None}, "model")
    with pytest.raises(FileError, match="holds a 'WideRanker', which this widefit does not know; upgrade widefit"):
        widefit.load(tmp_path / "m")
    write_container(tmp_path / "m", {}, {"weights": "none"}, "model")
    with pytest.raises(FileError, match="is a model file without a model"):
        widefit.load(tmp_path / "m")
