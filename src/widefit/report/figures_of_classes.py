"""Figures of a classification: confusion matrix, calibration curve, and the table of precision, recall and F1."""

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefit.report.canvas import Frame, dots, hints, line, linear, picture, pixel, words_at
from widefit.report.figure import Figure
from widefit.report.record import Report
from widefit.report.text import number, plural, share, shortened

# A matrix of more classes than this cannot be read on a page.
CLASSES = 30
BINS = 10
# Longer names are cut where they label a matrix.
LETTERS = 16
# z of a 95% interval
SPREAD = 1.96


@dataclass(frozen=True)
class ClassScore:
    """Rows that are of a class, and how well they are found."""

    label: Any
    rows: int
    precision: float
    recall: float
    f1: float


def counts_of(report: Report) -> NDArray[np.intp]:
    """Rows per true class (first axis) and predicted class, shape (c, c)."""
    truth, prediction = report.codes()
    size = len(report.classes)
    return np.bincount(truth * size + prediction, minlength=size * size).reshape(size, size)


def scores(report: Report) -> list[ClassScore]:
    """Precision, recall and F1 of each class; NaN where a class has no rows to count."""
    counts = counts_of(report)
    rows = []
    for code, label in enumerate(np.asarray(report.classes).tolist()):
        hits, true, called = int(counts[code, code]), int(counts[code].sum()), int(counts[:, code].sum())
        precision = hits / called if called else math.nan
        recall = hits / true if true else math.nan
        f1 = 2 * hits / (true + called) if true + called else math.nan
        rows.append(ClassScore(label, true, precision, recall, f1))
    return rows


def confusion(report: Report) -> Figure:
    """Counts per true and predicted class, shaded by their share of the true class."""
    counts = counts_of(report)
    right, total = int(counts.trace()), int(counts.sum())
    caption = f"{right:,} of {plural(total, report.part + ' row')} on the diagonal. Shade: share of the true class."
    shown = np.arange(len(counts))
    if len(counts) > CLASSES:
        mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:CLASSES])
        caption += f" Only the {CLASSES} of {len(counts)} classes with the most mistakes are shown."
    labels = [np.asarray(report.classes).tolist()[code] for code in shown]
    drawing = _matrix(counts[np.ix_(shown, shown)], counts.sum(1)[shown], labels, caption)
    legend = (("cell right", "right"), ("cell wrong", "wrong"))
    return Figure(
        "Confusion matrix", drawing, caption, legend, span=1 if len(labels) <= 6 else 2 if len(labels) <= 16 else 3
    )


def _matrix(counts: NDArray[np.intp], rows: NDArray[np.intp], labels: list[Any], alt: str) -> str:
    size = len(labels)
    # Names are set in 12.5 px, about 6.8 px a letter; above the columns they are turned where they are too wide.
    longest = 6.8 * min(max(len(str(label)) for label in labels), LETTERS)
    cell = min(max(400 / size, 26), 54)
    turned = longest > cell - 4
    left, top = 34 + longest, (42 + 0.77 * longest) if turned else 42
    letters = len(f"{int(counts.max())}")
    parts = [
        words_at(13, top + size * cell / 2, "true", "label", "middle", turned=-90),
        words_at(left + size * cell / 2, 14, "predicted", "label", "middle"),
    ]
    for a, label in enumerate(labels):
        along, name = (a + 0.5) * cell, shortened(label, LETTERS)
        parts.append(words_at(left - 8, top + along + 4, name, "name", "end"))
        if turned:
            parts.append(words_at(left + along + 4, top - 6, name, "name", turned=-50))
        else:
            parts.append(words_at(left + along, top - 8, name, "name", "middle"))
        for b, called in enumerate(labels):
            x, y, count = left + b * cell, top + a * cell, int(counts[a, b])
            part = count / max(int(rows[a]), 1)
            hint = f"true {label}, predicted {called}: {count:,} ({share(part)})"
            parts.append(_cell(x, y, cell, count, part, "right" if a == b else "wrong", hint, letters))
    overhang = 0.64 * longest if turned else 0
    width, height = left + size * cell + overhang + 8, top + size * cell + 8
    # Neither so small that a phone shows specks (it scrolls instead), nor blown up where there are few classes.
    style = f"min-width:{0.66 * width:.0f}px;max-width:{1.3 * width:.0f}px"
    drawing = picture(width, height, parts, f"Confusion matrix. {alt}", style)
    return f'<div class="scroll" tabindex="0" role="group" aria-label="Confusion matrix">{drawing}</div>'


def _cell(x: float, y: float, side: float, count: int, part: float, kind: str, hint: str, letters: int) -> str:
    """A square with its count; `part` is the share of the true class, `letters` the length of the longest count."""
    place = f'x="{pixel(x + 1)}" y="{pixel(y + 1)}" width="{pixel(side - 2)}" height="{pixel(side - 2)}" rx="3"'
    if not count:
        return f'<rect class="cell" {place}/>'
    size = min(13.0, 0.42 * side, 1.5 * side / letters)
    style = "count deep" if part >= 0.5 else "count"
    return (
        f'<rect class="cell {kind}" fill-opacity="{shade(part):.2f}" {place}><title>{escape(hint)}</title></rect>'
        + words_at(x + side / 2, y + side / 2 + 0.35 * size, str(count), style, "middle", size=size)
    )


def shade(part: float) -> float:
    """Opacity of a cell: below a half pale enough for dark words, from a half on deep enough for bright ones."""
    # The square root keeps single mistakes visible beside classes of thousands.
    return 0.1 + 0.4 * math.sqrt(2 * part) if part < 0.5 else 0.8 + 0.2 * part


def calibration(report: Report) -> list[Figure]:
    """The share of right predictions among those of a given probability, where probabilities are known."""
    if report.probabilities is None or not len(report.codes()[0]):
        return []
    truth, _ = report.codes()
    table = np.asarray(report.probabilities, dtype=np.float64)
    if len(report.classes) == 2:
        name = str(np.asarray(report.classes).tolist()[1])
        stated, hit = table[:, 1], truth == 1
        across, up = f"predicted probability of {name}", f"share that is {name}"
    else:
        stated, hit = table.max(axis=1), table.argmax(axis=1) == truth
        across, up = "probability of the predicted class", "share that is right"
    known = np.isfinite(stated)
    stated, hit = np.clip(stated[known], 0, 1), hit[known]
    if not len(stated):
        return []
    place = np.minimum((stated * BINS).astype(int), BINS - 1)
    size = np.bincount(place, minlength=BINS)
    filled = np.flatnonzero(size)
    mean = np.bincount(place, weights=stated, minlength=BINS)[filled] / size[filled]
    rate = np.bincount(place, weights=hit, minlength=BINS)[filled] / size[filled]
    gap = float((size[filled] * np.abs(mean - rate)).sum() / len(stated))
    unit = linear(0, 1)
    frame = Frame(unit, unit, height=330)
    corners = frame.points([0, 1], [0, 1])
    points = frame.points(mean, rate)
    low, high = wilson(rate, size[filled])
    whiskers = "".join(
        f"M{pixel(x)} {pixel(a)}V{pixel(b)}"
        for x, a, b in zip(points[:, 0], frame.down(low), frame.down(high), strict=True)
    )
    marks = [
        line(corners, "goal"),
        f'<path class="whisker" d="{whiskers}"/>',
        line(points, "line"),
        dots(points, "dot"),
    ]
    texts = [
        f"{plural(n, 'row')}: stated {share(p)}, true {share(q)}"
        for n, p, q in zip(size[filled].tolist(), mean, rate, strict=True)
    ]
    marks.append(hints(points, texts))
    caption = (
        f"{plural(len(stated), report.part + ' row')} in {len(filled)} of {BINS} bins, with 95% intervals. "
        f"Expected calibration error {number(gap, 3)}."
    )
    legend = (("goal", "perfectly calibrated"), ("line", "measured"))
    return [Figure("Calibration", frame.svg(marks, across, up, f"Calibration. {caption}"), caption, legend)]


def wilson(rate: NDArray[np.float64], size: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95% interval of a share seen in so many rows (Wilson 1927)."""
    weight = SPREAD**2 / size
    centre = (rate + weight / 2) / (1 + weight)
    reach = np.sqrt(rate * (1 - rate) * weight + weight**2 / 4) / (1 + weight)
    return centre - reach, centre + reach
