"""What training has added to weights that are not stored: W − W₀, in a form of the tracker's own."""

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Delta(Protocol):
    """W − W₀ of a regenerated network. It must not change once a network has it, and is read by several threads."""

    def add_to(self, first: int, last: int, rows: Float[np.ndarray, "rows d"]) -> None:
        """rows += (W − W₀) of neurons `first` to `last`, in place and in the dtype of `rows`.

        Every row must come out the same bits whatever the range that it is asked in.
        """
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything it is made of, as arrays."""
        ...


# Where classes of widefit are at home; to import other modules would do more than define a class.
_HOMES = "widefit.trackers."
_READERS: dict[str, Callable[[dict[str, np.ndarray]], Delta]] = {}

Class = TypeVar("Class", bound=type)


def restorable(cls: Class) -> Class:
    """Class decorator: `cls.from_state(state)` is the inverse of `state()`, so that networks can load it.

    `from_state` must refuse a state that is not one of `state()`. A class may have a method `check_fits(width,
    in_features, out_features)` that raises ValueError where a displacement belongs to another network.

    Raises
    ------
    TypeError
        The class has no `from_state`.
    """
    if not hasattr(cls, "from_state"):
        raise TypeError(f"{cls.__name__} needs a classmethod from_state(state) to be restorable")
    _READERS[cls.__name__] = cls.from_state
    return cls


def is_restorable(delta: Delta) -> bool:
    """Whether `restore` can read the state of a displacement back."""
    return type(delta).__name__ in _READERS


def restore(name: str, state: dict[str, np.ndarray], home: str = "") -> Delta:
    """The displacement of class `name` with that state.

    Parameters
    ----------
    name
        Of a class that is `restorable`.
    state
        From its `state`.
    home
        Module that defines the class, imported where it is one of widefit's trackers.

    Raises
    ------
    ValueError
        No restorable class has that name.
    """
    if name not in _READERS and home.startswith(_HOMES):
        with suppress(ImportError):
            import_module(home)
    if name not in _READERS:
        known = ", ".join(sorted(_READERS)) or "none"
        raise ValueError(f"the weights were displaced by a {name}, which cannot be restored here (known: {known})")
    return _READERS[name](state)
