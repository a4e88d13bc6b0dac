"""Solvers of (H + λI) g = e in sample space. A solver is one file here and one line below."""

from widefit.solvers.base import Preconditioner, Prepared, Reusing, Solution, Solver
from widefit.solvers.block_cg import BlockCG
from widefit.solvers.cg import CG
from widefit.solvers.cholesky import Cholesky
from widefit.solvers.nystrom_cg import NystromCG
from widefit.solvers.primal import Primal
from widefit.solvers.sketched_cg import SketchedCG

__all__ = [
    "CG",
    "BlockCG",
    "Cholesky",
    "NystromCG",
    "Preconditioner",
    "Prepared",
    "Primal",
    "Reusing",
    "SketchedCG",
    "Solution",
    "Solver",
]
