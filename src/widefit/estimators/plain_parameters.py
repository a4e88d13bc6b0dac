"""Parameters of estimators as plain values, and back: a rule comes back from a file with its settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np

from widefit import rules, solvers, trackers
from widefit.records import FileError, read

# Objects that parameters and their fields can be, by name.
_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(rules.GaussNewton, rules.GradientDescent, rules.SGD, rules.PGD),
        *(trackers.Certificate, trackers.DataTree, trackers.Dense, trackers.HalfSpaceTree, trackers.VerletList),
        trackers.WeightTree,
        *(solvers.BlockCG, solvers.CG, solvers.Cholesky, solvers.NystromCG, solvers.SketchedCG),
    )
}
_TYPE, _SETTINGS = "type", "settings"
_DICT = "dict"
_RANDOM_STATE = "RandomState"
_ALGORITHM = "MT19937"
_WORDS = 624


def to_plain(value: Any) -> Any:
    """Return a parameter as a value that JSON can hold.

    Of an object that widefit does not know, a rule of one's own, the name is kept.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {_TYPE: _DICT, _SETTINGS: {"items": [[to_plain(key), to_plain(item)] for key, item in value.items()]}}
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, np.random.RandomState):
        _, words, position, has_gauss, gauss = value.get_state(legacy=True)
        state = [np.asarray(words).tolist(), int(position), int(has_gauss), float(gauss)]
        return {_TYPE: _RANDOM_STATE, _SETTINGS: {"state": state}}
    if type(value) is _KINDS.get(type(value).__name__):
        settings = {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
        return {_TYPE: type(value).__name__, _SETTINGS: settings}
    return getattr(value, "name", str(value))


def from_plain(value: Any, where: str) -> Any:
    """Return the parameter that `to_plain` was given; lists become tuples.

    Parameters
    ----------
    value
        From `to_plain`.
    where
        Its name, for messages.

    Raises
    ------
    FileError
        An object of a type that widefit does not know, or with other settings than it has.
    """
    if isinstance(value, list):
        return tuple(from_plain(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    settings = read(dict[str, Any], value.get(_SETTINGS), where)
    name = read(str, value.get(_TYPE), where)
    if name == _RANDOM_STATE:
        return _random_state(settings.get("state"), where)
    if name == _DICT:
        items = read(list[list], settings.get("items"), where)
        if any(len(item) != 2 or isinstance(item[0], list | dict) for item in items):
            raise FileError(f"{where} is no dict of plain values")
        return {key: from_plain(item, where) for key, item in items}
    if name not in _KINDS:
        raise FileError(f"{where} is a {name!r}, which this widefit does not know")
    hints = get_type_hints(_KINDS[name])
    given = {field.name: field for field in fields(_KINDS[name])}
    if unknown := sorted(settings.keys() - given.keys()):
        raise FileError(f"{where} has a field {unknown[0]!r}, which {name} has not")
    own = {
        key: read(hints[key], from_plain(item, f"{where}.{key}"), f"{where}.{key}") for key, item in settings.items()
    }
    try:
        return _KINDS[name](**own)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from error


def _random_state(state: Any, where: str) -> np.random.RandomState:
    if not isinstance(state, list) or len(state) != 4:
        raise FileError(f"{where} has no state")
    words = read(list[int], state[0], where)
    position, has_gauss = read(int, state[1], where), read(int, state[2], where)
    good = len(words) == _WORDS and all(0 <= word < 2**32 for word in words) and any(words)
    if not good or not 0 <= position <= _WORDS or has_gauss not in (0, 1):
        raise FileError(f"{where} has no state of {_ALGORITHM}")
    found = np.random.RandomState()
    found.set_state((_ALGORITHM, np.array(words, np.uint32), position, has_gauss, read(float, state[3], where)))
    return found
