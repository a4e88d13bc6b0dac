"""Scores of a stream in bounded memory: every row is predicted before it is learnt."""

from dataclasses import dataclass, field

import numpy as np

from widefit.cli.run import scores

# Rows that a report shows one by one.
KEPT = 4096


@dataclass
class Progressive:
    """Sums over the rows predicted so far, and the last of those rows.

    Attributes
    ----------
    classes
        Labels in order; empty for a regression.
    truth, prediction, probabilities
        Of the last rows.
    """

    classes: np.ndarray
    truth: np.ndarray = field(default_factory=lambda: np.empty(0))
    prediction: np.ndarray = field(default_factory=lambda: np.empty(0))
    probabilities: np.ndarray | None = None
    rows: int = 0
    # Sums over all rows: of numbers, or of labels by class.
    _sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, y: np.ndarray, predicted: np.ndarray) -> None:
        """Some rows: numbers and predictions, or labels and probabilities (n, classes)."""
        self.rows += len(y)
        labels = predicted
        if self.classes.size:
            labels = self.classes[predicted.argmax(axis=1)]
            codes = np.searchsorted(self.classes, y)
            certainty = np.clip(predicted[np.arange(len(y)), codes], np.finfo(np.float64).eps, 1.0)
            self._count("rows", np.bincount(codes, minlength=self.classes.size))
            self._count("correct", np.bincount(codes[labels == y], minlength=self.classes.size))
            self._count("log loss", -np.log(certainty).sum())
            before = predicted[:0] if self.probabilities is None else self.probabilities
            self.probabilities = np.concatenate([before, predicted])[-KEPT:]
        else:
            if "center" not in self._sums:
                # Squares are summed around a number near the mean: large offsets cost no digits.
                self._sums["center"] = np.asarray(y.mean())
            error, offset = predicted - y, y - self._sums["center"]
            for name, values in (("squared", error**2), ("absolute", np.abs(error)), ("y", offset), ("yy", offset**2)):
                self._count(name, values.sum())
        self.truth = y[-KEPT:] if not self.truth.size else np.concatenate([self.truth, y])[-KEPT:]
        self.prediction = (
            labels[-KEPT:] if not self.prediction.size else np.concatenate([self.prediction, labels])[-KEPT:]
        )

    def metrics(self) -> dict[str, float]:
        """Over all rows."""
        sums = self._sums
        if self.classes.size:
            seen = sums["rows"] > 0
            return {
                "accuracy": float(sums["correct"].sum() / self.rows),
                "log loss": float(sums["log loss"] / self.rows),
                "balanced accuracy": float((sums["correct"][seen] / sums["rows"][seen]).mean()),
            }
        spread = float(sums["yy"] / self.rows - (sums["y"] / self.rows) ** 2)
        squared = float(sums["squared"] / self.rows)
        return {
            "RMSE": squared**0.5,
            "MAE": float(sums["absolute"] / self.rows),
            "R²": 1 - squared / spread if spread > 0 else float("nan"),
        }

    def recent(self) -> dict[str, float]:
        """Over the last rows."""
        if self.probabilities is None:
            return scores.of_numbers(self.truth, self.prediction)
        return scores.of_classes(self.truth, self.prediction, self.probabilities, self.classes)

    def _count(self, name: str, value) -> None:
        self._sums[name] = self._sums.get(name, 0) + np.asarray(value)
