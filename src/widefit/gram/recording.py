"""J of a module on a batch from what its layers see: calls recorded in a forward pass, signals from backward passes."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from widefit.gram.factored import FactoredJacobian, RowBlock, StoredColumns
from widefit.gram.jacobian import PerSample, apply_root, differentiable, gradient
from widefit.gram.layer_kinds import LayerCall, affine_rows, outer_inputs, outer_signals, supports
from widefit.gram.layer_rows import LayerRows

# Samples on which factors are compared with autograd.
_COMPARED = 3


class UnfactorableError(ValueError):
    """A derivative by the parameters that is not made of layer inputs and signals."""


def module_outputs(
    model: nn.Module, inputs: tuple[Tensor, ...], known: dict[Hashable, bool] | None = None
) -> PerSample:
    """The outputs of a model on a batch, as a function of its parameters."""

    def function(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return functional_call(model, parameters, tuple(tensor[None] for tensor in sample)).reshape(-1)

    def batched(parameters: dict[str, Tensor], *batch: Tensor) -> Tensor:
        outputs = one_a_sample(functional_call(model, parameters, batch), len(batch[0]))
        return outputs.reshape(len(outputs), -1)

    return PerSample(function, inputs, batched, known)


def one_a_sample(outputs: Any, samples: int) -> Tensor:
    """The outputs of a model on a batch, or a ValueError where they are not a tensor with one entry a sample."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model must return a tensor, got {type(outputs).__name__}")
    if outputs.ndim == 0 or len(outputs) != samples:
        raise ValueError(
            f"the model must return one output a sample: {samples} samples gave shape {tuple(outputs.shape)}"
        )
    return real(outputs)


def real(outputs: Tensor) -> Tensor:
    """The same outputs, or a ValueError where they are complex."""
    if outputs.is_complex():
        raise ValueError(
            "the outputs are complex, but a sum of squares needs real ones: return torch.view_as_real(output), whose "
            "squares add up to |output|²"
        )
    return outputs


def record_calls(
    model: nn.Module, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Float[Tensor, "n k"], list[LayerCall]]:
    """A forward pass with a graph, and the calls of the layers that hold trainable parameters directly.

    Raises
    ------
    UnfactorableError
        A layer is called with something else than one entry a sample.
    """
    owners = {name.rpartition(".")[0] for name in parameters}
    modules = {name: module for name, module in model.named_modules() if name in owners and supports(module)}
    calls: list[LayerCall] = []
    samples = len(inputs[0])

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        given = args[0] if args else kwargs["input"]
        if given.ndim < 2 - isinstance(module, nn.Embedding) or {len(given), len(output)} != {samples}:
            raise UnfactorableError(
                f"{module} is called with shape {tuple(given.shape)} for {samples} samples, "
                "which does not tell the samples apart"
            )
        calls.append(LayerCall(module, given.detach(), output))
        return output.clone()  # an activation that works in place must not overwrite what signals are asked for

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules.values()]
    try:
        with torch.enable_grad():
            live = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
            outputs = functional_call(model, live, inputs)
            return outputs.reshape(samples, -1), calls
    finally:
        for hook in hooks:
            hook.remove()


def backward_signals(
    outputs: Float[Tensor, "n k"], tensors: Sequence[Tensor], root: Float[Tensor, "..."]
) -> list[Tensor]:
    """Derivatives of every weighted output by tensors of the graph, shape (n, k, …) for one of shape (n, …)."""
    n, k = outputs.shape
    seeds = apply_root(root, torch.eye(k, dtype=outputs.dtype, device=outputs.device).expand(n, k, k))
    stacked = [tensor.new_empty((n, k, *tensor.shape[1:])) for tensor in tensors]
    for column in range(k):
        found = gradient(outputs, list(tensors), seeds[:, column], retain_graph=column + 1 < k)
        for target, signal in zip(stacked, found, strict=True):
            target[:, column] = signal
    return stacked


def layer_part(call: LayerCall, signal: Float[Tensor, "n k *o"], names: dict[str, str]) -> LayerRows | None:
    """The rows of J over the parameters of a layer that one call makes; None for layers without factors.

    Parameters
    ----------
    call, signal
        The call, and the signal of what it gives.
    names
        Names in J by their names in the layer ("weight", "bias"), for parameters that train.
    """
    inputs = outer_inputs(call.module, call.input)
    if inputs is None:
        return None
    signals = torch.stack([outer_signals(call.module, signal[:, c]) for c in range(signal.shape[1])], dim=1)
    transposed = isinstance(call.module, nn.Embedding)
    return LayerRows(inputs, signals, names.get("weight"), names.get("bias"), transposed=transposed)


def factored_jacobian(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    root: Float[Tensor, "..."],
    known: dict[Hashable, bool] | None = None,
) -> FactoredJacobian:
    """J of a model's outputs on a batch, its rows multiplied by the roots.

    Linear layers, 1d and 2d convolutions and embeddings are kept as inputs and signals; affine parameters of
    normalization layers and whatever else there is are stored as columns of J.

    Parameters
    ----------
    model, inputs
        The module, and the batch that it takes.
    parameters
        Those that train.
    root
        Factors of the rows, as for `FunctionJacobian`.
    known
        Findings about the model, as for `PerSample`.

    Raises
    ------
    UnfactorableError
        A layer is called with something else than one entry a sample.
    """
    outputs, calls = record_calls(model, parameters, inputs)
    signals = backward_signals(outputs, [call.output for call in calls], root)
    prefixes = {module: name for name, module in model.named_modules()}
    shared = _shared_parameters(model)
    parts: list[LayerRows] = []
    affine: dict[str, Tensor] = {}
    for call, signal in zip(calls, signals, strict=True):
        held = [name for name, own in call.module.named_parameters(recurse=False) if id(own) not in shared]
        names = {name: f"{prefixes[call.module]}.{name}".lstrip(".") for name in held}
        names = {name: full for name, full in names.items() if full in parameters}
        part = layer_part(call, signal, names)
        if part is not None:
            parts += [part] if part.names else []
            continue
        n, k = signal.shape[:2]
        repeated = LayerCall(call.module, call.input.repeat_interleave(k, dim=0), call.output)
        for name, full in names.items():
            rows = affine_rows(repeated, signal.flatten(0, 1), name).view(n, k, -1)
            affine[full] = affine[full] + rows if full in affine else rows
    covered = {name for part in parts for name in part.names} | set(affine)
    columns = [StoredColumns(name, values) for name, values in affine.items()]
    columns += stored_columns(module_outputs(model, inputs, known), parameters, set(parameters) - covered, root)
    block = RowBlock((*parts, *columns), *outputs.shape)
    return FactoredJacobian([block], parameters)


def stored_columns(
    function: PerSample, parameters: dict[str, Tensor], names: set[str], root: Float[Tensor, "..."]
) -> list[StoredColumns]:
    """Columns of J over parameters that no layer holds, by reverse differentiation."""
    if not names:
        return []
    left = {name: tensor for name, tensor in parameters.items() if name in names}
    ((_, derivative),) = function.restricted(parameters, names).jacobian(left)
    return [StoredColumns(name, apply_root(root, own.reshape(*own.shape[:2], -1))) for name, own in derivative.items()]


@dataclass(frozen=True)
class FactorCost:
    """Cost of the factors of a model, and whether they tell the truth about it.

    Attributes
    ----------
    flops
        Flops of one entry of H.
    numbers
        Held a row of J.
    exact
        False where a layer is called with something else than one entry a sample, or where the model uses a layer's
        parameter outside the layer's call, which no hook sees.
    """

    flops: float
    numbers: float
    exact: bool


def factor_cost(
    model: nn.Module,
    parameters: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    known: dict[Hashable, bool] | None = None,
) -> FactorCost:
    """Cost of `factored_jacobian`, and its gradients compared with autograd's, on the first samples."""
    # One sample twice rather than one: of that nothing could tell which dimension counts samples.
    chosen = torch.arange(_COMPARED, device=inputs[0].device) % len(inputs[0])
    few = tuple(tensor[chosen] for tensor in inputs)
    one = torch.ones((), dtype=next(iter(parameters.values())).dtype, device=few[0].device)
    try:
        jacobian = factored_jacobian(model, parameters, few, one, known)
    except (ValueError, IndexError, RuntimeError):  # samples that are not told apart, layers within a transform
        return FactorCost(0.0, 0.0, False)
    (block,) = jacobian.blocks
    flops = sum(part.entry_flops for part in block.parts)
    numbers = sum(part.numbers for part in block.parts) / block.rows
    weights = torch.linspace(1, 2, jacobian.shape[0], dtype=jacobian.dtype, device=jacobian.device)
    outputs, live = differentiable(module_outputs(model, few).values, parameters)
    expected = torch.cat([own.reshape(-1) for own in gradient(outputs, live, weights.view(outputs.shape))])
    error = torch.linalg.vector_norm(jacobian.rmatvec(weights) - expected)
    tolerance = torch.finfo(jacobian.dtype).eps ** 0.75
    return FactorCost(flops, numbers, bool(error <= tolerance * torch.linalg.vector_norm(expected)))


def _shared_parameters(model: nn.Module) -> set[int]:
    """Parameters that several layers hold, by identity."""
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared
