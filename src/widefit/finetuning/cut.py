"""A module cut where its frozen part ends, so that the frozen part runs once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Cut:
    """A module as a frozen start and the rest.

    Attributes
    ----------
    start
        Maps the inputs of the module to a tuple: inputs of the direct layers, then frozen values; None: `rest` is the
        whole module.
    rest
        Takes, in this order, the outputs of the direct layers and the frozen values; shares its parameters with the
        module, under the same names.
    direct
        Adapted layers whose inputs are frozen.
    """

    start: nn.Module | None
    rest: nn.Module
    direct: tuple[str, ...]

    def values(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of the direct layers, and the frozen values."""
        if self.start is None:
            return [], list(inputs)
        with torch.no_grad():
            found = self.start(*inputs)
        return list(found[: len(self.direct)]), list(found[len(self.direct) :])


def cut(model: nn.Module, adapted: Iterable[str], inputs: tuple[Tensor, ...], *, direct: bool = True) -> Cut:
    """Cut a module behind everything that the parameters of the adapted layers do not reach.

    Parameters
    ----------
    model
        In evaluation mode.
    adapted
        Names of linear layers.
    inputs
        A few samples: the two parts are compared with the module on them.
    direct
        Whether adapted layers with frozen inputs go to the start, with their outputs handed to the rest.

    Returns
    -------
    The cut; the whole module as the rest where torch.fx cannot trace it or the parts give something else.
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # the module's own code runs on proxies, and may fail in any way
        return Cut(None, model, ())
    found = _cut_graph(model, graph, set(adapted), direct)
    return found if _agrees(found, model, inputs) else Cut(None, model, ())


def _agrees(found: Cut, model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the two parts give what the module gives, from one row a sample."""
    with torch.no_grad():
        expected, (reached, frozen) = model(*inputs), found.values(inputs)
        rows = [isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(inputs[0]) for value in frozen]
        if not all(rows) or any(value.ndim != 2 for value in reached):
            return False
        ends = [model.get_submodule(name)(value) for name, value in zip(found.direct, reached, strict=True)]
        return torch.equal(found.rest(*ends, *frozen), expected)


def _cut_graph(model: nn.Module, graph: fx.Graph, adapted: set[str], direct: bool) -> Cut:
    moving = _moving(graph, adapted)
    fronts = [node for node in graph.nodes if node in moving and _is_adapted(node, adapted)]
    fronts = [node for node in fronts if direct and not moving & set(node.all_input_nodes)]
    border = [
        node
        for node in graph.nodes
        if node not in moving
        and node.op != "get_attr"
        and any(user in moving and user not in fronts for user in node.users)
    ]
    sources = [node.args[0] for node in fronts]
    start, rest = fx.Graph(), fx.Graph()
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node not in moving:
            known[node] = start.node_copy(node, known.__getitem__)
    start.output(tuple(known[node] for node in [*sources, *border]))
    inner: dict[fx.Node, Any] = {node: rest.placeholder(f"value_{i}") for i, node in enumerate([*fronts, *border])}
    for node in graph.nodes:
        if (node in moving and node not in fronts) or node.op == "get_attr":
            inner[node] = rest.node_copy(node, inner.__getitem__)
    names = tuple(str(node.target) for node in fronts)
    return Cut(_module(model, start), _module(model, rest), names)


def _module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph as a module that shares the submodules it calls, without what it does not need."""
    made = fx.GraphModule(model, graph)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made


def _moving(graph: fx.Graph, adapted: set[str]) -> set[fx.Node]:
    """Nodes that an adapted parameter reaches, and the output."""
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "output" or _is_adapted(node, adapted) or moving & set(node.all_input_nodes):
            moving.add(node)
    return moving


def _is_adapted(node: fx.Node, adapted: set[str]) -> bool:
    return node.op == "call_module" and node.target in adapted
