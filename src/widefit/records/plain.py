"""Plain values of a file, read by the types declared for them."""

import math
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# Integers beyond these are no counts, and would overflow where they are used.
_LARGEST = 2**64


class FileError(ValueError):
    """Bad content of a file. The message says which part of it is wrong, and what was expected."""


def read(kind: Any, value: Any, where: str) -> Any:
    """Return a plain value as the type declared for it.

    Parameters
    ----------
    kind
        None, bool, int, float (which takes integers), str, Any, a `Literal`, an enumeration, a union, `list[T]`,
        `tuple[T, ...]`, `tuple[T, U]`, `dict[str, T]`, or a dataclass of such fields, which is made from the mapping of
        its fields. Of any other class the value must be an object already.
    value
        As JSON gives it.
    where
        The place of the value in its file, for messages.

    Raises
    ------
    FileError
        The value is of another type, lacks a field, has one that is not declared, or is refused by its dataclass.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if kind in _SCALARS:
        return _SCALARS[kind](value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next((member for member in kind if member.value == value), None) or _refuse(value, kind, where)
    origin = get_origin(kind)
    if origin is None:
        return value if isinstance(value, kind) else _refuse(value, kind, where)
    if origin is Literal:
        return value if any(value is one or value == one for one in get_args(kind)) else _refuse(value, kind, where)
    if origin in (Union, UnionType):
        return _read_union(get_args(kind), value, where)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            _refuse(value, kind, where)
        kinds = get_args(kind)
        if origin is tuple and kinds[-1] is not ...:
            if len(value) != len(kinds):
                _refuse(value, kind, where)
        else:
            kinds = (kinds[0],) * len(value)
        return origin(
            read(each, item, f"{where}[{place}]") for place, (each, item) in enumerate(zip(kinds, value, strict=True))
        )
    if not isinstance(value, dict):
        _refuse(value, kind, where)
    return {str(name): read(get_args(kind)[1], item, f"{where}.{name}") for name, item in value.items()}


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(value, kind, where)
    hints = _hints(kind)
    declared = [field for field in fields(kind) if field.init]
    needed = {field.name for field in declared if field.default is MISSING and field.default_factory is MISSING}
    lacking = sorted(needed - value.keys())
    unknown = sorted(value.keys() - {field.name for field in declared})
    if lacking or unknown:
        what = f"lacks {lacking[0]!r}" if lacking else f"has a field {unknown[0]!r}, which {kind.__name__} has not"
        raise FileError(f"{where} {what}")
    given = {name: read(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**given)
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{where}: {error}") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """By the first type that takes the value; the exact one where there is one."""
    exact = [kind for kind in kinds if isinstance(kind, type) and type(value) is kind]
    refused: list[FileError] = []
    for kind in [*exact, *kinds]:
        try:
            return read(kind, value, where)
        except FileError as error:
            refused.append(error)
    deepest = max(refused, key=lambda error: str(error).count("."))
    raise deepest if len(kinds) == 2 and NoneType in kinds else FileError(f"{where} {_got(value)}")


def _read_bool(value: Any, where: str) -> bool:
    return value if isinstance(value, bool) else _refuse(value, bool, where)


def _read_int(value: Any, where: str) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return value if good else _refuse(value, int, where)


def _read_float(value: Any, where: str) -> float:
    if isinstance(value, float):
        return value
    return float(_read_int(value, where)) if isinstance(value, int) else _refuse(value, float, where)


def _read_str(value: Any, where: str) -> str:
    return value if isinstance(value, str) else _refuse(value, str, where)


def _read_none(value: Any, where: str) -> None:
    return None if value is None else _refuse(value, None, where)


_SCALARS: dict[Any, Callable[[Any, str], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    None: _read_none,
    NoneType: _read_none,
}


def _refuse(value: Any, kind: Any, where: str) -> Any:
    name = getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind)
    raise FileError(f"{where} must be {name}, it {_got(value)}")


def _got(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return f"is a {type(value).__name__} of {len(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}"
    return f"is {str(value)[:40]!r}"
