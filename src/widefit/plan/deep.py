"""Choices of "auto" for a deep network, their reasons, and the predicted cost in bytes and flops."""

import math
from dataclasses import dataclass
from typing import cast

from widefit import solvers
from widefit.kernels.memory import available_memory
from widefit.plan.base import Choice, Plan
from widefit.plan.names import DEEP_SOLVERS, resolve

# Products with H that conjugate gradients behind a block of it take, from runs on digits.
_BLOCK_PRODUCTS = 30
# Equations beyond which they are solved only as exactly as a step can use: on digits and MNIST a step leaves a tenth of
# the residual, whatever the solve (Dembo, Eisenstat and Steihaug 1982).
_INEXACT, _INEXACT_TOLERANCE = 4096, 1e-3


@dataclass(frozen=True)
class DeepShape:
    """Sizes that decide the cost of training a deep network.

    Attributes
    ----------
    samples, features, outputs
        n, d, k.
    widths
        m_1, …, m_L.
    firing
        p of every layer, the expected part of the pairs that fire.
    itemsize
        Bytes a weight.
    """

    samples: int
    features: int
    widths: tuple[int, ...]
    outputs: int
    firing: tuple[float, ...]
    itemsize: int

    def bytes_needed(self, solver: str) -> int:
        """Peak memory of a run beside the network."""
        widths, rows = self.widths, self.samples * self.outputs
        packed = sum(a * b for a, b in zip(widths[1:], widths[:-1], strict=True))
        moved = 2 * sum(widths) * self.features
        fired = sum(p * m for p, m in zip(self.firing, widths, strict=True)) * self.samples
        dense = 2 * self.samples * max(widths)
        # Activations before and after a step, their columns and blocks; signals of every output, as they are, pulled
        # from above, in the order of blocks, and one more while they change hands.
        entries = fired * (2 * (self.itemsize + 4) + 40 + self.outputs * 4 * self.itemsize)
        # Similarities, and H: formed for one output or to be factored; else one block of it, and its factor.
        formed = rows if self.outputs == 1 or solver == "cholesky" else self.samples if solver == "block-cg" else 0
        square = 8 * self.samples**2 * (len(widths) + 1) + formed**2 * (16 + (16 if solver != "cg" else 0))
        return int(self.itemsize * (packed + moved + dense) + entries + square)

    def flops_per_step(self, solver: str) -> float:
        """Forward, backward and update of every layer, H, and the solve."""
        n, rows, before, products = self.samples, self.samples * self.outputs, 0.0, 0.0
        total = 0.0
        for p, m in zip(self.firing, self.widths, strict=True):
            total += 2.0 * n * self.features * m * (1 + p)
            total += 2.0 * n * before * m + (2.0 * self.outputs + 4.0) * n * before * p * m
            total += m * (p * n) ** 2
            products += 2 * m * (p * n) ** 2 + 4 * rows * p * m
            before = p * m
        formed = sum(m * (p * n) ** 2 for p, m in zip(self.firing, self.widths, strict=True))
        if self.outputs == 1 or solver == "cholesky":
            return total + formed * self.outputs**2 + (rows**3 / 3 if solver == "cholesky" else 200.0 * rows**2)
        if solver == "block-cg":
            return total + formed * self.outputs + n**3 / 3 + _BLOCK_PRODUCTS * (products + 2.0 * n * rows)
        return total + 200 * products


def plan_deep(
    shape: DeepShape, solver: "str | solvers.Solver", memory: int | None = None
) -> "tuple[Plan, solvers.Solver]":
    """Choose the solver for a deep network, and refuse what cannot fit.

    Raises
    ------
    ValueError
        An unknown name.
    MemoryError
        The prediction exceeds the memory; the message gives the number and how many samples fit.
    """
    memory = available_memory() if memory is None else memory
    fired = ", ".join(f"{p:.1%}" for p in shape.firing)
    choices = [Choice("tracker", "sparse", f"about {fired} of the neurons fire, layer by layer")]
    rows = shape.samples * shape.outputs
    if solver == "auto":
        solver, reason = _deep_solver(shape, memory)
        choices.append(Choice("solver", solver.name, reason))
    solver = cast(solvers.Solver, resolve(solver, DEEP_SOLVERS))
    needed = shape.bytes_needed(solver.name)
    if needed > memory:
        fits = int(shape.samples * math.sqrt(memory / needed))
        raise MemoryError(
            f"training needs about {needed / 1e9:.1f} GB and {memory / 1e9:.1f} GB are free; there are {rows:,} "
            f"equations, of {shape.samples:,} samples: about {fits:,} samples fit"
        )
    return Plan(tuple(choices), needed, shape.flops_per_step(solver.name)), solver


def _deep_solver(shape: DeepShape, memory: int) -> "tuple[solvers.Solver, str]":
    """One block of H stands for all outputs where there are several; what fits decides the rest."""
    direct: solvers.Solver = solvers.Cholesky()
    name, accuracy = "its factor", ""
    need = f"{8 * shape.samples**2 / 1e9:.2g} GB for H in float64"
    if shape.outputs > 1:
        direct = solvers.BlockCG()
        if shape.samples * shape.outputs > _INEXACT:
            direct = solvers.BlockCG(tolerance=_INEXACT_TOLERANCE)
            accuracy = f"; solved to {_INEXACT_TOLERANCE:g} of the residual, of which a step leaves a tenth"
        whole, name = 8 * (shape.samples * shape.outputs) ** 2 / 1e9, "the block's factor"
        need = f"{8 * shape.samples**2 / 1e9:.2g} GB for the block of H of one output, {whole:.2g} GB for all of H"
    if shape.bytes_needed(direct.name) <= memory:
        return direct, f"{need}, and as much for {name}, fit in memory{accuracy}"
    return solvers.CG(), f"{need}: {name} would not fit"
