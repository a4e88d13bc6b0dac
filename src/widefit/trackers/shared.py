"""Run of a tracker whose neurons several processes share out: what their runs give, added up (this project)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float

from widefit.nn.shard import NeuronShard
from widefit.trackers.base import (
    Displacement,
    Grams,
    SummedGrams,
    Tracker,
    TrackerReport,
    Tracking,
    Trial,
    Update,
)
from widefit.trackers.certificate.shares import join_states, split_state
from widefit.trackers.dense import Dense
from widefit.trackers.fire_pattern import FirePattern


class SharedTracking(Tracking):
    """Run over the neurons of one process, with the outputs and the displacement of all.

    Every method that steps is called by all processes at once. A trial costs two messages: g and the shrinking, as the
    first process has them, and a sum of f, J (W − W₀) and ‖W − W₀‖², about 24 n k bytes in all. `patterns` and `report`
    are those of the neurons that are here.

    Parameters
    ----------
    own
        The run over the neurons of this process.
    network
        These neurons.
    """

    def __init__(self, own: Tracking, network: NeuronShard):
        self._own = own
        self._processes = network.processes
        self.outputs, self.displacement, _ = self._summed(own.outputs, own.displacement)

    @classmethod
    def start(
        cls,
        tracker: Tracker,
        network: NeuronShard,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> "SharedTracking":
        """Find the fire pattern; see `Tracker.start`. `state` is that of the neurons of all processes."""
        own = tracker.start(network, inputs, anchor=anchor, threads=threads, expected=expected)
        if state is None:
            return cls(own, network)
        slots = network.processes.gathered(_slots(own))
        mine = split_state(state, slots, network.processes.rank, *own.outputs.shape)
        # The state does not say who has which part of its sums: a pass does.
        initial = network.rows(0, network.width).copy()
        own = tracker.start(network, inputs, anchor=anchor, threads=threads, state=mine, expected=expected)
        with own.materialized():
            passed = Dense().start(network, inputs, anchor=initial, threads=threads)
        own.outputs, own.displacement = passed.outputs, passed.displacement
        shared = cls(own, network)
        shared._correct(state)
        return shared

    def propose(self, update: Update, gram: Grams) -> Trial:
        assert isinstance(gram, SummedGrams)
        g, shrink = (self._processes.same(torch.from_numpy(own)).numpy() for own in (update.g, update.shrink))
        own = self._own.propose(Update(g, shrink), gram.own)
        outputs, displacement, (flips, rebased) = self._summed(
            own.outputs, own.displacement, own.flips, float(own.rebased)
        )
        return Trial(own.update, outputs, int(flips), rebased > 0, displacement, own, own.changes)

    def commit(self, trial: Trial) -> None:
        self._own.commit(trial.payload)
        self.outputs = trial.outputs
        self.displacement = trial.displacement

    def patterns(self) -> Sequence[FirePattern]:
        return self._own.patterns()

    def report(self) -> TrackerReport:
        return self._own.report()

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        self._own.write_weights(out)

    @contextmanager
    def materialized(self) -> Iterator[None]:
        with self._own.materialized():
            yield

    def finish(self) -> None:
        self._own.finish()

    def state(self) -> dict[str, np.ndarray]:
        """Return the state of the neurons of all processes, as one process with all of them would have it."""
        own = self._own.state()
        if not own:
            return own
        told = self._processes.gathered((own, _slots(self._own)))
        found = join_states([state for state, _ in told], [slots for _, slots in told])
        assert self.displacement is not None
        response, squared_norm = self.displacement.response, self.displacement.squared_norm
        return found | {"outputs": self.outputs, "response": response, "squared_norm": squared_norm}

    def _summed(
        self, outputs: Float[np.ndarray, "n k"], displacement: Displacement | None, *numbers: float
    ) -> tuple[Float[np.ndarray, "n k"], Displacement | None, list[float]]:
        """Add up over the processes, in one message."""
        parts = [outputs]
        if displacement is not None:
            parts += [displacement.response, displacement.squared_norm]
        parts.append(np.array(numbers, np.float64))
        sizes = np.cumsum([part.size for part in parts])
        total = self._processes.sum(torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts]))).numpy()
        found = [sums.reshape(part.shape) for sums, part in zip(np.split(total, sizes[:-1]), parts, strict=True)]
        moved = None if displacement is None else Displacement(found[1], found[2])
        return found[0], moved, found[-1].tolist()

    def _correct(self, state: dict[str, np.ndarray]) -> None:
        """Take the sums of a state, which those of a pass differ from by rounding; the first process has the rest."""
        own, moved, total = self._own, self._own.displacement, self.displacement
        assert moved is not None
        assert total is not None
        if self._processes.rank == 0:
            own.outputs = own.outputs + (state["outputs"] - self.outputs)
            response = moved.response + (state["response"] - total.response)
            own.displacement = Displacement(response, moved.squared_norm + (state["squared_norm"] - total.squared_norm))
        self.outputs = state["outputs"].copy()
        self.displacement = Displacement(state["response"].copy(), state["squared_norm"].copy())


def _slots(tracking: Tracking) -> list[int]:
    """Return the rows of the fire pattern by output."""
    slots = np.zeros(tracking.outputs.shape[1], np.int64)
    for pattern in tracking.patterns():
        slots[pattern.chunk.output] += pattern.counts.size
    return slots.tolist()
