"""Choices of "auto" for a step: the factorization, the form of J, and the predicted cost."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from widefit.kernels.devices import DOUBLE
from widefit.plan.base import Choice, Plan
from widefit.plan.names import STEP_SOLVERS
from widefit.solvers import Solver

# Sustained rates relative to a matrix product: orthogonal factorizations, passes over stored numbers (flops that fit
# into the time of moving one byte).
_ORTHOGONAL = 3.0
_BYTE = 5.0
# Values of λ a step tries on average, each a factorization; and solves per value.
_TRIES = 1.2
_SOLVES = 3.0
# Numbers held for every input and signal: they themselves, the graph that signals come from, and a forward pass.
_HELD = 3.0
# H of fewer flops than this, in float64, is summed in it even for a float32 network.
_WIDEN = 8e9
# Rows of a sketch a parameter, and iterations behind the preconditioner that it gives.
_SKETCHED = 24
_CYCLES = 6.0
# Samples whose rows of J are made together where there are very many; bytes of rows alive, and vectors of sample space.
PART = 1 << 12
_CHUNK = 1 << 26
_ROW_VECTORS = 24
# Flops in the time in which a byte goes to another process.
_SENT = 100.0
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
    processes
        So many share out the rows.
    own_rows
        Most rows that one of them has; 0: all.
    double
        Time of an operation in float64, as a multiple of one in float32.
    """

    rows: int
    parameters: int
    itemsize: int
    factor_flops: float | None = None
    factor_numbers: float = 0.0
    processes: int = 1
    own_rows: int = 0
    double: float = DOUBLE

    @property
    def narrow(self) -> bool:
        """Whether factors are float32, and what they give refined: where float64 is slow."""
        return self.double > DOUBLE

    @property
    def factoring(self) -> float:
        """Time of an operation of a factorization in float64, or of one in float32 that is refined."""
        return min(self.double, DOUBLE)

    @property
    def here(self) -> int:
        """Rows of one process."""
        return self.own_rows or self.rows


@dataclass(frozen=True)
class StepPlan(Plan):
    """One way to take a step; its flops are those of a float32 matrix product.

    Attributes
    ----------
    solver
        "svd", "qr", "primal", "primal-cg" or the name of a solver in sample space.
    jacobian
        "dense" (stored), "factors" (layer inputs and backward signals), "function" (made again when needed) or "traced"
        (the same from layer inputs and backward signals of residual functions).
    dtype
        In which H is summed.
    row_bytes
        Memory for the rows of J alive at a time.
    group
        Rows that a sketch of J adds up.
    narrow
        Whether factors are float32, and answers refined with what they are factors of.
    """

    solver: str = "auto"
    jacobian: str = "dense"
    dtype: torch.dtype = torch.float64
    row_bytes: int = 0
    group: int = 1
    narrow: bool = False

    def because(self, reason: str) -> "StepPlan":
        """Return the plan with its choices told, for this reason."""
        form = f"{_form(self)}; {_precision(self)}"
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


def _precision(plan: StepPlan) -> str:
    """Precision of what is summed, and of what is factored."""
    dtype = str(plan.dtype).removeprefix("torch.")
    if plan.solver == "svd":
        return "singular values in float64"
    if plan.solver == "qr":
        return "its triangle in float64"
    factor = "its factor in float32, refined" if plan.narrow else "its factor in float64"
    if plan.solver in ("primal", "primal-cg"):
        return f"JᵀJ in float64, {factor if plan.solver == 'primal' else 'its factor as well'}"
    if plan.solver == "cholesky":
        return f"H in {dtype}, {factor}"
    return "products with J as it is"


def _form(plan: StepPlan) -> str:
    held = plan.jacobian == "factors" and plan.solver in ("svd", "qr", "primal", "primal-cg")
    form = "in blocks of samples, from the inputs of layers and backward signals" if held else _FORMS[plan.jacobian]
    return f"{form}, sketched by sums over {plan.group} rows" if plan.solver == "primal-cg" else form


def plan_step(
    shape: StepShape,
    dtype: torch.dtype,
    free: int,
    solver: str | Solver = "auto",
    products: float = 50.0,
    squared: bool = True,
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
    squared
        Whether λ is large enough for JᵀJ in float64.

    Raises
    ------
    ValueError
        An unknown name; or nothing fits: says how much is missing and which batch would fit.
    """
    if isinstance(solver, Solver):
        known = solver.name in STEP_SOLVERS.homes
        found = plan_step(shape, dtype, free, solver.name if known else "cg", products, squared)
        return replace(found, solver=solver.name).because(found.choices[0].reason)
    plans = [plan for plan in _candidates(shape, dtype, free, products) if solver in ("auto", plan.solver)]
    if solver == "auto" and shape.processes > 1:
        # So many iterations magnify rounding until the step depends on how the rows are shared out.
        plans = [plan for plan in plans if plan.solver != "cg"]
    if not plans and solver in ("qr", "primal", "primal-cg"):
        raise ValueError(
            f"solver={solver!r} is for fewer parameters than outputs of samples, "
            f"got {shape.parameters} and {shape.rows}"
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
    trusted = ("primal", "primal-cg", "cholesky", "svd") + (("nystrom-cg",) if shape.itemsize < 8 else ())
    if not squared and shape.itemsize == 8 and any(plan.solver == "qr" for plan in fitting):
        trusted = ("qr",)
    best = min(
        exact or [plan for plan in fitting if plan.solver in trusted] or fitting, key=lambda plan: plan.flops_per_step
    )
    others = min((plan.flops_per_step for plan in plans if plan is not best), default=math.inf)
    against = f", the next best way {others:.2g}" if others < math.inf else ""
    asked = "as asked for: " if solver != "auto" else ""
    if solver == "auto" and best.solver == "qr":
        asked = "for a λ that JᵀJ would lose in rounding: "
    if solver == "auto" and exact:
        asked = "accurate however ill-conditioned J is, and cheap for few parameters: "
    return best.because(f"{asked}{best.flops_per_step:.2g} flops predicted{against}; fits in {free / 1e9:.2g} GB")


def _candidates(shape: StepShape, dtype: torch.dtype, free: int, products: float = 50.0) -> list[StepPlan]:
    """Every way that suits the shape, cheap or not."""
    rows, columns, item = shape.rows, shape.parameters, shape.itemsize
    here, sharded = shape.here, shape.processes > 1
    gram_flops = 2.0 * rows * rows * columns / shape.processes
    wide = item >= 8 or shape.double * gram_flops <= _WIDEN
    rate = shape.double if wide else 1.0
    stored = here * columns * item
    row_bytes = max(min(free // 4, 3 * stored), 1)
    make = (6.0 + _BYTE * item) * here * columns
    factor_dual = shape.factoring * _TRIES * rows**3 / 3
    applied = 4.0 * _SOLVES * _TRIES * here * columns
    # The matrix, its damped copy and the factor; a solve in float64 whatever H is summed in.
    squares_dual = 16 * rows**2 + (8 if wide else item) * rows**2
    remade = make * max(1.0, 0.5 * stored / row_bytes)
    dtype = torch.float64 if wide else dtype
    plans = _in_parameters(shape, dtype, free, row_bytes)
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
    if sharded:  # all rows go from process to process, by columns that these share out
        dual = [("dense", 2 * row_bytes + 2 * stored + squares_dual, dual[0][2] + _SENT * rows * columns * item)]
    ways = [("cholesky", *way) for way in dual]
    iterative = ("nystrom-cg", "cg", "sketched-cg")
    ways += [(name, *way) for name in iterative for way in _iterative(shape, name, products)]
    return plans + [
        StepPlan(
            bytes_needed=int(numbers),
            flops_per_step=flops,
            solver=solver,
            jacobian=jacobian,
            dtype=dtype,
            row_bytes=row_bytes,
            narrow=shape.narrow,
        )
        for solver, jacobian, numbers, flops in ways
    ]


def _in_parameters(shape: StepShape, dtype: torch.dtype, free: int, row_bytes: int) -> list[StepPlan]:
    """Ways that factor a matrix of P × P: whatever the number of rows is, J need not be stored."""
    here, columns, item = shape.here, shape.parameters, shape.itemsize
    small = min(shape.rows, columns)
    stored = here * columns * item
    make = (6.0 + _BYTE * item) * here * columns
    applied = 4.0 * _SOLVES * _TRIES * here * columns
    orthogonal = shape.double * _ORTHOGONAL * (2.0 * here * columns * small + 20.0 * small**3)
    factor = shape.factoring * _TRIES * columns**3 / 3
    triangles = shape.double * _ORTHOGONAL * (2.0 * here * columns**2 + _TRIES * 3.0 * columns**3)
    squares = 24 * columns**2
    normal = shape.double * (1.0 + min(1.0, 512 / columns)) * here * columns**2 + factor
    # Every process adds what a stretch of its rows is in float64.
    widened = 8 * min(here, PART) * columns
    group = max(1, shape.rows // (_SKETCHED * columns))
    sketched = shape.double * 2.0 * here / group * columns**2 + factor
    cycles = _CYCLES * applied

    def plan(solver: str, jacobian: str, numbers: float, flops: float, chunk: int = row_bytes) -> StepPlan:
        return StepPlan(
            bytes_needed=int(numbers),
            flops_per_step=flops,
            solver=solver,
            jacobian=jacobian,
            dtype=dtype,
            row_bytes=chunk,
            narrow=shape.narrow,
            group=group if solver == "primal-cg" else 1,
        )

    doubled = widened if shape.processes > 1 else 16 * here * columns
    plans = [plan("svd", "dense", row_bytes + stored + doubled + 16 * small**2, make + orthogonal)]
    if columns >= shape.rows:
        return plans
    plans.append(plan("primal", "dense", row_bytes + stored + widened + squares, make + normal + applied))
    # A triangle above some rows, and their factorization; twice as many products, for answers are corrected.
    stacked = 2 * 8 * min(here, 5 * columns) * columns
    plans.append(plan("qr", "dense", row_bytes + stored + stacked + 2 * squares, make + triangles + 2 * applied))
    # Rows of some thousand samples at a time, with the graph that they come from, and vectors of sample space.
    chunk = max(1, min(row_bytes, free // 16, _CHUNK))
    passing = 3 * chunk + 2 * min(here, PART) * columns * item + _ROW_VECTORS * 8 * here
    ways: list[tuple[str, float, float, float]] = [("function", passing, 3.0, make)]
    if shape.factor_flops is not None:
        held = passing + shape.factor_numbers * (here + _HELD * min(here, PART)) * item
        ways.append(("factors", held, 1.0, make))
    for form, numbers, dearer, made in ways:
        plans += [
            plan("svd", form, numbers + widened + squares, made + orthogonal + dearer * applied, chunk),
            plan("qr", form, numbers + stacked + 2 * squares, made + triangles + 2 * dearer * applied, chunk),
            plan("primal", form, numbers + widened + squares, made + normal + dearer * applied, chunk),
            # A product is bound by the memory that it reads, and costs several where it begins from the samples.
            plan("primal-cg", form, numbers + squares, 0.4 * made + sketched + 3 * dearer**2 * cycles, chunk),
        ]
    return plans


def _iterative(shape: StepShape, name: str, products: float) -> list[tuple[str, float, float]]:
    """(form of J, bytes, flops) of a preconditioned iteration on each form of J."""
    rows, columns, item = shape.here, shape.parameters, shape.itemsize
    products *= 5.0 if name == "cg" else 1.0
    make = (6.0 + _BYTE * item) * rows * columns
    extra_bytes, extra, rank = 0.0, 0.0, 0.0
    if name == "nystrom-cg":
        rank = 4 * shape.rows**0.5
        extra_bytes, extra = 3 * shape.rows * rank * item, _TRIES * 6 * shape.rows * rank**2
    if name == "sketched-cg":
        total = shape.rows
        sketch = min(4 * total, columns)
        extra_bytes = 3.0 * (sketch + total) * total * item
        extra = _TRIES * (40.0 * rows * columns + 2 * _ORTHOGONAL * 2.0 * (sketch + total) * total**2)
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
        part = middle / shape.rows
        smaller = replace(
            shape, rows=middle, own_rows=int(shape.own_rows * part), factor_numbers=int(shape.factor_numbers * part)
        )
        low, high = (middle, high) if _fits(smaller, dtype, free, solver) else (low, middle)
    return (
        f"a step on {shape.rows} outputs of samples and {shape.parameters} parameters takes at least "
        f"{enough / 1e9:.3g} GB (solver={solver!r}), the memory budget is {free / 1e9:.3g} GB; "
        + (f"at most {low} outputs fit: use smaller batches" if low else "no batch fits: raise memory=")
    )


def named_solver(name: str, seed: int, tolerance: float = 1e-3, narrow: bool = False) -> Solver:
    """The solver of a plan.

    Parameters
    ----------
    name
        Its name.
    seed
        Draws what it draws.
    tolerance
        Of an iteration, for a direction need only be right enough.
    narrow
        Factor in float32, and refine.
    """
    kind: Any = STEP_SOLVERS.kind(name)
    settings = {"tolerance": tolerance, "max_iterations": 500, "seed": seed, "narrow": narrow}
    return kind(**{field.name: settings[field.name] for field in fields(kind) if field.name in settings})
