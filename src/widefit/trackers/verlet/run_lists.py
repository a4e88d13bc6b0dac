"""State of a run on Verlet lists: the weights, the lists of every block, and who fires."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.threads import ordered_map, serial_blas
from widefit.kernels.verlet import near_lists as kernels
from widefit.trackers.base import Displacement, Trial, Update
from widefit.trackers.counters import Counters
from widefit.trackers.dense import block_rows
from widefit.trackers.fire_pattern import Chunk
from widefit.trackers.layer import Layer
from widefit.trackers.verlet.blocks import BlockTrial, blocks_of
from widefit.trackers.verlet.near_lists import Lists, Skins

# Skin of the first lists, in units of the size of a weight.
_FIRST_SKIN = 0.1

# A block and its lists.
Work = tuple[Chunk, Lists]


class RunLists:
    """Weights of a run, and the lists of every block; what the ways to take a step share.

    Attributes
    ----------
    layer
        W, changed in place, and the rest of the network.
    inputs
        X.
    threads
        Cores to use.
    blocks, lists
        The blocks, and the lists of each.
    skins
        How lists are made.
    reference
        Weights for which the lists were made, in the shape of W.
    moved
        Weights under evaluation, in the shape of W.
    proposed
        The trial that `moved` belongs to; None where it belongs to none.
    outputs, displacement
        f and W − W₀ at the committed weights.
    density
        Pairs of a neuron for every unit of distance next to the threshold.
    step
        Number of evaluations, in which the age of lists is counted.
    counters
        Operations so far.
    """

    def __init__(self, layer: Layer, inputs: Float[np.ndarray, "n d"], threads: int, price: float):
        samples = inputs.shape[0]
        self.layer = layer
        self.inputs = inputs
        self.threads = threads
        self.blocks = blocks_of(layer.groups, block_rows(samples))
        self.lists = [Lists.none(block.last - block.first, samples) for block in self.blocks]
        self.skins = Skins.over(inputs, layer.threshold)
        self.reference = layer.weight.copy()
        self.moved = layer.weight.copy()
        self.proposed: Trial | None = None
        self.outputs = np.empty((0, 0))
        self.displacement: Displacement | None = None
        self.step = 0
        self.counters = Counters()
        self._skin = _FIRST_SKIN * float(np.sqrt(np.mean(np.square(layer.weight, dtype=np.float64)))) or 1.0
        self.adopt(self.rescan())
        near = max(1, sum(np.count_nonzero(~lists.fires) for lists in self.lists))
        self.density = near / layer.weight.shape[0] / self._skin
        self.skins = self.skins.scaled(price * samples / self.density)

    @property
    def firing(self) -> int:
        """Pairs that fire."""
        return sum(int(np.count_nonzero(lists.fires)) for lists in self.lists)

    @property
    def nbytes(self) -> int:
        """Memory of the lists, and of the weights beside the network's."""
        return self.reference.nbytes + self.moved.nbytes + sum(lists.nbytes for lists in self.lists)

    def rescan(self) -> Trial:
        """Evaluate all neurons where they are, and make all lists anew."""
        return self.evaluate(self._rescan_block, None)

    def _rescan_block(self, work: Work) -> BlockTrial:
        block, lists = work
        self.moved[block.rows] = self.layer.weight[block.rows]
        with np.errstate(over="ignore", invalid="ignore"):
            everyone = np.arange(lists.path.size)
            return self.evaluate_block(block, lists, everyone, np.full(everyone.size, self._skin))

    def evaluate(self, evaluate_block: Callable[[Work], BlockTrial], update: Update | None) -> Trial:
        """Evaluate every block; no update: nothing moves, and all neurons are evaluated."""
        samples = self.inputs.shape[0]
        silent = self.layer.silent
        outputs = np.tile(silent, (samples, 1))
        displacement = Displacement.none(samples, silent.size)
        parts: list[BlockTrial] = []
        self.step += 1
        with serial_blas():
            work = zip(self.blocks, self.lists, strict=True)
            for block, part in zip(self.blocks, ordered_map(evaluate_block, work, self.threads), strict=True):
                parts.append(part)
                outputs[:, block.output] += part.outputs
                if part.response is not None:
                    displacement.response[:, block.output] += part.response
                    displacement.squared_norm[block.output] += part.squared_norm
        self.counters += Counters(
            full_passes=int(update is None),
            pairs_evaluated=sum(part.lists.samples.size + part.leaving.size * samples for part in parts),
            keys_updated=sum(part.leaving.size for part in parts),
        )
        return Trial(
            update=update or Update.none(samples, silent.size),
            outputs=outputs,
            flips=sum(part.flips for part in parts),
            rebased=update is None,
            displacement=displacement if self.layer.anchor is not None else None,
            payload=parts,
        )

    def evaluate_block(
        self, block: Chunk, lists: Lists, leaving: Int[np.ndarray, " q"], skin: Float[np.ndarray, " q"]
    ) -> BlockTrial:
        """Find who fires at the weights in `moved`, once the lists of some neurons have been made anew."""
        layer = self.layer
        moved = self.moved[block.rows]
        coefficients = layer.coefficients[block.rows]
        outputs = np.zeros(self.inputs.shape[0])
        after = self.skins.renewed(lists, leaving, moved, skin, self.step)
        kernels.evaluate(moved, self.inputs, layer.threshold, coefficients, after.entries, outputs, np.empty(0))
        flips = lists.flips(after, leaving, outputs.size)
        if layer.anchor is None:
            return BlockTrial(block, after, leaving, outputs, flips)
        offset = moved - layer.anchor[block.rows]
        response = np.zeros_like(outputs)
        kernels.respond(offset, self.inputs, coefficients, after.entries, response)
        return BlockTrial(block, after, leaving, outputs, flips, response, float(np.vdot(offset, offset)))

    def adopt(self, trial: Trial) -> None:
        """Make the weights in `moved`, and a trial's lists and sums, the current ones."""

        def write(work: tuple[Chunk, BlockTrial]) -> None:
            block, part = work
            moved = self.moved[block.rows]
            self.layer.weight[block.rows] = moved
            self.reference[block.rows][part.leaving] = moved[part.leaving]

        for _ in ordered_map(write, zip(self.blocks, trial.payload, strict=True), self.threads):
            pass
        self.lists = [part.lists for part in trial.payload]
        self.outputs = trial.outputs
        self.displacement = trial.displacement
        self.proposed = None
