"""Text classifiers of transformers in folders: adapted to a table, and applied like other models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

import widefit
from widefit.cli.failure import INTERRUPTED
from widefit.cli.output import Output, columns, number, seconds
from widefit.cli.run.places import refuse_checkpoint, refuse_unwritable
from widefit.cli.run.progress import callbacks_of
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.splitting import split_rows
from widefit.data.target import Target, choose_target, learn_target
from widefit.data.words import listing, plural
from widefit.files import FileError, read_checkpoint
from widefit.files.atomic import replacing
from widefit.files.container import altered

RECORD = "widefit.json"
# Rows that go through a model at a time when it is applied.
_BATCH = 64
# The longest text in tokens, where the tokenizer does not say less.
_LONGEST = 512
# The fewest rows that are held out.
_FEWEST = 5


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


@dataclass(frozen=True)
class TextEncoding:
    """The columns of a table that a text classifier reads and predicts.

    Attributes
    ----------
    text
        Column of the texts.
    target
        Column of the classes.
    """

    text: str
    target: Target

    def reading(self, asked: Reading, truth: str | None = None) -> Reading:
        """Return instructions for another table of the same columns."""
        return replace(asked, kinds={self.text: "category", truth or self.target.name: self.target.kind})

    def encode(self, frame: pl.DataFrame, *, absent_is_zero: bool = False) -> np.ndarray:
        """Return the texts.

        Raises
        ------
        ValueError
            No such column, or rows without a text.
        """
        return np.asarray(texts_of(frame, self.text), dtype=object)


class TextClassifier:
    """A model and its tokenizer, with what widefit asks of estimators.

    Parameters
    ----------
    model
        Gives logits.
    tokenizer
        Its own.
    labels
        Classes in the order of the logits.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, labels: tuple):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.classes_ = np.asarray(labels)

    def predict_proba(self, texts: np.ndarray) -> np.ndarray:
        """Return probabilities of the classes, shape (n, k)."""
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), _BATCH):
                tokens = tokenized(self.tokenizer, list(texts[start : start + _BATCH]))
                found.append(self.model(**tokens).logits.double().softmax(1))
        return torch.cat(found).numpy() if found else np.zeros((0, len(self.classes_)))

    def predict(self, texts: np.ndarray) -> np.ndarray:
        """Return the likeliest class of every text."""
        return self.classes_[self.predict_proba(texts).argmax(1)]


def run(job: TextJob, output: Output) -> int:
    """Adapt the model and write it to a folder; return the exit code."""
    home = job.model.resolve()
    out = job.out or home.with_name(f"{home.name}.tuned")
    _refuse_folder("--out", out, job.model)
    if job.delta is not None:
        _refuse_folder("--delta", job.delta, job.model)
    refuse_unwritable({"--checkpoint": job.checkpoint}, {"the data": job.data})
    refuse_checkpoint(job.checkpoint, job.resume)
    if job.loss not in (None, "cross_entropy"):
        raise ValueError(f"--loss {job.loss}: texts are classified, with cross_entropy")
    with output.warnings():
        table = read_table(job.data, job.reading)
        target = learn_target(table.frame, choose_target(table, job.target), "classification")
        texts = texts_of(table.frame, job.text)
        labels = target.labels
        y = np.searchsorted(np.asarray(labels), np.asarray(target.values(table.frame)))
        model, tokenizer = _load(job.model, len(labels))
        training, held = _parts(y, job)
        adapted = _finetuned(job, model, tokenizer, texts, y, (training, held), output)
        record: Any = adapted.finetuning_
        classifier = TextClassifier(adapted, tokenizer, labels)
        _write(classifier, TextEncoding(job.text, target), out)
        if job.delta is not None:
            record.delta.save_peft(job.delta, base_model=str(job.model))
        scores = _scores(classifier, texts, y, {"held-out": held, "training": training})
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
    output.remark(f"model in {out}" + (f", adapter in {job.delta}" if job.delta else ""))
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
            "delta": job.delta,
            "checkpoint": job.checkpoint,
            "classes": list(labels),
        }
    )
    return INTERRUPTED if history.stop_reason == "interrupted" else 0


def open_folder(path: Path) -> tuple[TextClassifier, TextEncoding]:
    """Return the classifier of a folder that `widefit finetune --text` wrote, and the columns of its table.

    Raises
    ------
    FileError
        It is no such folder, or was altered.
    """
    if not (path / RECORD).is_file():
        raise FileError(f"{path} is a folder without {RECORD}: widefit finetune --text writes such folders")
    with altered(path / RECORD):
        document = json.loads((path / RECORD).read_text(encoding="utf-8"))
        encoding = TextEncoding(str(document["text"]), Target.from_dict(document["target"]))
    model, tokenizer = _load(path, len(encoding.target.labels))
    return TextClassifier(model, tokenizer, encoding.target.labels), encoding


def tokenized(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """Return texts as padded token numbers with their mask."""
    longest = min(int(getattr(tokenizer, "model_max_length", _LONGEST)), _LONGEST)
    return dict(tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"))


def texts_of(frame: pl.DataFrame, name: str) -> list[str]:
    """Return the texts of a column.

    Raises
    ------
    ValueError
        No such column, or rows without a text.
    """
    if name not in frame.columns:
        raise ValueError(f"there is no column {name!r} of texts; the columns are {listing(frame.columns)}")
    column = frame[name].cast(pl.String, strict=False)
    if column.null_count():
        row = int(column.is_null().arg_max() or 0) + 1
        raise ValueError(f"{plural(column.null_count(), 'row')} have no text in {name!r}, the first is row {row}")
    return column.to_list()


def _load(path: Path, classes: int) -> tuple[nn.Module, Any]:
    """The classifier of a local folder, and its tokenizer."""
    if find_spec("transformers") is None:
        raise ValueError("--text needs the package transformers: pip install 'widefit[transformers]'")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is not the folder of a model: it has no config.json")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)  # a head that is not in the files begins the same in every run
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=classes, local_files_only=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be opened by transformers: {str(error).splitlines()[0]}") from error
    return model, tokenizer


def _parts(y: np.ndarray, job: TextJob) -> tuple[np.ndarray, np.ndarray | None]:
    if round(job.validation * len(y)) < _FEWEST:
        return np.arange(len(y)), None
    return split_rows(y, job.validation, job.settings.get("seed", 0), stratify=True)


def _finetuned(
    job: TextJob,
    model: nn.Module,
    tokenizer: Any,
    texts: list[str],
    y: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray | None],
    output: Output,
) -> nn.Module:
    callbacks = callbacks_of(output, job.checkpoint, job.checkpoint_every)

    def rows(chosen: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return tokenized(tokenizer, [texts[row] for row in chosen]), torch.from_numpy(y[chosen])

    X, labels = rows(parts[0])
    X_val, y_val = (None, None) if parts[1] is None else rows(parts[1])
    return widefit.finetune(
        model,
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


def _scores(
    classifier: TextClassifier, texts: list[str], y: np.ndarray, parts: Mapping[str, np.ndarray | None]
) -> dict[str, float]:
    """Accuracy by part."""
    found = {}
    for name, rows in parts.items():
        if rows is not None:
            chosen = np.asarray([texts[row] for row in rows], dtype=object)
            found[f"{name} accuracy"] = float((classifier.predict_proba(chosen).argmax(1) == y[rows]).mean())
    return found


def _refuse_folder(option: str, path: Path, source: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{option}: {path} is a file; name a folder")
    if path.resolve() == source.resolve():
        raise ValueError(f"{option}: {path} is the given model; name another folder")
    if not path.resolve().parent.is_dir():
        raise ValueError(f"{option}: the folder {path.resolve().parent} does not exist")


def _write(classifier: TextClassifier, encoding: TextEncoding, out: Path) -> None:
    model: Any = classifier.model
    model.save_pretrained(out)
    classifier.tokenizer.save_pretrained(out)
    document = {"text": encoding.text, "target": encoding.target.to_dict(), "widefit": widefit.__version__}
    with replacing(out / RECORD) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
