"""Figures of a regression: predicted against true, and the distribution of the residuals."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from widefit.report.canvas import Frame, Points, dots, linear, pixel
from widefit.report.figure import Figure
from widefit.report.record import Report
from widefit.report.text import number, plural

# More rows than this become a density: single marks would hide one another and fill the file.
SINGLE_MARKS = 2000
# More outputs than this would bury the page.
OUTPUTS = 6
LEVELS = 6

Vector = NDArray[np.float64]


def per_output(report: Report) -> list[Figure]:
    """Predicted against true and the residuals; of several outputs, one figure with both for each of the first."""
    truth, prediction = report.columns()
    count = truth.shape[1]
    figures = []
    for column in range(min(count, OUTPUTS)):
        name = report.outputs[column] if report.outputs else f"output {column + 1}"
        known = np.isfinite(truth[:, column]) & np.isfinite(prediction[:, column])
        y, f = truth[known, column], prediction[known, column]
        if not len(y):
            continue
        upper, lower = against(y, f, report.part), residuals(f - y, report.part)
        note = "" if known.all() else f" Not drawn: {plural(int((~known).sum()), 'row')} that are not finite."
        if column == OUTPUTS - 1 and count > OUTPUTS:
            note += f" Not drawn: {plural(count - OUTPUTS, 'further output')}."
        if count == 1:
            figures += [replace(upper, caption=upper.caption + note), lower]
        else:
            caption = f"{upper.caption} {lower.caption}{note}"
            figures.append(Figure(name, upper.body + lower.body, caption, upper.legend))
    return figures


def against(truth: Vector, prediction: Vector, part: str) -> Figure:
    """Predicted against true with the diagonal; shapes (n,)."""
    both = np.concatenate([truth, prediction])
    margin = 0.04 * float(np.ptp(both))
    scale = linear(float(both.min()) - margin, float(both.max()) + margin)
    frame = Frame(scale, scale, height=330)
    points = frame.points(truth, prediction)
    ends = frame.points([scale.low, scale.high], [scale.low, scale.high])
    diagonal = (
        f'<path class="goal" d="M{pixel(ends[0, 0])} {pixel(ends[0, 1])}L{pixel(ends[1, 0])} {pixel(ends[1, 1])}"/>'
    )
    variance = float(np.mean((truth - truth.mean()) ** 2))
    error = float(np.mean((prediction - truth) ** 2))
    fit = f"R² {number(1 - error / variance)}, " if variance > 0 else ""
    words = f"{plural(len(truth), part + ' row')}: {fit}RMSE {number(math.sqrt(error))}."
    if len(truth) <= SINGLE_MARKS:
        marks, legend = [diagonal, dots(points, "spot")], (("goal", "exact"), ("spot", "a row"))
    else:
        cells, densest = density(points)
        marks, legend = [*cells, diagonal], (("goal", "exact"), ("hex", "rows per cell"))
        words += f" Each hexagon counts rows, up to {densest:,}; the deeper the more."
    title = "Predicted against true"
    body = frame.svg(marks, "true", "predicted", f"{title}. {words}")
    return Figure(title, body, words, legend)


def density(points: Points, radius: float = 5.0) -> tuple[list[str], int]:
    """Hexagonal cells with the number of points in each shown by one of a few levels; also the largest number."""
    width, rise = math.sqrt(3) * radius, 3 * radius
    # Two rectangular lattices make a hexagonal one; a point belongs to the nearer of its two candidates.
    spacing = np.array([width, rise])
    even = np.round(points / spacing)
    odd = np.floor(points / spacing) + 0.5
    nearer = ((points - even * spacing) ** 2).sum(1) <= ((points - odd * spacing) ** 2).sum(1)
    centres = np.where(nearer[:, None], even, odd) * spacing
    cells, counts = np.unique(np.round(centres, 1), axis=0, return_counts=True)
    densest = int(counts.max())
    level = np.clip(np.ceil(LEVELS * np.log1p(counts) / math.log1p(densest)), 1, LEVELS).astype(int)
    half, side, edge = pixel(width / 2), pixel(radius / 2), pixel(radius)
    paths = []
    for shade in range(1, LEVELS + 1):
        outlines = "".join(
            f"M{pixel(x)} {pixel(y - radius)}l{half} {side}v{edge}l-{half} {side}l-{half} -{side}v-{edge}z"
            for x, y in cells[level == shade]
        )
        if outlines:
            paths.append(f'<path class="hex level{shade}" d="{outlines}"/>')
    return paths, densest


def residuals(error: Vector, part: str) -> Figure:
    """Histogram of predicted minus true, shape (n,)."""
    low, high = float(error.min()), float(error.max())
    inner = np.quantile(error, [0.005, 0.995])
    outside = 0
    # A few wild rows would squeeze all others into one bar: leave them out, and say so.
    if np.ptp(inner) > 0 and high - low > 3 * np.ptp(inner):
        low, high = float(inner[0]), float(inner[1])
        outside = int(((error < low) | (error > high)).sum())
    counts, edges = np.histogram(error, bins=_bins(error, low, high), range=(low, high) if high > low else None)
    x = linear(float(edges[0]), float(edges[-1]))
    frame = Frame(x, linear(0, float(counts.max()) * 1.05, whole=True))
    floor = float(frame.down([0])[0])
    tops, sides = frame.down(counts.astype(np.float64)), frame.across(edges)
    marks = [
        f'<rect class="bar" x="{pixel(a + 0.6)}" y="{pixel(y)}" width="{pixel(max(b - a - 1.2, 0.5))}"'
        f' height="{pixel(floor - y)}"><title>{number(count)} rows</title></rect>'
        for a, b, y, count in zip(sides[:-1], sides[1:], tops, counts.tolist(), strict=True)
    ]
    if x.low <= 0 <= x.high:
        marks.append(f'<path class="goal" d="M{pixel(frame.across([0])[0])} {frame.top}V{pixel(floor)}"/>')
    middle = np.median(np.abs(error))
    words = f"Mean {number(float(error.mean()))}, half of the {part} rows within ±{number(float(middle))}."
    if outside:
        words += f" {outside:,} of {len(error):,} rows lie outside the figure."
    title = "Residuals"
    body = frame.svg(marks, "predicted − true", "rows", f"{title}. {words}")
    return Figure(title, body, words, (("goal", "zero"), ("bar", "rows")))


def _bins(error: Vector, low: float, high: float) -> int:
    """Number of bars by the rule of Freedman and Diaconis (1981), within what a small figure can show."""
    quarter, three = np.quantile(error, [0.25, 0.75])
    width = 2 * (three - quarter) / len(error) ** (1 / 3)
    return int(np.clip(math.ceil((high - low) / width), 7, 41)) if width > 0 else 7
