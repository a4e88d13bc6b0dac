"""One thread for steps that are too small to share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Numbers of J below which a second thread gains nothing on an idle machine, and waits for its turn on a busy one.
_SMALL = 1 << 19


@contextmanager
def few_threads(numbers: int) -> Iterator[None]:
    """Keep torch to one thread while J has few numbers; afterwards it has as many as before."""
    before = torch.get_num_threads()
    if numbers >= _SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
