"""For networks that solve differential equations: derivatives of a network at one point, and samplers of points."""

from widefit.pinn.derivatives import derivative, divergence, gradient, laplacian, partials
from widefit.pinn.samplers import boundary, box, initial

__all__ = ["boundary", "box", "derivative", "divergence", "gradient", "initial", "laplacian", "partials"]
