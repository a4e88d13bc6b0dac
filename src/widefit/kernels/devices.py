"""Devices of torch: which there are, what is free on them, and what they are called."""

import torch

from widefit.kernels.memory import available_memory

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


def check_precision(device: torch.device) -> None:
    """Refuse a device without float64, which sums and factors need.

    Raises
    ------
    ValueError
        It has none.
    """
    if device.type == "mps":
        raise ValueError("widefit sums and factors in float64, which MPS does not have: leave the model on the CPU")


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
    return f"{named}, {str(dtype).removeprefix('torch.')}"


def _count(kind: str) -> int:
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0
