"""From a table to a matrix of numbers, the same way in training and afterwards."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from widefit.data.columns import Column, as_numbers, as_text, kind_of, learn_categories, missing
from widefit.data.table import TableError, listing, plural
from widefit.data.target import Target, learn_target
from widefit.records import FileError, read


@dataclass(frozen=True)
class TableEncoding:
    """What training learnt about the columns of a table. Immutable; travels in a model file as JSON.

    Attributes
    ----------
    target
        The target column and its meaning.
    columns
        The feature columns in order.
    left_out
        Columns that were not used, each with the reason.
    """

    target: Target
    columns: tuple[Column, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @classmethod
    def learn(
        cls,
        frame: pl.DataFrame,
        target: Target | str,
        *,
        task: str | None = None,
        drop: Sequence[str] = (),
        impute: bool = False,
        rows: np.ndarray | None = None,
    ) -> "TableEncoding":
        """Learn the encoding of a table.

        Parameters
        ----------
        frame
            All rows at hand; every value is checked, so that errors name rows of the table as it is.
        target
            The target column, by name or as `learn_target` described it.
        task
            "regression" or "classification" where `target` is a name; None decides from the values.
        drop
            Columns to leave out.
        impute
            Fill missing numbers by the median and missing categories and booleans by the most frequent value.
        rows
            Indices of the training rows, from which categories, fills and constant columns are learnt; None: all rows.

        Raises
        ------
        TableError
            Missing values without `impute`, infinite values, dates, a category per row, unknown names in `drop`,
            no feature left; what `learn_target` raises.
        """
        _refuse_duplicates(frame.columns)
        if isinstance(target, str):
            target = learn_target(frame, target, task)
        unknown = [name for name in drop if name not in frame.columns]
        if unknown:
            raise TableError(f"there is no column {listing(unknown)} to drop; the columns are {listing(frame.columns)}")
        if target.name in drop:
            raise TableError(f"the target {target.name!r} cannot be dropped")
        names = [name for name in frame.columns if name != target.name and name not in drop]
        columns: list[Column] = []
        left_out: list[tuple[str, str]] = [(name, "dropped as asked") for name in drop]
        absent: dict[str, pl.Series] = {}
        for name in names:
            values = frame[name]
            gaps = missing(values)
            if not name.strip():
                left_out.append((name, "it has no name (row numbers?)"))
            elif gaps.all():
                left_out.append((name, "it is empty"))
            else:
                if gaps.any():
                    absent[name] = gaps
                column = _learn_column(values, gaps, impute, rows)
                if column is None:
                    left_out.append((name, "it is constant in the training rows"))
                else:
                    columns.append(column)
        if absent and not impute:
            raise TableError(
                _missing_message(absent, "; use --impute to fill them in, or leave the columns out with --drop")
            )
        if not columns:
            raise TableError(
                "no feature column is left: "
                + ("; ".join(f"{name!r}: {why}" for name, why in left_out) or f"the table has only {target.name!r}")
            )
        return cls(target, tuple(columns), tuple(left_out))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of the encoded matrix."""
        return tuple(name for column in self.columns for name in column.names)

    def encode(self, frame: pl.DataFrame, *, absent_is_zero: bool = False) -> np.ndarray:
        """The features as numbers.

        Parameters
        ----------
        frame
            A table with the columns of training, in any order; others are ignored.
        absent_is_zero
            Read a column that is not there as zeros (sparse formats) instead of refusing.

        Returns
        -------
        float64, shape (n, number of `feature_names`). A category that training did not see is all zeros, with a
        UserWarning that names column and value.

        Raises
        ------
        TableError
            Absent columns, missing values in a column that had none in training, infinite values, text for numbers.
        """
        _refuse_duplicates(frame.columns)
        lacking = [column.name for column in self.columns if column.name not in frame.columns]
        if lacking and not absent_is_zero:
            raise TableError(
                f"{plural(len(lacking), 'column')} of the training table {'is' if len(lacking) == 1 else 'are'} not in "
                f"this one: {listing(lacking)}"
            )
        self._refuse_gaps(frame)
        out = np.zeros((frame.height, sum(column.width for column in self.columns)))
        start = 0
        for column in self.columns:
            stop = start + column.width
            if column.name in frame.columns:
                values = frame[column.name]
                gaps = missing(values)
                unseen = column.encode(_filled(values, gaps, column.fill), out[:, start:stop])
                if unseen:
                    warnings.warn(
                        f"column {column.name!r} has {plural(len(unseen), 'value')} that training did not see "
                        f"({listing(unseen, 3)}); treated as none of its categories",
                        stacklevel=2,
                    )
            start = stop
        return out

    def _refuse_gaps(self, frame: pl.DataFrame) -> None:
        absent = {
            column.name: gaps
            for column in self.columns
            if column.fill is None and column.name in frame.columns and (gaps := missing(frame[column.name])).any()
        }
        if absent:
            raise TableError(_missing_message(absent, "; fill them in, or train with --impute to have the model do it"))

    def to_dict(self) -> dict:
        """Plain Python values, ready for JSON."""
        return {
            "target": self.target.to_dict(),
            "columns": [column.to_dict() for column in self.columns],
            "left_out": [list(pair) for pair in self.left_out],
        }

    @classmethod
    def from_dict(cls, record: dict) -> "TableEncoding":
        """The inverse of `to_dict`.

        Raises
        ------
        FileError
            The record is not one of `to_dict`.
        """
        found = read(cls, record, "the encoding")
        if found.target.task == "classification" and len(found.target.labels) < 2:
            raise FileError("the encoding has a target of less than two classes")
        return found


def _learn_column(values: pl.Series, gaps: pl.Series, impute: bool, rows: np.ndarray | None) -> Column | None:
    """The column, or None when the training rows hold a single value."""
    kind = kind_of(values)
    present = values.filter(~gaps)
    if kind == "number":
        _finite(values, gaps)
    if kind == "category":
        learn_categories(present)
    training, training_gaps = (values, gaps) if rows is None else (values[rows], gaps[rows])
    present = training.filter(~training_gaps)
    if not len(present):
        return None
    # Every column gets a fill with --impute, so that a gap that first shows up in new data is filled as well.
    fill: float | str | None = None
    if kind == "category":
        text = as_text(present)
        fill = text.mode().sort()[0] if impute else None
        categories = tuple(text.unique().sort().to_list())
        return Column(values.name, kind, categories, fill) if len(categories) > 1 else None
    if impute and kind == "number":
        fill = float(np.median(as_numbers(present)))
    elif impute:
        fill = float(present.mode().sort()[0])
    return Column(values.name, kind, (), fill) if present.n_unique() > 1 else None


def _finite(values: pl.Series, gaps: pl.Series) -> None:
    as_numbers(_filled(values, gaps, 0.0))


def _filled(values: pl.Series, gaps: pl.Series, fill: float | str | None) -> pl.Series:
    if fill is None or not gaps.any():
        return values
    if isinstance(fill, str):
        text = as_text(values)
        return text.zip_with(~gaps, pl.Series(values.name, [fill] * len(values)))
    if values.dtype == pl.String:
        return values.zip_with(~gaps, pl.Series(values.name, [str(fill)] * len(values)))
    return values.cast(pl.Float64).zip_with(~gaps, pl.Series(values.name, np.full(len(values), fill)))


def _missing_message(absent: dict[str, pl.Series], advice: str) -> str:
    parts = [
        f"column {name!r} has {plural(int(gaps.sum()), 'missing value')} (first in row {int(gaps.arg_true()[0]) + 1})"
        for name, gaps in list(absent.items())[:5]
    ]
    rest = len(absent) - len(parts)
    return "; ".join(parts) + (f"; so do {rest} more columns" if rest > 0 else "") + advice


def _refuse_duplicates(columns: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise TableError(f"several columns are called {listing(repeated)}; give each a name of its own")
