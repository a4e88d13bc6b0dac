"""`widefit train`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from widefit.cli.failure import guarded
from widefit.cli.launch import checked_by_all, launched, several_processes
from widefit.cli.options import (
    FILES,
    CheckpointEveryOption,
    CheckpointOption,
    DataArgument,
    DecimalOption,
    DeviceOption,
    HeaderOption,
    JsonOption,
    NaValueOption,
    QuietOption,
    ResumeOption,
    ThreadsOption,
    auto_or_number,
    examples,
    layer_sizes,
    limit_threads,
    one_of,
    reading_of,
    refuse_resume_without_checkpoint,
)
from widefit.plan.names import ACTIVATIONS, DEEP_SOLVERS, RULES, STREAM_TRACKERS, TRACKERS, TWO_LAYER_SOLVERS

if TYPE_CHECKING:
    # What they stand on is imported when the command runs.
    from widefit.cli.output import Output
    from widefit.cli.run.prepare import Job
    from widefit.processes import Processes

EXAMPLES = examples(
    "widefit train digits",
    "widefit train houses.csv --target price --drop id --impute",
    "widefit train digits --hidden-layer-sizes 2048,2048",
    "widefit train openml:adult --width 16384 --test-size 0.3",
    "widefit train endless.csv --stream --target y",
    "widefit train big.parquet --checkpoint big.ckpt",
    "widefit train big.parquet --checkpoint big.ckpt --resume",
    "widefit train digits --json --quiet > result.json",
    "torchrun --nproc-per-node 2 -m widefit train big.parquet",
)


TABLE = "The table"
MODEL = "The model"


def auto_or_number_option(text: str) -> OptionInfo:
    """An option whose value is "auto" or a number."""
    return typer.Option(help=text, parser=auto_or_number, metavar="auto|NUMBER", rich_help_panel=MODEL)


TargetOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        rich_help_panel=TABLE,
        help="The column to predict; by default one called target, y, label or class, else the last.",
    ),
]
TaskOption = Annotated[
    str | None,
    one_of(
        ("regression", "classification"),
        "By default seen from the target: text, booleans and a few whole numbers are classes.",
        TABLE,
    ),
]
DropOption = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", rich_help_panel=TABLE, help="Leave a column out; may be repeated."),
]
ImputeOption = Annotated[
    bool,
    typer.Option(
        "--impute", rich_help_panel=TABLE, help="Fill missing values: the median, or the most frequent category."
    ),
]
IndicatorOption = Annotated[
    bool,
    typer.Option(
        "--missing-indicator",
        rich_help_panel=TABLE,
        help="Take missing values as information: a category of its own, or a column that says where they are, beside "
        "the median.",
    ),
]
StreamOption = Annotated[
    bool,
    typer.Option(
        "--stream",
        rich_help_panel=TABLE,
        help="Learn every row of a .csv, .tsv or .parquet file once, in its order and in memory that does not grow "
        "with the rows. The rule is sgd; nothing is held out: every row is predicted before it is learnt.",
    ),
]
BlockOption = Annotated[
    int,
    typer.Option(
        min=2,
        metavar="ROWS",
        rich_help_panel=TABLE,
        help="Rows that --stream reads at a time. The first of them decide on columns, classes and scales.",
    ),
]
TestSizeOption = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        rich_help_panel=TABLE,
        help="Share of the rows held out to measure on, of each class alike; 0 trains on all.",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        min=0, max=2**32 - 1, metavar="N", rich_help_panel=TABLE, help="Fixes the split and the initial weights."
    ),
]
WidthOption = Annotated[
    int | None,
    typer.Option(
        min=2, metavar="N", rich_help_panel=MODEL, help="Neurons; 16384 without it, and up to 65536 for many rows."
    ),
]
SizesOption = Annotated[
    str | None,
    typer.Option(
        "--hidden-layer-sizes",
        metavar="N,N,…",
        rich_help_panel=MODEL,
        help="Neurons of several hidden layers, in place of --width.",
    ),
]
ActivationOption = Annotated[str, one_of(ACTIVATIONS, "What a neuron computes.", MODEL)]
# A float or "auto": typer takes no unions.
ThresholdOption = Annotated[object, auto_or_number_option("What a neuron must exceed to fire.")]
AlphaOption = Annotated[object, auto_or_number_option("Ridge: the pull towards the initial weights.")]
RuleOption = Annotated[str, one_of(RULES, "How a step is chosen.", MODEL)]
TrackerOption = Annotated[str, one_of(TRACKERS, "How firing neurons are found.", MODEL)]
SolverOption = Annotated[
    str,
    one_of(
        dict.fromkeys([*TWO_LAYER_SOLVERS, *DEEP_SOLVERS]),
        "How each step's equations are solved; nystrom-cg with one hidden layer, block-cg with several.",
        MODEL,
    ),
]
MaxIterOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=2**31,
        metavar="N",
        rich_help_panel=MODEL,
        help="Largest number of steps; of epochs with sgd.",
    ),
]
TolOption = Annotated[object, auto_or_number_option("Training loss at which to stop.")]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", rich_help_panel=FILES, help="The model file; by default NAME.widefit here."
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=FILES, help="The report; by default beside the model, with .html."),
]
NoReportOption = Annotated[bool, typer.Option("--no-report", rich_help_panel=FILES, help="Write no report.")]


@partial(guarded, shared=True)
def command(
    data: DataArgument,
    target: TargetOption = None,
    task: TaskOption = None,
    drop: DropOption = None,
    impute: ImputeOption = False,
    missing_indicator: IndicatorOption = False,
    stream: StreamOption = False,
    block: BlockOption = 10_000,
    test_size: TestSizeOption = 0.2,
    seed: SeedOption = 0,
    width: WidthOption = None,
    hidden_layer_sizes: SizesOption = None,
    activation: ActivationOption = "shifted_relu",
    threshold: ThresholdOption = "auto",
    alpha: AlphaOption = "auto",
    rule: RuleOption = "gauss-newton",
    tracker: TrackerOption = "auto",
    solver: SolverOption = "auto",
    max_iter: MaxIterOption = 20,
    tol: TolOption = "auto",
    out: OutOption = None,
    report: ReportOption = None,
    no_report: NoReportOption = False,
    checkpoint: CheckpointOption = None,
    checkpoint_every: CheckpointEveryOption = 30.0,
    resume: ResumeOption = False,
    header: HeaderOption = None,
    decimal: DecimalOption = None,
    na_value: NaValueOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Train a wide network on a table, and leave a model file and a report.

    Ctrl-C ends the training after the step in progress and keeps the best model so far. Several processes share the
    neurons of one hidden layer under torchrun: torchrun --nproc-per-node 2 -m widefit train …
    """
    if no_report and report is not None:
        raise typer.BadParameter("--report and --no-report exclude each other")
    refuse_resume_without_checkpoint(resume, checkpoint)
    if stream and tracker not in ("auto", *STREAM_TRACKERS):
        raise typer.BadParameter(f"--stream takes --tracker auto, {' or '.join(STREAM_TRACKERS)}, not {tracker}")
    if stream and alpha not in ("auto", 0):
        raise typer.BadParameter("--stream has no ridge: --alpha is auto or 0")
    limit_threads(threads)
    from widefit.cli.output import Output
    from widefit.cli.run.prepare import Job

    widths = "auto" if width is None else (width,)
    settings = {
        "hidden_layer_sizes": widths if hidden_layer_sizes is None else layer_sizes(hidden_layer_sizes),
        "activation": activation,
        "threshold": threshold,
        "alpha": alpha,
        "rule": "sgd" if stream else rule,
        "tracker": tracker,
        "solver": solver,
        "max_iter": max_iter,
        "tol": tol,
        "random_state": seed,
        "device": device,
    }
    job = Job(
        data=data,
        target=target,
        task=task,
        drop=tuple(drop or ()),
        impute=impute,
        test_size=test_size,
        seed=seed,
        settings=settings,
        out=out,
        report=report,
        wants_report=not no_report,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        block_rows=block,
        reading=reading_of(header, decimal, na_value),
        indicate=missing_indicator,
    )
    if stream and several_processes():
        raise ValueError("--stream learns row by row, in one process: start widefit without torchrun")
    with launched() as processes:
        speaks = processes is None or processes.rank == 0
        output = Output(json and speaks, quiet or not speaks)
        return _trained(job, stream, output, processes)


def _trained(job: "Job", stream: bool, output: "Output", processes: "Processes | None") -> int:
    """Do the work of the command."""
    from widefit.cli.run.prepare import prepare

    with output.warnings():
        if stream:
            from widefit.cli.run.stream import stream as run_stream

            return run_stream(job, output)
        prepared = checked_by_all(lambda: prepare(job), processes)
        for note in prepared.notes:
            output.remark(note)
        # torch and all that stands on it come in only now, when the input is known to be good.
        from widefit.cli.run.train import run

        return run(job, prepared, output, processes)
