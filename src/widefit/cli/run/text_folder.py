"""A text classifier of transformers as a folder: its weights, its tokenizer, and the columns that it reads."""

import json
import warnings
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

import widefit
from widefit.data.reading import Reading
from widefit.data.target import Target
from widefit.data.words import listing, plural
from widefit.files import FileError
from widefit.files.atomic import replacing
from widefit.files.container import altered
from widefit.files.json_text import parse
from widefit.records import read

RECORD = "widefit.json"
# Rows that go through a model at a time when it is applied.
_BATCH = 64
# The longest text in tokens, where the tokenizer does not say less.
_LONGEST = 512


@dataclass(frozen=True)
class _Record:
    """The document beside the files of transformers."""

    text: str
    target: Target
    widefit: str

    def __post_init__(self) -> None:
        labels = self.target.labels
        if self.target.task != "classification" or not labels or len(set(labels)) != len(labels):
            raise ValueError(f"the target of a text classifier has labels, each once, got {list(labels)}")


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
        return np.exp(self.predict_log_proba(texts))

    def predict_log_proba(self, texts: np.ndarray) -> np.ndarray:
        """Return logarithms of the probabilities, shape (n, k)."""
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), _BATCH):
                tokens = tokenized(self.tokenizer, list(texts[start : start + _BATCH]))
                found.append(self.model(**tokens).logits.double().log_softmax(1))
        return torch.cat(found).numpy() if found else np.zeros((0, len(self.classes_)))

    def predict(self, texts: np.ndarray) -> np.ndarray:
        """Return the likeliest class of every text."""
        return self.classes_[self.predict_proba(texts).argmax(1)]


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
        document = parse((path / RECORD).read_bytes(), "its document")
        record = read(_Record, document, "its document")
    labels = record.target.labels
    model, tokenizer, lacking = _load(path, None)
    if lacking:
        raise FileError(f"{path} is altered: its weights lack {listing(lacking, 4)}")
    if model.config.num_labels != len(labels):
        raise FileError(
            f"{path} is altered: its model tells {plural(model.config.num_labels, 'class', 'classes')} apart, {RECORD} "
            f"names {len(labels)}"
        )
    return TextClassifier(model, tokenizer, labels), TextEncoding(record.text, record.target)


def load_to_adapt(path: Path, classes: int) -> tuple[nn.Module, Any]:
    """Return the model of a folder and its tokenizer; a head for another number of classes begins anew.

    Weights in front of the head that the folder lacks begin at random as well, which a warning tells.

    Raises
    ------
    FileError
        It is no folder of transformers, or one whose code would have to be run.
    """
    model, tokenizer, lacking = _load(path, classes)
    body = f"{model.base_model_prefix}."
    in_front = [name for name in lacking if name.startswith(body)]
    if in_front:
        warnings.warn(
            f"{path} lacks {listing(in_front, 4)}, which begin at random: is it the folder of the whole model?",
            stacklevel=2,
        )
    return model, tokenizer


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


def _load(path: Path, classes: int | None) -> tuple[Any, Any, list[str]]:
    """The classifier of a local folder, its tokenizer, and the weights that the folder lacks.

    Code that lies in the folder is never run. With a number of classes a head of another size begins anew; without, the
    folder is one that widefit wrote, and has its weights in safetensors.
    """
    if find_spec("transformers") is None:
        raise ValueError("--text needs the package transformers: pip install 'widefit[transformers]'")
    if not (path / "config.json").is_file():
        raise FileError(f"{path} is not the folder of a model: it has no config.json")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)  # a head that is not in the files begins the same in every run
    closed: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    head = {"use_safetensors": True} if classes is None else {"num_labels": classes, "ignore_mismatched_sizes": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **closed)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True, **closed, **head
        )
    except MemoryError:
        raise
    except Exception as error:  # the files are the user's, and make transformers fail in any way
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileError(f"{path} cannot be opened by transformers: {said}") from error
    return model, tokenizer, sorted(found["missing_keys"])


def write_folder(classifier: TextClassifier, encoding: TextEncoding, out: Path) -> None:
    """Write a folder that `open_folder` reads.

    Raises
    ------
    OSError
        The folder cannot be made or written, or the disk is full.
    """
    model: Any = classifier.model
    model.save_pretrained(out)
    classifier.tokenizer.save_pretrained(out)
    document = asdict(_Record(encoding.text, encoding.target, widefit.__version__))
    with replacing(out / RECORD) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
