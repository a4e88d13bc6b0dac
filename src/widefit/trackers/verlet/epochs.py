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
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.verlet.near_lists import Lists, Skins
from widefit.trackers.verlet.visits import NeuronVisits, Visits

# Visits between two times that the weights are brought to where they are.
_VISITS = 1024
# Neurons of a part.
_PART = 1 << 14


@dataclass(frozen=True)
class Epoch:
    """What an epoch leaves: the lists, f, pairs that differ from before, pre-activations computed and lists made."""

    lists: list[Lists]
    outputs: Float[np.ndarray, "n k"]
    flips: int
    evaluated: int
    renewed: int


@dataclass(frozen=True)
class _Settled:
    """What becomes of a block."""

    lists: Lists
    margins: Float[np.ndarray, " listed"]
    outputs: Float[np.ndarray, " n"]
    flips: int
    renewed: int


class ListEpochs:
    """Epochs of one run.

    Parameters
    ----------
    layer
        W, changed in place, and what belongs to it.
    inputs
        X, in the dtype of W.
    skins
        How lists are made.
    reference
        Where they were made, in the shape of W; changed with them.
    blocks
        What each of the lists is of.
    threads
        Cores to use; the result does not depend on it.
    """

    def __init__(
        self,
        layer: Layer,
        inputs: Float[np.ndarray, "n d"],
        skins: Skins,
        reference: Float[np.ndarray, "m d"],
        blocks: list[Chunk],
        threads: int,
    ):
        self._layer, self._inputs, self._skins, self._reference = layer, inputs, skins, reference
        self._blocks, self._threads = blocks, threads
        self._begun = 0
        self._known: tuple[list[Lists], list[np.ndarray]] = [], []

    def descend(self, minibatches: Minibatches, lists: list[Lists], step: int) -> Epoch:
        """Take the steps; the first ones as with `Dense`, wherever the weights were when the lists were made.

        Parameters
        ----------
        minibatches
            The batches; they move the first layer alone, along the samples, and do not shrink.
        lists
            Good for the weights as they are.
        step
            What the lists count as a step.
        """
        self._begun += 1
        if self._begun == 1:
            # Speeds are not known yet.
            descend(self._layer, self._inputs, minibatches, self._threads)
            far = [replace(own, path=np.full(own.path.size, np.inf)) for own in lists]
            return self._settle(lists, far, step, self._layer.weight.shape[0] * minibatches.samples.size)
        margins = self._margins(lists)
        parts = [NeuronVisits(self._layer, self._reference, own, lists, margins) for own in _dealt(self._blocks)]
        edges = [share * len(parts) // self._threads for share in range(self._threads + 1)]
        shares = [parts[low:high] for low, high in pairwise(edges) if low < high]
        with serial_blas(), team(self._threads) as for_each:

            def everyone(work: Callable[[NeuronVisits], None]) -> None:
                def all_of(share: list[NeuronVisits]) -> None:
                    # Weights that overflow show in the outputs; a thread does not inherit what its caller ignores.
                    with np.errstate(over="ignore", invalid="ignore"):
                        for part in share:
                            work(part)

                for_each(all_of, shares)

            for number, stretch in enumerate(_stretches(minibatches)):
                visits = Visits(stretch, self._inputs, self._skins.norms, self._layer.silent.size)
                everyone(partial(NeuronVisits.begin, visits=visits, anew=number > 0))
                for batch in range(len(stretch)):
                    everyone(partial(NeuronVisits.visit, batch=batch, moves=visits.moves(batch)))
                    outputs = np.tile(self._layer.silent, (visits.size(batch), 1))
                    for part in parts:
                        outputs[:, part.output] += part.outputs
                    visits.take(batch, outputs)
                everyone(NeuronVisits.end)
        path = np.concatenate([part.path for part in parts])
        moved = [replace(own, path=path[block.rows]) for block, own in zip(self._blocks, lists, strict=True)]
        return self._settle(lists, moved, step, sum(part.sampled for part in parts))

    @property
    def begun(self) -> int:
        """How many there have been."""
        return self._begun

    @property
    def nbytes(self) -> int:
        """Of what is kept from one epoch to the next."""
        return sum(margins.nbytes for margins in self._known[1])

    def state(self, lists: list[Lists]) -> dict[str, np.ndarray]:
        """What decides when neurons leave their skins."""
        skins = [np.concatenate(parts) for parts in zip(*(own.skins for own in lists), strict=True)]
        numbers = np.array([self._begun, self._skins.scale])
        return {"epochs": numbers, "reference": self._reference, "skins": np.stack(skins)}

    def restored(self, state: dict[str, np.ndarray]) -> list[Lists]:
        """The lists of an earlier run, who fires included."""
        self._begun, scale = int(state["epochs"][0]), float(state["epochs"][1])
        self._reference[:], self._skins = state["reference"], replace(self._skins, scale=scale)
        layer, samples = self._layer, self._inputs.shape[0]

        def restore(block: Chunk) -> Lists:
            (path, skin, made), weights = state["skins"][:, block.rows], layer.weight[block.rows]
            lists, everyone = Lists.none(path.size, samples), np.arange(path.size)
            lists = self._skins.renewed(lists, everyone, self._reference[block.rows], skin, 0)
            near_lists.evaluate(
                weights, self._inputs, layer.threshold, layer.coefficients[block.rows], lists.entries,
                np.zeros(samples), np.empty(0),
            )  # fmt: skip
            return replace(lists, path=path.copy(), made=made.copy())

        with serial_blas(), np.errstate(over="ignore", invalid="ignore"):
            return list(ordered_map(restore, self._blocks, self._threads))

    def _margins(self, lists: list[Lists]) -> list[np.ndarray]:
        """⟨w_r, x_i⟩ − b of the listed pairs."""
        of, margins = self._known
        if len(of) == len(lists) and all(one is other for one, other in zip(of, lists, strict=True)):
            return margins
        layer, everyone = self._layer, np.zeros(self._inputs.shape[0], np.int64)

        def evaluate(work: tuple[Chunk, Lists]) -> np.ndarray:
            block, own = work
            margins = np.empty(own.samples.size, layer.weight.dtype)
            weights = layer.weight[block.rows]
            kernels.margins_of(weights, self._inputs, layer.threshold, own.start, own.samples, everyone, margins)
            return margins

        return list(ordered_map(evaluate, zip(self._blocks, lists, strict=True), self._threads))

    def _settle(self, before: list[Lists], moved: list[Lists], step: int, sampled: int) -> Epoch:
        """Who fires at the weights; lists with the path there, those from which flips are counted."""
        layer, parts = self._layer, []
        outputs = np.tile(layer.silent, (self._inputs.shape[0], 1))

        def settle(work: tuple[Chunk, Lists, Lists]) -> _Settled:
            block, old, lists = work
            weights, reference = layer.weight[block.rows], self._reference[block.rows]
            with np.errstate(over="ignore", invalid="ignore"):
                lists, leaving = self._skins.leaving(
                    lists, weights, weights, reference, step, np.zeros(lists.path.size)
                )
                skin = self._skins.best(lists, leaving, step)
                after = self._skins.renewed(lists, leaving, weights, skin, step)
                reference[leaving] = weights[leaving]
                total, margins = np.zeros(self._inputs.shape[0]), np.empty(after.samples.size, weights.dtype)
                near_lists.evaluate(
                    weights, self._inputs, layer.threshold, layer.coefficients[block.rows], after.entries, total,
                    margins,
                )  # fmt: skip
            return _Settled(after, margins, total, old.flips(after, leaving, total.size), leaving.size)

        with serial_blas():
            work = zip(self._blocks, before, moved, strict=True)
            for block, part in zip(self._blocks, ordered_map(settle, work, self._threads), strict=True):
                parts.append(part)
                outputs[:, block.output] += part.outputs
        lists, renewed = [part.lists for part in parts], sum(part.renewed for part in parts)
        self._known = lists, [part.margins for part in parts]
        evaluated = sum(own.samples.size for own in lists) + renewed * outputs.shape[0] + sampled
        return Epoch(lists, outputs, sum(part.flips for part in parts), evaluated, renewed)


def _stretches(minibatches: Minibatches) -> Iterator[Minibatches]:
    """Batches in which no sample comes twice, and not too many."""
    first, seen = 0, set()
    for step in range(len(minibatches)):
        batch = minibatches.batch(step).tolist()
        if seen and (len(seen) + len(batch) > _VISITS or not seen.isdisjoint(batch)):
            yield minibatches.part(first, step)
            first, seen = step, set()
        seen.update(batch)
    yield minibatches.part(first, len(minibatches))


def _dealt(blocks: list[Chunk]) -> list[list[tuple[int, Chunk]]]:
    """Numbers and neurons of the blocks of each part."""
    parts: list[list[tuple[int, Chunk]]] = []
    for number, block in enumerate(blocks):
        if not parts or block.output != parts[-1][0][1].output or block.last - parts[-1][0][1].first > _PART:
            parts.append([])
        parts[-1].append((number, block))
    return parts
