"""Kernels of lists of near pairs (Verlet lists)."""
