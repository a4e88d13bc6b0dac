"""Data sets by name: the ones bundled with scikit-learn, and those that it fetches."""

from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import numpy as np
import polars as pl

from widefit.data.table import Table
from widefit.data.words import TableError

OPENML_PREFIX = "openml:"


@dataclass(frozen=True)
class BuiltIn:
    """One data set of scikit-learn.

    Attributes
    ----------
    loader
        Name of the function in `sklearn.datasets`.
    target
        What the target column is called here.
    bundled
        False where the first use downloads.
    labels
        True where the target is an index into `target_names`, which become the labels.
    """

    loader: str
    target: str
    bundled: bool = True
    labels: bool = False


BUILT_IN = {
    "digits": BuiltIn("load_digits", "digit"),
    "diabetes": BuiltIn("load_diabetes", "progression"),
    "breast_cancer": BuiltIn("load_breast_cancer", "diagnosis", labels=True),
    "wine": BuiltIn("load_wine", "cultivar", labels=True),
    "iris": BuiltIn("load_iris", "species", labels=True),
    "california_housing": BuiltIn("fetch_california_housing", "median_house_value", bundled=False),
}


def load_built_in(name: str) -> Table:
    """One of `BUILT_IN`.

    Raises
    ------
    TableError
        The set is not bundled and cannot be downloaded.
    """
    from sklearn import datasets

    entry = BUILT_IN[name]
    load: Callable = getattr(datasets, entry.loader)
    if entry.bundled:
        found = load()
    else:
        try:
            found = load(n_retries=2, delay=0.5)
        except (OSError, HTTPException) as error:
            raise TableError(_unreachable(name, error)) from error
    y = found.target
    if entry.labels:
        y = np.asarray([str(label) for label in found.target_names], dtype=object)[y]
    columns = [
        pl.Series(str(feature), np.ascontiguousarray(found.data[:, index]))
        for index, feature in enumerate(found.feature_names)
    ]
    frame = pl.DataFrame([*columns, pl.Series(entry.target, y.tolist())])
    return Table(frame, name, target=entry.target, declares_target=True)


def load_openml(name: str) -> Table:
    """A data set of openml.org by name, `NAME@VERSION` or number, kept in scikit-learn's cache afterwards.

    Raises
    ------
    TableError
        No network, no such set, or one that is not a table of numbers and categories with one target.
    """
    from sklearn import datasets

    fetch: Callable = datasets.fetch_openml

    base, _, version = name.partition("@")
    if not base:
        raise TableError("openml: needs a name or a number after the colon, such as openml:adult")
    which: dict[str, Any] = (
        {"data_id": int(base)}
        if base.isascii() and base.isdecimal()
        else {"name": base, "version": _version(version, name)}
    )
    try:
        found = fetch(**which, as_frame=False, parser="liac-arff", n_retries=2, delay=0.5)
    except (OSError, HTTPException) as error:
        raise TableError(_unreachable(OPENML_PREFIX + name, error)) from error
    except (ValueError, KeyError) as error:  # unknown names, sparse or textual sets, answers without what they promise
        raise TableError(f"{OPENML_PREFIX}{name}: {error}") from error
    if not isinstance(found.data, np.ndarray):
        raise TableError(f"{OPENML_PREFIX}{name} is sparse; download it in svmlight form and give that file")
    if found.target is None or np.ndim(found.target) != 1:
        raise TableError(f"{OPENML_PREFIX}{name} does not have exactly one target column; download it as CSV")
    columns = [
        _openml_column(str(feature), found.data[:, index], (found.categories or {}).get(feature))
        for index, feature in enumerate(found.feature_names)
    ]
    target = str(found.target_names[0])
    columns.append(pl.Series(target, np.asarray(found.target).tolist()))
    return Table(pl.DataFrame(columns), base.replace("/", "_"), target=target, declares_target=True)


def _version(text: str, name: str) -> int | str:
    if not text:
        return "active"
    if not (text.isascii() and text.isdecimal()):
        raise TableError(f"{OPENML_PREFIX}{name}: the version after @ must be a number")
    return int(text)


def _openml_column(name: str, values: np.ndarray, categories: list | None) -> pl.Series:
    if categories is None:
        return pl.Series(name, values.astype(np.float64))
    return pl.Series(name, [None if np.isnan(code) else str(categories[int(code)]) for code in values.astype(float)])


def _unreachable(name: str, error: Exception) -> str:
    offline = ", ".join(known for known, entry in BUILT_IN.items() if entry.bundled)
    reason = str(getattr(error, "reason", error)) or type(error).__name__
    return (
        f"{name} cannot be downloaded ({reason}); without a network use {offline}, "
        "or download it elsewhere and give the file"
    )
