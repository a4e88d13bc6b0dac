"""The tracker of Verlet lists: a neuron that has not moved far fires on no sample but those near it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import near_lists as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.dense import block_rows
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk, FirePattern
from widefit.trackers.layer import Layer, refuse_unstored, write_readout
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.near_lists import Lists, Skins

# Skin of the first lists, in units of the size of a weight.
_FIRST_SKIN = 0.1


@dataclass(frozen=True)
class VerletList(Tracker):
    """Lists of near pairs with a skin (of atoms: Verlet, Phys. Rev. 159, 98, 1967; of pairs: this project).

    A neuron within its skin R_r of where its list was made, ‖w_r − w̃_r‖ ≤ R_r, fires on no samples but those with
    ⟨w̃_r, x_i⟩ > b − R_r ‖x_i‖, which are listed. A step moves the weights and evaluates the listed pairs; a neuron
    that has left its skin is looked at as a whole, 2 n d operations. So a step costs 2 d (firing + listed) operations
    a neuron, and reads the weights, where a dense one costs 2 n d.

    A wide skin lasts long, and its list is long. With a speed v_r, and ρ pairs a unit of distance next to the
    threshold, R_r = √(price n v_r / ρ) takes the least time. Skins change what a run costs, never a bit of what it
    finds. Memory: the weights twice more, and the lists.

    Parameters
    ----------
    price
        What a pair of a neuron that has left its skin costs, in evaluations of a listed pair. The default is below what
        is measured, half of one: speeds fall.
    """

    price: float = 0.1
    name: str = "verlet-list"

    @property
    def anywhere(self) -> bool:
        return True

    @property
    def trains_readout(self) -> bool:
        return True

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> "VerletListTracking":
        return VerletListTracking(network, inputs, anchor, threads, self.price)


@dataclass(frozen=True)
class _BlockTrial:
    lists: Lists
    leaving: Int[np.ndarray, " q"]
    outputs: Float[np.ndarray, " n"]
    flips: int
    response: Float[np.ndarray, " n"] | None
    squared_norm: float


class VerletListTracking(Tracking):
    """See `VerletList`."""

    def __init__(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
        price: float,
    ):
        refuse_unstored(VerletList.name, network)
        self._network, self._inputs, self._threads = network, inputs, threads
        self._layer = replace(Layer.of(network), anchor=anchor)
        weight, samples = self._layer.weight, inputs.shape[0]
        self._reference, self._moved = weight.copy(), weight.copy()
        self._step = self._passes = self._evaluated = self._renewed = self._flips = 0
        self._proposed: Trial | None = None
        self._skins = Skins.over(inputs, self._layer.threshold)
        self._blocks = _blocks(self._layer.groups, block_rows(samples))
        self._lists = [Lists.none(block.last - block.first, samples) for block in self._blocks]
        self._skin = _FIRST_SKIN * float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))) or 1.0
        self._take(self._over_blocks(self._anew, None))
        # Pairs of a neuron for every unit of distance next to the threshold.
        near = max(1, sum(np.count_nonzero(~lists.fires) for lists in self._lists)) / weight.shape[0] / self._skin
        self._skins = replace(self._skins, scale=price * samples / near)

    # A trial.

    def propose(self, update: Update, gram: Grams) -> Trial:
        self._proposed = self._over_blocks(partial(self._follow, update), update)
        return self._proposed

    def _over_blocks(self, trial_of: Callable[[tuple[Chunk, Lists]], _BlockTrial], update: Update | None) -> Trial:
        """What becomes of every block; no update: nothing moves, and all neurons are looked at."""
        samples, outputs = self._inputs.shape[0], self._layer.silent.size
        result = np.tile(self._layer.silent, (samples, 1))
        displacement = Displacement(np.zeros((samples, outputs)), np.zeros(outputs))
        parts: list[_BlockTrial] = []
        self._step += 1
        with serial_blas():
            work = zip(self._blocks, self._lists, strict=True)
            for block, part in zip(self._blocks, ordered_map(trial_of, work, self._threads), strict=True):
                parts.append(part)
                result[:, block.output] += part.outputs
                if part.response is not None:
                    displacement.response[:, block.output] += part.response
                    displacement.squared_norm[block.output] += part.squared_norm
        self._passes += update is None
        self._evaluated += sum(part.lists.samples.size + part.leaving.size * samples for part in parts)
        self._renewed += sum(part.leaving.size for part in parts)
        return Trial(
            update=update or Update(np.zeros((samples, outputs)), np.zeros(outputs)),
            outputs=result,
            flips=sum(part.flips for part in parts),
            rebased=update is None,
            displacement=displacement if self._layer.anchor is not None else None,
            payload=parts,
        )

    def _anew(self, work: tuple[Chunk, Lists]) -> _BlockTrial:
        """One block where it is, with new lists."""
        block, lists = work
        self._moved[block.rows] = self._layer.weight[block.rows]
        with np.errstate(over="ignore", invalid="ignore"):
            everyone = np.arange(lists.path.size)
            return self._evaluate(block, lists, everyone, np.full(everyone.size, self._skin))

    def _follow(self, update: Update, work: tuple[Chunk, Lists]) -> _BlockTrial:
        """One block after an update, into `_moved`."""
        block, lists = work
        layer, output = self._layer, block.output
        weights, moved = layer.weight[block.rows], self._moved[block.rows]
        with np.errstate(over="ignore", invalid="ignore"):
            kernels.move(
                weights, self._anchor(block), weights.dtype.type(update.shrink[output]), layer.coefficients[block.rows],
                np.ascontiguousarray(update.g[:, output]), self._inputs, lists.entries, moved,
            )  # fmt: skip
            lists, leaving = self._skins.leaving(lists, weights, moved, self._reference[block.rows], self._step)
            return self._evaluate(block, lists, leaving, self._skins.best(lists, leaving, self._step))

    def _evaluate(
        self, block: Chunk, lists: Lists, leaving: Int[np.ndarray, " q"], skin: Float[np.ndarray, " q"]
    ) -> _BlockTrial:
        """Who fires at the weights in `_moved`, once some lists have been made anew."""
        layer, moved = self._layer, self._moved[block.rows]
        coefficients, outputs = layer.coefficients[block.rows], np.zeros(self._inputs.shape[0])
        after = self._skins.renewed(lists, leaving, moved, skin, self._step)
        kernels.evaluate(moved, self._inputs, layer.threshold, coefficients, after.entries, outputs)
        flips = lists.flips(after, leaving, outputs.size)
        if layer.anchor is None:
            return _BlockTrial(after, leaving, outputs, flips, None, 0.0)
        offset, response = moved - layer.anchor[block.rows], np.zeros_like(outputs)
        kernels.respond(offset, self._inputs, coefficients, after.entries, response)
        return _BlockTrial(after, leaving, outputs, flips, response, float(np.vdot(offset, offset)))

    def _anchor(self, block: Chunk) -> Float[np.ndarray, "rows d"]:
        weight, anchor = self._layer.weight, self._layer.anchor
        return weight[:0] if anchor is None else anchor[block.rows]

    # Carrying it out.

    def commit(self, trial: Trial) -> None:
        if trial is not self._proposed:
            # The weights that it goes to have been written over: find them again.
            trial = self._over_blocks(partial(self._follow, trial.update), trial.update)
        self._take(trial)
        self._flips += trial.flips

    def _take(self, trial: Trial) -> None:
        def write(work: tuple[Chunk, _BlockTrial]) -> None:
            block, part = work
            moved = self._moved[block.rows]
            self._layer.weight[block.rows] = moved
            self._reference[block.rows][part.leaving] = moved[part.leaving]

        for _ in ordered_map(write, zip(self._blocks, trial.payload, strict=True), self._threads):
            pass
        self._lists = [part.lists for part in trial.payload]
        self.outputs, self.displacement, self._proposed = trial.outputs, trial.displacement, None

    # Stochastic steps.

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """As with `Dense`, the steps look at the samples of each batch alone; the lists are made anew in the end."""
        descend(self._layer, self._inputs, minibatches, self._threads)
        if minibatches.trains_readout:
            write_readout(self._layer.coefficients, self._network)
        gram.follow(None)
        trial = self._over_blocks(self._anew, None)
        self._take(trial)
        self._flips += trial.flips
        return trial.flips

    # What others see.

    def patterns(self) -> Sequence[FirePattern]:
        samples = self._inputs.shape[0]
        return [lists.pattern(block, samples) for block, lists in zip(self._blocks, self._lists, strict=True)]

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if out is not self._layer.weight:
            out[...] = self._layer.weight

    def finish(self) -> None:
        """Nothing is left to do: every commit writes the weights."""

    def report(self) -> TrackerReport:
        listed = sum(lists.nbytes for lists in self._lists)
        return TrackerReport(
            tracker=VerletList.name,
            full_passes=self._passes,
            pairs_evaluated=self._evaluated,
            flips=self._flips,
            firing_pairs=sum(int(np.count_nonzero(lists.fires)) for lists in self._lists),
            bytes_held=listed + self._reference.nbytes + self._moved.nbytes,
            keys_updated=self._renewed,
        )


def _blocks(groups: Sequence[tuple[int, int]], rows: int) -> list[Chunk]:
    """The neurons of every output, `rows` at a time."""
    return [
        Chunk(low, min(low + rows, last), output)
        for output, (first, last) in enumerate(groups)
        for low in range(first, last, rows)
    ]
