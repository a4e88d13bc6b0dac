"""Counts and names in sentences for the user."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class TableError(ValueError):
    """A table that cannot be read, or that cannot be used as it is. The message says where and what to do."""


class Refusals:
    """Everything that is wrong with a table, so that the user hears of it at once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a TableError of this block for `raise_any`."""
        try:
            yield
        except TableError as error:
            self.messages.append(str(error))

    def raise_any(self, limit: int = 8) -> None:
        """Raise one TableError with the first `limit` messages, if there are any."""
        if not self.messages:
            return
        rest = len(self.messages) - limit
        more = f"; and {plural(rest, 'refusal')} more" if rest > 0 else ""
        raise TableError("; ".join(self.messages[:limit]) + more)


def listing(names: Sequence[object], limit: int = 8) -> str:
    """Names in quotes, the first `limit` of them: "'a', 'b' and 3 more"."""
    shown = ", ".join(repr(name) for name in names[:limit])
    rest = len(names) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def plural(count: int, noun: str, many: str | None = None) -> str:
    """'1 row', '2 rows', '1,000 rows'."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def shell(name: str) -> str:
    """A column name as one types it in a shell."""
    plain = name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    return name if plain else "'" + name.replace("'", "'\\''") + "'"
