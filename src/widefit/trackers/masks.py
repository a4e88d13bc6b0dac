"""Torch tracker: fire masks on the device of the network, found and applied by products in blocks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.cost import Cost, Steps, Workload
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.layer import refuse_unstored
from widefit.trackers.minibatches import Minibatches

# Pre-activations of a block: what a third-level cache holds, and what keeps an accelerator busy.
_BLOCK_NUMBERS = {"cpu": 1 << 20}
_BLOCK_NUMBERS_OF_A_DEVICE = 1 << 25
# Bytes a pre-activation of a block, at most: itself and its masked copy, both in float64 for sums, and three masks.
_BLOCK_BYTES = 40
# Samples whose terms of a step are added up in the dtype of the weights.
_SUMMED = 4096


@dataclass(frozen=True)
class Torch(Tracker):
    """Z = W Xᵀ in blocks of torch, on the device that the network is on (this project).

    Every pre-activation is computed anew in the dtype of the weights and compared with the threshold, as by `Dense`;
    nothing is estimated, so that nothing has to be looked at again. Sums over neurons are float64. A trial costs
    4 m n d flops. Memory: a bit a pair before and after a step, and a block. The weights are moved in place, and leave
    the device only when asked for; a trial is one transfer to the host, whatever the number of blocks.

    The plan takes it where the network is on an accelerator: the other trackers work on the CPU.
    """

    name: str = "torch"

    def can_follow(self, work: Workload) -> bool:
        return work.stored and work.processes == 1 and work.steps is not Steps.PERTURBED_MINIBATCHES

    def cost(self, work: Workload) -> Cost:
        masks = 2 * work.width * -(-work.samples // 8)
        block = _BLOCK_BYTES * max(block_numbers(work.device), work.samples)
        copies = work.weight_bytes * int(work.anchored) + work.samples * work.features * work.itemsize
        # On the CPU "auto" leaves it to others, and on an accelerator there is no other.
        return Cost(masks + block + copies, math.inf)

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> "MaskTracking":
        refuse_unstored(self.name, network)
        return MaskTracking(network, inputs, anchor)


def block_numbers(device: str) -> int:
    """Return the pre-activations of a block on a type of device."""
    return _BLOCK_NUMBERS.get(device, _BLOCK_NUMBERS_OF_A_DEVICE)


@dataclass(frozen=True)
class _Masks:
    """Fire masks on some samples, with a bit a pair: sample 8 b + j in bit j of byte b.

    Attributes
    ----------
    inputs
        The samples, on the device.
    chunks
        The mask of every chunk of neurons.
    """

    inputs: Float[Tensor, "n d"]
    chunks: list[UInt8[Tensor, "neurons bytes"]] = field(default_factory=list)


class MaskTracking(Tracking):
    """Run of the torch tracker; see `Torch`."""

    def __init__(self, network: TwoLayer, inputs: Float[np.ndarray, "n d"], anchor: Float[np.ndarray, "m d"] | None):
        self._weight = network.weight.detach()
        device, dtype = self._weight.device, self._weight.dtype
        self._anchor = None if anchor is None else torch.from_numpy(anchor).to(device)
        self._threshold = float(torch.tensor(network.threshold, dtype=dtype))
        self._silent = network.silent_outputs()
        # a_r / √m on the host, and on the device in the dtypes of the sums and of the weights.
        self.coefficients = network.coefficients()
        self._summed = torch.from_numpy(self.coefficients).to(device)
        self._moving = self._summed.to(dtype)
        self._chunks = partition([network.neurons_of(output) for output in range(network.out_features)])
        self._bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8).to(device)
        self._masks = _Masks(torch.from_numpy(inputs).to(device))
        self._flips, self._firing, self._passes, self._sampled = 0, 0, 0, 0
        self._patterns: list[FirePattern] | None = None
        self._adopt(self._look(self._masks.inputs, None, None))

    @property
    def inputs(self) -> Float[Tensor, "n d"]:
        """X on the device."""
        return self._masks.inputs

    def masks(self, output: int) -> Iterator[tuple[slice, Bool[Tensor, "rows n"]]]:
        """Yield the neurons of an output with the samples that each fires on, in blocks."""
        for chunk, packed in zip(self._chunks, self._masks.chunks, strict=True):
            if chunk.output == output:
                for own, rows in self._blocks(chunk, len(self.inputs)):
                    yield rows, self._unpacked(packed[own], len(self.inputs))

    def propose(self, update: Update, gram: Grams) -> Trial:
        return self._look(self.inputs, self._masks, update)

    def commit(self, trial: Trial) -> None:
        self._write(self._masks, trial.update)
        self._adopt(trial)

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps on the samples of each batch alone; the flips are the pairs that differ in the end."""
        if minibatches.trains_readout:
            raise ValueError('tracker "torch" keeps the second layer as it is')
        batches = torch.from_numpy(minibatches.samples).to(self._weight.device)
        for step in range(len(minibatches)):
            inputs = self.inputs[batches[minibatches.edges[step] : minibatches.edges[step + 1]]]
            seen = self._look(inputs, None, None)
            g = minibatches.g(step, seen.outputs)
            averaged, average = minibatches.kept(step)
            before = self._written(average)
            self._write(seen.payload[0], Update(g, np.full(g.shape[1], minibatches.pull(step))))
            if average is not None:
                average.follow(slice(None), before, self._written(average), averaged)
        gram.follow(None)
        after = self._look(self.inputs, self._masks, None)
        self._adopt(after)
        return after.flips

    def patterns(self) -> Sequence[FirePattern]:
        if self._patterns is None:
            pairs = zip(self._chunks, self._masks.chunks, strict=True)
            self._patterns = [FirePattern.of(chunk, self._on_host(packed)) for chunk, packed in pairs]
        return self._patterns

    def report(self) -> TrackerReport:
        pairs = self._passes * self._weight.shape[0] * len(self.inputs)
        held = sum(packed.nbytes for packed in self._masks.chunks)
        return TrackerReport(Torch.name, self._passes, pairs + self._sampled, self._flips, self._firing, held)

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        torch.from_numpy(out).copy_(self._weight)

    def finish(self) -> None:
        """End the run; every commit has moved the weights."""

    def _look(self, inputs: Float[Tensor, "n d"], before: _Masks | None, update: Update | None) -> Trial:
        """Find who fires on some samples after an update, and what it makes of the outputs.

        Parameters
        ----------
        inputs
            The samples.
        before
            Masks on them at the committed weights, to count flips; None: there are none to count.
        update
            Needs the masks; None: at the committed weights.
        """
        samples, groups = len(inputs), self._silent.size
        after = _Masks(inputs)
        found = torch.zeros(2 * samples + 1, groups, dtype=torch.float64, device=inputs.device)
        outputs, response, squared_norm = found[:samples], found[samples:-1], found[-1]
        # Flips, and pairs that fire: exact in float64.
        counts = torch.zeros(2, dtype=torch.float64, device=inputs.device)
        for number, chunk in enumerate(self._chunks):
            size, column = chunk.last - chunk.first, chunk.output
            packed = torch.empty(size, -(-samples // 8), dtype=torch.uint8, device=inputs.device)
            for own, rows in self._blocks(chunk, samples):
                fired = None if before is None else self._unpacked(before.chunks[number][own], samples)
                weights = self._weight[rows]
                if update is not None and fired is not None:
                    weights = self._moved(inputs, fired, update, rows, column)
                z = weights @ inputs.T
                # NaN fires: weights that have overflowed must show in the outputs.
                fires = ~(z <= self._threshold)
                packed[own] = self._packed(fires)
                counts[1] += fires.sum()
                if fired is not None:
                    counts[0] += (fires != fired).sum()
                coefficients = self._summed[rows]
                outputs[:, column] += coefficients @ z.sub_(self._threshold).clamp_min_(0).double()
                if self._anchor is not None and len(inputs) == len(self.inputs):
                    offset = weights - self._anchor[rows]
                    squared_norm[column] += offset.double().square().sum()
                    move = (offset @ inputs.T).masked_fill_(~fires, 0)
                    response[:, column] += coefficients @ move.double()
            after.chunks.append(packed)
        told = torch.cat([found.flatten(), counts]).cpu().numpy()
        sums, flips, firing = told[:-2].reshape(found.shape), int(told[-2]), int(told[-1])
        self._count(samples)
        return Trial(
            update=update or Update.none(samples, groups),
            outputs=self._silent + sums[:samples],
            flips=flips,
            rebased=True,
            displacement=None if self._anchor is None else Displacement(sums[samples:-1], sums[-1]),
            payload=(after, firing),
        )

    def _count(self, samples: int) -> None:
        """Count a look at some samples, a pass where it is at all."""
        if samples == len(self.inputs):
            self._passes += 1
        else:
            self._sampled += samples * self._weight.shape[0]

    def _write(self, masks: _Masks, update: Update) -> None:
        """Move the weights by an update on the samples of some masks."""
        for chunk, packed in zip(self._chunks, masks.chunks, strict=True):
            for own, rows in self._blocks(chunk, len(masks.inputs)):
                fired = self._unpacked(packed[own], len(masks.inputs))
                self._weight[rows] = self._moved(masks.inputs, fired, update, rows, chunk.output)

    def _moved(
        self,
        inputs: Float[Tensor, "n d"],
        fired: Bool[Tensor, "rows n"],
        update: Update,
        rows: slice,
        output: int,
    ) -> Float[Tensor, "rows d"]:
        """Return the weights of some neurons of an output after an update; the same bits whenever it is asked for."""
        weights = self._weight[rows]
        g = torch.from_numpy(np.ascontiguousarray(update.g[:, output])).to(weights.dtype).to(weights.device)
        shrink = float(update.shrink[output])
        step = self._moving[rows, None] * _sums(g, fired, inputs)
        if shrink != 0:
            assert self._anchor is not None
            weights = weights - shrink * (weights - self._anchor[rows])
        return weights - step

    def _blocks(self, chunk: Chunk, samples: int) -> Iterator[tuple[slice, slice]]:
        """Yield ranges of the neurons of a chunk, counted from its first and from that of the network."""
        size = max(64, block_numbers(self._weight.device.type) // samples)
        for first in range(chunk.first, chunk.last, size):
            last = min(first + size, chunk.last)
            yield slice(first - chunk.first, last - chunk.first), slice(first, last)

    def _packed(self, fires: Bool[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
        packed = fires.new_zeros(len(fires), -(-fires.shape[1] // 8), dtype=torch.uint8)
        for bit in range(8):
            every = fires[:, bit::8]
            packed[:, : every.shape[1]] |= every.to(torch.uint8) << bit
        return packed

    def _unpacked(self, packed: UInt8[Tensor, "rows bytes"], samples: int) -> Bool[Tensor, "rows n"]:
        return ((packed[:, :, None] & self._bits) != 0).view(len(packed), -1)[:, :samples]

    def _on_host(self, packed: UInt8[Tensor, "rows bytes"]) -> Bool[np.ndarray, "rows n"]:
        bits = np.unpackbits(packed.cpu().numpy(), axis=1, count=len(self.inputs), bitorder="little")
        return bits.view(np.bool_)

    def _adopt(self, trial: Trial) -> None:
        """Make a trial's masks and sums the current ones."""
        self._masks, self._firing = trial.payload
        self._patterns = None
        self.outputs = trial.outputs
        self.displacement = trial.displacement
        self._flips += trial.flips


def _sums(
    g: Float[Tensor, " n"], fired: Bool[Tensor, "rows n"], inputs: Float[Tensor, "n d"]
) -> Float[Tensor, "rows d"]:
    """Σ_i g_i x_i over the samples that each row fires on, tile after tile in float64: the terms nearly cancel."""
    total = torch.zeros(len(fired), inputs.shape[1], dtype=torch.float64, device=inputs.device)
    for own, rows, part in zip(fired.split(_SUMMED, 1), inputs.split(_SUMMED), g.split(_SUMMED), strict=True):
        total += part.expand(own.shape).masked_fill(~own, 0) @ rows
    return total.to(inputs.dtype)
