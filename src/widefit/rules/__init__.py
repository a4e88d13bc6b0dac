"""Rules: from the residual to g. A rule is one file here and one line below."""

from widefit.rules.base import Direction, FullBatch, Rule, RuleState, Verdict
from widefit.rules.gauss_newton import GaussNewton
from widefit.rules.gradient_descent import GradientDescent
from widefit.rules.local_problem import Block, LocalProblem, NetworkProblem
from widefit.rules.objective import Objective
from widefit.rules.pgd import PGD
from widefit.rules.robust_accuracy import RobustAccuracy
from widefit.rules.sgd import SGD
from widefit.rules.stop_reason import StopReason

__all__ = [
    "PGD",
    "SGD",
    "Block",
    "Direction",
    "FullBatch",
    "GaussNewton",
    "GradientDescent",
    "LocalProblem",
    "NetworkProblem",
    "Objective",
    "RobustAccuracy",
    "Rule",
    "RuleState",
    "StopReason",
    "Verdict",
]
