"""The steps of a rule on a network, as the loop takes them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from widefit.rules import SGD, FullBatch, Objective, Rule, RuleState, StopReason
from widefit.training.damped_step import damped_step
from widefit.training.deep import DeepModel
from widefit.training.history import StepInfo
from widefit.training.loop import State
from widefit.training.phases import Phases
from widefit.training.saved import check_tensors, checked_training
from widefit.training.two_layer import TwoLayerModel


class NetworkSteps:
    """Steps of a rule on a network; the stepper of `widefit.train`.

    Parameters
    ----------
    model
        The network in training.
    inputs, objective, rule
        What it is trained on, and how.
    loss_floor
        Part of the loss that no weights can remove.
    phases
        Clocks.
    """

    def __init__(
        self,
        model: TwoLayerModel | DeepModel,
        inputs: np.ndarray,
        objective: Objective,
        rule: Rule,
        loss_floor: float,
        phases: Phases,
    ):
        self.phases = phases
        self.model = model
        self._objective = objective
        self._rule = rule
        self._loss_floor = loss_floor
        # Taken before training, which may change the readout.
        self._fingerprint = _fingerprint(inputs, objective, rule, model)
        self._state: RuleState | None = None
        self._step = 0

    def begin(self) -> StepInfo:
        """Find out who fires, and where the rule starts."""
        with self.phases("pass"):
            self.model.start()
        self._state = self._rule.start(self.model.local_problem())
        return StepInfo(0, self._loss())

    def step(self) -> tuple[StepInfo, StopReason | None]:
        """One step of the rule: an update from all samples, or an epoch of minibatches."""
        if isinstance(self._rule, SGD):
            return self._epoch(self._rule)
        assert isinstance(self._rule, FullBatch)
        assert self._state is not None
        result = damped_step(self.model, self._rule, self._state, self.model.solver, self.phases)
        self._state = result.verdict.state
        self._step += 1
        return result.info(self._step, self._loss()), result.verdict.stop

    def state(self) -> State:
        """Weights, the state of the rule and of the tracker, and a fingerprint of data and settings."""
        assert self._state is not None
        tensors = self.model.tensors()
        for name, array in self.model.tracker_state().items():
            tensors[f"tracker.{name}"] = torch.from_numpy(array)
        document = {
            "tracker": self.model.tracker,
            "system": self.model.system,
            "rule": self._rule.name,
            "state": self._state.to_dict(),
            "data": self._fingerprint,
        }
        return tensors, document

    def restore(self, state: State) -> StopReason | None:
        """Go on from what `state` gave."""
        tensors, document = checked_training(state)
        if document["data"] != self._fingerprint:
            raise ValueError(
                "resume: the checkpoint belongs to other data or settings; resume with those it was made with"
            )
        if document["tracker"] != self.model.tracker:
            raise ValueError(f'resume: the checkpoint was made with tracker="{document["tracker"]}"; resume with it')
        # Version 0.1 did not tell.
        if document.get("system", self.model.system) != self.model.system:
            raise ValueError(
                f"resume: the checkpoint was made with {document['system']}, and this run takes {self.model.system}; "
                "resume with the solver and the memory it was made with"
            )
        check_tensors(tensors, self.model.replaced(tensors), ("tracker.",))
        numbers = document["state"]
        self._state = self._rule.restore(numbers)
        self._step = int(document["history"]["steps"][-1]["step"])
        self.model.restore(tensors, numbers.get("averaged", 0))
        held = {name: value for name, value in tensors.items() if name.startswith("tracker.")}
        with self.phases("pass"):
            self.model.start(
                {name.removeprefix("tracker."): value.cpu().numpy() for name, value in held.items()} or None
            )
        return None

    @contextmanager
    def network(self) -> Iterator[Any]:
        """Inside, the network with the committed weights."""
        with self.model.network() as network:
            yield network

    def finish(self) -> None:
        """Leave the network with the committed weights."""
        self.model.finish()

    def _epoch(self, rule: SGD) -> tuple[StepInfo, StopReason | None]:
        state: Any = self._state
        minibatches = rule.epoch(self._objective, int(state.epoch), state.lr, int(state.averaged))
        # Weights that overflow are seen in the outputs.
        with np.errstate(over="ignore", invalid="ignore"):
            flips, rebased = self.model.descend(minibatches)
            verdict = rule.judge(minibatches, self.model.local_problem().value, state)
        self._state = verdict.state
        self._step += 1
        return StepInfo(self._step, self._loss(), flips=flips, rebased=rebased), verdict.stop

    def _loss(self) -> float:
        return self._objective.loss(self.model.outputs) + self._loss_floor


def _fingerprint(inputs: np.ndarray, objective: Objective, rule: Rule, model: TwoLayerModel | DeepModel) -> str:
    """Hash of everything that a resumed run must share with the one before it."""
    digest = hashlib.sha256()
    for array in (inputs, objective.targets, objective.sample_weight):
        digest.update(np.ascontiguousarray(array).tobytes())
    settings, identity = model.settings()
    digest.update(repr((objective.alpha, settings, rule)).encode())
    digest.update(identity)
    return digest.hexdigest()
