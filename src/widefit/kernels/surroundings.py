"""Modes of NumPy and torch that a caller may have set, and that the work must not depend on."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def insulated() -> Iterator[None]:
    """Work with NumPy's own handling of floating-point errors, and outside of torch's inference mode.

    `numpy.seterr(all="raise")` would end the work where an exponential underflows to 0 as it should; tensors made in
    inference mode can never be trained. Also a decorator: `@insulated()`.
    """
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), torch.inference_mode(False):
        yield
