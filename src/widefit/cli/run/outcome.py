"""The results that every `widefit train` reports, for people and for programs."""

from pathlib import Path
from typing import Any

from rich.table import Table

import widefit
from widefit.cli.output import Output, columns, size
from widefit.data.encoding import TableEncoding
from widefit.data.table import plural
from widefit.plan.base import Plan
from widefit.report import Source


def source(name: str, rows: int, encoding: TableEncoding) -> Source:
    """The table as the report names it."""
    return Source(name, rows, len(encoding.feature_names), encoding.target.name)


def show(
    output: Output,
    data: Source,
    encoding: TableEncoding,
    plan: Plan,
    results: Table,
    ended: str,
    files: dict[str, Path],
) -> None:
    """The table and its target, what "auto" chose, the scores, how the training ended, and the files written."""
    target = encoding.target
    what = "regression" if target.task == "regression" else plural(len(target.labels), "class", "classes")
    output.show(
        f"[bold]{data.name}[/bold]: {plural(data.rows, 'row')}, {plural(data.columns, 'feature')}, "
        f"target {data.target} ({what})\n"
    )
    output.show(_decisions(plan))
    output.show(results)
    output.show(f"\n{ended}")
    for name, path in files.items():
        output.show(f"{name:<11}{path} ({size(path) if path.exists() else 'could not be written'})")


def document(data: Source, encoding: TableEncoding, model: Any, files: dict[str, Path]) -> dict[str, Any]:
    """The part of the JSON that trainings share."""
    target = encoding.target
    return {
        "command": "train",
        "widefit": widefit.__version__,
        "data": {
            "name": data.name,
            "rows": data.rows,
            "features": list(encoding.feature_names),
            "left_out": [{"column": name, "reason": why} for name, why in encoding.left_out],
            "target": target.name,
            "task": target.task,
            "classes": list(target.labels),
        },
        "plan": model.plan_.to_dict(),
        "history": model.history_.to_dict(),
        "files": files,
    }


def _decisions(plan: Plan) -> Table:
    table = columns("decision", "", "why")
    table.columns[1].justify = table.columns[2].justify = "left"
    table.columns[1].no_wrap = table.columns[2].no_wrap = False
    table.columns[2].min_width = 24  # on a narrow terminal both give way
    for row in plan.rows():
        table.add_row(*row)
    return table
