"""The work of `widefit predict`, `evaluate` and `info` on a model file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import widefit
from widefit.cli.output import Output, columns, number, size
from widefit.cli.run import scores
from widefit.cli.run.places import refuse_unwritable
from widefit.cli.run.text_folder import TextEncoding, open_folder
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.target import Target
from widefit.data.words import listing, plural
from widefit.files import FileError, load_parts
from widefit.files.atomic import replacing
from widefit.files.container import altered

PREDICTION = "prediction"
TARGET = "target"
SUFFIXES = (".csv", ".tsv", ".parquet")


def predict(model_path: str, data: str, out: Path | None, proba: bool, reading: Reading, output: Output) -> int:
    """Predictions of a table to a file or to standard output; returns the exit code."""
    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--out: {out} must end in .csv, .tsv or .parquet")
    refuse_unwritable({"--out": out}, {"the model": model_path, "the data": data})
    with output.warnings():
        model, encoding = _open(model_path)
        if proba and encoding.target.task == "regression":
            raise ValueError(f"--proba: {model_path} predicts numbers, which have no probabilities")
        table = read_table(data, encoding.reading(reading))
        X = encoding.encode(table.frame, absent_is_zero=table.absent_is_zero)
        series = [pl.Series(PREDICTION, np.asarray(model.predict(X)).tolist())]
        if proba:
            shares = np.asarray(model.predict_proba(X))
            series += [
                pl.Series(f"probability_{label}", shares[:, index])
                for index, label in enumerate(model.classes_.tolist())
            ]
    frame = pl.DataFrame(series)
    if out is not None:
        _write(frame, out)
        output.remark(f"{plural(frame.height, 'prediction')} in {out}")
    elif not output.json:
        output.data(frame.write_csv())
    found = {"file": out} if out is not None else frame.to_dict(as_series=False)
    output.document(
        {"command": "predict", "widefit": widefit.__version__, "target": encoding.target.name, "rows": frame.height}
        | found
    )
    return 0


def evaluate(model_path: str, data: str, target: str | None, reading: Reading, output: Output) -> int:
    """Scores of a model on a table; returns the exit code."""
    with output.warnings():
        model, encoding = _open(model_path)
        table = read_table(data, encoding.reading(reading, truth=target))
        name = encoding.target.name
        truth = target or (name if name in table.frame.columns else table.target or name)
        if truth not in table.frame.columns:
            raise ValueError(
                f"there is no column {truth!r} in {table.name} to compare with; name it with --target (the columns are "
                f"{listing(table.frame.columns)})"
            )
        y = encoding.target.values(table.frame.select(pl.col(truth).alias(name)))
        X = encoding.encode(table.frame, absent_is_zero=table.absent_is_zero)
        metrics = {"model": scores.of_model(model, X, y, encoding.target.task)[0]}
    constant, baseline = scores.of_constant(y, y, encoding.target.task)
    metrics[f"baseline ({constant})"] = baseline
    names = list(baseline)
    results = columns(plural(len(y), "row"), *names)
    for part, values in metrics.items():
        results.add_row(part, *(number(values[metric]) for metric in names))
    output.show(results)
    output.document(
        {
            "command": "evaluate",
            "widefit": widefit.__version__,
            "data": table.name,
            "rows": len(y),
            "target": truth,
            "task": encoding.target.task,
            "metrics": metrics,
        }
    )
    return 0


def describe(model_path: str, output: Output) -> int:
    """The content of a model file in words; returns the exit code."""
    model, record = load_parts(model_path)
    encoding = None if record is None else _encoding(model_path, record)
    history = model.history_
    facts: dict[str, Any] = {
        "file": model_path,
        "size": size(Path(model_path)),
        "estimator": type(model).__name__,
        "parameters": dict(model.get_params()),
        "training loss": history[-1].loss,
        "steps": history[-1].step,
        "stopped": history.stop_reason,
    }
    if encoding is not None:
        facts |= {
            "target": encoding.target.name,
            "task": encoding.target.task,
            "classes": list(encoding.target.labels),
            "columns": [
                {"name": column.name, "kind": column.kind, "categories": list(column.categories), "fill": column.fill}
                for column in encoding.columns
            ],
        }
    rows = columns("", "")
    rows.show_header = False
    rows.columns[1].justify, rows.columns[1].no_wrap = "left", False
    for name, value in facts.items():
        rows.add_row(name.capitalize(), _in_words(value))
    output.show(rows)
    output.document({"command": "info", "widefit": widefit.__version__} | facts)
    return 0


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item!r}" for key, item in value.items())
    if isinstance(value, list):
        names = [f"{item['name']} ({item['kind']})" if isinstance(item, dict) else str(item) for item in value]
        return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "–"
    return number(value) if isinstance(value, float) else str(value)


def _open(model_path: str) -> tuple[Any, TableEncoding | TextEncoding]:
    if Path(model_path).is_dir():
        return open_folder(Path(model_path))
    model, record = load_parts(model_path)
    if record is not None:
        return model, _encoding(model_path, record)
    columns = model.detach_encoding()
    if columns is None:
        raise FileError(
            f"{model_path} was fitted to an array, whose columns have no names; fit the model to a data frame, or open "
            "it with widefit.load and pass arrays"
        )
    if model.target_mean_.size > 1 and not hasattr(model, "classes_"):
        raise FileError(f"{model_path} predicts several columns; open it with widefit.load")
    labels = [_whole(label) for label in getattr(model, "classes_", np.empty(0)).tolist()]
    task = "classification" if labels else "regression"
    # In Python the target has no name; TARGET is the one that a table is most likely to have.
    target = Target(TARGET, task, tuple(labels), "fitted in Python")
    return model, TableEncoding(columns.columns, target=target)


def _whole(label: Any) -> Any:
    """Return a label that is a whole floating-point number as the integer that tables write."""
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _encoding(model_path: str, record: dict[str, Any]) -> TableEncoding:
    with altered(model_path):
        return TableEncoding.from_dict(record)


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Turn the errors of Polars in writing, which are its own, into the OSError that they come from."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error


def _write(frame: pl.DataFrame, path: Path) -> None:
    with replacing(path) as temporary, _as_os_error(path):
        if path.suffix.lower() == ".parquet":
            frame.write_parquet(temporary)
        else:
            frame.write_csv(temporary, separator="\t" if path.suffix.lower() == ".tsv" else ",")
