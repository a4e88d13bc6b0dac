"""Linear layers whose change is P M Qᵀ with fixed bases: rows of J over M from inputs and signals of every position."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.finetuning.aim import Aim, Directions
from widefit.finetuning.batches import Batch
from widefit.finetuning.layer_delta import LayerDelta

# Random mixtures a row that bases are found from.
_MIXTURES = 2
# Part of the largest eigenvalue below which a direction is none.
_NOTHING = 1e-6
# Power of the eigenvalues that columns of the bases are divided by: a quarter raises weak directions half of the way to
# the strong ones, and steps find more of what the rows have in common. None is raised by more than this ratio's power.
_WHITENING = 0.25
_RAISED = 1e4


@dataclass(frozen=True)
class LayerCall:
    """Inputs of a layer for a batch, and the signals of each direction of a step.

    Attributes
    ----------
    inputs
        a, shape (n, T, i).
    signals
        δ of every direction, each of shape (n, T, o).
    """

    inputs: Float[Tensor, "n T i"]
    signals: list[Float[Tensor, "n T o"]]


@dataclass(frozen=True)
class ProjectedLayer:
    """W = W₀ + s P M Qᵀ.

    A row of J over M is s Σ_t (Pᵀ δ_t) ⊗ (Qᵀ a_t); with square P and Q the products of such rows are
    s² Σ_{t,u} ⟨δ_it, δ_ju⟩ ⟨a_it, a_ju⟩, those over the whole weight. (Of the form of LoRA-XS, arXiv 2405.17604, with
    bases from data and signals; the steps on it are this project's.)

    Attributes
    ----------
    name, module
        The layer.
    given
        W₀.
    left, right
        P, shape (o, p), and Q, shape (i, q), with orthogonal columns.
    scale
        s. With 1 / (root of the mean square of the norms of the rows) every layer has the same part in H.
    bias
        The given bias, where it is trained too: M is followed by s⁻¹ times its change.
    """

    name: str
    module: nn.Linear
    given: Float[Tensor, "o i"]
    left: Float[Tensor, "o p"]
    right: Float[Tensor, "i q"]
    scale: float = 1.0
    bias: Float[Tensor, " o"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of M."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def size(self) -> int:
        """Numbers in M, and in the bias."""
        return self.shape[0] * self.shape[1] + (0 if self.bias is None else len(self.bias))

    def rows(self, call: LayerCall, out: Float[Tensor, "nc m"] | None = None) -> Float[Tensor, "nc m"]:
        """Return rows of J; direction c of sample i has row i k + c.

        Parameters
        ----------
        call
            Of a batch.
        out
            Where they go: columns of the rows of several layers, perhaps.
        """
        samples, count = len(call.inputs), len(call.signals)
        if out is None:
            out = call.inputs.new_empty(samples * count, self.size)
        p, q = self.shape
        placed = out.view(samples, count, self.size)
        inputs = call.inputs @ (self.scale * self.right)
        for number, signal in enumerate(call.signals):
            torch.bmm((signal @ self.left).mT, inputs, out=placed[:, number, : p * q].unflatten(1, (p, q)))
            if self.bias is not None:
                torch.mul(signal.sum(1), self.scale, out=placed[:, number, p * q :])
        return out

    def balanced(self, rows: Float[Tensor, "nc m"]) -> "ProjectedLayer":
        """Return the same with the scale at which its rows, given as they are now, have the mean square one."""
        square = float(rows.square().sum(1).mean())
        return replace(self, scale=self.scale * square**-0.5 if square > 0 else 0.0)

    def put(self, change: Float[Tensor, " m"]) -> None:
        """Give the module the weights of M = `change`."""
        with torch.no_grad():
            self.module.weight.copy_(self.given + self._scaled(change) @ self.right.T)
            if self.bias is not None:
                self.module.bias.copy_(self.bias + self.scale * change[-len(self.bias) :])

    def delta(self, change: Float[Tensor, " m"]) -> LayerDelta:
        """Return s P M and Q, and the change of the bias."""
        bias = None if self.bias is None else self.scale * change[-len(self.bias) :]
        return LayerDelta(self._scaled(change), self.right, bias)

    def _scaled(self, change: Float[Tensor, " m"]) -> Float[Tensor, "o q"]:
        p, q = self.shape
        return self.scale * (self.left @ change[: p * q].view(p, q))


def whole(name: str, module: nn.Linear) -> ProjectedLayer:
    """Return a layer with all directions, and its bias."""
    weight = module.weight.detach().clone()
    outputs, inputs = weight.shape
    left, right = (torch.eye(size, dtype=weight.dtype, device=weight.device) for size in (outputs, inputs))
    bias = None if module.bias is None else module.bias.detach().clone()
    return ProjectedLayer(name, module, weight, left, right, bias=bias)


def projected(name: str, module: nn.Linear, calls: Sequence[LayerCall], rank: int, seed: int) -> ProjectedLayer:
    """Return a layer with the bases in which its gradients by single samples are largest.

    P spans the largest singular directions of G_i ω for the gradients G_i = Σ_t δ_t ⊗ a_t of a few rows and random ω,
    Q those of G_iᵀ ω (Halko, Martinsson and Tropp 2011, sample by sample), their columns longer where they are weaker.
    Layers up to the rank keep all directions.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = module.weight.shape

    def mixtures(size: int) -> Tensor:
        return torch.randn(size, _MIXTURES, generator=generator).to(module.weight)

    left, right = [], []
    for call in calls:
        for signal in call.signals:
            left.append((signal.mT @ (call.inputs @ mixtures(inputs))).transpose(1, 2).flatten(0, 1))
            right.append((call.inputs.mT @ (signal @ mixtures(outputs))).transpose(1, 2).flatten(0, 1))
    given = module.weight.detach().clone()
    return ProjectedLayer(name, module, given, _basis(torch.cat(left), rank), _basis(torch.cat(right), rank))


def _basis(samples: Float[Tensor, "s d"], rank: int) -> Float[Tensor, "d r"]:
    size = samples.shape[1]
    if size <= rank:
        return torch.eye(size, dtype=samples.dtype, device=samples.device)
    # Gradients of rows differ by orders of magnitude, and all of them are to be seen.
    lengths = torch.linalg.vector_norm(samples, dim=1, keepdim=True)
    unit = (samples / lengths.clamp_min(torch.finfo(samples.dtype).tiny)).double()
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    sizes = values[values > _NOTHING * values[-1]][-rank:]
    if not len(sizes):
        return torch.eye(size, 1, dtype=samples.dtype, device=samples.device)
    basis = unit.T @ vectors[:, -len(sizes) :] / sizes.sqrt()
    return (basis * (sizes[-1] / sizes).clamp_max(_RAISED).pow(_WHITENING)).to(samples)


def differentiated(
    model: nn.Module, modules: Mapping[str, nn.Linear], batch: Batch, aim: Aim
) -> tuple[Tensor, Directions, dict[str, LayerCall]]:
    """Return the outputs of a batch, the directions of its step, and inputs and signals of layers that were called.

    No derivative by weights is formed: a backward pass costs as much as a forward pass.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(_seeing(name, seen)))
        outputs = batch.call(model)
    directions = aim.directions(outputs, batch.targets)
    tensors = [output for _, output in seen.values()]
    signals: dict[str, list[Tensor]] = {name: [] for name in seen}
    for number, seed in enumerate(directions.seeds):
        more = number + 1 < len(directions.seeds)
        found = torch.autograd.grad(outputs, tensors, seed, retain_graph=more, allow_unused=True)
        for name, signal, output in zip(seen, found, tensors, strict=True):
            signals[name].append(_by_position(torch.zeros_like(output) if signal is None else signal))
    calls = {name: LayerCall(_by_position(given), signals[name]) for name, (given, _) in seen.items()}
    return outputs.detach(), directions, calls


def _seeing(name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def see(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        seen[name] = (args[0].detach(), output)
        return output.clone()  # a function that works in place must not overwrite what signals are asked for

    return see


def _by_position(values: Tensor) -> Float[Tensor, "n T _"]:
    return values.detach().reshape(len(values), -1, values.shape[-1])
