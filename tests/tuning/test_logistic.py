"""Logistic regression against a minimizer that knows nothing of it, and rows that are left out one by one."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax

from widefit.tuning.logistic import best_logistic, one_a_class, refit_logistic


def problem(classes: int, samples: int = 60):
    generator = np.random.default_rng(classes)
    columns = np.hstack([generator.standard_normal((samples, 3)), np.ones((samples, 1))])
    labels = np.argmax(columns[:, :1] * np.arange(classes) + generator.gumbel(size=(samples, classes)), axis=1)
    shares = np.eye(classes)[labels]
    shares[0] = 1 / classes  # equal rows of several labels
    return columns, shares, generator.uniform(0.5, 2, samples)


def reference(columns, shares, weight, ridge):
    """θ by a general minimizer."""
    outputs = 1 if shares.shape[1] == 2 else shares.shape[1]
    penalty = np.array([ridge] * (columns.shape[1] - 1) + [1e-3 * ridge])[:, None]

    def loss(theta):
        theta = theta.reshape(-1, outputs)
        logs = log_softmax(one_a_class(columns @ theta), axis=1)
        return -weight @ (shares * logs).sum(1) + np.sum(penalty * theta**2) / 2

    return minimize(loss, np.zeros(columns.shape[1] * outputs), tol=1e-12).x.reshape(-1, outputs)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_the_minimum(classes: int):
    columns, shares, weight = problem(classes)
    found = best_logistic(columns, shares, 7 * weight)
    expected = reference(columns, shares, weight / weight.mean(), found.ridge)
    np.testing.assert_allclose(columns @ found.coefficients, columns @ expected, atol=2e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_left_out_logits_are_nearly_those_of_the_other_rows(classes: int):
    columns, shares, weight = problem(classes)
    weight /= weight.mean()
    found = best_logistic(columns, shares, weight)
    everyone = log_softmax(one_a_class(columns @ found.coefficients), axis=1)
    left_out = log_softmax(one_a_class(found.left_out), axis=1)
    for row in range(0, 60, 7):
        others = np.arange(60) != row
        alone = reference(columns[others], shares[others], weight[others], found.ridge)
        exact = log_softmax(one_a_class(columns[row : row + 1] @ alone), axis=1)[0]
        np.testing.assert_allclose(left_out[row], exact, atol=0.15 * np.abs(exact - everyone[row]).max() + 1e-3)
    assert found.loss == pytest.approx(-weight @ (shares * left_out).sum(1) / weight.sum())


def test_it_goes_on_from_a_fit_to_other_rows():
    columns, shares, weight = problem(3)
    found = best_logistic(columns, shares, weight)
    again = refit_logistic(found, columns, shares, weight)
    np.testing.assert_allclose(columns @ again, columns @ found.coefficients, atol=1e-3)


def test_separable_rows_have_finite_logits():
    columns = np.array([[-1.0, 1.0], [-2.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    found = best_logistic(columns, np.eye(2)[[0, 0, 1, 1]], np.ones(4))
    assert np.isfinite(found.left_out).all()
    assert (np.sign(found.left_out[:, 0]) == np.sign(columns[:, 0])).all()
