"""What a rule is: from the residual to g, and whether the step was good."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from widefit.gram.base import Operator
from widefit.rules.objective import Objective
from widefit.solvers import Solution, Solver
from widefit.trackers import Displacement, Minibatches, Trial, Update


@dataclass(frozen=True)
class Linearization:
    """The problem as a rule sees it at the committed weights.

    Attributes
    ----------
    objective
        Q.
    outputs
        f, shape (n, k).
    displacement
        Of W from W₀; None when α = 0.
    gram
        Returns H of one output; the caller must not change it.
    piecewise_linear
        True where f is linear in W as long as no neuron flips, as with one layer.
    features_squared
        Returns the largest over the outputs of Σ_r φ(⟨w_r, x_i⟩)² / m, r the neurons of the output, shape (n,): the
        curvature of the second layer, for rules that train it.
    few
        Returns the problem of some of the samples, for estimates that need no more; None where there are only a few.
    """

    objective: Objective
    outputs: Float[np.ndarray, "n k"]
    displacement: Displacement | None
    gram: Callable[[int], Operator]
    piecewise_linear: bool = True
    features_squared: Callable[[], Float[np.ndarray, " n"]] = field(default=lambda: np.zeros(1))
    few: "Callable[[], Linearization] | None" = None

    @property
    def residual(self) -> Float[np.ndarray, "n k"]:
        """f − y."""
        return self.outputs - self.objective.targets

    @property
    def slope(self) -> Float[np.ndarray, "n k"]:
        """∂ℓ/∂f; the residual for the squared loss."""
        return self.objective.slope(self.outputs)


@dataclass(frozen=True)
class Direction:
    """What a rule asks for.

    Attributes
    ----------
    update
        The step.
    predicted
        Q after the step if no neuron flipped; None for rules that do not predict.
    damping
        λ, mean over the outputs.
    relative_damping
        λ over the mean of diag H, largest over the outputs.
    solutions
        One a system that was solved.
    """

    update: Update
    predicted: float | None = None
    damping: float = 0.0
    relative_damping: float = 0.0
    solutions: tuple[Solution, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a trial is kept, and with what memory the rule goes on."""

    accepted: bool
    memory: Any
    gain_ratio: float | None = None
    stop: str | None = None


@runtime_checkable
class Run(Protocol):
    """What a rule does to a training: look, try, and carry out."""

    def view(self) -> Linearization:
        """The problem at the committed weights."""
        ...

    def propose(self, update: Update) -> Trial:
        """What an update would do."""
        ...

    def commit(self, trial: Trial) -> None:
        """Carry a trial out."""
        ...

    def descend(self, minibatches: Minibatches) -> tuple[int, bool]:
        """Take stochastic steps, with no way back; the number of flips, and whether all neurons were looked at."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a step came to.

    Attributes
    ----------
    verdict
        Kept or not.
    flips
        Pairs that changed, or would have.
    rebased
        True when the tracker looked at all neurons.
    direction
        What was tried; None for rules that take many steps in one.
    """

    verdict: Verdict
    flips: int
    rebased: bool
    direction: Direction | None = None


class Rule(ABC):
    """A small immutable object with its settings as fields; what it remembers between steps is passed in and out.

    The memory is a dict of numbers, so that a checkpoint can hold it.

    Attributes
    ----------
    name
        What users call it.
    loss
        What it descends: "squared", "logistic" or "softmax".
    train_readout
        True where it trains the second layer as well.
    """

    name: str
    loss: str = "squared"
    train_readout: bool = False

    @property
    def perturbs(self) -> bool:
        """True for rules that step at points which differ from the samples."""
        return False

    @property
    def averages(self) -> bool:
        """True for rules that leave the network with an average of their iterates."""
        return False

    @abstractmethod
    def start(self, view: Linearization) -> dict[str, float]:
        """The memory before the first step."""

    @abstractmethod
    def step(self, run: Run, memory: dict[str, float], solver: Solver) -> Outcome:
        """Take one step, or take it back."""


class FullBatch(Rule):
    """Rules whose step is one update from all samples, kept or not."""

    @abstractmethod
    def direction(self, view: Linearization, memory: dict[str, float], solver: Solver) -> Direction:
        """Choose the update."""

    @abstractmethod
    def judge(self, direction: Direction, memory: dict[str, float], before: float, after: float, flips: int) -> Verdict:
        """Keep the trial or not.

        Parameters
        ----------
        direction, memory
            What the trial was made from.
        before, after
            Q at the committed weights and at the trial.
        flips
            Pairs that change in the trial; never 0 where the outputs may bend without a flip.
        """

    def step(self, run: Run, memory: dict[str, float], solver: Solver) -> Outcome:
        view = run.view()
        direction = self.direction(view, memory, solver)
        trial = run.propose(direction.update)
        before = view.objective.value(view.outputs, view.displacement)
        after = view.objective.value(trial.outputs, trial.displacement)
        straight = view.piecewise_linear and view.objective.kind == "squared"
        bends = trial.flips if straight else max(1, trial.flips)
        verdict = self.judge(direction, memory, before, after, bends)
        if verdict.accepted:
            run.commit(trial)
        return Outcome(verdict, trial.flips, trial.rebased, direction)
