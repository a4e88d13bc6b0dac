"""H of a two-layer network from fire masks, on the device that they are on."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import DenseGram, Operator
from widefit.gram.co_firing import squared_coefficients
from widefit.trackers.base import Flips
from widefit.trackers.masks import MaskTracking


class MaskGram(Operator):
    """H = K ∘ Sᵀ diag(a² / m) S with K = X Xᵀ and the masks S, formed or applied by products in blocks (this project).

    Where all |a| are equal, co-firings are counted: products of masks in float32, whose partial sums are whole numbers
    below 2²⁴ in a block, and so exact. Otherwise, and for K, sums are float64. A product with a vector costs 4 m n d
    operations, in the dtype of X between samples and columns as for `FireListGram`.

    Parameters
    ----------
    tracking
        The run whose masks count; H is that of the moment.
    output
        The output whose neurons count.
    """

    counts = None
    dtype = torch.float64

    def __init__(self, tracking: MaskTracking, output: int):
        self._tracking = tracking
        self._output = output
        self._inputs = tracking.inputs
        self.size = len(self._inputs)
        self.device = self._inputs.device
        rows = [rows for rows, _ in tracking.masks(output)]
        first, last = rows[0].start, rows[-1].stop
        self._scale, squares = squared_coefficients(tracking.coefficients[first:last])
        self._first = first
        self._squares = None if squares is None else torch.from_numpy(squares).to(self.device)

    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        columns = vectors.reshape(self.size, -1).T
        out = torch.zeros_like(columns)
        for rows, fires in self._tracking.masks(self._output):
            silent = ~fires
            squares = self._squares_of(rows)
            for column, total in zip(columns, out, strict=True):
                sums = column.to(self._inputs.dtype).expand(fires.shape).masked_fill(silent, 0) @ self._inputs
                total += squares @ (sums @ self._inputs.T).masked_fill_(silent, 0).to(self.dtype)
        return out.T.reshape(vectors.shape)

    def diagonal(self) -> Float[Tensor, " n"]:
        fired = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for rows, fires in self._tracking.masks(self._output):
            fired += self._squares_of(rows) @ fires.to(self.dtype)
        return fired * self._inputs.to(self.dtype).square().sum(dim=1)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        return self._between(None, indices)

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        return self._between(indices, indices)

    def dense(self) -> Float[Tensor, "n n"]:
        return self._between(None, None)

    def _between(self, rows: Int[Tensor, " r"] | None, columns: Int[Tensor, " c"] | None) -> Float[Tensor, "_ _"]:
        """H[rows, columns]; None: all of them."""
        left, right = self._chosen(self._inputs, rows), self._chosen(self._inputs, columns)
        total = torch.zeros(len(left), len(right), dtype=self.dtype, device=self.device)
        for own, fires in self._tracking.masks(self._output):
            some, others = self._chosen(fires.T, rows), self._chosen(fires.T, columns)
            if self._squares is None:
                total += some.float() @ others.float().T
            else:
                total += (some * self._squares_of(own)) @ others.to(self.dtype).T
        similarity = left.to(self.dtype) @ right.to(self.dtype).T
        return total.mul_(similarity).mul_(self._scale)

    def _chosen(self, values: Tensor, indices: Int[Tensor, " r"] | None) -> Tensor:
        return values if indices is None else values[indices]

    def _squares_of(self, rows: slice) -> Float[Tensor, " rows"]:
        """a_r² / m of some neurons."""
        if self._squares is None:
            return torch.full((rows.stop - rows.start,), self._scale, dtype=self.dtype, device=self.device)
        return self._squares[rows.start - self._first : rows.stop - self._first]


class _Formed(DenseGram):
    counts = None


class MaskGrams:
    """H by output at the committed weights of a run, formed once or applied from the masks.

    Parameters
    ----------
    tracking
        The run whose masks count.
    held
        Outputs whose H is kept, at most; 0: none is formed.
    """

    def __init__(self, tracking: MaskTracking, held: int):
        self._tracking = tracking
        self._most = held
        self._held: dict[int, _Formed] = {}

    def __call__(self, output: int) -> MaskGram | _Formed:
        """H of an output, for as long as the masks stay as they are."""
        if self._most == 0:
            return MaskGram(self._tracking, output)
        if output not in self._held:
            if len(self._held) >= self._most:
                self._held.clear()
            self._held[output] = _Formed(MaskGram(self._tracking, output).dense())
        return self._held[output]

    def follow(self, changes: Flips | None) -> None:
        """Forget what was formed: the masks are about to change."""
        self._held.clear()
