"""Change of weights that are not stored: W − W₀, in a form that the tracker chooses."""

from collections.abc import Callable
from importlib import import_module
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class WeightChange(Protocol):
    """W − W₀ of a regenerated network. It must not change once a network has it, and is read by several threads."""

    def add_to(self, first: int, last: int, rows: Float[np.ndarray, "rows d"]) -> None:
        """Add W − W₀ of neurons `first` to `last` to `rows`, in place and in their dtype.

        Every row must come out the same bits whatever the range that it is asked in.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Return everything it is made of, as arrays."""
        ...


Reader = Callable[[dict[str, np.ndarray]], WeightChange]
Class = TypeVar("Class", bound=type)

_READERS: dict[str, Reader] = {}
# Classes of widefit by the name that files give them, and the modules that define them. Trackers stand above networks:
# a module is imported when a file names its class.
_OWN = {"CertificateDelta": "widefit.trackers.certificate.weight_change"}


def restorable(cls: Class) -> Class:
    """Register a class with `from_state(state)`, the inverse of `state()`, so that networks can load it.

    `from_state` must refuse a state that is not one of `state()`. A class may have a method `check_fits(width,
    in_features, out_features)` that raises a ValueError where a change belongs to another network. Files name the
    class; a class of widefit may say another name, `file_name`, than its own.

    Raises
    ------
    TypeError
        The class has no `from_state`.
    """
    if not hasattr(cls, "from_state"):
        raise TypeError(f"{cls.__name__} needs a classmethod from_state(state) to be restorable")
    _READERS[name_in_files(cls)] = cls.from_state
    return cls


def name_in_files(kind: type) -> str:
    """Return the name that files give a class."""
    return kind.__dict__.get("file_name", kind.__name__)


def is_restorable(change: WeightChange) -> bool:
    """Return True where `restore` can read the state of a weight change back."""
    return name_in_files(type(change)) in _READERS


def restore(name: str, state: dict[str, np.ndarray]) -> WeightChange:
    """Rebuild a weight change from the name of its class in files, and from its `state`.

    Raises
    ------
    ValueError
        No restorable class has that name.
    """
    if name not in _READERS and name in _OWN:
        import_module(_OWN[name])
    if name not in _READERS:
        known = ", ".join(sorted({*_READERS, *_OWN}))
        raise ValueError(f"the weights were displaced by a {name}, which cannot be restored here (known: {known})")
    return _READERS[name](state)
