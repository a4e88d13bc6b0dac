"""Tensors of whatever holds numbers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(values: Any, name: str) -> Tensor:
    """Return a tensor, an array, a data frame, or a list of numbers or of rows as a tensor without gradients.

    Parameters
    ----------
    values
        Floating or whole numbers, or booleans.
    name
        The argument, for errors.

    Raises
    ------
    ValueError
        No numbers, or rows of several shapes.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        if isinstance(values, list | tuple) and values and all(isinstance(row, Tensor) for row in values):
            return torch.stack(list(values)).detach()
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} has rows of several lengths or shapes: call the tokenizer with padding=True, return_tensors='pt', "
            "or pad them yourself"
        ) from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, got {array.dtype}: texts go through a tokenizer first")
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
