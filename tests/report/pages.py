"""Reports of many kinds, and a strict reader of the pages they give."""

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np

from widefit.report import Report, Source
from widefit.training.history import History, StepInfo

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Every element with its attributes and the text within; raises where tags do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> does not close the innermost element"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def drawings(source: str) -> list[ElementTree.Element]:
    """The SVG elements of a page, each parsed as XML."""
    return [ElementTree.fromstring(drawing) for drawing in re.findall(r"<svg.*?</svg>", source, re.DOTALL)]


def history(losses: list[float], stop_reason: str = "max_iter", **fields: list) -> History:
    steps = [
        StepInfo(step, loss, seconds=0.25 * step, **{name: values[step] for name, values in fields.items()})
        for step, loss in enumerate(losses)
    ]
    return History(steps, stop_reason, {"pass": 0.1 * len(steps), "solve": 0.05})


def regression(run: History | None = None, rows: int = 200, outputs: int = 1, seed: int = 0, **fields) -> Report:
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(rows, outputs) if outputs > 1 else rows)
    prediction = truth + 0.3 * generator.normal(size=truth.shape)
    run = run if run is not None else history([1.0, 1e-2, 1e-5])
    return Report("Houses", "regression", Source("houses.csv", 1000, 8, "price"), run, truth, prediction, **fields)


def classification(classes: int = 3, rows: int = 300, seed: int = 0, **fields) -> Report:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(rows, classes))
    truth = generator.integers(classes, size=rows)
    scores[np.arange(rows), truth] += 2
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = [f"class {code}" for code in range(classes)]
    names = np.array(labels)
    return Report(
        "Kinds",
        "classification",
        Source("kinds.csv", 1000, 8, "kind"),
        history([1.0, 1e-2, 1e-5]),
        names[truth],
        names[chances.argmax(1)],
        classes=labels,
        probabilities=chances,
        **fields,
    )


def long_history(steps: int) -> History:
    losses = [math.exp(-step / steps * 20) for step in range(steps)]
    accepted = [step % 7 != 3 for step in range(steps)]
    return history(losses, accepted=accepted, flips=[steps - step for step in range(steps)])


# What a run may leave behind at its edges.
HISTORIES: dict[str, Callable[[], History]] = {
    "no step": History,
    "one step": lambda: history([0.5]),
    "loss exactly zero": lambda: history([1.0, 1e-3, 0.0], "tol"),
    "only zeros": lambda: history([0.0, 0.0]),
    "not finite": lambda: history([1.0, math.nan, math.inf, 1e-3]),
    "only NaN": lambda: history([math.nan, math.nan], metric=[math.nan, math.nan]),
    "constant": lambda: history([0.7] * 5),
    "tiny and huge": lambda: history([1e30, 1.0, 1e-300]),
    "all rejected": lambda: history([1.0, 1.0, 1.0], accepted=[True, False, False]),
    "no flips": lambda: history([1.0, 0.5], flips=[0, 0], rebased=[True, False]),
    "a metric": lambda: history([1.0, 0.5, 0.1], metric=[None, 0.5, 0.9]),
    "unknown reason": lambda: history([1.0, 0.5], "<stopped> & gone"),
    "ten thousand steps": lambda: long_history(10_000),
}
