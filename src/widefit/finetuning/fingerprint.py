"""Hash of everything that a resumed fine-tuning must share with the one before it."""

import hashlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from widefit.records.contents import digest

_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.generic, torch.dtype, torch.device)


def fingerprint(settings: Any, tensors: Iterable[Tensor | None], model: nn.Module) -> str:
    """Return a hash that is the same in every process.

    Parameters
    ----------
    settings
        Whatever the result depends on; losses may hold functions and modules.
    tensors
        The data.
    model
        As it was given.
    """
    held = [*tensors, *model.state_dict().values()]
    known = digest(tensor for tensor in held if isinstance(tensor, Tensor))
    return hashlib.sha256(f"{name_of(settings)} {known}".encode()).hexdigest()


def name_of(value: Any) -> str:
    """Return words for a value that hold its settings, and never its address: functions by name, tensors by content."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        return digest([torch.as_tensor(value)])
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name_of(key)}: {name_of(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(name_of, value))}]"
    if isinstance(value, partial):
        return f"partial({name_of((value.func, value.args, value.keywords))})"
    if inspect.ismethod(value):
        return f"{value.__name__} of {name_of(value.__self__)}"
    if callable(value) and hasattr(value, "__qualname__"):
        value = inspect.unwrap(value)
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    if isinstance(value, nn.Module):
        return f"{_type_of(value)}({name_of(_settings_of(value))}, {name_of(value.state_dict())})"
    settings = _settings_of(value)
    if is_dataclass(value):
        settings = {field.name: getattr(value, field.name) for field in fields(value) if field.compare}
    return f"{_type_of(value)}({name_of(settings)})"


def _settings_of(value: Any) -> dict[str, Any]:
    """Attributes with plain values."""
    return {name: own for name, own in getattr(value, "__dict__", {}).items() if isinstance(own, _PLAIN)}


def _type_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
