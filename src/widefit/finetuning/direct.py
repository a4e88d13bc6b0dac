"""An adapted layer whose inputs are frozen: everything it can do to the outputs is known from their inner products."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from widefit.finetuning.delta import LayerDelta
from widefit.linalg.sparse_rows import SparseRows
from widefit.nn import LowRankLinear


@dataclass(frozen=True)
class Direct:
    """Weights W₀ − Sᵀ A with the frozen inputs A of the training rows: S (n × outputs) is all that changes.

    A step adds to S and moves the layer's outputs by −A Aᵀ S: 2 n² m operations in place of 2 n m² (arXiv 2112.07628;
    section 2 of this project's notes for one hidden layer). With more rows than inputs it is A (Aᵀ S).

    Attributes
    ----------
    name, module
        The layer as it is.
    inputs, held_out
        A, shape (n, inputs), and the same of the held-out rows.
    outputs
        A W₀ᵀ + b on training and held-out rows.
    rows, held_rows
        The inputs as sparse rows, where products with those are the faster ones.
    threads
        Cores for sparse products; no result depends on it.
    """

    name: str
    module: nn.Linear
    inputs: Float[Tensor, "n i"]
    held_out: Float[Tensor, "v i"] | None
    outputs: tuple[Float[Tensor, "n o"], Float[Tensor, "v o"] | None]
    rows: SparseRows | None = None
    held_rows: SparseRows | None = None
    threads: int = 1

    @classmethod
    def of(
        cls,
        name: str,
        module: nn.Module,
        inputs: Float[Tensor, "n i"],
        held_out: Float[Tensor, "v i"] | None,
        sparse: bool = False,
        threads: int = 1,
    ) -> "Direct":
        """A layer and the inputs that it will always see; `sparse` reads them as sparse rows."""
        assert isinstance(module, nn.Linear)
        if not sparse:
            with torch.no_grad():
                outputs = module(inputs), None if held_out is None else module(held_out)
            return cls(name, module, inputs, held_out, outputs)
        packed = LowRankLinear.from_weight(module.weight)  # laid out once, at the first product
        rows = SparseRows.from_dense(inputs.numpy())
        held_rows = None if held_out is None else SparseRows.from_dense(held_out.numpy())
        bias = 0.0 if module.bias is None else module.bias.detach()
        ends = [None if some is None else torch.from_numpy(packed.query(some, threads)) + bias
                for some in (rows, held_rows)]  # fmt: skip
        assert ends[0] is not None
        return cls(name, module, inputs, held_out, (ends[0], ends[1]), rows, held_rows, threads)

    def on(self, chosen: Tensor) -> "Direct":
        """The layer on some of the training rows, without held-out ones."""
        return Direct(self.name, self.module, self.inputs[chosen], None, (self.outputs[0][chosen], None))

    @cached_property
    def gram(self) -> Float[Tensor, "n n"]:
        """A Aᵀ, plus one where there is a bias."""
        if self.rows is not None:
            return torch.from_numpy(self.rows.gram(self.threads)).to(self.inputs) + self._constant
        return self.inputs @ self.inputs.T + self._constant

    @property
    def overlap(self) -> Float[Tensor, "n n"] | None:
        """The same where products with it are the cheaper ones; None with more rows than twice the inputs."""
        return self.gram if len(self.inputs) <= 2 * self.inputs.shape[1] else None

    @cached_property
    def held_overlap(self) -> Float[Tensor, "v n"] | None:
        """A Aᵀ between held-out and training rows, likewise."""
        if self.held_out is None or self.overlap is None:
            return None
        if self.rows is not None and self.held_rows is not None:
            products = self.held_rows.products(self.rows, self.threads)
            return torch.from_numpy(products).to(self.inputs) + self._constant
        return self.held_out @ self.inputs.T + self._constant

    @property
    def _constant(self) -> float:
        return float(self.module.bias is not None)

    def overlapped(self, shift: Float[Tensor, "n o"]) -> Float[Tensor, "n o"]:
        """(A Aᵀ + 1) S."""
        return self.overlap @ shift if self.overlap is not None else self._through(self.inputs, shift)

    def reached(self, shift: Float[Tensor, "n o"]) -> tuple[Float[Tensor, "n o"], Float[Tensor, "v o"] | None]:
        """Outputs with the weights W₀ − Sᵀ A, on training and held-out rows."""
        held = None
        if self.held_out is not None and self.outputs[1] is not None:
            moved = self.held_overlap @ shift if self.held_overlap is not None else self._through(self.held_out, shift)
            held = self.outputs[1] - moved
        return self.outputs[0] - self.overlapped(shift), held

    def squared_norm(self, shift: Float[Tensor, "n o"]) -> float:
        """‖Sᵀ A‖², the bias included."""
        return float((shift.double() * self.overlapped(shift).double()).sum())

    def delta(self, shift: Float[Tensor, "n o"]) -> LayerDelta:
        """−Sᵀ A, as factors."""
        bias = None if self.module.bias is None else -shift.sum(dim=0)
        return LayerDelta.of(-shift.T, self.inputs.T, bias)

    def _through(self, rows: Float[Tensor, "r i"], shift: Float[Tensor, "n o"]) -> Float[Tensor, "r o"]:
        bias = None if self.module.bias is None else shift.sum(dim=0)
        return functional.linear(rows, shift.T @ self.inputs, bias)
