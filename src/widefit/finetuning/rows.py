"""Values on training rows and the same on held-out rows."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Values = tuple[Tensor, ...]


@dataclass(frozen=True)
class Rows:
    """Tensors with an entry a row.

    Attributes
    ----------
    training
        Values on the training rows.
    held_out
        The same on the held-out rows; None where there are none.
    """

    training: Values
    held_out: Values | None = None

    def map(self, function: Callable[[Values], Values]) -> "Rows":
        """Return what a function gives for either part."""
        return Rows(function(self.training), None if self.held_out is None else function(self.held_out))

    def followed_by(self, others: "Rows") -> "Rows":
        """Return these values and then others of the same rows."""
        held_out = None
        if self.held_out is not None and others.held_out is not None:
            held_out = (*self.held_out, *others.held_out)
        return Rows((*self.training, *others.training), held_out)

    def subset(self, rows: Tensor) -> "Rows":
        """Return the values on some of the training rows, without held-out ones."""
        return Rows(tuple(value[rows] for value in self.training))
