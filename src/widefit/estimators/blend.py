"""Logistic models beside the network of a classifier: where a line or a sum over columns is enough, they are better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp

from widefit.kernels.threads import serial_blas
from widefit.plan.base import Choice
from widefit.tuning.columns import indicators
from widefit.tuning.duplicates import WeightedRows
from widefit.tuning.logistic import best_logistic, one_a_class, refit_logistic
from widefit.tuning.sphere import SphereMap
from widefit.tuning.steps import Steps

# Coefficients of a model at most: a step of Newton factorizes a matrix of as many rows. Flops of the sum behind it.
_COEFFICIENTS = 700
_FLOPS = 4e9
# Share of the variance of a column that its steps have.
_HALF_STEPS = 0.5
# Rows that each model is taken to have predicted as well as all others before any is looked at.
_PRIOR_ROWS = 5.0
_ROUNDS = 300
# Spreads from the mean beyond which a value counts for no more: far outliers decide nothing.
_FARTHEST = 30.0
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class LogisticPart:
    """A logistic model of the columns of a table, or of these and their steps: a sum of a function a column.

    Attributes
    ----------
    columns
        Scales the columns, and appends steps.
    coefficients
        Shape (e + 1, k), the last of them the intercept; k = 1 for two classes.
    """

    columns: SphereMap
    coefficients: Float[np.ndarray, "e_plus_one k"]

    def log_shares(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """Return the logarithms of the probabilities."""
        return log_softmax(one_a_class(_entries(self.columns, rows) @ self.coefficients), axis=1)


@dataclass(frozen=True)
class Blend:
    """Probabilities that are weighted means of those of a network and of logistic models.

    Attributes
    ----------
    parts
        The logistic models.
    shares
        Weights, that of the network first, with sum 1.
    """

    parts: tuple[LogisticPart, ...]
    shares: Float[np.ndarray, " parts_plus_one"]

    @classmethod
    @serial_blas()
    def fit(
        cls,
        rows: WeightedRows,
        places: Int[np.ndarray, " r"],
        weight: Float[np.ndarray, " r"],
        network: Float[np.ndarray, "r classes"],
    ) -> "Blend | None":
        """Fit logistic models, and find the weights that give left-out predictions the smallest log loss.

        Parameters
        ----------
        rows
            Distinct rows of the training table; their targets are shares of the classes.
        places, weight
            Those that the network has left-out predictions for, and what they weigh.
        network
            The logarithms of these.

        Returns
        -------
        None where columns and classes are too many for a logistic model.
        """
        judged = rows.targets[places]
        parts: list[LogisticPart] = []
        left_out = [network]
        outputs = 1 if judged.shape[1] == 2 else judged.shape[1]
        for columns in _column_maps(rows, _COEFFICIENTS // outputs - 1):
            found = best_logistic(_entries(columns, rows.rows[places]), judged, weight)
            left_out.append(log_softmax(one_a_class(found.left_out), axis=1))
            coefficients = found.coefficients
            if len(rows.rows) > len(places):
                step = 1 + int(len(rows.rows) * coefficients.size**2 / _FLOPS)
                entries = _entries(columns, rows.rows[::step])
                coefficients = refit_logistic(found, entries, rows.targets[::step], rows.sample_weight[::step])
            parts.append(LogisticPart(columns, coefficients))
        if not parts:
            return None
        likelihoods = np.stack([(np.exp(logs) * judged).sum(axis=1) for logs in left_out])
        return cls(tuple(parts), _weights(likelihoods, weight))

    @property
    def choice(self) -> Choice:
        """The entry of the plan."""
        names = ("columns", "columns and steps") if len(self.parts) == 2 else ("columns",)
        told = [f"{share:.0%} of {name}" for name, share in zip(names, self.shares[1:], strict=True)]
        reason = "the smallest leave-one-out log loss of weighted means with the network"
        return Choice("logistic models", " and ".join(told), reason)

    def log_shares(
        self, network: Float[np.ndarray, "n classes"], rows: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "n classes"]:
        """Return the logarithms of the probabilities, from those of the network and the rows."""
        logs = [network, *(part.log_shares(rows) for part in self.parts)]
        return np.asarray(logsumexp(np.stack(logs), axis=0, b=self.shares[:, None, None]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name; `from_arrays` is the inverse."""
        found = {"shares": self.shares}
        for place, part in enumerate(self.parts):
            arrays = {"coefficients": part.coefficients, **part.columns.to_arrays()}
            found |= {f"{place}.{name}": array for name, array in arrays.items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], columns: int, outputs: int) -> "Blend":
        """Build the blend of a table of so many columns from its arrays.

        Raises
        ------
        ValueError
            Arrays that do not belong together, or numbers that are not finite.
        """
        if "shares" not in arrays:
            raise ValueError("the logistic models lack their shares")
        shares = arrays["shares"]
        if shares.ndim != 1 or not 2 <= shares.size <= 3 or not (np.isfinite(shares).all() and (shares >= 0).all()):
            raise ValueError(f"shares of the logistic models must be 2 or 3 numbers ≥ 0, got {shares.shape}")
        parts = []
        for place in range(shares.size - 1):
            own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{place}.")}
            if lacking := {"center", "scale", "coefficients"} - own.keys():
                raise ValueError(f"a logistic model lacks its {min(lacking)}")
            part = LogisticPart(SphereMap.from_arrays(own, 1.0), own["coefficients"])
            wanted = (part.columns.out_features, outputs)
            if part.columns.center.size - part.columns.steps.columns.size != columns:
                raise ValueError(f"a logistic model has other columns than the table, which has {columns}")
            if part.coefficients.shape != wanted or not np.isfinite(part.coefficients).all():
                raise ValueError(f"coefficients of a logistic model must be finite and have shape {wanted}")
            parts.append(part)
        return cls(tuple(parts), shares)


def _entries(columns: SphereMap, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e_plus_one"]:
    bounded = np.clip(columns.scaled(rows), -_FARTHEST, _FARTHEST)
    return np.hstack([bounded, np.ones((len(rows), 1))])


def _column_maps(rows: WeightedRows, most: int) -> list[SphereMap]:
    """Return the columns, and these with steps beside them, as long as they are no more entries than `most`."""
    found: list[SphereMap] = []
    if rows.rows.shape[1] <= most:
        found.append(SphereMap.fit(rows.rows, rows.sample_weight, scaling="columns", constant=1.0))
        steps = Steps.fit(rows.rows, indicators(rows.rows))
        if steps.columns.size and rows.rows.shape[1] + steps.columns.size <= most:
            found.append(found[0].with_steps(rows.rows, rows.sample_weight, steps, _HALF_STEPS))
    return found


def _weights(
    likelihoods: Float[np.ndarray, "parts r"], sample_weight: Float[np.ndarray, " r"]
) -> Float[np.ndarray, " parts"]:
    """Return the weights of the largest likelihood, under a Dirichlet prior, by expectation and maximization."""
    rows = sample_weight.size
    share = sample_weight / sample_weight.sum()
    weights = np.full(len(likelihoods), 1 / len(likelihoods))
    for _ in range(_ROUNDS):
        owned = weights[:, None] * likelihoods
        owned /= np.maximum(owned.sum(axis=0), _TINY)
        weights = rows * owned @ share + _PRIOR_ROWS
        weights /= weights.sum()
    return weights
