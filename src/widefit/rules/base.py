"""The interface of a rule: choose g from the local problem, and judge the step. Rules are pure; no rule holds a run."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from widefit.records import read
from widefit.rules.local_problem import LocalProblem, NetworkProblem
from widefit.rules.stop_reason import StopReason
from widefit.solvers import Solution, Solver


@dataclass(frozen=True)
class RuleState:
    """Numbers that a rule carries from step to step; a checkpoint holds them by name."""

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


State = TypeVar("State", bound=RuleState)


@dataclass(frozen=True)
class Direction:
    """A step that a rule asks for: W ← W − shrink (W − W₀) − Jᵀ g.

    Attributes
    ----------
    g
        Shape (M, k), in sample space; a column for each independent block of parameters.
    shrink
        Shape (k,): pull of each block towards the initial weights, 0 for none, 1 for all the way.
    predicted
        Q after the step if the model were linear; None for rules that do not predict.
    damping
        λ, mean over the blocks.
    relative_damping
        λ over the mean of diag H, largest over the blocks.
    solutions
        One for each system that was solved.
    image
        H g, shape (M, k), where the solves have found it; None otherwise.
    """

    g: Float[Tensor, "M k"]
    shrink: Float[Tensor, " k"]
    predicted: float | None = None
    damping: float = 0.0
    relative_damping: float = 0.0
    solutions: tuple[Solution, ...] = ()
    image: Float[Tensor, "M k"] | None = None


@dataclass(frozen=True)
class Verdict(Generic[State]):
    """Judgement of a trial.

    Attributes
    ----------
    accepted
        Whether the trial is kept.
    state
        The state with which the rule goes on.
    gain_ratio
        Actual over predicted decrease of Q; None where nothing was predicted.
    stop
        Why the run should end after this step, if it should.
    retry
        True to try again from the same weights, in the same step, with the new state.
    """

    accepted: bool
    state: State
    gain_ratio: float | None = None
    stop: StopReason | None = None
    retry: bool = False


class Rule(ABC, Generic[State]):
    """A small immutable object with its settings as fields.

    Attributes
    ----------
    name
        The name that users call it by.
    loss
        ℓ that it descends: "squared", "logistic" or "softmax".
    train_readout
        True where it trains the second layer as well.
    state_type
        Type of its state.
    """

    name: str
    loss: str = "squared"
    train_readout: bool = False
    state_type: ClassVar[type[RuleState]]

    @property
    def perturbs(self) -> bool:
        """True for rules that step at points which differ from the samples."""
        return False

    @property
    def averages(self) -> bool:
        """True for rules that leave the network with an average of their iterates."""
        return False

    @abstractmethod
    def start(self, problem: NetworkProblem) -> State:
        """The state before the first step."""

    def restore(self, numbers: dict[str, float]) -> State:
        """The state that `RuleState.to_dict` gave.

        Raises
        ------
        FileError
            Numbers are absent, or of no such state.
        """
        return read(self.state_type, numbers, f"the state of {self.name}")  # pyright: ignore[reportReturnType]


class FullBatch(Rule[State]):
    """A rule whose step is one update from all samples, kept or not."""

    @abstractmethod
    def direction(self, problem: Any, state: State, solver: Solver) -> Direction:
        """Choose the step."""

    @abstractmethod
    def judge(
        self, problem: LocalProblem, direction: Direction, after: float, bends: bool, state: State
    ) -> Verdict[State]:
        """Keep the trial or not.

        Parameters
        ----------
        problem, direction, state
            What the trial was made from.
        after
            Q at the trial.
        bends
            False where the linear model can be wrong by rounding alone.
        """
