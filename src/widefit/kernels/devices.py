"""Devices of torch: which there are, what is free on them, and what they are called."""

import torch

from widefit.kernels.memory import available_memory

# Time of an operation in float64, as a multiple of one in float32: half the width of a vector unit, and of what a data
# center's accelerators have. Others have a thirty-second or sixty-fourth of the units.
DOUBLE, _DEAR_DOUBLE = 2.0, 64.0
# Compute capabilities of NVIDIA's and AMD's for data centers.
_FULL_DOUBLE = ((6, 0), (7, 0), (8, 0), (9, 0), (9, 4), (9, 5), (10, 0))
# Apple's, the last, has no float64.
KINDS = ("cpu", "cuda", "xpu", "mps")


def devices() -> list[str]:
    """Return the kinds of devices that are at hand, "cpu" first."""
    return [kind for kind in KINDS if _count(kind) > 0]


def device_named(name: str | torch.device) -> torch.device:
    """Return a device that is at hand and has float64.

    Raises
    ------
    ValueError
        It is no device, is not at hand, or computes in float32 alone; the message says what there is.
    """
    found = " and ".join(f'"{kind}"' for kind in devices())
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'device must be "auto" or a device of torch, got {name!r}; here there is {found}') from error
    if device.type not in devices() or (device.index or 0) >= _count(device.type):
        raise ValueError(f'device="{device}" is not at hand; here there is {found}')
    check_precision(device)
    return device


def double_cost(device: torch.device) -> float:
    """Return the time of an operation in float64, as a multiple of one in float32, from what kind of device it is."""
    if device.type != "cuda":
        return DOUBLE
    return DOUBLE if torch.cuda.get_device_capability(device) in _FULL_DOUBLE else _DEAR_DOUBLE


def check_precision(device: torch.device) -> None:
    """Refuse a device without float64, which sums and factors need.

    Raises
    ------
    ValueError
        It has none.
    """
    without = device.type == "xpu" and not getattr(torch.xpu.get_device_properties(device), "has_fp64", True)
    if device.type == "mps" or without:
        name = "MPS" if device.type == "mps" else "this XPU"
        raise ValueError(f"widefit sums and factors in float64, which {name} does not have: leave the model on the CPU")


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free now on a device."""
    query = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    return available_memory() if query is None else int(query(device)[0])


def model_of(device: torch.device) -> str:
    """Return what the maker calls a device, or its kind where torch does not say."""
    query = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return device.type if query is None else str(query(device))


def told(device: torch.device, dtype: torch.dtype) -> str:
    """Return the device and the precision of what is on it, for plans and reports."""
    model = model_of(device)
    named = device.type if model == device.type else f"{device.type} ({model})"
    kept = f"{named}, {str(dtype).removeprefix('torch.')}"
    return kept if double_cost(device) == DOUBLE else f"{kept}; float64 is slow there"


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0
