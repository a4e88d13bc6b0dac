"""H that is known by its products alone."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Operator


class ImplicitGram(Operator):
    """H given by what it does to vectors, and what its outputs have in common.

    Parameters
    ----------
    product
        H v for a block of vectors, shape (n k, c).
    average
        The mean over the outputs of the blocks of H, or an estimate of it, shape (n, n).
    outputs
        k.
    """

    def __init__(
        self,
        product: Callable[[Float[Tensor, "nk c"]], Float[Tensor, "nk c"]],
        average: Float[Tensor, "n n"],
        outputs: int = 1,
    ):
        self.average = average
        self.outputs = outputs
        self.size = len(average) * outputs
        self.dtype, self.device = average.dtype, average.device
        self._product = product

    def matvec(self, vectors: Float[Tensor, "nk *c"]) -> Float[Tensor, "nk *c"]:
        return self._product(vectors.reshape(self.size, -1)).reshape(vectors.shape)

    def mean_block(self) -> Float[Tensor, "n n"]:
        return self.average.clone()

    def trace(self) -> float:
        return self.outputs * float(self.average.trace())
