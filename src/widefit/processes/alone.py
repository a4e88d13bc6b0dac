"""One process, in the terms of several: what it has is all there is."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Result = TypeVar("Result")


class Alone:
    """A process by itself. Every method is the identity, or the plain operation on what is here.

    Attributes
    ----------
    rank, size
        Number of this process, and how many there are.
    neighbours
        Processes on this machine, this one among them.
    """

    rank: int = 0
    size: int = 1
    neighbours: int = 1

    def meet(self) -> None:
        """Wait until all processes are here."""

    def attempt(self, work: Callable[[], Result]) -> Result:
        """Do work in which processes do not talk; where it fails on one, all raise its error."""
        return work()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        return tensor

    def sum_at(self, tensor: Tensor, rank: int) -> Tensor | None:
        """Sum over the processes on one of them; None on the others."""
        return tensor

    def spread(self, tensor: Tensor, rank: int) -> None:
        """Overwrite a contiguous tensor by that of one process."""

    def same(self, tensor: Tensor, rank: int = 0) -> Tensor:
        """The tensor of one process, in the shape and type of all."""
        return tensor

    def joined(self, rows: Shaped[Tensor, "n *c"], at: int | None = None) -> Shaped[Tensor, "N *c"]:
        """The rows of all processes, in their order; `at`: on this process alone, and none on the others."""
        return rows

    def gathered(self, item: Any) -> list[Any]:
        """An item of every process, in their order."""
        return [item]

    def any(self, flag: bool) -> bool:
        """Whether it is so on some process."""
        return flag

    def norm(self, rows: Float[Tensor, " n"]) -> float:
        """Euclidean norm of a vector whose entries the processes share out."""
        return float(self.length(rows))

    def length(self, rows: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """The same, left on the device where the process is alone."""
        return torch.linalg.vector_norm(rows)

    def dot(self, left: Float[Tensor, " n"], right: Float[Tensor, " n"]) -> float:
        """Inner product of two such vectors."""
        return float(torch.dot(left, right))

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        """Inner products of pairs of such vectors, in one transfer."""
        return self.products(*pairs).tolist()

    def products(self, *pairs: tuple[Tensor, Tensor]) -> Float[Tensor, " pairs"]:
        """The same, left on the device where the process is alone."""
        return torch.stack([torch.dot(left, right) for left, right in pairs])


ALONE = Alone()
