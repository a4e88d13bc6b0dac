"""Options that several commands share, and how their values are read."""

import os
import sys
from collections.abc import Iterable
from typing import Annotated, Literal

import typer
from typer.models import OptionInfo

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, metavar="N", help="Processor cores to use; all by default."),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A .csv, .tsv, .parquet, .npz, .svm or .libsvm file, or digits, diabetes, breast_cancer, wine, iris, "
        "california_housing, openml:NAME.",
        show_default=False,
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model file that widefit train wrote.", show_default=False)
]


def examples(*lines: str) -> str:
    """The end of a help page: commands as one types them, a line each."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)])


def one_of(names: Iterable[str], text: str, panel: str | None = None) -> OptionInfo:
    """An option whose value is one of some names."""
    known = tuple(names)

    def parse(word: str) -> str:
        if word not in known:
            raise typer.BadParameter(f"{word!r} is not one of {', '.join(map(repr, known))}")
        return word

    return typer.Option(
        help=text, parser=parse, metavar="|".join(known), autocompletion=lambda: list(known), rich_help_panel=panel
    )


def auto_or_number(text: str) -> float | Literal["auto"]:
    """A number, or the word "auto"."""
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number") from error


def layer_sizes(text: str) -> tuple[int, ...]:
    """Numbers of neurons, separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a list of numbers of at least 2 neurons, such as 2048,2048",
            param_hint="'--hidden-layer-sizes'",
        )
    return tuple(int(part) for part in parts)


def limit_threads(count: int | None) -> None:
    """Hold every library to `count` threads, before they are imported, which is when they look."""
    if count is None:
        return
    libraries = ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB")
    for name in (*(f"{library}_NUM_THREADS" for library in libraries), "POLARS_MAX_THREADS"):
        os.environ[name] = str(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
