"""Scores of predictions, and of the simplest ones for comparison."""

from typing import Any

import numpy as np


def of_classes(
    y: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, classes: np.ndarray
) -> dict[str, float]:
    """Accuracy, log loss and balanced accuracy; the latter is the mean over the classes that occur in y."""
    correct = predicted == y
    by_class = [float(correct[y == label].mean()) for label in np.unique(y)]
    # One rounding error below certainty: a wrong answer given with certainty costs 36, not infinity.
    columns = np.searchsorted(classes, y)
    certainty = np.clip(probabilities[np.arange(len(y)), columns], np.finfo(np.float64).eps, 1.0)
    return {
        "accuracy": float(correct.mean()),
        "log loss": float(-np.log(certainty).mean()),
        "balanced accuracy": float(np.mean(by_class)),
    }


def of_numbers(y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Root mean squared error, mean absolute error and R²; R² is NaN where y is constant."""
    errors = np.asarray(predicted, dtype=np.float64) - y
    spread = float(np.mean((y - y.mean()) ** 2))
    squared = float(np.mean(errors**2))
    return {
        "RMSE": squared**0.5,
        "MAE": float(np.abs(errors).mean()),
        "R²": 1 - squared / spread if spread > 0 else float("nan"),
    }


def of_model(
    model: Any, X: np.ndarray, y: np.ndarray, task: str
) -> tuple[dict[str, float], np.ndarray, np.ndarray | None]:
    """Scores, predictions and (for classes) probabilities of a fitted model on rows X."""
    if task == "regression":
        predicted = np.asarray(model.predict(X))
        return of_numbers(y, predicted), predicted, None
    logarithms = np.asarray(model.predict_log_proba(X))
    predicted, probabilities = model.classes_[np.argmax(logarithms, axis=1)], np.exp(logarithms)
    return of_classes(y, predicted, probabilities, np.asarray(model.classes_)), predicted, probabilities


def of_constant(training: np.ndarray, y: np.ndarray, task: str) -> tuple[str, dict[str, float]]:
    """Name and scores on y of the constant that predicts `training` best: its mean, or its most frequent class."""
    if task == "regression":
        return "always the mean", of_numbers(y, np.full(len(y), training.mean()))
    classes, counts = np.unique(training, return_counts=True)
    most_frequent = np.full(len(y), classes[np.argmax(counts)])
    shares = np.tile(counts / counts.sum(), (len(y), 1))
    return f"always {most_frequent[0]!s}", of_classes(y, most_frequent, shares, classes)
