"""Layer inputs and backward signals of residual functions: J where linear layers hold the parameters."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.func import vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from widefit.gram.factored import FactoredJacobian, RowBlock
from widefit.gram.jacobian import FunctionJacobian, PerSample
from widefit.gram.layer_rows import LayerRows
from widefit.gram.recording import UnfactorableError, backward_signals, stored_columns
from widefit.pinn.jets import Jet

Key = tuple[str | None, str | None]
# Systems of residual functions that are remembered.
_REMEMBERED = 16


@dataclass(frozen=True)
class CallShape:
    """One call of a linear layer for one sample.

    Attributes
    ----------
    key
        Names of its weight and bias.
    positions, in_features, out_features
        Rows of what it takes and gives, and their columns.
    values
        Number of rows, the first ones, that are values; the others are derivatives, which know no bias.
    """

    key: Key
    positions: int
    in_features: int
    out_features: int
    values: int

    def marks(self, like: Tensor) -> Float[Tensor, " T"]:
        """Factor of the bias at every position."""
        return (torch.arange(self.positions, device=like.device) < self.values).to(like.dtype)


@dataclass
class _Recorder(TorchFunctionMode):
    """Notes the calls of linear layers, and adds a probe to what each gives."""

    names: dict[int, str]
    probes: list[Tensor] | None = None
    calls: list[CallShape] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.level = maybe_current_level()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is functional.linear:
            named = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            given = named["input"]
            key = self.names.get(id(named["weight"])), self.names.get(id(named.get("bias")))
            if key != (None, None):
                return self._note(key, given, output)
        return output

    def _note(self, key: Key, given: Any, output: Any) -> Any:
        # Within a transform that differentiates, the layer is used backward too, which is not seen here.
        if maybe_current_level() != self.level:
            raise UnfactorableError("a layer within a transform")
        rows, result = (given.rows, output.rows) if isinstance(output, Jet) else (given, output)
        if isinstance(output, Jet) != isinstance(given, Jet):
            raise UnfactorableError("a layer whose weight depends on the point")
        flat = rows.reshape(-1, rows.shape[-1])
        values = len(flat) // len(rows) if isinstance(output, Jet) else len(flat)
        self.calls.append(CallShape(key, len(flat), flat.shape[1], result.shape[-1], values))
        self.inputs.append(flat)
        if self.probes is None:
            return output
        moved = result + self.probes[len(self.calls) - 1].view_as(result)
        return Jet(moved, output.kind) if isinstance(output, Jet) else moved


def trace_calls(function: PerSample, parameters: dict[str, Tensor]) -> list[CallShape]:
    """The calls of linear layers that one sample makes.

    Raises
    ------
    UnfactorableError
        Layers are called within a transform of the residual's own.
    """
    recorder = _Recorder({id(tensor): name for name, tensor in parameters.items()})
    with torch.no_grad(), recorder:
        function.function(parameters, *(tensor[0] for tensor in function.data))
    return recorder.calls


def traced_block(
    function: PerSample,
    root: Float[Tensor, "..."],
    parameters: dict[str, Tensor],
    calls: list[CallShape],
    stored: set[str],
) -> RowBlock:
    """The rows of J of one residual function, multiplied by the roots; columns of some parameters are stored."""
    names = {id(tensor): name for name, tensor in parameters.items()}
    first = next(iter(parameters.values()))
    samples = function.samples

    def probed(probes: list[Tensor], *sample: Tensor) -> tuple[Tensor, list[Tensor]]:
        recorder = _Recorder(names, probes)
        with recorder:
            outputs = function.function(parameters, *sample)
        if recorder.calls != calls:
            raise UnfactorableError("samples that call different layers")
        return outputs, recorder.inputs

    with torch.enable_grad():
        probes = [
            torch.zeros(
                samples, call.positions, call.out_features, dtype=first.dtype, device=first.device, requires_grad=True
            )
            for call in calls
        ]
        outputs, inputs = vmap(probed)(probes, *function.data)
    signals = backward_signals(outputs, probes, root)
    layers = [
        LayerRows(given.detach(), signal, *call.key, marks=call.marks(signal))
        for call, given, signal in zip(calls, inputs, signals, strict=True)
    ]
    columns = stored_columns(function, parameters, stored, root)
    return RowBlock((*layers, *columns), samples, outputs.shape[1])


Trace = list[list[CallShape]]


class Traces:
    """Findings about functions and systems of them, each made once; copies begin with none."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Trace | None] = {}
        self._mixed: set[Hashable] = set()  # systems that hold tensors of their own type
        self._functions: dict[Hashable, dict[Hashable, bool]] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Traces, ()

    def known(self, source: Hashable) -> dict[Hashable, bool]:
        """The findings about one function, as `PerSample` keeps them."""
        if source not in self._functions and len(self._functions) >= _REMEMBERED:
            self._functions.clear()
        return self._functions.setdefault(source, {})

    def allow(self, key: Hashable, functions: list[PerSample], parameters: dict[str, Tensor]) -> bool:
        """Whether J̃ of a system can be made from layer inputs and signals; `key` tells one system from another."""
        return self._trace(key, functions, parameters) is not None

    def _trace(self, key: Hashable, functions: list[PerSample], parameters: dict[str, Tensor]) -> Trace | None:
        key = (key, tuple(parameters))
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = trace_system(functions, parameters)
        return self._known[key]

    def jacobian(
        self,
        key: Hashable,
        functions: list[PerSample],
        roots: list[Float[Tensor, "..."]],
        parameters: dict[str, Tensor],
        row_bytes: int,
        free: int,
        dtype: torch.dtype | None = None,
    ) -> FactoredJacobian | None:
        """J̃ from layer inputs and signals; None where the functions or the memory do not allow it.

        Parameters
        ----------
        key
            Tells one system from another.
        functions, roots, parameters, row_bytes
            As for `FunctionJacobian`.
        free
            Bytes that inputs, signals and the graph between them may take.
        dtype
            Of J̃; None: that of the parameters. The functions are differentiated in it where they can be.
        """
        trace = self._trace(key, functions, parameters)
        if trace is None or _held_bytes(functions, parameters, trace) > free:
            return None
        system = key, tuple(parameters)
        given = functions, roots, parameters
        if dtype is not None and system not in self._mixed:
            try:
                return traced_jacobian(*_converted(*given, dtype), trace, row_bytes)
            except (RuntimeError, UnfactorableError):
                self._mixed.add(system)
        try:
            return traced_jacobian(*given, trace, row_bytes, dtype)
        except UnfactorableError:  # a function goes another way now
            self._known[system] = None
            return None


def trace_system(functions: list[PerSample], parameters: dict[str, Tensor]) -> Trace | None:
    """The calls of every block, compared with autograd on its first two samples; None where they do not tell all.

    Costs two samples.
    """
    few = [function.select(slice(0, 2)) for function in functions]
    if not all(function.vectorizes(parameters) for function in few):
        return None
    try:
        trace = [trace_calls(function, parameters) for function in few]
        covered = sum(parameters[name].numel() for name in _covered(trace))
        if 2 * covered < sum(tensor.numel() for tensor in parameters.values()):
            return None
        like = next(iter(parameters.values()))
        one = torch.ones((), dtype=like.dtype, device=like.device)
        traced = traced_jacobian(few, [one] * len(few), parameters, trace, 1 << 62)
    except UnfactorableError:
        return None
    outputs = [block.outputs for block in traced.blocks]
    expected = FunctionJacobian(few, [one] * len(few), outputs, parameters, 1 << 62).dense().matrix
    error = torch.linalg.vector_norm(traced.dense().matrix - expected)
    tolerance = torch.finfo(expected.dtype).eps ** 0.75
    return trace if bool(error <= tolerance * torch.linalg.vector_norm(expected)) else None


def traced_jacobian(
    functions: list[PerSample],
    roots: list[Float[Tensor, "..."]],
    parameters: dict[str, Tensor],
    trace: Trace,
    row_bytes: int,
    dtype: torch.dtype | None = None,
) -> FactoredJacobian:
    """J̃ of a system whose calls are known.

    Raises
    ------
    UnfactorableError
        The calls are others now.
    """
    stored = set(parameters) - _covered(trace)
    blocks = [
        traced_block(function, root, parameters, calls, stored)
        for function, root, calls in zip(functions, roots, trace, strict=True)
    ]
    return FactoredJacobian(blocks, parameters, row_bytes, dtype)


def _converted(
    functions: list[PerSample], roots: list[Float[Tensor, "..."]], parameters: dict[str, Tensor], dtype: torch.dtype
) -> tuple[list[PerSample], list[Float[Tensor, "..."]], dict[str, Tensor]]:
    """A system with all that it is given in another precision."""
    return (
        [function.to(dtype) for function in functions],
        [root.to(dtype) for root in roots],
        {name: tensor.to(dtype) for name, tensor in parameters.items()},
    )


def _held_bytes(functions: list[PerSample], parameters: dict[str, Tensor], trace: Trace) -> int:
    """Inputs and signals, and the values that differentiation keeps: about six numbers an output of a layer."""
    numbers = sum(
        function.samples * call.positions * (call.in_features + 7 * call.out_features)
        for function, calls in zip(functions, trace, strict=True)
        for call in calls
    )
    return numbers * next(iter(parameters.values())).element_size()


def _covered(trace: Trace) -> set[str]:
    return {name for calls in trace for call in calls for name in call.key if name is not None}
