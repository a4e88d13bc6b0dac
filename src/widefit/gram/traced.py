"""J of residual functions from the inputs and backward signals of their linear layers: each row block Σ_t δ_t ⊗ a_t."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, combinations_with_replacement, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.jacobian import DenseJacobian, Jacobian, add_lower_gram, mirror_lower

# Numbers of J that exist at a time while H is summed, so that they stay in cache; and the fewest columns of them.
_NUMBERS = 1 << 18
_COLUMNS = 256
# Work on an overlap of two positions beside its two products, in multiplications: it is written, multiplied and summed.
_OVERLAP = 16


@dataclass(frozen=True)
class LayerRows:
    """What one linear layer contributes to the rows of one block of samples.

    Attributes
    ----------
    inputs
        a, shape (n, T, i): T positions a sample, of one or of several calls.
    signals
        δ, shape (n, k, T, o): derivative of each output by the layer's output.
    marks
        Shape (T,): what the bias is multiplied by at a position; 1 for values, 0 for derivatives.
    """

    inputs: Float[Tensor, "n T i"]
    signals: Float[Tensor, "n k T o"]
    marks: Float[Tensor, " T"]

    @property
    def rows(self) -> int:
        """Of J: samples times outputs."""
        return self.signals.shape[0] * self.signals.shape[1]

    def to(self, dtype: torch.dtype) -> "LayerRows":
        """The same in another precision."""
        if self.signals.dtype == dtype:
            return self
        return LayerRows(self.inputs.to(dtype), self.signals.to(dtype), self.marks.to(dtype))

    def weight_rows(
        self, outputs: slice, samples: slice | Tensor = slice(None), out: Float[Tensor, " q"] | None = None
    ) -> Float[Tensor, "r o i"]:
        """Rows of J over the weights of some of the layer's outputs, at the beginning of `out` where that is given."""
        signals, inputs = self.signals[samples][..., outputs], self.inputs[samples]
        n, k, positions, wide = signals.shape
        # (k o) × T times T × i, sample by sample
        left = signals[:, 0].transpose(1, 2) if k == 1 else signals.permute(0, 1, 3, 2).reshape(n, k * wide, positions)
        reach = inputs.shape[2]
        if out is None:
            return torch.bmm(left, inputs).reshape(n * k, wide, reach)
        target = out[: n * k * wide * reach].view(n, k * wide, reach)
        return torch.bmm(left, inputs, out=target).view(n * k, wide, reach)

    def overlap_pays(self, other: "LayerRows") -> bool:
        """Whether products of inputs and of signals take fewer flops than those of rows of J over the weight."""
        pairs = self.inputs.shape[1] * other.inputs.shape[1]
        wide, reach = self.signals.shape[3], self.inputs.shape[2]
        return pairs * (wide + reach + _OVERLAP) < wide * reach

    def overlap(self, other: "LayerRows") -> Float[Tensor, "r q"]:
        """J Jᵀ over the weight between two blocks: Σ over positions of (a·a′)(δ·δ′)."""
        across_inputs, across_signals = other._flat()
        result = self.signals.new_empty(self.rows, other.rows)
        step = max(1, _NUMBERS // (self.inputs.shape[1] * len(across_inputs) * self.signals.shape[1]))
        for start in range(0, len(self.inputs), step):
            few = LayerRows(self.inputs[start : start + step], self.signals[start : start + step], self.marks)
            inputs, signals = few._flat()
            product = (inputs @ across_inputs.T).mul_(signals @ across_signals.T)
            shape = (few.rows, self.inputs.shape[1], other.rows, other.inputs.shape[1])
            result[start * self.signals.shape[1] :][: few.rows] = product.view(shape).sum(dim=(1, 3))
        return result

    def _flat(self) -> tuple[Float[Tensor, "q i"], Float[Tensor, "q o"]]:
        """Inputs and signals of every row and position."""
        k = self.signals.shape[1]
        inputs = self.inputs if k == 1 else self.inputs.repeat_interleave(k, dim=0)
        return inputs.flatten(0, 1), self.signals.flatten(0, 2)

    def bias_rows(self, samples: slice | Tensor = slice(None)) -> Float[Tensor, "r o"]:
        """Rows of J over the bias."""
        return torch.einsum("nkto,t->nko", self.signals[samples], self.marks).flatten(0, 1)

    def matvec(self, weight: Float[Tensor, "o i"] | None, bias: Float[Tensor, " o"] | None) -> Float[Tensor, " r"]:
        """J v over the layer's parameters."""
        n, _, positions, wide = self.signals.shape
        reached = self.signals.new_zeros(n, positions, wide) if weight is None else self.inputs @ weight.T
        if bias is not None:
            reached = reached + self.marks[:, None] * bias
        return torch.einsum("nkto,nto->nk", self.signals, reached).reshape(-1)

    def rmatvec(self, weights: Float[Tensor, " r"]) -> tuple[Float[Tensor, "o i"], Float[Tensor, " o"]]:
        """Jᵀ u over the layer's weight and bias."""
        n, k = self.signals.shape[:2]
        mixed = torch.einsum("nk,nkto->nto", weights.reshape(n, k), self.signals)
        return mixed.flatten(0, 1).T @ self.inputs.flatten(0, 1), torch.einsum("nto,t->o", mixed, self.marks)


@dataclass(frozen=True)
class TracedBlock:
    """The rows of one kind of residual.

    Attributes
    ----------
    layers
        By the names of weight and bias; a name is None where that parameter does not train or is missing.
    stored
        Columns of all other parameters that the residual depends on.
    rows, outputs
        Their number, and how many a sample has.
    """

    layers: dict[tuple[str | None, str | None], LayerRows]
    stored: dict[str, Float[Tensor, "r p"]]
    rows: int
    outputs: int

    def to(self, dtype: torch.dtype) -> "TracedBlock":
        """The same in another precision."""
        layers = {key: layer.to(dtype) for key, layer in self.layers.items()}
        stored = {name: matrix.to(dtype) for name, matrix in self.stored.items()}
        return TracedBlock(layers, stored, self.rows, self.outputs)


class TracedJacobian(Jacobian):
    """J of several blocks, its rows made from layer inputs and signals whenever they are needed.

    Parameters
    ----------
    blocks
        From the top to the bottom.
    parameters
        In the order of the columns.
    row_bytes
        Memory that rows alive at a time may take.
    dtype
        Of everything that goes in and comes out; None: that of the parameters.
    """

    def __init__(
        self,
        blocks: list[TracedBlock],
        parameters: dict[str, Tensor],
        row_bytes: int,
        dtype: torch.dtype | None = None,
    ):
        self.blocks = blocks if dtype is None else [block.to(dtype) for block in blocks]
        self.parameters = parameters
        self.sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        first = next(iter(parameters.values()))
        self.dtype, self.device = dtype or first.dtype, first.device
        self.shape = (sum(block.rows for block in blocks), sum(self.sizes.values()))
        self.chunk_rows = max(1, row_bytes // (3 * self.shape[1] * first.element_size()))

    def matvec(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        pieces = dict(zip(self.sizes, direction.split(list(self.sizes.values())), strict=True))
        shaped: dict[str | None, Tensor] = {n: piece.view_as(self.parameters[n]) for n, piece in pieces.items()}
        parts = []
        for block in self.blocks:
            total = torch.zeros(block.rows, dtype=self.dtype, device=self.device)
            for (weight, bias), layer in block.layers.items():
                total += layer.matvec(shaped.get(weight), shaped.get(bias))
            for name, matrix in block.stored.items():
                total += matrix @ pieces[name]
            parts.append(total)
        return torch.cat(parts)

    def rmatvec(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        total = {name: torch.zeros(size, dtype=self.dtype, device=self.device) for name, size in self.sizes.items()}
        for block, piece in zip(self.blocks, weights.split([block.rows for block in self.blocks]), strict=True):
            for (weight, bias), layer in block.layers.items():
                for name, found in zip((weight, bias), layer.rmatvec(piece), strict=True):
                    if name is not None:
                        total[name] += found.reshape(-1)
            for name, matrix in block.stored.items():
                total[name] += matrix.T @ piece
        return torch.cat(list(total.values()))

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        total = torch.zeros(self.shape[0], self.shape[0], dtype=dtype, device=self.device)
        tops = [0, *accumulate(block.rows for block in self.blocks)]
        places = [slice(top, bottom) for top, bottom in pairwise(tops)]
        for name in self.sizes:
            layers = {place: self._layer(block, name, dtype) for place, block in enumerate(self.blocks)}
            layers = {place: layer for place, layer in layers.items() if layer is not None}
            dense = []
            for (low, upper), (high, lower) in combinations_with_replacement(layers.items(), 2):
                if upper.overlap_pays(lower):
                    total[places[high], places[low]] += lower.overlap(upper)
                else:
                    dense.append((low, high))
            self._add_rows(total, places, layers, dense)
            others = {place: self._others(block, name, dtype) for place, block in enumerate(self.blocks)}
            others = {place: rows for place, rows in others.items() if rows is not None}
            for (low, upper), (high, lower) in combinations_with_replacement(others.items(), 2):
                total[places[high], places[low]].addmm_(lower, upper.T)
        return mirror_lower(total)

    def _add_rows(
        self,
        total: Float[Tensor, "M M"],
        places: list[slice],
        layers: dict[int, LayerRows],
        pairs: list[tuple[int, int]],
    ) -> None:
        """Add the products of rows over one weight for some pairs of blocks, a few outputs of the layer at a time."""
        needed = sorted({place for pair in pairs for place in pair})
        if not needed:
            return
        wide, reach = layers[needed[0]].signals.shape[3], layers[needed[0]].inputs.shape[2]
        columns = max(_COLUMNS, _NUMBERS // sum(layers[place].rows for place in needed))
        step = min(wide, -(-columns // reach))
        held = {place: total.new_empty(layers[place].rows * step * reach) for place in needed}
        for start in range(0, wide, step):
            here = slice(start, min(start + step, wide))
            made = {place: layers[place].weight_rows(here, out=held[place]).flatten(1) for place in needed}
            for low, high in pairs:
                block = total[places[high], places[low]]
                add_lower_gram(block, made[low]) if low == high else block.addmm_(made[high], made[low].T)

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        result = torch.empty(len(indices), self.shape[1], dtype=self.dtype, device=self.device)
        top = 0
        for block in self.blocks:
            here = ((indices >= top) & (indices < top + block.rows)).nonzero()[:, 0]
            if len(here):
                within = indices[here] - top
                samples, output = within // block.outputs, within % block.outputs
                found = self._block_rows(block, samples).view(len(here), block.outputs, -1)
                result[here] = found[torch.arange(len(here), device=self.device), output]
            top += block.rows
        return result

    def diagonal(self) -> Float[Tensor, " M"]:
        return torch.cat([torch.linalg.vector_norm(block, dim=1).square() for _, block in self.row_blocks()])

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        top = 0
        for block in self.blocks:
            samples = block.rows // block.outputs
            step = max(1, self.chunk_rows // block.outputs)
            for start in range(0, samples, step):
                yield top + start * block.outputs, self._block_rows(block, slice(start, min(start + step, samples)))
            top += block.rows

    def dense(self) -> DenseJacobian:
        """J stored: M · P numbers."""
        matrix = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        top = 0
        for block in self.blocks:
            self._block_rows(block, slice(None), matrix[top : top + block.rows])
            top += block.rows
        return DenseJacobian(matrix)

    def _block_rows(
        self, block: TracedBlock, samples: slice | Tensor, out: Float[Tensor, "r P"] | None = None
    ) -> Float[Tensor, "r P"]:
        """Rows of some of a block's samples."""
        count = len(torch.arange(block.rows // block.outputs)[samples]) * block.outputs
        if out is None:
            out = torch.empty(count, self.shape[1], dtype=self.dtype, device=self.device)
        places = dict(zip(self.sizes, out.split(list(self.sizes.values()), dim=1), strict=True))
        filled: set[str] = set()

        def put(name: str, rows: Float[Tensor, "r p"]) -> None:
            places[name].add_(rows) if name in filled else places[name].copy_(rows)
            filled.add(name)

        for (weight, bias), layer in block.layers.items():
            if weight is not None:
                put(weight, layer.weight_rows(slice(None), samples).flatten(1))
            if bias is not None:
                put(bias, layer.bias_rows(samples))
        for name, matrix in block.stored.items():
            put(name, matrix.view(-1, block.outputs, matrix.shape[1])[samples].flatten(0, 1))
        for name in places.keys() - filled:
            places[name].zero_()
        return out

    def _layer(self, block: TracedBlock, name: str, dtype: torch.dtype) -> LayerRows | None:
        """Everything that a block does with one weight."""
        found = [layer for (weight, _), layer in block.layers.items() if weight == name]
        if not found:
            return None
        if len(found) == 1:
            return found[0].to(dtype)
        return LayerRows(
            torch.cat([layer.inputs for layer in found], dim=1),
            torch.cat([layer.signals for layer in found], dim=2),
            torch.cat([layer.marks for layer in found]),
        ).to(dtype)

    def _others(self, block: TracedBlock, name: str, dtype: torch.dtype) -> Float[Tensor, "r p"] | None:
        """Columns over a parameter that is the bias of layers, or that no layer holds."""
        found = [layer.bias_rows() for (_, bias), layer in block.layers.items() if bias == name]
        if name in block.stored:
            found.append(block.stored[name])
        return torch.stack(found).sum(dim=0).to(dtype) if found else None
