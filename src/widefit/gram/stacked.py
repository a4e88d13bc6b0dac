"""J of very many rows: parts one below the other, each held or made again when it is used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Jacobian
from widefit.sketches.signs import random_signs


@dataclass(frozen=True)
class Part:
    """Consecutive rows of J.

    Attributes
    ----------
    jacobian
        The rows.
    first
        Number of the first among the rows of its kind, of all processes.
    kind
        Number of the kind of residual that the rows belong to.
    group
        Rows of this kind that a sketch adds up: number r of them goes to group r // `group`.
    """

    jacobian: Jacobian
    first: int = 0
    kind: int = 0
    group: int = 1


@dataclass(frozen=True)
class GroupedRows:
    """Rows of a sketch that are complete, and sums over the part of a group that is here, by (kind, group)."""

    whole: Float[Tensor, "g P"]
    begun: dict[tuple[int, int], Float[Tensor, " P"]]


class StackedJacobian(Jacobian):
    """Parts of J, from the top to the bottom."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = parts
        first = parts[0].jacobian
        self.dtype, self.device = first.dtype, first.device
        self.heights = [part.jacobian.shape[0] for part in parts]
        self.shape = (sum(self.heights), first.shape[1])

    def matvec(self, direction: Float[Tensor, "P *c"]) -> Float[Tensor, "M *c"]:
        return torch.cat([part.jacobian.matvec(direction) for part in self.parts])

    def rmatvec(self, weights: Float[Tensor, "M *c"]) -> Float[Tensor, "P *c"]:
        # A sum of many parts is one of float64, so that it does not lose what each of them knows.
        total = torch.zeros(self.shape[1], *weights.shape[1:], dtype=torch.float64, device=self.device)
        for part, piece in zip(self.parts, weights.split(self.heights), strict=True):
            total += part.jacobian.rmatvec(piece)
        return total.to(self.dtype)

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        total = torch.empty(self.shape[0], self.shape[0], dtype=dtype, device=self.device)
        for top, upper in self.row_blocks():
            for left, lower in self.row_blocks():
                total[top : top + len(upper), left : left + len(lower)] = upper.to(dtype) @ lower.to(dtype).T
        return total

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        result = torch.empty(len(indices), self.shape[1], dtype=self.dtype, device=self.device)
        top = 0
        for part, height in zip(self.parts, self.heights, strict=True):
            here = ((indices >= top) & (indices < top + height)).nonzero()[:, 0]
            if len(here):
                result[here] = part.jacobian.rows(indices[here] - top)
            top += height
        return result

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        top = 0
        for part, height in zip(self.parts, self.heights, strict=True):
            for start, block in part.jacobian.row_blocks():
                yield top + start, block
            top += height

    def grouped(self, seed: int) -> Iterator[GroupedRows]:
        """S J, part by part: every row with a random sign, added up over its group.

        The signs depend on `seed` and on the number of a row alone, whatever process has it. A part begins with a
        group, or lies within one.
        """
        for part in self.parts:
            end = part.first + part.jacobian.shape[0]
            signs = random_signs(part.first, end, seed + part.kind, self.dtype).to(self.device)
            sums = part.jacobian.group_sums(signs, part.group)
            begun = {}
            if part.first % part.group or end < part.first + part.group:
                begun[part.kind, part.first // part.group] = sums[0]
                sums = sums[1:]
            elif end % part.group:
                begun[part.kind, end // part.group] = sums[-1]
                sums = sums[:-1]
            yield GroupedRows(sums, begun)
