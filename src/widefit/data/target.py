"""The column to predict, and whether that is regression or classification."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from widefit.data.columns import EXACT, LARGEST, Kind, as_text, flags, missing, refuse_type
from widefit.data.effects import Outcomes
from widefit.data.table import Table
from widefit.data.words import TableError, listing, plural

Task = Literal["regression", "classification"]
TASKS = ("regression", "classification")
USUAL_NAMES = ("target", "y", "label", "class")
MAX_INTEGER_CLASSES = 20
RULE = (
    "text, booleans and categories are classes; so are at most "
    f"{MAX_INTEGER_CLASSES} different whole numbers that occur twice or more on average; other numbers are a quantity"
)


@dataclass(frozen=True)
class Target:
    """The target column and what its values mean.

    Attributes
    ----------
    name
        The column.
    task
        "regression" or "classification".
    labels
        The classes in order (all str, all int or all bool); empty for regression.
    reason
        Why this task, for the user.
    """

    name: str
    task: Task
    labels: tuple[str, ...] | tuple[int, ...] | tuple[bool, ...] = ()
    reason: str = ""

    @property
    def kind(self) -> Kind:
        """The kind of column: "number" for quantities and whole numbers as labels, "boolean", or "category"."""
        if self.task == "regression":
            return "number"
        kinds: dict[type, Kind] = {str: "category", bool: "boolean", int: "number"}
        return kinds[type(self.labels[0])]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {"name": self.name, "task": self.task, "labels": list(self.labels), "reason": self.reason}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Target":
        """The inverse of `to_dict`.

        Raises
        ------
        KeyError, TypeError
            The record is not one of `to_dict`.
        """
        target = cls(record["name"], record["task"], tuple(record["labels"]), record["reason"])
        alike = len({type(label) for label in target.labels}) == (target.task == "classification")
        if not isinstance(target.name, str) or target.task not in TASKS or not alike:
            raise TypeError(f"no target is described by {record!r}")
        if target.labels and type(target.labels[0]) not in (str, int, bool):
            raise TypeError(f"labels are text, whole numbers or booleans, not {target.labels[0]!r}")
        return target

    def values(self, frame: pl.DataFrame) -> np.ndarray:
        """The target of each row, shape (n,): float64, or labels of the type that training saw.

        Raises
        ------
        TableError
            Column absent, missing or infinite values, text in a quantity, a label that training did not see.
        """
        column = _column(frame, self.name)
        _refuse_missing(column)
        refuse_type(column, missing(column), self.kind)
        if self.task == "regression":
            return _numbers(column)
        return self._labelled(column)

    def outcomes(self, y: np.ndarray) -> Outcomes:
        """Numbers from which effects of categories are learnt: y, or 0/1 for every class but the first of two."""
        labels = self.labels[1:] if len(self.labels) == 2 else self.labels
        values = np.stack([y == label for label in labels], axis=1) if labels else y[:, None]
        return Outcomes(values.astype(np.float64), np.ones(len(y)))

    def _labelled(self, column: pl.Series) -> np.ndarray:
        if self.kind == "category":
            values = as_text(column, missing(column), tuple(map(str, self.labels)))
        elif self.kind == "boolean":
            values = flags(column)
        else:
            numbers = _cast(column)
            labels = [float(label) for label in self.labels]
            values = numbers.set(~numbers.is_in(labels).fill_null(False), None).cast(pl.Int64)
        known = values.is_in(list(self.labels)).fill_null(False)
        if not known.all():
            row = int((~known).arg_true()[0])
            raise TableError(
                f"column {self.name!r}, row {row + 1}: label {column[row]!r} is none of the model's classes "
                f"({listing(self.labels)})"
            )
        return np.asarray(values.to_list(), dtype=np.str_ if self.kind == "category" else None)


def choose_target(table: Table, wanted: str | None) -> str:
    """The target column: as asked for, as the source says, one called target, y, label or class, or the last one.

    Raises
    ------
    TableError
        No such column, or a source that has its own place for the target and nothing in it.
    """
    columns = table.frame.columns
    if wanted is not None:
        if wanted not in columns:
            raise TableError(f"there is no column {wanted!r} in {table.name}; its columns are {listing(columns)}")
        return wanted
    if table.declares_target:
        if table.target is None:
            raise TableError(f"{table.name} holds no y; it can be predicted, but not trained on or evaluated")
        return table.target
    named = [column for column in columns if column.strip().lower() in USUAL_NAMES]
    return named[0] if len(named) == 1 else columns[-1]


def learn_target(frame: pl.DataFrame, name: str, task: str | None = None) -> Target:
    """Decide what the target column means.

    Parameters
    ----------
    frame
        The training table.
    name
        The target column.
    task
        "regression" or "classification"; None decides by `RULE`.

    Raises
    ------
    TableError
        Missing or infinite values, dates, a constant target, one class, text asked to be a quantity, a class per row.
    """
    if task is not None and task not in TASKS:
        raise TableError(f"task must be 'regression' or 'classification', got {task!r}")
    column = _column(frame, name)
    _refuse_missing(column)
    if column.dtype.is_temporal() or column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object, pl.Null):
        raise TableError(f"the target {name!r} holds {column.dtype} values; it must be numbers, booleans or text")
    distinct = column.n_unique()
    if distinct == 1:
        what = "one class" if task == "classification" or not column.dtype.is_numeric() else "one value"
        raise TableError(f"the target {name!r} has only {what} ({column[0]!r}); there is nothing to learn")
    if not column.dtype.is_numeric():
        return _learn_categories(column, task, distinct)
    return _learn_numbers(column, task, distinct)


def _learn_numbers(column: pl.Series, task: str | None, distinct: int) -> Target:
    name = column.name
    numbers = pl.Series(name, _numbers(column))
    whole = bool((numbers % 1 == 0).all())
    exact = bool((numbers.abs() <= EXACT).all())
    few = whole and exact and distinct <= MAX_INTEGER_CLASSES and 2 * distinct <= len(column)
    reason = "as asked"
    if task is None:
        task = "classification" if few else "regression"
        what = "different whole numbers" if whole else "different numbers"
        reason = f"the target {name!r} has {distinct:,} {what} in {plural(len(column), 'row')}"
    if task == "regression":
        return Target(name, "regression", (), reason)
    if not whole:
        raise TableError(
            f"the target {name!r} has numbers that are not whole ({_first_fraction(numbers)}); they cannot be classes, "
            "use --task regression"
        )
    if not exact:
        raise TableError(
            f"the target {name!r} has whole numbers beyond 2^53, too large to be told apart; write them as text"
        )
    _refuse_class_per_row(column, distinct)
    return Target(name, "classification", tuple(int(value) for value in numbers.unique().sort().to_list()), reason)


def _learn_categories(column: pl.Series, task: str | None, distinct: int) -> Target:
    if task == "regression":
        first = column.drop_nulls()[0]
        raise TableError(f"the target {column.name!r} holds text ({first!r}), not numbers; use --task classification")
    reason = "as asked" if task else f"the target {column.name!r} is text or categories, not numbers"
    if column.dtype == pl.Boolean:
        return Target(column.name, "classification", (False, True), reason if task else "the target is true or false")
    _refuse_class_per_row(column, distinct)
    return Target(
        column.name, "classification", tuple(as_text(column, missing(column)).unique().sort().to_list()), reason
    )


def _refuse_class_per_row(column: pl.Series, distinct: int) -> None:
    if distinct > len(column) // 2 and distinct > 2:
        raise TableError(
            f"the target {column.name!r} has {distinct:,} different classes in {plural(len(column), 'row')}; "
            "classes must repeat. Name another column with --target"
            + (", or use --task regression" if column.dtype.is_numeric() else "")
        )


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        raise TableError(f"the target column {name!r} is not in the table; its columns are {listing(frame.columns)}")
    column = frame[name]
    return column.fill_nan(None) if column.dtype.is_float() else column


def _refuse_missing(column: pl.Series) -> None:
    gaps = missing(column)
    if gaps.any():
        raise TableError(
            f"the target {column.name!r} is missing in {plural(int(gaps.sum()), 'row')} (first in row "
            f"{int(gaps.arg_true()[0]) + 1}); targets are never filled in, remove those rows"
        )


def _numbers(column: pl.Series) -> np.ndarray:
    values = _cast(column)
    if values.null_count():
        row = int(values.is_null().arg_true()[0])
        raise TableError(f"column {column.name!r}, row {row + 1}: {column[row]!r} is not a number")
    infinite = values.is_infinite()
    if infinite.any():
        raise TableError(f"the target {column.name!r} is infinite in row {int(infinite.arg_true()[0]) + 1}")
    huge = values.abs() > LARGEST
    if huge.any():
        row = int(huge.arg_true()[0])
        raise TableError(
            f"the target {column.name!r}, row {row + 1}: {values[row]:g} is too large to compute with; rescale it"
        )
    return values.to_numpy().copy()


def _cast(column: pl.Series) -> pl.Series:
    text = column if column.dtype.is_numeric() else column.cast(pl.String).str.strip_chars()
    return text.cast(pl.Float64, strict=False)


def _first_fraction(numbers: pl.Series) -> float:
    return float(numbers.filter(numbers % 1 != 0)[0])
