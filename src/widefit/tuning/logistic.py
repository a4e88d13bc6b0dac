"""Penalized logistic regression, and what it predicts for rows that it has not seen."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve
from scipy.special import log_softmax

# Ridges on coefficients of columns of variance 1, from which a path begins; that of the intercept in parts of them.
_RIDGES = (100.0, 10.0, 1.0, 0.1)
_FREE = 1e-3
# Loss over the smallest so far at which the path ends.
_CLEARLY_WORSE = 1.1
# Newton's steps at most, halvings of one, and the decrease in nats a row that ends them.
_STEPS, _HALVINGS = 30, 10
_FLAT = 1e-7


@dataclass(frozen=True)
class Logistic:
    """A fit of logits X θ, whose softmax are probabilities; of two classes the logits are −X θ and X θ.

    Attributes
    ----------
    coefficients
        θ, shape (e, k), k = 1 for two classes.
    left_out
        Logits of every row from the other rows, shape (n, k).
    loss
        Weighted mean log loss of these.
    ridge
        The ridge.
    """

    coefficients: Float[np.ndarray, "e k"]
    left_out: Float[np.ndarray, "n k"]
    loss: float
    ridge: float


def one_a_class(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n classes"]:
    """Return one column a class, of two from their only one."""
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores


def best_logistic(
    columns: Float[np.ndarray, "n e"], shares: Float[np.ndarray, "n classes"], sample_weight: Float[np.ndarray, " n"]
) -> Logistic:
    """Return the fit with the smallest left-out log loss of a few ridges.

    Parameters
    ----------
    columns
        X, columns of mean 0 and a variance of about 1, the last of them ones.
    shares
        Probabilities of the classes.
    sample_weight
        ω > 0.
    """
    start = np.zeros((columns.shape[1], 1 if shares.shape[1] == 2 else shares.shape[1]))
    fits: list[Logistic] = []
    for ridge in _RIDGES:
        problem = _Problem.of(columns, shares, sample_weight, ridge)
        start, probability = problem.minimize(start)
        left_out = problem.left_out(start, probability)
        fits.append(Logistic(start, left_out, problem.log_loss(left_out), ridge))
        if fits[-1].loss > _CLEARLY_WORSE * min(fit.loss for fit in fits):
            break
    return min(fits, key=lambda fit: fit.loss)


def refit_logistic(
    found: Logistic,
    columns: Float[np.ndarray, "n e"],
    shares: Float[np.ndarray, "n classes"],
    sample_weight: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "e k"]:
    """Return the coefficients for other rows, with the ridge of a fit and from its coefficients on."""
    return _Problem.of(columns, shares, sample_weight, found.ridge).minimize(found.coefficients)[0]


@dataclass(frozen=True)
class _Problem:
    """Minimize Σ ω ℓ + ½ Σ penalty θ², ω of mean 1, over θ; logits of the classes are X θ contrastsᵀ."""

    columns: Float[np.ndarray, "n e"]
    shares: Float[np.ndarray, "n classes"]
    weight: Float[np.ndarray, " n"]
    penalty: Float[np.ndarray, "e 1"]
    contrasts: Float[np.ndarray, "classes k"]

    @classmethod
    def of(cls, columns: np.ndarray, shares: np.ndarray, sample_weight: np.ndarray, ridge: float) -> "_Problem":
        penalty = np.full((columns.shape[1], 1), ridge)
        penalty[-1] *= _FREE
        contrasts = np.array([[-1.0], [1.0]]) if shares.shape[1] == 2 else np.eye(shares.shape[1])
        return cls(columns, shares, sample_weight / sample_weight.mean(), penalty, contrasts)

    def minimize(self, theta: Float[np.ndarray, "e k"]) -> tuple[Float[np.ndarray, "e k"], np.ndarray]:
        """Return θ and the probabilities of the rows, by Newton's method."""
        value, probability = self._value(theta)
        for _ in range(_STEPS):
            factor = self._factor(self._curvature(probability))
            slope = self.columns.T @ self._slope(probability) + self.penalty * theta
            step = cho_solve(factor, slope.reshape(-1)).reshape(theta.shape)
            for halvings in range(_HALVINGS):
                tried = theta - step / 2**halvings
                after, probability_after = self._value(tried)
                if after <= value:
                    break
            else:
                break
            gain = value - after
            theta, value, probability = tried, after, probability_after
            if gain <= _FLAT * len(self.columns):
                break
        return theta, probability

    def left_out(self, theta: Float[np.ndarray, "e k"], probability: np.ndarray) -> Float[np.ndarray, "n k"]:
        """Return logits of every row without it: one step of Newton from the fit to all (Rad and Maleki 2020)."""
        entries, outputs = theta.shape
        curvature = self._curvature(probability)
        inverse = cho_solve(self._factor(curvature), np.eye(entries * outputs)).reshape((entries, outputs) * 2)
        half = np.tensordot(self.columns, inverse, axes=1)
        leverage = np.einsum("nkel,ne->nkl", half, self.columns)
        slope = np.linalg.solve(np.eye(outputs) - curvature @ leverage, self._slope(probability)[:, :, None])
        return self.columns @ theta + (leverage @ slope)[:, :, 0]

    def log_loss(self, logits: Float[np.ndarray, "n k"]) -> float:
        """Return the weighted mean log loss of logits."""
        logs = log_softmax(logits @ self.contrasts.T, axis=1)
        return float(-self.weight @ (self.shares * logs).sum(1) / self.weight.sum())

    def _value(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(self.columns @ theta @ self.contrasts.T, axis=1)
        fit = float(-self.weight @ (self.shares * logs).sum(1))
        return fit + float(np.sum(self.penalty * theta**2)) / 2, np.exp(logs)

    def _slope(self, probability: np.ndarray) -> Float[np.ndarray, "n k"]:
        """ω times the slope of ℓ in the logits."""
        return self.weight[:, None] * ((probability - self.shares) @ self.contrasts)

    def _curvature(self, probability: np.ndarray) -> Float[np.ndarray, "n k k"]:
        """ω times the second derivative of ℓ in the logits."""
        mean = probability @ self.contrasts
        squares = np.einsum("nc,ck,cl->nkl", probability, self.contrasts, self.contrasts, optimize=True)
        return self.weight[:, None, None] * (squares - mean[:, :, None] * mean[:, None, :])

    def _factor(self, curvature: Float[np.ndarray, "n k k"]) -> tuple[np.ndarray, bool]:
        """Cholesky factor of the second derivative in θ."""
        entries, outputs = self.columns.shape[1], curvature.shape[1]
        hessian = np.empty((entries, outputs, entries, outputs))
        for first in range(outputs):
            for second in range(first + 1):
                block = self.columns.T @ (curvature[:, first, second, None] * self.columns)
                hessian[:, first, :, second] = hessian[:, second, :, first] = block
        hessian = hessian.reshape(entries * outputs, -1)
        hessian.flat[:: len(hessian) + 1] += np.repeat(self.penalty[:, 0], outputs)
        return cho_factor(hessian, lower=True)
