"""Input that `widefit.finetune` refuses, before it does any work."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from widefit.finetuning.blocks import Structure
from widefit.finetuning.tensors import tensor_of
from widefit.losses.base import OutputLoss
from widefit.losses.custom import Custom
from widefit.losses.softmax import Softmax
from widefit.optim.system import check_data
from widefit.plan.names import LAYERS

# Rows on which the model is tried.
_LOOKED_AT = 64


@dataclass(frozen=True)
class Data:
    """Tensors in the types that the model works in.

    Attributes
    ----------
    inputs, targets
        One row a sample.
    held_inputs, held_targets
        The held-out rows that were given.
    outputs
        k, the numbers that the model gives for a row.
    """

    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor | None
    held_targets: Tensor | None
    outputs: int

    def spread(self, count: int) -> "Data":
        """Return so many of the training rows, evenly spaced, and no held-out ones."""
        rows = torch.linspace(0, len(self.inputs) - 1, count, device=self.inputs.device).long()
        return Data(self.inputs[rows], self.targets[rows], None, None, self.outputs)

    def held_apart(self, share: float, seed: int) -> "Data":
        """Return the same with a share of the rows held out, where none were given and five or more would be."""
        rows = len(self.inputs)
        count = round(share * rows)
        if self.held_inputs is not None or count < 5:
            return self
        order = torch.from_numpy(np.random.default_rng(seed).permutation(rows)).to(self.inputs.device)
        held = order[:count].sort().values
        rest = order[count:].sort().values
        return Data(self.inputs[rest], self.targets[rest], self.inputs[held], self.targets[held], self.outputs)


def checked_settings(
    *,
    alpha: float,
    validation: float | None,
    patience: int,
    damping: float | None,
    max_iter: int,
    tol: float,
    batch_size: int | None,
    seed: int,
    threads: int | None,
    resume: object,
) -> None:
    """Refuse settings of the wrong type or out of range."""
    for name, value in (("alpha", alpha), ("tol", tol)):
        if not (_is_number(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
    if validation is not None and not (_is_number(validation) and 0 <= validation < 1):
        raise ValueError(f"validation must be a share of the rows in [0, 1), got {validation!r}")
    if damping is not None and not (_is_number(damping) and damping > 0):
        raise ValueError(f"damping must be a positive number or None, got {damping!r}")
    for name, count in (("patience", patience), ("max_iter", max_iter)):
        if not (_is_whole(count) and count >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")
    for name, number in (("batch_size", batch_size), ("threads", threads)):
        if number is not None and not (_is_whole(number) and number >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1 or None, got {number!r}")
    if not (_is_whole(seed) and 0 <= seed < 2**63):
        raise ValueError(f"seed must be a whole number in [0, 2**63), got {seed!r}")
    if resume is not None and not (isinstance(resume, tuple) and len(resume) == 2):
        raise ValueError(f"resume must be what widefit.files.read_checkpoint returns, got {type(resume).__name__}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def checked_data(
    model: nn.Module,
    loss: OutputLoss,
    X: Any,
    y: Any,
    X_val: Any,
    y_val: Any,
) -> tuple[OutputLoss, Data]:
    """Return tensors that the model can take and the loss can compare, and the loss of outputs laid out as rows."""
    weight = next((module.weight for module in model.modules() if isinstance(module, nn.Linear)), None)
    if weight is None:
        raise ValueError("model has no linear layer: finetune adapts torch.nn.Linear layers")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"model: parameter {name!r} is not finite; load the weights again")
    inputs = _tensor(X, weight, "X")
    targets = _target(y, weight, loss, "y")
    check_data((inputs, targets), "finetune(X, y)")
    outputs = _outputs(model, inputs)
    rows = outputs.reshape(len(outputs), -1)
    targets = _comparable(loss, outputs, targets)
    laid_out = _checked_loss(loss, outputs, targets, "y")
    if (X_val is None) != (y_val is None):
        raise ValueError("X_val and y_val belong together: give both, or neither")
    if X_val is None or y_val is None:
        return laid_out, Data(inputs, targets, None, None, rows.shape[1])
    held = _tensor(X_val, weight, "X_val")
    wanted = _target(y_val, weight, loss, "y_val")
    check_data((held, wanted), "finetune(X_val, y_val)")
    if held.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"X_val has rows of shape {tuple(held.shape[1:])}, X of shape {tuple(inputs.shape[1:])}")
    wanted = _comparable(loss, outputs, wanted)
    _checked_loss(loss, outputs, wanted, "y_val")
    return laid_out, Data(inputs, targets, held, wanted, rows.shape[1])


def checked_layers(layers: str | Sequence[str], structure: Structure) -> tuple[str, ...]:
    """Return the names of the layers to adapt, in the order of their calls."""
    if not structure.layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in structure.skipped.items())
        raise ValueError(f"model has no linear layer that can be adapted ({reasons or 'it has none'})")
    if isinstance(layers, str):
        return _chosen(layers, structure)
    if not isinstance(layers, Iterable) or not all(isinstance(name, str) for name in layers):
        raise _unknown_layers(layers)
    chosen = set(layers)
    if not chosen:
        raise ValueError("layers must name at least one layer")
    unknown = [name for name in layers if name not in structure.layers]
    if unknown:
        why = f" ({structure.skipped[unknown[0]]})" if unknown[0] in structure.skipped else ""
        known = ", ".join(map(repr, structure.layers))
        raise ValueError(f"layers: {unknown[0]!r} cannot be adapted{why}; the layers that can are {known}")
    return tuple(name for name in structure.layers if name in chosen)


def _chosen(layers: str, structure: Structure) -> tuple[str, ...]:
    readout = structure.readout
    if layers == "all":
        return structure.layers
    if layers == "readout":
        if readout is None:
            raise ValueError('layers="readout": the outputs of the model do not come straight from a linear layer')
        return (readout,)
    if layers not in LAYERS:
        raise _unknown_layers(layers)
    last = [block for block in structure.blocks if readout is None or block.second == readout]
    if last:
        return (last[-1].first, last[-1].second)
    return (structure.layers[-1] if readout is None else readout,)


def _unknown_layers(layers: object) -> ValueError:
    words = ", ".join(f'"{name}"' for name in LAYERS)
    return ValueError(f"layers must be {words} or a list of names, got {layers!r}")


def _tensor(values: Any, like: Tensor, name: str) -> Tensor:
    """Floating numbers in the type of the model's weights, whole numbers as they are, on its device."""
    tensor = tensor_of(values, name)
    return (tensor.to(like.dtype) if tensor.is_floating_point() else tensor).to(like.device)


def _target(values: Any, like: Tensor, loss: OutputLoss, name: str) -> Tensor:
    tensor = _tensor(values, like, name)
    if isinstance(loss, Custom):
        return tensor
    if not isinstance(loss, Softmax):
        return tensor if tensor.is_floating_point() else tensor.to(like.dtype)
    if tensor.is_floating_point() and tensor.ndim == 1:
        raise ValueError(f"{name}: cross_entropy takes class numbers as whole numbers, got {tensor.dtype}")
    return tensor


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs of the model for the first rows, in its own shape."""
    few = inputs[:_LOOKED_AT]
    try:
        with torch.no_grad():
            outputs, again = model(few), model(few)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        first = next(module for module in model.modules() if isinstance(module, nn.Linear))
        said = str(error).splitlines()[0]
        hint = "" if few.is_floating_point() else f"; X holds {few.dtype}, does it take floating numbers?"
        raise ValueError(
            f"X has rows of shape {tuple(few.shape[1:])}, which the model does not take (its first linear layer has "
            f"in_features={first.in_features}): {said}{hint}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return a tensor, got {type(outputs).__name__}: wrap it in a module that does")
    if outputs.ndim == 0 or len(outputs) != len(few):
        raise ValueError(f"model must return one row a sample: {len(few)} samples gave shape {tuple(outputs.shape)}")
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model gives outputs that are not finite on the first rows of X")
    if not torch.allclose(outputs, again, rtol=1e-3, atol=1e-6 * float(outputs.abs().max())):
        raise ValueError(
            "model gives other outputs for the same rows when it is called again, even in evaluation mode: is there a "
            "dropout that does not heed model.eval()?"
        )
    return outputs


def _comparable(loss: OutputLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Whole numbers as they are, such as classes, or as floating ones where a loss of the caller's own wants those."""
    if not isinstance(loss, Custom) or targets.is_floating_point():
        return targets
    few = targets[: len(outputs)]
    try:
        loss.on(outputs.shape[1:], few).value(outputs[: len(few)].reshape(len(few), -1), few)
    except (ValueError, RuntimeError):
        return targets.to(outputs.dtype)
    return targets


def _checked_loss(loss: OutputLoss, outputs: Tensor, targets: Tensor, name: str) -> OutputLoss:
    """The loss of such outputs laid out as rows, with errors that name the targets."""
    stand_in = outputs[:1].reshape(1, -1).expand(len(targets), -1)
    try:
        laid_out = loss.on(outputs.shape[1:], targets)
        laid_out.value(stand_in, targets)
    except (ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"{name}: {error}") from error
    return laid_out
