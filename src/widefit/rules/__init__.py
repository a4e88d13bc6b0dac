"""Rules: from the residual to g. A rule is one file here and one line below."""

from widefit.rules.base import Direction, Linearization, Objective, Rule, Verdict
from widefit.rules.gauss_newton import GaussNewton
from widefit.rules.gradient_descent import GradientDescent

__all__ = ["Direction", "GaussNewton", "GradientDescent", "Linearization", "Objective", "Rule", "Verdict"]
