"""A two-layer network in training whose neurons several processes share out (this project)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widefit import gram, trackers
from widefit.nn import TwoLayer
from widefit.nn.shard import NeuronShard
from widefit.plan.two_layer import TwoLayerPlan, plan_two_layer, workload_of
from widefit.processes import Alone
from widefit.rules import NetworkProblem, Objective, Rule
from widefit.solvers import Solver
from widefit.trackers import SharedTracking, Tracker
from widefit.training.phases import Phases
from widefit.training.two_layer import TwoLayerModel

# Tensors of a state with a row for every neuron.
_ROWS = ("weight", "anchor")


class SharedTwoLayerModel(TwoLayerModel):
    """The weights of a network, a share of them on each process; every method is called by all processes at once.

    All have all samples, and solve for the same step from the same bits. The state of a run is that of one process.

    Parameters
    ----------
    network
        The whole network, from which the shares are taken; it stays as it is, see `joined`.
    processes
        Those that share it out.
    """

    _iterate: NeuronShard

    def __init__(
        self,
        network: TwoLayer,
        inputs: np.ndarray,
        objective: Objective,
        rule: Rule,
        tracker: str | Tracker,
        solver: str | Solver,
        threads: int,
        memory: int | None,
        phases: Phases,
        tol: float,
        processes: Alone,
    ):
        self._processes = processes
        shard = NeuronShard.of(network, processes)
        super().__init__(network, inputs, objective, rule, tracker, solver, threads, memory, phases, tol)
        self._iterate = shard

    def joined(self) -> Tensor:
        """Weights of the whole network after the run, shape (m, d), on every process."""
        with self._phases("update"):
            return self._iterate.joined(self._iterate.weight.detach())

    def settings(self) -> tuple[object, bytes]:
        readout = self._network.readout_rows(0, self._network.width)
        return self._network.threshold, np.ascontiguousarray(readout).tobytes()

    @contextmanager
    def network(self) -> Iterator[TwoLayer]:
        """Inside, the share of this process with the committed weights; its outputs are those of the whole network."""
        with self._tracking.materialized():
            yield self._iterate

    def tensors(self) -> dict[str, Tensor]:
        own = super().tensors()
        return own | {name: self._iterate.joined(own[name]) for name in _ROWS if name in own}

    def replaced(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own = super().replaced(tensors)
        like = torch.empty(self._iterate.whole, dtype=self._iterate.dtype, device="meta")
        return own | {name: like for name in _ROWS if name in own}

    def restore(self, tensors: dict[str, Tensor], averaged: float) -> None:
        own = {name: self._iterate.part(tensors[name]) for name in _ROWS if name in tensors}
        super().restore({**tensors, **own}, averaged)

    def _planned(
        self, tracker: str | Tracker, solver: str | Solver, memory: int | None, tol: float
    ) -> tuple[TwoLayerPlan, Tracker, Solver]:
        """One plan for all, from the least memory and the most threads of any."""
        size = self._processes.size
        work = workload_of(self._network, self._inputs, self._objective.alpha, self._rule)
        work = replace(work, width=-(-work.width // size), processes=size, stored=True)
        told = self._processes.gathered((work, memory, self._threads))
        least, most = min(own for _, own, _ in told), max(own for _, _, own in told)
        return plan_two_layer(told[0][0], tracker, solver, most, least, tol)

    def _start_tracking(self, state: dict[str, np.ndarray] | None) -> SharedTracking:
        # Each output may have a pair of neurons less than in another process.
        most = self._iterate.width - 4 * self._network.out_features
        return SharedTracking.start(
            self._tracker,
            self._iterate,
            self._inputs,
            anchor=self._anchor,
            threads=self._threads,
            state=state,
            expected=self._forecast(most),
        )

    def _start_grams(self) -> None:
        if self._samples is None:
            self._grams = self._arrays_of(self._tracking, self._inputs, self.plan.grams)
            return
        own = gram.FireListGrams(self._tracking, self._samples, self._iterate.coefficients, self._threads)
        self._grams = gram.SummedFireLists(own, self._processes)

    def _arrays_of(self, tracking: Any, inputs: np.ndarray, held: int) -> gram.SummedCurrentGrams:
        similarity = cache(partial(gram.similarity, inputs))
        own = gram.CurrentGrams(tracking, similarity, self._iterate.coefficients, held, self._threads)
        return gram.SummedCurrentGrams(own, similarity, held, self._processes, self._threads)

    def _few(self) -> NetworkProblem:
        rows = self._few_rows()
        inputs = self._inputs[rows]
        own = trackers.Dense().start(self._iterate, inputs, threads=self._threads)
        tracking = SharedTracking(own, self._iterate)
        grams = self._arrays_of(tracking, inputs, 1)
        return NetworkProblem(self._objective.subset(rows), tracking.outputs, None, grams)
