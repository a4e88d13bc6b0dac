"""WideClassifier."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets

from widefit.estimators.base import Wide
from widefit.estimators.blend import Blend
from widefit.estimators.partial_fit import can_stream
from widefit.files.model_file import storable
from widefit.kernels.surroundings import insulated
from widefit.losses.family import RULE_LOSSES
from widefit.rules import Rule
from widefit.solvers import Solver
from widefit.trackers import Tracker
from widefit.tuning.duplicates import MergedRows
from widefit.tuning.logistic import one_a_class
from widefit.tuning.tune import Tuning

# The largest factor between outputs and logits: at it, the held-out predictions make no error.
_SHARPEST = 50.0
# Standard deviation of the prior on shifts of logits.
_SHIFT = 3.0
# Of the names of its arrays in a file.
_BLEND = "blend."


@storable
class WideClassifier(ClassifierMixin, Wide):
    """Classification of tables with a wide network, trained to convergence in a few Gauss-Newton steps.

    Two classes share one output with targets ±1; more have one output a class, in a two-layer network each with neurons
    of its own. Gauss-Newton trains the squared loss; probabilities come from the outputs through one temperature,
    fitted to leave-one-out predictions, and are averaged with those of two logistic models, of the columns and of these
    with their steps, with the weights that predict left-out rows best. rule="sgd" trains the softmax loss (logistic for
    two classes), as does a rule with that loss, and the outputs are logits. Its ridge is that of the squared loss times
    the largest second derivative of the loss, ½ or ¼.

    Parameters
    ----------
    class_weight : dict, "balanced" or None, default None
        Weights of the labels, 1 for those that are not named; "balanced" gives all classes the same total weight.
        Probabilities are those of a table with these weights.
    **parameters
        As for `WideRegressor`.

    Attributes
    ----------
    classes_ : ndarray of shape (classes,)
        The labels, sorted.
    sharpness_ : float
        Factor between scores and logits.
    offset_ : ndarray of shape (outputs,)
        Added to network outputs to make scores around ±1.
    blend_ : Blend or None
        Logistic models whose probabilities are averaged with those of the network.
    loss_ : {"squared", "logistic", "softmax"}
        The loss that was trained.
    progressive_predictions_ : ndarray of shape (n, classes)
        After `partial_fit`: the probabilities that each row of the batch was given before it was learnt.
    network_, sphere_, history_, loss_curve_, n_iter_, plan_, alpha_, n_features_in_, feature_names_in_
        As for `WideRegressor`.
    """

    blend_: Blend | None = None
    _numeric_targets = False
    _losses = tuple(RULE_LOSSES)

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] | str = "auto",
        activation: str = "shifted_relu",
        threshold: float | str = "auto",
        alpha: float | str = "auto",
        readout_scale: float | str = "auto",
        rule: str | Rule[Any] = "gauss-newton",
        tracker: str | Tracker = "auto",
        solver: str | Solver = "auto",
        max_iter: int = 20,
        tol: float | str = "auto",
        refit_readout: bool = False,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
        categorical_features: ArrayLike | str | None = "auto",
        class_weight: Mapping[Any, float] | str | None = None,
        device: str = "auto",
    ):
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            threshold=threshold,
            alpha=alpha,
            readout_scale=readout_scale,
            rule=rule,
            tracker=tracker,
            solver=solver,
            max_iter=max_iter,
            tol=tol,
            refit_readout=refit_readout,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
            categorical_features=categorical_features,
            device=device,
        )
        self.class_weight = class_weight

    @available_if(can_stream)
    def partial_fit(
        self, X: Any, y: Any, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learn from a batch of a stream, each row once and in its order; needs rule="sgd" or an SGD for a log loss.

        The first batch fixes the map of the inputs and, with lr="auto", the rate: let it be representative, a few
        hundred rows or more. There is no ridge. A fit that came before is gone on from.

        Parameters
        ----------
        X
            Shape (n, d), as for `fit`.
        y
            Labels, shape (n,); a batch need not have all of them.
        classes
            All labels that will ever come, in any order; in the first call, later only the same ones.
        sample_weight
            Weights ≥ 0, shape (n,).

        Raises
        ------
        ValueError
            No classes in the first call or others later, a label that is none of them, no rows, other columns than in
            the first batch, numbers that are not finite, a ridge, steps that diverge.
        """
        if getattr(self.rule, "loss", "softmax") == "squared":
            raise ValueError('partial_fit trains logits: give rule="sgd" or SGD(loss="softmax"), not the squared loss')
        if isinstance(self.class_weight, str):
            raise ValueError(
                'class_weight="balanced" takes the counts of all rows, which a stream lacks: give a weight by label'
            )
        _check_partial_fit_first_call(self, classes)
        if self.classes_.size < 2:
            raise ValueError(f"classes has one class, {self.classes_[0]!r}: WideClassifier needs at least 2 classes")
        return self._partial_fit(X, y, sample_weight)

    def _loss(self) -> str:
        loss = "softmax" if isinstance(self.rule, str) and self.rule == "sgd" else getattr(self.rule, "loss", "squared")
        # The softmax of (0, f) is the logistic function of f.
        return "logistic" if loss == "softmax" and self.classes_.size == 2 else loss

    def _learn_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        classes = np.unique(labels[sample_weight > 0])
        if classes.size < 2:
            raise ValueError(f"y has one class, {classes[0]!r}: WideClassifier needs at least 2 classes")
        self.classes_ = classes
        indicators = self._indicators(labels)
        self.target_mean_ = sample_weight @ indicators / sample_weight.sum()
        self.target_scale_ = np.ones(indicators.shape[1])

    def _learn_stream_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        outputs = 1 if self.classes_.size == 2 else self.classes_.size
        self.target_mean_ = np.zeros(outputs)
        self.target_scale_ = np.ones(outputs)

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
        if self.class_weight is None:
            return sample_weight
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            totals = np.bincount(codes, sample_weight)
            factors = totals.sum() / (np.count_nonzero(totals) * np.where(totals > 0, totals, np.inf))
            return sample_weight * factors[codes]
        if not isinstance(self.class_weight, Mapping):
            raise ValueError(f'class_weight must be None, "balanced" or a dict, got {self.class_weight!r}')
        factors = np.array([self.class_weight.get(label, 1.0) for label in classes.tolist()], dtype=np.float64)
        if not (np.isfinite(factors).all() and (factors >= 0).all()):
            raise ValueError(f"class_weight must be finite numbers ≥ 0, got {self.class_weight!r}")
        weight = sample_weight * factors[codes]
        if not np.any(weight > 0):
            raise ValueError("class_weight and sample_weight must not leave all rows without weight")
        return weight

    def _encode(self, y: np.ndarray) -> np.ndarray:
        return self._indicators(self._known_labels(y)) - self.target_mean_

    def _classes_of(self, encoded: np.ndarray) -> np.ndarray:
        return np.argmax(one_a_class(encoded + self.target_mean_), axis=1)

    def _loss_targets(self, y: np.ndarray) -> np.ndarray:
        indicators = self._indicators(self._known_labels(y))
        return (indicators + 1) / 2 if self.loss_ == "softmax" else indicators

    def _known_labels(self, y: np.ndarray) -> np.ndarray:
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        unknown = np.setdiff1d(labels, self.classes_)
        if unknown.size:
            raise ValueError(
                f"y has labels {unknown[:5].tolist()} that the first fit has not seen, nor classes named; known are "
                f"{self.classes_.tolist()[:20]}"
            )
        return labels

    def _indicators(self, labels: np.ndarray) -> np.ndarray:
        """Return ±1, shape (n, 1) for two classes and (n, classes) for more."""
        columns = self.classes_[1:] if self.classes_.size == 2 else self.classes_
        return np.where(labels[:, None] == columns, 1.0, -1.0)

    def _calibrate(self, tuning: Tuning | None, merged: MergedRows) -> None:
        """Fit temperature, offset and blend to left-out predictions; the outputs of a log loss are logits already."""
        if self.loss_ != "squared":
            self.blend_ = None
            # Of two logits, each has half their difference.
            self.sharpness_ = 0.5 if self.classes_.size == 2 else 1.0
            self.offset_ = np.zeros_like(self.target_mean_)
        elif tuning is not None:
            # A merged row may stand for several labels: its target is the mean of their indicators.
            shares = (one_a_class(tuning.held_out_targets + self.target_mean_) + 1) / 2
            scores = tuning.held_out + self.target_mean_
            self.sharpness_, shift = _calibration(scores, shares, tuning.held_out_weight)
            self.offset_ = self.target_mean_ + shift
            logs = log_softmax(self.sharpness_ * one_a_class(tuning.held_out + self.offset_), axis=1)
            every = replace(merged, targets=(one_a_class(merged.targets + self.target_mean_) + 1) / 2)
            self.blend_ = Blend.fit(every, tuning.held_out_rows, tuning.held_out_weight, logs)
            if self.blend_ is not None:
                self._choices = (*self._choices, self.blend_.choice)

    def _read(self, outputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return outputs whose probabilities are those of the blend."""
        if self.blend_ is None:
            return outputs
        logs = self.blend_.log_shares(self._log_shares(outputs), rows) / self.sharpness_
        scores = (logs[:, 1:] - logs[:, :1]) / 2 if self.classes_.size == 2 else logs
        return scores - self.offset_

    def _scores(self, outputs: np.ndarray) -> np.ndarray:
        """Return scores around ±1, or logits, one column an output."""
        return outputs + self.offset_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores around ±1: shape (n,) for two classes, positive for the second; (n, classes) for more."""
        scores = self._scores(self._outputs(X))
        return scores[:, 0] if self.classes_.size == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the label with the largest score, shape (n,)."""
        return self._labels(self._outputs(X))

    @insulated()
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return class probabilities, shape (n, classes), in the order of `classes_`."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of `predict_proba`."""
        return self._log_shares(self._outputs(X))

    def _decode(self, outputs: np.ndarray) -> np.ndarray:
        return np.exp(self._log_shares(outputs))

    @insulated()
    def _log_shares(self, outputs: np.ndarray) -> np.ndarray:
        scores = one_a_class(self._scores(outputs))
        if self.loss_ == "logistic" and self.classes_.size > 2:
            # One class against the others: the probabilities of each, made to sum to 1.
            logs = -np.logaddexp(0, -scores)
            return logs - logsumexp(logs, axis=1, keepdims=True)
        return log_softmax(self.sharpness_ * scores, axis=1)

    def _labels(self, outputs: np.ndarray) -> np.ndarray:
        return self.classes_[np.argmax(one_a_class(self._scores(outputs)), axis=1)]

    def _score_outputs(self, y: np.ndarray, outputs: np.ndarray) -> float:
        return float(accuracy_score(y, self._labels(outputs)))

    def _target_document(self) -> dict[str, Any]:
        return {
            "classes": self.classes_.tolist(),
            "class_dtype": self.classes_.dtype.str,
            "sharpness": self.sharpness_,
            "offset": self.offset_.tolist(),
        }

    def _target_arrays(self) -> dict[str, np.ndarray]:
        arrays = {} if self.blend_ is None else self.blend_.to_arrays()
        return {f"{_BLEND}{name}": array for name, array in arrays.items()}

    def _restore_targets(self, document: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.classes_ = np.array(document["classes"], dtype=np.dtype(document["class_dtype"]))
        self.sharpness_ = document["sharpness"]
        # Files of earlier versions have no offset but the mean.
        self.offset_ = np.array(document.get("offset", self.target_mean_.tolist()))
        own = {name.removeprefix(_BLEND): array for name, array in arrays.items() if name.startswith(_BLEND)}
        columns = self.n_features_in_ if self._encoding is None else len(self._encoding.feature_names)
        self.blend_ = Blend.from_arrays(own, columns, self.target_mean_.size) if own else None


def _calibration(
    scores: Float[np.ndarray, "r k"], shares: Float[np.ndarray, "r classes"], sample_weight: Float[np.ndarray, " r"]
) -> tuple[float, Float[np.ndarray, " k"]]:
    """Return the sharpness s and the shift b for which the softmax of s (scores + b) has the smallest log loss.

    This is Platt scaling (Platt 1999), and vector scaling with one temperature for more than two classes (Guo et al.
    2017), with a normal prior on the shift of the logits. As there, targets are less than certain, by one row of
    unknown class: without errors the sharpness stays finite.
    """
    weight = sample_weight / sample_weight.sum()
    rows, classes = shares.shape
    shares = (rows * shares + 1 / classes) / (rows + 1)
    penalty = 1 / (_SHIFT**2 * scores.shape[0])

    def log_loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        sharpness = np.exp(parameters[0])
        shift = parameters[1:]
        logs = log_softmax(one_a_class(sharpness * scores + shift), axis=1)
        loss = -float(weight @ (shares * logs).sum(1)) + penalty * float(shift @ shift) / 2
        slope = weight[:, None] * (np.exp(logs) - shares)
        if scores.shape[1] == 1:
            slope = slope[:, 1:] - slope[:, :1]
        along_sharpness = sharpness * float(np.sum(slope * scores))
        return loss, np.append(along_sharpness, slope.sum(0) + penalty * shift)

    start = np.zeros(1 + scores.shape[1])
    bounds = [(np.log(1e-2), np.log(_SHARPEST))] + [(None, None)] * scores.shape[1]
    found = minimize(log_loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    sharpness = float(np.exp(found[0]))
    return sharpness, found[1:] / sharpness
