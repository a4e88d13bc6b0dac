"""Feature columns of a table: read once, and turned into a matrix the same way in training and afterwards."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64, Int

from widefit.data.columns import MOST_INDICATORS, Column, Kind, missing
from widefit.data.effects import Outcomes, effects, out_of_fold
from widefit.data.moments import varying_parts
from widefit.data.words import Refusals, TableError, listing, plural
from widefit.records import FileError, read


@dataclass(frozen=True)
class Feature:
    """A column that can be a feature, read as its kind.

    Attributes
    ----------
    name, kind
        The column and its kind.
    values
        float64 with NaN where missing, shape (n,); text with null where missing for categories.
    gaps
        True where a value is missing.
    """

    name: str
    kind: Kind
    values: np.ndarray | pl.Series
    gaps: pl.Series

    def learn(
        self, rows: np.ndarray | None = None, *, impute: bool, indicate: bool, outcomes: Outcomes | None = None
    ) -> Column:
        """Learn the column from the training rows.

        Parameters
        ----------
        rows
            Indices of the training rows; None: all rows.
        impute, indicate
            As for `TableEncoding.learn`.
        outcomes
            Targets of those rows: of more than `MOST_INDICATORS` categories the effects are learnt. None: 0/1 columns
            for any number of them.
        """
        # Every column gets a fill, so that a gap that first shows up in new data is filled as well.
        indicator = indicate and bool(self.gaps.any())
        if isinstance(self.values, pl.Series):
            every = self.values if rows is None else self.values[rows]
            text = every.drop_nulls()
            fill = text.mode().sort()[0] if impute and len(text) and not indicator else None
            column = Column(self.name, self.kind, tuple(text.unique().sort().to_list()), fill, indicator)
            if outcomes is None or len(column.categories) <= MOST_INDICATORS:
                return column
            found = effects(column.codes(every), outcomes, len(column.categories))
            return replace(column, effects=tuple(map(tuple, found.tolist())))
        numbers = self.values if rows is None else self.values[rows]
        numbers = numbers[~np.isnan(numbers)]
        column = Column(self.name, self.kind, (), None, indicator)
        if self.kind in ("moment", "time"):
            column = replace(column, parts=varying_parts(numbers) if numbers.size else ("days",))
        if not impute:
            return column
        if not numbers.size:
            return replace(column, fill=0.0)
        distinct, counts = np.unique(numbers, return_counts=True)
        return replace(column, fill=float(distinct[counts.argmax()] if self.kind == "boolean" else np.median(numbers)))

    def varies(self, rows: np.ndarray | None, indicator: bool) -> bool:
        """Return True where the training rows hold several values, or one and gaps that an indicator tells."""
        values = self.values if rows is None else self.values[rows]
        known = values.drop_nulls().to_numpy() if isinstance(values, pl.Series) else values[~np.isnan(values)]
        distinct = np.unique(known).size
        return distinct > 1 or (distinct == 1 and indicator)


@dataclass(frozen=True)
class FeatureEncoding:
    """Knowledge of training about feature columns. Immutable; travels in a model file as JSON.

    Attributes
    ----------
    columns
        The columns in order.
    """

    columns: tuple[Column, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of the encoded matrix."""
        return tuple(name for column in self.columns for name in column.names)

    @property
    def sources(self) -> Int[np.ndarray, " width"]:
        """The place among `columns` of the column that each number of a row comes from."""
        return np.repeat(np.arange(len(self.columns)), [column.width for column in self.columns])

    def read(self, frame: pl.DataFrame, *, absent_is_zero: bool = False) -> tuple[Feature, ...]:
        """Read the columns of another table as training read its own.

        Parameters
        ----------
        frame
            A table with the columns of training, in any order; others are ignored.
        absent_is_zero
            Leave a column that is not there out instead of refusing (sparse formats).

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
        found: list[Feature] = []
        for column in self.columns:
            if column.name in frame.columns:
                values = frame[column.name]
                gaps = missing(values)
                if gaps.any() and not column.takes_gaps:
                    absent[column.name] = gaps
                with refusals.collected():
                    found.append(Feature(column.name, column.kind, column.read(values, gaps), gaps))
        if absent:
            advice = "; fill them in, or train with --impute to have the model do it"
            refusals.messages.append(missing_message(absent, advice))
        refusals.raise_any()
        return tuple(found)

    def encode(self, frame: pl.DataFrame, *, absent_is_zero: bool = False) -> Float64[np.ndarray, "n d"]:
        """The features as numbers.

        Parameters
        ----------
        frame, absent_is_zero
            As for `read`; a column that is not there is one of zeros.

        Returns
        -------
        float64, shape (n, number of `feature_names`). A category that training did not see is all zeros, with a
        UserWarning that names column and value, or has the effect of none.

        Raises
        ------
        TableError
            What `read` raises.
        """
        return self.matrix(self.read(frame, absent_is_zero=absent_is_zero), frame.height)

    def matrix(self, features: Sequence[Feature], samples: int) -> Float64[np.ndarray, "n d"]:
        """Columns that were read, side by side; zeros for those that are not there."""
        read = {feature.name: feature for feature in features}
        out = np.zeros((samples, sum(column.width for column in self.columns)))
        for column, place in zip(self.columns, self._places(), strict=True):
            if column.name in read:
                feature = read[column.name]
                _warn_of_unseen(column, column.write(feature.values, feature.gaps, out[:, place]))
        return out

    def write_out_of_fold(
        self, features: Sequence[Feature], rows: np.ndarray, outcomes: Outcomes, out: Float64[np.ndarray, "n d"]
    ) -> None:
        """Replace the effects of training rows in their matrix by those that other rows tell.

        Parameters
        ----------
        features
            All columns that were read.
        rows
            Indices of the training rows.
        outcomes
            Their targets.
        out
            The matrix of all rows.
        """
        read = {feature.name: feature for feature in features}
        for column, place in zip(self.columns, self._places(), strict=True):
            if column.effects and column.name in read:
                values = read[column.name].values
                assert isinstance(values, pl.Series)
                found = out_of_fold(column.codes(values[rows]), outcomes, len(column.categories))
                out[rows, place.start : place.start + column.values_width] = found

    def _places(self) -> list[slice]:
        """Return the columns of the matrix that each column becomes."""
        stops = np.cumsum([column.width for column in self.columns]).tolist()
        return [slice(stop - column.width, stop) for column, stop in zip(self.columns, stops, strict=True)]

    def _refuse_absent(self, frame: pl.DataFrame, absent_is_zero: bool) -> None:
        lacking = [column.name for column in self.columns if column.name not in frame.columns]
        if lacking and not absent_is_zero:
            raise TableError(
                f"{plural(len(lacking), 'column')} of the training table {'is' if len(lacking) == 1 else 'are'} not in "
                f"this one: {listing(lacking)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {"columns": [column.to_dict() for column in self.columns]}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "FeatureEncoding":
        """The inverse of `to_dict`.

        Raises
        ------
        FileError
            The record is not one of `to_dict`.
        """
        found = read(cls, record, "the encoding")
        names = [column.checked().name for column in found.columns]
        if len(set(names)) < len(names):
            raise FileError("the encoding has several columns of one name")
        return found


def refuse_duplicates(columns: Sequence[str]) -> None:
    """Refuse several columns of one name."""
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise TableError(f"several columns are called {listing(repeated)}; give each a name of its own")


def missing_message(absent: Mapping[str, pl.Series], advice: str) -> str:
    """The gaps of some columns in a sentence, with the first row of each."""
    parts = [
        f"column {name!r} has {plural(int(gaps.sum()), 'missing value')} (first in row {int(gaps.arg_true()[0]) + 1})"
        for name, gaps in list(absent.items())[:5]
    ]
    rest = len(absent) - len(parts)
    return "; ".join(parts) + (f"; so do {rest} more columns" if rest > 0 else "") + advice


def _warn_of_unseen(column: Column, unseen: Sequence[str]) -> None:
    if unseen:
        warnings.warn(
            f"column {column.name!r} has {plural(len(unseen), 'value')} that training did not see "
            f"({listing(unseen, 3)}); treated as none of its categories",
            stacklevel=4,
        )
