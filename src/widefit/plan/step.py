"""Choices of "auto" for a step: the factorization, the form of J, and the predicted cost."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from widefit.kernels.memory import available_memory
from widefit.plan.base import Choice, Plan
from widefit.plan.names import STEP_SOLVERS
from widefit.solvers import Solver

# Sustained rates relative to a float32 matrix product: double precision, orthogonal factorizations, passes over stored
# numbers (flops that fit into the time of moving one byte).
_DOUBLE = 2.0
_ORTHOGONAL = 3.0
_BYTE = 5.0
# Values of λ a step tries on average, each a factorization; and solves per value.
_TRIES = 1.2
_SOLVES = 3.0
# Numbers held for every input and signal: they themselves, the graph that signals come from, and a forward pass.
_HELD = 3.0
# H of fewer flops than this is summed in float64 even for a float32 network.
_WIDEN = 4e9
# Up to so many parameters steps go through singular values.
_FEW_PARAMETERS = 128


@dataclass(frozen=True)
class StepShape:
    """Sizes that decide the cost of a step.

    Attributes
    ----------
    rows, parameters
        M and P.
    itemsize
        Bytes a number of the network.
    factor_flops
        Flops an entry of H, from layer inputs and backward signals; None where the network does not allow it.
    factor_numbers
        Numbers a row that these factors hold.
    """

    rows: int
    parameters: int
    itemsize: int
    factor_flops: float | None = None
    factor_numbers: float = 0.0


@dataclass(frozen=True)
class StepPlan(Plan):
    """One way to take a step; its flops are those of a float32 matrix product.

    Attributes
    ----------
    solver
        "svd", "primal" or the name of a solver in sample space.
    jacobian
        "dense" (stored), "factors" (layer inputs and backward signals), "function" (made again when needed) or "traced"
        (the same from layer inputs and backward signals of residual functions).
    dtype
        In which H is summed.
    row_bytes
        Memory for the rows of J alive at a time.
    """

    solver: str = "auto"
    jacobian: str = "dense"
    dtype: torch.dtype = torch.float64
    row_bytes: int = 0

    def because(self, reason: str) -> "StepPlan":
        """Return the plan with its choices told, for this reason."""
        form = f"{_FORMS[self.jacobian]}; H in {str(self.dtype).removeprefix('torch.')}"
        return replace(self, choices=(Choice("solver", self.solver, reason), Choice("jacobian", self.jacobian, form)))

    def traced(self) -> "StepPlan":
        """Return the plan where J comes from layer inputs and backward signals of residual functions."""
        return replace(self, jacobian="traced").because(self.choices[0].reason)


# What a form of J means.
_FORMS = {
    "dense": "it is stored",
    "factors": "from the inputs of layers and backward signals, never formed",
    "function": "its rows are made again whenever they are needed",
    "traced": "the residual functions are followed layer by layer, its rows never formed",
}


def plan_step(
    shape: StepShape, dtype: torch.dtype, free: int, solver: str | Solver = "auto", products: float = 50.0
) -> StepPlan:
    """The cheapest plan that fits into `free` bytes.

    Parameters
    ----------
    shape
        The sizes.
    dtype
        Of the network.
    free
        Memory budget in bytes.
    solver
        "auto", the name or the object that is forced; one without a name here is planned like "cg", by products with H.
    products
        With H that a preconditioned iteration is reckoned to need in a step.

    Raises
    ------
    ValueError
        An unknown name; or nothing fits: says how much is missing and which batch would fit.
    """
    if isinstance(solver, Solver):
        known = solver.name in STEP_SOLVERS.homes
        found = plan_step(shape, dtype, free, solver.name if known else "cg", products)
        return replace(found, solver=solver.name).because(found.choices[0].reason)
    plans = [plan for plan in _candidates(shape, dtype, free, products) if solver in ("auto", plan.solver)]
    if not plans and solver == "primal":
        raise ValueError(
            f"solver='primal' is for fewer parameters than outputs of samples, got {shape.parameters} and {shape.rows}"
        )
    if not plans:
        raise STEP_SOLVERS.unknown(solver)
    fitting = [plan for plan in plans if plan.bytes_needed <= free]
    if not fitting:
        raise ValueError(_too_large(shape, dtype, free, solver))
    # Direct solvers answer to rounding however small λ becomes. In float32 λ stays above rounding, so that a few dozen
    # products behind a low-rank preconditioner do as well; in float64 iterations are for what does not fit otherwise.
    # For few parameters singular values cost next to nothing more and answer to rounding whatever the condition of J.
    exact = [plan for plan in fitting if plan.solver == "svd" and shape.parameters <= _FEW_PARAMETERS]
    trusted = ("primal", "cholesky", "svd") + (("nystrom-cg",) if shape.itemsize < 8 else ())
    best = min(
        exact or [plan for plan in fitting if plan.solver in trusted] or fitting, key=lambda plan: plan.flops_per_step
    )
    others = min((plan.flops_per_step for plan in plans if plan is not best), default=math.inf)
    against = f", the next best way {others:.2g}" if others < math.inf else ""
    asked = "as asked for: " if solver != "auto" else ""
    return best.because(f"{asked}{best.flops_per_step:.2g} flops predicted{against}; fits in {free / 1e9:.2g} GB")


def _candidates(shape: StepShape, dtype: torch.dtype, free: int, products: float = 50.0) -> list[StepPlan]:
    """Every way that suits the shape, cheap or not."""
    rows, columns, item = shape.rows, shape.parameters, shape.itemsize
    small = min(rows, columns)
    gram_flops = 2.0 * rows * rows * columns
    wide = item >= 8 or gram_flops <= _WIDEN
    rate = _DOUBLE if wide else 1.0
    stored = rows * columns * item
    row_bytes = max(min(free // 4, 3 * stored), 1)
    make = (6.0 + _BYTE * item) * rows * columns
    factor, factor_dual = (_DOUBLE * _TRIES * size**3 / 3 for size in (columns, rows))
    applied = 4.0 * _SOLVES * _TRIES * rows * columns
    # The matrix, its damped copy and the factor; a solve in float64 whatever H is summed in.
    squares, squares_dual = (16 * size * size + (8 if wide else item) * size * size for size in (columns, rows))
    remade = make * max(1.0, 0.5 * stored / row_bytes)

    def plan(solver: str, jacobian: str, numbers: float, flops: float) -> StepPlan:
        return StepPlan(
            bytes_needed=int(numbers),
            flops_per_step=flops,
            solver=solver,
            jacobian=jacobian,
            dtype=torch.float64 if wide else dtype,
            row_bytes=row_bytes,
        )

    orthogonal = _DOUBLE * _ORTHOGONAL * (2.0 * rows * columns * small + 20.0 * small**3)
    plans = [plan("svd", "dense", row_bytes + stored + 16 * rows * columns + 16 * small**2, make + orthogonal)]
    if columns < rows:
        normal = _DOUBLE * 2.0 * rows * columns**2 + factor
        plans += [
            plan("primal", "dense", row_bytes + stored + 8 * rows * columns + squares, make + normal + applied),
            plan("primal", "function", row_bytes * 3 + squares, make + normal + 3 * applied),
        ]
    dual: list[tuple[str, float, float]] = [
        ("dense", row_bytes + stored + squares_dual, make + rate * gram_flops + factor_dual + applied),
        ("function", 3 * row_bytes + squares_dual, remade + rate * gram_flops + factor_dual + 3 * applied),
    ]
    if shape.factor_flops is not None:
        dual.append(
            (
                "factors",
                # The products of inputs and of signals, before they are multiplied entry by entry.
                _HELD * shape.factor_numbers * rows * item + squares_dual + 2 * (8 if wide else item) * rows**2,
                shape.factor_flops * rows**2 / 2 + factor_dual + applied,
            )
        )
    plans += [plan("cholesky", *way) for way in dual]
    iterative = ("nystrom-cg", "cg", "sketched-cg")
    return plans + [plan(name, *way) for name in iterative for way in _iterative(shape, name, products)]


def _iterative(shape: StepShape, name: str, products: float) -> list[tuple[str, float, float]]:
    """(form of J, bytes, flops) of a preconditioned iteration on each form of J."""
    rows, columns, item = shape.rows, shape.parameters, shape.itemsize
    products *= 5.0 if name == "cg" else 1.0
    make = (6.0 + _BYTE * item) * rows * columns
    extra_bytes, extra, rank = 0.0, 0.0, 0.0
    if name == "nystrom-cg":
        rank = 4 * rows**0.5
        extra_bytes, extra = 3 * rows * rank * item, _TRIES * 6 * rows * rank**2
    if name == "sketched-cg":
        sketch = min(4 * rows, columns)
        extra_bytes = 3.0 * (sketch + rows) * rows * item
        extra = _TRIES * (40.0 * rows * columns + 2 * _ORTHOGONAL * 2.0 * (sketch + rows) * rows**2)
    picked = _TRIES * rank * 2.0 * rows * columns
    stored = make + products * 2 * _BYTE * item * rows * columns + picked + extra
    remade = make * rows**0.5 + products * 80.0 * rows * columns + picked + extra
    ways = [
        ("dense", 2 * rows * columns * item + extra_bytes, stored),
        ("function", 40 * rows * item + extra_bytes, remade),
    ]
    if shape.factor_flops is not None:
        held = _HELD * shape.factor_numbers * rows * item + extra_bytes
        known = products * 12.0 * rows * columns + _TRIES * rank * shape.factor_flops * rows + extra
        ways.append(("factors", held, known))
    return ways


def _fits(shape: StepShape, dtype: torch.dtype, free: int, solver: str) -> bool:
    ways = [plan for plan in _candidates(shape, dtype, free) if solver in ("auto", plan.solver)]
    return any(plan.bytes_needed <= free for plan in ways)


def _too_large(shape: StepShape, dtype: torch.dtype, free: int, solver: str) -> str:
    # Both by bisection: plans use more of a larger budget, so no formula gives the least one.
    short, enough = free, 2 * free
    while not _fits(shape, dtype, enough, solver):
        short, enough = enough, 2 * enough
    while enough - short > enough // 500:
        middle = (short + enough) // 2
        short, enough = (short, middle) if _fits(shape, dtype, middle, solver) else (middle, enough)
    low, high = 0, shape.rows
    while low < high - 1:
        middle = (low + high) // 2
        smaller = replace(shape, rows=middle, factor_numbers=int(shape.factor_numbers * middle / shape.rows))
        low, high = (middle, high) if _fits(smaller, dtype, free, solver) else (low, middle)
    return (
        f"a step on {shape.rows} outputs of samples and {shape.parameters} parameters takes at least "
        f"{enough / 1e9:.3g} GB (solver={solver!r}), the memory budget is {free / 1e9:.3g} GB; "
        + (f"at most {low} outputs fit: use smaller batches" if low else "no batch fits: raise memory=")
    )


def named_solver(name: str, seed: int, tolerance: float = 1e-3) -> Solver:
    """The solver of a plan; `tolerance` is what its iteration ends at, for a direction need only be right enough."""
    kind: Any = STEP_SOLVERS.kind(name)
    settings = {"tolerance": tolerance, "max_iterations": 500, "seed": seed}
    return kind(**{field.name: settings[field.name] for field in fields(kind) if field.name in settings})


def available_bytes(device: torch.device) -> int:
    """Memory that is free now, on the device that the model is on."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()
