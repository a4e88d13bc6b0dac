"""The content of a report: one frozen record of plain values, checked when it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widefit.training.history import History


@dataclass(frozen=True)
class Source:
    """The table a model was fitted to: its name, its size and what was predicted."""

    name: str
    rows: int
    columns: int
    target: str


@dataclass(frozen=True, eq=False)
class Report:
    """Everything one report page shows.

    Parameters
    ----------
    title
        Headline of the page.
    task
        "regression" or "classification".
    data
        The table the model was fitted to.
    history
        The run as `widefit.train` returns it.
    truth, prediction
        Of the rows that `part` names. Regression: numbers, shape (n,) or (n, k). Classification: labels, shape (n,),
        each of them one of `classes`.
    part
        Which rows these are, for instance "held out" or "train"; the headline card shows the metrics of this part.
    metrics
        Per part (and for the trivial baseline) the metrics by name, the most important one first.
    probabilities
        Classification only: shape (n, c), columns in the order of `classes`.
    classes
        Labels in order; needed for classification.
    importances
        Shares of the columns of the table in the predictions, by name; none: not shown.
    outputs
        Names of the k outputs of a regression; numbered when empty.
    loss_name
        What `StepInfo.loss` of the history measures.
    metric_name
        What `StepInfo.metric` of the history measures.
    tol
        The loss at which training was to stop; drawn as a line when positive.
    plan
        What "auto" decided: (what, chosen, why).
    settings, machine
        Names and values, shown as they are.
    rows
        Numbers of the rows in their table, from 1, for the list of those that are furthest off; by default 1, 2, ….
    interval
        Regression only: lower and upper ends of prediction intervals, each in the shape of `truth`.
    coverage
        The share of new rows that the intervals are for.
    notes
        Things the reader should know: imputed cells, dropped rows, a run that was interrupted.
    created
        When the report was made, as text.

    Raises
    ------
    ValueError
        Shapes that do not fit together, an unknown task, or a label outside `classes`.
    """

    title: str
    task: str
    data: Source
    history: History
    truth: ArrayLike
    prediction: ArrayLike
    part: str = "held out"
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    probabilities: ArrayLike | None = None
    classes: Sequence[Any] = ()
    importances: Mapping[str, float] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    loss_name: str = "mean squared residual"
    metric_name: str = "validation metric"
    tol: float | None = None
    plan: Sequence[tuple[str, str, str]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[int] = ()
    interval: tuple[ArrayLike, ArrayLike] | None = None
    coverage: float = 0.9
    notes: Sequence[str] = ()
    created: str = field(default_factory=lambda: datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))

    def __post_init__(self) -> None:
        if self.task not in ("regression", "classification"):
            raise ValueError(f"task must be 'regression' or 'classification', got {self.task!r}")
        truth, prediction = np.asarray(self.truth), np.asarray(self.prediction)
        if truth.shape != prediction.shape:
            raise ValueError(f"truth has shape {truth.shape} but prediction has shape {prediction.shape}")
        if len(self.rows) not in (0, len(truth)):
            raise ValueError(f"rows names {len(self.rows)} rows, and there are {len(truth)}")
        if self.interval is not None and any(np.shape(end) != truth.shape for end in self.interval):
            raise ValueError(f"the ends of interval must have the shape of truth, {truth.shape}")
        if self.task == "regression":
            if truth.ndim not in (1, 2):
                raise ValueError(f"truth must have shape (n,) or (n, k), got {truth.shape}")
            if self.outputs and len(self.outputs) != self.columns()[0].shape[1]:
                raise ValueError(f"{len(self.outputs)} names in outputs for {self.columns()[0].shape[1]} columns")
            return
        if truth.ndim != 1:
            raise ValueError(f"truth must have shape (n,) for classification, got {truth.shape}")
        if len(self.classes) == 0:
            raise ValueError("classes must list the labels of a classification")
        self.codes()
        if self.probabilities is not None:
            expected, shape = (len(truth), len(self.classes)), np.shape(self.probabilities)
            if shape != expected:
                raise ValueError(f"probabilities must have shape {expected}, got {shape}")

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Truth and prediction of a regression, each of shape (n, k)."""
        truth, prediction = (np.asarray(part, dtype=np.float64) for part in (self.truth, self.prediction))
        count = truth.shape[1] if truth.ndim == 2 else 1
        return truth.reshape(-1, count), prediction.reshape(-1, count)

    def codes(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Truth and prediction of a classification as positions in `classes`, each of shape (n,)."""
        position = {label: code for code, label in enumerate(np.asarray(self.classes).tolist())}

        def encode(name: str, labels: ArrayLike) -> NDArray[np.intp]:
            values = np.asarray(labels).tolist()
            unknown = next((value for value in values if value not in position), None)
            if unknown is not None:
                raise ValueError(f"{name} has the label {unknown!r}, which is not one of classes")
            return np.array([position[value] for value in values], dtype=np.intp)

        return encode("truth", self.truth), encode("prediction", self.prediction)
