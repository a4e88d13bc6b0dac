"""The data of a step, in the type and on the device of the model."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from widefit.optim.arrays import as_tensor
from widefit.optim.system import Residual


def as_batch(data: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor | Residual, ...]:
    """Tensors and residual blocks as a step takes them.

    NumPy arrays become tensors; floating-point numbers of another precision are converted to that of the parameters;
    whole numbers stay as they are. Tensors that need none of it are passed through.

    Raises
    ------
    ValueError
        A closure, or anything else that holds no samples; data on another device.
    """
    if not data:
        raise ValueError("step needs the data: step(x, y), step(*data) with residual=, or step(Residual(...), ...)")
    return tuple(_converted(item, position, dtype, device) for position, item in enumerate(data))


def as_arguments(found: Any, where: str) -> tuple[Any, ...]:
    """Arguments of a step from what a function that draws data returned, several of them or one by itself.

    Raises
    ------
    ValueError
        Anything but a tensor, a NumPy array, a Residual, or a tuple or list of them.
    """
    if isinstance(found, tuple | list):
        return tuple(found)
    if isinstance(found, Tensor | np.ndarray | Residual):
        return (found,)
    raise ValueError(
        f"{where} must be a tensor, an array or a Residual, or a tuple of what step takes, got {type(found).__name__}"
    )


def _converted(item: Any, position: int, dtype: torch.dtype, device: torch.device) -> Tensor | Residual:
    where = f"step: argument {position}"
    if isinstance(item, Residual):
        pieces = tuple(_tensor(tensor, where, dtype, device) for tensor in item.data)
        if all(new is old for new, old in zip(pieces, item.data, strict=True)):
            return item
        return Residual(item.function, *pieces, weight=item.weight)
    if callable(item) and not isinstance(item, Tensor):
        raise ValueError(
            "step takes the data, not a closure, for it has to see the derivative of every sample: write "
            "optimizer.step(x, y) without zero_grad and backward"
        )
    return _tensor(item, where, dtype, device)


def _tensor(item: Any, where: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    item = as_tensor(item, where)
    if isinstance(item, DataLoader):
        raise ValueError(
            f"{where} is a DataLoader: write `for x, y in loader: optimizer.step(x, y)`, or give all rows at once"
        )
    if not isinstance(item, Tensor):
        raise ValueError(f"{where} must be a tensor, a NumPy array or a Residual, got {type(item).__name__}")
    if item.device != device:
        raise ValueError(f"{where} is on {item.device}, the parameters on {device}: move one with .to({str(device)!r})")
    if item.is_inference():  # autograd cannot keep such a tensor for the backward pass
        item = item.clone()
    return item.to(dtype) if item.is_floating_point() else item
