"""Some layers of a module, the rows they are trained on, and their weights at a point of the training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.frozen_input_layer import FrozenInputLayer
from widefit.finetuning.jacobian import PassJacobian, SignalJacobian, StageJacobian
from widefit.finetuning.layer_delta import LayerDelta
from widefit.finetuning.rows import Rows, Values
from widefit.finetuning.split import split
from widefit.gram.layer_kinds import LayerCall
from widefit.gram.layer_rows import LayerRows
from widefit.gram.recording import backward_signals, layer_part, record_calls


@dataclass(frozen=True)
class Products:
    """Choice between dense and sparse products with the inputs of a layer.

    Attributes
    ----------
    sparse
        Layers whose inputs are read as sparse rows.
    threads
        Cores for that.
    """

    sparse: frozenset[str] = frozenset()
    threads: int = 1


@dataclass(frozen=True)
class Point:
    """Weights of a stage, and the outputs that they give.

    Attributes
    ----------
    sample_coefficients
        S of every boundary layer, shape (n, o), the sum over steps of Σ_c g_ic δ_ic: its weights are W₀ − Sᵀ A.
    weights
        Parameters of the layers in the suffix, by name.
    layer_outputs
        Outputs of the boundary layers.
    outputs, held_out
        Of the module, shape (n, k); None where they were not asked for.
    """

    sample_coefficients: tuple[Float[Tensor, "n _"], ...]
    weights: dict[str, Tensor]
    layer_outputs: Rows
    outputs: Float[Tensor, "n k"] | None
    held_out: Float[Tensor, "v k"] | None


@dataclass(frozen=True)
class Stage:
    """Layers that are trained together, and the rows they are trained on.

    Attributes
    ----------
    names
        Layers to adapt.
    suffix
        The module behind the boundary layers.
    boundary
        Adapted layers whose inputs are frozen.
    frozen
        Other values that the suffix takes.
    given
        Parameters of all layers before any training, towards which a ridge pulls.
    weights
        Parameters of the adapted layers in the suffix when the stage began.
    products
        How products with the inputs of boundary layers are computed.
    """

    names: tuple[str, ...]
    suffix: nn.Module
    boundary: tuple[FrozenInputLayer, ...]
    frozen: Rows
    given: dict[str, Tensor]
    weights: dict[str, Tensor]
    products: Products

    @classmethod
    def of(
        cls,
        model: nn.Module,
        names: Sequence[str],
        inputs: Rows,
        given: dict[str, Tensor],
        products: Products,
        *,
        with_boundary: bool = True,
    ) -> "Stage":
        """Return the stage of some layers of a module, from what the module takes.

        `with_boundary` is False where the layers must all be in the suffix: in steps on some of the rows.
        """
        few = tuple(value[:2] for value in inputs.training)
        parts = split(model, names, few, with_boundary=with_boundary)
        values = inputs.map(parts.frozen_values)
        boundary = []
        for number, name in enumerate(parts.boundary_layers):
            held_inputs = None if values.held_out is None else values.held_out[number]
            threads = products.threads if name in products.sparse else None
            layer = model.get_submodule(name)
            boundary.append(FrozenInputLayer.of(name, layer, values.training[number], held_inputs, threads))
        frozen = values.map(lambda each: each[len(boundary) :])
        weights = parameters_of(model, [name for name in names if name not in parts.boundary_layers])
        return cls(tuple(names), parts.suffix, tuple(boundary), frozen, given, weights, products)

    def following(self, names: Sequence[str], point: Point) -> "Stage":
        """Return the stage of other layers of the suffix that begins at a point of this one."""
        suffix = LowRankDelta(self._suffix_changes(point)).merged(self.suffix)
        return Stage.of(suffix, names, point.layer_outputs.followed_by(self.frozen), self.given, self.products)

    def starting_at(self, weights: dict[str, Tensor]) -> "Stage":
        """Return the same stage after another one has trained some of its layers."""
        return replace(self, weights={name: weights.get(name, value) for name, value in self.weights.items()})

    def subset(self, rows: Tensor) -> "Stage":
        """Return the same stage on some of the training rows, without held-out ones."""
        boundary = tuple(layer.subset(rows) for layer in self.boundary)
        return replace(self, boundary=boundary, frozen=self.frozen.subset(rows))

    def part(self, rows: Tensor, layer_outputs: Sequence[Tensor]) -> "Stage":
        """Return the stage on some of the training rows that begins at other outputs of its boundary layers there."""
        part = self.subset(rows)
        boundary = tuple(replace(layer, outputs=own) for layer, own in zip(part.boundary, layer_outputs, strict=True))
        return replace(part, boundary=boundary)

    def minibatch(self, point: Point, rows: Tensor) -> tuple["Stage", Point]:
        """Return the same stage and point on some of the training rows; the stage must have no boundary layer."""
        assert not self.boundary
        part = self.subset(rows)
        return part, replace(point, outputs=part._outputs(point.weights, (), part.frozen.training))

    def start(self) -> Point:
        """Return the point of the weights that the module has."""
        coefficients = tuple(torch.zeros_like(layer.outputs) for layer in self.boundary)
        held_outputs = tuple(layer.held_outputs for layer in self.boundary if layer.held_outputs is not None)
        outputs = Rows(
            tuple(layer.outputs for layer in self.boundary), None if self.frozen.held_out is None else held_outputs
        )
        return self._evaluated(coefficients, dict(self.weights), outputs)

    def point(self, coefficients: Sequence[Tensor], weights: dict[str, Tensor]) -> Point:
        """Return the point of given coefficients and weights."""
        pairs = list(zip(self.boundary, coefficients, strict=True))
        outputs = tuple(layer.moved_outputs(each) for layer, each in pairs)
        held_out = None
        if self.frozen.held_out is not None:
            moved = [layer.moved_held_outputs(each) for layer, each in pairs]
            held_out = tuple(values for values in moved if values is not None)
        return self._evaluated(tuple(coefficients), weights, Rows(outputs, held_out))

    def held_out_point(self, weights: dict[str, Tensor]) -> Point:
        """Return the point of given weights without boundary layers, evaluated on held-out rows alone."""
        none = self.frozen.map(lambda _: ())
        return Point((), weights, none, None, self._held_outputs(weights, ()))

    def advance(self, point: Point, jacobian: StageJacobian, step: Float[Tensor, "n k"], keep: float) -> Point:
        """Return θ₀ + keep (θ − θ₀) − Jᵀ g for the step g."""
        moves = jacobian.vjp(step)
        count = len(self.boundary)
        coefficients = [
            keep * old + new[:, 0] for old, new in zip(point.sample_coefficients, moves[:count], strict=True)
        ]
        weights = dict(point.weights)
        for layer, move in zip(jacobian.suffix_layers, moves[count:], strict=True):
            changes = [move.flatten(0, 1).T @ layer.inputs.flatten(0, 1), move.sum(dim=(0, 1))]
            for name, change in zip(layer.names, changes, strict=False):
                kept = weights[name] if keep == 1 else self.given[name] + keep * (weights[name] - self.given[name])
                weights[name] = kept - change
        return self.point(coefficients, weights)

    def is_readout(self, point: Point) -> bool:
        """Return whether its only layer makes the outputs of the module."""
        assert point.outputs is not None
        alone = len(self.boundary) == 1 and not self.weights
        return alone and torch.equal(point.layer_outputs.training[0], point.outputs)

    def jacobian(self, point: Point, root: Float[Tensor, "..."]) -> StageJacobian:
        """Return J of its layers at a point, rows weighted by the root."""
        layer_outputs, frozen = point.layer_outputs.training, self.frozen.training
        if not self.weights:
            return PassJacobian(self.suffix, layer_outputs, frozen, root)
        leaves = [values.detach().clone().requires_grad_() for values in layer_outputs]
        with torch.enable_grad():
            outputs, calls = record_calls(self.suffix, point.weights, (*(leaf + 0 for leaf in leaves), *frozen))
        modules = {module: name for name, module in self.suffix.named_modules()}
        names = [layer.name for layer in self.boundary] + [modules[call.module] for call in calls]
        first = [LayerCall(layer.module, layer.inputs, leaf) for layer, leaf in zip(self.boundary, leaves, strict=True)]
        every = [*first, *calls]
        signals = backward_signals(outputs, [call.output for call in every], root)
        layers = [_layer_rows(name, call, signal) for name, call, signal in zip(names, every, signals, strict=True)]
        return SignalJacobian(layers, len(first))

    def squared_displacement(self, point: Point) -> float:
        """Return ‖θ − θ₀‖²."""
        pairs = zip(self.boundary, point.sample_coefficients, strict=True)
        total = sum(layer.squared_norm(coefficients) for layer, coefficients in pairs)
        return total + sum(
            float((value - self.given[name]).double().square().sum()) for name, value in point.weights.items()
        )

    def response(self, point: Point, jacobian: StageJacobian) -> Float[Tensor, "n k"]:
        """Return J (θ − θ₀)."""
        assert point.outputs is not None
        total = torch.zeros_like(point.outputs)
        if self.boundary:
            pairs = zip(self.boundary, point.sample_coefficients, strict=True)
            total -= jacobian.jvp([layer.response(coefficients) for layer, coefficients in pairs])
        for layer in jacobian.suffix_layers:
            moves = {name: (point.weights[name] - self.given[name]).reshape(-1, 1) for name in layer.names}
            total += layer.matvec(moves).reshape(total.shape)
        return total

    def delta(self, point: Point) -> LowRankDelta:
        """Return the change of the weights since the stage began."""
        pairs = zip(self.boundary, point.sample_coefficients, strict=True)
        found = {layer.name: layer.delta(coefficients) for layer, coefficients in pairs}
        return LowRankDelta(found | self._suffix_changes(point))

    def _suffix_changes(self, point: Point) -> dict[str, LayerDelta]:
        """Changes of the layers in the suffix."""
        changes = {name: point.weights[name] - value for name, value in self.weights.items()}
        layers = dict.fromkeys(name.rpartition(".")[0] for name in changes)
        return {name: LayerDelta(changes[f"{name}.weight"], None, changes.get(f"{name}.bias")) for name in layers}

    def _evaluated(self, coefficients: tuple[Tensor, ...], weights: dict[str, Tensor], layer_outputs: Rows) -> Point:
        outputs = self._outputs(weights, layer_outputs.training, self.frozen.training)
        held_out = self._held_outputs(weights, layer_outputs.held_out or ())
        return Point(coefficients, weights, layer_outputs, outputs, held_out)

    def _held_outputs(self, weights: dict[str, Tensor], layer_outputs: Values) -> Tensor | None:
        if self.frozen.held_out is None:
            return None
        return self._outputs(weights, layer_outputs, self.frozen.held_out)

    def _outputs(self, weights: dict[str, Tensor], layer_outputs: Values, frozen: Values) -> Tensor:
        with torch.no_grad():
            found = functional_call(self.suffix, weights, (*layer_outputs, *frozen))
        return found.reshape(len(found), -1)


def parameters_of(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return weights and biases of some layers by their names in the module."""
    return {
        f"{name}.{kind}": parameter.detach()
        for name in names
        for kind, parameter in model.get_submodule(name).named_parameters(recurse=False)
    }


def _layer_rows(name: str, call: LayerCall, signal: Float[Tensor, "n k *o"]) -> LayerRows:
    layer = layer_part(
        call, signal, {kind: f"{name}.{kind}" for kind, _ in call.module.named_parameters(recurse=False)}
    )
    assert layer is not None
    return layer
