"""Figures of a run: loss per step and per second, validation metric, flips per step, time per phase."""

import math
from collections.abc import Sequence

import numpy as np

from widefit.history import History, StepInfo
from widefit.report.canvas import (
    Frame,
    Scale,
    crosses,
    dots,
    hints,
    line,
    linear,
    logarithmic,
    picture,
    pixel,
    words_at,
)
from widefit.report.figure import Figure
from widefit.report.text import duration, number, share, shortened

# Beyond so many steps single marks would run into one another; the line alone shows the course.
MARKED = 60


def loss_per_step(history: History, tol: float | None) -> Figure:
    """Training loss after each step."""
    return _loss(history, tol, [float(info.step) for info in history], "Loss per step", "step", whole=True)


def loss_per_second(history: History, tol: float | None) -> Figure:
    """Training loss against wall-clock time."""
    return _loss(history, tol, [info.seconds for info in history], "Loss per second", "seconds", whole=False)


def _loss(
    history: History, tol: float | None, across: Sequence[float], title: str, x_label: str, whole: bool
) -> Figure:
    losses = history.losses
    if not losses:
        return Figure(title, _nothing("no step was recorded"))
    goal = [tol] if tol else []
    frame = Frame(linear(min(across), max(across), whole=whole), logarithmic([*losses, *goal]))
    points = frame.points(across, losses)
    marks = []
    legend = [("line", "training loss")]
    if goal:
        marks.append(f'<path class="goal" d="M{frame.left} {pixel(frame.down(goal)[0])}H{frame.width - frame.right}"/>')
        legend.append(("goal", f"tol {number(tol)}"))
    marks.append(line(points, "line"))
    kept = np.array([info.accepted for info in history])
    if len(losses) <= MARKED:
        marks += [dots(points[kept], "dot"), hints(points, [_hint(info) for info in history])]
    if not kept.all():
        marks.append(crosses(points[~kept], "cross"))
        legend.append(("cross", f"rejected step ({int((~kept).sum())})"))
    alt = f"{title}: from {number(losses[0])} to {number(losses[-1])} in {history[-1].step} steps"
    lost = sum(not math.isfinite(loss) for loss in losses)
    caption = f"{lost} steps had a loss that is not finite and are not drawn." if lost else ""
    return Figure(title, frame.svg(marks, x_label, "mean squared residual", alt), caption, tuple(legend))


def _hint(info: StepInfo) -> str:
    text = f"step {info.step}: loss {number(info.loss)} after {duration(info.seconds)}"
    return text if info.accepted else f"{text}, rejected"


def validation(history: History, name: str) -> list[Figure]:
    """The validation metric after each step, where one was measured."""
    measured = [info for info in history if info.metric is not None and math.isfinite(info.metric)]
    if not measured:
        return []
    steps, values = [float(info.step) for info in measured], [float(info.metric or 0) for info in measured]
    frame = Frame(linear(min(steps), max(steps), whole=True), _padded(values))
    points = frame.points(steps, values)
    marks = [line(points, "line")]
    if len(values) <= MARKED:
        texts = [f"step {info.step}: {number(info.metric)}" for info in measured]
        marks += [dots(points, "dot"), hints(points, texts)]
    alt = f"{name} per step: {number(values[0])} at first, {number(values[-1])} at the end"
    return [Figure(f"{name[:1].upper()}{name[1:]} per step", frame.svg(marks, "step", name, alt))]


def _padded(values: Sequence[float]) -> Scale:
    margin = 0.06 * (max(values) - min(values))
    return linear(min(values) - margin, max(values) + margin)


def flips(history: History) -> list[Figure]:
    """Pairs (neuron, sample) that began or ceased to fire in each step, where the run counted them."""
    counted = [info for info in history if info.flips is not None]
    if not counted:
        return []
    steps, values = [float(info.step) for info in counted], [float(info.flips or 0) for info in counted]
    frame = Frame(linear(min(steps), max(steps), whole=True), logarithmic(values))
    points = frame.points(steps, values)
    passes = np.array([info.rebased for info in counted])
    marks = [line(points, "line second")]
    legend = [("line second", "pairs that flipped")]
    if len(values) <= MARKED:
        marks += [dots(points[~passes], "dot second"), dots(points[passes], "dot first")]
        texts = [f"step {info.step}: {number(info.flips)} flips{_full(info.rebased)}" for info in counted]
        marks.append(hints(points, texts))
        if passes.any():
            legend.append(("dot first", "full pass over all neurons"))
    alt = f"Flips per step: {number(values[0])} at first, {number(values[-1])} at the end"
    caption = (
        f"A pair is a neuron and a sample; {number(sum(values))} began or ceased to fire, "
        f"in {int(passes.sum())} full passes over all neurons."
    )
    return [Figure("Flips per step", frame.svg(marks, "step", "pairs", alt), caption, tuple(legend))]


def _full(rebased: bool) -> str:
    return ", found by a full pass" if rebased else ""


def phases(history: History) -> list[Figure]:
    """Seconds per phase of the work, longest first."""
    spent = {name: max(seconds, 0.0) for name, seconds in history.phases.items() if math.isfinite(seconds)}
    if not spent:
        return []
    total = sum(spent.values())
    wall = history[-1].seconds if len(history) else total
    if wall - total > 0.01 * wall:
        spent["everything else"] = wall - total
    longest, whole = max(spent.values()) or 1.0, sum(spent.values()) or 1.0
    rows = sorted(spent.items(), key=lambda item: -item[1])
    parts = []
    for place, (name, seconds) in enumerate(rows):
        top, length = 10 + 42 * place, max(388 * seconds / longest, 1.5)
        parts.append(words_at(16, top + 11, shortened(name, 34), "name"))
        parts.append(words_at(404, top + 11, f"{duration(seconds)} · {share(seconds / whole)}", "tick", "end"))
        parts.append(f'<rect class="rail" x="16" y="{top + 18}" width="388" height="10" rx="3"/>')
        parts.append(f'<rect class="bar" x="16" y="{top + 18}" width="{pixel(length)}" height="10" rx="3"/>')
    alt = "Time per phase: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in rows)
    return [Figure("Time per phase", picture(420, 10 + 42 * len(rows), parts, alt))]


def _nothing(words: str) -> str:
    return picture(420, 120, [words_at(210, 64, words, "label", "middle")], words)
