"""Trained estimators in a file."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from widefit.files.container import altered, read_container, write_container
from widefit.records import FileError, read

# Importing it registers the estimators.
_HOME = "widefit.estimators"
_STORABLE: dict[str, Any] = {}

Class = TypeVar("Class", bound=type)


def storable(cls: Class) -> Class:
    """Class decorator: objects of the class can be saved by `to_parts()`, and read by `cls.from_parts()`."""
    _STORABLE[cls.__name__] = cls
    return cls


def save(model: Any, path: str | Path, *, encoding: Mapping[str, Any] | None = None) -> None:
    """Write a fitted estimator to one safetensors file, whole or not at all.

    Parameters
    ----------
    model
        A fitted WideRegressor or WideClassifier.
    path
        Where to; by custom the name ends in .widefit.
    encoding
        `TableEncoding.to_dict()` of the table that the model was trained on, kept beside it; None: the one that the
        model was loaded with, if it was.

    Raises
    ------
    TypeError
        The model is not one of widefit's estimators.
    sklearn.exceptions.NotFittedError
        The model is not fitted.
    OSError
        The folder does not exist or is not writable, or the disk is full.
    """
    known = _storable()
    if type(model) not in known.values():
        raise TypeError(f"model must be a fitted {' or '.join(sorted(known))}, got {type(model).__name__}")
    known_columns = getattr(model, "encoding_", None)
    if encoding is None and known_columns is not None:
        encoding = known_columns.to_dict()
    tensors, document = model.to_parts()
    write_container(path, tensors, {"model": document, "encoding": encoding}, "model")


def load(path: str | Path) -> Any:
    """Return the WideRegressor or WideClassifier in a model file; no code of the file is run.

    A model that was trained in the shell takes data frames of pandas and Polars like the table it was trained on:
    columns are found by name, and text is encoded. Arrays are taken as they are, encoded already.

    Raises
    ------
    FileError
        No such file, or one that is not a model file, truncated, altered, or of a newer version.
    """
    model, record = load_parts(path)
    if record is not None:
        with altered(path):
            model.encoding_ = import_module("widefit.data.encoding").TableEncoding.from_dict(record)
    return model


def load_parts(path: str | Path) -> tuple[Any, dict[str, Any] | None]:
    """Return the estimator of a model file, and the encoding that was saved with it (None without one).

    Raises
    ------
    FileError
        As `load`.
    """
    tensors, document = read_container(path, "model")
    if not isinstance(document.get("model"), dict) or "encoding" not in document:
        raise FileError(f"{path} is a model file without a model")
    with altered(path):
        record = read(dict[str, Any], document["model"], "its model")
        name = read(str, record.get("estimator"), "its estimator")
        encoding = read(dict[str, Any] | None, document["encoding"], "its encoding")
    if name not in _storable():
        raise FileError(f"{path} holds a {name!r}, which this widefit does not know; upgrade widefit")
    with altered(path):
        return _storable()[name].from_parts(tensors, record), encoding


def _storable() -> dict[str, Any]:
    import_module(_HOME)
    return _STORABLE
