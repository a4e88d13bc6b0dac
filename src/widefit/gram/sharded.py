"""J whose rows several processes share out, as an operator on vectors that all of them hold whole."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from widefit.gram.base import Jacobian
from widefit.gram.jacobian import add_lower_gram, mirror_lower
from widefit.processes import Alone
from widefit.sketches.base import Sketch

# Numbers of rows of J that go from process to process at a time.
_NUMBERS = 1 << 22


class ShardedJacobian(Jacobian):
    """J of all rows, for more parameters than rows. Every method is called by all processes at once.

    Parameters
    ----------
    own
        The rows of this process.
    processes
        All of them.
    present
        Which of `own` count, shape (rows,); None: all. Those that stand for none are left out.
    """

    def __init__(self, own: Jacobian, processes: Alone, present: Bool[Tensor, " r"] | None = None):
        self.own, self.processes = own, processes
        self.dtype, self.device = own.dtype, own.device
        everything = torch.ones(own.shape[0], dtype=torch.bool, device=own.device)
        self.places = (everything if present is None else present).nonzero()[:, 0]
        counts = processes.gathered(len(self.places))
        first = sum(counts[: processes.rank])
        self.here = slice(first, first + len(self.places))
        self.shape = (sum(counts), own.shape[1])

    def whole(self, rows: Float[Tensor, "r *c"]) -> Float[Tensor, "M *c"]:
        """Rows of all processes, from those of this one."""
        return self.processes.joined(rows[self.places])

    def part(self, rows: Float[Tensor, "M *c"]) -> Float[Tensor, "r *c"]:
        """Rows of this process, from those of all; zero where a row does not count."""
        found = rows.new_zeros(self.own.shape[0], *rows.shape[1:])
        found[self.places] = rows[self.here]
        return found

    def matvec(self, direction: Float[Tensor, "P *c"]) -> Float[Tensor, "M *c"]:
        return self.whole(self.own.matvec(direction))

    def rmatvec(self, weights: Float[Tensor, "M *c"]) -> Float[Tensor, "P *c"]:
        return self.processes.sum(self.own.rmatvec(self.part(weights)))

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        own = self.processes.attempt(lambda: torch.cat([block for _, block in self.own.row_blocks()])[self.places])
        # Each process sums over a part of the columns, which it gets from all.
        edges = [self.shape[1] * rank // self.processes.size for rank in range(self.processes.size + 1)]
        total = torch.zeros(self.shape[0], self.shape[0], dtype=dtype, device=self.device)
        for rank in range(self.processes.size):
            columns = self.processes.joined(own[:, edges[rank] : edges[rank + 1]], at=rank).to(dtype)
            if rank == self.processes.rank:
                add_lower_gram(total, columns)
        return mirror_lower(self.processes.sum(total))

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        result = torch.zeros(len(indices), self.shape[1], dtype=self.dtype, device=self.device)
        mine = ((indices >= self.here.start) & (indices < self.here.stop)).nonzero()[:, 0]
        if len(mine):
            result[mine] = self.own.rows(self.places[indices[mine] - self.here.start])
        return self.processes.sum(result)

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        step = max(1, _NUMBERS // self.shape[1])
        for start in range(0, self.shape[0], step):
            yield start, self.rows(torch.arange(start, min(start + step, self.shape[0]), device=self.device))

    def diagonal(self) -> Float[Tensor, " M"]:
        return self.whole(self.own.diagonal())

    def gram_columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        chosen = self.rows(indices)
        return self.whole(torch.cat([block @ chosen.T for _, block in self.own.row_blocks()]))

    def sketched(self, sketch: Sketch) -> Float[Tensor, "s M"]:
        return self.whole(self.own.sketched(sketch).T.contiguous()).T
