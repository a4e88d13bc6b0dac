"""Steps of which each moves the weights and evaluates the listed pairs."""

from functools import partial

import numpy as np

from widefit.kernels.verlet import near_lists as kernels
from widefit.trackers.base import Trial, Update
from widefit.trackers.verlet.blocks import BlockTrial
from widefit.trackers.verlet.run_lists import RunLists, Work


class EveryStep:
    """Steps on the lists of a run, one evaluation of all blocks each."""

    def __init__(self, run: RunLists):
        self._run = run

    def propose(self, update: Update) -> Trial:
        """Find out the effect of an update."""
        trial = self._run.evaluate(partial(self._evaluate_block, update), update)
        self._run.proposed = trial
        return trial

    def commit(self, trial: Trial) -> None:
        """Carry a trial out; where the weights that it goes to have been overwritten, find them again."""
        if trial is not self._run.proposed:
            trial = self._run.evaluate(partial(self._evaluate_block, trial.update), trial.update)
        self._run.adopt(trial)

    def _evaluate_block(self, update: Update, work: Work) -> BlockTrial:
        """Move one block, and evaluate it."""
        block, lists = work
        run = self._run
        layer = run.layer
        weights = layer.weight[block.rows]
        moved = run.moved[block.rows]
        shrink = weights.dtype.type(update.shrink[block.output])
        g = np.ascontiguousarray(update.g[:, block.output])
        with np.errstate(over="ignore", invalid="ignore"):
            kernels.move(
                weights, layer.anchor_of(block.rows), shrink, layer.coefficients[block.rows], g, run.inputs,
                lists.entries, moved,
            )  # fmt: skip
            still = np.zeros(moved.shape[0])
            lists, leaving = run.skins.leaving(lists, weights, moved, run.reference[block.rows], run.step, still)
            return run.evaluate_block(block, lists, leaving, run.skins.best(lists, leaving, run.step))
