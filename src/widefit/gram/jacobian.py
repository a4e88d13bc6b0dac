"""The Jacobian of any per-sample function: stored, or applied without being stored."""

import math
from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, jacrev, vmap

from widefit.gram.base import Jacobian, Operator

# Rows of H are summed over at most this many columns of J at a time when J is widened to float64.
_COLUMN_BLOCK = 1 << 16
# Rows of H summed at a time, so that only its lower half is.
_TILE = 128
# Samples of which outputs are computed at a time, where there are more than twice as many.
_SAMPLES = 1 << 14
# Vectors that J and Jᵀ are applied to at a time: so many times P numbers exist between the two.
_VECTORS = 32


class DenseJacobian(Jacobian):
    """J given as a matrix."""

    def __init__(self, matrix: Float[Tensor, "M P"]):
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matvec(self, direction: Float[Tensor, "P *c"]) -> Float[Tensor, "M *c"]:
        return self.matrix @ direction

    def rmatvec(self, weights: Float[Tensor, "M *c"]) -> Float[Tensor, "P *c"]:
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
    known
        Keeps what was found out about the function from one batch to the next; None: nothing is.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        data: tuple[Tensor, ...],
        batched: Callable[..., Tensor] | None = None,
        known: dict[Hashable, bool] | None = None,
    ):
        self.function = function
        self.data = data
        self.batched = batched
        self.known = {} if known is None else known
        self.samples = data[0].shape[0]

    def select(self, index: slice | Tensor) -> "PerSample":
        """The same function on some of the samples."""
        return PerSample(self.function, tuple(tensor[index] for tensor in self.data), self.batched, self.known)

    def to(self, dtype: torch.dtype) -> "PerSample":
        """The same function of data in another precision."""
        data = tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in self.data)
        return PerSample(self.function, data, self.batched, self.known)

    def restricted(self, parameters: dict[str, Tensor], names: Collection[str]) -> "PerSample":
        """The same as a function of some of the parameters; the others stay as they are."""

        def function(chosen: dict[str, Tensor], *sample: Tensor) -> Tensor:
            return self.function({**parameters, **chosen}, *sample)

        return PerSample(function, self.data, None, self.known)

    def values(self, parameters: dict[str, Tensor]) -> Float[Tensor, "n k"]:
        """The outputs of every sample."""
        if self.samples > 2 * _SAMPLES:
            starts = range(0, self.samples, _SAMPLES)
            return torch.cat([self.select(slice(start, start + _SAMPLES)).values(parameters) for start in starts])
        if self.batched is not None:
            return self.batched(parameters, *self.data)
        if self.vectorizes(parameters):
            return self._vectorized(self.function)(parameters, *self.data)
        return torch.stack([self.function(parameters, *sample) for sample in zip(*self.data, strict=True)])

    def jacobian(
        self, parameters: dict[str, Tensor], chunk: int | None = None
    ) -> Iterator[tuple[int, dict[str, Float[Tensor, "c k *shape"]]]]:
        """(first sample, derivative of the outputs by each parameter) in chunks of `chunk` samples."""
        derive = self._vectorized(jacrev(self.function)) if self.vectorizes(parameters) else self._derivatives
        step = self.samples if chunk is None else chunk
        for start in range(0, self.samples, step):
            yield start, derive(parameters, *(tensor[start : start + step] for tensor in self.data))

    def vectorizes(self, parameters: dict[str, Tensor]) -> bool:
        """Whether `torch.vmap` gives what autograd gives sample by sample.

        It refuses recurrent layers, and has wrong rules for a few others. Compared once, on two samples.
        """
        key = (tuple(parameters), *((tensor.shape[1:], tensor.dtype) for tensor in self.data))
        if key not in self.known:
            still = {name: tensor.detach() for name, tensor in parameters.items()}
            self.known[key] = self.select(slice(0, 2))._vmap_is_right(still)
        return self.known[key]

    def _vmap_is_right(self, parameters: dict[str, Tensor]) -> bool:
        try:
            values = self._vectorized(self.function)(parameters, *self.data).detach()
            derivative = self._vectorized(jacrev(self.function))(parameters, *self.data)
        except Exception:  # whether the function itself is at fault, the loop over samples will tell
            return False
        outputs, gradients = [], []
        for sample in zip(*self.data, strict=True):
            output, live = differentiable(self.function, parameters, *sample)
            weights = torch.linspace(1, 2, len(output), dtype=output.dtype, device=output.device)
            outputs.append(output.detach())
            gradients.append(gradient(output, live, weights))
        expected = [torch.stack(outputs), *(torch.stack(own) for own in zip(*gradients, strict=True))]
        if values.shape != expected[0].shape:
            return False
        found = [values, *(torch.einsum("k,nk...->n...", weights, own) for own in derivative.values())]
        norms = [float(torch.linalg.vector_norm(own)) for own in expected]
        errors = [float(torch.linalg.vector_norm(one - own)) for one, own in zip(found, expected, strict=True)]
        eps = torch.finfo(values.dtype).eps
        # Where nothing is finite nothing can be said.
        return not math.isfinite(sum(norms)) or all(
            error <= eps**0.5 * norm + eps * sum(norms) for error, norm in zip(errors, norms, strict=True)
        )

    def _vectorized(self, function: Callable) -> Callable:
        return vmap(function, in_dims=(None,) + (0,) * len(self.data))

    def _derivatives(self, parameters: dict[str, Tensor], *data: Tensor) -> dict[str, Float[Tensor, "c k *shape"]]:
        """Derivatives by nothing but autograd, sample by sample and output by output."""
        rows: list[list[Tensor]] = [[] for _ in parameters]
        for sample in zip(*data, strict=True):
            outputs, live = differentiable(self.function, parameters, *sample)
            with torch.enable_grad():  # an output by itself is a view, which has a graph only where one is made
                found = [gradient(output, live) for output in outputs]
            for own, gradients in zip(rows, zip(*found, strict=True), strict=True):
                own.append(torch.stack(gradients))
        return {name: torch.stack(own) for name, own in zip(parameters, rows, strict=True)}


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
        Point at which J is taken, in the order of the columns.
    row_bytes
        Memory that the rows alive at a time may take.
    scale
        Factors of the columns, shape (P,); None: 1.
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

    def matvec(self, direction: Float[Tensor, "P *c"]) -> Float[Tensor, "M *c"]:
        columns = direction.reshape(self.shape[1], -1)
        tangents = (columns if self.scale is None else self.scale[:, None] * columns).T
        pieces = []
        for function, root, k in zip(self.functions, self.roots, self.outputs, strict=True):
            outputs, live = differentiable(function.values, self.parameters)
            # Reverse differentiation twice rather than forward once: it exists for every layer, and means the same
            # derivative where torch's two modes differ (the padding row of an embedding).
            seeds = torch.zeros_like(outputs, requires_grad=True)
            pulled = gradient(outputs, live, seeds, create_graph=True)
            pushed = [gradient(pulled, [seeds], self._unflatten(tangent))[0] for tangent in tangents]
            images = apply_root(root, torch.stack(pushed, dim=-1).reshape(function.samples, k, -1))
            pieces.append(images.flatten(0, 1))
        return torch.cat(pieces).reshape(-1, *direction.shape[1:])

    def rmatvec(self, weights: Float[Tensor, "M *c"]) -> Float[Tensor, "P *c"]:
        columns = weights.reshape(self.shape[0], -1)
        total = torch.zeros(columns.shape[1], self.shape[1], dtype=self.dtype, device=self.device)
        pieces = zip(self.functions, self.roots, self.outputs, columns.split(self.heights), strict=True)
        for function, root, k, piece in pieces:
            outputs, live = differentiable(function.values, self.parameters)
            for row, column in zip(total, piece.T, strict=True):
                seeds = apply_root_transposed(root, column.reshape(-1, k))
                row += torch.cat([own.reshape(-1) for own in gradient(outputs, live, seeds)])
        return (total if self.scale is None else self.scale * total).T.reshape(-1, *weights.shape[1:])

    def group_sums(self, signs: Float[Tensor, " M"], group: int) -> Float[Tensor, "g P"]:
        single = len(self.functions) == 1 and group % self.outputs[0] == 0
        if not single or not self.functions[0].vectorizes(self.parameters):
            return super().group_sums(signs, group)
        function, weights = self.functions[0], signs.reshape(-1, self.outputs[0])
        seeds = apply_root_transposed(self.roots[0], weights)
        size = group // self.outputs[0]
        whole = function.samples // size
        # As many groups at a time as samples may be, whose derivatives take as much.
        step = max(1, self.chunk_rows)
        edges = [*range(0, whole, step), whole]
        pieces = [
            self._grouped(function.select(slice(low * size, high * size)), seeds[low * size : high * size], high - low)
            for low, high in pairwise(edges)
        ]
        if function.samples > whole * size:
            rest = slice(whole * size, None)
            pieces.append(self._grouped(function.select(rest), seeds[rest], 1))
        total = torch.cat(pieces)
        return total if self.scale is None else total.mul_(self.scale)

    def _grouped(self, function: PerSample, seeds: Float[Tensor, "n k"], groups: int) -> Float[Tensor, "g P"]:
        """Gradients of weighted outputs, summed over stretches of as many samples: one for each stretch, not sample."""

        def weighted(parameters: dict[str, Tensor], weights: Tensor, *data: Tensor) -> Tensor:
            return (vmap(function.function, in_dims=(None,) + (0,) * len(data))(parameters, *data) * weights).sum()

        stretches = [tensor.reshape(groups, -1, *tensor.shape[1:]) for tensor in (seeds, *function.data)]
        found = vmap(grad(weighted), in_dims=(None,) + (0,) * len(stretches))(self.parameters, *stretches)
        return torch.cat([found[name].reshape(groups, -1) for name in self.parameters], dim=1)

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

    def _unflatten(self, direction: Float[Tensor, " P"]) -> list[Tensor]:
        pieces = direction.split(self.sizes)
        return [piece.reshape(tensor.shape) for tensor, piece in zip(self.parameters.values(), pieces, strict=True)]

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


class JacobianGram(Operator):
    """H = J Jᵀ, applied as J (Jᵀ v) and formed only on request."""

    def __init__(self, jacobian: Jacobian, outputs: int = 1):
        self.jacobian = jacobian
        self.outputs = outputs
        self.size = jacobian.shape[0]
        self.dtype = jacobian.dtype
        self.device = jacobian.device

    def matvec(self, vectors: Float[Tensor, "M *c"]) -> Float[Tensor, "M *c"]:
        if vectors.ndim == 1:
            return self.jacobian.matvec(self.jacobian.rmatvec(vectors))
        parts = (self.jacobian.matvec(self.jacobian.rmatvec(part)) for part in vectors.split(_VECTORS, dim=1))
        return torch.cat([*parts], dim=1) if vectors.shape[1] else vectors.clone()

    def diagonal(self) -> Float[Tensor, " M"]:
        return self.jacobian.diagonal()

    def columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        return self.jacobian.gram_columns(indices)

    def block(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r r"]:
        return self.jacobian.gram_block(indices)

    def dense(self) -> Float[Tensor, "M M"]:
        return self.jacobian.gram(self.dtype)

    @property
    def factor(self) -> Jacobian:
        return self.jacobian


def differentiable(
    function: Callable[..., Tensor], parameters: dict[str, Tensor], *sample: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Outputs of a function of the parameters with a graph, and the tensors that it begins at."""
    with torch.enable_grad():
        live = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        return function(live, *sample), list(live.values())


def gradient(
    outputs: Tensor | list[Tensor],
    inputs: list[Tensor],
    weights: Tensor | list[Tensor] | None = None,
    create_graph: bool = False,
    retain_graph: bool = True,
) -> list[Tensor]:
    """Derivatives of weighted outputs by every input, zero where there is none."""
    given = [outputs] if isinstance(outputs, Tensor) else outputs
    seeds = [None] * len(given) if weights is None else [weights] if isinstance(weights, Tensor) else weights
    pairs = [(output, seed) for output, seed in zip(given, seeds, strict=True) if output.requires_grad]
    if not pairs or not inputs:
        return [torch.zeros_like(own) for own in inputs]
    live, seeds = zip(*pairs, strict=True)
    found = torch.autograd.grad(
        live,
        inputs,
        seeds,
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


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
