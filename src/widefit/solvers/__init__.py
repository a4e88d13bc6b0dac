"""Solvers of (H + λI) g = e in sample space. A solver is one file here and one line below."""

from widefit.solvers.base import Solution, Solver
from widefit.solvers.cg import CG
from widefit.solvers.cholesky import Cholesky

__all__ = ["CG", "Cholesky", "Solution", "Solver"]
