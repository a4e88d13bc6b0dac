"""Run on Verlet lists: steps in sample space where a look ahead covers them, any other steps on the lists."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Grams, TrackerReport, Tracking, Trial, Update
from widefit.trackers.descent import descend
from widefit.trackers.fire_pattern import FirePattern
from widefit.trackers.layer import Layer, write_readout
from widefit.trackers.minibatches import Minibatches
from widefit.trackers.verlet.epochs import Epochs
from widefit.trackers.verlet.every_step import EveryStep
from widefit.trackers.verlet.inner_steps import InnerSteps
from widefit.trackers.verlet.run_lists import RunLists
from widefit.trackers.verlet.validation import check_state

_NAME = "verlet-list"


class VerletListTracking(Tracking):
    """Run of the tracker of Verlet lists; see `widefit.trackers.VerletList`."""

    def __init__(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        anchor: Float[np.ndarray, "m d"] | None,
        threads: int,
        price: float,
        state: dict[str, np.ndarray] | None,
    ):
        layer = Layer.trained_by(_NAME, network, anchor)
        # Weights of our own, in float64: the network's stay where they are until they are asked for.
        self._own = anchor is None
        if self._own:
            inputs = inputs.astype(np.float64)
            layer = replace(layer, weight=layer.weight.astype(np.float64), threshold=np.float64(layer.threshold))
        self._network = network
        self._run = RunLists(layer, inputs, threads, price)
        self._every_step = EveryStep(self._run)
        self._inner_steps = InnerSteps(self._run)
        self._epochs = Epochs(self._run)
        self._flips = 0
        if state:
            self._restore(state)

    @property
    def outputs(self) -> Float[np.ndarray, "n k"]:
        """f at the committed weights."""
        return self._run.outputs

    @property
    def displacement(self) -> Displacement | None:
        """Displacement of the committed weights from W₀; None unless the run has an anchor."""
        return self._run.displacement

    # Steps.

    def propose(self, update: Update, gram: Grams) -> Trial:
        if self._own and not np.any(update.shrink):
            trial = self._inner_steps.propose(update, gram)
            if trial is not None:
                return trial
        self._inner_steps.end()
        return self._every_step.propose(update)

    def commit(self, trial: Trial) -> None:
        self._flips += trial.flips
        if self._inner_steps.commit(trial):
            return
        self._inner_steps.end()
        self._every_step.commit(trial)
        self._inner_steps.schedule.record_plain_step(trial.update.g)

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Take stochastic steps; those that move the first layer alone, along the samples, go by the lists (`Epochs`).

        Others look at the samples of each batch alone, as with `Dense`, and the lists are made anew in the end.
        """
        self._inner_steps.end()
        gram.follow(None)
        if self._own and minibatches.plain:
            flips = self._epochs.descend(minibatches)
        else:
            flips = self._descend_densely(minibatches)
        self._flips += flips
        return flips

    def _descend_densely(self, minibatches: Minibatches) -> int:
        run = self._run
        descend(run.layer, run.inputs, minibatches, run.threads)
        if minibatches.trains_readout:
            write_readout(run.layer.coefficients, self._network)
        trial = run.rescan()
        run.adopt(trial)
        return trial.flips

    # Views for others.

    def patterns(self) -> Sequence[FirePattern]:
        self._inner_steps.write_firing()
        run = self._run
        samples = run.inputs.shape[0]
        return [lists.pattern(block, samples) for block, lists in zip(run.blocks, run.lists, strict=True)]

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        weight = self._inner_steps.weights()
        if out is not self._run.layer.weight:
            out[...] = weight

    @contextmanager
    def materialized(self) -> Iterator[None]:
        if self._own:
            self.write_weights(self._network.weight.detach().numpy())
        yield

    def finish(self) -> None:
        """Write the weights, unless every commit has."""
        if self._own:
            self.write_weights(self._network.weight.detach().numpy())
        self._inner_steps.close()

    def state(self) -> dict[str, np.ndarray]:
        """Return the weights where inner steps began, and the steps; nothing while the network has the weights."""
        if not self._own:
            return {}
        with self.materialized():
            weights = {"weight": self._run.layer.weight, "outputs": self.outputs}
            return weights | self._inner_steps.schedule.state() | self._epochs.state() | self._inner_steps.state()

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        run = self._run
        check_state(state, run.layer.weight, run.inputs.shape[0], run.layer.groups)
        run.layer.weight[:] = state["weight"]
        if "epochs" in state:
            self._epochs.restore(state)
        else:
            run.adopt(run.rescan())
        run.outputs = state["outputs"].copy()
        self._inner_steps.schedule.restore(state)
        self._inner_steps.restore(state)

    def report(self) -> TrackerReport:
        counters = self._run.counters
        return TrackerReport(
            tracker=_NAME,
            full_passes=counters.full_passes,
            pairs_evaluated=counters.pairs_evaluated,
            flips=self._flips,
            firing_pairs=self._run.firing,
            bytes_held=self._run.nbytes + self._inner_steps.nbytes + self._epochs.nbytes,
            keys_updated=counters.keys_updated,
        )
