"""Trained estimators in a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import widefit
from widefit.files.container import FileError, read_container, write_container

ESTIMATORS = ("WideRegressor", "WideClassifier")


def save(model: Any, path: str | Path, *, encoding: Mapping[str, Any] | None = None) -> None:
    """Write a fitted estimator to one safetensors file, whole or not at all.

    Parameters
    ----------
    model
        A fitted WideRegressor or WideClassifier.
    path
        Where to; by custom the name ends in .widefit.
    encoding
        `TableEncoding.to_dict()` of the table that the model was trained on, kept beside it.

    Raises
    ------
    TypeError
        The model is not one of widefit's estimators.
    sklearn.exceptions.NotFittedError
        The model is not fitted.
    OSError
        The folder does not exist or is not writable, or the disk is full.
    """
    if type(model).__name__ not in ESTIMATORS or not hasattr(model, "to_parts"):
        raise TypeError(f"model must be a fitted {' or '.join(ESTIMATORS)}, got {type(model).__name__}")
    tensors, document = model.to_parts()
    write_container(path, tensors, {"model": document, "encoding": encoding}, "model")


def load(path: str | Path) -> Any:
    """The WideRegressor or WideClassifier in a model file; no code of the file is run.

    Raises
    ------
    FileError
        No such file, or one that is not a model file, truncated, altered, or of a newer version.
    """
    return load_parts(path)[0]


def load_parts(path: str | Path) -> tuple[Any, dict[str, Any] | None]:
    """The estimator of a model file, and the encoding that was saved with it (None without one).

    Raises
    ------
    FileError
        As `load`.
    """
    tensors, document = read_container(path, "model")
    try:
        record = document["model"]
        name = record["estimator"]
        encoding = document["encoding"]
    except (KeyError, TypeError) as error:
        raise FileError(f"{path} is a model file without a model") from error
    if name not in ESTIMATORS:
        raise FileError(f"{path} holds a {name!r}, which this widefit does not know; upgrade widefit")
    return getattr(widefit, name).from_parts(tensors, record), encoding
