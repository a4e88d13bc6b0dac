"""The networks, as nn.Modules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from widefit.nn.shifted_relu import ShiftedReLU
from widefit.nn.two_layer import TwoLayer, automatic_threshold
from widefit.nn.weight_change import WeightChange, restorable

if TYPE_CHECKING:
    from widefit.linalg.low_rank import LowRankLinear
    from widefit.linalg.packed import Packed
    from widefit.linalg.sparse_rows import SparseRows
    from widefit.nn.deep import Deep

# Imported on first use: they need Numba.
_HOME = {
    "Deep": "widefit.nn.deep",
    "LowRankLinear": "widefit.linalg.low_rank",
    "Packed": "widefit.linalg.packed",
    "SparseRows": "widefit.linalg.sparse_rows",
}

__all__ = [
    "Deep",
    "LowRankLinear",
    "Packed",
    "ShiftedReLU",
    "SparseRows",
    "TwoLayer",
    "WeightChange",
    "automatic_threshold",
    "restorable",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'widefit.nn' has no attribute {name!r}")
