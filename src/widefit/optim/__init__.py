"""The optimizer for any module."""

from widefit.optim.gauss_newton import GaussNewton
from widefit.optim.system import Residual

__all__ = ["GaussNewton", "Residual"]
