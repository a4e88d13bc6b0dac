"""H of several outputs that share layers, as products with factors: n² numbers a layer, not (n k)²."""

from collections.abc import Iterable, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Operator
from widefit.linalg.coupled_layer import Layer


class CoupledGram(Operator):
    """H = Σ_l (Δ_l Δ_lᵀ) ∘ (A_l A_lᵀ ⊗ 11ᵀ), exactly, as an operator (section 5 of arXiv 2112.07628).

    No product with J or with a weight matrix is formed. With dense layers of o outputs whose overlaps are kept a
    product takes 2 n² o + 4 n k o flops a layer; with sparse ones of m neurons that fire with probability p it takes
    about p² m n² + 4 n k p m additions.

    Parameters
    ----------
    layers
        At least one, of the same n and k.

    Raises
    ------
    ValueError
        No layer, or layers that do not belong together.
    """

    def __init__(self, layers: Sequence[Layer]):
        if not layers or len({(layer.samples, layer.outputs) for layer in layers}) > 1:
            shapes = [(layer.samples, layer.outputs) for layer in layers]
            raise ValueError(f"layers must be at least one and have the same samples and outputs, got {shapes}")
        self.layers = tuple(layers)
        self.samples, self.outputs = layers[0].samples, layers[0].outputs
        self.size = self.samples * self.outputs
        self.dtype, self.device = layers[0].dtype, layers[0].device

    def matvec(self, vectors: Float[Tensor, "n *c"]) -> Float[Tensor, "n *c"]:
        split = vectors.reshape(self.samples, self.outputs, -1)
        return _sum(layer.product(split) for layer in self.layers).reshape(vectors.shape)

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        return _sum(layer.columns(indices) for layer in self.layers)

    def diagonal(self) -> Float[Tensor, " n"]:
        return self.block_diagonal(self.outputs).diagonal(dim1=1, dim2=2).reshape(-1)

    def block_diagonal(self, size: int) -> Float[Tensor, "blocks size size"]:
        if size != self.outputs:
            return super().block_diagonal(size)
        return _sum(layer.block_products() for layer in self.layers)

    def dense(self) -> Float[Tensor, "n n"]:
        return _sum(layer.gram() for layer in self.layers)

    def mean_block(self) -> Float[Tensor, "samples samples"]:
        """Mean over the outputs of the blocks of H of one output: what all of them tend to as the layers get wider."""
        return _sum(layer.output_gram() for layer in self.layers) / self.outputs


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """The sum of fresh tensors, in the place of the first."""
    waiting = iter(parts)
    total = next(waiting)
    for part in waiting:
        total += part
    return total
