"""H = Σ over layers of (Δ Δᵀ) ∘ (A Aᵀ): exact, from layer inputs and backward signals; J is never formed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from widefit.gram.jacobian import Jacobian, apply_root
from widefit.gram.layers import LayerCall, affine_rows, outer_inputs, outer_signals, supports

# H is summed in square tiles of this many rows, so that no product of its full size exists beside it.
_TILE = 2048


class Part(ABC):
    """Some columns of J, in a form that multiplies fast."""

    names: tuple[str, ...]

    @abstractmethod
    def tile(self, rows: slice | Tensor, columns: slice | Tensor) -> Float[Tensor, "r c"]:
        """(J Jᵀ)[rows, columns] over these columns of J."""

    @abstractmethod
    def matvec(self, pieces: list[Tensor]) -> Float[Tensor, " M"]:
        """J v, v in pieces of the parameters' shapes."""

    @abstractmethod
    def rmatvec(self, weights: Float[Tensor, " M"]) -> list[Tensor]:
        """Jᵀ u in such pieces."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, " M"]:
        """Squared norms of the rows over these columns."""

    @abstractmethod
    def rows(self, indices: Int[Tensor, " r"]) -> list[Float[Tensor, "r p"]]:
        """J[indices], one matrix a parameter."""


@dataclass(frozen=True)
class OuterPart(Part):
    """A layer whose rows are Σ_t δ_t ⊗ a_t; a bias is one more input that is always one.

    Attributes
    ----------
    names
        The weight, and the bias if there is one.
    inputs
        a, shape (n, T, i).
    signals
        δ, shape (n, k, T, o).
    transposed
        True where the weight is stored as inputs × outputs (an embedding).
    """

    names: tuple[str, ...]
    inputs: Float[Tensor, "n T i"]
    signals: Float[Tensor, "n k T o"]
    transposed: bool = False

    def tile(self, rows: slice | Tensor, columns: slice | Tensor) -> Float[Tensor, "r c"]:
        k, positions = self.signals.shape[1:3]
        if positions > 1:
            return self._sum_of_products(rows, columns)
        signals = self.signals.flatten(0, 1)[:, 0]
        inputs = self.inputs[:, 0]
        if k > 1:
            inputs = inputs.repeat_interleave(k, dim=0)
        overlap = inputs[rows] @ inputs[columns].T
        if len(self.names) > 1:
            overlap += 1
        return overlap.mul_(signals[rows] @ signals[columns].T)

    def _sum_of_products(self, rows: slice | Tensor, columns: slice | Tensor) -> Float[Tensor, "r c"]:
        """Rows of J made for a few outputs of the layer at a time: a product of sums over T has T² terms."""
        total = 0
        for start in range(0, self.signals.shape[3], max(1, (1 << 14) // self.inputs.shape[2])):
            left = self._rows_for(rows, start)
            right = left if columns is rows else self._rows_for(columns, start)
            total = total + left @ right.T
        return torch.as_tensor(total)

    def _rows_for(self, rows: slice | Tensor, start: int) -> Float[Tensor, "r q"]:
        count = max(1, (1 << 14) // self.inputs.shape[2])
        k = self.signals.shape[1]
        signals = self.signals[..., start : start + count].flatten(0, 1)[rows]
        inputs = self.inputs if k == 1 else self.inputs.repeat_interleave(k, dim=0)
        outer = torch.einsum("rto,rti->roi", signals, inputs[rows]).flatten(1)
        return torch.cat([outer, signals.sum(dim=1)], dim=1) if len(self.names) > 1 else outer

    def diagonal(self) -> Float[Tensor, " M"]:
        n, k, positions, _ = self.signals.shape
        if positions > 1:
            samples = (torch.arange(i * k, (i + 1) * k, device=self.signals.device) for i in range(n))
            return torch.cat([self.tile(here, here).diagonal() for here in samples])
        reach = self.inputs[:, 0].square().sum(dim=1) + (len(self.names) > 1)
        return (self.signals[:, :, 0].square().sum(dim=2) * reach[:, None]).reshape(-1)

    def matvec(self, pieces: list[Tensor]) -> Float[Tensor, " M"]:
        weight = pieces[0].T if self.transposed else pieces[0].reshape(self.signals.shape[3], -1)
        reached = self.inputs @ weight.T
        if len(pieces) > 1:
            reached = reached + pieces[1]
        return torch.einsum("nkto,nto->nk", self.signals, reached).reshape(-1)

    def rmatvec(self, weights: Float[Tensor, " M"]) -> list[Tensor]:
        n, k = self.signals.shape[:2]
        mixed = torch.einsum("nk,nkto->nto", weights.reshape(n, k), self.signals)
        outer = mixed.flatten(0, 1).T @ self.inputs.flatten(0, 1)
        result = [outer.T if self.transposed else outer]
        return [*result, mixed.sum(dim=(0, 1))] if len(self.names) > 1 else result

    def rows(self, indices: Int[Tensor, " r"]) -> list[Float[Tensor, "r p"]]:
        signals = self.signals.flatten(0, 1)[indices]
        inputs = self.inputs[indices // self.signals.shape[1]]
        order = "rto,rti->rio" if self.transposed else "rto,rti->roi"
        result = [torch.einsum(order, signals, inputs).flatten(1)]
        return [*result, signals.sum(dim=1)] if len(self.names) > 1 else result


@dataclass(frozen=True)
class StoredPart(Part):
    """A parameter whose columns of J are stored."""

    names: tuple[str, ...]
    matrix: Float[Tensor, "M p"]

    def tile(self, rows: slice | Tensor, columns: slice | Tensor) -> Float[Tensor, "r c"]:
        return self.matrix[rows] @ self.matrix[columns].T

    def diagonal(self) -> Float[Tensor, " M"]:
        return torch.linalg.vector_norm(self.matrix, dim=1).square()

    def matvec(self, pieces: list[Tensor]) -> Float[Tensor, " M"]:
        return self.matrix @ pieces[0].reshape(-1)

    def rmatvec(self, weights: Float[Tensor, " M"]) -> list[Tensor]:
        return [self.matrix.T @ weights]

    def rows(self, indices: Int[Tensor, " r"]) -> list[Float[Tensor, "r p"]]:
        return [self.matrix[indices]]


class FactoredJacobian(Jacobian):
    """J as layer inputs and backward signals (algorithm of DEEP, arXiv 2112.07628, for whole networks).

    Parameters
    ----------
    parts
        Together they hold every parameter once.
    parameters
        In the order of the columns.
    rows
        M.
    """

    def __init__(self, parts: list[Part], parameters: dict[str, Tensor], rows: int):
        self.parts = parts
        self.parameters = parameters
        self.sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        first = next(iter(parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self.shape = (rows, sum(self.sizes.values()))

    def matvec(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        pieces = dict(zip(self.sizes, direction.split(list(self.sizes.values())), strict=True))
        shaped = {name: piece.view_as(self.parameters[name]) for name, piece in pieces.items()}
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for part in self.parts:
            total += part.matvec([shaped[name] for name in part.names])
        return total

    def rmatvec(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        found = {
            name: piece for part in self.parts for name, piece in zip(part.names, part.rmatvec(weights), strict=True)
        }
        return torch.cat([found[name].reshape(-1) for name in self.sizes])

    def gram(self, dtype: torch.dtype) -> Float[Tensor, "M M"]:
        rows = self.shape[0]
        total = torch.zeros(rows, rows, dtype=dtype, device=self.device)
        for top in range(0, rows, _TILE):
            below = slice(top, min(top + _TILE, rows))
            for left in range(0, top + 1, _TILE):
                beside = below if left == top else slice(left, left + _TILE)
                for part in self.parts:
                    total[below, beside] += part.tile(below, beside)
                if left < top:
                    total[beside, below] = total[below, beside].T
        return total

    def rows(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "r P"]:
        found = {name: piece for part in self.parts for name, piece in zip(part.names, part.rows(indices), strict=True)}
        return torch.cat([found[name] for name in self.sizes], dim=1)

    def diagonal(self) -> Float[Tensor, " M"]:
        total = torch.zeros(self.shape[0], dtype=self.dtype, device=self.device)
        for part in self.parts:
            total += part.diagonal()
        return total

    def row_blocks(self) -> Iterator[tuple[int, Float[Tensor, "r P"]]]:
        rows = self.shape[0]
        step = max(1, (1 << 24) // self.shape[1])
        for top in range(0, rows, step):
            yield top, self.rows(torch.arange(top, min(top + step, rows), device=self.device))

    def gram_columns(self, indices: Int[Tensor, " r"]) -> Float[Tensor, "M r"]:
        total = torch.zeros(self.shape[0], len(indices), dtype=self.dtype, device=self.device)
        for part in self.parts:
            for top in range(0, self.shape[0], _TILE):
                total[top : top + _TILE] += part.tile(slice(top, min(top + _TILE, self.shape[0])), indices)
        return total


def record_calls(
    model: nn.Module, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, list[LayerCall]]:
    """A forward pass with a graph, and the calls of the layers that hold trainable parameters directly."""
    owners = {name.rpartition(".")[0] for name in parameters}
    modules = {name: module for name, module in model.named_modules() if name in owners and supports(module)}
    calls: list[LayerCall] = []

    def note(module: nn.Module, given: tuple, output: Tensor) -> Tensor:
        calls.append(LayerCall(module, given[0].detach(), output))
        return output.clone()  # an activation that works in place must not overwrite what signals are asked for

    hooks = [module.register_forward_hook(note) for module in modules.values()]
    try:
        with torch.enable_grad():
            live = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
            outputs = functional_call(model, live, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs.reshape(len(outputs), -1), calls


def factored_jacobian(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    root: Float[Tensor, "..."],
) -> FactoredJacobian:
    """J of a model's outputs on a batch, its rows multiplied by the roots.

    Linear layers, 1d and 2d convolutions and embeddings are kept as inputs and signals; affine parameters of
    normalization layers and whatever else there is are stored as columns of J.
    """
    outputs, calls = record_calls(model, parameters, inputs)
    n, k = outputs.shape
    signals = backward_signals(outputs, calls, root)
    parts: list[Part] = []
    left = dict(parameters)
    for module in dict.fromkeys(call.module for call in calls):
        own = _own_names(model, module, left)
        if own is None:
            continue
        here = [(call, signal) for call, signal in zip(calls, signals, strict=True) if call.module is module]
        parts += _layer_parts(module, own, here, n * k)
        for name in own:
            del left[name]
    parts += _remaining_parts(model, left, parameters, inputs, root, (n, k))
    return FactoredJacobian(parts, parameters, n * k)


@dataclass(frozen=True)
class FactorCost:
    """What the factors of a model take, and whether they tell the truth about it.

    Attributes
    ----------
    flops
        Of one entry of H.
    numbers
        Held a row of J.
    exact
        False where the model uses a layer's parameter outside the layer's call, which no hook sees.
    """

    flops: float
    numbers: float
    exact: bool


def factor_cost(model: nn.Module, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> FactorCost:
    """Cost of `factored_jacobian`, and its gradients compared with autograd's, on the first two samples."""
    few = tuple(tensor[:2] for tensor in inputs)
    one = torch.ones((), dtype=next(iter(parameters.values())).dtype, device=few[0].device)
    jacobian = factored_jacobian(model, parameters, few, one)
    flops = numbers = 0.0
    for part in jacobian.parts:
        if isinstance(part, OuterPart):
            _, k, positions, wide = part.signals.shape
            reach = part.inputs.shape[2]
            flops += 2.0 * (wide + reach) if positions == 1 else 2.0 * wide * reach
            numbers += positions * (wide + reach / k)
        elif isinstance(part, StoredPart):
            flops += 2.0 * part.matrix.shape[1]
            numbers += part.matrix.shape[1]
    weights = torch.linspace(1, 2, jacobian.shape[0], dtype=jacobian.dtype, device=jacobian.device)
    with torch.enable_grad():
        live = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        total = functional_call(model, live, few).reshape(-1) @ weights
        found = torch.autograd.grad(total, list(live.values()), allow_unused=True, materialize_grads=True)
    expected = torch.cat([gradient.reshape(-1) for gradient in found])
    error = torch.linalg.vector_norm(jacobian.rmatvec(weights) - expected)
    tolerance = torch.finfo(jacobian.dtype).eps ** 0.75
    return FactorCost(flops, numbers, bool(error <= tolerance * torch.linalg.vector_norm(expected)))


def backward_signals(outputs: Float[Tensor, "n k"], calls: list[LayerCall], root: Float[Tensor, "..."]) -> list[Tensor]:
    """Per call the derivative of every weighted output by the layer's output, shape (n, k, …)."""
    n, k = outputs.shape
    seeds = apply_root(root, torch.eye(k, dtype=outputs.dtype, device=outputs.device).expand(n, k, k))
    stacked = [call.output.new_empty((n, k, *call.output.shape[1:])) for call in calls]
    for column in range(k):
        found = torch.autograd.grad(
            outputs, [call.output for call in calls], seeds[:, column], retain_graph=column + 1 < k, allow_unused=True
        )
        for target, signal in zip(stacked, found, strict=True):
            target[:, column] = 0 if signal is None else signal
    return stacked


def _own_names(model: nn.Module, module: nn.Module, left: dict[str, Tensor]) -> list[str] | None:
    """A layer's trainable parameters, weight first; None where one is frozen, missing or shared with another layer."""
    prefix = next(name for name, candidate in model.named_modules() if candidate is module)
    held = [name for name, parameter in module.named_parameters(recurse=False) if parameter is not None]
    names = [f"{prefix}.{name}" if prefix else name for name in held]
    sharing = {
        id(parameter)
        for other in model.modules()
        if other is not module
        for parameter in other.parameters(recurse=False)
    }
    shared = any(id(module.get_parameter(name)) in sharing for name in held)
    complete = names and held[0] == "weight" and all(name in left for name in names)
    return names if complete and not shared else None


def _layer_parts(module: nn.Module, names: list[str], calls: list[tuple[LayerCall, Tensor]], rows: int) -> list[Part]:
    inputs = [outer_inputs(module, call.input) for call, _ in calls]
    if any(given is None for given in inputs):
        columns = {name: torch.zeros(()) for name in names}
        for call, signal in calls:
            repeated = LayerCall(call.module, call.input.repeat_interleave(signal.shape[1], dim=0), call.output)
            for name in names:
                rows_of = affine_rows(repeated, signal.flatten(0, 1), name.rpartition(".")[2])
                columns[name] = rows_of if columns[name].ndim == 0 else columns[name] + rows_of
        return [StoredPart((name,), matrix) for name, matrix in columns.items()]
    signals = [
        torch.stack([outer_signals(module, signal[:, c]) for c in range(signal.shape[1])], dim=1) for _, signal in calls
    ]
    kept = [given for given in inputs if given is not None]
    a = kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)
    delta = signals[0] if len(signals) == 1 else torch.cat(signals, dim=2)
    return [OuterPart(tuple(names), a, delta, transposed=isinstance(module, nn.Embedding))]


def _remaining_parts(
    model: nn.Module,
    left: dict[str, Tensor],
    parameters: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    root: Float[Tensor, "..."],
    size: tuple[int, int],
) -> list[Part]:
    """Parameters without a known form: their columns by reverse differentiation, sample by sample."""
    if not left:
        return []

    def function(chosen: dict[str, Tensor], *sample: Tensor) -> Tensor:
        everything = {**parameters, **chosen}
        return functional_call(model, everything, tuple(tensor[None] for tensor in sample)).reshape(-1)

    derivative = vmap(jacrev(function), in_dims=(None,) + (0,) * len(inputs))(left, *inputs)
    n, k = size
    return [StoredPart((name,), apply_root(root, d.reshape(n, k, -1)).flatten(0, 1)) for name, d in derivative.items()]
