"""What the figures draw, against slow and plain references."""

import dataclasses
import math
import re
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import HISTORIES, classification, regression
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from widefit.report.canvas import Frame, linear, logarithmic, thinned
from widefit.report.figures_of_classes import SPREAD, counts_of, scores, shade, wilson
from widefit.report.figures_of_columns import importances
from widefit.report.figures_of_outputs import density, residuals
from widefit.report.figures_of_training import flips, loss_per_step, phases
from widefit.report.text import duration, number, shortened

finite = st.floats(-1e12, 1e12, allow_nan=False)


@given(finite, finite)
def test_linear_ticks_are_round_even_and_inside(low: float, high: float) -> None:
    scale = linear(min(low, high), max(low, high))
    values = np.array([value for value, _ in scale.ticks])
    assert 2 <= len(values) <= 12
    assert (scale(values) >= -1e-6).all()
    assert (scale(values) <= 1 + 1e-6).all()
    steps = np.diff(values)
    assert np.allclose(steps, steps[0], rtol=1e-6, atol=4 * np.spacing(np.abs(values).max()))


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=20), st.booleans())
def test_logarithmic_positions_grow_with_the_value(values: list[float], with_zero: bool) -> None:
    values = sorted({*values, 0.0} if with_zero else set(values))
    scale = logarithmic(values)
    positions = scale(values)
    assert (np.diff(positions) >= 0).all()
    assert positions.min() >= -1e-9
    assert positions.max() <= 1 + 1e-9
    assert scale.zero == with_zero
    if with_zero:
        assert positions[0] == 0
    assert all(-1e-9 <= float(scale([value])[0]) <= 1 + 1e-9 for value, _ in scale.ticks)
    assert 1 <= len(scale.ticks) <= 12


def test_ticks_of_large_numbers_are_short() -> None:
    assert [label for _, label in linear(0, 1_000_000).ticks] == ["0", "200k", "400k", "600k", "800k", "1,000k"]
    assert [label for _, label in linear(0, 1).ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_losses_are_called_what_they_are() -> None:
    from widefit.report.figures import of_training

    report = dataclasses.replace(classification(), loss_name="mean cross-entropy")
    per_step, per_second = of_training(report)[:2]
    assert all(
        "mean cross-entropy" in figure.body and "squared" not in figure.body for figure in (per_step, per_second)
    )


def test_frame_maps_corners_to_corners() -> None:
    frame = Frame(linear(0, 10), linear(-1, 1))
    points = frame.points([0, 10], [-1, 1])
    assert np.allclose(points, [[frame.left, frame.height - frame.bottom], [frame.width - frame.right, frame.top]])


def test_thinning_keeps_every_extreme() -> None:
    generator = np.random.default_rng(0)
    points = np.stack([np.linspace(0, 300, 20_000), generator.normal(size=20_000)], axis=1)
    kept = thinned(points)
    assert len(kept) <= 4 * 301
    for column in range(300):
        before = points[np.floor(points[:, 0]) == column, 1]
        after = kept[np.floor(kept[:, 0]) == column, 1]
        assert (before.min(), before.max()) == (after.min(), after.max())
        assert (before[0], before[-1]) == (after[0], after[-1])


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    report = classification(classes, rows=400)
    labels = list(report.classes)
    assert (counts_of(report) == confusion_matrix(report.truth, report.prediction, labels=labels)).all()
    expected = precision_recall_fscore_support(report.truth, report.prediction, labels=labels, zero_division=np.nan)
    found = np.array([[score.precision, score.recall, score.f1, score.rows] for score in scores(report)]).T
    assert np.allclose(found, np.array(expected), equal_nan=True)


def test_a_class_without_rows_has_no_score() -> None:
    report = classification(2, rows=50)
    kept = np.asarray(report.truth) == "class 0"
    only = dataclasses.replace(
        report,
        truth=np.asarray(report.truth)[kept],
        prediction=np.full(int(kept.sum()), "class 0"),
        probabilities=None,
    )
    other = scores(only)[1]
    assert other.rows == 0
    assert math.isnan(other.precision)
    assert math.isnan(other.recall)
    assert math.isnan(other.f1)


@given(st.integers(1, 1000), st.floats(0, 1))
def test_interval_ends_are_where_the_score_test_is_at_its_limit(size: int, part: float) -> None:
    rate = np.array([round(part * size) / size])
    for end in wilson(rate, np.array([size])):
        assert np.allclose((end - rate) ** 2, SPREAD**2 * end * (1 - end) / size, atol=1e-9)


def test_density_counts_each_point_in_its_nearest_cell() -> None:
    points = np.random.default_rng(0).uniform(20, 120, size=(3000, 2))
    radius = 5.0
    width, rise = math.sqrt(3) * radius, 3 * radius
    lattice = [(i * width, j * rise) for i in range(-1, 20) for j in range(-1, 12)]
    lattice += [(x + width / 2, y + rise / 2) for x, y in lattice]
    centres = np.array(lattice)
    nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
    expected = np.bincount(nearest, minlength=len(centres))
    paths, densest = density(points, radius)
    assert densest == expected.max()
    starts = [match for path in paths for match in re.findall(r"M([\d.]+) ([\d.-]+)l", path)]
    assert len(starts) == (expected > 0).sum()
    tops = np.array(starts, dtype=float) + np.array([0, radius])
    filled = centres[expected > 0]
    assert np.abs(tops[:, None] - filled[None]).max(2).min(0).max() < 0.11


def test_residual_bars_hold_all_rows_but_those_named() -> None:
    error = np.concatenate([np.random.default_rng(0).normal(size=5000), [1e6, -1e6]])
    figure = residuals(error, "held out")
    drawn = sum(int(count.replace(",", "")) for count in re.findall(r"<title>([\d,]+) rows?</title>", figure.body))
    outside = int(re.search(r"([\d,]+) of 5,002 rows lie outside", figure.caption)[1].replace(",", ""))
    assert outside >= 2
    assert drawn + outside == 5002


def test_phases_are_longest_first_and_complete() -> None:
    body = phases(HISTORIES["constant"]())[0].body
    assert re.findall(r"<li><span>(.*?)</span>", body) == ["pass", "everything else", "solve"]


def test_flips_leave_out_the_state_before_training() -> None:
    figure = flips(HISTORIES["ten thousand steps"]())[0]
    assert f"{sum(10_000 - step for step in range(1, 10_000)):,}" in figure.caption
    assert flips(HISTORIES["constant"]()) == []


def test_losses_that_are_not_finite_break_the_line() -> None:
    figure = loss_per_step(HISTORIES["not finite"](), None, "mean squared residual")
    path = re.search(r'<path class="line" d="([^"]*)"', figure.body)[1]
    assert path.count("M") == 2
    assert "2 steps whose loss is not finite" in figure.caption


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-3.0, "−3"),
        (65536, "65,536"),
        (0.12345678, "0.1235"),
        (123456.7, "123,457"),
        (1e-9, "10⁻⁹"),
        (1.25e-9, "1.25×10⁻⁹"),
        (9.99999e-5, "10⁻⁴"),
        (3.2e12, "3.2×10¹²"),
        (None, "–"),
        (math.nan, "–"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.0312, "0.031 s"), (12.34, "12.3 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shortened() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"


def _palette(theme: int) -> dict[str, np.ndarray]:
    style = files("widefit.report").joinpath("page.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    return {name: np.array([int(pair[theme][i : i + 2], 16) for i in (1, 3, 5)]) / 255 for name, *pair in pairs}


def _contrast(one: np.ndarray, other: np.ndarray) -> float:
    """Contrast ratio of WCAG 2, between 1 and 21."""

    def luminance(colour: np.ndarray) -> float:
        linear_light = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
        return float(linear_light @ [0.2126, 0.7152, 0.0722])

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_contrast_enough_to_be_read(theme: int) -> None:
    colour = _palette(theme)
    for ground in ("paper", "card"):
        for ink in ("ink", "muted", "blue", "orange"):
            assert _contrast(colour[ink], colour[ground]) >= 4.5
    for fill in ("blue", "orange"):
        for part in np.linspace(0, 1, 41):
            cell = shade(part) * colour[fill] + (1 - shade(part)) * colour["card"]
            assert _contrast(colour["on-shade" if part >= 0.5 else "ink"], cell) >= 4.5, (fill, part)


def test_columns_that_matter_are_largest_first() -> None:
    shares = {f"c{place}": place / 105 for place in range(15)}
    (figure,) = importances(regression(importances=shares))
    assert figure.body.index("c14") < figure.body.index("c13") < figure.body.index("c3")
    assert "c2<" not in figure.body
    assert "3 further columns: 2.9%" in figure.caption
    assert importances(regression(importances={"a": 1.0})) == importances(regression()) == []
    assert "&lt;b&gt;" in importances(regression(importances={"<b>": 0.5, "c": 0.5}))[0].body
