"""What the two estimators share: scikit-learn's contract around the training, everything but what y means."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from widefit.callbacks import Callback, Log, Progress
from widefit.estimators.arrays import dense, plain, refuse_missing
from widefit.estimators.networks import CONVENTIONS, draw, limit_kernel, network_from_parts, network_parts
from widefit.estimators.online import forget, learn, restore_stream, stream_document, stream_tensors
from widefit.estimators.parameters import from_plain, to_plain
from widefit.estimators.parts import check_parts
from widefit.estimators.prediction import Predictor
from widefit.estimators.readout import refit_readout
from widefit.files.checkpoint import read_checkpoint
from widefit.kernels.surroundings import insulated
from widefit.nn import Deep, TwoLayer, automatic_threshold
from widefit.plan.two_layer import Choice, Plan
from widefit.rules import SGD
from widefit.rules.step_size import CURVATURE
from widefit.training.history import History
from widefit.training.train import training_of
from widefit.tuning.duplicates import MergedRows, merge_duplicates
from widefit.tuning.sphere import SphereMap
from widefit.tuning.tune import Tuning, tune


class Wide(BaseEstimator, ABC):
    """Base of the two estimators."""

    _numeric_targets: ClassVar[bool]
    _losses: ClassVar[tuple[str, ...]]

    network_: TwoLayer | Deep
    sphere_: SphereMap
    alpha_: float
    loss_: str
    history_: History
    plan_: Plan
    loss_curve_: list[float]
    n_iter_: int
    n_features_in_: int
    feature_names_in_: np.ndarray
    target_mean_: np.ndarray
    target_scale_: np.ndarray

    def __init__(
        self,
        hidden_layer_sizes=(65536,),
        activation="shifted_relu",
        threshold="auto",
        alpha="auto",
        readout_scale="auto",
        rule="gauss-newton",
        tracker="auto",
        solver="auto",
        max_iter=20,
        tol=1e-6,
        refit_readout=False,
        warm_start=False,
        random_state=0,
        verbose=False,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.threshold = threshold
        self.alpha = alpha
        self.readout_scale = readout_scale
        self.rule = rule
        self.tracker = tracker
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.refit_readout = refit_readout
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # What y means: the two estimators fill these in.

    @abstractmethod
    def _encode(self, y: np.ndarray, sample_weight: np.ndarray, known: bool) -> np.ndarray:
        """Learn the targets unless they are known, and return them for the squared loss, shape (n, k), mean 0."""

    @abstractmethod
    def _loss(self) -> str:
        """What the rule descends, once the targets are known."""

    def _as_targets(self, y: np.ndarray, encoded: np.ndarray, loss: str) -> np.ndarray:
        """Targets as a loss takes them; may change how outputs are read."""
        return encoded

    @abstractmethod
    def _score_outputs(self, y: np.ndarray, outputs: np.ndarray) -> float:
        """The validation metric from decoded outputs."""

    @abstractmethod
    def _after_tuning(self, merged: MergedRows, tuning: Tuning) -> None:
        """What is learnt from the leave-one-out predictions."""

    # The work.

    @insulated()
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        resume: str | Path | None = None,
        validation: tuple[Any, Any] | None = None,
    ) -> Self:
        """Fit the network to a table.

        Parameters
        ----------
        X
            Shape (n, d): array, data frame of numbers, tensor or sparse matrix (made dense).
        y
            Shape (n,), or (n, k) for a regressor.
        sample_weight
            Weights ≥ 0, shape (n,); rows of weight 0 are left out.
        callbacks
            See `widefit.callbacks`.
        resume
            A checkpoint of the same fit, written by `widefit.files.Checkpoint`.
        validation
            (X, y) on which R² or accuracy is recorded after every step.

        Raises
        ------
        ValueError
            A parameter, a shape or a value that makes no sense; the message names it.
        MemoryError
            The work cannot fit in memory; said before it starts.
        """
        sizes, thresholds = self._check_parameters()
        rows, targets, weight = self._check_data(X, y, sample_weight, not self._continues())
        monitor = None if validation is None else self._monitor(*validation)
        encoded = self._encode(targets, weight, self._continues())
        merged = merge_duplicates(rows, encoded, weight)
        forget(self)
        if not self._continues():
            self._after_tuning(merged, self._prepare(merged, sizes, thresholds))
        self.loss_ = loss = self._loss()
        problem = merged
        if loss != "squared":
            # What is merged is for the squared loss.
            kept = weight > 0
            problem = MergedRows(rows[kept], self._as_targets(targets, encoded, loss)[kept], weight[kept], 0.0)
        inputs = self.sphere_(problem.rows)
        training = training_of(self.network_)(
            self.network_, inputs, problem.targets,
            rule=self._rule(loss), tracker=self.tracker, solver=self.solver, max_iter=self.max_iter, tol=self.tol,
            alpha=self._ridge * CURVATURE[loss], sample_weight=problem.sample_weight, metric=monitor,
            callbacks=(*callbacks, Log(), *([Progress()] if self.verbose else [])), loss_floor=problem.floor,
        )  # fmt: skip
        self.plan_ = training.plan.after(self._choices)
        self.history_ = training.run(None if resume is None else read_checkpoint(resume))
        if not math.isfinite(self.history_[-1].loss):
            raise ValueError('the training diverged, its weights have overflowed: give rule a smaller lr, or lr="auto"')
        self._predict_from_now_on()
        if self.refit_readout and isinstance(self.network_, TwoLayer):
            self.plan_ = self.plan_.then(refit_readout(self.network_, inputs, problem.targets, problem.sample_weight))
        self._describe()
        return self

    @insulated()
    def _partial_fit(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> Self:
        """One step along every minibatch of a batch; `partial_fit` of the two estimators documents it."""
        sizes, thresholds = self._check_parameters()
        if len(sizes) > 1:
            raise ValueError("partial_fit trains one hidden layer; for several, call fit with all rows")
        first = not hasattr(self, "network_")
        rows, targets, weight = self._check_data(X, y, sample_weight, reset=first)
        kept = weight > 0
        learn(self, rows[kept], targets[kept], weight[kept], sizes, thresholds)
        return self

    def _rule(self, loss: str) -> Any:
        """The rule with what it leaves open: the loss of one that goes by name, and the seed of the order."""
        rule: Any = SGD() if isinstance(self.rule, str) and self.rule == "sgd" else self.rule
        if isinstance(rule, SGD):
            return replace(rule, loss=loss, seed=self._seed if rule.seed is None else rule.seed)
        return replace(rule, loss=loss) if getattr(rule, "loss", loss) != loss else rule

    def __getstate__(self) -> dict[str, Any]:
        """Without the run of a stream, which goes on from the network."""
        state: dict[str, Any] = dict(super().__getstate__())  # pyright: ignore
        if "_streaming" in state:
            state["_stream_state"] = stream_tensors(self)
            del state["_streaming"]
        return state

    def _continues(self) -> bool:
        """True when a fit goes on from the weights of the last."""
        return bool(self.warm_start) and hasattr(self, "network_")

    def _prepare(
        self,
        merged: MergedRows,
        sizes: tuple[int, ...],
        thresholds: tuple[float, ...],
        alpha: float | None = None,
    ) -> Tuning:
        """Decide what is "auto" and draw the network; `alpha` in place of the parameter."""
        self._seed = seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        tuning = tune(
            merged, threshold=thresholds[0], width=min(sizes), alpha=self.alpha if alpha is None else alpha,
            readout_scale=self.readout_scale, seed=seed, kernel=limit_kernel(thresholds),
        )  # fmt: skip
        self.network_ = draw(tuning, sizes, thresholds, merged.targets.shape[1], self.activation, seed)
        self.sphere_, self.alpha_ = tuning.sphere, tuning.alpha
        self._ridge = tuning.alpha * tuning.readout_scale**2
        self._choices = (self._threshold_choice(thresholds), *tuning.choices)
        return tuning

    def _predict_from_now_on(self) -> None:
        """The weights are what they are: decide how to find the neurons that fire."""
        self._predictor = Predictor(self.network_) if isinstance(self.network_, TwoLayer) else None
        if self._predictor is not None:
            self.plan_ = self.plan_.then(self._predictor.choice)

    def _describe(self) -> None:
        self.loss_curve_ = self.history_.losses
        self.n_iter_ = len(self.history_) - 1

    @insulated()
    def _outputs(self, X: Any) -> np.ndarray:
        """Network outputs in the units of the encoded target, shape (n, k)."""
        check_is_fitted(self)
        rows = validate_data(self, plain(X), reset=False, accept_sparse="csr", dtype=np.float64)
        if self._predictor is None:
            return self._network_outputs(dense(rows))
        return self._predictor(self.sphere_(dense(rows)))

    def _network_outputs(self, rows: np.ndarray) -> np.ndarray:
        """By all neurons."""
        with torch.no_grad():
            return self.network_(torch.from_numpy(self.sphere_(rows))).numpy()

    def _monitor(self, X: Any, y: Any):
        """A metric for the training; checked and mapped before it starts."""
        rows = dense(validate_data(self, plain(X), reset=False, accept_sparse="csr", dtype=np.float64))
        truth = np.asarray(plain(y))
        if truth.shape[0] != rows.shape[0]:
            raise ValueError(f"validation has {rows.shape[0]} rows but {truth.shape[0]} targets")
        return lambda network: self._score_outputs(truth, self._network_outputs(rows))

    def _check_parameters(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Widths and thresholds of the hidden layers."""
        sizes = self.hidden_layer_sizes
        sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
        if not sizes or not all(isinstance(size, Integral) and int(size) >= 2 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be widths of at least 2 neurons, got {sizes!r}")
        if self.activation not in CONVENTIONS:
            names = ", ".join(map(repr, CONVENTIONS))
            raise ValueError(f"activation must be one of {names}, got {self.activation!r}")
        if len(sizes) > 1 and (self.activation == "floored_relu" or self.refit_readout):
            wrong = "refit_readout must be False" if self.refit_readout else 'activation must not be "floored_relu"'
            raise ValueError(f"{wrong} with several hidden layers")
        for name in ("threshold", "alpha", "readout_scale"):
            value, least = getattr(self, name), {"threshold": -math.inf, "alpha": 0.0, "readout_scale": 1e-6}[name]
            if isinstance(value, str) and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < math.inf:
                bound = "" if least == -math.inf else f" ≥ {least:g}"
                raise ValueError(f'{name} must be "auto" or a finite number{bound}, got {value!r}')
        loss = getattr(self.rule, "loss", "squared")
        if loss not in self._losses:
            raise ValueError(
                f'rule must descend the squared loss in {type(self).__name__}, got one with loss="{loss}"; '
                "widefit.train takes the others"
            )
        if not isinstance(self.max_iter, Integral) or self.max_iter < 1:
            raise ValueError(f"max_iter must be an integer ≥ 1, got {self.max_iter!r}")
        if not isinstance(self.tol, Real) or not 0 <= float(self.tol) < math.inf:
            raise ValueError(f"tol must be a finite number ≥ 0, got {self.tol!r}")
        widths = tuple(int(size) for size in sizes)
        if self.activation == "relu":
            if self.threshold not in ("auto", 0):
                raise ValueError('threshold belongs to activation="shifted_relu"; with "relu" it is 0')
            return widths, (0.0,) * len(widths)
        if self.threshold == "auto":
            return widths, tuple(automatic_threshold(width) for width in widths)
        return widths, (float(self.threshold),) * len(widths)

    def _threshold_choice(self, thresholds: tuple[float, ...]) -> Choice:
        shares = ", ".join(f"{0.5 * math.erfc(threshold / math.sqrt(2)):.1%}" for threshold in thresholds)
        reason = "plain ReLU" if self.activation == "relu" else "√(0.4 ln width)"
        if self.activation != "relu" and self.threshold != "auto":
            reason = "as asked for"
        chosen = ", ".join(f"{threshold:.3g}" for threshold in thresholds)
        return Choice("threshold", chosen, f"{reason}: a neuron fires on {shares} of the samples")

    def _check_data(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, reset: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y = plain(y)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        X = plain(X)
        for name, values in (("X", X), ("y", y)):
            refuse_missing(name, values)
        rows, targets = validate_data(
            self, X, y, reset=reset, accept_sparse="csr", dtype=np.float64, multi_output=True,
            y_numeric=self._numeric_targets,
        )  # fmt: skip
        weight = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
        if not np.any(weight > 0):
            raise ValueError("sample_weight must not be all zero")
        return dense(rows), np.asarray(targets), weight

    # Files.

    def to_parts(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The fitted estimator as tensors and a document of plain values; `from_parts` is the inverse."""
        check_is_fitted(self)
        tensors, network = network_parts(self.network_)
        tensors |= {f"stream.{name}": tensor for name, tensor in stream_tensors(self).items()}
        tensors |= {
            "center": torch.from_numpy(self.sphere_.center),
            "scale": torch.from_numpy(self.sphere_.scale),
            "target_mean": torch.from_numpy(self.target_mean_),
            "target_scale": torch.from_numpy(self.target_scale_),
        }
        document = {
            "estimator": type(self).__name__,
            "parameters": {name: to_plain(value) for name, value in self.get_params().items()},
            "network": network,
            "sphere_constant": self.sphere_.constant,
            "alpha": self.alpha_,
            "ridge": self._ridge,
            "history": self.history_.to_dict(),
            "plan": self.plan_.to_dict(),
            "loss": self.loss_,
            "seed": self._seed,
            "stream": stream_document(self),
            "n_features_in": self.n_features_in_,
            "feature_names_in": list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None,
            **self._target_document(),
        }
        return tensors, document

    @classmethod
    @insulated()
    def from_parts(cls, tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> Self:
        """Build a fitted estimator from what `to_parts` returned.

        Raises
        ------
        FileError
            Tensors or a document that are not those of a fitted estimator.
        """
        check_parts(tensors, document, cls().get_params())
        model = cls(**{name: from_plain(value, name) for name, value in document["parameters"].items()})
        model.network_ = network_from_parts(tensors, document["network"])
        constant = document["sphere_constant"]
        model.sphere_ = SphereMap(tensors["center"].numpy(), tensors["scale"].numpy(), constant)
        model.target_mean_, model.target_scale_ = tensors["target_mean"].numpy(), tensors["target_scale"].numpy()
        model.alpha_, model._ridge = document["alpha"], document["ridge"]
        model.history_, model.plan_ = History.from_dict(document["history"]), Plan.from_dict(document["plan"])
        model._choices = ()
        model.loss_, model._seed = document.get("loss", "squared"), document.get("seed", 0)
        model._predictor = Predictor(model.network_) if isinstance(model.network_, TwoLayer) else None
        stream = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("stream.")}
        restore_stream(model, document.get("stream"), stream)
        model.n_features_in_ = document["n_features_in"]
        if document["feature_names_in"] is not None:
            model.feature_names_in_ = np.array(document["feature_names_in"], dtype=object)
        model._restore_target(document)
        model._describe()
        return model

    @abstractmethod
    def _target_document(self) -> dict[str, Any]:
        """What `from_parts` needs to know of the targets."""

    @abstractmethod
    def _restore_target(self, document: dict[str, Any]) -> None:
        """The inverse of `_target_document`."""
