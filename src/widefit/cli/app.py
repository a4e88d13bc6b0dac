"""The commands under one name. Nothing here or in the commands' files imports torch before a command runs."""

from typing import Annotated

import typer

from widefit.cli.commands import bench, evaluate, finetune, info, predict, train
from widefit.cli.options import examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "widefit train digits",
        "widefit train houses.csv --target price",
        "widefit predict houses.widefit new.csv -o prices.csv",
        "widefit evaluate houses.widefit test.csv",
    ),
)
for part in (train, predict, evaluate, finetune, info, bench):
    settings = getattr(part, "CONTEXT", None)
    app.command(part.__name__.rpartition(".")[2], epilog=part.EXAMPLES, context_settings=settings)(part.command)


def _show_version(wanted: bool) -> bool:
    if wanted:
        from widefit import __version__

        typer.echo(f"widefit {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def widefit(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train wide neural networks to convergence in a handful of second-order steps."""
