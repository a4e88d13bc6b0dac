"""`widefit finetune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from widefit.cli.failure import guarded
from widefit.cli.options import (
    CheckpointEveryOption,
    CheckpointOption,
    DecimalOption,
    DeviceOption,
    HeaderOption,
    JsonOption,
    NaValueOption,
    QuietOption,
    ResumeOption,
    ThreadsOption,
    examples,
    limit_threads,
    one_of,
    reading_of,
    refuse_resume_without_checkpoint,
)
from widefit.plan.names import LAYERS, TORCH_LOSSES

EXAMPLES = examples(
    "widefit finetune my_models:build weights.pt new.csv --target price",
    "widefit finetune my_models:Classifier weights.safetensors new.csv --target label --loss cross_entropy",
    "widefit finetune my_models:build weights.pt new.csv --layers fc2 --layers fc3 --delta new.delta",
    "widefit finetune my_models:build weights.pt big.parquet --layers all --checkpoint tune.ckpt",
    "widefit finetune my_models:build weights.pt big.parquet --layers all --checkpoint tune.ckpt --resume",
    "widefit finetune ./minilm questions.csv --text question --target label",
)


@guarded
def command(
    factory: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="MODULE:FACTORY, a class or function without arguments in a module that Python can import from here "
            "(its code is run); with --text the folder of a model of transformers and its tokenizer.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="Its state dict: .safetensors, or a file of torch.save. A folder has its weights: leave this out.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="A table, as for widefit train.", show_default=False)
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of texts, for a model in a folder.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="The column to predict; by default one called target, y, label or class."),
    ] = None,
    loss: Annotated[
        str, one_of(("auto", *TORCH_LOSSES), "By default cross_entropy for classes and mse for numbers.")
    ] = "auto",
    layers: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help='"auto", "readout", "all" or a linear layer; may be repeated.'),
    ] = None,
    alpha: Annotated[float, typer.Option(min=0.0, metavar="A", help="Ridge towards the given weights.")] = 0.0,
    validation: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the rows held out for early stopping; 0: none.")
    ] = 0.2,
    max_iter: Annotated[int, typer.Option(min=1, metavar="N", help="Most steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Draws the held-out rows, and batches.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The new state dict, .safetensors or .pt, or a folder; by default WEIGHTS.tuned.*",
        ),
    ] = None,
    delta: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the low-rank factors of the change alone; for texts a folder that PEFT loads.",
        ),
    ] = None,
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
    """Adapt a trained PyTorch network to a table, and write its new weights.

    The columns of the table, numbers in the order of the file without the target, are the inputs of the model. Classes
    are numbered from 0, text in alphabetical order. With --text a classifier in a folder is adapted to a column of
    texts, and written to another folder for predict and evaluate. Ctrl-C ends the training after the step in progress
    and keeps the best weights so far.
    """
    refuse_resume_without_checkpoint(resume, checkpoint)
    limit_threads(threads)
    from widefit.cli.output import Output
    from widefit.cli.run.finetune import Job, run

    chosen = layers or ["auto"]
    words = chosen[0] if len(chosen) == 1 and chosen[0] in LAYERS else tuple(chosen)
    settings = {"layers": words, "alpha": alpha, "max_iter": max_iter, "seed": seed}
    shared: dict[str, Any] = {
        "target": target,
        "loss": None if loss == "auto" else loss,
        "settings": settings,
        "device": device,
        "out": out,
        "delta": delta,
        "validation": validation,
        "checkpoint": checkpoint,
        "checkpoint_every": checkpoint_every,
        "resume": resume,
        "reading": reading_of(header, decimal, na_value),
    }
    if text is not None:
        if data is not None:
            raise ValueError(f"--text: a folder has its weights; give the folder and the table alone, not {data} too")
        from widefit.cli.run.texts import TextJob
        from widefit.cli.run.texts import run as run_texts

        return run_texts(TextJob(model=Path(factory), data=str(weights), text=text, **shared), Output(json, quiet))
    if data is None:
        raise ValueError("a table is missing: MODULE:FACTORY WEIGHTS DATA, or FOLDER DATA with --text COLUMN")
    return run(Job(factory=factory, weights=weights, data=data, **shared), Output(json, quiet))
