"""Steps between two looks at the weights, in sample space, of all outputs (multiple time steps of near pairs)."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import ordered_map
from widefit.kernels.verlet import inner_steps, near_lists
from widefit.trackers.base import Grams, Trial, Update
from widefit.trackers.counters import Counters
from widefit.trackers.verlet.block_forecast import BlockForecast
from widefit.trackers.verlet.blocks import BlockTrial
from widefit.trackers.verlet.forecast import Forecast
from widefit.trackers.verlet.lookahead import LookaheadSchedule
from widefit.trackers.verlet.near_pairs import NearPairs
from widefit.trackers.verlet.output_steps import OutputStep, OutputSteps, PendingUpdate, half_counts
from widefit.trackers.verlet.run_lists import RunLists, Work

# A product with H has to be cheaper than a step on lists: n² / m k d / this.
_DEAR = 2


class InnerSteps:
    """Steps that leave the weights behind, from a look ahead on until a step is not like those it has foreseen.

    Attributes
    ----------
    schedule
        When to look ahead, and how far.
    """

    def __init__(self, run: RunLists):
        layer = run.layer
        weight = layer.weight
        size = float(np.sqrt(np.sum(np.square(weight, dtype=np.float64)) / len(weight))) + abs(layer.threshold)
        self._run = run
        # Rounding of a pre-activation, over ‖w‖ (1 + ‖x‖).
        self._rounding = 8 * float(np.finfo(np.float64).eps) * (run.inputs.shape[1] + 16)
        self._least = self._rounding * float(size) / max(float(np.abs(layer.coefficients).max()), 1e-300)
        self._steps: list[OutputSteps] = []
        self._similarity: np.ndarray | None = None
        self._executor = ThreadPoolExecutor(run.threads, thread_name_prefix="widefit")
        self.schedule = LookaheadSchedule(layer.silent.size, run.density)

    @property
    def active(self) -> bool:
        """True between two looks at the weights."""
        return bool(self._steps)

    @property
    def nbytes(self) -> int:
        """Memory of the steps."""
        return sum(steps.nbytes for steps in self._steps)

    # Steps.

    def propose(self, update: Update, gram: Grams) -> Trial | None:
        """Find out the effect of an update that does not shrink; None where no look ahead covers it."""
        if not self._covers(update.g, gram):
            return None
        steps = [
            own.propose(np.ascontiguousarray(update.g[:, output]), self._run.threads, self._executor)
            for output, own in enumerate(self._steps)
        ]
        outputs = self._run.outputs + np.stack([step.change for step in steps], axis=1)
        return Trial(update, outputs, sum(step.flips for step in steps), False, None, steps)

    def commit(self, trial: Trial) -> bool:
        """Carry a trial out, if it is the next of these steps; return False otherwise."""
        steps: list[OutputStep] = trial.payload
        if not (isinstance(steps[0], OutputStep) and all(step.fits(self._steps) for step in steps)):
            return False
        for step in steps:
            step.steps.commit(step)
            self._run.counters += Counters(pairs_evaluated=step.after.size)
        self._run.outputs = trial.outputs
        return True

    def end(self) -> None:
        """Bring the weights to where the steps have taken them, and end the steps."""
        if not self._steps:
            return
        run = self._run
        self._move_all()
        way = np.linalg.norm(run.moved - run.layer.weight, axis=1) * (1 + 1e-6)
        for block, lists in zip(run.blocks, run.lists, strict=True):
            lists.path[:] += way[block.rows]
        run.layer.weight[:] = run.moved
        self._steps = []

    def close(self) -> None:
        """Release the threads."""
        self._executor.shutdown()

    # Looking ahead.

    def _covers(self, g: Float[np.ndarray, "n k"], gram: Grams) -> bool:
        """Return True where the steps cover this one, if need be after a look ahead."""
        if self._steps and all(steps.covers(g[:, output]) for output, steps in enumerate(self._steps)):
            return True
        if not np.all(np.isfinite(g)) or not self._worth_a_look(g):
            return False
        halves = [steps.updated_counts() for steps in self._steps]
        if not halves:
            counts = [gram(output).counts for output in range(g.shape[1])]
            halves = [half_counts(own) for own in counts if own is not None]
            if len(halves) < len(counts):
                return False
        return self._look_ahead(g, halves)

    def _worth_a_look(self, g: Float[np.ndarray, "n k"]) -> bool:
        run = self._run
        neurons, features = run.layer.weight.shape
        firing = run.firing
        if not self._steps:
            if len(g) ** 2 > firing * features / _DEAR:
                return False
            size = float(np.sqrt(np.mean(np.square(run.layer.coefficients))))
            return self.schedule.should_look(g, run.skins.norms, size, neurons, firing)
        pays = self.schedule.update(
            forecasts=[steps.forecast for steps in self._steps],
            totals=np.stack([steps.total for steps in self._steps], axis=1) + g,
            steps=self._steps[0].steps,
            idle=sum(steps.idle for steps in self._steps),
            look=firing * features,
            row=firing / neurons,
        )
        if not pays:
            self.end()
        return pays

    def _look_ahead(self, g: Float[np.ndarray, "n k"], halves: list[np.ndarray]) -> bool:
        """Begin new steps from a look at all weights; return False where too many pairs are near the threshold."""
        run = self._run
        forecasts = self.schedule.forecasts(g, run.skins.norms, self._least)
        evaluate_block = partial(self._evaluate_block, forecasts, self._pending())
        trial = run.evaluate(evaluate_block, Update(0 * g, np.zeros(g.shape[1])))
        run.adopt(trial)
        self._steps = []
        near = [[part.near for part in trial.payload if part.chunk.output == output] for output in range(g.shape[1])]
        if any(None in parts for parts in near):
            self.schedule.back_off()
            return False
        for output, (forecast, parts, half) in enumerate(zip(forecasts, near, halves, strict=True)):
            self._steps.append(OutputSteps(forecast, NearPairs.joined(parts), *self._problem(output), half))
        return True

    def _evaluate_block(self, forecasts: list[Forecast], pending: list[PendingUpdate], work: Work) -> BlockTrial:
        """Bring one block up to date, and find its pairs that the next steps can take to the threshold."""
        block, lists = work
        run = self._run
        layer = run.layer
        weights = layer.weight[block.rows]
        moved = run.moved[block.rows]
        reference = run.reference[block.rows]
        brought = self._move_block(pending, work)
        ahead = BlockForecast.of(forecasts[block.output], moved, layer.coefficients[block.rows], run.inputs, lists)
        rounding = self._rounding * (np.linalg.norm(moved, axis=1) + abs(layer.threshold))
        far = ahead.reach(lists)
        while True:
            longer, leaving = run.skins.leaving(lists, weights, moved, reference, run.step, far)
            skin = np.maximum(run.skins.best(longer, leaving, run.step), 1.5 * far[leaving])
            after = run.skins.renewed(longer, leaving, moved, skin, run.step)
            outputs = np.zeros(run.inputs.shape[0])
            margins = np.empty(after.samples.size)
            near_lists.evaluate(moved, run.inputs, layer.threshold, ahead.coefficients, after.entries, outputs, margins)
            if brought is not None:
                inner_steps.restore(after.entries, *brought)
            near, reached = ahead.near(after, margins, run.skins.norms, rounding)
            if near is None:
                return BlockTrial(block, after, leaving, outputs)
            short = after.path + reached > after.skin
            if not np.any(short & (reached > 0)):
                return BlockTrial(block, after, leaving, outputs, near=NearPairs.of(block, after, margins, near))
            far = np.where(short, 1.5 * reached, far)

    def _problem(self, output: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the coefficients, K, and a² / m of an output."""
        layer = self._run.layer
        if self._similarity is None:
            self._similarity = self._run.inputs @ self._run.inputs.T
        return layer.coefficients, self._similarity, float(layer.coefficients[layer.groups[output][0]] ** 2)

    # The weights behind.

    def weights(self) -> Float[np.ndarray, "m d"]:
        """Return W after the steps; not a copy."""
        if not self._steps:
            return self._run.layer.weight
        self._move_all()
        return self._run.moved

    def write_firing(self) -> None:
        """Write who fires into the lists."""
        pending = self._pending()
        for block, lists in zip(self._run.blocks, self._run.lists, strict=True):
            if pending:
                near = pending[block.output].of(block.first, block.last)
                inner_steps.restore(lists.entries, near.neurons, near.samples, near.fires)

    def _pending(self) -> list[PendingUpdate]:
        return [steps.pending() for steps in self._steps]

    def _move_all(self) -> None:
        """Bring all weights to where the steps have taken them, into `moved`; the lists tell who fires there."""
        run = self._run
        run.proposed = None
        work = zip(run.blocks, run.lists, strict=True)
        for _ in ordered_map(partial(self._move_block, self._pending()), work, run.threads):
            pass

    def _move_block(self, pending: list[PendingUpdate], work: Work) -> tuple | None:
        """Bring a block to where the steps have taken it; return its near pairs and whether they fire."""
        block, lists = work
        run = self._run
        weights = run.layer.weight[block.rows]
        moved = run.moved[block.rows]
        if not pending:
            moved[:] = weights
            return None
        coefficients = run.layer.coefficients[block.rows]
        own = pending[block.output].of(block.first, block.last)
        inner_steps.restore(lists.entries, own.neurons, own.samples, own.fires)
        near_lists.move(
            weights, weights[:0], weights.dtype.type(0), coefficients, own.total, run.inputs, lists.entries, moved
        )
        inner_steps.fold(moved, coefficients, run.inputs, own.neurons, own.samples, own.amounts)
        return own.neurons, own.samples, own.fires

    # Checkpoints.

    def state(self) -> dict[str, np.ndarray]:
        """Return the steps of every output."""
        return {
            f"{output}.{name}": array
            for output, steps in enumerate(self._steps)
            for name, array in steps.state().items()
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from the arrays of `state`."""
        for output in range(self._run.layer.silent.size):
            own = {name.split(".", 1)[1]: array for name, array in state.items() if name.startswith(f"{output}.")}
            if own:
                self._steps.append(OutputSteps.restored(own, self._run.skins.norms, *self._problem(output)))
