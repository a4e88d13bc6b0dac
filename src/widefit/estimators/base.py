"""Base of the two estimators: scikit-learn's contract around the training, everything but the meaning of y."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_is_fitted,
)

from widefit.callbacks import Callback, Log, Progress
from widefit.estimators.arrays import plain
from widefit.estimators.fit_display import FitDisplay
from widefit.estimators.importances import column_importances
from widefit.estimators.nearest import nearest
from widefit.estimators.networks import (
    draw,
    initial_network,
    limit_kernel,
    limit_settings,
    network_from_parts,
    network_parts,
)
from widefit.estimators.parameters import NUMBERS, HiddenLayers
from widefit.estimators.partial_fit import TUNING_ROWS, StreamState
from widefit.estimators.parts import check_parts
from widefit.estimators.plain_parameters import from_plain, to_plain
from widefit.estimators.prediction import Predictor
from widefit.estimators.readout import refit_readout, refuse_many_rows
from widefit.estimators.settled import Settled
from widefit.estimators.table_input import TableInput
from widefit.estimators.training_sample import TrainingSample
from widefit.estimators.uncertainty import Uncertainty
from widefit.files.checkpoint import read_checkpoint
from widefit.kernels import clock
from widefit.kernels.surroundings import insulated
from widefit.losses.family import rule_loss
from widefit.nn import Deep, TwoLayer
from widefit.nn.blocks import numpy_dtype
from widefit.nn.evaluation import evaluate
from widefit.nn.shard import NeuronShard
from widefit.plan.base import Choice, Plan
from widefit.plan.two_layer import plan_two_layer, preconditioner_rank, product_dtype, workload_of
from widefit.processes import ALONE, Alone, as_processes
from widefit.rules import SGD, GaussNewton, Rule, StopReason
from widefit.solvers import Solver
from widefit.trackers import Tracker
from widefit.training.history import History
from widefit.training.train import Training
from widefit.training.two_layer import Start
from widefit.tuning.duplicates import MergedRows, WeightedRows, merge_duplicates
from widefit.tuning.full_ridge import full_ridge
from widefit.tuning.held_out import MANY
from widefit.tuning.sphere import SphereMap
from widefit.tuning.tune import Tuning, bytes_needed, tune

if TYPE_CHECKING:
    # Polars is imported where a table needs it.
    from widefit.data.features import Feature

    Table = np.ndarray | tuple[Feature, ...]

# Rows from which on the leave-one-out error says what a training may leave undone: fewer cost nothing to finish.
_FEWEST_TO_SETTLE = 100
# Part of the rows that may stay held-out in a training that begins from a regression on all others.
_FEW_LEFT_OUT = 0.02
# Mean squared residual at which interpolation is good enough.
_TOL = 1e-6
# Rows that are predicted at a time: memory does not grow with the table.
_PREDICTED_ROWS = 1 << 15


class Wide(TableInput, FitDisplay, ABC):
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
    stream_: StreamState | None = None
    _sample: TrainingSample | None = None
    _uncertainty: Uncertainty | None = None
    _target_choices: tuple[Choice, ...] = ()

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
        device: str = "auto",
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
        self.categorical_features = categorical_features
        self.device = device

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        return tags

    # Hooks: the meaning of y, which each of the two estimators has its own.

    @abstractmethod
    def _learn_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        """Learn `target_mean_`, `target_scale_` and whatever else the encoding of y takes."""

    @abstractmethod
    def _learn_stream_targets(self, y: np.ndarray, sample_weight: np.ndarray) -> None:
        """Learn the encoding from the first batch of a stream."""

    def _weigh(self, y: np.ndarray, sample_weight: np.ndarray) -> np.ndarray:
        """Return the weights of the rows, those of their classes included."""
        return sample_weight

    @abstractmethod
    def _encode(self, y: np.ndarray) -> np.ndarray:
        """Return targets for the squared loss, shape (n, k), of weighted mean 0 on the rows of the first fit."""

    def _classes_of(self, encoded: np.ndarray) -> np.ndarray | None:
        """Return the class of every encoded target; None without classes."""
        return None

    def _refuse_other_targets(self) -> None:
        """Raise a ValueError where the fit that goes on was to something else than is asked for now."""

    def _loss(self) -> str:
        """Return the loss that the rule descends."""
        return "squared"

    def _transform_targets(self, y: np.ndarray, weight: np.ndarray, merged: MergedRows, layers: HiddenLayers) -> bool:
        """Learn another encoding of y where the rows show that it predicts better; return whether it was."""
        return False

    def _choose_loss(self, tuning: Tuning) -> None:
        """Set `loss_` and the factor between its ridge and that of the squared loss."""
        self.loss_ = self._loss()
        self._loss_ridge = rule_loss(self.loss_).curvature

    def _loss_targets(self, y: np.ndarray) -> np.ndarray:
        """Return targets as `loss_` takes them, shape (n, k)."""
        return self._encode(y)

    def _calibrate(self, tuning: Tuning | None, merged: MergedRows) -> None:
        """Learn to read outputs from a tuning; None where an earlier one still holds or a stream has none."""

    def _read(self, outputs: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return outputs of the network at some rows as predictions take them."""
        return outputs

    @abstractmethod
    def _decode(self, outputs: np.ndarray) -> np.ndarray:
        """Return predictions in the units of y, or class probabilities, from network outputs."""

    @abstractmethod
    def _score_outputs(self, y: np.ndarray, outputs: np.ndarray) -> float:
        """Return R² or accuracy of network outputs."""

    @abstractmethod
    def _target_document(self) -> dict[str, Any]:
        """Return the encoding of y as plain values."""

    def _target_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that belong to it by name."""
        return {}

    @abstractmethod
    def _restore_targets(self, document: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Restore the encoding from what `_target_document` and `_target_arrays` returned."""

    # Training.

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
        process_group: Any = None,
    ) -> Self:
        """Fit the network to a table.

        Parameters
        ----------
        X
            Shape (n, d): data frame of pandas or polars, array, tensor or sparse matrix (made dense). Gaps are filled
            by medians or the most frequent value, and told by a 0/1 column; see `categorical_features`.
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
        process_group
            A group of torch.distributed, or a `widefit.Processes`. Every process of it calls `fit` with the same
            arguments, callbacks included, trains a share of the neurons of one hidden layer, and has the whole model in
            the end.

        Raises
        ------
        ValueError
            A parameter, a shape or a value that makes no sense; the message names it.
        MemoryError
            The work cannot fit in memory; said before it starts.
        """
        asked = self._check_parameters()
        processes = as_processes(process_group)
        continues = bool(self.warm_start) and hasattr(self, "network_")
        if continues:
            self._refuse_other_targets()
        table, y, weight = self._check_data(X, y, sample_weight, reset=not continues)
        weight = self._weigh(y, weight)
        if not continues:
            self._learn_targets(y, weight)
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        encoded = self._encode(y)
        rows = self._learn_columns(table, encoded, weight, reset=not continues)
        samples = len(rows)
        layers = asked.for_rows(self, *rows.shape)
        merged = merge_duplicates(rows, encoded, weight)
        if not continues and self._transform_targets(y, weight, merged, layers):
            encoded = self._encode(y)
            # Effects of categories are those on the targets that are fitted.
            rows = self._learn_columns(table, encoded, weight, reset=True)
            merged = merge_duplicates(rows, encoded, weight)
        metric = None if validation is None else self._metric_on(*validation)
        if self.refit_readout:
            refuse_many_rows(len(merged.rows))
        self._forget_stream()
        tuning = None
        outputs = merged.targets.shape[1]
        if not continues:
            tuning = self._tune(merged, partial(asked.for_rows, self, samples, outputs=outputs), self.alpha, processes)
        start = None
        if tuning is not None:
            self._choose_loss(tuning)
            layers = asked.for_rows(self, samples, tuning.sphere.out_features, outputs)
            # Of several processes each draws its share alone.
            store = "array" if processes.size == 1 else "regenerate"
            self.network_ = draw(tuning, layers, outputs, self.activation, self._seed, store)
            tuning, start = self._correct_ridge(tuning, merged, processes)
        self._calibrate(tuning, merged)
        kept = weight > 0
        problem = merged
        floor = merged.floor
        if self.loss_ != "squared":
            # The mean target of equal rows stands for them in the squared loss alone.
            problem = WeightedRows(rows[kept], self._loss_targets(y)[kept], weight[kept])
            floor = 0.0
        inputs = self.sphere_(problem.rows)
        knows_error = tuning is not None and self.loss_ == "squared" and len(problem.rows) >= _FEWEST_TO_SETTLE
        error = tuning.error if tuning is not None and knows_error else None
        self._train(inputs, problem, floor, metric, callbacks, resume, error, processes, start)
        self._sample = TrainingSample.draw(
            merged, encoded[kept], weight[kept], np.flatnonzero(kept), self.sphere_, self._seed
        )
        self._build_predictor()
        if self.refit_readout and isinstance(self.network_, TwoLayer):
            self.plan_ = self.plan_.then(refit_readout(self.network_, inputs, problem.targets, problem.sample_weight))
        return self

    def _tune(
        self,
        merged: MergedRows,
        layers_for: Callable[[int], HiddenLayers],
        alpha: float | str,
        processes: Alone = ALONE,
    ) -> Tuning:
        """Decide what is "auto": the input map, the ridge and the readout scale; layers follow from the features.

        Of several processes each decides, so that none waits for longer than they differ in speed; what the first has
        decided counts, as other processors may round otherwise.
        """
        thresholds = layers_for(merged.rows.shape[1] + 1).thresholds
        tuning = tune(
            merged,
            threshold=thresholds[0],
            width=lambda features: min(layers_for(features).widths),
            alpha=alpha,
            readout_scale=self.readout_scale,
            seed=self._seed,
            kernel=limit_kernel(thresholds),
            classes=self._classes_of(merged.targets),
            by_network=self.rule == "gauss-newton" or isinstance(self.rule, GaussNewton),
        )
        (tuning, *_) = processes.gathered(tuning)
        self.sphere_ = tuning.sphere
        self.alpha_ = tuning.alpha
        self._ridge = tuning.alpha * tuning.readout_scale**2
        layers = layers_for(tuning.sphere.out_features)
        self._choices = (*layers.choices, *tuning.choices, *self._target_choices)
        return tuning

    def _correct_ridge(self, tuning: Tuning, merged: MergedRows, processes: Alone) -> tuple[Tuning, Start | None]:
        """Choose the ridge of many rows anew, on held-out ones by regressions on all others, and begin with the best.

        Only where such a regression is what a step takes anyway: then it is next to free.
        """
        network = self.network_
        rule = self._rule()
        if self.alpha != "auto" or self.solver != "auto" or not isinstance(rule, GaussNewton):
            return tuning, None
        if not isinstance(network, TwoLayer) or len(merged.rows) <= MANY or tuning.alpha == 0:
            return tuning, None
        if self.loss_ != "squared" or self.device not in ("auto", "cpu"):
            return tuning, None
        inputs = self.sphere_(merged.rows).astype(numpy_dtype(network.dtype))
        work = workload_of(network, inputs, self._ridge, rule)
        own = replace(work, processes=processes.size, stored=True, width=-(-work.width // processes.size))
        threads = torch.get_num_threads()
        (arrays, *_) = processes.gathered(plan_two_layer(own, self.tracker, "auto", threads)[0].arrays)
        if arrays:
            return tuning, None
        found = full_ridge(
            network if processes.size == 1 else NeuronShard.of(network, processes),
            inputs,
            merged.targets,
            merged.sample_weight,
            alpha=self._ridge,
            summed=product_dtype(len(inputs), inputs.dtype),
            rank=preconditioner_rank(work),
            threads=threads,
            processes=processes,
            seed=self._seed,
        )
        alpha = float(f"{found.alpha / tuning.readout_scale**2:.4g}")
        held = found.rows
        reason = (
            f"the best of {found.tried} for all rows but {len(held):,}: error {found.error:.3g} spreads on these, "
            f"after {found.products} products with H"
        )
        self.alpha_ = alpha
        self._ridge = alpha * tuning.readout_scale**2
        self._choices = (*self._choices, Choice("ridge of all rows", f"{alpha:.3g}", reason))
        corrected = replace(
            tuning,
            alpha=alpha,
            held_out=found.predictions,
            held_out_rows=held,
            held_out_targets=merged.targets[held],
            held_out_weight=merged.sample_weight[held],
        )
        self._choose_loss(corrected)
        # A few rows among very many are not worth a solve of their own.
        left_out = len(held) / len(inputs)
        residual = math.hypot(found.residual, math.sqrt(left_out)) if left_out <= _FEW_LEFT_OUT else found.residual
        # Outputs begin at 0, and a step goes against g. Rounded, as a resumed run has to have the same tolerance.
        return corrected, Start(-found.coefficients, float(f"{1.2 * residual:.1g}"))

    def _train(
        self,
        inputs: np.ndarray,
        problem: WeightedRows,
        floor: float,
        metric: Callable[[Any], float] | None,
        callbacks: Sequence[Callback],
        resume: str | Path | None,
        error: float | None,
        processes: Alone,
        start: Start | None,
    ) -> None:
        """Train the network, in place; until it has settled, where the leave-one-out error is known."""
        rule = self._rule()
        settled: list[Settled] = []
        if self.tol == "auto" and error is not None and isinstance(rule, GaussNewton):
            settled.append(Settled(error, floor, None if start is None else self._ridge * self._loss_ridge))
        told = [Log(), *([Progress()] if self.verbose else [])] if processes.rank == 0 else []
        training = Training(
            self.network_,
            inputs,
            problem.targets,
            rule=rule,
            tracker=self.tracker,
            solver=self.solver,
            max_iter=int(self.max_iter),
            tol=_TOL if self.tol == "auto" else float(self.tol),
            alpha=self._ridge * self._loss_ridge,
            sample_weight=problem.sample_weight,
            metric=metric,
            callbacks=(*callbacks, *settled, *told),
            loss_floor=floor,
            device=self.device,
            processes=processes,
            few_steps=bool(settled),
            start=start,
        )
        plan = training.plan.after(self._choices)
        # Distinct rows, those on the sphere, and these in float32 stay while the network is trained.
        held = 20 * inputs.size
        network = self.network_
        drawn = network.width if isinstance(network, TwoLayer) and network.out_features == 1 else 0
        tuned = bytes_needed(len(inputs), inputs.shape[1], drawn)
        self.plan_ = replace(plan, bytes_needed=max(tuned, held + plan.bytes_needed))
        try:
            self._set_history(training.run(None if resume is None else read_checkpoint(resume)))
            if processes.size > 1 and isinstance(self.network_, TwoLayer):
                weight = torch.empty(self.network_.width, self.network_.in_features, dtype=self.network_.dtype)
                training.join(weight)
                self.network_ = self.network_.holding(weight)
        finally:
            # Predictions, intervals and files are made on the CPU.
            self.network_.to("cpu")
        if settled and settled[0].reached and self.history_.stop_reason == StopReason.CALLBACK:
            self.history_.stop_reason = str(StopReason.SETTLED)
        if not math.isfinite(self.history_[-1].loss):
            raise ValueError('the training diverged, its weights have overflowed: give rule a smaller lr, or lr="auto"')

    @insulated()
    def _partial_fit(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> Self:
        """Take one step along every minibatch of a batch; `partial_fit` of the two estimators documents it."""
        layers = self._check_parameters()
        if self.device not in ("auto", "cpu"):
            raise ValueError(f'a stream is learnt on the CPU: device must be "auto" or "cpu", got {self.device!r}')
        if len(layers.widths) > 1:
            raise ValueError("partial_fit trains one hidden layer; for several, call fit with all rows")
        first = not hasattr(self, "network_")
        table, y, weight = self._check_data(X, y, sample_weight, reset=first)
        weight = self._weigh(y, weight)
        if first:
            self._learn_stream_targets(y, weight)
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        # Later batches see the effects of categories of the first.
        rows = self._learn_columns(table, self._encode(y), weight, reset=True) if first else self._encoded(table)
        kept = weight > 0
        rows = rows[kept]
        y = y[kept]
        weight = weight[kept]
        if self.alpha not in ("auto", 0):
            raise ValueError(
                f'alpha must be "auto" or 0 with partial_fit, got {self.alpha!r}: a stream has no sum over all rows '
                "that a ridge could be weighed against"
            )
        started = clock.now()
        loss = self._loss()
        if first:
            self._begin_stream(rows, y, weight, layers, loss)
        elif self.loss_ != loss:
            raise ValueError(f"rule descends the {loss} loss, and the model has been fitted to the {self.loss_} one")
        targets = self._loss_targets(y)
        if self.stream_ is None:
            assert isinstance(self.network_, TwoLayer)
            self.stream_ = StreamState(self.network_, self._rule(), self.tracker)
        outputs = self.stream_.learn(self.sphere_(rows), targets, weight)
        self.plan_ = self.stream_.plan.after(self._choices)
        self._build_predictor()
        self.progressive_predictions_ = self._decode(outputs)
        self.stream_.record(outputs, targets, weight, clock.now() - started)
        self._set_history(self.stream_.history)
        self.n_iter_ = self.stream_.last.step
        return self

    def _begin_stream(
        self, rows: np.ndarray, y: np.ndarray, weight: np.ndarray, layers: HiddenLayers, loss: str
    ) -> None:
        """Tune on the first batch of a stream, and draw the network."""
        self.loss_ = loss
        self._loss_ridge = rule_loss(loss).curvature
        share = weight[:TUNING_ROWS] / weight[:TUNING_ROWS].sum()
        encoded = self._encode(y[:TUNING_ROWS])
        merged = merge_duplicates(rows[:TUNING_ROWS], encoded - share @ encoded, weight[:TUNING_ROWS])
        tuning = self._tune(merged, lambda _: layers, 0.0)
        self._calibrate(None, merged)
        self.network_ = draw(tuning, layers, merged.targets.shape[1], self.activation, self._seed)
        # A column that is constant at first may vary in rows to come.
        self.sphere_ = self.sphere_.with_every_column()

    def _forget_stream(self) -> None:
        """End a stream: a fit begins."""
        self.stream_ = None
        self._sample = None
        self._uncertainty = None
        vars(self).pop("progressive_predictions_", None)

    def _rule(self) -> str | Rule[Any]:
        """Return the rule with the loss in use, and with the seed of its order where it has none."""
        rule: Any = SGD() if isinstance(self.rule, str) and self.rule == "sgd" else self.rule
        if isinstance(rule, SGD):
            return replace(rule, loss=self.loss_, seed=self._seed if rule.seed is None else rule.seed)
        if isinstance(rule, str):
            return GaussNewton(loss=self.loss_) if rule == "gauss-newton" else rule
        return rule if getattr(rule, "loss", self.loss_) == self.loss_ else replace(rule, loss=self.loss_)

    def _set_history(self, history: History) -> None:
        self.history_ = history
        self.loss_curve_ = history.losses
        self.n_iter_ = len(history) - 1

    # Prediction.

    def _build_predictor(self) -> None:
        """Choose the way in which outputs are computed, for the weights as they are now."""
        self._predictor = _predictor_of(self.network_)
        if self._predictor is not None:
            self.plan_ = self.plan_.then(self._predictor.choice)

    @insulated()
    def _outputs(self, X: Any) -> np.ndarray:
        """Return network outputs in the units of the encoded target, shape (n, k)."""
        check_is_fitted(self)
        rows = self._rows(X)
        step = max(_PREDICTED_ROWS, getattr(self._predictor, "rows", None) or 0)
        parts = [self._outputs_of(rows[first : first + step]) for first in range(0, len(rows), step)]
        return np.concatenate(parts)

    def _outputs_of(self, rows: np.ndarray) -> np.ndarray:
        """Return network outputs for rows of numbers; equal ones are evaluated once."""
        distinct, group = _distinct(rows)
        inputs = self.sphere_(distinct)
        outputs = _forward(self.network_, inputs) if self._predictor is None else self._predictor(inputs)
        return self._read(outputs, distinct)[group]

    @property
    def feature_importances_(self) -> np.ndarray:
        """Shares of the columns in the average gradient outer product of the network, shape (d,), with sum 1."""
        inputs = self._known_sample().inputs
        sphere = self.sphere_
        found = np.bincount(sphere.sources, column_importances(self.network_, inputs, sphere.last, sphere.mixing))
        if self._encoding is None:
            return found
        return np.bincount(self._encoding.sources, found, self.n_features_in_)

    def nearest_rows(self, X: Any, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Return the training rows that the network takes to be most like some rows: reasons for a prediction.

        Parameters
        ----------
        X
            Shape (n, d).
        k
            How many for each row.

        Returns
        -------
        Places in the training table and likenesses, each of shape (n, k), the nearest first. The likeness is the entry
        of the Gram matrix at infinite width over that of a row with itself: 1 for equal rows, about 0 where no neuron
        fires on both. Of more than 1,000 rows as many were drawn; among fewer than k all are given.

        Raises
        ------
        ValueError
            k < 1.
        NotFittedError
            The model has only seen a stream.
        """
        if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k must be an integer ≥ 1, got {k!r}")
        sample = self._known_sample()
        distinct, group = self._distinct_rows(X)
        places, likeness = nearest(sample, self.sphere_(distinct), *limit_settings(self.network_), int(k))
        return places[group], likeness[group]

    def _known_sample(self) -> TrainingSample:
        """Return the training rows that a fit has kept.

        Raises
        ------
        NotFittedError
            There was no fit, or only a stream.
        """
        check_is_fitted(self)
        if self._sample is None:
            raise NotFittedError("this takes rows that fit keeps: fit the model, a stream keeps none")
        return self._sample

    def _known_uncertainty(self) -> Uncertainty:
        """Return the uncertainty of predictions, computed on first use."""
        if self._uncertainty is None:
            thresholds, share = limit_settings(self.network_)
            self._uncertainty = Uncertainty.of(
                self._known_sample(),
                initial_network(self.network_, self._seed),
                alpha=self.alpha_,
                thresholds=thresholds,
                input_share=share,
            )
        return self._uncertainty

    def _metric_on(self, X: Any, y: Any) -> Callable[[Any], float]:
        """Return the score on some rows, checked now, as a function of the network."""
        distinct, group = self._distinct_rows(X)
        truth = np.asarray(plain(y))
        if truth.shape[0] != group.size:
            raise ValueError(f"validation has {group.size} rows but {truth.shape[0]} targets")

        def score(network: TwoLayer | Deep) -> float:
            outputs = self._read(_forward(network, self.sphere_(distinct)), distinct)
            return self._score_outputs(truth, outputs[group])

        return score

    def _distinct_rows(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct rows of a table, and the index among them of every row: equal ones are evaluated once."""
        return _distinct(self._rows(X))

    def _rows(self, X: Any) -> np.ndarray:
        """Return the rows of a table as numbers, checked."""
        return self._encoded(self._check_rows(X))

    # Checks.

    def _check_parameters(self) -> HiddenLayers:
        """Check all parameters that the training does not check itself."""
        for number in NUMBERS:
            number.check(getattr(self, number.name))
        layers = HiddenLayers.of(self)
        if isinstance(self.categorical_features, str) and self.categorical_features != "auto":
            raise ValueError(
                'categorical_features must be "auto", None, or names, places or a mask of columns, got '
                f"{self.categorical_features!r}"
            )
        loss = getattr(self.rule, "loss", "squared")
        if loss not in self._losses:
            raise ValueError(
                f'rule must descend the squared loss in {type(self).__name__}, got one with loss="{loss}"; '
                "widefit.train takes the others"
            )
        return layers

    # Files.

    def to_parts(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the fitted estimator as tensors and a document of plain values; `from_parts` is the inverse."""
        check_is_fitted(self)
        tensors, network = network_parts(self.network_, whole=self.stream_ is not None)
        stream = None
        if self.stream_ is not None:
            state, stream = self.stream_.to_parts()
            tensors |= {f"stream.{name}": tensor for name, tensor in state.items()}
        if self._sample is not None:
            tensors |= {f"sample.{name}": torch.from_numpy(array) for name, array in self._sample.to_arrays().items()}
        tensors |= {
            **{name: torch.from_numpy(array) for name, array in self.sphere_.to_arrays().items()},
            **{name: torch.from_numpy(array) for name, array in self._target_arrays().items()},
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
            "loss_ridge": self._loss_ridge,
            "history": self.history_.to_dict(),
            "plan": self.plan_.to_dict(),
            "loss": self.loss_,
            "seed": self._seed,
            "stream": stream,
            "samples": None if self._sample is None else self._sample.samples,
            "n_features_in": self.n_features_in_,
            "feature_names_in": list(self.feature_names_in_) if hasattr(self, "feature_names_in_") else None,
            "encoding": None if self._encoding is None else self._encoding.to_dict(),
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
        if document.get("sgd") is not None:
            # Version 0.1 wrote the settings of a rule apart.
            model.rule = from_plain({"type": "SGD", "settings": document["sgd"]}, "rule")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        model.network_ = network_from_parts(tensors, document["network"])
        model.sphere_ = SphereMap.from_arrays(arrays, document["sphere_constant"])
        model.target_mean_ = tensors["target_mean"].numpy()
        model.target_scale_ = tensors["target_scale"].numpy()
        model.alpha_ = document["alpha"]
        model._ridge = document["ridge"]
        model._choices = ()
        model.loss_ = document.get("loss", "squared")
        model._loss_ridge = document.get("loss_ridge", rule_loss(model.loss_).curvature)
        model._seed = document.get("seed", 0)
        model.n_features_in_ = document["n_features_in"]
        if document["feature_names_in"] is not None:
            model.feature_names_in_ = np.array(document["feature_names_in"], dtype=object)
        if document.get("encoding") is not None:
            from widefit.data.features import FeatureEncoding

            model._encoding = FeatureEncoding.from_dict(document["encoding"])
        model._restore_targets(document, arrays)
        model._predictor = _predictor_of(model.network_)
        model.plan_ = Plan.from_dict(document["plan"])
        model._set_history(History.from_dict(document["history"]))
        model._restore_stream(tensors, document.get("stream"))
        if document.get("samples") is not None:
            kept = {name.removeprefix("sample."): array for name, array in arrays.items()}
            model._sample = TrainingSample.from_arrays(kept, document["samples"], model.sphere_)
        return model

    def _restore_stream(self, tensors: dict[str, torch.Tensor], document: dict[str, Any] | None) -> None:
        self.stream_ = None
        if document is None:
            return
        assert isinstance(self.network_, TwoLayer)
        own = {name.removeprefix("stream."): value for name, value in tensors.items() if name.startswith("stream.")}
        self.stream_ = StreamState.from_parts(self.network_, self._rule(), self.tracker, self.history_, own, document)
        self.n_iter_ = self.stream_.last.step


def _predictor_of(network: TwoLayer | Deep) -> Predictor | None:
    """Return a predictor of a two-layer network; None for a deep one."""
    return Predictor(network) if isinstance(network, TwoLayer) else None


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distinct, group = np.unique(rows, axis=0, return_inverse=True)
    return distinct, group.reshape(-1)


def _forward(network: TwoLayer | Deep, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs by all neurons."""
    place = next(network.parameters(), torch.empty(0)).device
    if isinstance(network, TwoLayer) and place.type == "cpu":
        return evaluate(network, inputs)
    with torch.no_grad():
        return network(torch.from_numpy(inputs).to(place)).cpu().numpy()
