"""Samples as models of other libraries take them: batches of positional or keyword tensors, padded, with targets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from widefit.finetuning.tensors import tensor_of

# Entries of `inputs` (rows times their length) that go through a model together.
_ENTRIES = 2048
# Most rows of one batch, and of a step.
_ROWS = 32
# The number of a target that is passed over, as torch has it.
IGNORED = -100
_LABELS = "labels"
_MASK = "attention_mask"
# Inputs of a batch that have two axes, and of a single row one.
_BY_TOKEN = (_MASK, "input_ids")
# Tokens as floating numbers, and the beginning of the names of those that have a mask of their own.
_EMBEDDED = "inputs_embeds"
_OTHER_AXIS = "decoder_"


@dataclass(frozen=True)
class Batch:
    """Rows that go through a model together.

    Attributes
    ----------
    args, kwargs
        Tensors with one entry a row, as the model is called with them.
    targets
        One entry a row.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    targets: Tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.targets)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the inputs by name, positional ones by number."""
        return {str(number): tensor for number, tensor in enumerate(self.args)} | self.kwargs

    def take(self, rows: Int[Tensor, " r"]) -> "Batch":
        """Return some of the rows."""
        args = tuple(tensor[rows] for tensor in self.args)
        return Batch(args, {name: tensor[rows] for name, tensor in self.kwargs.items()}, self.targets[rows])

    def trimmed(self) -> "Batch":
        """Return the rows without the last positions, where the attention mask leaves those out in all of them.

        Whole numbers of the mask's length are tokens, or something about them; of floating numbers, such as pixels,
        only embedded tokens are.
        """
        mask = self.kwargs.get(_MASK)
        if mask is None or mask.ndim != 2 or not bool((mask != 0).any()):
            return self
        used = int((mask != 0).any(0).nonzero().max()) + 1
        kwargs = {
            name: tensor[:, :used] if _follows(tensor, mask, name) else tensor for name, tensor in self.kwargs.items()
        }
        args = tuple(tensor[:, :used] if _follows(tensor, mask, "") else tensor for tensor in self.args)
        return Batch(args, kwargs, self.targets[:, :used] if _follows(self.targets, mask, "") else self.targets)

    def call(self, model: nn.Module) -> Tensor:
        """Return the outputs of a model in float32 or float64."""
        outputs = logits_of(model(*self.args, **self.kwargs))
        return outputs if outputs.dtype == torch.float64 else outputs.float()


def _follows(tensor: Tensor, mask: Tensor, name: str) -> bool:
    """Whether the second axis of a tensor is the one of the mask."""
    if tensor.ndim < 2 or tensor.shape[1] != mask.shape[1] or name.startswith(_OTHER_AXIS):
        return False
    return not tensor.is_floating_point() or name in (_MASK, _EMBEDDED)


def logits_of(output: Any) -> Tensor:
    """Return the outputs that a loss is taken of: a tensor, `.logits`, the entry "logits", or the first of a tuple.

    Raises
    ------
    ValueError
        There is none.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
        if found is None and isinstance(output, tuple | list) and output:
            found = output[0]
    if not isinstance(found, Tensor):
        raise ValueError(
            f"model must return a tensor, got {type(output).__name__} without logits: wrap it in a module with a head "
            "that does, such as one of transformers' AutoModelForSequenceClassification"
        )
    return found


def read_batches(
    X: Any,
    y: Any,
    like: Tensor,
    names: tuple[str, str] = ("X", "y"),
    *,
    classes: bool = True,
    size: int | None = None,
) -> list[Batch]:
    """Return rows as batches in the types and on the device of a model's weights.

    Parameters
    ----------
    X
        A tensor or an array, a mapping or a tuple of them; or, with y None, an iterable of (inputs, targets) or of
        mappings with "labels": batches, or rows one by one.
    y
        Targets, one entry a row.
    like
        A weight of the model.
    names
        Names of the arguments, for errors.
    classes
        Whether whole numbers as targets are classes, and not quantities.
    size
        Rows of a batch; None: up to 32, fewer where rows are long.

    Raises
    ------
    ValueError
        Inputs that hold no numbers, lengths that do not match, no rows or columns, numbers that are not finite;
        a size for an iterable of batches.
    """
    if y is None and isinstance(X, Mapping) and _LABELS in X:
        y = X[_LABELS]
        X = {name: values for name, values in X.items() if name != _LABELS}
    if y is not None:
        batches = _by_length(_batch(X, y, like, names, classes), size)
    else:
        batches = [batch for batch in _from_iterable(X, like, names, classes, size) if batch.rows]
    if not batches:
        raise ValueError(f"{names[0]} has no rows")
    return batches


def split_off(batches: Sequence[Batch], held: Int[Tensor, " h"]) -> tuple[list[Batch], list[Batch]]:
    """Return batches without and with the rows of some numbers, counted through all of them."""
    chosen = torch.zeros(sum(batch.rows for batch in batches), dtype=torch.bool)
    chosen[held] = True
    parts = chosen.split([batch.rows for batch in batches])
    rest = [batch.take((~part).nonzero()[:, 0]) for batch, part in zip(batches, parts, strict=True)]
    taken = [batch.take(part.nonzero()[:, 0]) for batch, part in zip(batches, parts, strict=True)]
    return [batch.trimmed() for batch in rest if batch.rows], [batch.trimmed() for batch in taken if batch.rows]


def _batch(X: Any, y: Any, like: Tensor, names: tuple[str, str], classes: bool) -> Batch:
    named, numbered = {}, ()
    if isinstance(X, Mapping):
        _refuse_text(X, names[0])
        named = {str(name): _tensor(values, like, f"{names[0]}[{name!r}]") for name, values in X.items()}
    elif isinstance(X, tuple):
        numbered = tuple(_tensor(values, like, f"{names[0]}[{number}]") for number, values in enumerate(X))
    else:
        numbered = (_tensor(X, like, names[0]),)
    targets = _tensor(y, like, names[1])
    batch = Batch(numbered, named, targets if classes else targets.to(like.dtype))
    if not batch.tensors:
        raise ValueError(f"{names[0]} has no inputs")
    for name, tensor in batch.tensors.items():
        if len(tensor) != batch.rows:
            which = f"{names[0]}[{name!r}]" if len(batch.tensors) > 1 else names[0]
            raise ValueError(f"{which} has {len(tensor)} rows, {names[1]} has {batch.rows}: they must be the same rows")
        if batch.rows and not tensor.numel():
            which = f"{names[0]}[{name!r}]" if len(batch.tensors) > 1 else names[0]
            raise ValueError(f"{which} has rows without a number, its shape is {tuple(tensor.shape)}")
    return batch


def _refuse_text(inputs: Mapping[Any, Any], where: str) -> None:
    """Refuse texts beside the numbers that a tokenizer has made of them."""
    text = [name for name, values in inputs.items() if _is_text(values)]
    if text and len(text) < len(inputs):
        raise ValueError(
            f"{where}[{text[0]!r}] holds texts beside the numbers that the model takes: leave it out, as "
            "remove_columns of datasets does"
        )


def _is_text(values: Any) -> bool:
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return isinstance(values, str | bytes) or (isinstance(values, np.ndarray) and values.dtype.kind in "US")


def _tensor(values: Any, like: Tensor, name: str) -> Tensor:
    values = tensor_of(values, name)
    if values.ndim == 0:
        raise ValueError(f"{name} must have one entry a row, it is a single number")
    tensor = values.to(like.device)
    if not tensor.is_floating_point():
        return tensor
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds numbers that are not finite")
    return tensor.to(like.dtype)


def _by_length(batch: Batch, size: int | None) -> list[Batch]:
    """The rows in batches of similar length, so that little of them is padding."""
    mask = batch.kwargs.get(_MASK)
    if batch.rows == 0:
        return []
    if mask is None or mask.ndim != 2:
        widest = max(_length(tensor) for tensor in batch.tensors.values())
        step = size or max(1, min(_ROWS, _ENTRIES // widest))
        return [batch.take(rows) for rows in torch.arange(batch.rows).split(step)]
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = ((mask != 0) * positions).amax(1).cpu()
    if int(lengths.min()) == 0:
        raise ValueError(f"attention_mask leaves out all of row {int(lengths.argmin())}: remove that row")
    order = torch.argsort(lengths, stable=True)
    found: list[Batch] = []
    end = batch.rows
    while end > 0:  # from the longest rows down: each batch is as long as its last row
        count = min(end, size or max(1, min(_ROWS, _ENTRIES // int(lengths[order[end - 1]]))))
        found.append(batch.take(order[end - count : end]).trimmed())
        end -= count
    return found


def _length(tensor: Tensor) -> int:
    """Positions of whole numbers, which are embedded; of other inputs a part of them."""
    return tensor[0].numel() if not tensor.is_floating_point() else max(1, tensor[0].numel() // 64)


def _from_iterable(X: Any, like: Tensor, names: tuple[str, str], classes: bool, size: int | None) -> list[Batch]:
    items = iter(X) if isinstance(X, Iterable) else None
    first = next(items, None) if items is not None else None
    if items is None or not _has_targets(first):
        raise ValueError(
            f"{names[1]} is missing: pass targets, an iterable of (inputs, targets), or one of mappings with 'labels'"
        )
    found = []
    singles = []
    for item in chain([first], items):
        inputs, targets = _parted(item)
        if np.ndim(targets) == 0 or _is_one_row(inputs):
            singles.append((inputs, targets))
        elif size is not None:
            raise ValueError(f"batch_size: {names[0]} comes in batches of its own; leave batch_size out, or give rows")
        else:
            found.append(_batch(inputs, targets, like, names, classes).trimmed())
    if singles:
        found += _by_length(_batch(*_collated(singles, names), like, names, classes), size)
    return found


def _is_one_row(inputs: Any) -> bool:
    """Whether tokens come as a single row, as data sets give them."""
    return isinstance(inputs, Mapping) and any(name in inputs and np.ndim(inputs[name]) == 1 for name in _BY_TOKEN)


def _has_targets(item: Any) -> bool:
    return (isinstance(item, Mapping) and _LABELS in item) or (isinstance(item, tuple | list) and len(item) == 2)


def _parted(item: Any) -> tuple[Any, Any]:
    if not _has_targets(item):
        raise ValueError(f"X must give (inputs, targets) or mappings with 'labels' alone, got a {type(item).__name__}")
    if isinstance(item, Mapping):
        return {name: values for name, values in item.items() if name != _LABELS}, item[_LABELS]
    inputs, targets = item
    return (tuple(inputs) if isinstance(inputs, list) else inputs), targets


def _collated(rows: list[tuple[Any, Any]], names: tuple[str, str]) -> tuple[Any, Tensor]:
    """Rows that came one by one; those with a mask are filled up to the longest."""
    first = rows[0][0]
    if not isinstance(first, Mapping):
        given = [inputs for inputs, _ in rows]
        if isinstance(first, tuple) and all(map(np.ndim, first)):  # several inputs, and not the numbers of one
            inputs = tuple(_table(column, f"{names[0]}[{n}]") for n, column in enumerate(zip(*given, strict=True)))
        else:
            inputs = _table(given, names[0])
        return inputs, _table([targets for _, targets in rows], names[1])
    _refuse_text(first, names[0])
    for number, (given, _) in enumerate(rows):
        if not isinstance(given, Mapping) or given.keys() != first.keys():
            raise ValueError(f"row {number} of {names[0]} has other inputs than the first, which has {list(first)}")
    lengths = [np.shape(given[_MASK]) for given, _ in rows] if _MASK in first else None
    targets = _filled([targets for _, targets in rows], lengths, IGNORED, names[1])
    columns = {name: [given[name] for given, _ in rows] for name in first}
    return {name: _filled(column, lengths, 0, f"{names[0]}[{name!r}]") for name, column in columns.items()}, targets


def _table(rows: Sequence[Any], name: str) -> Tensor:
    return tensor_of([tensor_of(row, name) for row in rows], name)


def _filled(values: list[Any], lengths: list[tuple[int, ...]] | None, filler: int, name: str) -> Tensor:
    """The rows as a table; where they are as long as their masks, filled up behind their ends."""
    tensors = [tensor_of(value, name) for value in values]
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    quantities = filler == IGNORED and tensors[0].is_floating_point()  # of which no number says that there is none
    if quantities or lengths is None or [tensor.shape[:1] for tensor in tensors] != lengths:
        raise ValueError(
            f"{name} has rows of several lengths, and no {_MASK} of the same lengths says where they end: call the "
            "tokenizer with padding=True, or keep its mask"
        )
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)
