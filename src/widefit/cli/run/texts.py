"""The work of `widefit finetune --text`: the text classifier of a folder adapted to a table, into another folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import widefit
from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, seconds
from widefit.cli.run.parts import held_out_and_training
from widefit.cli.run.places import refuse_checkpoint, refuse_unwritable, refuse_unwritable_folders
from widefit.cli.run.progress import callbacks_of
from widefit.cli.run.text_folder import (
    RECORD,
    TextClassifier,
    TextEncoding,
    load_to_adapt,
    texts_of,
    tokenized,
    write_folder,
)
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.target import choose_target, learn_target
from widefit.data.words import plural
from widefit.files import read_checkpoint
from widefit.kernels.devices import device_named


@dataclass(frozen=True)
class TextJob:
    """The wishes of the user; `widefit finetune --help` says what each field means."""

    model: Path
    data: str
    text: str
    target: str | None
    loss: str | None
    settings: Mapping[str, Any]
    out: Path | None
    delta: Path | None
    validation: float
    checkpoint: Path | None
    checkpoint_every: float
    resume: bool
    reading: Reading
    device: str = "auto"


def run(job: TextJob, output: Output) -> int:
    """Adapt the model and write it to a folder; return the exit code."""
    home = job.model.resolve()
    out = job.out or home.with_name(f"{home.name}.tuned")
    refuse_unwritable_folders({"--out": out, "--delta": job.delta}, {"the given model": job.model}, RECORD)
    refuse_unwritable({"--checkpoint": job.checkpoint}, {"the data": job.data})
    refuse_checkpoint(job.checkpoint, job.resume)
    if job.loss not in (None, "cross_entropy"):
        raise ValueError(f"--loss {job.loss}: texts are classified, with cross_entropy")
    if job.delta is not None and job.settings.get("layers") == "readout":
        raise ValueError("--delta: PEFT has no format for the readout alone; leave out --delta, or adapt more layers")
    with output.warnings():
        table = read_table(job.data, job.reading)
        target = learn_target(table.frame, choose_target(table, job.target), "classification")
        texts = texts_of(table.frame, job.text)
        labels = target.labels
        y = np.searchsorted(np.asarray(labels), np.asarray(target.values(table.frame)))
        parts = held_out_and_training(y, job.validation, job.settings.get("seed", 0), stratify=True)
        model, tokenizer = load_to_adapt(job.model, len(labels))
        adapted = _finetuned(job, model, tokenizer, texts, y, parts, output)
        record: Any = adapted.finetuning_
        classifier = TextClassifier(adapted, tokenizer, labels)
        write_folder(classifier, TextEncoding(job.text, target), out)
        delta = job.delta if record.delta.layers else None
        if delta is not None:
            record.delta.save_peft(delta, base_model=str(job.model))
        scores = _scores(classifier, texts, y, parts)
    history = record.history
    shown = columns("", "before", "after")
    best = min(history, key=lambda info: info.loss if info.metric is None else info.metric)
    if best.metric is not None:
        shown.add_row("held-out loss", number(history[0].metric), number(best.metric))
    for name, value in scores.items():
        shown.add_row(name, "", number(value))
    output.show(shown)
    for decision in record.decisions:
        output.remark(decision)
    last = history[-1]
    output.remark(f"{plural(last.step, 'epoch')} in {seconds(last.seconds)}; training ended because {history.why}")
    output.remark(f"model in {out}" + (f", adapter in {delta}" if delta else ""))
    if delta != job.delta:
        output.remark("no adapter: nothing but the readout was changed, and PEFT has no format for that")
    output.document(
        {
            "command": "finetune",
            "widefit": widefit.__version__,
            "rows": len(y),
            "loss": "cross_entropy",
            "layers": list(record.stages[-1]),
            "steps": last.step,
            "stopped": history.stop_reason,
            **scores,
            "held-out loss": [history[0].metric, best.metric],
            "seconds": last.seconds,
            "model": out,
            "delta": delta,
            "checkpoint": job.checkpoint,
            "classes": list(labels),
        }
    )
    return INTERRUPTED if history.stop_reason == "interrupted" else 0


def _finetuned(
    job: TextJob,
    model: nn.Module,
    tokenizer: Any,
    texts: list[str],
    y: np.ndarray,
    parts: Mapping[str, np.ndarray],
    output: Output,
) -> nn.Module:
    callbacks = callbacks_of(output, job.checkpoint, job.checkpoint_every)

    def rows(chosen: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return tokenized(tokenizer, [texts[row] for row in chosen]), torch.from_numpy(y[chosen])

    X, labels = rows(parts["training"])
    X_val, y_val = rows(parts["held-out"]) if "held-out" in parts else (None, None)
    adapted = widefit.finetune(
        model.to("cpu" if job.device == "auto" else device_named(job.device)),
        X,
        labels,
        loss="cross_entropy",
        X_val=X_val,
        y_val=y_val,
        validation=0,
        callbacks=callbacks,
        resume=read_checkpoint(job.checkpoint) if job.checkpoint is not None and job.resume else None,
        **job.settings,
    )
    model.to("cpu")
    return adapted.to("cpu")


def _scores(
    classifier: TextClassifier, texts: list[str], y: np.ndarray, parts: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Accuracy by part."""
    found = {}
    for name, rows in parts.items():
        chosen = np.asarray([texts[row] for row in rows], dtype=object)
        found[f"{name} accuracy"] = float((classifier.predict_proba(chosen).argmax(1) == y[rows]).mean())
    return found
