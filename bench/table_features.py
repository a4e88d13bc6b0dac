"""Features of tables that were tried: error of the kernel regression with each, chosen and not chosen."""

from pathlib import Path

import numpy as np
from harness import describe_machine, entry, main
from tables import _bundled, _fewer, _folder

from widefit.tuning.columns import indicators
from widefit.tuning.duplicates import merge_duplicates
from widefit.tuning.gradient_outer_product import mix_columns
from widefit.tuning.leave_one_out import leave_one_out
from widefit.tuning.limit_kernel import co_firing_probability
from widefit.tuning.relevance import learn_scales
from widefit.tuning.sphere import SphereMap
from widefit.tuning.steps import Steps
from widefit.tuning.target_scale import smearing

SPLITS = {"quick": 1, "default": 3, "full": 10}
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Weight of the linear kernel beside the network's, relative to its mean.
LINEAR = 1.0
THRESHOLD = 1.0


def run(size: str, data: str = "", rows: int = 400, only: str = "") -> dict:
    """Test errors in spreads of the target on regression sets: those of scikit-learn, or a folder of NPZ files.

    Means over splits; each feature by itself, whether the estimators would choose it or not.
    """
    figures = []
    totals: dict[str, list[float]] = {}
    sets = _folder(Path(data)) if data else {"diabetes": _bundled()["diabetes"]}
    for name, splits in sets.items():
        if only and name not in only.split(","):
            continue
        found = [_errors(*_fewer(split, rows)) for _, split in zip(range(SPLITS[size]), splits, strict=False)]
        for feature in found[0]:
            values = [errors[feature] for errors in found if feature in errors]
            value, plain = float(np.mean(values)), float(np.mean([errors["scaled columns"] for errors in found]))
            totals.setdefault(feature, []).append(value / plain)
            against = None if feature == "scaled columns" else "scaled columns"
            figures.append(
                entry(f"{name}, {feature}", value, "spreads", against, None if against is None else plain / value)
            )
    figures += [
        entry(
            f"all {len(values)} sets, {feature}",
            float(np.exp(np.mean(np.log(values)))),
            "of the error of scaled columns",
        )
        for feature, values in totals.items()
    ]
    return {"machine": describe_machine(), "settings": {"rows": rows, "data": data or "diabetes"}, "figures": figures}


def _errors(X, X_test, y, y_test) -> dict[str, float]:
    plain = merge_duplicates(X, ((y - y.mean()) / y.std())[:, None], np.ones(len(y)))
    scaled = SphereMap.fit(plain.rows, plain.sample_weight, scaling="columns", constant=1.0)
    parts = (plain.rows, plain.targets, plain.sample_weight)
    learnt = learn_scales(*parts, scaled, THRESHOLD)
    mixed = mix_columns(*parts, scaled, THRESHOLD)
    steps = Steps.fit(plain.rows, indicators(plain.rows))
    half = scaled.with_steps(plain.rows, plain.sample_weight, steps, 0.5)
    maps = {
        "scaled columns": scaled,
        "learnt scales": learnt,
        "mixed once": mixed,
        "mixed twice": mix_columns(*parts, mixed, THRESHOLD),
        "learnt scales, mixed once": mix_columns(*parts, learnt, THRESHOLD),
        "steps, a tenth columns": scaled.with_steps(plain.rows, plain.sample_weight, steps, 0.9),
        "learnt scales of columns and steps": learn_scales(*parts, half, THRESHOLD),
    }
    found = {name: _fit(plain, sphere, X_test)[0] * y.std() + y.mean() for name, sphere in maps.items()}
    found["scaled columns and a linear part"] = _fit(plain, scaled, X_test, LINEAR)[0] * y.std() + y.mean()
    if y.min() > 0:
        logs = np.log(y)
        others = merge_duplicates(X, ((logs - logs.mean()) / logs.std())[:, None], np.ones(len(y)))
        predicted, left_out = _fit(others, scaled, X_test)
        unbiased = smearing(left_out * logs.std(), others.sample_weight)[0]
        found["scaled columns, logarithm of the target"] = np.exp(predicted * logs.std() + logs.mean()) * unbiased
    return {name: float(np.sqrt(np.mean((f - y_test) ** 2)) / y_test.std()) for name, f in found.items()}


def _fit(table, sphere: SphereMap, X_test: np.ndarray, linear: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and left-out residuals of the regression with the limit kernel."""
    inputs, at = sphere(table.rows), sphere(X_test)
    gram, near = (left @ inputs.T for left in (inputs, at))
    gram, near = (similarity * co_firing_probability(similarity, THRESHOLD) for similarity in (gram, near))
    if linear:
        known, new = sphere.scaled(table.rows), sphere.scaled(X_test)
        weight = linear * gram.diagonal().mean() / np.mean((known**2).sum(1))
        gram = gram + weight * known @ known.T
        near = near + weight * new @ known.T
    mean = float(gram.diagonal().mean())
    fits = [leave_one_out(gram, table.targets, table.sample_weight, ridge * mean) for ridge in RIDGES]
    best = min(fits, key=lambda fit: fit.error)
    return (near @ best.coefficients)[:, 0], best.residuals


if __name__ == "__main__":
    main("table-features", run)
