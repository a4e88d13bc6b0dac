"""Options that several commands share, and how their values are read."""

import os
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.models import OptionInfo

if TYPE_CHECKING:
    from widefit.data.reading import Reading

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, metavar="N", help="Processor cores to use; all by default."),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda|xpu|mps",
        help="Where the network is trained: auto leaves it on the CPU.",
    ),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A .csv, .tsv, .txt, .parquet, .npz, .svm, .arff or .xlsx file, also .gz, .bz2, .xz, .zst or .zip; - for "
        "standard input; or digits, diabetes, breast_cancer, wine, iris, california_housing, openml:NAME.",
        show_default=False,
    ),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model file that widefit train wrote, or a folder of finetune --text.",
        show_default=False,
    ),
]


class DecimalChoice(StrEnum):
    """The mark between the whole part of a number and its fraction; the other one separates thousands."""

    POINT = "."
    COMMA = ","


READING = "How the table is written"
HeaderOption = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        rich_help_panel=READING,
        help="Whether the first line of a text holds the names; by default seen from the text.",
        show_default=False,
    ),
]
DecimalOption = Annotated[
    DecimalChoice | None,
    typer.Option(
        rich_help_panel=READING,
        help="The decimal mark of a text, the other one being for thousands; by default seen from the text.",
    ),
]
NaValueOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VALUE",
        rich_help_panel=READING,
        help="What stands for a missing value, besides NA, NaN, ? and the like; may be repeated.",
    ),
]
FILES = "Files"
CheckpointOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=FILES, help="Keep the state of the training in this file."),
]
CheckpointEveryOption = Annotated[
    float, typer.Option(min=0.0, metavar="SECONDS", rich_help_panel=FILES, help="How often to do so.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", rich_help_panel=FILES, help="Go on from the state in --checkpoint.")
]


def reading_of(header: bool | None, decimal: DecimalChoice | None, na_values: list[str] | None) -> "Reading":
    """The instructions for readers that these options give."""
    from widefit.data.reading import Reading

    return Reading(header, None if decimal is None else decimal.value, tuple(na_values or ()))


def refuse_resume_without_checkpoint(resume: bool, checkpoint: Path | None) -> None:
    """Raise a BadParameter where --resume has no file to go on from."""
    if resume and checkpoint is None:
        raise typer.BadParameter("--resume needs --checkpoint FILE, the state to go on from")


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
    """Hold every library to `count` threads, before they are imported, which is when they look.

    Threads that wait for work sleep, unless the environment says otherwise: on a busy machine two that spin take three
    times the processor time of one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # 2⁴ cycles
    if count is None:
        return
    libraries = ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB")
    for name in (*(f"{library}_NUM_THREADS" for library in libraries), "POLARS_MAX_THREADS"):
        os.environ[name] = str(count)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
