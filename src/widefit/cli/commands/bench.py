"""`widefit bench`."""

import inspect
import json as json_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from widefit.cli.failure import guarded
from widefit.cli.options import JsonOption, QuietOption, ThreadsOption, examples, limit_threads

EXAMPLES = examples(
    "widefit bench",
    "widefit bench two-layer --quick",
    "widefit bench finetune --data mnist.npz",
    "widefit bench two-layer -o result.json --figure result.png",
    "widefit bench memory --json --quiet > result.json",
    "widefit bench samples --rows 10000,100000",
)
# Options of a bench itself.
CONTEXT = {"ignore_unknown_options": True}


@guarded
def command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Which one; lists them all when left out.", show_default=False),
    ] = None,
    further: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OPTIONS OF THE BENCH]", help="Those of its own script.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, under a minute.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The largest sizes as well.")] = False,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Measure on this data, where the bench takes some.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="auto|cpu|cuda|xpu", help="Measure on this device, where the bench takes one."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the result to this file, as JSON.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the result: .png, .svg or .pdf.")] = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Measure widefit beside what one would otherwise use, on this machine."""
    if quick and full:
        raise typer.BadParameter("--quick and --full exclude each other")
    from widefit import __version__
    from widefit.cli.benches import find, folder_of_benches, further_options, load
    from widefit.cli.output import Output
    from widefit.cli.run.places import refuse_unwritable

    output = Output(json, quiet)
    found = find(folder_of_benches())
    if name is None:
        _list(found, output)
        return 0
    if name not in found:
        raise ValueError(f"there is no bench {name!r}; there are {', '.join(found) or 'none in this installation'}")
    refuse_unwritable({"--out": out, "--figure": figure}, {})
    limit_threads(threads)
    module = load(found[name].path)
    draw = getattr(module, "figure", None) or getattr(module, "draw", None)
    if figure is not None and draw is None:
        raise ValueError(f"--figure: the bench {name} has none")
    if figure is not None and find_spec("matplotlib") is None:
        raise ValueError("--figure needs the package matplotlib: pip install 'widefit[bench]'")
    asked = {"data": data, "device": device}
    options = {option: value for option, value in asked.items() if value is not None}
    for option in options.keys() - inspect.signature(module.run).parameters.keys():
        raise ValueError(f"--{option}: the bench {name} takes none")
    options |= further_options(name, module.run, further or ())
    if device not in (None, "auto"):
        from widefit.kernels.devices import device_named

        device_named(device)
    with output.warnings():
        result = module.run("quick" if quick else "full" if full else "default", **options)
    _show(result, output)
    output.document({"command": "bench", "widefit": __version__, "bench": name} | result)
    if out is not None:
        _write(result, out)
        output.remark(f"result in {out}")
    if figure is not None and draw is not None:
        draw(result, figure)
        output.remark(f"figure in {figure}")
    return 0


def _list(found: dict, output: Any) -> None:
    from widefit.cli.output import columns

    if not found:
        output.remark("there are no benches in this installation")
        return
    table = columns("bench", "")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    for name, entry in found.items():
        table.add_row(name, entry.summary)
    output.show(table)
    output.document({"command": "bench", "benches": {name: entry.summary for name, entry in found.items()}})


def _show(result: dict[str, Any], output: Any) -> None:
    from rich.markup import escape

    from widefit.cli.benches import compared
    from widefit.cli.output import columns, number

    table = columns("figure", "value", "unit", "")
    for index in (0, 2, 3):
        table.columns[index].justify, table.columns[index].no_wrap = "left", False
    for line in result["figures"]:
        table.add_row(line["name"], number(line["value"]), line["unit"], compared(line))
    output.show(table)
    for line in result.get("skipped", []):
        output.show(escape(f"skipped {line['name']}: {line['reason']}"))
    machine = result.get("machine", {})
    output.show("\n[dim]" + ", ".join(f"{key} {value}" for key, value in machine.items()) + "[/dim]")


def _write(result: dict[str, Any], path: Path) -> None:
    from widefit.cli.output import plain
    from widefit.files.atomic import replacing

    text = json_module.dumps(plain(result), indent=2, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
