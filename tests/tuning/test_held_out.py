"""Choices for many rows: held-out rows, a larger sample, and solves that need no inverse."""

import numpy as np
import pytest

from widefit.tuning import held_out, tune
from widefit.tuning.duplicates import merge_duplicates
from widefit.tuning.held_out import Halves
from widefit.tuning.leave_one_out import leave_one_out, solve_shifted
from widefit.tuning.limit_kernel import limit_gram
from widefit.tuning.sphere import SphereMap


def table(noise: float, rows: int = 400):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((rows, 3))
    y = np.sin(2 * X[:, 0]) + noise * generator.standard_normal(rows)
    y = (y - y.mean()) / y.std()
    return merge_duplicates(X, y[:, None], np.ones(rows))


@pytest.mark.parametrize("kind", ["random", "duplicates", "zeros"])
def test_solves_are_those_of_the_regression(kind: str) -> None:
    inputs = np.random.default_rng(1).standard_normal((20, 4))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    if kind == "duplicates":
        inputs[10:] = inputs[:10]
    gram = limit_gram(inputs, 1.0) * (kind != "zeros")
    targets, weight = np.random.default_rng(2).standard_normal((20, 2)), np.linspace(0.5, 3, 20)
    expected = leave_one_out(gram, targets, weight, 1e-3).coefficients
    np.testing.assert_allclose(solve_shifted(gram, targets, weight, 1e-3), expected, rtol=1e-7, atol=1e-9)


def test_noise_asks_for_a_larger_ridge() -> None:
    found = []
    for noise in (0.0, 1.0):
        merged = table(noise)
        halves = Halves.draw(merged, None, np.random.default_rng(0))
        assert len(halves.learnt.rows) == len(halves.judged.rows) == 200
        np.testing.assert_array_equal(merged.rows[halves.rows], halves.judged.rows)
        sphere = SphereMap.fit(merged.rows, merged.sample_weight, scaling="columns", constant=1.0)
        fit = halves.judge(sphere, 1.0, 0.1, corrects=True)
        residuals = fit.predictions - merged.targets[fit.rows]
        assert fit.error == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=1e-9)
        found.append(fit)
    assert found[0].alpha < found[1].alpha
    assert found[0].error < found[1].error


@pytest.mark.parametrize("alpha", ["auto", 0.2])
def test_many_rows_are_judged(alpha, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MANY", 300)
    monkeypatch.setattr(held_out, "SAMPLE", 120)
    monkeypatch.setattr(tune, "_MAP_ROWS_OF_MANY", (100, 150))
    merged = table(0.3)
    found = tune.tune(merged, threshold=1.0, width=4096, alpha=alpha, readout_scale="auto", seed=0)
    assert found.held_out.shape == (120, 1)
    np.testing.assert_array_equal(found.held_out_targets, merged.targets[found.held_out_rows])
    assert "held-out rows" in found.choices[0].reason
    assert alpha == "auto" or found.alpha == alpha
    assert np.mean((found.held_out - found.held_out_targets) ** 2) < 0.5


def test_passes_over_the_table_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MANY", 300)
    monkeypatch.setattr(held_out, "SAMPLE", 50)
    monkeypatch.setattr(tune, "_MAP_ROWS_OF_MANY", (50, 60))
    fitted: list[str] = []
    fit = SphereMap.fit

    def counted(*arguments, scaling: str, **settings) -> SphereMap:
        fitted.append(scaling)
        return fit(*arguments, scaling=scaling, **settings)

    monkeypatch.setattr(SphereMap, "fit", counted)
    tune.tune(table(0.3), threshold=1.0, width=4096, alpha=0.2, readout_scale=1.0, seed=0)
    assert sorted(fitted) == ["columns", "common"]
