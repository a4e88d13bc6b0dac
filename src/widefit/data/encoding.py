"""From a table to a matrix of numbers, the same way in training and afterwards."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Float64

from widefit.data.columns import Column, missing
from widefit.data.reading import Reading
from widefit.data.survey import DROPPED, Survey, missing_message, refuse_duplicates, survey
from widefit.data.target import Target
from widefit.data.words import Refusals, TableError, listing, plural
from widefit.records import FileError, read


@dataclass(frozen=True)
class TableEncoding:
    """Knowledge of training about the columns of a table. Immutable; travels in a model file as JSON.

    Attributes
    ----------
    target
        The target column and its meaning.
    columns
        The feature columns in order.
    left_out
        Columns that were not used, each with the reason.
    decimal
        The decimal mark of the training table where that was text and showed it, otherwise "".
    na_values
        What the user said stands for missing values.
    """

    target: Target
    columns: tuple[Column, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    decimal: str = ""
    na_values: tuple[str, ...] = ()

    @classmethod
    def learn(
        cls,
        frame: pl.DataFrame,
        target: Target | str,
        *,
        task: str | None = None,
        drop: Sequence[str] = (),
        impute: bool = False,
        indicate: bool = False,
        rows: np.ndarray | None = None,
        doubts: Mapping[str, str] | None = None,
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
        indicate
            Take missing values as information: a missing category is a category of its own, and a column of numbers or
            booleans with gaps gets a 0/1 column that says where they are, beside what `impute` fills in.
        rows
            Indices of the training rows, from which categories, fills and constant columns are learnt; None: all rows.
        doubts
            Columns that could be read in two ways, each with the question.

        Raises
        ------
        TableError
            What `survey` raises, and no feature left.
        """
        found = survey(frame, target, task=task, drop=drop, gaps_allowed=impute or indicate, doubts=doubts)
        return cls.of(found, impute=impute, indicate=indicate, rows=rows)

    @classmethod
    def of(
        cls, found: Survey, *, impute: bool = False, indicate: bool = False, rows: np.ndarray | None = None
    ) -> "TableEncoding":
        """Learn from a table that was surveyed; the parameters are those of `learn`.

        Raises
        ------
        TableError
            No feature is left.
        """
        columns: list[Column] = []
        left_out = list(found.left_out)
        for feature in found.features:
            column = feature.learn(rows, impute=impute or indicate, indicate=indicate)
            if column is None:
                left_out.append((feature.name, "it is constant in the training rows"))
            else:
                columns.append(column)
        # Those that the user dropped first, the others in the order of the table.
        left_out.sort(key=lambda entry: -1 if entry[1] == DROPPED else found.names.index(entry[0]))
        if not columns:
            reasons = "; ".join(f"{name!r}: {why}" for name, why in left_out)
            raise TableError(f"no feature column is left: {reasons or f'the table has only {found.target.name!r}'}")
        return cls(found.target, tuple(columns), tuple(left_out))

    @classmethod
    def of_numbers(cls, names: Sequence[str], target: Target) -> "TableEncoding":
        """Return the encoding of a model that was fitted in Python to columns of numbers with these names."""
        return cls(target, tuple(Column(name, "number") for name in names))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of the encoded matrix."""
        return tuple(name for column in self.columns for name in column.names)

    def reading(self, asked: Reading, truth: str | None = None) -> Reading:
        """Instructions for another table of the same columns.

        Parameters
        ----------
        asked
            What the user says about that table.
        truth
            The column of the target in it, where that is not the one of training.
        """
        kinds = {column.name: column.kind for column in self.columns}
        kinds[truth or self.target.name] = self.target.kind
        marks = (*self.na_values, *asked.na_values)
        return replace(asked, kinds=kinds, usual_decimal=self.decimal, na_values=marks)

    def encode(self, frame: pl.DataFrame, *, absent_is_zero: bool = False) -> Float64[np.ndarray, "n d"]:
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
            Absent columns, missing values in a column that had none in training, infinite values, values of another
            kind than in training: all at once.
        """
        refuse_duplicates(frame.columns)
        self._refuse_absent(frame, absent_is_zero)
        refusals = Refusals()
        absent: dict[str, pl.Series] = {}
        read: dict[str, tuple[np.ndarray | pl.Series, pl.Series]] = {}
        for column in self.columns:
            if column.name in frame.columns:
                values = frame[column.name]
                gaps = missing(values)
                if gaps.any() and not column.takes_gaps:
                    absent[column.name] = gaps
                with refusals.collected():
                    read[column.name] = (column.read(values, gaps), gaps)
        if absent:
            advice = "; fill them in, or train with --impute to have the model do it"
            refusals.messages.append(missing_message(absent, advice))
        refusals.raise_any()
        return self._matrix(read, frame.height)

    def encode_survey(self, found: Survey) -> Float64[np.ndarray, "n d"]:
        """The features of the surveyed table as numbers, shape (n, number of `feature_names`), without another look.

        The same matrix as of `encode`, and the same warnings.
        """
        read = {feature.name: (feature.values, feature.gaps) for feature in found.features}
        return self._matrix(read, len(found.features[0].gaps))

    def _matrix(self, read: Mapping[str, tuple[np.ndarray | pl.Series, pl.Series]], n: int) -> np.ndarray:
        """Columns that were read, side by side; zeros for those that are not there."""
        out = np.zeros((n, sum(column.width for column in self.columns)))
        start = 0
        for column in self.columns:
            stop = start + column.width
            if column.name in read:
                values, gaps = read[column.name]
                _warn_of_unseen(column, column.write(values, gaps, out[:, start:stop]))
            start = stop
        return out

    def _refuse_absent(self, frame: pl.DataFrame, absent_is_zero: bool) -> None:
        lacking = [column.name for column in self.columns if column.name not in frame.columns]
        if lacking and not absent_is_zero:
            raise TableError(
                f"{plural(len(lacking), 'column')} of the training table {'is' if len(lacking) == 1 else 'are'} not in "
                f"this one: {listing(lacking)}"
            )

    def to_dict(self) -> dict:
        """Plain Python values, ready for JSON."""
        record = {
            "target": self.target.to_dict(),
            "columns": [column.to_dict() for column in self.columns],
            "left_out": [list(pair) for pair in self.left_out],
        }
        return record | {"decimal": self.decimal, "na_values": list(self.na_values)}

    @classmethod
    def from_dict(cls, record: dict) -> "TableEncoding":
        """The inverse of `to_dict`; files of version 0.1 say nothing about decimal marks and missing values.

        Raises
        ------
        FileError
            The record is not one of `to_dict`.
        """
        found = read(cls, record, "the encoding")
        if found.target.task == "classification" and len(found.target.labels) < 2:
            raise FileError("the encoding has a target of less than two classes")
        for column in found.columns:
            column.checked()
        return found


def _warn_of_unseen(column: Column, unseen: Sequence[str]) -> None:
    if unseen:
        warnings.warn(
            f"column {column.name!r} has {plural(len(unseen), 'value')} that training did not see "
            f"({listing(unseen, 3)}); treated as none of its categories",
            stacklevel=4,
        )
