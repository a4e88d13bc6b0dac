"""Linear layers of a module, and pairs that face each other across a ReLU, seen in the data as they flow."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ACTIVATIONS: dict[Any, str] = {
    functional.relu: "relu",
    functional.relu6: "relu6",
    functional.leaky_relu: "leaky_relu",
    functional.prelu: "prelu",
    functional.rrelu: "rrelu",
    functional.threshold: "threshold",
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    torch.clamp_min: "clamp_min",
    Tensor.clamp_min: "clamp_min",
}
# Functions that hand on the numbers of their first argument, in another shape or memory.
_CARRIERS = {
    functional.dropout,
    torch.flatten,
    torch.reshape,
    torch.squeeze,
    torch.unsqueeze,
    torch.clone,
    Tensor.flatten,
    Tensor.reshape,
    Tensor.view,
    Tensor.squeeze,
    Tensor.unsqueeze,
    Tensor.contiguous,
    Tensor.clone,
    Tensor.to,
    Tensor.float,
}


@dataclass(frozen=True)
class Block:
    """Linear → ReLU → Linear.

    Attributes
    ----------
    first, second
        Names of the two layers in the module.
    activation
        The member of the ReLU family between them.
    density
        Part of the second layer's inputs that are not zero, on the samples that were looked at.
    """

    first: str
    second: str
    activation: str
    density: float


@dataclass(frozen=True)
class Structure:
    """Findings of one forward pass.

    Attributes
    ----------
    layers
        Linear layers that can be adapted, in the order of their calls.
    readout
        The layer whose outputs are those of the module; None where something stands between.
    blocks
        Linear → ReLU → Linear.
    skipped
        Layers and pairs that are none of these, each with the reason.
    densities
        Part of a layer's inputs that are not zero.
    """

    layers: tuple[str, ...]
    readout: str | None
    blocks: tuple[Block, ...]
    skipped: dict[str, str]
    densities: dict[str, float]


@dataclass(frozen=True)
class _Source:
    """Origin of the numbers of a tensor: a linear layer, and the functions since."""

    layer: str
    activation: str | None = None
    obstacle: str | None = None


@dataclass
class _Observer(TorchFunctionMode):
    names: dict[int, str]  # of layers, by the ids of their parameters
    own_calls: Counter = field(default_factory=Counter)
    used_elsewhere: set[str] = field(default_factory=set)
    sources: dict[int, _Source] = field(default_factory=dict)
    calls: Counter = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    obstacles: dict[str, str] = field(default_factory=dict)
    densities: dict[str, float] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)  # so that no two tensors share an id

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [self.sources.get(id(value)) for value in _tensors(args)]
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, Tensor):
            return output
        self.alive.append(output)
        linear = func is functional.linear and id(args[1]) in self.names
        if not linear and func is not Tensor.to:  # `to` takes the type of another tensor
            self.used_elsewhere |= {self.names[id(value)] for value in _tensors(args) if id(value) in self.names}
        if linear:
            source = self._linear(self.names[id(args[1])], args[0], given[0])
        else:
            activation = _ACTIVATIONS.get(func)
            if func is functional.hardtanh and (kwargs or {}).get("min_val") == 0:  # as nn.ReLU6 calls it
                activation = "relu6"
            source = _followed(func, activation, given)
        if source is not None:
            self.sources[id(output)] = source
        return output

    def _linear(self, name: str, values: Tensor, before: _Source | None) -> _Source:
        self.calls[name] += 1
        if name not in self.order:
            self.order.append(name)
        self.densities[name] = float((values != 0).double().mean())
        if before is not None and before.obstacle is None:
            if before.activation is None:
                self.obstacles[f"{before.layer} → {name}"] = "no activation stands between them"
            else:
                self.blocks.append(Block(before.layer, name, before.activation, self.densities[name]))
        elif before is not None:
            self.obstacles[f"{before.layer} → {name}"] = (
                f"{before.obstacle} stands between them, which is not of the ReLU family"
            )
        return _Source(name)


def observe(model: nn.Module, X: Tensor) -> Structure:
    """Return the structure of a module, from one forward pass on a few samples.

    Works for `nn.Sequential`, custom modules and parts of other libraries alike: the tensors are followed, not the
    code (this project).
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    skipped = _unusable(model, linear)
    observer = _Observer({id(parameter): name for name, module in linear.items() for parameter in module.parameters()})
    with torch.no_grad(), observer, ExitStack() as hooks:
        for name, module in linear.items():
            hooks.enter_context(module.register_forward_pre_hook(_counter(observer.own_calls, name)))
        output = model(X)
    if not isinstance(output, Tensor):
        raise ValueError(f"model must return a tensor, got {type(output).__name__}: wrap it in a module that does")
    for name in linear:
        if name in skipped:
            continue
        if observer.calls[name] == 0:
            skipped[name] = "it takes no part in the forward pass, or is called in a way that cannot be followed"
        elif name in observer.used_elsewhere or observer.calls[name] != observer.own_calls[name]:
            skipped[name] = "its weights are used outside of its own forward pass"
        elif observer.calls[name] > 1:
            skipped[name] = f"it is called {observer.calls[name]} times"
    last = observer.sources.get(id(output))
    readout = last.layer if last is not None and last.activation is None and last.obstacle is None else None
    layers = tuple(name for name in observer.order if name not in skipped)
    return Structure(
        layers=layers,
        readout=readout if readout in layers else None,
        blocks=tuple(block for block in observer.blocks if {block.first, block.second} <= set(layers)),
        skipped=skipped | observer.obstacles,
        densities={name: observer.densities[name] for name in layers},
    )


def _counter(calls: Counter, name: str) -> Callable[..., None]:
    def count(*_: Any) -> None:
        calls[name] += 1

    return count


def _unusable(model: nn.Module, linear: dict[str, nn.Linear]) -> dict[str, str]:
    """Layers that cannot be adapted whatever the data, with the reason."""
    users = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    skipped = {}
    for name, module in linear.items():
        if type(module) is not nn.Linear:
            skipped[name] = f"it is a {type(module).__name__}, which may compute something else"
        elif any(users[id(parameter)] > 1 for parameter in module.parameters(recurse=False)):
            skipped[name] = "another layer shares its weights"
        elif not module.weight.is_floating_point() or module.weight.dtype not in (torch.float32, torch.float64):
            skipped[name] = f"its weights are {module.weight.dtype}, not float32 or float64"
    return skipped


def _followed(func: Any, activation: str | None, given: list[_Source | None]) -> _Source | None:
    """Origin of the result of a call."""
    known = [source for source in given if source is not None]
    if not known:
        return None
    source = known[0]
    if source.obstacle is None and activation is not None and source.activation is None:
        return _Source(source.layer, activation)
    if func in _CARRIERS:
        return source
    name = getattr(func, "__name__", type(func).__name__).strip("_")
    return _Source(source.layer, source.activation, source.obstacle or name)


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
    return found
