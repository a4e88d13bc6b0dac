"""`widefit info`."""

from widefit.cli.failure import guarded
from widefit.cli.options import JsonOption, ModelArgument, QuietOption, examples

EXAMPLES = examples("widefit info houses.widefit", "widefit info houses.widefit --json")


@guarded
def command(model: ModelArgument, json: JsonOption = False, quiet: QuietOption = False) -> int:
    """Say what is inside a model file."""
    from widefit.cli.output import Output
    from widefit.cli.run.apply import describe

    return describe(model, Output(json, quiet))
