"""The page: a record in, one self-contained HTML document out."""

import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import widefit
from widefit.history import History, StepInfo
from widefit.report.figures import of_quality, of_training
from widefit.report.figures_of_classes import scores
from widefit.report.record import Report
from widefit.report.text import duration, number, plural, safe

# A longer step table is cut in the middle: the file stays small and nobody reads ten thousand rows.
STEPS_AT_EACH_END = 200

STOPPED = {
    "tol": "the loss fell below the tolerance",
    "converged": "the loss no longer changed",
    "max_iter": "the largest number of steps was reached",
    "stalled": "no step lowered the loss any more",
    "interrupted": "it was interrupted; the best state so far was kept",
    "callback": "a callback asked for it",
}

# The button turns the theme; a print shows the step table as well.
SCRIPT = """
const root = document.documentElement, dark = matchMedia('(prefers-color-scheme: dark)');
document.getElementById('theme').addEventListener('click', () => {
  const now = root.dataset.theme || (dark.matches ? 'dark' : 'light');
  root.dataset.theme = now === 'dark' ? 'light' : 'dark';
});
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(part => { part.open = true; }));
"""

BUTTON = (
    '<button id="theme" type="button" aria-label="Switch between light and dark" title="Light or dark">'
    '<svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="8" fill="none" stroke="currentColor"'
    ' stroke-width="2"/><path d="M10 2a8 8 0 0 1 0 16z" fill="currentColor"/></svg></button>'
)


def write(path: str | os.PathLike[str], report: Report) -> None:
    """Write the page to a file, whole or not at all.

    Parameters
    ----------
    path
        Where the page goes; an existing file is replaced once the new one is complete on disk.
    report
        What to show.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written.
    """
    target = Path(path)
    page = render(report).encode("utf-8")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def render(report: Report) -> str:
    """The page as text: valid HTML5 that loads nothing."""
    style = files("widefit.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(report.title)
    body = "\n".join(
        part
        for part in (
            _header(report),
            "<main>",
            _section("How well it predicts", _quality(report)),
            _section("How it was trained", _grid(figure.html() for figure in of_training(report))),
            _section("What was decided, and why", _plan(report.plan)),
            _section("Settings and machine", _facts(report)),
            _steps(report.history, report.metric_name),
            "</main>",
            f"<footer>Written by widefit {escape(widefit.__version__)} · {escape(report.created)}</footer>",
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>{title} · widefit</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _grid(boxes: Iterable[str], style: str = "grid") -> str:
    content = "".join(boxes)
    return f'<div class="{style}">{content}</div>' if content else ""


def _header(report: Report) -> str:
    data, history = report.data, report.history
    why = STOPPED.get(history.stop_reason, history.stop_reason)
    ended = f" Training ended because {escape(why)}." if why else ""
    notes = "".join(f"<li>{safe(note)}</li>" for note in report.notes)
    return (
        f'<header>{BUTTON}<p class="eyebrow">widefit · {report.task}</p><h1>{escape(report.title)}</h1>'
        f'<p class="lead">Predicts <b>{escape(data.target)}</b> from {plural(data.columns, "column")} of'
        f" <b>{escape(data.name)}</b>, {plural(data.rows, 'row')}.{ended}</p>"
        f'<dl class="cards">{"".join(_cards(report))}</dl>'
        + (f'<ul class="notes" aria-label="Notes">{notes}</ul>' if notes else "")
        + "</header>"
    )


def _cards(report: Report) -> Iterable[str]:
    scored = report.metrics.get(report.part, {})
    if scored:
        name, value = next(iter(scored.items()))
        others = [
            f"{escape(part)} {number(measured[name])}"
            for part, measured in report.metrics.items()
            if part != report.part and name in measured
        ]
        yield _card(f"{escape(report.part)} {escape(name)}", number(value), " · ".join(others))
    steps = report.history.steps
    if steps:
        last, rejected = steps[-1], sum(not info.accepted for info in steps)
        yield _card("training loss", number(last.loss, 2), f"from {number(steps[0].loss, 3)}")
        yield _card("steps", number(last.step), f"{number(rejected)} rejected" if rejected else "none rejected")
        each = f"{duration(last.seconds / last.step)} a step" if last.step else ""
        yield _card("time", duration(last.seconds), each)


def _card(name: str, value: str, below: str) -> str:
    return f'<div><dt>{name}</dt><dd class="figure">{value}</dd><dd>{below}</dd></div>'


def _quality(report: Report) -> str:
    """The figures with the metrics after the last; the matrix of a classification has them at its side."""
    first, *others = [figure.html() for figure in of_quality(report)] or [""]
    if report.task == "regression":
        return _grid([first, *others, _metrics(report.metrics)])
    return _grid([first, f'<div class="stack">{"".join(others)}{_metrics(report.metrics)}</div>', _classes(report)])


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for measured in metrics.values() for name in measured))
    if not names:
        return ""
    rows = [[escape(part), *(number(measured.get(name)) for name in names)] for part, measured in metrics.items()]
    return _boxed("Metrics", _table(["rows", *map(escape, names)], rows))


def _classes(report: Report) -> str:
    rows = [
        [safe(str(score.label)), number(score.rows), *map(_metered, (score.precision, score.recall, score.f1))]
        for score in scores(report)
    ]
    return _boxed("Per class", _table(["class", "rows", "precision", "recall", "F1"], rows), "span3")


def _metered(part: float) -> str:
    """A number between 0 and 1 with a bar beside it."""
    width = 0 if math.isnan(part) else 100 * part
    return f'{number(part, 3)}<span class="meter" aria-hidden="true"><i style="width:{width:.0f}%"></i></span>'


def _plan(plan: Sequence[tuple[str, str, str]]) -> str:
    rows = [[safe(what), f"<code>{safe(chosen)}</code>", safe(reason)] for what, chosen, reason in plan]
    if not rows:
        return ""
    return f'<div class="card plan">{_table(["what", "chosen", "why"], rows, numeric=False)}</div>'


def _facts(report: Report) -> str:
    boxes = [
        _boxed(
            title,
            _table([], [[safe(name), safe(value)] for name, value in facts.items()], numeric=False),
        )
        for title, facts in (("Settings", report.settings), ("Machine", report.machine))
        if facts
    ]
    return _grid(boxes, "grid pair")


def _steps(history: History, metric_name: str) -> str:
    infos = list(history)
    if not infos:
        return ""
    cut = len(infos) - 2 * STEPS_AT_EACH_END
    columns = [("step", lambda info: number(info.step)), ("loss", lambda info: number(info.loss))]
    if any(info.metric is not None for info in infos):
        columns.append((metric_name, lambda info: number(info.metric)))
    columns += [
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

    def row(info: StepInfo) -> list[str]:
        return [show(info) for _, show in columns]

    rows = [row(info) for info in infos]
    note = ""
    if cut > 0:
        rows = [*rows[:STEPS_AT_EACH_END], *rows[-STEPS_AT_EACH_END:]]
        note = f'<p class="muted">The first and the last {STEPS_AT_EACH_END} of {len(infos):,} steps.</p>'
    styles = ["" if info.accepted else "rejected" for info in infos]
    styles = styles if cut <= 0 else [*styles[:STEPS_AT_EACH_END], *styles[-STEPS_AT_EACH_END:]]
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
