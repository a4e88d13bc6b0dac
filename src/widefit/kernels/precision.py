"""Precision in which torch multiplies numbers of float32."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from widefit.kernels.shared_setting import SharedSetting


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 numbers as such, and afterwards as before: TF32 keeps 10 bits of 23. Also a decorator.

    The setting holds in the whole process; it ends when the last block that overlaps has ended.
    """
    with _full:
        yield


def _ask_for_all_bits() -> Callable[[], None]:
    """Switch TF32 and bfloat16 off; return what switches them on again where they were."""
    by_operation = [(operation, operation.fp32_precision) for operation in _operations()]
    # torch refuses to tell the settings for all operations where somebody has set one of them by itself; then those of
    # the operations are all there is.
    products, convolutions = None, None
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32

    if products is not None:
        torch.set_float32_matmul_precision("highest")
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = False
    for operation, _ in by_operation:
        operation.fp32_precision = "ieee"

    def put_back() -> None:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for operation, precision in by_operation:
            operation.fp32_precision = precision

    return put_back


def _operations() -> list[Any]:
    """Return where torch has the precision of an operation, from version 2.9 on."""
    backends = torch.backends
    kinds = [backends.cuda.matmul] + [
        getattr(getattr(backends, library), name, None)
        for library in ("cudnn", "mkldnn")
        for name in ("matmul", "conv", "rnn")
    ]
    return [kind for kind in kinds if hasattr(kind, "fp32_precision")]


_full = SharedSetting(_ask_for_all_bits)
