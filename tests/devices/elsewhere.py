"""A device that is not there: its tensors live on the host and say otherwise, so that what would fail on an
accelerator fails here.

Operations that mix its tensors with the host's are refused as an accelerator refuses them, and those that wait for the
device are counted.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# A device of torch that needs no driver; nothing here runs on it.
DEVICE = torch.device("lazy", 0)
aten: Any = torch.ops.aten
# Operations that go from one device to another.
CROSSING = (aten.copy_.default, aten._to_copy.default)
# Indices may be on the host.
INDEXING = (aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default)
# Zeros without memory, which forward derivatives make: operations below this one would read them.
UNSTORED = {aten._efficientzerotensor.default: aten.zeros.default}
# Operations whose result the host must have before it goes on.
WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "_linalg_svd",
    "_linalg_eigh",
)


class Elsewhere(Tensor):
    """A tensor that says it is on DEVICE."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Elsewhere({self.held!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


class Watched(TorchDispatchMode):
    """Inside, there is DEVICE, and `waits` counts the operations that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> "Watched":
        # What is made from Python's numbers is made on the host and then sent, past the driver that is not there.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    """Carry an operation out on the host, as DEVICE would or would not."""
    func = UNSTORED.get(func, func)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    to = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if away and func not in CROSSING:
        _check_places(func, args if func in INDEXING else tensors)
    if isinstance(kwargs.get("generator"), torch.Generator) and (away or to == DEVICE.type):
        raise RuntimeError(f"{func} on {DEVICE} takes a generator of the host")
    if away and _waits(func, args, to):
        waits[func._schema.name.removeprefix("aten::")] += 1
    here = kwargs | {"device": torch.device("cpu")} if to == DEVICE.type else kwargs
    found = func(*tree_map_only(Elsewhere, _held, args), **tree_map_only(Elsewhere, _held, here))
    leaves = func in CROSSING and not isinstance(tensors[0], Elsewhere)
    if to != DEVICE.type and (not away or to is not None or leaves):
        return found
    known = {id(tensor.held): tensor for tensor in away}
    return tree_map_only(Tensor, lambda one: known[id(one)] if id(one) in known else Elsewhere(one), found)


def _check_places(func: Any, operands: Any) -> None:
    """Refuse tensors of the host, but for indices, and for single numbers where each element is worked on alone."""
    operands = [operands[0], *operands[2:]] if isinstance(operands, tuple) else operands
    home = [one for one in operands if isinstance(one, Tensor) and not isinstance(one, Elsewhere)]
    alone = func in INDEXING or torch.Tag.pointwise in func.tags
    if any(tensor.dim() > 0 or not alone for tensor in home):
        raise RuntimeError(f"{func} mixes {DEVICE} with the host: {[tuple(tensor.shape) for tensor in home]}")


def _waits(func: Any, args: Any, to: str | None) -> bool:
    if func in CROSSING:
        return to == "cpu" or (func is aten.copy_.default and not isinstance(args[0], Elsewhere))
    masked = func in INDEXING and any(isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1])
    return masked or func._schema.name.removeprefix("aten::") in WAITING


def _held(tensor: Elsewhere) -> Tensor:
    return tensor.held
