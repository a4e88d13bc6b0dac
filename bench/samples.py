"""Time, memory, error and iterations of a fit against the number of rows, beside gradient boosting."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import describe_machine, entry, main, peak_memory_gb

ROWS = {
    "quick": (1_000, 10_000),
    "default": (1_000, 10_000, 30_000, 100_000),
    "full": (1_000, 10_000, 100_000, 300_000, 1_000_000),
}
FEATURES = 20
TEST_ROWS = 5_000
# The narrower network of --quick, so that it ends within a minute.
QUICK_WIDTH = 4096


def run(size: str, data: str = "", rows: str = "", width: int = 0, device: str = "auto") -> dict:
    """Rows of a made-up function of 20 columns with noise, or the first so many of an NPZ file, in a random order.

    The file holds X and y, with test_indices (the first row of them is tested on), or X_train, y_train, X_test and
    y_test; labels of fewer than 20 kinds are classes. `rows` is a list such as 1000,41157, `width` the neurons for all
    of them (0: "auto"). Every fit has a process of its own, whose largest resident set is told; kernels have been
    compiled before, for their sizes, by smaller fits that are not counted. `device` is that of the estimators.
    """
    figures, before = [], None
    counts = [int(count) for count in rows.split(",")] if rows else ROWS[size]
    width = width or (QUICK_WIDTH if size == "quick" else 0)
    for count in counts:
        found = {}
        for contestant in ("widefit", "gradient boosting"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[contestant] = pool.apply(_measure, (contestant, count, data, width, device))
            if found[contestant] is None:
                break
            label = f"{count:,} rows, {contestant}"
            against = "widefit" if contestant != "widefit" else None
            ratio = found["widefit"]["error"] / found[contestant]["error"] if against else None
            figures.append(entry(f"{label}, error", found[contestant]["error"], "see settings", against, ratio))
            figures += [entry(f"{label}, {name}", found[contestant][name], unit) for name, unit in _FIGURES.items()]
        if not found.get("gradient boosting"):
            break
        ours = found["widefit"]
        figures += [entry(f"{count:,} rows, widefit, {name}", ours[name], "") for name in ("steps", "products")]
        if before is not None:
            power = np.log(ours["seconds"] / before[1]) / np.log(count / before[0])
            figures.append(entry(f"{before[0]:,} to {count:,} rows, widefit, power of n", float(power), ""))
        before = (count, ours["seconds"])
    settings = {
        "data": data or f"made up, {FEATURES} columns",
        "error": "root mean square on unseen rows over the spread of the target, or share of wrong labels",
        "device": device,
        "width": width or "auto",
    }
    return {"machine": describe_machine(), "settings": settings, "figures": figures}


_FIGURES = {"seconds": "s", "processor seconds": "s", "memory": "GB"}


def draw(result: dict, path: Path) -> None:
    """Draw time and error against the rows."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, kind in zip(axes, ("seconds", "error"), strict=True):
        for contestant in ("widefit", "gradient boosting"):
            points = {
                int(one["name"].split(" rows")[0].replace(",", "")): one["value"]
                for one in result["figures"]
                if one["name"].endswith(f"rows, {contestant}, {kind}")
            }
            axis.loglog(list(points), list(points.values()), "o-", label=contestant)
        axis.set_xlabel("rows")
        axis.set_ylabel(kind)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def _measure(contestant: str, rows: int, data: str, width: int, device: str) -> dict[str, float] | None:
    """Fit and judge; None where the file has not so many rows."""
    table = read(Path(data)) if data else made_up(rows)
    X, y, X_test, y_test = table
    if len(X) < rows:
        return None
    chosen = np.random.default_rng(0).permutation(len(X))[:rows]
    X, y = X[chosen], y[chosen]
    classes = np.unique(y).size < 20
    model: Any = _model(contestant, classes, width, device)
    if contestant == "widefit":
        _model(contestant, classes, QUICK_WIDTH, device).fit(X[:600], y[:600])
        _apply_from_lists(X, outputs=np.unique(y).size if classes and np.unique(y).size > 2 else 1)
    begun, spent = time.perf_counter(), time.process_time()
    model.fit(X, y)
    seconds, spent = time.perf_counter() - begun, time.process_time() - spent
    memory = peak_memory_gb()
    predicted = model.predict(X_test)
    error = np.mean(predicted != y_test) if classes else np.sqrt(np.mean((predicted - y_test) ** 2)) / y_test.std()
    measured = {"error": float(error), "seconds": seconds, "processor seconds": spent, "memory": memory}
    if contestant == "widefit":
        history = model.history_
        measured |= {"steps": len(history) - 1, "products": sum(step.solver_iterations for step in history)}
    return measured


def _apply_from_lists(X: np.ndarray, outputs: int) -> None:
    """Train a few neurons on all rows: beyond 8,192 of them that compiles the kernels of fire lists for their sizes."""
    from widefit import train
    from widefit.nn import TwoLayer

    rows = np.hstack([X, np.ones((len(X), 1))]).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    targets = np.tile(rows[:, :1], outputs)
    train(TwoLayer(rows.shape[1], 16 * outputs, outputs, threshold=1.0), rows, targets, alpha=0.1, max_iter=1)


def _model(contestant: str, classes: bool, width: int, device: str):
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    from widefit import WideClassifier, WideRegressor

    if contestant == "gradient boosting":
        return (HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor)(random_state=0)
    settings: dict[str, Any] = {"device": device} | ({"hidden_layer_sizes": (width,)} if width else {})
    return (WideClassifier if classes else WideRegressor)(**settings)


def made_up(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Waves, products and kinks of a few of the columns, and noise of a tenth of the variance."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((rows + TEST_ROWS, FEATURES))
    y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + np.abs(X[:, 3]) + 0.5 * np.cos(X[:, 4] + X[:, 5])
    y = y + 0.4 * generator.standard_normal(len(y))
    return X[TEST_ROWS:], y[TEST_ROWS:], X[:TEST_ROWS], y[:TEST_ROWS]


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path) as held:
        if "X_train" in held:
            X, y, X_test, y_test = (held[name] for name in ("X_train", "y_train", "X_test", "y_test"))
            return X.reshape(len(X), -1).astype(float), y, X_test.reshape(len(X_test), -1).astype(float), y_test
        X, y = held["X"].astype(float), held["y"].ravel()
        tested = np.zeros(len(X), bool)
        tested[held["test_indices"][0]] = True
        return X[~tested], y[~tested], X[tested], y[tested]


if __name__ == "__main__":
    main("samples", run, draw)
