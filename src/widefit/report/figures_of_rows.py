"""Rows that are furthest off, and intervals."""

from html import escape

import numpy as np

from widefit.report.record import Report
from widefit.report.text import number, share

# Rows that are shown.
_ROWS = 8


def worst_rows(report: Report) -> list[list[str]]:
    """The rows that are furthest off: row, truth, prediction, and the error or the probability of the wrong label."""
    if report.task == "regression":
        truth, prediction = report.columns()
        errors = np.abs(prediction - truth)
        finite = np.where(np.isfinite(errors), errors, 0.0)
        scale = finite.max(axis=0, initial=0.0)
        order = np.argsort(-(finite / np.where(scale > 0, scale, 1.0)).max(axis=1, initial=0.0), kind="stable")[:_ROWS]
        return [
            [_name(report, row), *(", ".join(number(v) for v in values[row]) for values in (truth, prediction, errors))]
            for row in order.tolist()
        ]
    truth, prediction = report.codes()
    wrong = np.flatnonzero(truth != prediction)
    sure = np.ones(len(truth)) if report.probabilities is None else np.asarray(report.probabilities).max(axis=1)
    order = wrong[np.argsort(-sure[wrong], kind="stable")][:_ROWS]
    labels = np.asarray(report.classes).tolist()
    probable = ["–" if report.probabilities is None else share(float(sure[row])) for row in order]
    return [
        [_name(report, row), *(escape(str(labels[codes[row]])) for codes in (truth, prediction)), chance]
        for row, chance in zip(order.tolist(), probable, strict=True)
    ]


def _name(report: Report, row: int) -> str:
    return f"{report.rows[row] if len(report.rows) else row + 1:,}"


def intervals(report: Report) -> str:
    """A sentence on the intervals of a regression; empty without them."""
    if report.interval is None:
        return ""
    low, high = (np.asarray(end, dtype=np.float64) for end in report.interval)
    truth = np.asarray(report.truth, dtype=np.float64)
    inside = float(np.mean((low <= truth) & (truth <= high)))
    half = number(float(np.median(high - low)) / 2, 3)
    return (
        f"Intervals for {share(report.coverage)} of new rows hold {share(inside)} of the {escape(report.part)} ones; "
        f"half of them are wider than ± {half}."
    )
