"""WideRegressor."""

from numbers import Real
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if

from widefit.estimators.base import Wide
from widefit.estimators.partial_fit import can_stream
from widefit.files.model_file import storable


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
        (65536,), and fewer neurons where there are so many rows that a step would take long.
    activation : {"shifted_relu", "relu", "floored_relu"}, default "shifted_relu"
        max(z − b, 0), max(z, 0), or max(z, b); the last for one hidden layer only.
    threshold : float or "auto", default "auto"
        b of all layers; "auto" is √(0.4 ln m), at which about two percent of the neurons fire.
    alpha : float or "auto", default "auto"
        Ridge towards the initial weights, in the units of kernel ridge regression with the network's kernel; "auto"
        chooses by leave-one-out.
    readout_scale : float or "auto", default "auto"
        Size of the fixed second layer. "auto" makes it so large that few neurons flip while the first layer is trained.
    rule : {"gauss-newton", "gradient-descent", "sgd"} or Rule, default "gauss-newton"
        How a step is chosen. Rules are for the squared loss here.
    tracker : str or Tracker, default "auto"
        How the firing neurons are found: "dense", "certificate", "verlet-list", "weight-tree", "data-tree" or
        "half-space-tree"; "auto" with several hidden layers.
    solver : {"auto", "cholesky", "cg", "block-cg"} or Solver, default "auto"
        How systems in sample space are solved.
    max_iter : int, default 20
        Largest number of steps. With rule="sgd" a step is an epoch, as for scikit-learn's stochastic solvers; rules of
        first order want hundreds where "gauss-newton" wants a handful.
    tol : float, default 1e-6
        Training stops when the mean squared residual of the standardized targets is no larger.
    refit_readout : bool, default False
        Fit the second layer of a two-layer network by ridge regression after the first.
    warm_start : bool, default False
        Go on from the weights of the last fit.
    random_state : int, RandomState or None, default 0
        Fixes the result, whatever the number of threads: the initial weights and the order of an SGD without a seed.
    verbose : bool, default False
        Show a progress bar.

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
    progressive_predictions_ : ndarray
        After `partial_fit`: what was predicted for each row of the batch before it was learnt, as `predict` has it.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.
    """

    _numeric_targets = True
    _losses = ("squared",)

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

    def _learn_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        targets = _columns(y)
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
        self.target_mean_ = mean
        self.target_scale_ = scale
        self._flat = y.ndim == 1

    def _learn_stream_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        try:
            self._learn_targets(y, sample_weight)
        except ValueError as error:
            raise ValueError(f"{error}; the first batch fixes the units of y, so let its values differ") from error

    def _encode(self, y: np.ndarray) -> np.ndarray:
        targets = _columns(y)
        if targets.shape[1] != self.target_mean_.size:
            raise ValueError(f"y has {targets.shape[1]} outputs, the model was fitted with {self.target_mean_.size}")
        return (targets - self.target_mean_) / self.target_scale_

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
        predicted = self._decode(self._outputs(X))
        if not return_std:
            return predicted
        return predicted, self._spread(X, self._known_uncertainty().deviation())

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
        if not isinstance(coverage, Real) or not 0 < float(coverage) < 1:
            raise ValueError(f"coverage must be a number between 0 and 1, got {coverage!r}")
        predicted = self._decode(self._outputs(X))
        half = self._spread(X, self._known_uncertainty().quantile(float(coverage)))
        return predicted - half, predicted + half

    def _spread(self, X: Any, ratios: np.ndarray) -> np.ndarray:
        """Return the expected spread at some rows times one ratio an output, in the units of y."""
        distinct, group = self._distinct_rows(X)
        spread = self._known_uncertainty().spread(self.sphere_(distinct))[group]
        values = spread * ratios * self.target_scale_
        return values[:, 0] if self._flat else values

    def _decode(self, outputs: np.ndarray) -> np.ndarray:
        values = outputs * self.target_scale_ + self.target_mean_
        return values[:, 0] if self._flat else values

    def _score_outputs(self, y: np.ndarray, outputs: np.ndarray) -> float:
        return float(r2_score(y, self._decode(outputs)))

    def _target_document(self) -> dict[str, Any]:
        return {"flat": self._flat}

    def _restore_targets(self, document: dict[str, Any]) -> None:
        self._flat = document["flat"]


def _columns(y: np.ndarray) -> np.ndarray:
    """Return targets as float64 of shape (n, k)."""
    targets = np.asarray(y, dtype=np.float64)
    return targets[:, None] if targets.ndim == 1 else targets
