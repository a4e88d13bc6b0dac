"""Arrays of a file, checked before anything relies on their shapes or takes their numbers for places."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from widefit.records.plain import FileError


def array(
    found: Mapping[str, np.ndarray],
    name: str,
    dtype: Any,
    shape: Sequence[int | None],
    *,
    least: int | None = None,
    below: int | None = None,
) -> np.ndarray:
    """Return the array of a name, which has the dtype and shape declared for it.

    Parameters
    ----------
    found
        Arrays by name.
    name
        The one.
    dtype
        Its dtype, or a tuple of those it may have.
    shape
        Its shape; None for a length that may be any.
    least, below
        Half-open range of its numbers.

    Raises
    ------
    FileError
        There is none, or it is another.
    """
    if name not in found:
        raise FileError(f"there is no array {name!r}")
    given = found[name]
    dtypes: list[np.dtype] = [np.dtype(one) for one in (dtype if isinstance(dtype, tuple) else (dtype,))]
    if given.dtype not in dtypes:
        raise FileError(f"{name!r} must be of {' or '.join(map(str, dtypes))}, it is of {given.dtype}")
    fits = given.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(given.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise FileError(f"{name!r} must have shape ({wanted}), it has {given.shape}")
    if given.size and least is not None and not given.min() >= least:
        raise FileError(f"{name!r} must be at least {least} everywhere, it holds {given.min()}")
    if given.size and below is not None and not given.max() < below:
        raise FileError(f"{name!r} must be below {below} everywhere, it holds {given.max()}")
    return np.asarray(given, order="C")


def offsets(found: Mapping[str, np.ndarray], name: str, dtype: Any, count: int, total: int) -> np.ndarray:
    """Return where each of `count` parts begins, and behind the last where that ends: from 0 up to `total`.

    Raises
    ------
    FileError
        Another dtype or shape, offsets that do not begin at 0, that descend, or that do not end at `total`.
    """
    given = array(found, name, dtype, (count + 1,))
    if given[0] != 0 or given[-1] != total or np.any(given[1:] < given[:-1]):
        raise FileError(f"{name!r} must ascend from 0 to {total}")
    return given
