"""Batches that `widefit.finetune` refuses, before it does any work on them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from widefit.finetuning.aim import Aim
from widefit.finetuning.batches import IGNORED, Batch
from widefit.losses.softmax import Softmax


def check_batches(model: nn.Module, batches: Sequence[Batch], aim: Aim) -> Aim:
    """Return the loss of outputs laid out as rows, after one pass on a few rows and a look at all numbers.

    Raises
    ------
    ValueError
        Token or class numbers out of range, inputs that the model does not take, outputs that are not finite or do not
        belong to the targets, no target that counts.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"model: parameter {name!r} is not finite; load the weights again")
    _check_alike(batches)
    few = batches[0].take(torch.arange(min(2, batches[0].rows)))
    outputs = _tried(model, few, batches)
    if outputs.ndim == 0 or len(outputs) != few.rows:
        raise ValueError(f"model must return one entry a row: {few.rows} rows gave shape {tuple(outputs.shape)}")
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model gives outputs that are not finite on the first rows of X")
    with torch.no_grad():
        again = few.call(model)
    if not torch.allclose(outputs, again, rtol=1e-3, atol=1e-6 * float(outputs.abs().max())):
        raise ValueError(
            "model gives other outputs for the same rows when it is called again, even in evaluation mode: is there a "
            "dropout that does not heed model.eval()?"
        )
    by_position = aim.by_position(outputs, few.targets)
    if aim.following and not by_position:
        raise ValueError(
            'loss="next_token" takes tokens of shape (rows, length) and outputs (rows, length, vocabulary), got '
            f"{tuple(few.targets.shape)} and {tuple(outputs.shape)}"
        )
    if by_position and not isinstance(aim.loss, Softmax):
        raise ValueError('targets with a class for every position go with loss="cross_entropy" or "next_token"')
    _check_lengths(outputs, few)
    _check_classes(batches, aim, outputs)
    if not by_position:
        aim = replace(aim, loss=aim.loss.on(outputs.shape[1:], few.targets))
    counted = aim.counted(outputs, few.targets)
    try:
        if len(counted[0]):
            aim.loss.prepared(counted[0], counted[1])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"y: {error}") from error
    return aim


def _check_alike(batches: Sequence[Batch]) -> None:
    """Compare the inputs and the axes of the targets of all batches, held-out ones among them, with the first."""
    first = batches[0]
    for batch in batches:
        if batch.tensors.keys() != first.tensors.keys():
            raise ValueError(
                f"all rows must have the same inputs, held-out ones too: there are {', '.join(first.tensors)} and "
                f"{', '.join(batch.tensors)}"
            )
        if batch.targets.ndim != first.targets.ndim:
            raise ValueError(
                f"targets must have the same axes in all rows, held-out ones too: there are {first.targets.ndim} and "
                f"{batch.targets.ndim}"
            )


def _tried(model: nn.Module, few: Batch, batches: Sequence[Batch]) -> Tensor:
    """Outputs for a few rows, once all token numbers have been looked at."""
    seen: list[tuple[str, nn.Embedding, Tensor]] = []
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(module.register_forward_pre_hook(_looking(name, seen)))
        try:
            outputs = few.call(model)
        except (RuntimeError, IndexError, TypeError, AttributeError, KeyError) as error:
            _check_tokens(seen, few, batches)
            shapes = {name: tuple(tensor.shape[1:]) for name, tensor in few.tensors.items()}
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"X has inputs of shapes {shapes}, which the model does not take: {said}") from error
    _check_tokens(seen, few, batches)
    return outputs


def _looking(name: str, seen: list[tuple[str, nn.Embedding, Tensor]]):
    def look(module: nn.Embedding, args: tuple) -> None:
        if args:
            seen.append((name, module, args[0]))

    return look


def _check_tokens(seen: list[tuple[str, nn.Embedding, Tensor]], few: Batch, batches: Sequence[Batch]) -> None:
    for where, table, looked_up in seen:
        for key, given in few.tensors.items():
            if given.dtype != looked_up.dtype or given.shape != looked_up.shape or not torch.equal(given, looked_up):
                continue
            for batch in batches:
                low, high = int(batch.tensors[key].min()), int(batch.tensors[key].max())
                if low < 0 or high >= table.num_embeddings:
                    raise ValueError(
                        f"X[{key!r}] holds {low if low < 0 else high}, but {where} has {table.num_embeddings:,} "
                        "entries: is it the tokenizer of this model?"
                    )


def _check_lengths(outputs: Tensor, few: Batch) -> None:
    """Compare targets with the outputs, where each position has one."""
    targets = few.targets
    whole = not targets.is_floating_point()
    if whole and targets.ndim == 2 and outputs.ndim == 3 and targets.shape[1] != outputs.shape[1]:
        raise ValueError(
            f"y has {targets.shape[1]} targets a row, the model gives outputs for {outputs.shape[1]} positions: pad "
            f"both alike, targets with {IGNORED}"
        )


def _check_classes(batches: Sequence[Batch], aim: Aim, outputs: Tensor) -> None:
    if not isinstance(aim.loss, Softmax):
        return
    classes = outputs.shape[-1]
    by_position = aim.by_position(outputs, batches[0].targets)
    counted = 0
    for batch in batches:
        targets = batch.targets
        if targets.is_floating_point():
            if targets.ndim == 1:
                raise ValueError(f"y: cross_entropy takes class numbers as whole numbers, got {targets.dtype}")
            counted += len(targets)
            continue
        numbers = targets[:, 1:] if aim.following else targets
        numbers = numbers[numbers != IGNORED] if by_position else numbers
        counted += numbers.numel()
        if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= classes):
            wrong = int(numbers.min()) if int(numbers.min()) < 0 else int(numbers.max())
            raise ValueError(
                f"y holds class {wrong}, the model has outputs for 0 … {classes - 1}: number the classes from 0, or "
                "load the model with as many labels"
            )
    if not counted:
        raise ValueError(f"y has no target that counts: all of them are {IGNORED}")
