"""Stochastic steps on lists of near pairs: who fires on a visited sample follows from who has fired (this project).

While every neuron is within its skin, no pair fires but those listed, and the weights can stay as they are:

    ⟨w_r, x⟩ = ⟨w_r(0), x⟩ − (a_r/√m) Σ_v g_v ⟨x_v, x⟩      over the visits v at which r has fired

so that a visit costs, for each neuron that is listed with the sample, as many additions as it has fired. A neuron that
leaves its skin is followed by products, as all are with `Dense`. After some visits the weights are brought to where
they are, and after the last the listed pairs are evaluated.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import ordered_map, serial_blas, team
from widefit.kernels.verlet import list_epochs as kernels
from widefit.kernels.verlet import near_lists
from widefit.trackers.counters import Counters
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.verlet.near_lists import Lists
from widefit.trackers.verlet.run_lists import RunLists, Work
from widefit.trackers.verlet.visits import NeuronVisits, Visits

# Visits between two times that the weights are brought to where they are.
_VISITS = 1024
# Neurons of a part.
_PART = 1 << 14


@dataclass(frozen=True)
class _BlockEnd:
    """Block after an epoch."""

    lists: Lists
    margins: Float[np.ndarray, " listed"]
    outputs: Float[np.ndarray, " n"]
    flips: int
    renewed: int


class Epochs:
    """Epochs of stochastic steps that move the first layer alone, along the samples, and do not shrink."""

    def __init__(self, run: RunLists):
        self._run = run
        self._skins = run.skins
        # Epochs begun.
        self._begun = 0
        # Lists at the end of the last epoch, and margins of their pairs.
        self._known: tuple[list[Lists], list[np.ndarray]] = [], []

    @property
    def nbytes(self) -> int:
        """Memory of what is kept from one epoch to the next."""
        return sum(margins.nbytes for margins in self._known[1])

    def descend(self, minibatches: Minibatches) -> int:
        """Take the steps, the first ones as with `Dense`: the speed of neurons is not known yet. Return the flips."""
        run = self._run
        run.step += 1
        run.counters += Counters(full_passes=int(self._begun == 0))
        run.proposed = None
        self._begun += 1
        if self._begun == 1:
            descend(run.layer, run.inputs, minibatches, run.threads)
            far = [replace(own, path=np.full(own.path.size, np.inf)) for own in run.lists]
            run.counters += Counters(pairs_evaluated=run.layer.weight.shape[0] * minibatches.samples.size)
            return self._adopt(far)
        parts = self._visit(minibatches)
        run.counters += Counters(pairs_evaluated=sum(part.sampled for part in parts))
        path = np.concatenate([part.path for part in parts])
        return self._adopt(
            [replace(own, path=path[block.rows]) for block, own in zip(run.blocks, run.lists, strict=True)]
        )

    def _visit(self, minibatches: Minibatches) -> list[NeuronVisits]:
        """Visit the samples batch by batch."""
        run = self._run
        margins = self._margins()
        parts = [NeuronVisits(run.layer, run.reference, own, run.lists, margins) for own in _dealt(run.blocks)]
        edges = [share * len(parts) // run.threads for share in range(run.threads + 1)]
        shares = [parts[low:high] for low, high in pairwise(edges) if low < high]
        with serial_blas(), team(run.threads) as for_each:

            def everyone(work: Callable[[NeuronVisits], None]) -> None:
                def all_of(share: list[NeuronVisits]) -> None:
                    # Weights that overflow show in the outputs; a thread does not inherit what its caller ignores.
                    with np.errstate(over="ignore", invalid="ignore"):
                        for part in share:
                            work(part)

                for_each(all_of, shares)

            for number, stretch in enumerate(_stretches(minibatches)):
                visits = Visits(stretch, run.inputs, self._skins.norms, run.layer.silent.size)
                everyone(partial(NeuronVisits.begin, visits=visits, anew=number > 0))
                for batch in range(len(stretch)):
                    everyone(partial(NeuronVisits.visit, batch=batch, moves=visits.moves(batch)))
                    outputs = np.tile(run.layer.silent, (visits.size(batch), 1))
                    for part in parts:
                        outputs[:, part.output] += part.outputs
                    visits.take(batch, outputs)
                everyone(NeuronVisits.end)
        return parts

    def _margins(self) -> list[np.ndarray]:
        """Return ⟨w_r, x_i⟩ − b of the listed pairs."""
        run = self._run
        known, margins = self._known
        if len(known) == len(run.lists) and all(one is other for one, other in zip(known, run.lists, strict=True)):
            return margins
        visited = np.zeros(run.inputs.shape[0], np.int64)

        def evaluate(work: Work) -> np.ndarray:
            block, own = work
            margins = np.empty(own.samples.size, run.layer.weight.dtype)
            weights = run.layer.weight[block.rows]
            kernels.margins_of(weights, run.inputs, run.layer.threshold, own.start, own.samples, visited, margins)
            return margins

        return list(ordered_map(evaluate, zip(run.blocks, run.lists, strict=True), run.threads))

    def _adopt(self, moved: list[Lists]) -> int:
        """Find who fires at the weights, from lists with the path there; return the pairs that differ from before."""
        run = self._run
        parts = []
        outputs = np.tile(run.layer.silent, (run.inputs.shape[0], 1))
        with serial_blas():
            work = zip(run.blocks, run.lists, moved, strict=True)
            for block, part in zip(run.blocks, ordered_map(self._evaluate_block, work, run.threads), strict=True):
                parts.append(part)
                outputs[:, block.output] += part.outputs
        run.lists = [part.lists for part in parts]
        run.outputs = outputs
        self._known = run.lists, [part.margins for part in parts]
        renewed = sum(part.renewed for part in parts)
        listed = sum(own.samples.size for own in run.lists)
        run.counters += Counters(pairs_evaluated=listed + renewed * outputs.shape[0], keys_updated=renewed)
        return sum(part.flips for part in parts)

    def _evaluate_block(self, work: tuple[Chunk, Lists, Lists]) -> _BlockEnd:
        """Evaluate one block at its weights."""
        block, old, lists = work
        run = self._run
        layer = run.layer
        weights = layer.weight[block.rows]
        reference = run.reference[block.rows]
        with np.errstate(over="ignore", invalid="ignore"):
            still = np.zeros(lists.path.size)
            lists, leaving = self._skins.leaving(lists, weights, weights, reference, run.step, still)
            skin = self._skins.best(lists, leaving, run.step)
            after = self._skins.renewed(lists, leaving, weights, skin, run.step)
            reference[leaving] = weights[leaving]
            outputs = np.zeros(run.inputs.shape[0])
            margins = np.empty(after.samples.size, weights.dtype)
            near_lists.evaluate(
                weights, run.inputs, layer.threshold, layer.coefficients[block.rows], after.entries, outputs, margins
            )
        return _BlockEnd(after, margins, outputs, old.flips(after, leaving, outputs.size), leaving.size)

    def state(self) -> dict[str, np.ndarray]:
        """Return the arrays that decide when neurons leave their skins; none before the first epoch."""
        if self._begun == 0:
            return {}
        skins = [np.concatenate(parts) for parts in zip(*(own.skins for own in self._run.lists), strict=True)]
        numbers = np.array([self._begun, self._skins.scale])
        return {"epochs": numbers, "reference": self._run.reference, "skins": np.stack(skins)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue with the lists of an earlier run, who fires included."""
        run = self._run
        begun, scale = state["epochs"]
        self._begun = int(begun)
        self._skins = self._skins.scaled(float(scale))
        run.reference[:] = state["reference"]
        run.step += self._begun
        layer = run.layer
        samples = run.inputs.shape[0]

        def restore_block(block: Chunk) -> Lists:
            path, skin, made = state["skins"][:, block.rows]
            none = Lists.none(path.size, samples)
            lists = self._skins.renewed(none, np.arange(path.size), run.reference[block.rows], skin, 0)
            near_lists.evaluate(
                layer.weight[block.rows], run.inputs, layer.threshold, layer.coefficients[block.rows], lists.entries,
                np.zeros(samples), np.empty(0),
            )  # fmt: skip
            return replace(lists, path=path.copy(), made=made.copy())

        with serial_blas(), np.errstate(over="ignore", invalid="ignore"):
            run.lists = list(ordered_map(restore_block, run.blocks, run.threads))


def _stretches(minibatches: Minibatches) -> Iterator[Minibatches]:
    """Yield batches in which no sample comes twice, and not too many."""
    first = 0
    seen: set[int] = set()
    for step in range(len(minibatches)):
        batch = minibatches.batch(step).tolist()
        if seen and (len(seen) + len(batch) > _VISITS or not seen.isdisjoint(batch)):
            yield minibatches.part(first, step)
            first = step
            seen = set()
        seen.update(batch)
    yield minibatches.part(first, len(minibatches))


def _dealt(blocks: list[Chunk]) -> list[list[tuple[int, Chunk]]]:
    """Deal out the blocks in parts, with their numbers."""
    parts: list[list[tuple[int, Chunk]]] = []
    for number, block in enumerate(blocks):
        if not parts or block.output != parts[-1][0][1].output or block.last - parts[-1][0][1].first > _PART:
            parts.append([])
        parts[-1].append((number, block))
    return parts
