"""What `widefit.finetune` refuses, before it does any work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from widefit.finetuning.blocks import Structure
from widefit.losses.base import OutputLoss
from widefit.losses.softmax import Softmax
from widefit.optim.system import check_data
from widefit.plan.names import LAYERS


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
        """So many of the training rows, evenly spaced, and no held-out ones."""
        rows = torch.linspace(0, len(self.inputs) - 1, count, device=self.inputs.device).long()
        return Data(self.inputs[rows], self.targets[rows], None, None, self.outputs)

    def held_apart(self, share: float, seed: int) -> "Data":
        """The same with a share of the rows held out, where none were given and five or more would be."""
        rows = len(self.inputs)
        count = round(share * rows)
        if self.held_inputs is not None or count < 5:
            return self
        order = torch.from_numpy(np.random.default_rng(seed).permutation(rows)).to(self.inputs.device)
        held, rest = order[:count].sort().values, order[count:].sort().values
        return Data(self.inputs[rest], self.targets[rest], self.inputs[held], self.targets[held], self.outputs)


def checked_settings(
    *, alpha: float, validation: float, patience: int, damping: float | None, max_iter: int, tol: float,
    batch_size: int | None, seed: int,
) -> None:  # fmt: skip
    """Refuse settings out of range."""
    for name, value in (("alpha", alpha), ("tol", tol)):
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share of the rows in [0, 1), got {validation!r}")
    if damping is not None and not (damping > 0 and math.isfinite(damping)):
        raise ValueError(f"damping must be a positive number or None, got {damping!r}")
    for name, count in (("patience", patience), ("max_iter", max_iter)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 or None, got {batch_size!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed!r}")


def checked_data(
    model: nn.Module,
    loss: OutputLoss,
    X: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    X_val: ArrayLike | Tensor | None,
    y_val: ArrayLike | Tensor | None,
) -> tuple[OutputLoss, Data]:
    """Tensors that the model can take and the loss can compare, and the loss of outputs laid out as rows."""
    weight = next((module.weight for module in model.modules() if isinstance(module, nn.Linear)), None)
    if weight is None:
        raise ValueError("model has no linear layer: finetune adapts torch.nn.Linear layers")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"model: parameter {name!r} is not finite; load the weights again")
    inputs, targets = _tensor(X, weight, "X"), _target(y, weight, loss, "y")
    check_data((inputs, targets), "finetune(X, y)")
    outputs = _outputs(model, inputs)
    rows = outputs.reshape(len(outputs), -1)
    laid_out = _checked_loss(loss, outputs, targets, "y")
    if (X_val is None) != (y_val is None):
        raise ValueError("X_val and y_val belong together: give both, or neither")
    if X_val is None or y_val is None:
        return laid_out, Data(inputs, targets, None, None, rows.shape[1])
    held, wanted = _tensor(X_val, weight, "X_val"), _target(y_val, weight, loss, "y_val")
    check_data((held, wanted), "finetune(X_val, y_val)")
    if held.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"X_val has rows of shape {tuple(held.shape[1:])}, X of shape {tuple(inputs.shape[1:])}")
    _checked_loss(loss, outputs, wanted, "y_val")
    return laid_out, Data(inputs, targets, held, wanted, rows.shape[1])


def checked_layers(layers: str | Sequence[str], structure: Structure) -> tuple[str, ...]:
    """The names of the layers to adapt, in the order of their calls."""
    if not structure.layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in structure.skipped.items())
        raise ValueError(f"model has no linear layer that can be adapted ({reasons})")
    if isinstance(layers, str):
        return _chosen(layers, structure)
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
        words = ", ".join(f'"{name}"' for name in LAYERS)
        raise ValueError(f"layers must be {words} or a list of names, got {layers!r}")
    last = [block for block in structure.blocks if readout is None or block.second == readout]
    if last:
        return (last[-1].first, last[-1].second)
    return (structure.layers[-1] if readout is None else readout,)


def _tensor(values: ArrayLike | Tensor, like: Tensor, name: str) -> Tensor:
    """Floating numbers in the type of the model's weights, whole numbers as they are, on its device."""
    tensor = values.detach() if isinstance(values, Tensor) else _from_array(values, name)
    return (tensor.to(like.dtype) if tensor.is_floating_point() else tensor).to(like.device)


def _from_array(values: ArrayLike, name: str) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, got {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array))


def _target(values: ArrayLike | Tensor, like: Tensor, loss: OutputLoss, name: str) -> Tensor:
    tensor = _tensor(values, like, name)
    return tensor if isinstance(loss, Softmax) or tensor.is_floating_point() else tensor.to(like.dtype)


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the model gives for two rows, in its own shape."""
    few = inputs[:2]
    try:
        with torch.no_grad():
            outputs = model(few)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        first = next(module for module in model.modules() if isinstance(module, nn.Linear))
        said = str(error).splitlines()[0]
        raise ValueError(
            f"X has rows of shape {tuple(few.shape[1:])}, which the model does not take (its first linear layer has "
            f"in_features={first.in_features}): {said}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return a tensor, got {type(outputs).__name__}: wrap it in a module that does")
    if outputs.ndim == 0 or len(outputs) != len(few):
        raise ValueError(f"model must return one row a sample: {len(few)} samples gave shape {tuple(outputs.shape)}")
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("model gives outputs that are not finite on the first rows of X")
    return outputs


def _checked_loss(loss: OutputLoss, outputs: Tensor, targets: Tensor, name: str) -> OutputLoss:
    """The loss of such outputs laid out as rows; what it has to say about the targets, with the name that they have."""
    stand_in = outputs[:1].reshape(1, -1).expand(len(targets), -1)
    try:
        laid_out = loss.on(outputs.shape[1:], targets)
        laid_out.value(stand_in, targets)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: {error}") from error
    return laid_out
