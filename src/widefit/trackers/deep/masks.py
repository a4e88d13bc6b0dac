"""Torch tracker of deep networks: activations and signals on the device of the network, by products in blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from widefit.linalg.masked_layer_rows import MaskedLayerRows
from widefit.nn.deep import Deep
from widefit.records import array
from widefit.trackers.base import Displacement, TrackerReport, Update
from widefit.trackers.deep.base import DeepTracker, DeepTracking, DeepTrial
from widefit.trackers.masks import block_numbers


@dataclass(frozen=True)
class DeepTorch(DeepTracker):
    """Layers as dense products in blocks of torch, on the device that the network is on (this project).

    Every pre-activation is computed anew in the dtype of the weights and compared with its threshold; flips are the
    pairs whose comparison has changed. A trial costs 4 n m² flops a layer of m neurons, one transfer to the host, and
    no copy of the weights: those of a block are moved as it is multiplied, and moved again, to the same bits, when the
    trial is kept.

    The plan takes it where the network is on an accelerator: the sparse tracker works on the CPU.
    """

    name: str = "torch"

    def start(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        threads: int = 1,
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ) -> "DeepMaskTracking":
        return DeepMaskTracking(network, inputs, anchored, state)


@dataclass(frozen=True)
class _Weights:
    """A matrix of a layer.

    Attributes
    ----------
    matrix
        A_l or W_l, moved in place.
    anchor
        The same before training; None where the run is not anchored.
    factor
        Of what it makes of the layer below.
    hidden
        Whether it sees the activations of that layer; otherwise it sees the inputs.
    """

    matrix: Float[Tensor, "m below"]
    anchor: Float[Tensor, "m below"] | None
    factor: float
    hidden: bool


@dataclass(frozen=True)
class Layers:
    """Activations of all layers, and who fires.

    Attributes
    ----------
    activations
        h_1, …, h_L.
    fires
        Which neurons fire on which samples, layer by layer.
    firing
        Number of such pairs.
    """

    activations: list[Float[Tensor, "n _"]]
    fires: list[Bool[Tensor, "n _"]]
    firing: int


class DeepMaskTracking(DeepTracking):
    """Run of the torch tracker; see `DeepTorch`.

    With a ridge, W₀ is kept on the device.

    Parameters
    ----------
    network
        Trained in place, where it is.
    inputs
        X, in the dtype of the network.
    anchored, state
        See `DeepTracker.start`.
    """

    def __init__(
        self,
        network: Deep,
        inputs: Float[np.ndarray, "n d"],
        anchored: bool = False,
        state: dict[str, np.ndarray] | None = None,
    ):
        for linear in network.low_rank():
            linear.release()
        self._network = network
        device = network.input_weights[0].device
        self._inputs = torch.from_numpy(inputs).to(device)
        wide = self._inputs.double()
        self._similarity = wide @ wide.T
        self._readouts = [readout.detach() for readout in network.readouts]
        self._weights = _weights_of(network, (state or {}) if anchored else None)
        self._anchored = anchored
        self._passes = 0
        self._flips = 0
        self._before: Layers | None = None
        self._adopt(self._look(None))

    def signals(self) -> list[Float[Tensor, "n k _"]]:
        if self._signals is None:
            self._signals = self._backward()
        return self._signals

    def factors(self) -> list[MaskedLayerRows]:
        numbers = block_numbers(self._inputs.device.type)
        pairs = zip(self.signals(), self.similarities(), strict=True)
        return [MaskedLayerRows(signals, seen, numbers) for signals, seen in pairs]

    def similarities(self) -> list[Float[Tensor, "n n"]]:
        """Return (1 − γ) ⟨h_{l−1,i}, h_{l−1,j}⟩ + γ ⟨x_i, x_j⟩, products of the inputs of every layer, in float64."""
        if self._seen is None:
            self._seen = [self._similarity, *(self._between(layer) for layer in range(1, len(self._readouts)))]
        return self._seen

    @property
    def displacement(self) -> Displacement | None:
        if self._anchored and self._displacement is None:
            response = self._response().cpu().numpy()
            self._displacement = Displacement(response.reshape(-1, 1), np.array([self._squared_norm]))
        return self._displacement

    def propose(self, update: Update, image: Float[np.ndarray, " nk"] | None = None) -> DeepTrial:
        return self._look(update)

    def commit(self, trial: DeepTrial) -> None:
        update, _ = trial.payload
        g = self._on_device(update)
        for layer, rows in self._blocks():
            moves = self._moves(layer, rows, g)
            for weights in self._weights[layer]:
                weights.matrix[rows] = self._moved(weights, layer, rows, moves, float(update.shrink[0]))
        self._adopt(trial)

    def publish(self) -> None:
        """Every commit has moved the weights."""

    def finish(self) -> None:
        """Every commit has moved the weights, and nothing is kept in the network."""

    def report(self) -> TrackerReport:
        neurons, samples = sum(self._network.hidden_layer_sizes), len(self._inputs)
        kept = [own.anchor for weights in self._weights for own in weights if own.anchor is not None]
        held = [*self.layers.activations, *self.layers.fires, *kept]
        return TrackerReport(
            tracker=DeepTorch.name,
            full_passes=self._passes,
            pairs_evaluated=self._passes * neurons * samples,
            flips=self._flips,
            firing_pairs=self.layers.firing,
            bytes_held=sum(tensor.nbytes for tensor in held),
        )

    def state(self) -> dict[str, np.ndarray]:
        """Return W₀, with which a run over the same network continues to the same bits; who fires is found anew."""
        return {
            _anchor_name(layer, own.hidden): own.anchor.cpu().numpy()
            for layer, weights in enumerate(self._weights)
            for own in weights
            if own.anchor is not None
        }

    @property
    def layers(self) -> Layers:
        """Activations at the committed weights, and who fires."""
        assert self._before is not None
        return self._before

    def _look(self, update: Update | None) -> DeepTrial:
        """Find who fires after an update, and what it makes of the outputs; None: at the committed weights."""
        g = None if update is None else self._on_device(update)
        shrink = 0.0 if update is None else float(update.shrink[0])
        samples, device = len(self._inputs), self._inputs.device
        outputs = torch.zeros(samples, self._network.out_features, dtype=torch.float64, device=device)
        # Flips, pairs that fire and ‖W − W₀‖²; counts are exact in float64.
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        found = Layers([], [], 0)
        for layer, readout in enumerate(self._readouts):
            h = self._inputs.new_empty(samples, len(readout))
            fires = torch.empty(h.shape, dtype=torch.bool, device=device)
            for rows in self._blocks_of(layer):
                moves = None if g is None else self._moves(layer, rows, g)
                z = torch.zeros(h[:, rows].shape, dtype=h.dtype, device=device)
                for weights in self._weights[layer]:
                    matrix = weights.matrix[rows]
                    if moves is not None:
                        matrix = self._moved(weights, layer, rows, moves, shrink)
                    z += weights.factor * (self._below(weights, layer, found.activations) @ matrix.T)
                    if weights.anchor is not None:
                        sums[2] += (matrix - weights.anchor[rows]).double().square().sum()
                # NaN fires: weights that have overflowed must show in the outputs.
                fires[:, rows] = ~(z <= self._network.thresholds[layer])
                h[:, rows] = z.sub_(self._network.thresholds[layer]).clamp_min_(0).mul_(self._network.scales[layer])
            if self._before is not None:
                sums[0] += (fires != self._before.fires[layer]).sum()
            sums[1] += fires.sum()
            outputs += h.double() @ readout.double()
            found.activations.append(h)
            found.fires.append(fires)
        numbers = torch.cat([outputs.flatten(), sums]).cpu().numpy()
        self._passes += 1
        flips, firing, squared_norm = numbers[-3:].tolist()
        after = replace(found, firing=int(firing))
        return DeepTrial(numbers[:-3].reshape(outputs.shape), int(flips), squared_norm, (update, after))

    def _adopt(self, trial: DeepTrial) -> None:
        """Make what a trial found the current state."""
        _, self._before = trial.payload
        self.outputs = trial.outputs
        self._squared_norm = trial.squared_norm
        self._flips += trial.flips
        self._signals: list[Tensor] | None = None
        self._seen: list[Tensor] | None = None
        self._displacement: Displacement | None = None

    def _backward(self) -> list[Float[Tensor, "n k _"]]:
        """Return Δ_l = c_l D_l (B_l + √(1 − γ) Δ_{l+1} W_{l+1}), in the dtype of the network."""
        found: list[Tensor] = []
        for layer in reversed(range(len(self._readouts))):
            slope = self._readouts[layer].T.expand(len(self._inputs), -1, -1)
            if found:
                above = self._weights[layer + 1][-1]
                slope = slope + above.factor * (found[-1].flatten(0, 1) @ above.matrix).view(slope.shape)
            silent = ~self.layers.fires[layer][:, None]
            found.append((self._network.scales[layer] * slope).masked_fill_(silent, 0))
        return found[::-1]

    def _between(self, layer: int) -> Float[Tensor, "n n"]:
        """Return inner products of the inputs of a later layer."""
        hidden = self.layers.activations[layer - 1].double()
        products = (hidden @ hidden.T).mul_(self._network.hidden_factor(layer) ** 2)
        for weights in self._weights[layer]:
            if not weights.hidden:
                products += weights.factor**2 * self._similarity
        return products

    def _response(self) -> Float[Tensor, "n k"]:
        """Return J (W − W₀), in float64."""
        total = torch.zeros(self.outputs.shape, dtype=torch.float64, device=self._inputs.device)
        for layer, rows in self._blocks():
            signals = self.signals()[layer][:, :, rows]
            for weights in self._weights[layer]:
                assert weights.anchor is not None
                move = (weights.matrix[rows] - weights.anchor[rows]).T
                moved = weights.factor * (self._below(weights, layer, self.layers.activations) @ move)
                total += (signals * moved[:, None]).sum(dim=2, dtype=torch.float64)
        return total

    def _moves(self, layer: int, rows: slice, g: Float[Tensor, "n k"]) -> Float[Tensor, "n rows"]:
        """Return Σ_c g_ic δ_l,ic of some neurons: the step takes its product with h_{l−1,i} from W_l."""
        return torch.einsum("nk,nkr->nr", g, self.signals()[layer][:, :, rows])

    def _moved(
        self, weights: _Weights, layer: int, rows: slice, moves: Float[Tensor, "n rows"], shrink: float
    ) -> Float[Tensor, "rows below"]:
        """Return the weights of some neurons after an update; the same bits whenever it is asked for."""
        matrix = weights.matrix[rows]
        if shrink != 0:
            assert weights.anchor is not None
            matrix = matrix - shrink * (matrix - weights.anchor[rows])
        return matrix - weights.factor * (moves.T @ self._below(weights, layer, self.layers.activations))

    def _below(self, weights: _Weights, layer: int, activations: list[Tensor]) -> Float[Tensor, "n below"]:
        """Return what a matrix sees."""
        return activations[layer - 1] if weights.hidden else self._inputs

    def _blocks(self) -> Iterator[tuple[int, slice]]:
        """Yield layers with ranges of their neurons."""
        for layer in range(len(self._readouts)):
            for rows in self._blocks_of(layer):
                yield layer, rows

    def _blocks_of(self, layer: int) -> Iterator[slice]:
        width = len(self._readouts[layer])
        widest = max(len(self._inputs), *(weights.matrix.shape[1] for weights in self._weights[layer]))
        size = max(64, block_numbers(self._inputs.device.type) // widest)
        for first in range(0, width, size):
            yield slice(first, min(first + size, width))

    def _on_device(self, update: Update) -> Float[Tensor, "n k"]:
        """Return g by sample and output, in the dtype of the network."""
        g = torch.from_numpy(np.ascontiguousarray(update.g[:, 0]).reshape(self.outputs.shape))
        return g.to(self._inputs.dtype).to(self._inputs.device)


def _weights_of(network: Deep, state: dict[str, np.ndarray] | None) -> list[list[_Weights]]:
    """Return the matrices of every layer, A_l before W_l.

    Parameters
    ----------
    network
        Theirs.
    state
        With W₀ of an earlier run, or empty where it is what the network has now; None: W₀ is not needed.

    Raises
    ------
    FileError
        A state that is not one of such a run.
    """
    found: list[list[_Weights]] = [[] for _ in network.readouts]
    fed = [(layer, False, weight) for layer, weight in enumerate(network.input_weights)]
    between = [(layer, True, linear.weight) for layer, linear in enumerate(network.low_rank(), start=1)]
    for layer, hidden, weight in fed + between:
        matrix = weight.detach()
        anchor = None
        if state is not None and not state:
            anchor = matrix.clone()
        elif state:
            dtype = np.float32 if matrix.dtype == torch.float32 else np.float64
            held = array(state, _anchor_name(layer, hidden), dtype, tuple(matrix.shape))
            anchor = torch.from_numpy(held).to(matrix.device)
        factor = network.hidden_factor(layer) if hidden else network.input_factor(layer)
        found[layer].append(_Weights(matrix, anchor, factor, hidden))
    return found


def _anchor_name(layer: int, hidden: bool) -> str:
    return f"{'hidden' if hidden else 'input'}.{layer}"
