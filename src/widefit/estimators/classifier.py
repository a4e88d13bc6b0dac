"""WideClassifier."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from widefit.data.duplicates import MergedRows
from widefit.estimators.base import Wide
from widefit.tuning import Tuning

# Factors between outputs and logits that are tried; at the upper end the held-out predictions make no error.
_SHARPEST = 50.0


class WideClassifier(ClassifierMixin, Wide):
    """Classification of tables with a wide network, trained to convergence in a few Gauss-Newton steps.

    Two classes share one output with targets ±1; more have one output a class, in a two-layer network each with neurons
    of its own. The squared loss is trained; probabilities come from the outputs through one temperature, fitted to
    leave-one-out predictions.

    Parameters
    ----------
    **parameters
        As for `WideRegressor`.

    Attributes
    ----------
    classes_ : ndarray of shape (classes,)
        The labels, sorted.
    sharpness_ : float
        Factor between outputs and logits.
    network_, sphere_, history_, loss_curve_, n_iter_, plan_, alpha_, n_features_in_, feature_names_in_
        As for `WideRegressor`.
    """

    _numeric_targets = False

    def _encode(self, y: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        if self._continues():
            unknown = np.setdiff1d(labels, self.classes_)
            if unknown.size:
                raise ValueError(f"y has labels {unknown[:5].tolist()} that the first fit has not seen")
            return self._indicators(labels) - self.target_mean_
        classes = np.unique(labels[sample_weight > 0])
        if classes.size < 2:
            raise ValueError(f"y has one class, {classes[0]!r}: WideClassifier needs at least 2 classes")
        self.classes_ = classes
        indicators = self._indicators(labels)
        self.target_mean_ = sample_weight @ indicators / sample_weight.sum()
        self.target_scale_ = np.ones(indicators.shape[1])
        return indicators - self.target_mean_

    def _indicators(self, labels: np.ndarray) -> np.ndarray:
        """±1, shape (n, 1) for two classes and (n, classes) for more."""
        columns = self.classes_[1:] if self.classes_.size == 2 else self.classes_
        return np.where(labels[:, None] == columns, 1.0, -1.0)

    def _after_tuning(self, merged: MergedRows, tuning: Tuning) -> None:
        scores = self._scores(tuning.held_out + self.target_mean_)
        # A merged row may stand for several labels: its target is the mean of their indicators.
        truth = merged.targets[tuning.held_out_rows] + self.target_mean_
        shares = (self._scores(truth) + 1) / 2
        weight = merged.sample_weight[tuning.held_out_rows]

        def log_loss(log_sharpness: float) -> float:
            logs = log_softmax(np.exp(log_sharpness) * scores, axis=1)
            return -float(weight @ (shares * logs).sum(1)) / float(weight.sum())

        bounds = (np.log(1e-2), np.log(_SHARPEST))
        self.sharpness_ = float(np.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x))

    @staticmethod
    def _scores(outputs: np.ndarray) -> np.ndarray:
        """One column a class."""
        return np.hstack([-outputs, outputs]) if outputs.shape[1] == 1 else outputs

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores around ±1: shape (n,) for two classes, positive for the second; (n, classes) for more."""
        outputs = self._outputs(X) + self.target_mean_
        return outputs[:, 0] if self.classes_.size == 2 else outputs

    def predict(self, X: Any) -> np.ndarray:
        """The label with the largest score, shape (n,)."""
        return self._labels(self._outputs(X) + self.target_mean_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities, shape (n, classes), in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba`."""
        outputs = self._outputs(X) + self.target_mean_
        return log_softmax(self.sharpness_ * self._scores(outputs), axis=1)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        return self.classes_[np.argmax(self._scores(outputs), axis=1)]

    def _score_outputs(self, y: np.ndarray, outputs: np.ndarray) -> float:
        return float(accuracy_score(y, self._labels(outputs + self.target_mean_)))

    def _target_document(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist(), "class_dtype": self.classes_.dtype.str, "sharpness": self.sharpness_}

    def _restore_target(self, document: dict[str, Any]) -> None:
        self.classes_ = np.array(document["classes"], dtype=np.dtype(document["class_dtype"]))
        self.sharpness_ = document["sharpness"]
