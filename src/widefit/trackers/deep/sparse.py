"""Tracking of a deep network: who fires, layer by layer, from sparse activations."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from widefit.linalg.sparse_layer_rows import SparseLayerRows, along_step, combined
from widefit.linalg.sparse_rows import SparseRows
from widefit.nn.deep import Deep
from widefit.nn.sparse_passes import add_outer, backward, forward
from widefit.trackers.base import Displacement, TrackerReport, Update
from widefit.trackers.deep.base import DeepTracker, DeepTracking, DeepTrial
from widefit.trackers.deep.steps import DeepStep, StepSum


@dataclass(frozen=True)
class _After:
    """The network after a step that has not been carried out.

    Attributes
    ----------
    activations
        h_1, …, h_L.
    input_weights
        A_l.
    moved
        W − W₀; empty where there is no ridge.
    """

    activations: list[SparseRows]
    input_weights: list[Float[np.ndarray, "_ d"]]
    moved: StepSum


@dataclass(frozen=True)
class Sparse(DeepTracker):
    """Tracker of deep networks: every layer is computed from the columns of its active inputs alone."""

    name: str = "sparse"

    def start(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        threads: int = 1,
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ) -> "SparseTracking":
        return SparseTracking(network, inputs, threads, anchored, state)


class SparseTracking(DeepTracking):
    """Run over a deep network and its samples: forward, backward and steps from sparse factors.

    With p the part of the neurons that fire, in layers of m neurons a sample costs 2 p m² flops forward (the columns of
    active inputs), p² m² backward (active rows and columns) and p² m² for its part of a step.

    A step is tried by appending it to every W_l (`LowRankLinear`), and taken back to the bit when it is not kept.

    Parameters
    ----------
    network
        Trained in place.
    inputs
        X, contiguous, in the dtype of the network.
    threads
        Cores to use; no result depends on it.
    anchored
        Keep W − W₀, for updates that shrink it. It is held as the sparse factors of the steps taken: nothing of the
        size of W is copied, and one step is left of it whenever an update goes all the way back to W₀.
    state
        `state` of an earlier run over the same network and inputs, to continue from.

    Attributes
    ----------
    outputs
        f, shape (n, k), float64, at the committed weights.
    activations
        h_1, …, h_L at the committed weights.
    """

    wants_image: ClassVar[bool] = True

    def __init__(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        threads: int = 1,
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ):
        self._network = network
        self._inputs = inputs
        self._threads = threads
        wide = inputs.astype(np.float64)
        self._similarity = wide @ wide.T
        self._tried = False
        self._passes = 0
        self._flips = 0
        self._signals: list[np.ndarray] | None = None
        self._seen: list[np.ndarray] | None = None
        self._anchored, self._displacement = anchored, None
        self._moved = StepSum.restored(network, len(inputs), state or {})
        for linear in network.low_rank():
            linear.release()  # the weights may have changed since it was packed
        self._weights = [weight.detach().numpy() for weight in network.input_weights]
        self.activations, self.outputs = self._forward(self._weights)

    def signals(self) -> list[Float[np.ndarray, "_ k"]]:
        """Return Δ_1, …, Δ_L, at the entries of h_l."""
        if self._signals is None:
            self._take_back()
            self._signals = backward(self._network, self.activations, self._threads)
        return self._signals

    def similarities(self) -> list[Float[np.ndarray, "n n"]]:
        """Return (1 − γ) ⟨h_{l−1,i}, h_{l−1,j}⟩ + γ ⟨x_i, x_j⟩, products of the inputs of every layer, in float64."""
        if self._seen is None:
            hidden = (rows.gram(self._threads) for rows in self.activations[:-1])
            self._seen = [self._similarity, *(self._mix(layer, seen) for layer, seen in enumerate(hidden, start=1))]
        return self._seen

    def _mix(self, layer: int, hidden: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        """Turn inner products of activations into those of the inputs of a later layer, in place."""
        hidden *= self._network.hidden_factor(layer) ** 2
        if layer < len(self._weights):
            hidden += self._network.input_factor(layer) ** 2 * self._similarity
        return hidden

    def factors(self) -> list[SparseLayerRows]:
        layers = zip(self.activations, self.signals(), self.similarities(), strict=True)
        return [SparseLayerRows(*layer, threads=self._threads) for layer in layers]

    @property
    def displacement(self) -> Displacement | None:
        if self._anchored and self._displacement is None:
            response = np.zeros(self.outputs.shape)
            for step in self._moved.steps:
                self._add_response(step, response)
            self._displacement = Displacement(response.reshape(-1, 1), np.array([self._moved.squared_norm]))
        return self._displacement

    def _add_response(self, step: DeepStep, response: Float[np.ndarray, "n k"]) -> None:
        """Add J (the step) to `response`, from inner products of its factors with the present ones."""
        for layer, (pattern, signals) in enumerate(zip(self.activations, self.signals(), strict=True)):
            seen = self._similarity
            if layer > 0:
                seen = self._mix(layer, self.activations[layer - 1].products(step.V[layer - 1], self._threads))
            moved = step.U[layer]
            along_step(
                pattern, signals, seen, moved, step.scale * moved.value.astype(np.float64), response, self._threads
            )

    def propose(self, update: Update, image: Float[np.ndarray, " nk"] | None = None) -> DeepTrial:
        g = np.ascontiguousarray(update.g[:, 0])
        shrink = float(update.shrink[0])
        new = DeepStep(1.0, tuple(self._moves(g)), tuple(self.activations[:-1]))
        # W − shrink (W − W₀) − Jᵀ g, as one sparse product a layer.
        pulled = [(1.0, new), *((-shrink * step.scale, step) for step in self._moved.steps if shrink > 0)]
        displacement = self.displacement
        self._take_back()
        weights = self._moved_input_weights(pulled)
        self._append(pulled)
        self._tried = True
        activations, outputs = self._forward(weights)
        flips = sum(after.flips(before) for after, before in zip(activations, self.activations, strict=True))
        moved = StepSum()
        if displacement is not None and image is not None:
            moved = self._moved.after(new, shrink, g, displacement.response[:, 0], image)
        return DeepTrial(outputs, flips, moved.squared_norm, _After(activations, weights, moved))

    def _moved_input_weights(self, steps: list[tuple[float, DeepStep]]) -> list[Float[np.ndarray, "_ d"]]:
        """Return A_l after steps with given scales."""
        weights = []
        for layer, weight in enumerate(self._weights):
            changed = weight.copy()
            for scale, step in steps:
                factor = scale * self._network.input_factor(layer)
                add_outer(changed, step.U[layer], self._inputs, factor, self._threads)
            weights.append(changed)
        return weights

    def _append(self, steps: list[tuple[float, DeepStep]]) -> None:
        """Append steps with given scales to every W_l."""
        for layer, linear in enumerate(self._network.low_rank(), start=1):
            factor = self._network.hidden_factor(layer)
            U = [step.U[layer].scaled(np.full(step.U[layer].rows, scale * factor)) for scale, step in steps]
            V = [step.V[layer - 1] for _, step in steps]
            linear.append(SparseRows.stacked(U), SparseRows.stacked(V), self._threads, at_once=True)

    def commit(self, trial: DeepTrial) -> None:
        assert self._tried
        after: _After = trial.payload
        for weight, moved in zip(self._weights, after.input_weights, strict=True):
            weight[...] = moved
        self.activations = after.activations
        self.outputs = trial.outputs
        self._moved = after.moved
        self._flips += trial.flips
        self._signals = None
        self._seen = None
        self._displacement = None
        self._tried = False

    def publish(self) -> None:
        self._take_back()
        for linear in self._network.low_rank():
            linear.fold(self._threads)

    def finish(self) -> None:
        self._take_back()
        for linear in self._network.low_rank():
            linear.release(self._threads)

    def report(self) -> TrackerReport:
        neurons = sum(self._network.hidden_layer_sizes)
        packed = sum(linear.held_bytes for linear in self._network.low_rank())
        return TrackerReport(
            tracker=Sparse.name,
            full_passes=self._passes,
            pairs_evaluated=self._passes * neurons * self._inputs.shape[0],
            flips=self._flips,
            firing_pairs=sum(rows.index.size for rows in self.activations),
            bytes_held=packed + sum(rows.nbytes for rows in self.activations) + self._moved.nbytes,
        )

    def state(self) -> dict[str, np.ndarray]:
        """Return W − W₀, with which a run over the same network continues to the same bits; who fires is found anew."""
        return self._moved.state() if self._anchored else {}

    def _take_back(self) -> None:
        """Undo the trial in the network, to the bit."""
        if self._tried:
            for linear in self._network.low_rank():
                linear.undo(self._threads)
            self._tried = False

    def _forward(self, input_weights: list[np.ndarray]) -> tuple[list[SparseRows], np.ndarray]:
        """Return h_1, …, h_L and f with the given A_l and the W_l that the network has."""
        self._passes += 1
        return forward(self._network, input_weights, self._inputs, self._threads)

    def _moves(self, g: Float[np.ndarray, " nk"]) -> Iterator[SparseRows]:
        """Yield U_1, …, U_L: row i is −Σ_c g_ic δ_l,ic, the coefficients of the move of W_l along h_{l−1,i}."""
        weights = -g.reshape(self.outputs.shape)
        for signals, pattern in zip(self.signals(), self.activations, strict=True):
            moved = combined(pattern, signals, weights, self._threads)
            yield pattern.with_values(moved.astype(pattern.value.dtype))
