"""Rules: from the residual to g. A rule is one file here and one line below."""

from widefit.rules.base import Direction, FullBatch, Linearization, Outcome, Rule, Run, Verdict
from widefit.rules.gauss_newton import GaussNewton
from widefit.rules.gradient_descent import GradientDescent
from widefit.rules.objective import Objective
from widefit.rules.pgd import PGD
from widefit.rules.robust_accuracy import RobustAccuracy
from widefit.rules.sgd import SGD

__all__ = [
    "PGD",
    "SGD",
    "Direction",
    "FullBatch",
    "GaussNewton",
    "GradientDescent",
    "Linearization",
    "Objective",
    "Outcome",
    "RobustAccuracy",
    "Rule",
    "Run",
    "Verdict",
]
