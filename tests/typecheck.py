"""The run-time type checker of the tests: beartype, where an int is a float as PEP 484 has it.

Shapes and types are checked in the first calls of every function and in a part of the others: checking all of them
takes as long as the tests themselves. A function inside another one is made anew in every call of that one, and a check
is some milliseconds in the making: the first of them are checked, and a part of the others.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from itertools import count
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
# Calls of a function that are all checked, and the distance between those that are checked after them.
_FIRST = 10
_EVERY = 97
# How often functions inside others were made.
_made: defaultdict[CodeType, "count[int]"] = defaultdict(count)

_of_jaxtyping = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Decorate like `jaxtyping.jaxtyped`; functions in their first call, and then check part of their calls."""
    check = _of_jaxtyping(typechecker=typechecker)

    def decorate(target: Any) -> Any:
        if not isinstance(target, FunctionType):
            return check(target)
        if "<locals>" in target.__qualname__ and _left_out(next(_made[target.__code__])):
            return target
        calls = count()
        found: list[Callable[..., Any]] = []

        @wraps(target)
        def called(*args: Any, **kwargs: Any) -> Any:
            if _left_out(next(calls)):
                return target(*args, **kwargs)
            if not found:
                found.append(check(target))
            return found[0](*args, **kwargs)

        return called

    return decorate


def _left_out(number: int) -> bool:
    return number >= _FIRST and number % _EVERY > 0
