"""Figures of a run: loss per step and per second, validation metric, flips per step, time per phase."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

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
    strokes,
    words_at,
)
from widefit.report.figure import Figure
from widefit.report.text import duration, number, plural, share
from widefit.training.history import History, StepInfo

# Beyond so many steps single marks would run into one another; the line alone shows the course.
MARKED = 60
# The tolerance is drawn where the loss comes within this factor of it.
REACH = 1000


def loss_per_step(history: History, tol: float | None, name: str) -> Figure:
    """Training loss after each step; `name` says what it measures."""
    return _loss(history, tol, name, [float(info.step) for info in history], "Loss per step", "step")


def loss_per_second(history: History, tol: float | None, name: str) -> Figure:
    """Training loss against wall-clock time; `name` says what it measures."""
    return _loss(history, tol, name, [info.seconds for info in history], "Loss per second", "seconds")


def _loss(history: History, tol: float | None, name: str, across: Sequence[float], title: str, x_label: str) -> Figure:
    losses = history.losses
    if not losses:
        return Figure(title, _nothing("no step was recorded"))
    lowest = min((loss for loss in losses if math.isfinite(loss)), default=0.0)
    # A tolerance far below all losses (a run that a ridge holds back) would only flatten the curve.
    goal = [tol] if tol and lowest < REACH * tol else []
    frame = Frame(linear(0, max(across), whole=x_label == "step"), logarithmic([*losses, *goal]))
    points = frame.points(across, losses)
    marks = []
    legend = [("line", "training loss")]
    if goal:
        marks.append(
            f'<path class="goal" d="M{pixel(frame.left)} {pixel(frame.down(goal)[0])}H{frame.width - frame.right}"/>'
        )
        legend.append(("goal", f"tol {number(tol)}"))
    marks.append(line(points, "line"))
    kept = np.array([info.accepted for info in history])
    rejected = f"rejected step ({int((~kept).sum()):,})"
    if len(losses) <= MARKED:
        marks += [dots(points[kept], "dot"), crosses(points[~kept], "cross")]
        marks.append(hints(points, [_hint(info) for info in history]))
        legend += [("cross", rejected)] if not kept.all() else []
    elif not kept.all():
        marks.append(strokes(points[~kept, 0], frame.height - frame.bottom, "stroke"))
        legend.append(("stroke", rejected))
    alt = f"{title}: from {number(losses[0])} to {number(losses[-1])} in {history[-1].step} steps"
    lost = sum(not math.isfinite(loss) for loss in losses)
    caption = f"Not drawn: {plural(lost, 'step')} whose loss is not finite." if lost else ""
    return Figure(title, frame.svg(marks, x_label, name, alt), caption, tuple(legend))


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
    counted = [info for info in history if info.flips is not None and info.step > 0]
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
    caption = f"A pair is a neuron and a sample; {number(sum(values))} began or ceased to fire."
    if passes.any():
        caption += f" All neurons were looked at in {plural(int(passes.sum()), 'step')}."
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
    rows = "".join(
        f"<li><span>{escape(name)}</span> <span>{duration(seconds)} · {share(seconds / whole)}</span>"
        f'<i aria-hidden="true" style="width:{100 * seconds / longest:.1f}%"></i></li>'
        for name, seconds in sorted(spent.items(), key=lambda item: -item[1])
    )
    return [Figure("Time per phase", f'<ul class="bars">{rows}</ul>')]


def _nothing(words: str) -> str:
    return picture(360, 120, [words_at(180, 64, words, "label", "middle")], words)
