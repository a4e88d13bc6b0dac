"""Who fires in a deep network, layer by layer, from sparse activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from widefit.kernels import sparse
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn.deep import Deep
from widefit.nn.layer_factors import LayerFactors, along_step, combined
from widefit.nn.sparse_rows import SparseRows
from widefit.trackers.base import Displacement, TrackerReport, Update

# Neurons a dense product with the inputs is cut into, whatever the number of threads.
_NEURONS = 512
# What sparse rows are made of.
_PARTS = ("start", "index", "value")


@dataclass(frozen=True)
class DeepStep:
    """A term of W − W₀: scale · U_lᵀ V_l in every layer.

    Attributes
    ----------
    scale
        What later pulls towards W₀ have left of it.
    U
        Sparse n × m_l, layer by layer, without the factors of `Deep.input_factor` and `Deep.hidden_factor`.
    V
        h_1, …, h_{L−1} when the step was taken; beside them every layer sees X.
    """

    scale: float
    U: tuple[SparseRows, ...]
    V: tuple[SparseRows, ...]


@dataclass(frozen=True)
class DeepTrial:
    """What a step would do.

    Attributes
    ----------
    outputs
        f after it, shape (n, k), float64.
    activations
        h_1, …, h_L after it.
    input_weights
        A_l after it.
    flips
        Pairs (neuron, sample) of all layers that change between firing and not.
    steps, squared_norm
        W − W₀ after it; () and 0 where there is no ridge.
    """

    outputs: Float[np.ndarray, "n k"]
    activations: list[SparseRows]
    input_weights: list[Float[np.ndarray, "_ d"]]
    flips: int
    steps: tuple[DeepStep, ...]
    squared_norm: float


@dataclass(frozen=True)
class Sparse:
    """Every layer from the columns of its active inputs alone."""

    name: str = "sparse"
    lazy: bool = False

    def start(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        threads: int = 1,
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ) -> "DeepTracking":
        """Find out who fires in a network."""
        return DeepTracking(network, inputs, threads, anchored, state)


class DeepTracking:
    """A deep network, its samples, and who fires: forward, backward and steps from sparse factors.

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
        From `state` of an earlier run over the same network and inputs: go on from there.

    Attributes
    ----------
    outputs
        f, shape (n, k), float64, at the committed weights.
    activations
        h_1, …, h_L there.
    """

    def __init__(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        threads: int = 1,
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ):
        self._network, self._inputs, self._threads = network, inputs, threads
        wide = inputs.astype(np.float64)
        self._similarity = wide @ wide.T
        self._readouts = [readout.detach().numpy() for readout in network.readouts]
        self._tried = False
        self._passes, self._flips = 0, 0
        self._signals: list[np.ndarray] | None = None
        self._seen: list[np.ndarray] | None = None
        self._anchored, self._displacement = anchored, None
        self._steps, self._squared_norm = _restored(network, state or {})
        for linear in network.low_rank():
            linear.release()  # the weights may have changed since it was packed
        self._weights = [weight.detach().numpy() for weight in network.input_weights]
        self.activations, self.outputs = self._forward(self._weights)

    @property
    def depth(self) -> int:
        return len(self._network.hidden_layer_sizes)

    def signals(self) -> list[Float[np.ndarray, "_ k"]]:
        """Δ_1, …, Δ_L at the committed weights: derivatives of the outputs by z_l, at the entries of h_l."""
        if self._signals is None:
            self._take_back()
            self._signals = self._backward()
        return self._signals

    def similarities(self) -> list[Float[np.ndarray, "n n"]]:
        """Per layer the inner products of what it sees, (1 − γ) ⟨h_{l−1,i}, h_{l−1,j}⟩ + γ ⟨x_i, x_j⟩, in float64."""
        if self._seen is None:
            hidden = (rows.gram(self._threads) for rows in self.activations[:-1])
            self._seen = [self._similarity, *(self._mix(layer, seen) for layer, seen in enumerate(hidden, start=1))]
        return self._seen

    def _mix(self, layer: int, hidden: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        """Inner products of what a later layer sees from those of activations, in place."""
        hidden *= self._network.hidden_factor(layer) ** 2
        if layer < len(self._weights):
            hidden += self._network.input_factor(layer) ** 2 * self._similarity
        return hidden

    def factors(self) -> list[LayerFactors]:
        """What H is made of, layer by layer, at the committed weights."""
        layers = zip(self.activations, self.signals(), self.similarities(), strict=True)
        return [LayerFactors(*layer) for layer in layers]

    @property
    def displacement(self) -> Displacement | None:
        """Of the committed weights from W₀, outputs in one column; None unless the run is anchored."""
        if self._anchored and self._displacement is None:
            response = np.zeros(self.outputs.shape)
            for step in self._steps:
                self._add_response(step, response)
            self._displacement = Displacement(response.reshape(-1, 1), np.array([self._squared_norm]))
        return self._displacement

    def _add_response(self, step: DeepStep, response: Float[np.ndarray, "n k"]) -> None:
        """response += J (the step), from inner products of its factors with the present ones."""
        for layer, (pattern, signals) in enumerate(zip(self.activations, self.signals(), strict=True)):
            seen = self._similarity
            if layer > 0:
                seen = self._mix(layer, self.activations[layer - 1].products(step.V[layer - 1], self._threads))
            moved = step.U[layer]
            along_step(
                pattern, signals, seen, moved, step.scale * moved.value.astype(np.float64), response, self._threads
            )

    def propose(self, update: Update, image: Float[np.ndarray, " nk"] | None = None) -> DeepTrial:
        """Find out what an update would do, g and shrink of one column; trials before it are void.

        Parameters
        ----------
        update
            The step.
        image
            H g at the committed weights, for the length of W − W₀ after it; needed where the run is anchored.
        """
        g, shrink = np.ascontiguousarray(update.g[:, 0]), float(update.shrink[0])
        new = DeepStep(1.0, tuple(self._moves(g)), tuple(self.activations[:-1]))
        # W − shrink (W − W₀) − Jᵀ g, as one sparse product a layer.
        pulled = [(1.0, new), *((-shrink * step.scale, step) for step in self._steps if shrink > 0)]
        displacement = self.displacement
        self._take_back()
        weights = []
        for layer, weight in enumerate(self._weights):
            moved = weight.copy()
            for scale, step in pulled:
                self._add_inputs(moved, step.U[layer], scale * self._network.input_factor(layer))
            weights.append(moved)
        for layer, linear in enumerate(self._network.low_rank(), start=1):
            factor = self._network.hidden_factor(layer)
            U = [step.U[layer].scaled(np.full(step.U[layer].rows, scale * factor)) for scale, step in pulled]
            V = [step.V[layer - 1] for _, step in pulled]
            linear.append(SparseRows.stacked(U), SparseRows.stacked(V), self._threads, at_once=True)
        self._tried = True
        activations, outputs = self._forward(weights)
        flips = sum(after.flips(before) for after, before in zip(activations, self.activations, strict=True))
        steps, squared_norm = (), 0.0
        if displacement is not None and image is not None:
            left = [replace(step, scale=(1 - shrink) * step.scale) for step in self._steps if shrink != 1]
            steps = (*left, new)
            # ‖(1 − shrink) (W − W₀) − Jᵀ g‖², expanded in sample space.
            squared_norm = (1 - shrink) ** 2 * self._squared_norm
            squared_norm -= 2 * (1 - shrink) * float(g @ displacement.response[:, 0])
            squared_norm = max(0.0, squared_norm + float(g @ image))
        return DeepTrial(outputs, activations, weights, flips, steps, squared_norm)

    def commit(self, trial: DeepTrial) -> None:
        """Carry the latest trial out."""
        assert self._tried
        for weight, moved in zip(self._weights, trial.input_weights, strict=True):
            weight[...] = moved
        self.activations, self.outputs = trial.activations, trial.outputs
        self._steps, self._squared_norm = trial.steps, trial.squared_norm
        self._flips += trial.flips
        self._signals, self._seen, self._displacement, self._tried = None, None, None, False

    def settle(self) -> None:
        """Write the committed weights into the network."""
        self._take_back()
        for linear in self._network.low_rank():
            linear.fold(self._threads)

    def finish(self) -> None:
        """Leave the network with the committed weights, and without its packed copies."""
        self._take_back()
        for linear in self._network.low_rank():
            linear.release(self._threads)

    def report(self) -> TrackerReport:
        """Operations and memory so far: pre-activations of all layers, and what is held beside the network."""
        neurons = sum(self._network.hidden_layer_sizes)
        packed = sum(linear.held_bytes for linear in self._network.low_rank())
        return TrackerReport(
            tracker=Sparse.name,
            full_passes=self._passes,
            pairs_evaluated=self._passes * neurons * self._inputs.shape[0],
            flips=self._flips,
            firing_pairs=sum(rows.index.size for rows in self.activations),
            bytes_held=packed + sum(rows.nbytes for rows in self.activations) + self._step_bytes(),
        )

    def _step_bytes(self) -> int:
        return sum(rows.nbytes for step in self._steps for rows in (*step.U, *step.V))

    def state(self) -> dict[str, np.ndarray]:
        """What goes on to the same bits beside the network: W − W₀; who fires is found anew."""
        if not self._anchored:
            return {}
        found = {"squared_norm": np.array(self._squared_norm), "scales": np.array([step.scale for step in self._steps])}
        for number, step in enumerate(self._steps):
            for side, layers in (("U", step.U), ("V", step.V)):
                for layer, rows in enumerate(layers):
                    for name in _PARTS:
                        found[f"{number}.{side}.{layer}.{name}"] = getattr(rows, name)
        return found

    @contextmanager
    def materialized(self) -> Iterator[None]:
        """Inside, the network has the committed weights."""
        self.settle()
        yield

    def _take_back(self) -> None:
        if self._tried:
            for linear in self._network.low_rank():
                linear.undo(self._threads)
            self._tried = False

    def _forward(self, input_weights: list[np.ndarray]) -> tuple[list[SparseRows], np.ndarray]:
        """h_1, …, h_L and f with the given A_l and the W_l that the network has."""
        network, samples = self._network, self._inputs.shape[0]
        self._passes += 1
        activations: list[SparseRows] = []
        outputs = np.zeros((samples, network.out_features))
        hidden = [None, *network.low_rank()]
        for layer, linear in enumerate(hidden):
            if linear is None:
                z = np.zeros((samples, network.hidden_layer_sizes[0]), self._inputs.dtype)
            else:
                z = linear.query(activations[-1], self._threads)
                z *= z.dtype.type(network.hidden_factor(layer))
            if layer < len(input_weights):
                self._add_inputs_to(z, input_weights[layer], network.input_factor(layer))
            rows = SparseRows.above(z, network.thresholds[layer], network.scales[layer], self._threads)
            activations.append(rows)
            outputs += rows.times(self._readouts[layer])
        return activations, outputs

    def _add_inputs_to(self, z: np.ndarray, weight: np.ndarray, factor: float) -> None:
        """z += factor · X Aᵀ, in blocks of neurons."""
        scale = z.dtype.type(factor)

        def add(first: int) -> None:
            block = slice(first, first + _NEURONS)
            z[:, block] += scale * (self._inputs @ weight[block].T)

        with serial_blas():
            self._each(add, range(0, weight.shape[0], _NEURONS))

    def _add_inputs(self, weight: np.ndarray, step: SparseRows, factor: float) -> None:
        """A += factor · Uᵀ X for sparse U."""
        columns = step.scaled(np.full(step.rows, factor)).by_column

        def add(first: int) -> None:
            last = min(first + _NEURONS, weight.shape[0])
            sparse.add_dense_to_rows(weight, columns.start, columns.row, columns.value, self._inputs, first, last)

        self._each(add, range(0, weight.shape[0], _NEURONS))

    def _backward(self) -> list[np.ndarray]:
        """Δ_L, …, Δ_1 from the top, turned around."""
        network, signals = self._network, []
        upper = [*network.low_rank(), None]
        for layer in reversed(range(self.depth)):
            pattern, linear = self.activations[layer], upper[layer]
            slope = self._readouts[layer][pattern.index]
            if linear is not None:
                pulled = linear.pull_back(self.activations[layer + 1], signals[-1], pattern, self._threads)
                slope += pulled * pulled.dtype.type(network.hidden_factor(layer + 1))
            signals.append(slope * slope.dtype.type(network.scales[layer]))
        return signals[::-1]

    def _moves(self, g: Float[np.ndarray, " nk"]) -> Iterator[SparseRows]:
        """U_1, …, U_L: row i is −Σ_c g_ic δ_l,ic, what moves W_l along h_{l−1,i}."""
        weights = -g.reshape(self.outputs.shape)
        for signals, pattern in zip(self.signals(), self.activations, strict=True):
            moved = combined(pattern, signals, weights, self._threads)
            yield pattern.with_values(moved.astype(pattern.value.dtype))

    def _each(self, work: Callable[[int], None], items: range) -> None:
        for _ in ordered_map(work, items, self._threads):
            pass


def _restored(network: Deep, state: dict[str, np.ndarray]) -> tuple[tuple[DeepStep, ...], float]:
    """W − W₀ from the state of an earlier run."""
    sizes = network.hidden_layer_sizes

    def rows(number: int, side: str, layer: int) -> SparseRows:
        return SparseRows(sizes[layer], *(state[f"{number}.{side}.{layer}.{name}"] for name in _PARTS))

    steps = tuple(
        DeepStep(
            float(scale),
            tuple(rows(number, "U", layer) for layer in range(len(sizes))),
            tuple(rows(number, "V", layer) for layer in range(len(sizes) - 1)),
        )
        for number, scale in enumerate(state.get("scales", ()))
    )
    return steps, float(state.get("squared_norm", 0.0))
