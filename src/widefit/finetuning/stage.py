"""Some layers of a module, trained in sample space: who can move, what a step does to the outputs, and its system."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from widefit.finetuning.cut import Cut, cut
from widefit.finetuning.delta import LayerDelta, LowRankDelta
from widefit.finetuning.direct import Direct
from widefit.finetuning.jacobian import PassJacobian, SignalJacobian, StageJacobian
from widefit.gram.layer_kinds import LayerCall
from widefit.gram.layer_rows import LayerRows
from widefit.gram.recording import backward_signals, layer_part, record_calls


@dataclass(frozen=True)
class Point:
    """Where a stage is.

    Attributes
    ----------
    shifts
        Σ over steps of Σ_c g_ic δ_ic for every direct layer, shape (n, o): its weights are W₀ − shiftᵀ A.
    weights
        Parameters of the other layers, by name.
    ends
        Outputs of the direct layers, on training and on held-out rows.
    outputs, held_out
        Of the module, shape (n, k); None where they were not asked for.
    """

    shifts: tuple[Float[Tensor, "n _"], ...]
    weights: dict[str, Tensor]
    ends: tuple[tuple[Float[Tensor, "n _"], Float[Tensor, "v _"] | None], ...]
    outputs: Float[Tensor, "n k"] | None
    held_out: Float[Tensor, "v k"] | None


@dataclass(frozen=True)
class Stage:
    """A choice of layers and the rows they are trained on.

    Attributes
    ----------
    names
        Layers to adapt.
    rest
        What comes behind the direct layers.
    direct
        Adapted layers whose inputs are frozen.
    frozen, held_frozen
        What the rest takes beside their outputs, on training and held-out rows.
    given
        Parameters of all layers before any training, towards which a ridge pulls.
    weights
        Parameters of the layers in the rest when the stage began.
    """

    names: tuple[str, ...]
    rest: nn.Module
    direct: tuple[Direct, ...]
    frozen: list[Tensor]
    held_frozen: list[Tensor] | None
    given: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        names: Sequence[str],
        parts: Cut,
        inputs: tuple[Tensor, ...],
        held_out: tuple[Tensor, ...] | None,
        given: dict[str, Tensor],
        sparse: frozenset[str] = frozenset(),
        threads: int = 1,
    ) -> "Stage":
        """A stage of a module that is cut in parts, with what the module takes on training and held-out rows.

        Direct layers in `sparse` read their inputs as sparse rows, on so many threads.
        """
        reached, frozen = parts.values(inputs)
        held_reached, held_frozen = ([None] * len(reached), None) if held_out is None else parts.values(held_out)
        direct = tuple(
            Direct.of(name, model.get_submodule(name), values, held, name in sparse, threads)
            for name, values, held in zip(parts.direct, reached, held_reached, strict=True)
        )
        behind = [name for name in names if name not in parts.direct]
        return cls(tuple(names), parts.rest, direct, frozen, held_frozen, given, parameters_of(model, behind))

    def inside(
        self, names: Sequence[str], point: Point, sparse: frozenset[str] = frozenset(), threads: int = 1
    ) -> "Stage":
        """The stage of other layers of the rest, which begins where this one is, from what it has computed already."""
        rest = LowRankDelta(self._changes(point)).merged(self.rest)
        inputs = (*(end[0] for end in point.ends), *self.frozen)
        held_out = None
        if self.held_frozen is not None:
            held_out = (*(end[1] for end in point.ends if end[1] is not None), *self.held_frozen)
        parts = cut(rest, names, tuple(value[:2] for value in inputs))
        return Stage.of(rest, names, parts, inputs, held_out, self.given, sparse, threads)

    def changed(self, weights: dict[str, Tensor]) -> "Stage":
        """The same stage after another one has trained some of its layers."""
        return replace(self, weights={name: weights.get(name, value) for name, value in self.weights.items()})

    def on(self, rows: Tensor) -> "Stage":
        """The same stage on some of the training rows, without held-out ones."""
        direct = tuple(layer.on(rows) for layer in self.direct)
        return replace(self, direct=direct, frozen=[value[rows] for value in self.frozen], held_frozen=None)

    def start(self) -> Point:
        """Where it begins: the weights that the module has."""
        shifts = tuple(torch.zeros_like(layer.outputs[0]) for layer in self.direct)
        return self._evaluated(shifts, dict(self.weights), tuple(layer.outputs for layer in self.direct))

    def reached(self, shifts: tuple[Tensor, ...], weights: dict[str, Tensor]) -> Point:
        """The point of given coefficients and weights."""
        ends = tuple(layer.reached(shift) for layer, shift in zip(self.direct, shifts, strict=True))
        return self._evaluated(shifts, weights, ends)

    def is_readout(self, point: Point) -> bool:
        """Whether its only layer makes the outputs of the module."""
        assert point.outputs is not None
        return len(self.direct) == 1 and not self.weights and torch.equal(point.ends[0][0], point.outputs)

    def linearized(self, point: Point, root: Float[Tensor, "..."]) -> StageJacobian:
        """J of its layers at a point, rows weighted by the root."""
        if not self.weights:
            return PassJacobian(self.rest, [end[0] for end in point.ends], self.frozen, root)
        leaves = [end[0].detach().clone().requires_grad_() for end in point.ends]
        with torch.enable_grad():
            outputs, calls = record_calls(self.rest, point.weights, (*(leaf + 0 for leaf in leaves), *self.frozen))
        front = [LayerCall(layer.module, layer.inputs, leaf) for layer, leaf in zip(self.direct, leaves, strict=True)]
        every = [*front, *calls]
        signals = backward_signals(outputs, [call.output for call in every], root)
        names = [layer.name for layer in self.direct] + [self._name_of(call.module) for call in calls]
        parts = [_part(name, call, signal) for name, call, signal in zip(names, every, signals, strict=True)]
        return SignalJacobian(parts, len(self.direct))

    def moved(self, point: Point, at: StageJacobian, step: Float[Tensor, "n k"], keep: float) -> Point:
        """θ₀ + keep (θ − θ₀) − Jᵀ g for the step g."""
        mixed, count = at.vjp(step), len(self.direct)
        shifts = tuple(keep * old + new[:, 0] for old, new in zip(point.shifts, mixed[:count], strict=True))
        ends = tuple(layer.reached(shift) for layer, shift in zip(self.direct, shifts, strict=True))
        weights = dict(point.weights)
        for part, change in zip(at.behind, mixed[count:], strict=True):
            moves = [change.flatten(0, 1).T @ part.inputs.flatten(0, 1), change.sum(dim=(0, 1))]
            for name, move in zip(part.names, moves, strict=False):
                kept = weights[name] if keep == 1 else self.given[name] + keep * (weights[name] - self.given[name])
                weights[name] = kept - move
        return self._evaluated(shifts, weights, ends)

    def displacement(self, point: Point) -> float:
        """‖θ − θ₀‖²."""
        total = sum(layer.squared_norm(shift) for layer, shift in zip(self.direct, point.shifts, strict=True))
        return total + sum(
            float((value - self.given[name]).double().square().sum()) for name, value in point.weights.items()
        )

    def displaced_outputs(self, point: Point, at: StageJacobian) -> Float[Tensor, "n k"]:
        """J (θ − θ₀)."""
        assert point.outputs is not None
        total = torch.zeros_like(point.outputs)
        if self.direct:
            moved = [layer.overlapped(shift) for layer, shift in zip(self.direct, point.shifts, strict=True)]
            total -= at.jvp(moved)
        for part in at.behind:
            moves = {name: (point.weights[name] - self.given[name]).reshape(-1, 1) for name in part.names}
            total += part.matvec(moves).reshape(total.shape)
        return total

    def on_rows(self, point: Point, rows: Tensor) -> tuple["Stage", Point]:
        """The same stage and point on some of the training rows; it must have no direct layer."""
        assert not self.direct
        part = self.on(rows)
        return part, replace(point, outputs=part._outputs(point.weights, (), part.frozen))

    def at(self, weights: dict[str, Tensor]) -> Point:
        """The point of given weights, for a stage without direct layers; outputs on held-out rows alone."""
        return Point((), weights, (), None, self._held_outputs(weights, ()))

    def delta(self, point: Point) -> LowRankDelta:
        """What the stage has added to the weights it began with."""
        found = {layer.name: layer.delta(shift) for layer, shift in zip(self.direct, point.shifts, strict=True)}
        return LowRankDelta(found | self._changes(point))

    def _changes(self, point: Point) -> dict[str, LayerDelta]:
        """What it has added to the layers in the rest."""
        found = {}
        for name in dict.fromkeys(name.rpartition(".")[0] for name in self.weights):
            change = {
                kind: point.weights[f"{name}.{kind}"] - self.weights[f"{name}.{kind}"]
                for kind in ("weight", "bias")
                if f"{name}.{kind}" in self.weights
            }
            found[name] = LayerDelta(change["weight"], None, change.get("bias"))
        return found

    def _evaluated(self, shifts: tuple[Tensor, ...], weights: dict[str, Tensor], ends: tuple) -> Point:
        outputs = self._outputs(weights, [end[0] for end in ends], self.frozen)
        return Point(shifts, weights, ends, outputs, self._held_outputs(weights, ends))

    def _held_outputs(self, weights: dict[str, Tensor], ends: tuple) -> Tensor | None:
        if self.held_frozen is None:
            return None
        return self._outputs(weights, [end[1] for end in ends], self.held_frozen)

    def _outputs(self, weights: dict[str, Tensor], ends: Sequence[Tensor], frozen: list[Tensor]) -> Tensor:
        with torch.no_grad():
            found = functional_call(self.rest, weights, (*ends, *frozen))
        return found.reshape(len(found), -1)

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, candidate in self.rest.named_modules() if candidate is module)


def parameters_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Weights and biases of some layers by their names in the module."""
    return {
        f"{name}.{kind}": parameter.detach()
        for name in names
        for kind, parameter in model.get_submodule(name).named_parameters(recurse=False)
    }


def _part(name: str, call: LayerCall, signal: Float[Tensor, "n k *o"]) -> LayerRows:
    part = layer_part(call, signal, {kind: f"{name}.{kind}" for kind, _ in call.module.named_parameters(recurse=False)})
    assert part is not None
    return part
