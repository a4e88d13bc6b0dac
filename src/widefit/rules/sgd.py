"""Stochastic gradient descent: g = η ω (f − y) on a minibatch, 0 elsewhere."""

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar

import numpy as np

from widefit.rules.base import Rule, RuleState, Verdict
from widefit.rules.local_problem import NetworkProblem
from widefit.rules.objective import Objective
from widefit.rules.step_size import SCHEDULES, check_loss_of_step, check_step_size, minibatch_rate, rates
from widefit.rules.stop_reason import StopReason
from widefit.trackers import Adversary, Minibatches

# What the schedules of a stream count as one.
_SAMPLES_A_TIME = 1000
# Training that has lost this factor to its start has left the region where its steps are stable.
_DIVERGED = 1e3


@dataclass(frozen=True)
class Epochs(RuleState):
    """η before the schedule, Q at the start, epochs so far, and iterates that are averaged so far."""

    lr: float
    first: float
    epoch: float = 0
    averaged: float = 0


@dataclass(frozen=True)
class SGD(Rule[Epochs]):
    """W ← W − lr ∇_W [Σ_{i ∈ B} ω_i ℓ(f(x_i), y_i) + α |B| / 2n ‖W − W₀‖²], one step a minibatch B.

    One step of the history is one epoch: every sample is visited once, in an order drawn anew for every epoch, and
    `max_iter` counts epochs. The order of epoch t depends on (`seed`, t) alone, so every tracker sees the same one
    and a resumed run goes on with it. Steps are not taken back: a run that diverges ends with the weights it has come
    to.

    Over a stream (`widefit.train_stream`, `partial_fit`) batches are cut in the order in which the samples come, and t
    in the schedules counts thousands of samples.

    Where the network interpolates, a constant step converges (arXiv 1712.06559); where it does not, it ends in noise,
    which a falling rate or `average` takes out.

    With an adversary this is adversarial training (Madry et al. 2018, arXiv 1706.06083; for two layers over half-space
    reporting arXiv 2208.05395): every batch is first perturbed so as to raise its loss, and the step is taken at the
    perturbed points. That costs `adversary.steps` more evaluations of the batch and as many gradients in its inputs,
    which `TrackerReport` counts. Only trackers that answer points they have not seen can do it: `Dense` and
    `HalfSpaceTree` over the weights. The loss of the history stays that of the samples themselves; give
    `RobustAccuracy` as the metric to see what adversaries leave.

    Parameters
    ----------
    lr
        η > 0 for the sum over the batch, or "auto": 1 / (c (β + (b − 1) λ_max(H) / n) + α b / n) at the start, with β
        the largest entry of diag H and c the largest second derivative of the loss, the step of arXiv 1712.06559 for
        batches of b. Of many samples some 2,000, evenly spread and with the longest, stand for all.
    batch_size
        b ≥ 1; with fewer than b samples a batch has them all. The last batch of an epoch may be short.
    schedule
        What becomes of η after t epochs, parts of an epoch included. "constant". "inverse": η / (1 + decay t).
        "cosine": η (1 + cos π t / period) / 2, from the start again every `period` epochs.
    loss
        ℓ. "squared": ½ ‖f − y‖². "logistic": Σ_c log(1 + exp(−y_c f_c)) with y = ±1. "softmax": log Σ_c exp f_c −
        ⟨y, f⟩ with rows of y that are ≥ 0 and sum to 1.
    shuffle
        False: the samples come in the order of the data.
    seed
        Of the order, 0 ≤ seed < 2⁶⁴. None: the estimators draw it from `random_state`, `widefit.train` takes 0.
    decay, period
        Of the schedules that use them.
    train_readout
        Take the same step in the second layer, a_r ← a_r − lr ∂/∂a_r [...], from the same outputs: gradient descent on
        both layers. For trackers "dense" and, without a ridge, "half-space-tree" over the weights. The ridge pulls at
        the first layer alone.
    adversary
        Such as `PGD`; None: the samples stay where they are.
    average
        Polyak-Ruppert averaging (Polyak and Juditsky 1992), as in scikit-learn's SGD: True leaves the network with the
        average of the iterates of all steps, an integer k with that of the iterates from when k samples have been
        visited, repetitions included; before, with the last iterate. The steps, and the losses of the history, are
        those without it; metrics, and `History.average_loss`, are of the average. A step costs more for the neurons
        that it moves alone; for all with trackers that have no steps of their own ("certificate", the half-space tree
        over the data), and with a ridge and a tree.
        Memory: the weights once more, and in float64.

    Raises
    ------
    ValueError
        An argument out of its range.
    """

    lr: float | str = "auto"
    batch_size: int = 32
    schedule: str = "constant"
    loss: str = "squared"
    shuffle: bool = True
    seed: int | None = None
    decay: float = 0.1
    period: int = 20
    train_readout: bool = False
    adversary: Adversary | None = None
    average: bool | int = False
    name: str = "sgd"
    state_type: ClassVar[type[RuleState]] = Epochs

    def __post_init__(self) -> None:
        check_step_size(self.lr, self.schedule, SCHEDULES, self.decay, self.period)
        seed = 0 if self.seed is None else self.seed
        for name, value, least, most in (("batch_size", self.batch_size, 1, math.inf), ("seed", seed, 0, 2**64)):
            if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value < most:
                bound = f"an integer ≥ {least}" if most == math.inf else f"an integer ≥ {least} and below 2**64"
                raise ValueError(f"{name} must be {bound}, got {value!r}")
        check_loss_of_step(self.loss, self.lr)
        if not isinstance(self.train_readout, bool):
            raise ValueError(f"train_readout must be True or False, got {self.train_readout!r}")
        if not isinstance(self.average, bool) and (not isinstance(self.average, Integral) or self.average < 1):
            raise ValueError(f"average must be True, False or a number of samples ≥ 1, got {self.average!r}")

    @property
    def perturbs(self) -> bool:
        return self.adversary is not None

    @property
    def averages(self) -> bool:
        return self.average is not False

    def start(self, problem: NetworkProblem) -> Epochs:
        batch = min(self.batch_size, problem.outputs.shape[0])
        if self.lr == "auto":
            lr = minibatch_rate(problem if problem.few is None else problem.few(), batch, self.train_readout)
        else:
            lr = float(self.lr)
        return Epochs(lr, problem.value)

    def judge(self, minibatches: Minibatches, after: float, state: Epochs) -> Verdict[Epochs]:
        """Look at Q after an epoch, which is kept whatever it is."""
        diverged = not math.isfinite(after) or after > _DIVERGED * state.first
        averaged = minibatches.averaged_after(int(state.averaged))
        following = replace(state, epoch=state.epoch + 1, averaged=averaged)
        return Verdict(True, following, stop=StopReason.DIVERGED if diverged else None)

    def epoch(self, objective: Objective, number: int, lr: float, averaged: int = 0) -> Minibatches:
        """The minibatches of epoch `number`, which counts from 0.

        Parameters
        ----------
        objective
            The samples.
        number
            t.
        lr
            η before the schedule.
        averaged
            Iterates that are averaged so far.
        """
        samples = objective.targets.shape[0]
        order = np.arange(samples)
        if self.shuffle:
            key = np.array([self.seed or 0, number], dtype=np.uint64)
            order = np.random.Generator(np.random.Philox(key=key)).permutation(samples)
        edges = self._edges(samples)
        sizes = np.diff(edges)
        time = number + np.arange(sizes.size) / sizes.size
        eta = rates(lr, self.schedule, time, self.decay, self.period)
        shrink = eta * objective.alpha * sizes / samples if objective.alpha > 0 else None
        return Minibatches(
            order,
            edges,
            eta,
            objective.targets,
            objective.sample_weight,
            objective.kind,
            shrink,
            self.train_readout,
            self.adversary,
            self._averaged(number * samples + edges[1:], averaged),
        )

    def stretch(self, objective: Objective, seen: int, lr: float, averaged: int = 0) -> Minibatches:
        """The minibatches of the next samples of a stream, in their order.

        Parameters
        ----------
        objective
            The samples; its ridge is left out.
        seen
            Samples that came before.
        lr
            η before the schedule.
        averaged
            Iterates that are averaged so far.
        """
        samples = objective.targets.shape[0]
        edges = self._edges(samples)
        eta = rates(lr, self.schedule, (seen + edges[:-1]) / _SAMPLES_A_TIME, self.decay, self.period)
        return Minibatches(
            np.arange(samples), edges, eta, objective.targets, objective.sample_weight, objective.kind, None,
            self.train_readout, self.adversary, self._averaged(seen + edges[1:], averaged),
        )  # fmt: skip

    def _averaged(self, seen: np.ndarray, before: int) -> np.ndarray | None:
        """Iterates that are averaged before each step and after the last, from the samples seen after each."""
        if not self.averages:
            return None
        return np.concatenate([[before], before + np.cumsum(seen >= self.average)])

    def _edges(self, samples: int) -> np.ndarray:
        return np.append(np.arange(0, samples, min(self.batch_size, samples)), samples)
