"""WideRegressor."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from widefit.estimators.base import Wide
from widefit.estimators.loss_choice import FARTHEST, FARTHEST_IN_TUNING, ROBUST, check_loss, choose_loss
from widefit.estimators.parameters import HiddenLayers
from widefit.estimators.partial_fit import can_stream
from widefit.files.model_file import storable
from widefit.losses.family import rule_loss
from widefit.rules import Rule
from widefit.solvers import Solver
from widefit.trackers import Tracker
from widefit.tuning.duplicates import MergedRows
from widefit.tuning.target_scale import compare_logarithm, may_be_logarithmic, smearing
from widefit.tuning.tune import Tuning

# Deviations of logarithms are cut off here, lest those of the targets overflow.
_WIDEST = 5.0


@storable
class WideRegressor(MultiOutputMixin, RegressorMixin, Wide):
    """Regression on tables with a wide network, trained to convergence in a few Gauss-Newton steps.

    Rows are centred, scaled and mapped to the unit sphere, targets are standardized; what is "auto" is decided from the
    data by closed-form leave-one-out and told by `plan_`. The network computes in float32, systems are solved in
    float64.

    Parameters
    ----------
    hidden_layer_sizes : tuple of ints or "auto", default "auto"
        The width m of a two-layer network, or the widths of the layers of a deep one (`widefit.nn.Deep`); "auto" is
        (16384,) for rule="gauss-newton" with a threshold of "auto", twice as many up to 512 rows, elsewhere (65536,),
        and on more than 8,192 rows as many neurons as a step takes little time with.
    activation : {"shifted_relu", "relu", "floored_relu"}, default "shifted_relu"
        max(z − b, 0), max(z, 0), or max(z, b); the last for one hidden layer only.
    threshold : float or "auto", default "auto"
        b of all layers; "auto" is 1 with a width of "auto", at which a sixth of the neurons fire, elsewhere
        √(0.4 ln m), at which about two percent do.
    alpha : float or "auto", default "auto"
        Ridge towards the initial weights, in the units of kernel ridge regression with the network's kernel; "auto"
        chooses by leave-one-out.
    readout_scale : float or "auto", default "auto"
        Size of the fixed second layer. "auto" makes it so large that few neurons flip while the first layer is trained.
    rule : {"gauss-newton", "gradient-descent", "sgd"} or Rule, default "gauss-newton"
        How a step is chosen. Rules are for the squared loss here.
    tracker : str or Tracker, default "auto"
        How the firing neurons are found: "dense", "certificate", "verlet-list", "weight-tree", "data-tree",
        "half-space-tree" or "torch"; "auto" or "torch" with several hidden layers.
    solver : {"auto", "cholesky", "cg", "nystrom-cg", "block-cg"} or Solver, default "auto"
        How systems in sample space are solved.
    max_iter : int, default 20
        Largest number of steps. With rule="sgd" a step is an epoch, as for scikit-learn's stochastic solvers; rules of
        first order want hundreds where "gauss-newton" wants a handful.
    tol : float or "auto", default "auto"
        Training stops when the mean squared residual of the standardized targets is no larger. "auto": 1e-6, or
        earlier, with 100 rows or more, when the loss or its change in a step is below a twentieth of the squared
        leave-one-out error.
    refit_readout : bool, default False
        Fit the second layer of a two-layer network by ridge regression after the first.
    warm_start : bool, default False
        Go on from the weights of the last fit.
    random_state : int, RandomState or None, default 0
        Fixes the result, whatever the number of threads: the initial weights and the order of an SGD without a seed.
    verbose : bool, default False
        Show a progress bar.
    categorical_features : "auto", None, or sequence of names, places or booleans, default "auto"
        Columns of categories, which become 0/1 columns, or shrunk mean targets where there are more than 30. "auto":
        text and the categories of data frames; None: no column; or these columns, whatever they hold. Dates become days
        since 1970 and points on the circles of year, week and day, durations days, booleans 0 and 1.
    loss : {"squared", "absolute", "huber", "quantile", "poisson"}, default "squared"
        What predictions minimize: they are means, medians, means without the pull of outliers, quantiles, or means of
        counts ≥ 0, whose logarithm the network then is. All but "squared" take rule="gauss-newton", whose steps reweigh
        the rows.
    quantile : float, default 0.5
        The quantile that loss="quantile" predicts.
    target_transform : {"auto", "log", None}, default "auto"
        Whether logarithms of positive targets are fitted; predictions are means of the targets all the same. "auto"
        compares leave-one-out errors where there is one output and the loss is squared.
    device : str, default "auto"
        Where the network is trained: "auto" and "cpu" on the CPU, "cuda" or another device of torch by
        tracker="torch"; what decides before the training, and predictions, are the CPU's.

    Attributes
    ----------
    network_ : widefit.nn.TwoLayer or widefit.nn.Deep
        The trained network; its inputs are `sphere_(X)`, its outputs standardized targets.
    sphere_ : SphereMap
        The map of rows to the unit sphere.
    history_ : widefit.History
        One StepInfo a step.
    loss_curve_ : list of float
        Training loss before the first step and after each, in units of the standardized target.
    n_iter_ : int
        Steps taken, rejected ones included.
    plan_ : widefit.plan.base.Plan
        What "auto" chose and why.
    alpha_ : float
        The ridge in use.
    loss_ : str
        The loss that was trained, with its numbers in units of the encoded targets.
    smearing_ : ndarray of shape (outputs,) or None
        Where logarithms were fitted, what makes their exponentials means again; elsewhere None.
    progressive_predictions_ : ndarray
        After `partial_fit`: what was predicted for each row of the batch before it was learnt, as `predict` has it.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.
    """

    _numeric_targets = True
    _losses = ("squared",)

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
        loss: str = "squared",
        quantile: float = 0.5,
        target_transform: str | None = "auto",
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
        self.loss = loss
        self.quantile = quantile
        self.target_transform = target_transform

    @available_if(can_stream)
    def partial_fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from a batch of a stream, each row once and in its order; needs rule="sgd" or an SGD.

        The first batch fixes the map of the inputs, the units of y and, with lr="auto", the rate: let it be
        representative, a few hundred rows or more. There is no ridge. A fit that came before is gone on from.

        Parameters
        ----------
        X
            Shape (n, d), as for `fit`.
        y
            Shape (n,) or (n, k).
        sample_weight
            Weights ≥ 0, shape (n,).

        Raises
        ------
        ValueError
            No rows, other columns or outputs than in the first batch, numbers that are not finite, a y that is constant
            in the first batch, a ridge, steps that diverge.
        """
        return self._partial_fit(X, y, sample_weight)

    def _check_parameters(self) -> HiddenLayers:
        layers = super()._check_parameters()
        check_loss(self.loss, self.quantile, self.rule)
        if self.target_transform not in ("auto", "log", None):
            raise ValueError(f'target_transform must be "auto", "log" or None, got {self.target_transform!r}')
        if self.target_transform == "log" and self.loss != "squared":
            raise ValueError(f'target_transform="log" takes loss="squared", got {self.loss!r}')
        if self.loss != "squared" and self.refit_readout:
            raise ValueError(f"refit_readout must be False with loss={self.loss!r}: it is for the squared loss")
        return layers

    def _learn_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        targets = _columns(y)
        self._fitted_loss = self._asked_loss()
        self.loss_center_ = np.zeros(targets.shape[1])
        self.smearing_ = None
        self._target_choices = ()
        if self.target_transform == "log":
            if not (targets > 0).all():
                raise ValueError('y must be positive for target_transform="log"')
            self.smearing_ = np.ones(targets.shape[1])
            targets = np.log(targets)
        share = sample_weight / sample_weight.sum()
        mean = share @ targets
        scale = np.sqrt(share @ (targets - mean) ** 2)
        constant = ~(scale > 1e-12 * np.abs(targets).max(axis=0))
        if constant.any():
            output = f" (output {int(np.argmax(constant))})" if targets.shape[1] > 1 else ""
            raise ValueError(
                f"y{output} is constant over the {targets.shape[0]} rows (n_samples = {targets.shape[0]}): "
                "there is nothing to learn"
            )
        if self.loss == "poisson":
            rule_loss("poisson").check(targets)
        elif self.loss in ROBUST:
            mean, scale = _robust(targets[sample_weight > 0], mean, scale)
        self.target_mean_ = mean
        self.target_scale_ = scale
        self._flat = y.ndim == 1
        self._tuning_mean = share @ self._bounded(_columns(y), FARTHEST_IN_TUNING)

    def _transform_targets(self, y: np.ndarray, weight: np.ndarray, merged: MergedRows, layers: HiddenLayers) -> bool:
        targets = _columns(y)
        wanted = self.target_transform == "auto" and self.loss == "squared" and targets.shape[1] == 1
        if not wanted or not may_be_logarithmic(targets):
            return False
        logarithms = np.log(targets)
        sums = np.bincount(merged.group, (weight * logarithms[:, 0])[weight > 0], len(merged.rows))
        means = (sums / merged.sample_weight)[:, None]
        distinct = replace(merged, targets=merged.targets * self.target_scale_ + self.target_mean_)
        choice = compare_logarithm(distinct, means, float(self.target_scale_[0]), layers.thresholds[0], self._seed)
        if choice is None:
            return False
        share = weight / weight.sum()
        self.target_mean_ = share @ logarithms
        self.target_scale_ = np.sqrt(share @ (logarithms - self.target_mean_) ** 2)
        self.smearing_ = np.ones(1)
        self._tuning_mean = np.zeros(1)
        self._target_choices = (choice,)
        return True

    def _learn_stream_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        if self.target_transform == "log":
            raise ValueError('target_transform="log" takes fit: a stream shows no residuals to be unbiased with')
        try:
            self._learn_targets(y, sample_weight)
        except ValueError as error:
            raise ValueError(f"{error}; the first batch fixes the units of y, so let its values differ") from error

    def _encode(self, y: np.ndarray) -> np.ndarray:
        targets = _columns(y)
        if targets.shape[1] != self.target_mean_.size:
            raise ValueError(f"y has {targets.shape[1]} outputs, the model was fitted with {self.target_mean_.size}")
        return self._bounded(targets, FARTHEST_IN_TUNING) - self._tuning_mean

    def _bounded(self, targets: np.ndarray, farthest: float) -> np.ndarray:
        """Return standardized targets, those of bounded losses up to a distance; roots of counts, of one variance."""
        if self.smearing_ is not None:
            if not (targets > 0).all():
                raise ValueError("y must be positive: the model has been fitted to its logarithm")
            targets = np.log(targets)
        if self.loss == "poisson":
            return np.sqrt(targets / self.target_mean_ + 0.375 * np.minimum(1, 1 / self.target_mean_))
        values = (targets - self.target_mean_) / self.target_scale_
        return np.clip(values, -farthest, farthest) if self.loss in ROBUST else values

    def _choose_loss(self, tuning: Tuning) -> None:
        residuals = tuning.held_out_targets - tuning.held_out
        if self.smearing_ is not None:
            self.smearing_ = smearing(residuals * self.target_scale_, tuning.held_out_weight)
        choice = choose_loss(self.loss, float(self.quantile), residuals, tuning.held_out_weight)
        self.loss_ = choice.name
        self._loss_ridge = choice.ridge
        self.loss_center_ = choice.center + self._tuning_mean
        if self.loss == "poisson":
            self.loss_center_ = 2 * np.log(self._tuning_mean)

    def _loss_targets(self, y: np.ndarray) -> np.ndarray:
        targets = _columns(y)
        if self.loss_ == "poisson":
            rule_loss(self.loss_).check(targets)
            return targets / (self.target_mean_ * np.exp(self.loss_center_))
        return self._bounded(targets, FARTHEST) - self.loss_center_

    @overload
    def predict(self, X: Any) -> np.ndarray: ...

    @overload
    def predict(self, X: Any, return_std: Literal[False]) -> np.ndarray: ...

    @overload
    def predict(self, X: Any, return_std: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict targets.

        Parameters
        ----------
        X
            Shape (n, d).
        return_std
            Return the standard deviation of new observations around the predictions as well: from leave-one-out
            residuals, larger far from the training rows.

        Returns
        -------
        Shape (n,) or (n, k) as y was; with `return_std` a pair of such arrays.
        """
        if return_std:
            self._refuse_spread()
        predicted = self._decode(self._outputs(X))
        if not return_std:
            return predicted
        deviation = self._spread(X, self._known_uncertainty().deviation())
        if self.smearing_ is not None:
            # Of a lognormal variable, from its mean and the deviation of its logarithm.
            deviation = predicted * np.sqrt(np.expm1(np.minimum(deviation, _WIDEST) ** 2))
        return predicted, deviation

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Predict intervals that hold a share of new observations, by conformal prediction with left-out residuals.

        Parameters
        ----------
        X
            Shape (n, d).
        coverage
            The share, 0 < coverage < 1, on average over rows like those of the training; of each output by itself.

        Returns
        -------
        Lower and upper ends, each of shape (n,) or (n, k) as y was.

        Raises
        ------
        ValueError
            Another coverage.
        NotFittedError
            The model has only seen a stream.
        """
        self._refuse_spread()
        if not isinstance(coverage, Real) or not 0 < float(coverage) < 1:
            raise ValueError(f"coverage must be a number between 0 and 1, got {coverage!r}")
        predicted = self._decode(self._outputs(X))
        half = self._spread(X, self._known_uncertainty().quantile(float(coverage)))
        if self.smearing_ is not None:
            middle = predicted / (self.smearing_[0] if self._flat else self.smearing_)
            return middle * np.exp(-half), middle * np.exp(half)
        return predicted - half, predicted + half

    def _refuse_spread(self) -> None:
        """Raise a ValueError for losses whose predictions new observations do not lie around."""
        if self.loss in ("quantile", "poisson"):
            raise ValueError(
                f"loss={self.loss!r} has no standard deviations and intervals here; predict quantiles on both sides "
                'with loss="quantile", or fit loss="squared"'
            )

    def _spread(self, X: Any, ratios: np.ndarray) -> np.ndarray:
        """Return the expected spread at some rows times one ratio an output, in the units of y or of its logarithm."""
        distinct, group = self._distinct_rows(X)
        spread = self._known_uncertainty().spread(self.sphere_(distinct))[group]
        values = spread * ratios * self.target_scale_
        return values[:, 0] if self._flat else values

    def _decode(self, outputs: np.ndarray) -> np.ndarray:
        if self.loss_ == "poisson":
            values = self.target_mean_ * np.exp(outputs + self.loss_center_)
        else:
            values = (outputs + self.loss_center_) * self.target_scale_ + self.target_mean_
        if self.smearing_ is not None:
            values = np.exp(values) * self.smearing_
        return values[:, 0] if self._flat else values

    def _score_outputs(self, y: np.ndarray, outputs: np.ndarray) -> float:
        return float(r2_score(y, self._decode(outputs)))

    def _target_document(self) -> dict[str, Any]:
        means = {"loss_center": self.loss_center_.tolist(), "tuning_mean": self._tuning_mean.tolist()}
        smeared = None if self.smearing_ is None else self.smearing_.tolist()
        return {"flat": self._flat, "smearing": smeared, **means}

    def _asked_loss(self) -> str:
        return f"{self.quantile:g} quantile" if self.loss == "quantile" else self.loss

    def _refuse_other_targets(self) -> None:
        if self._asked_loss() != self._fitted_loss:
            raise ValueError(
                f"loss: the model has been fitted to the {self._fitted_loss} loss and cannot go on with the "
                f"{self._asked_loss()} one; set warm_start=False"
            )

    def _restore_targets(self, document: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self._fitted_loss = self._asked_loss()
        self._flat = document["flat"]
        # Files of earlier versions know the squared loss alone.
        self.smearing_ = None if document.get("smearing") is None else np.array(document["smearing"])
        zeros = [0.0] * self.target_mean_.size
        self.loss_center_ = np.array(document.get("loss_center") or zeros)
        self._tuning_mean = np.array(document.get("tuning_mean") or zeros)


def _robust(targets: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return medians and robust standard deviations; mean and standard deviation where half of the targets agree."""
    median = np.median(targets, axis=0)
    spread = 1.4826 * np.median(np.abs(targets - median), axis=0)
    wide = spread > 1e-9 * deviation
    return np.where(wide, median, mean), np.where(wide, spread, deviation)


def _columns(y: np.ndarray) -> np.ndarray:
    """Return targets as float64 of shape (n, k)."""
    targets = np.asarray(y, dtype=np.float64)
    return targets[:, None] if targets.ndim == 1 else targets
