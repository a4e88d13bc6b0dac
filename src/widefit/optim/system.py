"""The system of a step: blocks of per-sample outputs of one module, each with its loss."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call

from widefit.gram.factored import FactoredJacobian
from widefit.gram.jacobian import FunctionJacobian, PerSample, select_root
from widefit.gram.recording import FactorCost, factor_cost, factored_jacobian, module_outputs, one_a_sample, real
from widefit.kernels.transfer import numbers
from widefit.losses.base import LocalLeastSquares, OutputLoss
from widefit.losses.squared import HalfSquare
from widefit.optim.arrays import as_tensor
from widefit.optim.tracing import Traces
from widefit.processes import ALONE, Alone


class Residual:
    """One kind of residual: a function of the model and of ONE sample, and the samples to take it at.

    Parameters
    ----------
    function
        `function(model, *sample)` gives a tensor of any shape; it is vectorized over the samples by `torch.vmap`, or
        called sample by sample where that cannot follow it.
    data
        Tensors (or NumPy arrays) that hold one sample an entry of their first dimension, all with as many.
    weight
        The block contributes weight · ½ mean(residual²) to the loss; a tensor of one number a sample: ½ mean(weight ·
        residual²).

    Raises
    ------
    ValueError
        No data, sizes that do not match, a weight that is not positive (of a sample: negative, or all of them 0); in a
        step no sample, unless another process has some.
    """

    def __init__(self, function: Callable[..., Tensor], *data: Any, weight: Any = 1.0):
        if not callable(function):
            raise ValueError(
                f"the first argument of Residual is a function(model, *sample), got {type(function).__name__}"
            )
        if not isinstance(weight, int | float) and as_tensor(weight, "Residual: weight").ndim > 0:
            function, data = WeightedResidual(function), (*data, _roots(as_tensor(weight, "Residual: weight")))
            weight = 1.0
        if not weight > 0 or weight == float("inf"):
            raise ValueError(f"weight must be positive and finite, got {weight}")
        data = tuple(as_tensor(item, f"Residual: argument {place}") for place, item in enumerate(data))
        check_data(data, "Residual", empty=True)
        self.function = function
        self.data = data
        self.weight = float(weight)


@dataclass(frozen=True)
class WeightedResidual:
    """A residual function whose last argument is the root of the weight of its sample."""

    function: Callable[..., Tensor]

    def __call__(self, model: nn.Module, *sample: Tensor) -> Tensor:
        return sample[-1] * self.function(model, *sample[:-1])


def _roots(weights: Tensor) -> Float[Tensor, " n"]:
    usable = weights.ndim == 1 and bool((weights >= 0).all() and torch.isfinite(weights).all())
    if not usable or not (len(weights) == 0 or weights.any()):
        raise ValueError("weight must be a positive number, or one number >= 0 a sample, not all of them 0")
    return (weights if weights.is_floating_point() else weights.double()).sqrt()


class _Bound(nn.Module):
    """A residual function as a module, so that its model's parameters can be exchanged for the call."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *sample: Tensor) -> Tensor:
        output = self.function(self.model, *sample)
        if not isinstance(output, Tensor):
            raise ValueError(f"residual must return a tensor, got {type(output).__name__}")
        return real(output).reshape(-1)


@dataclass(frozen=True)
class Block:
    """Per-sample outputs and the loss on them."""

    outputs: PerSample
    loss: OutputLoss
    targets: Tensor | None
    network: nn.Module  # whose parameters train
    model: nn.Module | None = None  # where the outputs are a model's own, on a batch
    source: Callable[..., Tensor] | None = None  # the residual function that was given

    def select(self, samples: slice) -> "Block":
        """The block of some of the samples."""
        targets = None if self.targets is None else self.targets[samples]
        return replace(self, outputs=self.outputs.select(samples), targets=targets)

    @classmethod
    def of_residual(cls, model: nn.Module, residual: Residual, traces: Traces | None = None) -> "Block":
        """The block of a residual function."""
        known = None if traces is None else traces.known(residual.function)
        bound = _Bound(model, residual.function)

        def function(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
            return functional_call(bound, {f"model.{name}": p for name, p in parameters.items()}, sample)

        outputs = PerSample(function, residual.data, known=known)
        return cls(outputs, HalfSquare(residual.weight), None, model, source=residual.function)

    @classmethod
    def of_model(
        cls,
        model: nn.Module,
        loss: OutputLoss,
        inputs: tuple[Tensor, ...],
        targets: Tensor,
        traces: Traces | None = None,
    ) -> "Block":
        """The block of a model's outputs on a batch, compared with targets."""
        laid_out = loss.on(_output_shape(model, inputs), targets)
        known = None if traces is None else traces.known(model)
        return cls(module_outputs(model, inputs, known), laid_out, targets, model, model)


@dataclass(frozen=True)
class Expansion:
    """The system at one point: outputs, loss, ‖r̃‖, and the least-squares problem of the step."""

    outputs: list[Float[Tensor, "_ _"]]
    loss: float
    size: float
    locals: list[LocalLeastSquares]

    @property
    def residual(self) -> Float[Tensor, " M"]:
        """r̃ of all blocks, one below the other."""
        return _joined(self.locals)

    @property
    def roots(self) -> list[Float[Tensor, "..."]]:
        """B of every block."""
        return [local.root for local in self.locals]


@dataclass(frozen=True)
class Portion:
    """The samples of a block that are here, among those of all processes.

    Attributes
    ----------
    total
        Samples of all processes.
    first
        Number of the first one here.
    share
        Part of them that is here; 0 where a sample of another process stands for none.
    """

    total: int
    first: int = 0
    share: float = 1.0


class System:
    """All blocks, as functions of the trainable parameters.

    Parameters
    ----------
    blocks
        With the samples of this process.
    portions
        Of every block; None: all samples are here.
    processes
        They share out the samples: outputs and rows are those of the samples here, the loss is that of all.
    """

    def __init__(self, blocks: list[Block], portions: list[Portion] | None = None, processes: Alone = ALONE):
        self.blocks = blocks
        self.portions = portions or [Portion(block.outputs.samples) for block in blocks]
        self.processes = processes

    @property
    def module(self) -> nn.Module | None:
        """The model whose plain outputs the system is; None for residual functions and for several blocks."""
        return self.blocks[0].model if len(self.blocks) == 1 else None

    @property
    def data(self) -> tuple[Tensor, ...]:
        """Inputs and targets of all blocks."""
        pairs = [(*block.outputs.data, block.targets) for block in self.blocks]
        return tuple(tensor for tensors in pairs for tensor in tensors if tensor is not None)

    @property
    def samples(self) -> int:
        """Samples of all blocks."""
        return sum(block.outputs.samples for block in self.blocks)

    def factor_cost(self, parameters: dict[str, Tensor]) -> FactorCost | None:
        """Cost of J as layer inputs and backward signals; None where the system has no such form."""
        if self.module is None:
            return None
        outputs = self.blocks[0].outputs
        cost = factor_cost(self.module, parameters, outputs.data, outputs.known)
        return cost if cost.exact else None

    def factored(self, parameters: dict[str, Tensor], expansion: Expansion) -> FactoredJacobian:
        """J̃ in that form."""
        if self.module is None:
            raise ValueError("a system of residual functions has no factored form")
        outputs = self.blocks[0].outputs
        return factored_jacobian(self.module, parameters, outputs.data, expansion.roots[0], outputs.known)

    def check_samples(self, parameters: dict[str, Tensor]) -> None:
        """Refuse outputs that are not functions of one sample each; costs two samples."""
        for block in self.blocks:
            check_per_sample(block, parameters)

    def outputs(self, parameters: dict[str, Tensor]) -> list[Float[Tensor, "_ _"]]:
        """The outputs of every block."""
        with torch.no_grad():
            return self.processes.attempt(lambda: [block.outputs.values(parameters) for block in self.blocks])

    def loss(self, outputs: list[Float[Tensor, "_ _"]]) -> float:
        """The loss of given outputs; infinity where it is not a number."""
        return float(self.loss_on_device(outputs))

    def loss_on_device(self, outputs: list[Float[Tensor, "_ _"]]) -> Float[Tensor, ""]:
        """The same, left where the outputs are."""

        def own() -> Tensor:
            parts = zip(self.blocks, outputs, self.portions, strict=True)
            return torch.stack([part.share * block.loss.value(out, block.targets) for block, out, part in parts]).sum()

        value = self.processes.sum(self.processes.attempt(own))
        return torch.where(value.isnan(), torch.inf, value)

    def expand(self, outputs: list[Float[Tensor, "_ _"]]) -> Expansion:
        """The least-squares problem at given outputs."""

        def own() -> list[LocalLeastSquares]:
            parts = zip(self.blocks, outputs, self.portions, strict=True)
            found = [(block.loss.expand(out, block.targets), part.share) for block, out, part in parts]
            return [local if share == 1 else local.times(share) for local, share in found]

        value = self.loss_on_device(outputs)
        residuals = self.processes.attempt(own)
        loss, size = numbers(value, self.processes.length(_joined(residuals)))
        return Expansion(outputs, loss, size, residuals)

    def total_rows(self, expansion: Expansion) -> int:
        """Outputs of samples of all processes."""
        return sum(part.total * out.shape[1] for part, out in zip(self.portions, expansion.outputs, strict=True))

    def present(self, expansion: Expansion) -> Bool[Tensor, " M"]:
        """Which rows are of samples of this process, and do not stand for none."""
        parts = zip(self.portions, expansion.outputs, strict=True)
        return torch.cat([torch.full((out.numel(),), part.share > 0, device=out.device) for part, out in parts])

    def stretches(
        self, expansion: Expansion, group: int, samples: int
    ) -> Iterator[tuple[int, int, int, "System", Expansion]]:
        """(kind, number of the first row, rows of a group, system, expansion) of consecutive samples of one block each.

        Parameters
        ----------
        group
            Rows that belong together, about; a stretch begins with such a group, wherever the process's samples do.
        samples
            Most samples of a stretch, about.
        """
        blocks = zip(self.blocks, expansion.outputs, expansion.locals, self.portions, strict=True)
        for kind, (block, output, local, portion) in enumerate(blocks):
            count, k = output.shape
            size = max(1, group // k)
            head = min(-portion.first % size, count)
            step = max(1, samples // size) * size
            edges = sorted({0, head, *range(head, count, step), count})
            for low, high in pairwise(edges):
                here = slice(low, high)
                chosen = LocalLeastSquares(local.residual[here], select_root(local.root, here))
                yield (
                    kind,
                    (portion.first + low) * k,
                    size * k,
                    System([block.select(here)]),
                    Expansion([output[here]], expansion.loss, expansion.size, [chosen]),
                )

    @property
    def equations(self) -> bool:
        """Whether some residual function knows nothing but points: with values beside them it fits data, which are what
        they are.
        """
        return self.sources is not None and any(
            len(block.outputs.data) - isinstance(block.source, WeightedResidual) == 1 for block in self.blocks
        )

    @property
    def sources(self) -> tuple[Any, ...] | None:
        """Identity of the residual blocks, but for the values of their samples; None for a model's own outputs."""
        if any(block.source is None for block in self.blocks):
            return None
        return tuple(
            (block.source, tuple((tensor.shape[1:], tensor.dtype) for tensor in block.outputs.data))
            for block in self.blocks
        )

    def traceable(self, parameters: dict[str, Tensor], traces: Traces) -> bool:
        """Whether J̃ can be made from layer inputs and backward signals."""
        functions = [block.outputs for block in self.blocks]
        return self.sources is not None and traces.allow(self.sources, functions, parameters)

    def traced(
        self,
        parameters: dict[str, Tensor],
        expansion: Expansion,
        traces: Traces,
        row_bytes: int,
        free: int,
        dtype: torch.dtype | None = None,
    ) -> FactoredJacobian | None:
        """J̃ in `dtype` from layer inputs and backward signals; None where `free` bytes or the functions forbid it."""
        if self.sources is None:
            return None
        functions = [block.outputs for block in self.blocks]
        return traces.jacobian(self.sources, functions, expansion.roots, parameters, row_bytes, free, dtype)

    def jacobian(
        self,
        parameters: dict[str, Tensor],
        expansion: Expansion,
        row_bytes: int,
        scale: Float[Tensor, " P"] | None = None,
    ) -> FunctionJacobian:
        """J̃, whose rows are Bᵢᵀ ∂fᵢ/∂θ, its columns multiplied by `scale`."""
        return FunctionJacobian(
            [block.outputs for block in self.blocks],
            expansion.roots,
            [output.shape[1] for output in expansion.outputs],
            parameters,
            row_bytes,
            scale,
        )


def _joined(locals_: list[LocalLeastSquares]) -> Float[Tensor, " M"]:
    return torch.cat([local.residual.reshape(-1) for local in locals_])


def describe_blocks(
    model: nn.Module,
    loss: OutputLoss,
    residual: Callable[..., Tensor] | None,
    data: tuple[Tensor | Residual, ...],
    traces: Traces | None = None,
) -> list[Block]:
    """The blocks that the arguments of `GaussNewton.step` describe; `traces` keeps what is found out about them."""
    residuals = [item for item in data if isinstance(item, Residual)]
    if data and len(residuals) == len(data):
        return [Block.of_residual(model, item, traces) for item in residuals]
    tensors = tuple(item for item in data if isinstance(item, Tensor))
    if len(tensors) != len(data):
        raise ValueError("step takes tensors, or Residual(...) blocks, not a mixture or anything else")
    check_data(tensors, "step")
    if residual is not None:
        return [Block.of_residual(model, Residual(residual, *tensors), traces)]
    if len(tensors) < 2:
        raise ValueError("step takes inputs and targets, step(x, y), when the optimizer was given no residual")
    return [Block.of_model(model, loss, tensors[:-1], tensors[-1], traces)]


def check_per_sample(block: Block, parameters: dict[str, Tensor]) -> None:
    """Compare a block on its first samples together with the same samples alone."""
    outputs = block.outputs
    few = outputs.select(slice(0, 2))
    shapes = [tuple(tensor.shape[1:]) for tensor in outputs.data]
    try:
        with torch.no_grad(), _unchanged_buffers(block.network):
            together = few.values(parameters)
            alone = torch.stack(
                [few.function(parameters, *(tensor[i] for tensor in few.data)) for i in range(few.samples)]
            )
    except (RuntimeError, IndexError) as error:
        raise _failed(shapes, error) from error
    tolerance = torch.finfo(alone.dtype).eps ** 0.5
    if not torch.allclose(together, alone, rtol=tolerance, atol=tolerance):
        raise ValueError(
            "the outputs of a sample depend on the other samples of its batch: a Gauss-Newton step needs a network "
            "and a residual that treat samples one by one"
        )
    differ = any(not torch.equal(tensor[0], tensor[1]) for tensor in few.data) if few.samples > 1 else False
    if alone.shape[1] > 1 and differ and torch.equal(alone[0], alone[1]) and alone.shape[1] == outputs.samples:
        raise ValueError(
            f"the residual returns the same {alone.shape[1]} numbers for different samples: it seems to take the whole "
            "batch, but it must use the ONE sample that it is given"
        )


def _output_shape(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.Size:
    """The model's own shape of the outputs of a sample; costs one sample."""
    try:
        with torch.no_grad(), _unchanged_buffers(model):
            outputs = model(*(tensor[:1] for tensor in inputs))
    except (RuntimeError, IndexError) as error:
        raise _failed([tuple(tensor.shape[1:]) for tensor in inputs], error) from error
    return one_a_sample(outputs, 1).shape[1:]


def _failed(shapes: list[tuple[int, ...]], error: Exception) -> ValueError:
    return ValueError(
        f"a residual is called with ONE sample, a model with a batch; here samples of shapes {shapes} failed: {error}"
    )


@contextmanager
def _unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Refuse a model whose forward pass changes its buffers, and take the change back."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    changed = [
        name
        for name, buffer in model.named_buffers()
        if name in before and buffer.shape == before[name].shape and not torch.equal(buffer, before[name])
    ]
    for name in changed:
        model.get_buffer(name).copy_(before[name])
    if changed:
        raise ValueError(
            f"the forward pass changes the buffer {changed[0]!r}, so a step cannot be compared with its prediction: "
            "call model.eval(), which stops running statistics and the power iteration of a spectral norm, or keep "
            "that state out of the model"
        )


def check_data(data: tuple[Tensor, ...], where: str, empty: bool = False) -> None:
    """Refuse data that is empty (unless another process may have some), of unequal length, or not finite."""
    if not data:
        raise ValueError(f"{where} needs at least one tensor of samples")
    floating = [tensor for tensor in data if isinstance(tensor, Tensor) and tensor.is_floating_point()]
    # One transfer from the device.
    sound = not floating or bool(torch.stack([torch.isfinite(tensor).all() for tensor in floating]).all())
    for position, tensor in enumerate(data):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{where}: argument {position} must be a tensor, got {type(tensor).__name__}")
        if tensor.ndim == 0 or (len(tensor) == 0 and not empty):
            raise ValueError(f"{where}: argument {position} holds no sample, its shape is {tuple(tensor.shape)}")
        if len(tensor) != len(data[0]):
            raise ValueError(
                f"{where}: argument {position} holds {len(tensor)} samples, argument 0 holds {len(data[0])}; "
                "every tensor must hold one entry a sample"
            )
        if not sound and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = ~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
            raise ValueError(
                f"{where}: argument {position} is not finite in {int(bad.sum())} of {len(tensor)} samples, "
                f"first in sample {int(bad.nonzero()[0, 0])}; remove them or fill them in"
            )
