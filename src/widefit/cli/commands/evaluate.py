"""`widefit evaluate`."""

from typing import Annotated

import typer

from widefit.cli.failure import guarded
from widefit.cli.options import (
    DataArgument,
    DecimalOption,
    HeaderOption,
    JsonOption,
    ModelArgument,
    NaValueOption,
    QuietOption,
    ThreadsOption,
    examples,
    limit_threads,
    reading_of,
)

EXAMPLES = examples(
    "widefit evaluate houses.widefit test.csv",
    "widefit evaluate houses.widefit test.csv --target sold_for --json",
)


@guarded
def command(
    model: ModelArgument,
    data: DataArgument,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column with the truth; by default the one that training predicted."),
    ] = None,
    header: HeaderOption = None,
    decimal: DecimalOption = None,
    na_value: NaValueOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Measure a model on a table whose target is known."""
    limit_threads(threads)
    from widefit.cli.output import Output
    from widefit.cli.run.apply import evaluate

    return evaluate(model, data, target, reading_of(header, decimal, na_value), Output(json, quiet))
