"""Who fires in a deep network, layer by layer, from sparse activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels import sparse
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn.deep import Deep
from widefit.nn.sparse_rows import SparseRows
from widefit.trackers.base import TrackerReport

# Neurons a dense product with the inputs is cut into, whatever the number of threads.
_NEURONS = 512


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
    """

    outputs: Float[np.ndarray, "n k"]
    activations: list[SparseRows]
    input_weights: list[Float[np.ndarray, "_ d"]]
    flips: int


@dataclass(frozen=True)
class Sparse:
    """Every layer from the columns of its active inputs alone."""

    name: str = "sparse"
    lazy: bool = False

    def start(self, network: Deep, inputs: Float[np.ndarray, "n d"], threads: int = 1) -> "DeepTracking":
        """Find out who fires in a network."""
        return DeepTracking(network, inputs, threads)


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

    Attributes
    ----------
    outputs
        f, shape (n, k), float64, at the committed weights.
    activations
        h_1, …, h_L there.
    """

    def __init__(self, network: Deep, inputs: Float[np.ndarray, "n d"], threads: int = 1):
        self._network, self._inputs, self._threads = network, inputs, threads
        wide = inputs.astype(np.float64)
        self._similarity = wide @ wide.T
        self._readouts = [readout.detach().numpy() for readout in network.readouts]
        self._tried = False
        self._passes, self._flips = 0, 0
        self._signals: list[SparseRows] | None = None
        for linear in network.low_rank():
            linear.release()  # the weights may have changed since it was packed
        self._weights = [weight.detach().numpy() for weight in network.input_weights]
        self.activations, self.outputs = self._forward(self._weights)

    @property
    def depth(self) -> int:
        return len(self._network.hidden_layer_sizes)

    def signals(self) -> list[SparseRows]:
        """Δ_1, …, Δ_L at the committed weights: derivatives of output c on sample i by z_l, in row i k + c."""
        if self._signals is None:
            self._take_back()
            self._signals = self._backward()
        return self._signals

    def similarities(self) -> list[Float[np.ndarray, "n n"]]:
        """Per layer the inner products of what it sees, (1 − γ) ⟨h_{l−1,i}, h_{l−1,j}⟩ + γ ⟨x_i, x_j⟩, in float64."""
        found = [self._similarity]
        for layer in range(1, self.depth):
            seen = self.activations[layer - 1].gram(self._threads)
            seen *= self._network.hidden_factor(layer) ** 2
            if layer < len(self._weights):
                seen += self._network.input_factor(layer) ** 2 * self._similarity
            found.append(seen)
        return found

    def propose(self, g: Float[np.ndarray, "n k"]) -> DeepTrial:
        """Find out what the step −Jᵀ g would do; trials before it are void."""
        steps = self._steps(g)
        self._take_back()
        weights = []
        for layer, weight in enumerate(self._weights):
            moved = weight.copy()
            self._add_inputs(moved, steps[layer], self._network.input_factor(layer))
            weights.append(moved)
        for layer, linear in enumerate(self._network.low_rank(), start=1):
            factor = np.full(steps[layer].rows, self._network.hidden_factor(layer))
            linear.append(steps[layer].scaled(factor), self.activations[layer - 1], self._threads, at_once=True)
        self._tried = True
        activations, outputs = self._forward(weights)
        flips = sum(new.flips(old) for new, old in zip(activations, self.activations, strict=True))
        return DeepTrial(outputs, activations, weights, flips)

    def commit(self, trial: DeepTrial) -> None:
        """Carry the latest trial out."""
        assert self._tried
        for weight, moved in zip(self._weights, trial.input_weights, strict=True):
            weight[...] = moved
        self.activations, self.outputs = trial.activations, trial.outputs
        self._flips += trial.flips
        self._signals, self._tried = None, False

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
            bytes_held=packed + sum(rows.nbytes for rows in self.activations),
        )

    def state(self) -> dict[str, np.ndarray]:
        """What goes on to the same bits beside the network: nothing, who fires is found anew."""
        return {}

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

    def _backward(self) -> list[SparseRows]:
        network, outputs = self._network, self._network.out_features
        signals: list[SparseRows] = []
        linear = [None, *network.low_rank()]
        above: SparseRows | None = None
        for layer in reversed(range(self.depth)):
            pattern = self.activations[layer].repeated(outputs)
            output = np.repeat(np.arange(pattern.rows) % outputs, np.diff(pattern.start))
            slope = self._readouts[layer][pattern.index, output]
            upper = linear[layer + 1] if layer + 1 < self.depth else None
            if upper is None or above is None:
                above = pattern.with_values(slope * slope.dtype.type(network.scales[layer]))
                # Where every neuron feeds one output, and those of an output stand together, only they have a signal.
                if _is_grouped(self._readouts[layer]):
                    above = _without_zeros(above)
            else:
                pulled = upper.pull_back(above, pattern, self._threads).value
                slope = slope + pulled * pulled.dtype.type(network.hidden_factor(layer + 1))
                above = pattern.with_values(slope * slope.dtype.type(network.scales[layer]))
            signals.append(above)
        return signals[::-1]

    def _steps(self, g: Float[np.ndarray, "n k"]) -> list[SparseRows]:
        """U_1, …, U_L: row i is −Σ_c g_ic δ_l,ic, what moves W_l along h_{l−1,i}."""
        moved = [signals.scaled(-g.reshape(-1)) for signals in self.signals()]
        pairs = zip(moved, self.activations, strict=True)
        return [_merged(rows, self._network.out_features, pattern) for rows, pattern in pairs]

    def _each(self, work: Callable[[int], None], items: range) -> None:
        for _ in ordered_map(work, items, self._threads):
            pass


def _is_grouped(readout: Float[np.ndarray, "m k"]) -> bool:
    feeds = readout != 0
    return bool(np.all(feeds.sum(axis=1) == 1) and np.all(np.diff(feeds.argmax(axis=1)) >= 0))


def _without_zeros(rows: SparseRows) -> SparseRows:
    kept = rows.value != 0
    passed = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    return SparseRows(rows.columns, passed[rows.start], rows.index[kept], rows.value[kept])


def _merged(rows: SparseRows, times: int, pattern: SparseRows) -> SparseRows:
    """Sums of `times` consecutive rows, which together have each entry of the pattern once, or each has all of them."""
    if rows.index.size != times * pattern.index.size:
        return SparseRows(rows.columns, rows.start[::times], rows.index, rows.value)
    counts = np.diff(pattern.start)
    offset = np.arange(pattern.index.size) - np.repeat(pattern.start[:-1], counts)
    value = np.zeros_like(pattern.value)
    for copy in range(times):
        value += rows.value[np.repeat(rows.start[copy:-1:times], counts) + offset]
    return pattern.with_values(value)
