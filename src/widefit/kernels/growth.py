"""Arrays that grow inside kernels."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def longer(array, used, size):
    """Return an array of `size` entries along the first axis, the first `used` of them copied."""
    out = np.empty((size,) + array.shape[1:], array.dtype)  # noqa: RUF005 (Numba has no starred tuples)
    out[:used] = array[:used]
    return out
