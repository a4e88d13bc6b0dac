"""Kernels of balanced trees of balls: half-space reporting, exact."""
