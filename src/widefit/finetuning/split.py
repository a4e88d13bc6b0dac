"""A module split where its frozen part ends, so that the frozen part runs once."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Split:
    """A module as a frozen prefix and a suffix.

    Attributes
    ----------
    prefix
        Maps the inputs of the module to a tuple: inputs of the boundary layers, then other frozen values; None where
        `suffix` is the whole module.
    suffix
        Takes, in this order, the outputs of the boundary layers and the other frozen values; shares its parameters with
        the module, under the same names.
    boundary_layers
        Adapted layers whose inputs are frozen.
    """

    prefix: nn.Module | None
    suffix: nn.Module
    boundary_layers: tuple[str, ...]

    def frozen_values(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the inputs of the boundary layers, then the other frozen values."""
        if self.prefix is None:
            return inputs
        with torch.no_grad():
            return self.prefix(*inputs)


def split(
    model: nn.Module, adapted: Collection[str], inputs: tuple[Tensor, ...], *, with_boundary: bool = True
) -> Split:
    """Split a module behind everything that the parameters of the adapted layers do not reach.

    Parameters
    ----------
    model
        In evaluation mode.
    adapted
        Names of linear layers.
    inputs
        A few samples: the two parts are compared with the module on them.
    with_boundary
        Whether adapted layers with frozen inputs stand between the parts; otherwise they belong to the suffix.

    Returns
    -------
    The parts; the whole module as the suffix where torch.fx cannot trace it or the parts give something else.
    """
    whole = Split(None, model, ())
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # the module's own code runs on proxies, and may fail in any way
        return whole
    parts = _split_graph(model, graph, adapted, with_boundary)
    return parts if _agrees(parts, model, inputs) else whole


def _agrees(parts: Split, model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Compare the two parts with the module, on one row a sample."""
    count = len(parts.boundary_layers)
    with torch.no_grad():
        expected = model(*inputs)
        values = parts.frozen_values(inputs)
        rows = [isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(inputs[0]) for value in values]
        if not all(rows) or any(value.ndim != 2 for value in values[:count]):
            return False
        layers = [model.get_submodule(name) for name in parts.boundary_layers]
        outputs = [layer(value) for layer, value in zip(layers, values, strict=False)]
        return torch.equal(parts.suffix(*outputs, *values[count:]), expected)


def _split_graph(model: nn.Module, graph: fx.Graph, adapted: Collection[str], with_boundary: bool) -> Split:
    moving = _moving(graph, adapted)
    first = frontier(moving, adapted) if with_boundary else []
    inner = [node for node in moving if node not in first]
    frozen = [node for node in graph.nodes if node not in moving]
    crossing = border(frozen, inner)
    constants = [node for node in frozen if node.op == "get_attr"]
    prefix = extract(frozen, [], [*(node.all_input_nodes[0] for node in first), *crossing])
    suffix = extract([*constants, *inner], [*first, *crossing])
    return Split(_module(model, prefix), _module(model, suffix), tuple(str(node.target) for node in first))


def frontier(moving: Iterable[fx.Node], adapted: Collection[str]) -> list[fx.Node]:
    """Return the calls of adapted layers whose inputs are frozen."""
    reached = set(moving)
    return [node for node in moving if _is_adapted(node, adapted) and reached.isdisjoint(node.all_input_nodes)]


def border(frozen: Iterable[fx.Node], inner: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the frozen nodes, constants apart, that inner ones read."""
    read = {source for node in inner for source in node.all_input_nodes}
    return [node for node in frozen if node in read and node.op != "get_attr"]


def extract(nodes: Iterable[fx.Node], inputs: Iterable[fx.Node], outputs: Iterable[fx.Node] | None = None) -> fx.Graph:
    """Return a graph of some nodes, in their order.

    Parameters
    ----------
    nodes
        The nodes.
    inputs
        Nodes whose values the graph takes.
    outputs
        Nodes whose values it gives, as a tuple; None where its output is among the nodes.
    """
    part = fx.Graph()
    copies = {node: part.placeholder(f"value_{number}") for number, node in enumerate(inputs)}
    for node in nodes:
        copies[node] = part.node_copy(node, copies.__getitem__)
    if outputs is not None:
        part.output(tuple(copies[node] for node in outputs))
    return part


def _module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph as a module that shares the submodules it calls, without what it does not need."""
    made = fx.GraphModule(model, graph)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made


def _moving(graph: fx.Graph, adapted: Collection[str]) -> dict[fx.Node, None]:
    """Nodes that an adapted parameter reaches, and the output, in order."""
    moving: dict[fx.Node, None] = {}
    for node in graph.nodes:
        reached = any(source in moving for source in node.all_input_nodes)
        if node.op == "output" or _is_adapted(node, adapted) or reached:
            moving[node] = None
    return moving


def _is_adapted(node: fx.Node, adapted: Collection[str]) -> bool:
    return node.op == "call_module" and node.target in adapted
