"""The tables of the page: metrics, classes, decisions, settings, steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from widefit.report.figures_of_classes import scores
from widefit.report.figures_of_rows import worst_rows
from widefit.report.record import Report
from widefit.report.text import number, safe
from widefit.training.history import History, StepInfo

# A longer step table is cut in the middle: the file stays small and nobody reads ten thousand rows.
STEPS_AT_EACH_END = 200


def metrics(found: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics by name, a row for each part."""
    names = list(dict.fromkeys(name for measured in found.values() for name in measured))
    if not names:
        return ""
    rows = [[escape(part), *(number(measured.get(name)) for name in names)] for part, measured in found.items()]
    return _boxed("Metrics", _table(["rows", *map(escape, names)], rows))


def classes(report: Report) -> str:
    """Precision, recall and F1 of each class."""
    rows = [
        [safe(str(score.label)), number(score.rows), *map(_metered, (score.precision, score.recall, score.f1))]
        for score in scores(report)
    ]
    return _boxed("Per class", _table(["class", "rows", "precision", "recall", "F1"], rows), "span3")


def _metered(part: float) -> str:
    """A number between 0 and 1 with a bar beside it."""
    width = 0 if math.isnan(part) else 100 * part
    return f'{number(part, 3)}<span class="meter" aria-hidden="true"><i style="width:{width:.0f}%"></i></span>'


def worst(report: Report) -> str:
    """The rows that are furthest off."""
    rows = worst_rows(report)
    if not rows:
        return ""
    regression = report.task == "regression"
    head = ["row", "true", "predicted", "error" if regression else "probability"]
    title = "Rows that are furthest off" if regression else "Rows that are wrong and sure"
    return _boxed(title, _table(head, rows), "span2")


def plan(decisions: Sequence[tuple[str, str, str]]) -> str:
    """The decisions of "auto", with their reasons."""
    rows = [[safe(what), f"<code>{safe(chosen)}</code>", safe(reason)] for what, chosen, reason in decisions]
    if not rows:
        return ""
    return f'<div class="card plan">{_table(["what", "chosen", "why"], rows, numeric=False)}</div>'


def facts(title: str, values: Mapping[str, Any]) -> str:
    """Names and values."""
    rows = [[safe(name), safe(value)] for name, value in values.items()]
    return _boxed(title, _table([], rows, numeric=False)) if rows else ""


def steps(history: History, metric_name: str) -> str:
    """Every step, folded away; of a long run its beginning and its end."""
    infos = list(history)
    if not infos:
        return ""
    columns: list[tuple[str, Callable[[StepInfo], str]]] = [
        ("step", lambda info: number(info.step)),
        ("loss", lambda info: number(info.loss)),
        ("damping", lambda info: number(info.damping, 3)),
        ("gain ratio", lambda info: number(info.gain_ratio, 3)),
        ("step kept", lambda info: "yes" if info.accepted else "no"),
        ("solver", lambda info: escape(info.solver or "–")),
        ("products", lambda info: number(info.solver_iterations)),
        ("residual", lambda info: number(info.residual_norm, 2)),
        ("flips", lambda info: number(info.flips)),
        ("full pass", lambda info: "yes" if info.rebased else "no"),
        ("seconds", lambda info: number(info.seconds, 3)),
    ]
    if any(info.metric is not None for info in infos):
        columns.insert(2, (metric_name, lambda info: number(info.metric)))
    if any(info.jitter for info in infos):
        columns.insert(-3, ("jitter", lambda info: number(info.jitter, 2)))
    note = ""
    if len(infos) > 2 * STEPS_AT_EACH_END:
        note = f'<p class="muted">The first and the last {STEPS_AT_EACH_END} of {len(infos):,} steps.</p>'
        infos = infos[:STEPS_AT_EACH_END] + infos[-STEPS_AT_EACH_END:]
    rows = [[show(info) for _, show in columns] for info in infos]
    styles = ["" if info.accepted else "rejected" for info in infos]
    table = _table([escape(name) for name, _ in columns], rows, styles=styles)
    return f'<details><summary>Every step</summary>{note}<div class="card">{table}</div></details>'


def _boxed(title: str, table: str, style: str = "") -> str:
    return f'<div class="card {style}"><h3>{title}</h3>{table}</div>'


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True, styles: Sequence[str] | None = None
) -> str:
    """A table of cells that are HTML already; the first column names the row. No head where it is empty."""
    align = ' class="number"' if numeric else ""
    names = [f'<th scope="col"{align if place else ""}>{name}</th>' for place, name in enumerate(head)]
    top = f"<thead><tr>{''.join(names)}</tr></thead>" if names else ""
    lines = []
    for place, (first, *rest) in enumerate(rows):
        style = f' class="{styles[place]}"' if styles and styles[place] else ""
        cells = "".join(f"<td{align}>{cell}</td>" for cell in rest)
        lines.append(f'<tr{style}><th scope="row">{first}</th>{cells}</tr>')
    body = f"<tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>{top}{body}</table></div>'
