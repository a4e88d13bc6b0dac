"""The page: a record in, one self-contained HTML document out."""

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path

import widefit
from widefit.files.atomic import replacing
from widefit.report import tables
from widefit.report.figures import of_quality, of_training
from widefit.report.figures_of_rows import intervals
from widefit.report.record import Report
from widefit.report.text import duration, number, plural, safe, share

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


def write(path: str | Path, report: Report) -> None:
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
    page = render(report)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(report: Report) -> str:
    """The page as text: valid HTML5 that loads nothing."""
    style = files("widefit.report").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(report.title)
    facts = [tables.facts("Settings", report.settings), tables.facts("Machine", report.machine)]
    body = "\n".join(
        part
        for part in (
            _header(report),
            "<main>",
            _section("How well it predicts", _quality(report)),
            _folded(
                "How it was trained",
                _grid(figure.html() for figure in of_training(report)),
                _section("What was decided, and why", tables.plan(report.plan)),
                _section("Settings and machine", _grid(facts, "grid pair")),
            ),
            tables.steps(report.history, report.metric_name),
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


def _folded(title: str, *parts: str) -> str:
    content = "".join(parts)
    return f"<details><summary>{title}</summary>{content}</details>" if content else ""


def _grid(boxes: Iterable[str], style: str = "grid") -> str:
    content = "".join(boxes)
    return f'<div class="{style}">{content}</div>' if content else ""


def _header(report: Report) -> str:
    data, history = report.data, report.history
    reason = history.why
    ended = f" Training ended because {escape(reason)}." if reason else ""
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
        yield from _against_baseline(report, name, value)
    steps = report.history.steps
    if steps:
        last, rejected = steps[-1], sum(not info.accepted for info in steps)
        yield _card("training loss", number(last.loss, 2), f"from {number(steps[0].loss, 3)}")
        yield _card("steps", number(last.step), f"{number(rejected)} rejected" if rejected else "none rejected")
        each = f"{duration(last.seconds / last.step)} a step" if last.step else ""
        yield _card("time", duration(last.seconds), each)


def _against_baseline(report: Report, name: str, value: float) -> Iterator[str]:
    """The error as a part of what a constant prediction has."""
    constant = next((found for part, found in report.metrics.items() if part.startswith("baseline")), {}).get(name)
    if constant is None:
        return
    error, reference = (1 - value, 1 - constant) if name in ("accuracy", "R²") else (value, constant)
    if reference > 0:
        yield _card("error against baseline", share(error / reference), "of what a constant prediction has")


def _card(name: str, value: str, below: str) -> str:
    return f'<div><dt>{name}</dt><dd class="figure">{value}</dd><dd>{below}</dd></div>'


def _quality(report: Report) -> str:
    """The figures with the metrics after the last; the matrix of a classification has them at its side."""
    first, *others = [figure.html() for figure in of_quality(report)] or [""]
    if report.task == "regression":
        said = intervals(report)
        sure = f'<div class="card"><h3>Intervals</h3><p>{said}</p></div>' if said else ""
        numbers = f'<div class="stack">{tables.metrics(report.metrics)}{sure}</div>'
        return _grid([first, *others, numbers, tables.worst(report)])
    # The matrix of many classes takes two of the three columns, and what follows the side fills the next row.
    calibrated = others[:1] if report.probabilities is not None else []
    side = f'<div class="stack">{"".join(calibrated)}{tables.metrics(report.metrics)}</div>'
    return _grid([first, side, *others[len(calibrated) :], tables.worst(report), tables.classes(report)])
