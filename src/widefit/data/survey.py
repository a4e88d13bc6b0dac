"""A table looked through before its rows are split: the target, the kind of each column, and all that is wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from widefit.data.columns import Column, Kind, as_text, kind_of, missing, read_numbers, refuse_many
from widefit.data.target import Target, learn_target
from widefit.data.words import Refusals, TableError, listing, plural

DROPPED = "dropped as asked"
_ROW_NUMBERS = ("", "index", "Unnamed: 0", "__index_level_0__", "rownames")


@dataclass(frozen=True)
class Feature:
    """A column that can be a feature, read as its kind.

    Attributes
    ----------
    name, kind
        The column and its kind.
    values
        float64 with NaN where missing, shape (n,), for numbers and booleans; text with null where missing for
        categories.
    gaps
        True where a value is missing.
    """

    name: str
    kind: Kind
    values: np.ndarray | pl.Series
    gaps: pl.Series

    def learn(self, rows: np.ndarray | None, *, impute: bool, indicate: bool) -> Column | None:
        """The column as the training rows show it, or None where they hold a single value."""
        # Every column gets a fill, so that a gap that first shows up in new data is filled as well.
        indicator = indicate and bool(self.gaps.any())
        fill: float | str | None = None
        if isinstance(self.values, pl.Series):
            text = (self.values if rows is None else self.values[rows]).drop_nulls()
            categories = tuple(text.unique().sort().to_list())
            if impute and len(text) and not indicator:
                fill = text.mode().sort()[0]
            column = Column(self.name, self.kind, categories, fill, indicator)
            return column if len(categories) > 1 or (categories and indicator) else None
        numbers = self.values if rows is None else self.values[rows]
        numbers = numbers[~np.isnan(numbers)]
        distinct, counts = np.unique(numbers, return_counts=True)
        if impute and len(numbers):
            fill = float(np.median(numbers) if self.kind == "number" else distinct[counts.argmax()])
        column = Column(self.name, self.kind, (), fill, indicator)
        return column if len(distinct) > 1 or (len(distinct) and indicator) else None


@dataclass(frozen=True)
class Survey:
    """A table looked through once.

    Attributes
    ----------
    target
        The target column and its meaning.
    features
        The columns that can be features, in order.
    left_out
        Columns that cannot be used and those that were not wanted, each with the reason.
    names
        All columns in the order of the table.
    """

    target: Target
    features: tuple[Feature, ...]
    left_out: tuple[tuple[str, str], ...]
    names: tuple[str, ...]

    @property
    def gaps(self) -> int:
        """The count of missing values."""
        return sum(int(feature.gaps.sum()) for feature in self.features)

    @property
    def numberings(self) -> tuple[str, ...]:
        """Columns that look like identifiers: a different whole number in every row, rising or without gaps."""
        return tuple(
            feature.name
            for feature in self.features
            if feature.kind == "number" and isinstance(feature.values, np.ndarray) and _numbers_rows(feature.values)
        )


def survey(
    frame: pl.DataFrame,
    target: Target | str,
    *,
    task: str | None = None,
    drop: Sequence[str] = (),
    gaps_allowed: bool = False,
    doubts: Mapping[str, str] | None = None,
) -> Survey:
    """Look through all rows of a table, so that errors name rows of the table as it is.

    Parameters
    ----------
    frame
        The table.
    target
        The target column, by name or as `learn_target` described it.
    task
        "regression" or "classification" where `target` is a name; None decides from the values.
    drop
        Columns to leave out.
    gaps_allowed
        Whether features may have missing values.
    doubts
        Columns that could be read in two ways, each with the question.

    Raises
    ------
    TableError
        Everything that is wrong with it, at once: what `learn_target` raises, unknown names in `drop`, missing values,
        infinite values, dates, a category per row, columns in doubt.
    """
    refuse_duplicates(frame.columns)
    name = target if isinstance(target, str) else target.name
    refusals = Refusals()
    doubts = doubts or {}
    with refusals.collected():
        _refuse_drop(frame, name, drop)
    with refusals.collected():
        if name in doubts:
            raise TableError(doubts[name])
        target = learn_target(frame, target, task) if isinstance(target, str) else target
    candidates = [column for column in frame if column.name != name and column.name not in drop]
    features, left_out = _features(candidates, frame.columns[0], doubts, refusals)
    absent = {feature.name: feature.gaps for feature in features if feature.gaps.any()}
    if absent and not gaps_allowed:
        refusals.messages.append(
            missing_message(
                absent,
                "; use --impute to fill them in, --missing-indicator to learn from them too, or leave the columns out "
                "with --drop",
            )
        )
    refusals.raise_any()
    assert isinstance(target, Target)
    return Survey(target, tuple(features), (*((dropped, DROPPED) for dropped in drop), *left_out), tuple(frame.columns))


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


def _refuse_drop(frame: pl.DataFrame, target: str, drop: Sequence[str]) -> None:
    unknown = [name for name in drop if name not in frame.columns]
    if unknown:
        raise TableError(f"there is no column {listing(unknown)} to drop; the columns are {listing(frame.columns)}")
    if target in drop:
        raise TableError(f"the target {target!r} cannot be dropped")


def _unusable(values: pl.Series, gaps: pl.Series, *, first: bool) -> str:
    """The reason for leaving a column out before it is looked at, or ""."""
    if not values.name.strip():
        return "it has no name (row numbers?)"
    if gaps.all():
        return "it is empty"
    if first and values.name in _ROW_NUMBERS and values.dtype.is_integer():
        numbers = values.to_numpy()
        if len(numbers) > 1 and numbers[0] in (0, 1) and (np.diff(numbers) == 1).all():
            return "it numbers the rows"
    return ""


def _features(
    columns: Sequence[pl.Series], first: str, doubts: Mapping[str, str], refusals: Refusals
) -> tuple[list[Feature], list[tuple[str, str]]]:
    """The columns that can be features, and the others, each with the reason; `first` is the first of the table."""
    features: list[Feature] = []
    left_out: list[tuple[str, str]] = []
    for column in columns:
        gaps = missing(column)
        if reason := _unusable(column, gaps, first=column.name == first):
            left_out.append((column.name, reason))
            continue
        with refusals.collected():
            if column.name in doubts:
                raise TableError(doubts[column.name])
            features.append(_feature(column, gaps))
    return features, left_out


def _feature(values: pl.Series, gaps: pl.Series) -> Feature:
    kind = kind_of(values, gaps)
    if kind != "category":
        return Feature(values.name, kind, read_numbers(values, gaps, kind), gaps)
    text = as_text(values, gaps)
    refuse_many(text)
    return Feature(values.name, kind, text, gaps)


def _numbers_rows(values: np.ndarray) -> bool:
    n = len(values)
    if n < 20 or np.isnan(values).any() or (values % 1 != 0).any() or len(np.unique(values)) < n:
        return False
    return bool(values.max() - values.min() == n - 1 or (np.diff(values) > 0).all())
