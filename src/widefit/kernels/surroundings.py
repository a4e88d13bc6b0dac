"""Modes of NumPy and torch that a caller may have set, and that the work must not depend on."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from widefit.kernels.precision import full_precision


@contextmanager
def insulated() -> Iterator[None]:
    """Work in full precision, with NumPy's own handling of floating-point errors, outside of torch's inference mode.

    `numpy.seterr(all="raise")` would end the work where an exponential underflows to 0 as it should; tensors made in
    inference mode can never be trained. Also a decorator: `@insulated()`.
    """
    with (
        full_precision(),
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
        torch.inference_mode(False),
    ):
        yield
