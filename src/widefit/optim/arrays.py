"""NumPy arrays where tensors are expected."""

from typing import Any

import numpy as np
import torch


def as_tensor(item: Any, where: str) -> Any:
    """A tensor of the numbers of an array, which it shares where it can; anything else as it is.

    Raises
    ------
    ValueError
        An array of text or objects.
    """
    if not isinstance(item, np.ndarray | np.generic):
        return item
    if item.dtype.kind not in "fiubc":
        raise ValueError(f"{where} is an array of {item.dtype}: convert it to numbers first")
    shareable = item.flags.writeable and min(item.strides, default=1) > 0
    return torch.from_numpy(np.asarray(item) if shareable else np.array(item))
