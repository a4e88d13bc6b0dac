"""The Jacobian of any per-sample function: stored, or applied without being stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jacrev, vjp, vmap

from widefit.gram.base import GramOperator
from widefit.sketches.base import Sketch

# Rows of H are summed over at most this many columns of J at a time when J is widened to float64.
_COLUMN_BLOCK = 1 << 16
# Rows of H summed at a time, so that only its lower half is.
_TILE = 512


class Jacobian(ABC):
    """J (rows × parameters) as an operator.

    Attributes
    ----------
    shape
        (M, P): M sample outputs (weighted and whitened), P parameters.
    dtype, device
        Of everything that goes in and comes out.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matvec(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        """J v."""

    @abstractmethod
    def rmatvec(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        """Jᵀ u."""

    @abstractmethod
    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        """J Jᵀ, summed in `dtype`, a fresh tensor."""

    @abstractmethod
    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        """J[indices]."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, " M"]:
        """Squared norms of the rows."""

    @abstractmethod
    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        """(first row, rows) from the top to the bottom, each block within the memory budget."""

    def gram_columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        """(J Jᵀ)[:, indices]."""
        chosen = self.rows(indices)
        return torch.cat([block @ chosen.T for _, block in self.row_blocks()])

    def sketched(self, sketch: Sketch) -> Float[Tensor, "s M"]:
        """S Jᵀ for a sketch of the parameter space."""
        return torch.cat([sketch.apply(block.T) for _, block in self.row_blocks()], dim=1)


class DenseJacobian(Jacobian):
    """J given as a matrix."""

    def __init__(self, matrix: Float[Tensor, "M P"]):
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matvec(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.matrix @ direction

    def rmatvec(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        return self.matrix.T @ weights

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        rows = self.shape[0]
        total = torch.zeros(rows, rows, dtype=dtype, device=self.device)
        for columns in self.matrix.split(self.shape[1] if self.dtype == dtype else _COLUMN_BLOCK, dim=1):
            add_lower_gram(total, columns.to(dtype))
        return mirror_lower(total)

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        return self.matrix[indices]

    def diagonal(self) -> Float[Tensor, " M"]:
        return torch.linalg.vector_norm(self.matrix, dim=1).square()

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        yield 0, self.matrix


class PerSample:
    """A function of the parameters and of one sample, applied to a batch.

    Parameters
    ----------
    function
        `function(parameters, *sample)` gives the k outputs of one sample, shape (k,).
    data
        The batch: tensors of n samples each.
    batched
        The same for the whole batch at once, `batched(parameters, *data)` of shape (n, k), where the network can take
        it faster than `torch.vmap` can; None: vmap.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        data: tuple[Tensor, ...],
        batched: Callable[..., Tensor] | None = None,
    ):
        self.function = function
        self.data = data
        self.batched = batched
        self.samples = data[0].shape[0]

    def select(self, index: slice | Tensor) -> "PerSample":
        """The same function on some of the samples."""
        return PerSample(self.function, tuple(tensor[index] for tensor in self.data), self.batched)

    def values(self, parameters: dict[str, Tensor]) -> Float[Tensor, "n k"]:
        """The outputs of every sample."""
        if self.batched is not None:
            return self.batched(parameters, *self.data)
        return vmap(self.function, in_dims=(None,) + (0,) * len(self.data))(parameters, *self.data)

    def jacobian(
        self, parameters: dict[str, Tensor], chunk: int | None = None
    ) -> Iterator[tuple[int, dict[str, Float[Tensor, "c k *shape"]]]]:
        """(first sample, derivative of the outputs by each parameter) in chunks of `chunk` samples."""
        derive = vmap(jacrev(self.function), in_dims=(None,) + (0,) * len(self.data))
        step = self.samples if chunk is None else chunk
        for start in range(0, self.samples, step):
            yield start, derive(parameters, *(tensor[start : start + step] for tensor in self.data))


class FunctionJacobian(Jacobian):
    """J of one or more per-sample functions, by reverse differentiation; rows are made when they are asked for.

    Parameters
    ----------
    functions
        The blocks of rows, from the top to the bottom.
    roots
        Per block what its rows are multiplied by: a number, (n, k) for one factor an output, or (n, k, k) for Bᵢ
        (rows become BᵢᵀJᵢ).
    parameters
        Where J is taken; its order is the order of the columns.
    row_bytes
        Memory that the rows alive at a time may take.
    scale
        What the columns are multiplied by, shape (P,); None: nothing.
    """

    def __init__(
        self,
        functions: list[PerSample],
        roots: list[Float[Tensor, "..."]],
        outputs: list[int],
        parameters: dict[str, Tensor],
        row_bytes: int,
        scale: Float[Tensor, " P"] | None = None,
    ):
        self.scale = scale
        self.functions = functions
        self.roots = roots
        self.outputs = outputs
        self.parameters = parameters
        first = next(iter(parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self.sizes = [tensor.numel() for tensor in parameters.values()]
        self.heights = [function.samples * k for function, k in zip(functions, outputs, strict=True)]
        self.shape = (sum(self.heights), sum(self.sizes))
        # A chunk of derivatives, the same flattened into rows, and what differentiation keeps meanwhile.
        self.chunk_rows = max(1, row_bytes // (3 * self.shape[1] * first.element_size()))

    def matvec(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        tangent = self._unflatten(direction if self.scale is None else self.scale * direction)
        pieces = []
        for function, root, k in zip(self.functions, self.roots, self.outputs, strict=True):
            # Reverse differentiation twice rather than forward once: it exists for every layer, and means the same
            # derivative where torch's two modes differ (the padding row of an embedding).
            pull = vjp(function.values, self.parameters)[1]
            nothing = torch.zeros(function.samples, k, dtype=self.dtype, device=self.device)
            push = vjp(lambda weights, pull=pull: pull(weights)[0], nothing)[1]
            pieces.append(apply_root(root, push(tangent)[0]).reshape(-1))
        return torch.cat(pieces)

    def rmatvec(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        total = torch.zeros(self.shape[1], dtype=self.dtype, device=self.device)
        pieces = zip(self.functions, self.roots, self.outputs, weights.split(self.heights), strict=True)
        for function, root, k, piece in pieces:
            pull = vjp(function.values, self.parameters)[1]
            gradient = pull(apply_root_transposed(root, piece.reshape(-1, k)))[0]
            total += torch.cat([gradient[name].reshape(-1) for name in self.parameters])
        return total if self.scale is None else self.scale * total

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        total = torch.empty(self.shape[0], self.shape[0], dtype=dtype, device=self.device)
        for top, upper in self.row_blocks():
            high = upper.to(dtype)
            total[top : top + len(high), top : top + len(high)] = high @ high.T
            # Rows below are made again rather than kept: the price of a budget that J does not fit in.
            for left, lower in self._blocks_from(top + len(high)):
                corner = lower.to(dtype) @ high.T
                total[left : left + len(corner), top : top + len(high)] = corner
                total[top : top + len(high), left : left + len(corner)] = corner.T
        return total

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        result = torch.empty(len(indices), self.shape[1], dtype=self.dtype, device=self.device)
        top = 0
        for function, root, k, height in zip(self.functions, self.roots, self.outputs, self.heights, strict=True):
            here = ((indices >= top) & (indices < top + height)).nonzero()[:, 0]
            if len(here):
                sample, output = (indices[here] - top) // k, (indices[here] - top) % k
                for start, piece in self._derivatives(function.select(sample), select_root(root, sample), k):
                    places = torch.arange(start, start + len(piece), device=self.device)
                    result[here[places]] = piece[places - start, output[places]]
            top += height
        return result

    def diagonal(self) -> Float[Tensor, " M"]:
        return torch.cat([torch.linalg.vector_norm(block, dim=1).square() for _, block in self.row_blocks()])

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        return self._blocks_from(0)

    def _blocks_from(self, first: int) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        """Blocks of rows from row `first`, which begins a block."""
        top = 0
        for function, root, k, height in zip(self.functions, self.roots, self.outputs, self.heights, strict=True):
            if first < top + height:
                skip = max(0, first - top) // k
                rest = slice(skip, None)
                for start, piece in self._derivatives(function.select(rest), select_root(root, rest), k):
                    yield top + (skip + start) * k, piece.reshape(-1, self.shape[1])
            top += height

    def _derivatives(
        self, function: PerSample, root: Float[Tensor, "..."], k: int, out: Float[Tensor, "n k P"] | None = None
    ) -> Iterator[tuple[int, Float[Tensor, "c k P"]]]:
        """(first sample, rows of its chunk), written into `out` where one is given for all samples."""
        chunk = max(1, self.chunk_rows // k)
        for start, derivative in function.jacobian(self.parameters, chunk):
            count = len(next(iter(derivative.values())))
            if out is None:
                rows = torch.empty(count, k, self.shape[1], dtype=self.dtype, device=self.device)
            else:
                rows = out[start : start + count]
            here = select_root(root, slice(start, start + count))
            left = 0
            for name, size in zip(self.parameters, self.sizes, strict=True):
                piece = derivative.pop(name).reshape(count, k, size)
                rows[:, :, left : left + size] = apply_root(here, piece) if root.ndim == 3 else piece
                left += size
            if root.ndim < 3:
                rows.mul_(here[:, :, None] if root.ndim == 2 else here)
            if self.scale is not None:
                rows.mul_(self.scale)
            yield start, rows

    def _unflatten(self, direction: Float[Tensor, " P"]) -> dict[str, Tensor]:
        pieces = direction.split(self.sizes)
        return {
            name: piece.view_as(tensor) for (name, tensor), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def dense(self) -> DenseJacobian:
        """J stored: M · P numbers."""
        matrix = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        top = 0
        for function, root, k, height in zip(self.functions, self.roots, self.outputs, self.heights, strict=True):
            out = matrix[top : top + height].view(-1, k, self.shape[1])
            for _ in self._derivatives(function, root, k, out):
                pass
            top += height
        return DenseJacobian(matrix)


class JacobianGram(GramOperator):
    """H = J Jᵀ, applied as J (Jᵀ v) and formed only on request."""

    def __init__(self, jacobian: Jacobian):
        self.jacobian = jacobian
        self.size = jacobian.shape[0]
        self.dtype = jacobian.dtype
        self.device = jacobian.device

    def matmul(self, vectors: Float[Tensor, "M *c"]) -> Float[Tensor, "M *c"]:
        if vectors.ndim == 1:
            return self.jacobian.matvec(self.jacobian.rmatvec(vectors))
        return torch.stack([self.matmul(column) for column in vectors.T], dim=1)

    def diagonal(self) -> Float[Tensor, " M"]:
        return self.jacobian.diagonal()

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        return self.jacobian.gram_columns(indices)

    def dense(self) -> Float[Tensor, "M M"]:
        return self.jacobian.gram(self.dtype)

    def sketched_factor(self, sketch: Sketch) -> Float[Tensor, "s M"]:
        return self.jacobian.sketched(sketch)

    @property
    def factor_size(self) -> int:
        return self.jacobian.shape[1]


def add_lower_gram(total: Float[Tensor, "M M"], rows: Float[Tensor, "M c"]) -> None:
    """Add rows rowsᵀ to the lower half of `total`, in tiles: the upper half is left as it comes."""
    for top in range(0, len(rows), _TILE):
        below = rows[top : top + _TILE]
        total[top : top + _TILE, : top + len(below)].addmm_(below, rows[: top + len(below)].T)


def mirror_lower(total: Float[Tensor, "M M"]) -> Float[Tensor, "M M"]:
    """Fill the upper half of a symmetric matrix from its lower one, in place."""
    for top in range(0, len(total), _TILE):
        bottom = min(top + _TILE, len(total))
        total[:top, top:bottom] = total[top:bottom, :top].T
        corner = total[top:bottom, top:bottom]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return total


def apply_root(root: Float[Tensor, "..."], values: Float[Tensor, "n k *c"]) -> Float[Tensor, "n k *c"]:
    """Bᵢᵀ vᵢ for every sample; a root of lower rank than a matrix is diagonal."""
    if root.ndim == 3:
        return torch.einsum("nab,na...->nb...", root, values)
    if root.ndim == 2:
        return root.reshape(root.shape + (1,) * (values.ndim - 2)) * values
    return root * values


def apply_root_transposed(root: Float[Tensor, "..."], values: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Bᵢ vᵢ for every sample."""
    return torch.einsum("nab,nb->na", root, values) if root.ndim == 3 else root * values


def select_root(root: Float[Tensor, "..."], index: slice | Tensor) -> Float[Tensor, "..."]:
    """The roots of some of the samples."""
    return root[index] if root.ndim >= 2 else root
