"""`widefit predict`."""

from pathlib import Path
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
    "widefit predict houses.widefit new.csv -o prices.csv",
    "widefit predict digits.widefit digits --proba | head",
    "widefit predict houses.widefit new.parquet --json",
)


@guarded
def command(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="A .csv, .tsv or .parquet file; standard output otherwise."),
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="Add the probability of every class, a column each.")] = False,
    header: HeaderOption = None,
    decimal: DecimalOption = None,
    na_value: NaValueOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Predict the target of every row of a table, in the same order."""
    limit_threads(threads)
    from widefit.cli.output import Output
    from widefit.cli.run.apply import predict

    return predict(model, data, out, proba, reading_of(header, decimal, na_value), Output(json, quiet))
