"""A stream of blocks, checked and cut anew into blocks of one size."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

Samples = tuple[Any, Any] | tuple[Any, Any, Any]


def of_size(blocks: Iterable[Any], size: int) -> Iterator[Samples]:
    """The same samples in blocks of one size, the last one shorter; weights are None where no block has had any."""
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []
    held, columns = 0, None
    for number, block in enumerate(blocks):
        X, y, weight = _checked_block(block, number)
        columns = columns or (X.shape[1], y.shape[1])
        if (X.shape[1], y.shape[1]) != columns:
            raise ValueError(
                f"the blocks of a stream must have the same columns: block {number} has {(X.shape[1], y.shape[1])} in "
                f"(X, y), those before it {columns}"
            )
        while len(X):
            taken = min(size - held, len(X))
            waiting.append((X[:taken], y[:taken], None if weight is None else weight[:taken]))
            held += taken
            X, y, weight = X[taken:], y[taken:], None if weight is None else weight[taken:]
            if held == size:
                yield _joined(waiting)
                waiting, held = [], 0
    if waiting:
        yield _joined(waiting)


def _checked_block(block: Any, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    if not isinstance(block, tuple | list) or len(block) not in (2, 3):
        raise ValueError(f"blocks must give (X, y) or (X, y, sample_weight), got {type(block).__name__} in {number}")
    X, y, weight = (_plain(part) for part in as_triple(tuple(block)))
    if X.ndim != 2 or y.ndim not in (1, 2) or len(X) != len(y) or (weight is not None and weight.shape != (len(X),)):
        shapes = ", ".join(str(part.shape) for part in (X, y, weight) if part is not None)
        raise ValueError(f"block {number} must have the shapes (n, d), (n,) or (n, k), and (n,), got {shapes}")
    for name, array in (("X", X), ("y", y), ("sample_weight", weight)):
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise ValueError(f"{name} of block {number} contains NaN or infinity, first in row {row}")
    return X, y[:, None] if y.ndim == 1 else y, weight


def _plain(part: Any) -> Any:
    if part is None:
        return None
    return part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> Samples:
    weight = None
    if any(part[2] is not None for part in parts):
        weight = np.concatenate([np.ones(len(part[0])) if part[2] is None else part[2] for part in parts])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]), weight


def as_triple(piece: Samples) -> tuple[Any, Any, Any]:
    return piece[0], piece[1], piece[2] if len(piece) == 3 else None
