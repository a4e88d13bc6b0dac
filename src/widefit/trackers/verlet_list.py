"""The tracker of Verlet lists: a neuron that has not moved far fires on no sample but those near it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import inner_steps, near_lists as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.dense import block_rows
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk, FirePattern
from widefit.trackers.inner_steps import Forecast, InnerStep, InnerSteps, NearPairs, half_of
from widefit.trackers.layer import Layer, refuse_unstored, write_readout
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.near_lists import Lists, Skins

# Skin of the first lists, in units of the size of a weight.
_FIRST_SKIN = 0.1
# Inner steps are worth their while as long as no more than one in so many of the pairs that fire is near the threshold.
_MANY = 8
# What a look costs for a pair that fires and a feature, in additions of an inner step.
_LOOK = 2.5
# Steps of the first look ahead.
_SHORT = 6.0
# Of a pre-activation, over ‖w‖ (1 + ‖x‖).
_ROUNDING = 1e-13


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
    near: NearPairs | None = None


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
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="widefit")
        self._inner: list[InnerSteps] = []
        self._own, self._stretch, self._waiting, self._pause = False, _SHORT, 0, 1
        self._before: np.ndarray | None = None
        self._shapes: list = [None] * self._layer.silent.size
        self._lists = [Lists.none(block.last - block.first, samples) for block in self._blocks]
        self._skin = _FIRST_SKIN * float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))) or 1.0
        self._take(self._over_blocks(self._anew, None))
        # Pairs of a neuron for every unit of distance next to the threshold.
        near = max(1, sum(np.count_nonzero(~lists.fires) for lists in self._lists)) / weight.shape[0] / self._skin
        self._density, self._skins = near, replace(self._skins, scale=price * samples / near)

    # A trial.

    def propose(self, update: Update, gram: Grams) -> Trial:
        if self._layer.anchor is None and not np.any(update.shrink) and self._look_ahead(update.g, gram):
            steps = [
                inner.propose(np.ascontiguousarray(update.g[:, output]), self._threads, self._executor)
                for output, inner in enumerate(self._inner)
            ]
            outputs = self.outputs + np.stack([step.change for step in steps], axis=1)
            return Trial(update, outputs, sum(step.flips for step in steps), False, None, steps)
        self._fold()
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
            still = np.zeros(moved.shape[0])
            lists, leaving = self._skins.leaving(lists, weights, moved, self._reference[block.rows], self._step, still)
            return self._evaluate(block, lists, leaving, self._skins.best(lists, leaving, self._step))

    def _evaluate(
        self, block: Chunk, lists: Lists, leaving: Int[np.ndarray, " q"], skin: Float[np.ndarray, " q"]
    ) -> _BlockTrial:
        """Who fires at the weights in `_moved`, once some lists have been made anew."""
        layer, moved = self._layer, self._moved[block.rows]
        coefficients, outputs = layer.coefficients[block.rows], np.zeros(self._inputs.shape[0])
        after = self._skins.renewed(lists, leaving, moved, skin, self._step)
        kernels.evaluate(moved, self._inputs, layer.threshold, coefficients, after.entries, outputs, np.empty(0))
        flips = lists.flips(after, leaving, outputs.size)
        if layer.anchor is None:
            return _BlockTrial(after, leaving, outputs, flips, None, 0.0)
        offset, response = moved - layer.anchor[block.rows], np.zeros_like(outputs)
        kernels.respond(offset, self._inputs, coefficients, after.entries, response)
        return _BlockTrial(after, leaving, outputs, flips, response, float(np.vdot(offset, offset)))

    def _anchor(self, block: Chunk) -> Float[np.ndarray, "rows d"]:
        weight, anchor = self._layer.weight, self._layer.anchor
        return weight[:0] if anchor is None else anchor[block.rows]

    # Inner steps.

    def _look_ahead(self, g: Float[np.ndarray, "n k"], gram: Grams) -> bool:
        """Whether there are inner steps that cover this one; if need be, from a look at all weights."""
        self._own_weights()
        if self._inner and all(inner.covers(g[:, output]) for output, inner in enumerate(self._inner)):
            return True
        if not self._inner and not self._quiet(g):
            return False
        if not np.all(np.isfinite(g)):
            return False
        self._learn(g)
        if self._waiting > 0:
            return False
        forecasts = [
            Forecast.of(direction, self._stretch, shape, self._skins.norms, self._least)
            for direction, shape in zip(np.ascontiguousarray(g.T), self._shapes, strict=True)
        ]
        halves = [inner.settle() for inner in self._inner] or [half_of(gram(output).counts) for output in range(g.shape[1])]
        amounts = self._synchronized()
        sums = self._sums()
        trial = self._over_blocks(partial(self._ahead, forecasts, sums, amounts), Update(sums, np.zeros(g.shape[1])))
        self._take(trial)
        if any(part.near is None for part in trial.payload):
            self._inner = []
            self._wait()
            return False
        by_output = [
            [part.near for block, part in zip(self._blocks, trial.payload, strict=True) if block.output == output]
            for output in range(g.shape[1])
        ]
        coefficients = self._layer.coefficients
        self._inner = [
            InnerSteps(forecast, NearPairs.join(parts), coefficients, self._similarity, half, float(coefficients[first] ** 2))
            for forecast, parts, half, (first, _) in zip(forecasts, by_output, halves, self._layer.groups, strict=True)
        ]
        return True

    def _ahead(
        self,
        forecasts: list[Forecast],
        sums: Float[np.ndarray, "n k"],
        amounts: list[tuple],
        work: tuple[Chunk, Lists],
    ) -> _BlockTrial:
        """One block where inner steps have taken it, and its pairs that the next ones can take to the threshold."""
        block, lists = work
        layer, moved, forecast = self._layer, self._moved[block.rows], forecasts[block.output]
        coefficients, rows = layer.coefficients[block.rows], block.last - block.first
        pairs = self._bring(block, lists, sums, amounts)
        direction, outputs = np.zeros_like(moved), np.zeros(self._inputs.shape[0])
        kernels.move(
            direction, moved[:0], moved.dtype.type(0), np.full(rows, -1.0), forecast.direction, self._inputs,
            lists.entries, direction,
        )  # fmt: skip
        far = np.empty(rows)
        inner_steps.reach(lists.entries, direction, coefficients, forecast.stretch, forecast.deviation, far)
        rounding = _ROUNDING * (np.linalg.norm(moved, axis=1) + abs(layer.threshold))
        fires = lists.fires
        start = lists
        while True:
            lists, leaving = self._skins.leaving(
                start, layer.weight[block.rows], moved, self._reference[block.rows], self._step, far
            )
            skin = np.maximum(self._skins.best(lists, leaving, self._step), 1.5 * far[leaving])
            after = self._skins.renewed(lists, leaving, moved, skin, self._step)
            margins = np.empty(after.samples.size)
            outputs[:] = 0
            kernels.evaluate(moved, self._inputs, layer.threshold, coefficients, after.entries, outputs, margins)
            if pairs is not None:
                inner_steps.restore(after.entries, *pairs)
            near, reached = np.zeros(margins.size, np.bool_), np.empty(rows)
            most = 64 + int(np.count_nonzero(after.fires)) // _MANY
            found = inner_steps.choose(
                after.entries, margins, direction, self._inputs, self._skins.norms, coefficients, forecast.stretch,
                forecast.deviation, forecast.swing, rounding, most, near, reached,
            )  # fmt: skip
            if found > most:
                return _BlockTrial(after, leaving, outputs, 0, None, 0.0, None)
            short = after.path + reached > after.skin
            if not np.any(short & (reached > 0)):
                break
            far = np.where(short, 1.5 * reached, far)
        return _BlockTrial(after, leaving, outputs, 0, None, 0.0, _near_pairs(block, after, margins, near))

    def _bring(self, block: Chunk, lists: Lists, sums: Float[np.ndarray, "n k"], amounts: list[tuple]) -> tuple | None:
        """Bring a block to where inner steps have taken it, into `_moved`; its near pairs and whether they fire."""
        weights, moved = self._layer.weight[block.rows], self._moved[block.rows]
        coefficients = self._layer.coefficients[block.rows]
        kernels.move(
            weights, weights[:0], weights.dtype.type(0), coefficients, np.ascontiguousarray(sums[:, block.output]),
            self._inputs, lists.entries, moved,
        )  # fmt: skip
        if not amounts:
            return None
        pairs, fires, added = amounts[block.output]
        own = slice(*np.searchsorted(pairs.neurons, [block.first, block.last]))
        neurons, samples = pairs.neurons[own] - block.first, pairs.samples[own]
        inner_steps.fold(moved, coefficients, self._inputs, neurons, samples, added[own])
        return neurons, samples, fires[own]

    def _synchronized(self) -> list[tuple]:
        """`InnerSteps.amounts` of every output, once the lists say who fires now."""
        amounts = [inner.amounts() for inner in self._inner]
        for block, lists in zip(self._blocks, self._lists, strict=True):
            if amounts:
                pairs, fires, _ = amounts[block.output]
                own = slice(*np.searchsorted(pairs.neurons, [block.first, block.last]))
                inner_steps.restore(lists.entries, pairs.neurons[own] - block.first, pairs.samples[own], fires[own])
        return amounts

    def _sums(self) -> Float[np.ndarray, "n k"]:
        """Sum of g over the inner steps."""
        if self._inner:
            return np.stack([inner.total for inner in self._inner], axis=1)
        return np.zeros((self._inputs.shape[0], self._layer.silent.size))

    def _fold(self) -> None:
        """End the inner steps: the weights are where they have taken them."""
        if self._inner:
            self._brought(self._layer.weight)
            self._inner = []
            self._proposed = None

    def _brought(self, out: Float[np.ndarray, "m d"]) -> None:
        """Write where inner steps have taken the weights; the lists say who fires there."""
        amounts, sums = self._synchronized(), self._sums()
        self._proposed = None

        def bring(work: tuple[Chunk, Lists]) -> None:
            block, lists = work
            before = self._layer.weight[block.rows].copy()
            self._bring(block, lists, sums, amounts)
            if out is self._layer.weight:
                lists.path[:] += np.linalg.norm(self._moved[block.rows] - before, axis=1) * (1 + 1e-6)
            out[block.rows] = self._moved[block.rows]

        for _ in ordered_map(bring, zip(self._blocks, self._lists, strict=True), self._threads):
            pass

    def _quiet(self, g: Float[np.ndarray, "n k"]) -> bool:
        """Whether inner steps like this one are likely to have few near pairs."""
        if self._before is None:
            return False
        self._shapes = [
            Forecast.of(first, 1.0, None, self._skins.norms, 0.0).shape(first + second)
            for first, second in zip(self._before.T, g.T, strict=True)
        ]
        layer, firing = self._layer, sum(int(np.count_nonzero(lists.fires)) for lists in self._lists)
        neurons = layer.weight.shape[0]
        size = float(np.sqrt(np.mean(np.square(layer.coefficients))))
        for direction, shape in zip(np.ascontiguousarray(g.T), self._shapes, strict=True):
            forecast = Forecast.of(direction, _SHORT, shape, self._skins.norms, 0.0)
            # Pairs that a pair which flips can take along, and those that the rest of the way can.
            along = 2 * size * self._density * float(forecast.swing.mean())
            off = 2 * size * self._density * float(forecast.deviation[min(firing // neurons + 1, len(g))])
            if not (along < 0.5 and neurons * off < (1 - along) * firing / _MANY):
                return False
        return True

    def _learn(self, g: Float[np.ndarray, "n k"]) -> None:
        """How far to look ahead, from the inner steps that end."""
        if not self._inner:
            self._waiting = max(0, self._waiting - 1)
            return
        steps = self._inner[0].steps
        self._shapes = [inner.forecast.shape(inner.total + g[:, c]) for c, inner in enumerate(self._inner)]
        firing = sum(int(np.count_nonzero(lists.fires)) for lists in self._lists)
        idle = sum(inner.size - inner.turned for inner in self._inner)
        row = 20 + firing / max(1, self._layer.weight.shape[0])
        look = _LOOK * firing * self._inputs.shape[1]
        self._stretch *= 1.4 if look > 2 * steps * idle * row else 1 / 1.4
        self._stretch = max(self._stretch, _SHORT)
        if steps < _SHORT / 2:
            self._fold()
            self._wait()
        else:
            self._pause = 1

    def _wait(self) -> None:
        """Looking ahead does not pay yet."""
        self._pause, self._stretch = min(32, 2 * self._pause), _SHORT
        self._waiting, self._before = self._pause, None

    def _own_weights(self) -> None:
        """Weights of our own, in float64: the network's stay where they are until they are asked for."""
        if self._own:
            return
        self._own = True
        layer, exact = self._layer, np.float64
        self._layer = replace(layer, weight=layer.weight.astype(exact), threshold=exact(layer.threshold))
        self._reference, self._moved = self._reference.astype(exact), self._layer.weight.copy()
        self._inputs = self._inputs.astype(exact)
        self._similarity = self._inputs @ self._inputs.T
        self._skins = replace(Skins.over(self._inputs, self._layer.threshold), scale=self._skins.scale)
        size = np.sqrt(np.mean(np.square(self._layer.weight))) * np.sqrt(self._inputs.shape[1]) + abs(layer.threshold)
        self._least = _ROUNDING * float(size) / max(float(np.abs(layer.coefficients).max()), 1e-300)
        self._proposed = None

    # Carrying it out.

    def commit(self, trial: Trial) -> None:
        steps = trial.payload
        if isinstance(steps[0], InnerStep):
            if all(step.steps is inner and step.number == inner.steps for step, inner in zip(steps, self._inner, strict=False)):
                for step in steps:
                    step.steps.commit(step)
                self._flips += trial.flips
                self._evaluated += sum(inner.size for inner in self._inner)
                self.outputs = trial.outputs
                return
        if trial is not self._proposed:
            # The weights that it goes to have been written over: find them again.
            self._fold()
            trial = self._over_blocks(partial(self._follow, trial.update), trial.update)
        self._take(trial)
        self._flips += trial.flips
        self._before = trial.update.g

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
        self._fold()
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
        self._synchronized()
        samples = self._inputs.shape[0]
        return [lists.pattern(block, samples) for block, lists in zip(self._blocks, self._lists, strict=True)]

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if self._inner:
            self._brought(out)
        elif out is not self._layer.weight:
            out[...] = self._layer.weight

    @contextmanager
    def materialized(self) -> Iterator[None]:
        if self._own:
            self.write_weights(self._network.weight.detach().numpy())
        yield

    def finish(self) -> None:
        """Write the weights, unless every commit has."""
        if self._own:
            self.write_weights(self._network.weight.detach().numpy())
        self._executor.shutdown()

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


def _near_pairs(block: Chunk, lists: Lists, margins: Float[np.ndarray, " listed"], near: np.ndarray) -> NearPairs:
    """The near pairs of a block, and the rows of their neurons."""
    places = np.flatnonzero(near)
    rows = np.searchsorted(lists.start, places, side="right") - 1
    awake, count = np.unique(rows, return_counts=True)
    fired = np.append(0, np.cumsum(lists.fires))[lists.start]
    room = np.diff(fired)[awake] + count
    first, length = np.cumsum(room) - room, np.empty(awake.size, np.int64)
    words = np.empty(int(room.sum()), lists.samples.dtype)
    inner_steps.rows_of(lists.entries, near, awake, first, length, words)
    return NearPairs(
        rows + block.first, lists.samples[places].astype(np.int64), margins[places], lists.fires[places],
        awake + block.first, length, first, words,
    )  # fmt: skip
