"""The voice of a command: results to standard output, everything else to standard error."""

import json
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from widefit.cli.streams import Dispensable, standard_output

# Where the terminal's width is not known (a file, a pipe) nothing should be cut short.
PIPE_WIDTH = 120


@dataclass(frozen=True)
class Output:
    """The two streams of a command.

    Attributes
    ----------
    json
        Standard output carries one JSON document and nothing else.
    quiet
        Only errors are printed, and with `json` the document.
    """

    json: bool = False
    quiet: bool = False

    @cached_property
    def stderr(self) -> Console:
        """For progress and remarks: one console, so that lines appear above a progress bar and not inside it."""
        return _console(Dispensable(sys.stderr))

    def remark(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            self.stderr.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that the user should read."""
        if not self.quiet:
            self.stderr.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True, highlight=False)

    def show(self, what: RenderableType) -> None:
        """Part of the result, for people."""
        if not self.quiet and not self.json:
            _console().print(what, soft_wrap=isinstance(what, str), highlight=False)

    def document(self, content: Mapping[str, Any]) -> None:
        """The result, for programs."""
        if self.json:
            stream, value = standard_output(), plain(content)
            text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=2)
            if not _encodes(text, stream):
                text = json.dumps(value, allow_nan=False, indent=2)
            print(text, file=stream, flush=True)

    def data(self, text: str) -> None:
        """A table as text, in UTF-8 like those in files."""
        stream = standard_output()
        stream.flush()
        stream.buffer.write(text.encode())
        stream.buffer.flush()

    @contextmanager
    def warnings(self) -> Iterator[None]:
        """Show Python's warnings as lines of `warn`, and what the library logs as remarks, while the block lasts."""

        def show(message: Warning | str, category: type[Warning], *_: object) -> None:
            if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
                self.warn(" ".join(str(message).split()))

        handler = _Remarks(self)
        logger = logging.getLogger("widefit")
        logger.addHandler(handler)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.showwarning = show
                yield
        finally:
            logger.removeHandler(handler)


class _Remarks(logging.Handler):
    """Log records from level WARNING on, as remarks."""

    def __init__(self, output: Output):
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.remark(record.getMessage())


def plain(value: Any) -> Any:
    """Return a value as every JSON parser reads it: no NumPy, no objects, null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"type": type(value).__name__, **plain(own)}
    return str(value)


def columns(*headings: str) -> Table:
    """An empty table: text in the first column, numbers right-aligned in the others."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return table


def number(value: float | None) -> str:
    """Four or five significant digits, short: 0.9917, 1234.5, 3.2e-09."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 100 else "0" if value == 0 else f"{value:.4g}"


def seconds(value: float) -> str:
    """'0.31 s', '2 min 5 s', '1 h 2 min'."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(path: Path) -> str:
    """Size of a file in decimal units."""
    count = float(path.stat().st_size)
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _encodes(text: str, stream: Any) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _console(file: Any = None) -> Console:
    """On standard output unless a file is given."""
    console = Console(file=file)
    return console if console.is_terminal else Console(file=file, width=PIPE_WIDTH)
