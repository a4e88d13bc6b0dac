"""A table looked through before its rows are split: the target, the kind of each column, and all that is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from widefit.data.columns import kind_of, missing, read_as, refuse_broken_numbers, refuse_many
from widefit.data.features import Feature, missing_message, refuse_duplicates
from widefit.data.target import Target, learn_target
from widefit.data.words import Refusals, TableError, listing

DROPPED = "dropped as asked"
_ROW_NUMBERS = ("", "index", "Unnamed: 0", "__index_level_0__", "rownames")


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
    many_allowed: bool = False,
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
    many_allowed
        Whether a column may have more than `MAX_CATEGORIES` of them, if only they repeat.
    doubts
        Columns that could be read in two ways, each with the question.

    Raises
    ------
    TableError
        Everything that is wrong with it, at once: what `learn_target` raises, unknown names in `drop`, missing values,
        infinite values, a category per row, columns in doubt.
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
    features, left_out = _features(candidates, frame.columns[0], doubts, refusals, many_allowed)
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
    columns: Sequence[pl.Series], first: str, doubts: Mapping[str, str], refusals: Refusals, many_allowed: bool
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
            features.append(_feature(column, gaps, many_allowed))
    return features, left_out


def _feature(values: pl.Series, gaps: pl.Series, many_allowed: bool) -> Feature:
    kind = kind_of(values)
    if values.dtype == pl.String:
        refuse_broken_numbers(values, gaps)
    found = read_as(kind, values, gaps)
    if isinstance(found, pl.Series):
        refuse_many(found, many_allowed)
    return Feature(values.name, kind, found, gaps)


def _numbers_rows(values: np.ndarray) -> bool:
    n = len(values)
    if n < 20 or np.isnan(values).any() or (values % 1 != 0).any() or len(np.unique(values)) < n:
        return False
    return bool(values.max() - values.min() == n - 1 or (np.diff(values) > 0).all())
