"""A run on Verlet lists: steps that look at all weights, and between them steps in sample space."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.threads import ordered_map, serial_blas
from widefit.kernels.verlet import inner_steps
from widefit.kernels.verlet import near_lists as kernels
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, TrackerReport, Tracking, Trial, Update
from widefit.trackers.dense import block_rows
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import Chunk, FirePattern
from widefit.trackers.layer import Layer, refuse_unstored, write_readout
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.verlet.blocks import BlockTrial, blocks_of
from widefit.trackers.verlet.epochs import ListEpochs
from widefit.trackers.verlet.inner_steps import Ahead, Carried, InnerStep, InnerSteps, NearPairs, half_of
from widefit.trackers.verlet.lookahead import Forecast, Outlook
from widefit.trackers.verlet.near_lists import Lists, Skins
from widefit.trackers.verlet.validation import check_state

_NAME = "verlet-list"
# Skin of the first lists, in units of the size of a weight.
_FIRST_SKIN = 0.1
# A product with H has to be cheaper than a step on lists: n² / m k d / this.
_DEAR = 2


class VerletListTracking(Tracking):
    """See `widefit.trackers.VerletList`."""

    def __init__(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
        price: float,
        state: dict[str, np.ndarray] | None,
    ):
        refuse_unstored(_NAME, network)
        self._network, self._threads, self._layer = network, threads, replace(Layer.of(network), anchor=anchor)
        self._epochs: ListEpochs | None = None
        # Weights of our own, in float64: the network's stay where they are until they are asked for.
        self._own = anchor is None
        if self._own:
            inputs = inputs.astype(np.float64)
            weight, threshold = self._layer.weight.astype(np.float64), np.float64(self._layer.threshold)
            self._layer = replace(self._layer, weight=weight, threshold=threshold)
        weight, samples, self._inputs = self._layer.weight, inputs.shape[0], inputs
        size = float(np.sqrt(np.sum(np.square(weight, dtype=np.float64)) / len(weight))) + abs(self._layer.threshold)
        # Of a pre-activation, over ‖w‖ (1 + ‖x‖).
        self._rounding = 8 * float(np.finfo(np.float64).eps) * (inputs.shape[1] + 16)
        self._least = self._rounding * float(size) / max(float(np.abs(self._layer.coefficients).max()), 1e-300)
        self._reference, self._moved = weight.copy(), weight.copy()
        self._step = self._passes = self._evaluated = self._renewed = self._flips = 0
        self._proposed: Trial | None = None
        self._skins = Skins.over(inputs, self._layer.threshold)
        self._blocks = blocks_of(self._layer.groups, block_rows(samples))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="widefit")
        self._inner: list[InnerSteps] = []
        self._similarity: np.ndarray | None = None
        self._lists = [Lists.none(block.last - block.first, samples) for block in self._blocks]
        self._skin = _FIRST_SKIN * float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))) or 1.0
        self._take(self._over_blocks(self._anew, None))
        # Pairs of a neuron for every unit of distance next to the threshold.
        near = max(1, sum(np.count_nonzero(~lists.fires) for lists in self._lists)) / weight.shape[0] / self._skin
        self._skins = replace(self._skins, scale=price * samples / near)
        self._outlook = Outlook(self._layer.silent.size, near)
        if state:
            self._restore(state)

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

    def _over_blocks(self, trial_of: Callable[[tuple[Chunk, Lists]], BlockTrial], update: Update | None) -> Trial:
        """What becomes of every block; no update: nothing moves, and all neurons are looked at."""
        samples, outputs = self._inputs.shape[0], self._layer.silent.size
        result = np.tile(self._layer.silent, (samples, 1))
        displacement = Displacement(np.zeros((samples, outputs)), np.zeros(outputs))
        parts: list[BlockTrial] = []
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

    def _anew(self, work: tuple[Chunk, Lists]) -> BlockTrial:
        """One block where it is, with new lists."""
        block, lists = work
        self._moved[block.rows] = self._layer.weight[block.rows]
        with np.errstate(over="ignore", invalid="ignore"):
            everyone = np.arange(lists.path.size)
            return self._evaluate(block, lists, everyone, np.full(everyone.size, self._skin))

    def _follow(self, update: Update, work: tuple[Chunk, Lists]) -> BlockTrial:
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
    ) -> BlockTrial:
        """Who fires at the weights in `_moved`, once some lists have been made anew."""
        layer, moved = self._layer, self._moved[block.rows]
        coefficients, outputs = layer.coefficients[block.rows], np.zeros(self._inputs.shape[0])
        after = self._skins.renewed(lists, leaving, moved, skin, self._step)
        kernels.evaluate(moved, self._inputs, layer.threshold, coefficients, after.entries, outputs, np.empty(0))
        flips = lists.flips(after, leaving, outputs.size)
        if layer.anchor is None:
            return BlockTrial(block, after, leaving, outputs, flips, None, 0.0)
        offset, response = moved - layer.anchor[block.rows], np.zeros_like(outputs)
        kernels.respond(offset, self._inputs, coefficients, after.entries, response)
        return BlockTrial(block, after, leaving, outputs, flips, response, float(np.vdot(offset, offset)))

    def _anchor(self, block: Chunk) -> Float[np.ndarray, "rows d"]:
        weight, anchor = self._layer.weight, self._layer.anchor
        return weight[:0] if anchor is None else anchor[block.rows]

    # Looking ahead.

    def _look_ahead(self, g: Float[np.ndarray, "n k"], gram: Grams) -> bool:
        """Whether there are inner steps that cover this one; if need be, from a look at all weights."""
        if self._inner and all(inner.covers(g[:, output]) for output, inner in enumerate(self._inner)):
            return True
        if not np.all(np.isfinite(g)) or not self._worth_a_look(g):
            return False
        halves = [inner.settle() for inner in self._inner]
        if not halves:
            halves = [half_of(gram(output).counts) for output in range(g.shape[1])]
        forecasts, carried = self._outlook.forecasts(g, self._skins.norms, self._least), self._carried()
        trial = self._over_blocks(partial(self._look, forecasts, carried), Update(0 * g, np.zeros(g.shape[1])))
        self._take(trial)
        self._inner = []
        near = [[part.near for part in trial.payload if part.chunk.output == output] for output in range(g.shape[1])]
        if any(None in parts for parts in near):
            self._outlook.wait()
            return False
        for output, (forecast, parts, half) in enumerate(zip(forecasts, near, halves, strict=True)):
            self._inner.append(InnerSteps(forecast, NearPairs.join(parts), *self._problem(output), half))
        return True

    def _worth_a_look(self, g: Float[np.ndarray, "n k"]) -> bool:
        neurons, features = self._layer.weight.shape
        firing = sum(int(np.count_nonzero(lists.fires)) for lists in self._lists)
        if not self._inner:
            if len(g) ** 2 > firing * features / _DEAR:
                return False
            size = float(np.sqrt(np.mean(np.square(self._layer.coefficients))))
            return self._outlook.promising(g, self._skins.norms, size, neurons, firing)
        totals = np.stack([inner.total for inner in self._inner], axis=1) + g
        forecasts, idle = [inner.forecast for inner in self._inner], sum(inner.idle for inner in self._inner)
        pays = self._outlook.learn(forecasts, totals, self._inner[0].steps, idle, firing * features, firing / neurons)
        if not pays:
            self._fold()
        return pays

    def _look(self, forecasts: list[Forecast], carried: list[Carried], work: tuple[Chunk, Lists]) -> BlockTrial:
        """One block where inner steps have taken it, and its pairs that the next ones can take to the threshold."""
        block, lists = work
        weights, moved, forecast = self._layer.weight[block.rows], self._moved[block.rows], forecasts[block.output]
        brought = self._bring(carried, work)
        ahead = Ahead.of(forecast, moved, self._layer.coefficients[block.rows], self._inputs, lists)
        far, outputs = ahead.reach(lists), np.zeros(self._inputs.shape[0])
        rounding = self._rounding * (np.linalg.norm(moved, axis=1) + abs(self._layer.threshold))
        while True:
            longer, leaving = self._skins.leaving(lists, weights, moved, self._reference[block.rows], self._step, far)
            skin = np.maximum(self._skins.best(longer, leaving, self._step), 1.5 * far[leaving])
            after = self._skins.renewed(longer, leaving, moved, skin, self._step)
            outputs[:], margins = 0, np.empty(after.samples.size)
            kernels.evaluate(
                moved, self._inputs, self._layer.threshold, ahead.coefficients, after.entries, outputs, margins
            )
            if brought is not None:
                inner_steps.restore(after.entries, *brought)
            near, reached = ahead.near(after, margins, self._skins.norms, rounding)
            if near is None:
                return BlockTrial(block, after, leaving, outputs, 0, None, 0.0)
            short = after.path + reached > after.skin
            if not np.any(short & (reached > 0)):
                return BlockTrial(
                    block, after, leaving, outputs, 0, None, 0.0, NearPairs.of(block, after, margins, near)
                )
            far = np.where(short, 1.5 * reached, far)

    def _carried(self) -> list[Carried]:
        return [inner.carried() for inner in self._inner]

    def _bring(self, carried: list[Carried], work: tuple[Chunk, Lists]) -> tuple | None:
        """Bring a block to where inner steps have taken it, into `_moved`; its near pairs and whether they fire."""
        block, lists = work
        weights, moved = self._layer.weight[block.rows], self._moved[block.rows]
        if not carried:
            moved[:] = weights
            return None
        steps, coefficients = carried[block.output], self._layer.coefficients[block.rows]
        neurons, samples, fires, amounts = steps.of(block.first, block.last)
        inner_steps.restore(lists.entries, neurons, samples, fires)
        kernels.move(
            weights, weights[:0], weights.dtype.type(0), coefficients, steps.total, self._inputs, lists.entries, moved
        )
        inner_steps.fold(moved, coefficients, self._inputs, neurons, samples, amounts)
        return neurons, samples, fires

    def _bring_all(self) -> None:
        """Bring all weights to where inner steps have taken them, into `_moved`; the lists say who fires there."""
        self._proposed = None
        work = zip(self._blocks, self._lists, strict=True)
        for _ in ordered_map(partial(self._bring, self._carried()), work, self._threads):
            pass

    def _fold(self) -> None:
        """End the inner steps: the weights are where they have taken them."""
        if not self._inner:
            return
        self._bring_all()
        way = np.linalg.norm(self._moved - self._layer.weight, axis=1) * (1 + 1e-6)
        for block, lists in zip(self._blocks, self._lists, strict=True):
            lists.path[:] += way[block.rows]
        self._layer.weight[:] = self._moved
        self._inner = []

    def _problem(self, output: int) -> tuple[np.ndarray, np.ndarray, float]:
        """What inner steps of an output have to know: coefficients, K, and a² / m."""
        coefficients = self._layer.coefficients
        if self._similarity is None:
            self._similarity = self._inputs @ self._inputs.T
        return coefficients, self._similarity, float(coefficients[self._layer.groups[output][0]] ** 2)

    # Carrying it out.

    def commit(self, trial: Trial) -> None:
        self._flips += trial.flips
        if isinstance(trial.payload[0], InnerStep) and all(step.fits(self._inner) for step in trial.payload):
            for step in trial.payload:
                step.steps.commit(step)
                self._evaluated += step.after.size
            self.outputs = trial.outputs
            return
        if trial is not self._proposed:
            # The weights that it goes to have been written over: find them again.
            self._fold()
            trial = self._over_blocks(partial(self._follow, trial.update), trial.update)
        self._take(trial)
        self._outlook.passed(trial.update.g)

    def _take(self, trial: Trial) -> None:
        def write(work: tuple[Chunk, BlockTrial]) -> None:
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
        """Steps along the samples go by the lists (`ListEpochs`), but for the first, from which their speed is known.

        Others look at the samples of each batch alone, as with `Dense`, and the lists are made anew in the end.
        """
        self._fold()
        gram.follow(None)
        if self._layer.anchor is not None or not minibatches.plain:
            descend(self._layer, self._inputs, minibatches, self._threads)
            if minibatches.trains_readout:
                write_readout(self._layer.coefficients, self._network)
            trial = self._over_blocks(self._anew, None)
            self._take(trial)
            self._flips += trial.flips
            return trial.flips
        epochs = self._by_lists()
        self._step += 1
        self._passes += epochs.begun == 0
        epoch = epochs.descend(minibatches, self._lists, self._step)
        self._lists, self.outputs, self._proposed = epoch.lists, epoch.outputs, None
        self._evaluated += epoch.evaluated
        self._renewed += epoch.renewed
        self._flips += epoch.flips
        return epoch.flips

    def _by_lists(self) -> ListEpochs:
        if self._epochs is None:
            self._epochs = ListEpochs(
                self._layer, self._inputs, self._skins, self._reference, self._blocks, self._threads
            )
        return self._epochs

    # What others see.

    def patterns(self) -> Sequence[FirePattern]:
        carried, samples = self._carried(), self._inputs.shape[0]
        for block, lists in zip(self._blocks, self._lists, strict=True):
            if carried:
                inner_steps.restore(lists.entries, *carried[block.output].of(block.first, block.last)[:3])
        return [lists.pattern(block, samples) for block, lists in zip(self._blocks, self._lists, strict=True)]

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        if self._inner:
            self._bring_all()
        if out is not self._layer.weight:
            out[...] = self._moved if self._inner else self._layer.weight

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

    def state(self) -> dict[str, np.ndarray]:
        """The weights where inner steps began, and those; nothing as long as the network has the weights."""
        if not self._own:
            return {}
        with self.materialized():
            held = {"weight": self._layer.weight, "outputs": self.outputs} | self._outlook.state()
            if self._epochs is not None:
                held |= self._epochs.state(self._lists)
            for output, inner in enumerate(self._inner):
                held |= {f"{output}.{name}": array for name, array in inner.state().items()}
            return held

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        check_state(state, self._layer.weight, self._inputs.shape[0], self._layer.groups)
        self._layer.weight[:] = state["weight"]
        if "epochs" in state:
            self._lists = self._by_lists().restored(state)
            self._step += self._by_lists().begun
        else:
            self._take(self._over_blocks(self._anew, None))
        self.outputs = state["outputs"].copy()
        self._outlook.restore(state)
        for output in range(self._layer.silent.size):
            own = {name.split(".", 1)[1]: array for name, array in state.items() if name.startswith(f"{output}.")}
            if own:
                self._inner.append(InnerSteps.restored(own, self._skins.norms, *self._problem(output)))

    def report(self) -> TrackerReport:
        held = [self._reference, self._moved, *self._lists, *self._inner]
        held += [] if self._epochs is None else [self._epochs]
        return TrackerReport(
            tracker=_NAME,
            full_passes=self._passes,
            pairs_evaluated=self._evaluated,
            flips=self._flips,
            firing_pairs=sum(int(np.count_nonzero(lists.fires)) for lists in self._lists),
            bytes_held=sum(part.nbytes for part in held),
            keys_updated=self._renewed,
        )
