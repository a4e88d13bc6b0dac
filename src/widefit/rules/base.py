"""What a rule is: from the residual to g, and whether the step was good."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from widefit.gram.base import GramOperator
from widefit.losses.base import BinaryCrossEntropy, CrossEntropy, LocalLeastSquares
from widefit.solvers import Solution, Solver
from widefit.trackers import Displacement, Minibatches, Trial, Update, minibatches


@dataclass(frozen=True)
class Objective:
    """Q(W) = Σ_i ω_i ‖f(x_i) − y_i‖² + α ‖W − W₀‖², or Q(W) = 2 Σ_i ω_i ℓ(f(x_i), y_i) + α ‖W − W₀‖² for another loss.

    Attributes
    ----------
    targets
        y, shape (n, k).
    sample_weight
        ω > 0, shape (n,).
    alpha
        α ≥ 0.
    kind
        ℓ: "squared", "logistic" or "softmax", as `widefit.rules.SGD` defines them.
    """

    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    alpha: float
    kind: str = "squared"

    def loss(self, outputs: Float[np.ndarray, "n k"]) -> float:
        """Weighted mean over samples: of the squared residual, or of ℓ for another loss."""
        if self.kind == "squared":
            values = ((outputs - self.targets) ** 2).sum(1)
        else:
            values = minibatches.values(self.kind, outputs, self.targets)
        return float(self.sample_weight @ values / self.sample_weight.sum())

    def part(self, samples: slice | Int[np.ndarray, " q"]) -> "Objective":
        """Of some of the samples, the ridge in proportion."""
        targets = self.targets[samples]
        return Objective(targets, self.sample_weight[samples], self.alpha * len(targets) / len(self.targets), self.kind)

    def value(self, outputs: Float[np.ndarray, "n k"], displacement: Displacement | None) -> float:
        """Q."""
        ridge = self.alpha * float(displacement.squared_norm.sum()) if displacement is not None else 0.0
        factor = 1 if self.kind == "squared" else 2
        return factor * self.loss(outputs) * float(self.sample_weight.sum()) + ridge

    def slope(self, outputs: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """∂ℓ/∂f; the residual for the squared loss."""
        return minibatches.gradient(self.kind, outputs, self.targets)

    def expand(self, outputs: Float[np.ndarray, "n k"]) -> LocalLeastSquares:
        """Q near f without sample weights and ridge: Q(f + δ) ≈ Q(f) − Σ_i ‖r̃_i‖² + Σ_i ‖r̃_i + B_iᵀ δ_i‖²."""
        f, y = torch.from_numpy(outputs), torch.from_numpy(self.targets)
        if self.kind == "squared":
            return LocalLeastSquares(f - y, f.new_ones(()))
        # torch's losses are means: over all numbers, and over samples.
        local = BinaryCrossEntropy().expand(f, (y + 1) / 2) if self.kind == "logistic" else CrossEntropy().expand(f, y)
        root = (f.numel() if self.kind == "logistic" else len(f)) ** 0.5
        return LocalLeastSquares(root * local.residual, root * local.root)

    def stacked(self) -> "Stacked":
        """The same objective of one column of outputs, output c of sample i in row i k + c."""
        weight = np.repeat(self.sample_weight, self.targets.shape[1])
        return Stacked(self.targets.reshape(-1, 1), weight, self.alpha, self.kind, apart=self)


@dataclass(frozen=True)
class Stacked(Objective):
    """The outputs of a sample one below the other, for networks whose outputs share what is trained.

    Attributes
    ----------
    apart
        The objective of n samples and k outputs.
    """

    apart: Objective = field(kw_only=True)

    def loss(self, outputs: Float[np.ndarray, "nk 1"]) -> float:
        return self.apart.loss(self._apart(outputs))

    def value(self, outputs: Float[np.ndarray, "nk 1"], displacement: Displacement | None) -> float:
        return self.apart.value(self._apart(outputs), displacement)

    def slope(self, outputs: Float[np.ndarray, "nk 1"]) -> Float[np.ndarray, "nk 1"]:
        return self.apart.slope(self._apart(outputs)).reshape(-1, 1)

    def expand(self, outputs: Float[np.ndarray, "nk 1"]) -> LocalLeastSquares:
        local = self.apart.expand(self._apart(outputs))
        return LocalLeastSquares(local.residual.reshape(-1, 1), local.root)

    def _apart(self, outputs: Float[np.ndarray, "nk 1"]) -> Float[np.ndarray, "n k"]:
        return outputs.reshape(self.apart.targets.shape)


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
    gram: Callable[[int], GramOperator]
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
