"""Change of one linear layer by fine-tuning."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Singular values below this part of the largest are rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class LayerDelta:
    """W − W₀ of one linear layer as U Vᵀ, and the change of its bias.

    Attributes
    ----------
    U, V
        Shapes (outputs, r) and (inputs, r); V is None where U is the whole difference, outputs × inputs, because that
        takes less room.
    bias
        Shape (outputs,); None for layers without one.
    """

    U: Float[Tensor, "outputs r"]
    V: Float[Tensor, "inputs r"] | None
    bias: Float[Tensor, " outputs"] | None = None

    @classmethod
    def of(
        cls, U: Float[Tensor, "outputs r"], V: Float[Tensor, "inputs r"], bias: Float[Tensor, " outputs"] | None
    ) -> "LayerDelta":
        """Return U Vᵀ in the smaller of its two forms."""
        whole = U.shape[1] * (len(U) + len(V)) >= len(U) * len(V)
        return cls(U @ V.T, None, bias) if whole else cls(U, V, bias)

    @property
    def rank(self) -> int:
        """Columns of U and V, or the smaller side of the whole difference."""
        return min(self.U.shape) if self.V is None else self.U.shape[1]

    def dense(self) -> Float[Tensor, "outputs inputs"]:
        """Return U Vᵀ."""
        return self.U if self.V is None else self.U @ self.V.T

    def factors(self) -> tuple[Float[Tensor, "r inputs"], Float[Tensor, "outputs r"]]:
        """Return A and B with U Vᵀ = B A, of the rank that the change has up to rounding."""
        cut = self.truncated(min(self.shape))
        assert cut.V is not None
        sizes = torch.linalg.vector_norm(cut.U, dim=0)
        rank = max(1, int((sizes > _ROUNDING * sizes.max()).sum()))
        return cut.V[:, :rank].T, cut.U[:, :rank]

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return len(self.U), self.U.shape[1] if self.V is None else len(self.V)

    def plus(self, other: "LayerDelta") -> "LayerDelta":
        """Return the sum of two changes of the same layer."""
        bias = self.bias if other.bias is None else other.bias if self.bias is None else self.bias + other.bias
        if self.V is None or other.V is None:
            return LayerDelta(self.dense() + other.dense(), None, bias)
        return LayerDelta.of(torch.cat([self.U, other.U], 1), torch.cat([self.V, other.V], 1), bias)

    def truncated(self, rank: int) -> "LayerDelta":
        """Return the nearest change of at most that rank (Eckart and Young 1936)."""
        if self.V is None:
            left, singular, right = torch.linalg.svd(self.U, full_matrices=False)
            return LayerDelta(left[:, :rank] * singular[:rank], right[:rank].T.contiguous(), self.bias)
        (a, upper), (b, lower) = torch.linalg.qr(self.U), torch.linalg.qr(self.V)
        left, singular, right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        return LayerDelta(a @ (left[:, :rank] * singular[:rank]), b @ right[:rank].T, self.bias)


@dataclass(frozen=True)
class WholeLayer:
    """Final weights of a linear layer in place of their change: for a head that begins anew wherever it is loaded.

    Attributes
    ----------
    weight, bias
        Shapes (outputs, inputs) and (outputs,).
    """

    weight: Float[Tensor, "outputs inputs"]
    bias: Float[Tensor, " outputs"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return len(self.weight), self.weight.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by their names in the layer."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
