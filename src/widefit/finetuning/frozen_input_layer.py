"""An adapted layer whose inputs are frozen: everything it can do to the outputs is known from their inner products."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from widefit.finetuning.layer_delta import LayerDelta
from widefit.linalg.sparse_rows import SparseRows
from widefit.nn import LowRankLinear


@dataclass(frozen=True)
class FrozenInputLayer:
    """Weights W₀ − Sᵀ A with the frozen inputs A of the training rows: S, shape (n, outputs), is all that changes.

    A step adds to S and moves the layer's outputs by −A Aᵀ S: 2 n² m operations in place of 2 n m² (arXiv 2112.07628;
    section 2 of this project's notes for one hidden layer). With more rows than inputs it is A (Aᵀ S).

    Attributes
    ----------
    name, module
        The layer as it is.
    inputs, held_inputs
        A, shape (n, inputs), and the same of the held-out rows.
    outputs, held_outputs
        A W₀ᵀ + b on training and held-out rows.
    sparse, held_sparse
        The inputs as sparse rows, where products with those are the faster ones.
    threads
        Cores for sparse products; no result depends on it.
    known_gram
        A Aᵀ, plus one where there is a bias, where it is at hand.
    """

    name: str
    module: nn.Linear
    inputs: Float[Tensor, "n i"]
    held_inputs: Float[Tensor, "v i"] | None
    outputs: Float[Tensor, "n o"]
    held_outputs: Float[Tensor, "v o"] | None
    sparse: SparseRows | None = None
    held_sparse: SparseRows | None = None
    threads: int = 1
    known_gram: Float[Tensor, "n n"] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        module: nn.Module,
        inputs: Float[Tensor, "n i"],
        held_inputs: Float[Tensor, "v i"] | None,
        threads: int | None = None,
    ) -> "FrozenInputLayer":
        """Return a layer with the inputs that it will always see.

        Parameters
        ----------
        name, module, inputs, held_inputs
            See the attributes.
        threads
            Cores for products with sparse rows; None: dense products.
        """
        assert isinstance(module, nn.Linear)
        if threads is None:
            with torch.no_grad():
                held_outputs = None if held_inputs is None else module(held_inputs)
                return cls(name, module, inputs, held_inputs, module(inputs), held_outputs)
        packed = LowRankLinear.from_weight(module.weight)  # laid out once, at the first product
        bias = 0.0 if module.bias is None else module.bias.detach()
        sparse = SparseRows.from_dense(inputs.numpy())
        outputs = torch.from_numpy(packed.query(sparse, threads)) + bias
        if held_inputs is None:
            return cls(name, module, inputs, None, outputs, None, sparse, None, threads)
        held_sparse = SparseRows.from_dense(held_inputs.numpy())
        held_outputs = torch.from_numpy(packed.query(held_sparse, threads)) + bias
        return cls(name, module, inputs, held_inputs, outputs, held_outputs, sparse, held_sparse, threads)

    def subset(self, rows: Tensor) -> "FrozenInputLayer":
        """Return the layer on some of the training rows, without held-out ones."""
        # `gram` is in the instance once it has been asked for, and stays there.
        known = self.gram[rows][:, rows] if "gram" in vars(self) else None
        inputs, outputs = self.inputs[rows], self.outputs[rows]
        return FrozenInputLayer(self.name, self.module, inputs, None, outputs, None, known_gram=known)

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """A Aᵀ, plus one where there is a bias."""
        if self.known_gram is not None:
            return self.known_gram
        if self.sparse is not None:
            return torch.from_numpy(self.sparse.gram(self.threads)).to(self.inputs) + self._constant
        return self.inputs @ self.inputs.T + self._constant

    @property
    def overlap(self) -> Float[Tensor, "n n"] | None:
        """A Aᵀ where products with it are the cheaper ones; None with more rows than twice the inputs."""
        return self.gram if len(self.inputs) <= 2 * self.inputs.shape[1] else None

    @cached_property
    def held_overlap(self) -> Float[Tensor, "v n"] | None:
        """A Aᵀ between held-out and training rows, likewise."""
        if self.held_inputs is None or self.overlap is None:
            return None
        if self.sparse is not None and self.held_sparse is not None:
            products = self.held_sparse.products(self.sparse, self.threads)
            return torch.from_numpy(products).to(self.inputs) + self._constant
        return self.held_inputs @ self.inputs.T + self._constant

    @property
    def _constant(self) -> float:
        return float(self.module.bias is not None)

    def response(self, coefficients: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """Return (A Aᵀ + 1) S, the change of the outputs with the sign turned."""
        return self._product(self.overlap, self.inputs, coefficients)

    def response_between(
        self, rows: Int[Tensor, " r"], others: Int[Tensor, " s"], coefficients: Float[Tensor, "s o"]
    ) -> Float[Tensor, "r o"]:
        """Return (A Aᵀ + 1) S on some training rows, of coefficients of others."""
        if self.overlap is not None:
            return self.overlap[rows][:, others] @ coefficients
        bias = None if self.module.bias is None else coefficients.sum(dim=0)
        return functional.linear(self.inputs[rows], coefficients.T @ self.inputs[others], bias)

    def moved_outputs(self, coefficients: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """Return the outputs on the training rows with the weights W₀ − Sᵀ A."""
        return self.outputs - self.response(coefficients)

    def moved_held_outputs(self, coefficients: Float[Tensor, "n o"]) -> Float[Tensor, "v o"] | None:
        """Return the outputs on the held-out rows with the weights W₀ − Sᵀ A."""
        if self.held_inputs is None or self.held_outputs is None:
            return None
        return self.held_outputs - self._product(self.held_overlap, self.held_inputs, coefficients)

    def squared_norm(self, coefficients: Float[Tensor, "n o"]) -> float:
        """Return ‖Sᵀ A‖², the bias included."""
        return float((coefficients.double() * self.response(coefficients).double()).sum())

    def delta(self, coefficients: Float[Tensor, "n o"]) -> LayerDelta:
        """Return −Sᵀ A, as factors."""
        bias = None if self.module.bias is None else -coefficients.sum(dim=0)
        return LayerDelta.of(-coefficients.T, self.inputs.T, bias)

    def _product(
        self, overlap: Float[Tensor, "r n"] | None, inputs: Float[Tensor, "r i"], coefficients: Float[Tensor, "n o"]
    ) -> Float[Tensor, "r o"]:
        if overlap is not None:
            return overlap @ coefficients
        bias = None if self.module.bias is None else coefficients.sum(dim=0)
        return functional.linear(inputs, coefficients.T @ self.inputs, bias)
