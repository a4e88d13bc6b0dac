"""Principal components in place of very many columns."""

import numpy as np
import pytest

import widefit
from widefit import WideRegressor
from widefit.tuning import tune as module
from widefit.tuning.gradient_outer_product import can_mix
from widefit.tuning.principal_components import Components, best_components
from widefit.tuning.sphere import SphereMap

COLUMNS = 220


def table(rows: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Columns that are mixtures of six factors and noise, and a target of two of the factors."""
    generator = np.random.default_rng(0)
    factors = generator.standard_normal((rows, 6))
    X = factors @ generator.standard_normal((6, COLUMNS)) + noise * generator.standard_normal((rows, COLUMNS))
    return X, np.sin(2 * factors[:, 0]) + factors[:, 1] ** 2


@pytest.mark.parametrize("rows", [300, 80])
def test_components_are_those_of_the_weighted_covariance(rows):
    X, _ = table(rows)
    weight = np.random.default_rng(1).uniform(0.5, 2, rows)
    sphere = SphereMap.fit(X, weight, scaling="common", constant=1.0)
    found = Components.of(sphere, X, weight)
    assert found is not None
    scaled = sphere.scaled(X)
    covariance = np.cov(scaled.T, aweights=weight, ddof=0)
    values = np.linalg.eigvalsh(covariance)[::-1]
    U = found.directions
    np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-4)
    np.testing.assert_allclose(np.diag(U.T @ covariance @ U), values[: U.shape[1]], atol=1e-4 * values[0])
    np.testing.assert_allclose(found.shares, values[: U.shape[1]] / values.sum(), atol=1e-10)
    few, told = found.maps()[0]
    assert few(X).shape == (rows, few.out_features) == (rows, 21)
    np.testing.assert_allclose(few.scaled(X), scaled @ U[:, :20])
    assert told.startswith("20 principal components")
    assert not can_mix(few)
    assert Components.of(few, X, weight) is None
    assert Components.of(SphereMap.fit(X[:, :100], weight, scaling="common", constant=1.0), X[:, :100], weight) is None


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_degenerate_rows(scale):
    X = scale * np.outer(np.arange(12.0), np.ones(COLUMNS))
    for rows in (X, 0 * X, X[:1]):
        sphere = SphereMap.fit(rows, np.ones(len(rows)), scaling="columns", constant=1.0)
        found = Components.of(sphere, rows, np.ones(len(rows)))
        assert found is not None
        assert np.isfinite(found.directions).all()
        assert found.maps() == []


def test_the_best_count():
    sphere = SphereMap.fit(np.eye(3), np.ones(3), scaling="columns", constant=1.0)
    maps = [(sphere, str(place)) for place in range(6)]

    def chosen(*errors: float, more: bool = False) -> tuple[str, float]:
        left = iter(errors)
        found = best_components(maps, lambda _: next(left), more)
        assert found is not None
        return found[1], found[2]

    assert chosen(5, 3, 2, 1, 1.001, 1.2) == ("3", 1)
    assert chosen(5, 3, 2, 1, 1.001, 1.2, more=True) == ("4", 1.001)
    # Two that are clearly worse end it, one does not.
    assert chosen(3, 1, 2, 2) == ("1", 1)
    assert chosen(3, 2, 3, 1, 3, 3) == ("3", 1)
    assert best_components([], lambda _: 0.0) is None


@pytest.mark.parametrize("many", [False, True])
def test_the_estimator_takes_components_where_other_rows_confirm_it(monkeypatch, tmp_path, many):
    if many:
        monkeypatch.setattr(module, "MANY", 100)
    X, y = table(500, noise=1.5)
    model = WideRegressor((1024,), random_state=0).fit(X[:300], y[:300])
    mixing = model.sphere_.mixing
    assert mixing is not None
    assert mixing.shape[0] == COLUMNS > mixing.shape[1]
    assert model.network_.in_features == mixing.shape[1] + 1
    assert "principal components" in next(row[1] for row in model.plan_.rows() if row[0] == "input map")
    assert model.score(X[300:], y[300:]) > 0.6
    assert model.feature_importances_.shape == (COLUMNS,)
    assert np.isfinite(model.feature_importances_).all()
    widefit.save(model, tmp_path / "m.widefit")
    np.testing.assert_array_equal(widefit.load(tmp_path / "m.widefit").predict(X), model.predict(X))
    tensors, document = model.to_parts()
    for bad in (tensors["mixing"][:, :3], tensors["mixing"].T):
        with pytest.raises(widefit.files.FileError):
            WideRegressor.from_parts(tensors | {"mixing": bad}, document)


def test_columns_stay_where_components_lose_what_matters():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((400, COLUMNS))
    X[:, 1:] = X[:, 1:9] @ generator.standard_normal((8, COLUMNS - 1)) + 0.1 * X[:, 1:]
    X[:, 0] *= 0.3
    model = WideRegressor((256,), random_state=0).fit(X, np.sin(6 * X[:, 0]))
    assert model.sphere_.mixing is None
