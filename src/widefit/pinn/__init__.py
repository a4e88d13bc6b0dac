"""For networks that solve equations: derivatives at one point, layers that build conditions in, and points."""

from widefit.pinn.adaptive import adaptive
from widefit.pinn.derivatives import derivative, divergence, gradient, laplacian, partials
from widefit.pinn.embeddings import Constrained, Fourier, Held, Periodic
from widefit.pinn.samplers import boundary, box, grid, initial, slabs, sobol
from widefit.pinn.shapes import ball, mesh, polygon, polygon_edge, sphere

__all__ = [
    "Constrained",
    "Fourier",
    "Held",
    "Periodic",
    "adaptive",
    "ball",
    "boundary",
    "box",
    "derivative",
    "divergence",
    "gradient",
    "grid",
    "initial",
    "laplacian",
    "mesh",
    "partials",
    "polygon",
    "polygon_edge",
    "slabs",
    "sobol",
    "sphere",
]
