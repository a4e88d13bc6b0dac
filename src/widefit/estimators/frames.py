"""Tables whose columns are not all finite numbers: data frames, text, and arrays with gaps or with categories."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from widefit.data.columns import kind_of, missing, read_as
from widefit.data.effects import Outcomes
from widefit.data.features import Feature, FeatureEncoding
from widefit.data.words import Refusals, TableError, listing
from widefit.estimators.arrays import is_gap, text_or_numbers

# How categories are asked for: by "auto", by nobody, or one by one.
Categorical = Any


def positional(count: int) -> list[str]:
    """Return names for columns that have none."""
    return [f"x{place}" for place in range(count)]


def frame_of(X: Any) -> pl.DataFrame:
    """Return a pandas or polars frame or a matrix as a polars frame; columns without names of text get those of places.

    Raises
    ------
    ValueError
        Names that occur twice, a table that is not one, other than two dimensions.
    """
    if isinstance(X, pl.DataFrame):
        return X
    if isinstance(X, np.ndarray):
        if X.ndim != 2:
            raise ValueError(f"X must have shape (n, d), got {X.shape}; reshape a single row with X[None]")
        return pl.DataFrame([_column(name, X[:, j]) for j, name in enumerate(positional(X.shape[1]))])
    if not hasattr(X, "iloc"):
        raise ValueError(f"X must be a data frame of pandas or polars, an array or a matrix, got {type(X).__name__}")
    names = list(X.columns)
    if len(set(names)) < len(names):
        raise ValueError(f"columns of X must have names of their own, got {listing(names)}")
    if not all(isinstance(name, str) for name in names):
        names = positional(len(names))
    return pl.DataFrame([_of_pandas(name, X.iloc[:, j]) for j, name in enumerate(names)])


def read_features(frame: pl.DataFrame, categorical_features: Categorical) -> tuple[Feature, ...]:
    """Read the columns of a table that training sees first.

    Parameters
    ----------
    frame
        Of `frame_of`.
    categorical_features
        "auto": text and categories; None: no column; or names, places or a mask of columns, whatever they hold.

    Raises
    ------
    ValueError
        Columns that are not there, text that is not among the categories, nested types, infinite numbers.
    """
    automatic = isinstance(categorical_features, str) and categorical_features == "auto"
    asked = None if automatic else _asked(frame.columns, categorical_features)
    refusals = Refusals()
    found: list[Feature] = []
    for values in frame:
        gaps = missing(values)
        with refusals.collected():
            kind = "number" if values.dtype == pl.Null else kind_of(values)
            if asked is not None and values.name in asked:
                kind = "category"
            elif asked is not None and kind == "category":
                raise TableError(
                    f"column {values.name!r} holds text, and categorical_features does not name it; name it there, "
                    'give "auto", or leave the column out'
                )
            found.append(Feature(values.name, kind, read_as(kind, _plain(values, kind), gaps), gaps))
    refusals.raise_any()
    return tuple(found)


def learn_encoding(features: tuple[Feature, ...], outcomes: Outcomes) -> FeatureEncoding:
    """Learn how the columns become numbers: gaps are filled, those of columns that have some are told as well."""
    columns = [feature.learn(impute=True, indicate=True, outcomes=outcomes) for feature in features]
    return FeatureEncoding(tuple(columns))


def in_order(frame: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Return a table with its columns in the order of training, where it has exactly these."""
    return frame.select(names) if set(frame.columns) == set(names) else frame


def _asked(names: list[str], wanted: Categorical) -> set[str]:
    """Return the names of the columns that are to be categories."""
    if wanted is None:
        return set()
    array = np.asarray(wanted)
    if array.ndim != 1 or array.dtype.kind not in "biuUO":
        _refuse_wanted(wanted, "names, places or a mask of columns")
    if array.dtype.kind == "b":
        if array.size != len(names):
            _refuse_wanted(wanted, f"a mask of {len(names)} columns")
        return {name for name, yes in zip(names, array.tolist(), strict=True) if yes}
    if array.dtype.kind in "iu":
        if array.size and not (-len(names) <= array.min() and array.max() < len(names)):
            _refuse_wanted(wanted, f"places of {len(names)} columns")
        return {names[place] for place in array.tolist()}
    unknown = [name for name in array.tolist() if name not in names]
    if unknown:
        _refuse_wanted(wanted, f"columns of X ({listing(unknown)} is none of {listing(names)})")
    return set(array.tolist())


def _refuse_wanted(wanted: Categorical, what: str) -> None:
    raise ValueError(f'categorical_features must be "auto", None, or {what}, got {wanted!r}')


def _plain(values: pl.Series, kind: str) -> pl.Series:
    """Return dates and other values that have been asked for as categories as text."""
    return values.cast(pl.String) if kind == "category" and values.dtype.is_temporal() else values


def _column(name: str, values: np.ndarray) -> pl.Series:
    """Return a column of a matrix."""
    if values.dtype.kind == "U":
        values = text_or_numbers(values)
    if values.dtype.kind == "O":
        return _objects(name, values.tolist())
    return pl.Series(name, values.tolist() if values.dtype.kind == "U" else np.ascontiguousarray(values))


def _of_pandas(name: str, values: Any) -> pl.Series:
    """Return a column of a pandas frame; pyarrow is not asked for."""
    kind = type(values.dtype).__name__
    if kind == "CategoricalDtype":
        codes = pl.Series(values.cat.codes.to_numpy().astype(np.int64))
        text = read_as("category", labels := _objects(name, values.cat.categories.tolist()), missing(labels))
        assert isinstance(text, pl.Series)
        return text.gather(codes.set(codes < 0, None)).cast(pl.Categorical).alias(name)
    if kind == "PeriodDtype":
        values = values.dt.to_timestamp()
    elif kind == "DatetimeTZDtype":
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)
    dtype = values.to_numpy().dtype if values.dtype.kind in "mM" else values.dtype
    if dtype.kind in "mM":
        return pl.Series(name, values.to_numpy().astype(f"{dtype.kind}8[us]"))
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        return pl.Series(name, np.ascontiguousarray(values.to_numpy()))
    if dtype.kind in "iu":
        whole = values.fillna(0).to_numpy(dtype=np.int64 if dtype.kind == "i" else np.uint64)
        return pl.Series(name, whole).set(pl.Series(values.isna().to_numpy()), None)
    if dtype.kind == "f":
        return pl.Series(name, values.to_numpy(dtype=np.float64, na_value=np.nan))
    return _objects(name, values.tolist())


_KINDS: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((bool, np.bool_), bool),
    ((int, np.integer), int),
    ((int, float, np.number), float),
    (str, str),
)


def _objects(name: str, values: list[Any]) -> pl.Series:
    """Return Python objects as a column: of one kind as that, of several as text.

    Raises
    ------
    TableError
        Objects that are neither numbers nor text nor dates.
    """
    known = [None if is_gap(value) else value for value in values]
    present = [value for value in known if value is not None]
    for types, convert in _KINDS:
        if present and all(isinstance(value, types) for value in present):
            try:
                found = pl.Series(name, [None if value is None else convert(value) for value in known])
            except (OverflowError, TypeError, pl.exceptions.PolarsError):
                # Integers too long for polars: the next kind has them as floating-point numbers.
                continue
            return found.cast(pl.Float64) if found.dtype == pl.Int128 else found
    if all(isinstance(value, bool | int | float | str | np.generic) for value in present):
        return pl.Series(name, [None if value is None else str(value) for value in known], dtype=pl.String)
    try:
        found = pl.Series(name, known)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise TableError(f"column {name!r} holds objects that are neither numbers nor text nor dates") from error
    if found.dtype == pl.Object:
        raise TableError(f"column {name!r} holds {type(present[0]).__name__} objects, neither numbers nor text")
    return found
