"""Regular expressions of layers' names, matched in a time that no pattern can stretch.

A backtracking matcher takes exponentially long for some patterns, and adapters come from anywhere. Here a part of a
pattern maps the positions where it may begin to those where it may end, each worked out once (Thompson 1968).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

# Characters of a pattern and of a name, groups within groups, and repetitions of a part.
_LONGEST = 500
_DEEPEST = 50
_MOST_TIMES = 100
_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")

_Ends = Callable[[int], frozenset[int]]


def fits_end(pattern: str, name: str) -> bool:
    r"""Return whether a name, or what follows a dot in it, fits a pattern: `re.match(rf"(.*\.)?({pattern})$", name)`.

    Parameters
    ----------
    pattern
        Characters, `.`, classes, escapes, groups, `|`, `^`, `$`, and quantifiers.
    name
        Of a layer.

    Raises
    ------
    ValueError
        A pattern of other constructs, such as references, one that is no regular expression, or a very long one.
    """
    if max(len(pattern), len(name)) > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST:,} characters")
    re.compile(pattern)
    starts = {0} | {number + 1 for number, character in enumerate(name) if character == "."}
    parser = _Parser(pattern, name)
    ends = parser.whole()
    return any(len(name) in ends(start) for start in sorted(starts))


@dataclass
class _Parser:
    """Recursive descent over a pattern that `re` has compiled, into functions from a start to all ends."""

    pattern: str
    name: str
    place: int = 0
    depth: int = 0

    def whole(self) -> _Ends:
        ends = self._choice()
        if self.place < len(self.pattern):
            raise ValueError(f"{self.pattern[self.place]!r} stands alone")
        return ends

    def _choice(self) -> _Ends:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError("its groups are nested too deeply")
        options = [self._sequence()]
        while self._ahead() == "|":
            self.place += 1
            options.append(self._sequence())
        self.depth -= 1
        return _remembered(lambda start: frozenset().union(*(option(start) for option in options)))

    def _sequence(self) -> _Ends:
        parts: list[_Ends] = []
        while self._ahead() not in ("", "|", ")"):
            parts.append(self._quantified(self._atom()))
        return _remembered(lambda start: reduce(_from_all, parts, frozenset([start])))

    def _quantified(self, part: _Ends) -> _Ends:
        found = _QUANTIFIER.match(self.pattern, self.place)
        if found is None or found.group() in ("{}", "{,}"):
            return part
        self.place = found.end()
        if self._ahead() == "?":  # shortest first: the same ends
            self.place += 1
        elif self._ahead() == "+":
            raise ValueError("possessive quantifiers are not known here")
        least, most = _counts(found)
        if max(least, most or 0) > _MOST_TIMES:
            raise ValueError(f"a part is repeated more than {_MOST_TIMES:,} times")
        return _remembered(lambda start: _repeated(part, start, least, most))

    def _atom(self) -> _Ends:
        character = self._ahead()
        if character == "(":
            return self._group()
        if character == "[":
            found = _CLASS.match(self.pattern, self.place)
            assert found is not None
            self.place = found.end()
            return self._one(found.group())
        self.place += 1
        if character == "^":
            return lambda start: frozenset([start] if start == 0 else [])
        if character == "$":
            return lambda start: frozenset([start] if start == len(self.name) else [])
        if character == "\\":
            escaped = self._ahead()
            self.place += 1
            if escaped.isalnum() and escaped not in "dDsSwW":
                raise ValueError(f"\\{escaped} is not known here")
            return self._one(character + escaped)
        return self._one(character)

    def _group(self) -> _Ends:
        self.place += 1
        if self.pattern.startswith("?:", self.place):
            self.place += 2
        elif self._ahead() == "?":
            raise ValueError("of groups that begin with '?' only (?:…) are known here")
        inside = self._choice()
        self.place += 1
        return inside

    def _one(self, pattern: str) -> _Ends:
        """One character of a kind."""
        fits = re.compile(pattern).fullmatch
        return lambda start: frozenset([start + 1] if fits(self.name[start : start + 1]) else [])

    def _ahead(self) -> str:
        return self.pattern[self.place : self.place + 1]


def _counts(found: re.Match[str]) -> tuple[int, int | None]:
    """Fewest and most repetitions; None: any number."""
    simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if found.group() in simple:
        return simple[found.group()]
    least, comma, most = found.groups()
    low = int(least or 0)
    return low, (int(most) if most else None) if comma else low


def _repeated(part: _Ends, start: int, least: int, most: int | None) -> frozenset[int]:
    reached = frozenset([start])
    for _ in range(least):
        before, reached = reached, _from_all(reached, part)
        if reached == before:
            break
    new, times = reached, least
    while new and (most is None or times < most):
        new = _from_all(new, part) - reached
        reached |= new
        times += 1
    return reached


def _from_all(starts: frozenset[int], part: _Ends) -> frozenset[int]:
    return frozenset().union(*(part(start) for start in starts))


def _remembered(ends: _Ends) -> _Ends:
    known: dict[int, frozenset[int]] = {}

    def look_up(start: int) -> frozenset[int]:
        if start not in known:
            known[start] = ends(start)
        return known[start]

    return look_up
