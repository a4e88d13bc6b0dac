"""J from layer inputs and backward signals, of a module on a batch or of several residual functions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.gram.base import Jacobian
from widefit.gram.jacobian import DenseJacobian, add_lower_gram, mirror_lower
from widefit.gram.layer_rows import LayerRows

# Bytes of J that exist at a time where none are given.
_ROW_BYTES = 1 << 26


@dataclass(frozen=True)
class StoredColumns:
    """Columns of J over a parameter that no layer holds.

    Attributes
    ----------
    name
        Name of the parameter.
    values
        Derivatives of output c of sample i, shape (n, k, p).
    """

    name: str
    values: Float[Tensor, "n k p"]

    @property
    def names(self) -> tuple[str, ...]:
        """The one parameter."""
        return (self.name,)

    @property
    def entry_flops(self) -> float:
        """Flops of one entry of J Jᵀ."""
        return 2.0 * self.values.shape[2]

    @property
    def numbers(self) -> int:
        """Numbers held."""
        return self.values.numel()

    @property
    def matrix(self) -> Float[Tensor, "r p"]:
        """The columns."""
        return self.values.flatten(0, 1)

    def to(self, dtype: torch.dtype) -> "StoredColumns":
        """The same in another precision."""
        return replace(self, values=self.values.to(dtype))

    def within(self, samples: slice) -> "StoredColumns":
        """The rows of some of the samples."""
        return replace(self, values=self.values[samples])

    def take(self, rows: Int[Tensor, " r"]) -> "StoredColumns":
        """Some of the rows, each as the only output of a sample of its own."""
        return replace(self, values=self.matrix[rows][:, None])

    def matvec(self, values: Mapping[str, Float[Tensor, "_ c"]]) -> Float[Tensor, "r c"]:
        """J v, v by parameter, flat."""
        return self.matrix @ values[self.name]

    def rmatvec(self, weights: Float[Tensor, "r c"]) -> dict[str, Float[Tensor, "_ c"]]:
        """Jᵀ u, by parameter, flat."""
        return {self.name: self.matrix.T @ weights}

    def group_sums(self, signs: Float[Tensor, "n k"], groups: int) -> dict[str, Float[Tensor, "g p"]]:
        """Sums of signed rows over `groups` stretches of as many samples."""
        signed = torch.einsum("nk,nkp->np", signs, self.values)
        return {self.name: signed.view(groups, -1, self.values.shape[2]).sum(dim=1)}

    def dense_rows(self) -> Iterator[tuple[str, Float[Tensor, "r p"]]]:
        """Rows of J, parameter by parameter."""
        yield self.name, self.matrix

    def diagonal(self) -> Float[Tensor, " r"]:
        """Squared norms of the rows."""
        return torch.linalg.vector_norm(self.matrix, dim=1).square()

    def add_products(self, other: "StoredColumns", total: Float[Tensor, "r q"], lower: bool = False) -> None:
        """Add J J′ᵀ over the parameter to `total`; `lower`: `other` is the same, and the lower half will do."""
        if lower:
            add_lower_gram(total, self.matrix)
        else:
            total.addmm_(self.matrix, other.matrix.T)


@dataclass(frozen=True)
class RowBlock:
    """The rows of J of one kind of residual; output c of sample i has row i k + c.

    Attributes
    ----------
    parts
        One for each layer or parameter that the residual depends on.
    samples, outputs
        n and k.
    """

    parts: tuple[LayerRows | StoredColumns, ...]
    samples: int
    outputs: int

    @property
    def rows(self) -> int:
        """n k."""
        return self.samples * self.outputs

    def to(self, dtype: torch.dtype) -> "RowBlock":
        """The same in another precision."""
        return replace(self, parts=tuple(part.to(dtype) for part in self.parts))

    def within(self, samples: slice) -> "RowBlock":
        """The rows of some of the samples."""
        count = len(range(self.samples)[samples])
        return RowBlock(tuple(part.within(samples) for part in self.parts), count, self.outputs)

    def take(self, rows: Int[Tensor, " r"]) -> "RowBlock":
        """Some of the rows, each as the only output of a sample of its own."""
        return RowBlock(tuple(part.take(rows) for part in self.parts), len(rows), 1)

    def fill(self, columns: Mapping[str, Float[Tensor, "r p"]]) -> None:
        """Write the rows of J into the columns of each parameter."""
        missing = set(columns)
        for part in self.parts:
            for name, rows in part.dense_rows():
                columns[name].copy_(rows)
                missing.remove(name)
        for name in missing:
            columns[name].zero_()


class FactoredJacobian(Jacobian):
    """J of one or several blocks, whose rows are made from layer inputs and signals when they are asked for.

    (Algorithm of DEEP, arXiv 2112.07628, for whole networks.)

    Parameters
    ----------
    blocks
        From the top to the bottom.
    parameters
        All that train, in the order of the columns.
    row_bytes
        Memory that rows alive at a time may take.
    dtype
        Type of everything that goes in and comes out; None: that of the parameters.
    """

    def __init__(
        self,
        blocks: Sequence[RowBlock],
        parameters: Mapping[str, Tensor],
        row_bytes: int = _ROW_BYTES,
        dtype: torch.dtype | None = None,
    ):
        first = next(iter(parameters.values()))
        self.dtype = dtype or first.dtype
        self.device = first.device
        self.blocks = [block.to(self.dtype) for block in _disjoint(blocks)]
        self.heights = [block.rows for block in blocks]
        self.sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        self.shape = (sum(self.heights), sum(self.sizes.values()))
        self.chunk_rows = max(1, row_bytes // (3 * self.shape[1] * first.element_size()))

    def matvec(self, direction: Float[Tensor, "P *c"]) -> Float[Tensor, "M *c"]:
        columns = direction.reshape(self.shape[1], -1)
        values = self._by_parameter(columns)
        total = torch.zeros(self.shape[0], columns.shape[1], dtype=self.dtype, device=self.device)
        for block, rows in zip(self.blocks, total.split(self.heights), strict=True):
            for part in block.parts:
                rows += part.matvec(values)
        return total.reshape(-1, *direction.shape[1:])

    def rmatvec(self, weights: Float[Tensor, "M *c"]) -> Float[Tensor, "P *c"]:
        columns = weights.reshape(self.shape[0], -1)
        total = torch.zeros(self.shape[1], columns.shape[1], dtype=self.dtype, device=self.device)
        values = self._by_parameter(total)
        for block, rows in zip(self.blocks, columns.split(self.heights), strict=True):
            for part in block.parts:
                for name, found in part.rmatvec(rows).items():
                    values[name] += found
        return total.reshape(-1, *weights.shape[1:])

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        return mirror_lower(self._products(self.blocks, self.blocks, dtype))

    def gram_columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        chosen, order = self._chosen(indices)
        found = self._products(self.blocks, chosen, self.dtype)
        return found if order is None else found[:, order]

    def gram_block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        chosen, order = self._chosen(indices)
        found = mirror_lower(self._products(chosen, chosen, self.dtype))
        return found if order is None else found[order[:, None], order]

    def diagonal(self) -> Float[Tensor, " M"]:
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for block, rows in zip(self.blocks, total.split(self.heights), strict=True):
            for part in block.parts:
                rows += part.diagonal()
        return total

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        chosen, order = self._chosen(indices)
        found = self._dense(chosen)
        return found if order is None else found[order]

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        top = 0
        for block in self.blocks:
            step = max(1, self.chunk_rows // block.outputs)
            for start in range(0, block.samples, step):
                yield top + start * block.outputs, self._dense([block.within(slice(start, start + step))])
            top += block.rows

    def group_sums(self, signs: Float[Tensor, " M"], group: int) -> Float[Tensor, "g P"]:
        if len(self.blocks) > 1 or group % self.blocks[0].outputs:
            return super().group_sums(signs, group)
        (block,) = self.blocks
        total = torch.zeros(-(-block.rows // group), self.shape[1], dtype=self.dtype, device=self.device)
        whole = block.rows // group
        edge = whole * group // block.outputs
        weights = signs.view(block.samples, block.outputs)
        for samples, target in ((slice(0, edge), total[:whole]), (slice(edge, None), total[whole:])):
            values = self._by_parameter(target, dim=1)
            for part in block.within(samples).parts if len(target) else ():
                for name, found in part.group_sums(weights[samples], len(target)).items():
                    values[name] += found
        return total

    def dense(self) -> DenseJacobian:
        """J stored: M · P numbers."""
        return DenseJacobian(self._dense(self.blocks))

    def _dense(self, blocks: Sequence[RowBlock]) -> Float[Tensor, "r P"]:
        heights = [block.rows for block in blocks]
        result = torch.empty(sum(heights), self.shape[1], dtype=self.dtype, device=self.device)
        for block, rows in zip(blocks, result.split(heights), strict=True):
            block.fill(self._by_parameter(rows, dim=1))
        return result

    def _products(
        self, left: Sequence[RowBlock], right: Sequence[RowBlock], dtype: torch.dtype
    ) -> Float[Tensor, "r c"]:
        """J J′ᵀ of some rows and others, summed in `dtype`; where they are the same its lower half alone."""
        down, across = _places(left), _places(right)
        total = torch.zeros(down[-1].stop, across[-1].stop, dtype=dtype, device=self.device)
        for names in dict.fromkeys(part.names for block in self.blocks for part in block.parts):
            rows = _parts(left, names, dtype)
            columns = rows if left is right else _parts(right, names, dtype)
            for i, part in rows.items():
                for j, other in columns.items():
                    if left is not right or j <= i:
                        # The same names hold the same kind of part in every block.
                        part.add_products(other, total[down[i], across[j]], lower=part is other)  # pyright: ignore[reportArgumentType]
        return total

    def _chosen(self, indices: Int[Tensor, " r"]) -> tuple[list[RowBlock], Int[Tensor, " r"] | None]:
        """The rows of some indices, block by block, and the place of each index among them; None: they are in order."""
        if len(self.blocks) == 1:
            return [self.blocks[0].take(indices)], None
        chosen, positions = [], []
        for block, place in zip(self.blocks, _places(self.blocks), strict=True):
            here = ((indices >= place.start) & (indices < place.stop)).nonzero()[:, 0]
            chosen.append(block.take(indices[here] - place.start))
            positions.append(here)
        return chosen, torch.argsort(torch.cat(positions))

    def _by_parameter(self, values: Tensor, dim: int = 0) -> dict[str, Tensor]:
        return dict(zip(self.sizes, values.split(list(self.sizes.values()), dim=dim), strict=True))


def _places(blocks: Sequence[RowBlock]) -> list[slice]:
    edges = [0, *accumulate(block.rows for block in blocks)]
    return [slice(top, bottom) for top, bottom in pairwise(edges)]


def _parts(
    blocks: Sequence[RowBlock], names: tuple[str, ...], dtype: torch.dtype
) -> dict[int, LayerRows | StoredColumns]:
    """The part of every block that holds some parameters."""
    return {
        number: part.to(dtype) for number, block in enumerate(blocks) for part in block.parts if part.names == names
    }


def _disjoint(blocks: Sequence[RowBlock]) -> list[RowBlock]:
    """The blocks with one part a parameter, which holds the same parameters in every block.

    Layers that share a weight but not a bias, or a bias but not a weight, become one part for each.
    """
    uses = Counter(name for names in {part.names for block in blocks for part in block.parts} for name in names)
    result = []
    for block in blocks:
        layers: dict[tuple[str, ...], list[LayerRows]] = {}
        stored = [part for part in block.parts if isinstance(part, StoredColumns)]
        for layer in (part for part in block.parts if isinstance(part, LayerRows)):
            shared = any(uses[name] > 1 for name in layer.names)
            for part in layer.apart() if shared else [layer]:
                layers.setdefault(part.names, []).append(part)
        merged = [LayerRows.joined(same) for same in layers.values()]
        result.append(replace(block, parts=(*merged, *stored)))
    return result
