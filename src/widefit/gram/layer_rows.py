"""Rows of J over one layer, Σ_t δ_t ⊗ a_t of its inputs and backward signals, formed only where that is cheaper.

(Algorithm of DEEP, arXiv 2112.07628, for layers with several positions a sample.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.jacobian import add_lower_gram, mirror_lower

# Numbers of an overlap, or of rows of J, that exist at a time while H is summed, so that they stay in cache.
_NUMBERS = 1 << 18
# The fewest rows of an overlap and columns of J that are made together: narrower products are slow.
_NARROWEST = 256
# Work on an overlap of two positions beside its two products, in multiplications: it is written, multiplied and summed.
_OVERLAP = 16
# Work on a number of a row of J before it is multiplied.
_MADE = 8


@dataclass(frozen=True)
class LayerRows:
    """The rows of J over one layer's weight and bias; output c of sample i has row i k + c.

    Attributes
    ----------
    inputs
        a, shape (n, T, i): T positions a sample, of one or of several calls.
    signals
        δ, shape (n, k, T, o): derivative of each output by the layer's output.
    weight, bias
        Names of the parameters; None where one does not train or is missing.
    marks
        Factor of the bias at each position: 1 for values, 0 for derivatives; None: 1 everywhere.
    transposed
        True where the weight is stored as inputs × outputs (an embedding).
    overlap
        ⟨a_i, a_j⟩, plus one where there is a bias, kept while the inputs stay as they are (`with_overlap`).
    """

    inputs: Float[Tensor, "n T i"]
    signals: Float[Tensor, "n k T o"]
    weight: str | None = "weight"
    bias: str | None = None
    marks: Float[Tensor, " T"] | None = None
    transposed: bool = False
    overlap: Float[Tensor, "n n"] | None = None

    @property
    def samples(self) -> int:
        """Number of samples, n."""
        return self.signals.shape[0]

    @property
    def outputs(self) -> int:
        """Outputs a sample, k."""
        return self.signals.shape[1]

    @property
    def rows(self) -> int:
        """Number of rows of J, n k."""
        return self.samples * self.outputs

    @property
    def positions(self) -> int:
        """Positions a sample, T."""
        return self.signals.shape[2]

    @property
    def out_features(self) -> int:
        """Outputs of the layer, o."""
        return self.signals.shape[3]

    @property
    def in_features(self) -> int:
        """Inputs of the layer, i; 0 where the weight does not train."""
        return 0 if self.weight is None else self.inputs.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.signals.dtype

    @property
    def device(self) -> torch.device:
        return self.signals.device

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that train, the weight first."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def numbers(self) -> int:
        """Numbers held."""
        return self.inputs.numel() + self.signals.numel()

    @property
    def entry_flops(self) -> float:
        """Flops of one entry of J Jᵀ."""
        overlap = self.positions**2 * (self.out_features + self.in_features)
        return 2.0 * (overlap if self.overlap_pays(self) else self.out_features * (self.in_features + 1))

    def to(self, dtype: torch.dtype) -> "LayerRows":
        """The same in another precision."""
        if self.dtype == dtype:
            return self
        marks = None if self.marks is None else self.marks.to(dtype)
        overlap = None if self.overlap is None else self.overlap.to(dtype)
        return replace(self, inputs=self.inputs.to(dtype), signals=self.signals.to(dtype), marks=marks, overlap=overlap)

    def within(self, samples: slice) -> "LayerRows":
        """The rows of some of the samples."""
        return replace(self, inputs=self.inputs[samples], signals=self.signals[samples], overlap=None)

    def take(self, rows: Int[Tensor, " r"]) -> "LayerRows":
        """Some of the rows, each as the only output of a sample of its own."""
        signals = self.signals.flatten(0, 1)[rows][:, None]
        return replace(self, inputs=self.inputs[rows // self.outputs], signals=signals, overlap=None)

    def apart(self) -> "list[LayerRows]":
        """The columns of the weight and those of the bias, as far as there are."""
        parts = [replace(self, bias=None, overlap=None), replace(self, weight=None, overlap=None)]
        return [part for part in parts if part.names]

    @classmethod
    def joined(cls, layers: "Sequence[LayerRows]") -> "LayerRows":
        """Several uses of one layer by the same rows, as more positions."""
        first = layers[0]
        if len(layers) == 1:
            return first
        inputs = torch.cat([layer.inputs for layer in layers], dim=1)
        signals = torch.cat([layer.signals for layer in layers], dim=2)
        marks = torch.cat([layer._marks for layer in layers])
        return replace(first, inputs=inputs, signals=signals, marks=marks, overlap=None)

    def with_overlap(self) -> "LayerRows":
        """The same with the products of its inputs kept, n² numbers; unchanged where a sample has several positions."""
        if self.overlap is not None or self.positions > 1:
            return self
        return replace(self, overlap=self._input_products(self).flatten(2).flatten(0, 1))

    def mixed(self, weights: Float[Tensor, "n k c"]) -> Float[Tensor, "n T o c"]:
        """Σ_c g_ic δ_ic: the step −Jᵀ g moves the weight by −Σ_it (Σ_c g_ic δ_ict) ⊗ a_it."""
        if self.outputs == 1:
            return self.signals[:, 0, :, :, None] * weights[:, :, None]
        return torch.einsum("nkc,nkto->ntoc", weights, self.signals)

    def reached(self, moves: Float[Tensor, "n T o c"]) -> Float[Tensor, "n k c"]:
        """Σ_t ⟨δ_ict, y_it⟩: change of the outputs where the layer's output moves by y."""
        return torch.einsum("nkto,ntoc->nkc", self.signals, moves)

    def matvec(self, values: Mapping[str, Float[Tensor, "_ c"]]) -> Float[Tensor, "r c"]:
        """J v, v by parameter, flat."""
        shape = (self.samples, self.positions, self.out_features, values[self.names[0]].shape[1])
        if self.weight is None:
            moves = self.signals.new_zeros(shape)
        else:
            weight = values[self.weight]
            if not self.transposed:
                weight = weight.view(self.out_features, self.in_features, -1).transpose(0, 1)
            moves = (self.inputs @ weight.reshape(self.in_features, -1)).view(shape)
        if self.bias is not None:
            moves = moves + self._marks[:, None, None] * values[self.bias]
        return self.reached(moves).flatten(0, 1)

    def rmatvec(self, weights: Float[Tensor, "r c"]) -> dict[str, Float[Tensor, "_ c"]]:
        """Jᵀ u, by parameter, flat."""
        mixed = self.mixed(weights.reshape(self.samples, self.outputs, -1))
        found = {}
        if self.weight is not None:
            order = "nti,ntoc->ioc" if self.transposed else "nti,ntoc->oic"
            found[self.weight] = torch.einsum(order, self.inputs, mixed).flatten(0, 1)
        if self.bias is not None:
            found[self.bias] = torch.einsum("ntoc,t->oc", mixed, self._marks)
        return found

    def group_sums(self, signs: Float[Tensor, "n k"], groups: int) -> dict[str, Float[Tensor, "g _"]]:
        """Sums of signed rows over `groups` stretches of as many samples, by parameter: one product a stretch."""
        mixed = torch.einsum("nk,nkto->nto", signs, self.signals).reshape(groups, -1, self.out_features)
        found = {}
        if self.weight is not None:
            left, right = mixed.mT, self.inputs.reshape(groups, -1, self.in_features)
            found[self.weight] = (right.mT @ left.mT if self.transposed else left @ right).flatten(1)
        if self.bias is not None:
            marks = self._marks.repeat(self.samples // groups)
            found[self.bias] = torch.einsum("gto,t->go", mixed, marks)
        return found

    def product(self, vectors: Float[Tensor, "n k c"]) -> Float[Tensor, "n k c"]:
        """J Jᵀ v, through the overlap where that is kept: 2 n² o + 4 n k o flops a vector, whatever i is."""
        if self.overlap is None:
            return self.matvec(self.rmatvec(vectors.flatten(0, 1))).view(vectors.shape)
        mixed = self.mixed(vectors)
        return self.reached((self.overlap @ mixed.flatten(1)).view(mixed.shape))

    def weight_rows(self, outputs: slice, out: Float[Tensor, " q"] | None = None) -> Float[Tensor, "r o i"]:
        """Rows of J over the weights of some of the layer's outputs, at the beginning of `out` where that is given."""
        signals = self.signals[..., outputs]
        n, k, positions, wide = signals.shape
        # (k o) × T times T × i, sample by sample
        left = signals[:, 0].transpose(1, 2) if k == 1 else signals.permute(0, 1, 3, 2).reshape(n, k * wide, positions)
        reach = self.inputs.shape[2]
        if out is None:
            return torch.bmm(left, self.inputs).view(n * k, wide, reach)
        target = out[: n * k * wide * reach].view(n, k * wide, reach)
        return torch.bmm(left, self.inputs, out=target).view(n * k, wide, reach)

    def bias_rows(self) -> Float[Tensor, "r o"]:
        """Rows of J over the bias."""
        return torch.einsum("nkto,t->nko", self.signals, self._marks).flatten(0, 1)

    def dense_rows(self) -> Iterator[tuple[str, Float[Tensor, "r p"]]]:
        """Rows of J, parameter by parameter."""
        if self.weight is not None:
            rows = self.weight_rows(slice(None))
            yield self.weight, (rows.mT if self.transposed else rows).flatten(1)
        if self.bias is not None:
            yield self.bias, self.bias_rows()

    def overlap_pays(self, other: "LayerRows") -> bool:
        """Whether products of inputs and of signals take less work than those of rows of J."""
        overlaps = self.positions * other.positions * (self.out_features + self.in_features + _OVERLAP)
        made = _MADE / max(1, self.rows) + _MADE / max(1, other.rows)
        return overlaps < self.out_features * self.in_features * (1 + made)

    def add_products(self, other: "LayerRows", total: Float[Tensor, "r q"], lower: bool = False) -> None:
        """Add J J′ᵀ of the same layer to `total`; `lower`: `other` is the same, and the lower half will do."""
        if self.overlap_pays(other):
            self._add_overlaps(other, total, lower)
            return
        if self.weight is not None:
            self._add_row_products(other, total, lower)
        if self.bias is not None:
            total.addmm_(self.bias_rows(), other.bias_rows().T)

    def gram(self) -> Float[Tensor, "r r"]:
        """J Jᵀ."""
        if self.overlap is not None:
            return self.columns(torch.arange(self.rows, device=self.device))
        total = self.signals.new_zeros(self.rows, self.rows)
        self.add_products(self, total, lower=True)
        return mirror_lower(total)

    def columns(self, indices: Int[Tensor, " c"]) -> Float[Tensor, "r c"]:
        """(J Jᵀ)[:, indices]."""
        if self.overlap is None:
            total = self.signals.new_zeros(self.rows, len(indices))
            self.add_products(self.take(indices), total)
            return total
        signals = self.signals.flatten(0, 2)
        total = (signals @ signals[indices].T).view(self.samples, self.outputs, -1)
        return total.mul_(self.overlap[:, None, indices // self.outputs]).flatten(0, 1)

    def output_gram(self) -> Float[Tensor, "n n"]:
        """Σ_c J_c J_cᵀ, J_c the rows of output c."""
        # The outputs of a sample side by side are the one output of a layer k times as wide.
        signals = self.signals.transpose(1, 2).flatten(2)[:, None]
        return replace(self, signals=signals).gram()

    def block_products(self) -> Float[Tensor, "n k k"]:
        """J Jᵀ between the outputs of every sample."""
        numbers = min((self.outputs * self.positions) ** 2, self.outputs * self.out_features * self.inputs.shape[2])
        step = max(1, _NUMBERS // numbers)
        parts = (self.within(slice(start, start + step)) for start in range(0, self.samples, step))
        return torch.cat([part._block_products() for part in parts])

    def _block_products(self) -> Float[Tensor, "n k k"]:
        n, k, positions, _ = self.signals.shape
        if not self.overlap_pays(self):
            rows = torch.cat([rows for _, rows in self.dense_rows()], dim=1).view(n, k, -1)
            return rows @ rows.mT
        signals = self.signals.flatten(1, 2)
        products = (signals @ signals.mT).view(n, k, positions, k, positions)
        return products.mul_(self._own_input_products()[:, None, :, None]).sum(dim=(2, 4))

    def diagonal(self) -> Float[Tensor, " r"]:
        """Squared norms of the rows."""
        if self.positions == 1:
            squares = self._own_input_products()[:, :, 0]
            return (self.signals[:, :, 0].square().sum(dim=2) * squares).reshape(-1)
        step = max(1, _NUMBERS // (self.outputs * self.inputs[0].numel()))
        parts = (self.within(slice(start, start + step)) for start in range(0, self.samples, step))
        rows = (part.take(torch.arange(part.rows, device=self.device)) for part in parts)
        return torch.cat([own.block_products().flatten() for own in rows])

    @property
    def _marks(self) -> Float[Tensor, " T"]:
        return self.signals.new_ones(self.positions) if self.marks is None else self.marks

    def _own_input_products(self) -> Float[Tensor, "n T T"]:
        """Products of the inputs of a sample with each other, the bias being one more."""
        # A weight that does not train has no inputs.
        inputs = self.inputs[..., : self.in_features]
        products = inputs @ inputs.mT
        return products if self.bias is None else products.add_(torch.outer(self._marks, self._marks))

    def _input_products(self, other: "LayerRows") -> Float[Tensor, "n T q S"]:
        """Products of the inputs of two sets of samples, the bias being one more."""
        inputs = self.inputs[..., : self.in_features].flatten(0, 1)
        products = inputs @ other.inputs[..., : self.in_features].flatten(0, 1).T
        products = products.view(self.samples, self.positions, other.samples, other.positions)
        if self.bias is None:
            return products
        if self.marks is None and other.marks is None:
            return products.add_(1)
        return products.add_(torch.outer(self._marks, other._marks)[:, None])

    def _add_overlaps(self, other: "LayerRows", total: Float[Tensor, "r q"], lower: bool) -> None:
        """Σ over positions of (a·a′)(δ·δ′), some samples at a time."""
        step = max(_NARROWEST, _NUMBERS // max(1, other.rows * other.positions)) // (self.outputs * self.positions)
        for start in range(0, self.samples, max(1, step)):
            few = self.within(slice(start, start + max(1, step)))
            beside = other.within(slice(0, start + few.samples)) if lower else other
            products = few.signals.flatten(0, 2) @ beside.signals.flatten(0, 2).T
            shape = (few.samples, few.outputs, few.positions, beside.samples, beside.outputs, beside.positions)
            products = products.view(shape).mul_(few._input_products(beside)[:, None, :, :, None])
            if few.positions * beside.positions > 1:
                products = products.sum(dim=(2, 5))
            target = total[start * self.outputs :][: few.rows, : beside.rows]
            target.add_(products.reshape(target.shape))

    def _add_row_products(self, other: "LayerRows", total: Float[Tensor, "r q"], lower: bool) -> None:
        """Products of rows of J over the weights of a few of the layer's outputs at a time."""
        columns = max(_NARROWEST, _NUMBERS // max(1, self.rows + (0 if lower else other.rows)))
        step = min(self.out_features, -(-columns // self.in_features))
        own = self.signals.new_empty(self.rows * step * self.in_features)
        others = own if lower else self.signals.new_empty(other.rows * step * self.in_features)
        for start in range(0, self.out_features, step):
            here = slice(start, start + step)
            made = self.weight_rows(here, out=own).flatten(1)
            if lower:
                add_lower_gram(total, made)
            else:
                total.addmm_(made, other.weight_rows(here, out=others).flatten(1).T)
