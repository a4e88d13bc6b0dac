"""Choices of "auto" for a deep network, their reasons, and the predicted cost in bytes and flops."""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch

from widefit import solvers
from widefit.kernels.devices import free_memory
from widefit.plan.base import Choice, Plan
from widefit.plan.names import DEEP_SOLVERS, DEEP_TRACKERS, resolve
from widefit.trackers.deep.base import DeepTracker
from widefit.trackers.deep.masks import DeepTorch
from widefit.trackers.masks import block_numbers

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
    device
        Type of the device that the weights are on.
    anchored
        Whether W − W₀ is kept (α > 0).
    """

    samples: int
    features: int
    widths: tuple[int, ...]
    outputs: int
    firing: tuple[float, ...]
    itemsize: int
    device: str = "cpu"
    anchored: bool = False

    def bytes_needed(self, solver: str, tracker: str = "sparse") -> int:
        """Peak memory of a run beside the network, on the device of the network."""
        if tracker == DeepTorch.name:
            return self._layer_bytes() + self._square_bytes(solver)
        widths = self.widths
        packed = self._between
        moved = 2 * sum(widths) * self.features
        fired = sum(p * m for p, m in zip(self.firing, widths, strict=True)) * self.samples
        dense = 2 * self.samples * max(widths)
        # Activations before and after a step, their columns and blocks; signals of every output, as they are, pulled
        # from above, in the order of blocks, and one more while they change hands.
        entries = fired * (2 * (self.itemsize + 4) + 40 + self.outputs * 4 * self.itemsize)
        return int(self.itemsize * (packed + moved + dense) + entries) + self._square_bytes(solver)

    @property
    def _between(self) -> int:
        """Weights between hidden layers."""
        return sum(a * b for a, b in zip(self.widths[1:], self.widths[:-1], strict=True))

    def _layer_bytes(self) -> int:
        """Memory of layers held whole: activations and masks before and after a step, signals of all outputs."""
        pairs = self.samples * sum(self.widths)
        # Those of one layer change hands.
        signals = self.itemsize * self.outputs * (pairs + 2 * self.samples * max(self.widths))
        anchors = self.itemsize * (self._between + sum(self.widths) * self.features) * int(self.anchored)
        # A block: its weights before and after they are moved, pre-activations, and signals in float64.
        block = 40 * max(block_numbers(self.device), 64 * self.samples * self.outputs)
        return 2 * pairs * (self.itemsize + 1) + signals + anchors + block

    def _square_bytes(self, solver: str) -> int:
        """Memory of n × n and larger matrices."""
        rows = self.samples * self.outputs
        # Similarities, and H: formed for one output or to be factored; else one block of it, and its factor.
        formed = rows if self.outputs == 1 or solver == "cholesky" else self.samples if solver == "block-cg" else 0
        return 8 * self.samples**2 * (len(self.widths) + 1) + formed**2 * (16 + (16 if solver != "cg" else 0))

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
    shape: DeepShape, tracker: "str | DeepTracker", solver: "str | solvers.Solver", memory: int | None = None
) -> "tuple[Plan, DeepTracker, solvers.Solver]":
    """Choose tracker and solver for a deep network, and refuse what cannot fit.

    Raises
    ------
    ValueError
        An unknown name, or a tracker that does not work where the network is.
    MemoryError
        The prediction exceeds the memory; the message gives the number and how many samples fit.
    """
    memory = free_memory(torch.device(shape.device)) if memory is None else memory
    followed, choices = _deep_tracker(shape, tracker)
    rows = shape.samples * shape.outputs
    if solver == "auto":
        solver, reason = _deep_solver(shape, followed, memory)
        choices.append(Choice("solver", solver.name, reason))
    solver = cast(solvers.Solver, resolve(solver, DEEP_SOLVERS))
    needed = shape.bytes_needed(solver.name, followed.name)
    if needed > memory:
        fits = int(shape.samples * math.sqrt(memory / needed))
        raise MemoryError(
            f"training needs about {needed / 1e9:.1f} GB and {memory / 1e9:.1f} GB are free; there are {rows:,} "
            f"equations, of {shape.samples:,} samples: about {fits:,} samples fit"
        )
    # Layers that are held whole are multiplied whole.
    worked = replace(shape, firing=(1.0,) * len(shape.widths)) if followed.name == DeepTorch.name else shape
    return Plan(tuple(choices), needed, worked.flops_per_step(solver.name)), followed, solver


def _deep_tracker(shape: DeepShape, tracker: "str | DeepTracker") -> tuple[DeepTracker, list[Choice]]:
    """The tracker that was asked for, or the one that works where the network is."""
    if tracker != "auto":
        followed = cast(DeepTracker, resolve(tracker, DEEP_TRACKERS))
        if shape.device != "cpu" and followed.name != DeepTorch.name:
            raise ValueError(
                f'tracker "{followed.name}" works on the CPU, and the weights are on {shape.device}: use '
                'tracker="torch", or device="cpu"'
            )
        return followed, []
    if shape.device != "cpu":
        return DeepTorch(), [Choice("tracker", DeepTorch.name, f"the weights are on {shape.device}")]
    fired = ", ".join(f"{p:.1%}" for p in shape.firing)
    return resolve("sparse", DEEP_TRACKERS), [
        Choice("tracker", "sparse", f"about {fired} of the neurons fire, layer by layer")
    ]


def _deep_solver(shape: DeepShape, tracker: DeepTracker, memory: int) -> "tuple[solvers.Solver, str]":
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
    if shape.bytes_needed(direct.name, tracker.name) <= memory:
        return direct, f"{need}, and as much for {name}, fit in memory{accuracy}"
    return solvers.CG(), f"{need}: {name} would not fit"
