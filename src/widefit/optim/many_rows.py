"""Curvature of far more rows than parameters: J̃ is seen block by block, and never stored."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import DenseGram, Jacobian
from widefit.gram.jacobian import add_lower_gram, mirror_lower
from widefit.gram.stacked import StackedJacobian
from widefit.kernels.transfer import iterations_ahead
from widefit.optim.curvature import SPECTRAL_FLOOR, Curvature, ParameterStep, Spectral, finite, finite_trace
from widefit.optim.scaling import Scaling
from widefit.processes import ALONE, Alone
from widefit.solvers.cholesky import damped_factor

# Rows that are added to a triangle at a time, as a multiple of its size.
_STACKED = 4
# The smallest relative λ that a triangle is damped by: far above the square of the rounding of J itself.
_LEAST = 1e-22
# Iterations without a lower residual, after which rounding has won; and most iterations of a solve.
_PATIENCE = 4
_ITERATIONS = 200


class _Products:
    """Products with J̃S in float64, whose rows are never stored; the rows may be those of several processes."""

    jacobian: Jacobian
    processes: Alone
    sizes: Float[Tensor, " P"]

    def _push(self, value: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        """J̃S v."""
        return self.jacobian.matvec((self.sizes * value).to(self.jacobian.dtype)).to(torch.float64)

    def _pull(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        """S J̃ᵀ w."""
        pulled = self.jacobian.rmatvec(weights.to(self.jacobian.dtype)).to(torch.float64)
        return self.sizes * self.processes.sum(pulled)


class _Triangle(_Products):
    """R of the QR of [J̃ r̃], from one block of rows after another: that of J̃S, and Qᵀ r̃."""

    def __init__(self, jacobian: Jacobian, residual: Float[Tensor, " M"], scaling: Scaling, processes: Alone):
        self.jacobian, self.processes = jacobian, processes
        columns = jacobian.shape[1]
        factor = tall_triangle(jacobian, residual, processes)
        self.column_norms = scaling.norms(finite(torch.linalg.vector_norm(factor[:, :columns], dim=0)))
        self.sizes = scaling.sizes(self.column_norms)
        self.triangle: Float[Tensor, "P P"] = factor[:columns, :columns] * self.sizes
        self.rotated: Float[Tensor, " P"] = factor[:columns, columns]


class TallSpectral(_Triangle, Spectral):
    """Singular values of J̃S from the QR of one block of rows after another, for few parameters and very many rows.

    (Tall-skinny QR: Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34, 2012.) Costs about 2 M P² flops in
    float64 and P² numbers.

    Raises
    ------
    NonFiniteDerivativeError
        The derivative overflows.
    """

    def __init__(self, jacobian: Jacobian, residual: Float[Tensor, " M"], scaling: Scaling, processes: Alone = ALONE):
        super().__init__(jacobian, residual, scaling, processes)
        self.dtype, self.residual = residual.dtype, residual
        left, self.singular, self.right = torch.linalg.svd(self.triangle)
        self.projected = left.T @ self.rotated
        self.trace = float(self.singular.square().sum())
        self.floor = SPECTRAL_FLOOR

    @property
    def _wide(self) -> bool:
        return False

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        # What follows from a factor that all processes found is the same but for the last bit of other machines.
        step = super().direction(weights, damping)
        if self.processes.size == 1:
            return step
        value = self.processes.same(step.value)
        return ParameterStep(value, self.image(value), step.defect, step.iterations, step.solver)


class Triangular(_Triangle, Curvature):
    """The triangle of the QR of J̃S, and for every λ that of it above √λ I: where JᵀJ would lose a small λ in rounding.

    (Corrected seminormal equations: Björck, Linear Algebra Appl. 88/89, 1987; the defect of a direction is that before
    its correction.) Costs about 2 M P² + 3 P³ flops in float64 and P² numbers.

    Raises
    ------
    NonFiniteDerivativeError
        The derivative overflows.
    """

    def __init__(self, jacobian: Jacobian, residual: Float[Tensor, " M"], scaling: Scaling, processes: Alone = ALONE):
        super().__init__(jacobian, residual, scaling, processes)
        self.trace = float(self.triangle.square().sum())
        self.floor = _LEAST
        self._latest: tuple[float, Float[Tensor, "P P"]] | None = None

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self._push(direction.to(torch.float64) / self.sizes).to(direction.dtype)

    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        return (self._pull(weights.to(torch.float64)) / self.sizes).to(weights.dtype)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        factor, wide = self._damped(damping), weights.to(torch.float64)
        gradient = self._pull(wide)
        value = -_solved(gradient, factor)
        # Jᵀw is rounded as if σ were ‖J‖; what that leaves of the equations is found with the true residual.
        left = self._pull(wide + self._push(value)) + damping * value
        scale = torch.linalg.vector_norm(gradient)
        defect = torch.where(scale > 0, torch.linalg.vector_norm(left) / scale, 0.0)
        value = self.processes.same(value - _solved(left, factor))
        moved = (self.sizes * value).to(weights.dtype)
        return ParameterStep(moved, self._push(value).to(weights.dtype), defect, 0, "qr")

    def _damped(self, damping: float) -> Float[Tensor, "P P"]:
        """R of [J̃S; √λ I]."""
        if self._latest is None or self._latest[0] != damping:
            # Where J̃ vanishes, so does λ, and 0 is to be divided by something.
            root = math.sqrt(damping or torch.finfo(torch.float64).tiny)
            below = torch.eye(len(self.triangle), dtype=torch.float64, device=self.triangle.device).mul_(root)
            self._latest = damping, torch.linalg.qr(torch.cat([self.triangle, below]), mode="r")[1]
        return self._latest[1]


def _solved(weights: Float[Tensor, " P"], factor: Float[Tensor, "P P"]) -> Float[Tensor, " P"]:
    """(RᵀR)⁻¹ w."""
    return torch.cholesky_solve(weights[:, None], factor, upper=True)[:, 0]


def tall_triangle(jacobian: Jacobian, residual: Float[Tensor, " M"], processes: Alone = ALONE) -> Float[Tensor, "q q"]:
    """R of the QR of [J̃ r̃] in float64, from blocks of rows."""
    factor = processes.attempt(lambda: _own_triangle(jacobian, residual))
    if processes.size > 1:
        factor = processes.same(torch.linalg.qr(processes.joined(factor), mode="r")[1])
    size = jacobian.shape[1] + 1
    return torch.cat([factor, factor.new_zeros(size - len(factor), size)])


def _own_triangle(jacobian: Jacobian, residual: Float[Tensor, " M"]) -> Float[Tensor, "q s"]:
    """R of the rows of this process, of as many rows as they determine."""
    size = jacobian.shape[1] + 1
    factor = torch.zeros(0, size, dtype=torch.float64, device=jacobian.device)
    for start, block in jacobian.row_blocks():
        pieces = zip(block.split(_STACKED * size), residual[start:][: len(block)].split(_STACKED * size), strict=True)
        for rows, right in pieces:
            added = torch.cat([rows.to(torch.float64), right.to(torch.float64)[:, None]], dim=1)
            factor = torch.linalg.qr(torch.cat([factor, added]), mode="r")[1]
    return factor


class SketchedPrimal(_Products, Curvature):
    """Conjugate gradients in parameter space behind the Cholesky factor of a sketched SJ̃ᵀJ̃S.

    The rows of J̃, each with a random sign, are added up in groups (a count sketch): a tenth or a hundredth of the rows,
    made for about the price of one product with J̃, whose JᵀJ is a preconditioner that no condition of J̃ can spoil
    (Avron, Maymounkov and Toledo, SIAM J. Sci. Comput. 32, 2010). The iteration itself (CGLS) takes products with J̃,
    and is judged by true residuals.

    Parameters
    ----------
    jacobian
        Its parts say how the sketch adds them up.
    scaling
        Its norms of columns are those of the sketch.
    tolerance
        ‖SJ̃ᵀ(J̃d + w) + λS⁻¹d‖ / ‖SJ̃ᵀw‖ at which the iteration ends.
    seed
        Draws the signs.
    processes
        They share out the rows. The sketch does not depend on how.

    Raises
    ------
    NonFiniteDerivativeError
        The derivative overflows.
    """

    def __init__(
        self,
        jacobian: StackedJacobian,
        scaling: Scaling,
        tolerance: float,
        seed: int = 0,
        processes: Alone = ALONE,
    ):
        self.jacobian, self.processes = jacobian, processes
        self.tolerance = tolerance
        total = sketched_normal(jacobian, seed, processes)
        norms = total.diagonal().sqrt()
        self.column_norms = scaling.norms(norms)
        self.sizes = scaling.sizes(self.column_norms)
        self.normal = DenseGram(total.mul_(self.sizes).mul_(self.sizes[:, None]))
        self.trace = finite_trace(norms, total)
        self.floor = 10 * torch.finfo(torch.float64).eps
        self._factored: tuple[float, Float[Tensor, "P P"] | None] | None = None

    def image(self, direction: Float[Tensor, " P"]) -> Float[Tensor, " M"]:
        return self.jacobian.matvec(direction.to(self.jacobian.dtype)).to(direction.dtype)

    def gradient(self, weights: Float[Tensor, " M"]) -> Float[Tensor, " P"]:
        return (self._pull(weights) / self.sizes).to(weights.dtype)

    def direction(self, weights: Float[Tensor, " M"], damping: float) -> ParameterStep:
        left = -weights.to(torch.float64)
        slope = self._pull(left)
        value, image = torch.zeros_like(slope), torch.zeros_like(left)
        ready = search = self._precondition(slope, damping)
        steep = torch.dot(slope, ready)
        told = [torch.stack([torch.linalg.vector_norm(slope), steep])]
        points = [(value, image)]
        scale, lowest, best = None, math.inf, (value, image)
        since, iterations = 0, 0
        # On the host the start is looked at by itself, on a device together with the first iterations.
        ahead = 0 if slope.device.type == "cpu" else iterations_ahead(slope.device)
        going = True
        while going:
            for _ in range(ahead):
                pushed = self._push(search)
                length = steep / (self.processes.products((pushed, pushed))[0] + damping * torch.dot(search, search))
                value = value + length * search
                image = image + length * pushed
                # Jᵀ of what is left of the right-hand side: nothing is followed that products do not show.
                slope = self._pull(left - image) - damping * value
                ready = self._precondition(slope, damping)
                before, steep = steep, torch.dot(slope, ready)
                search = ready + (steep / before) * search
                told.append(torch.stack([torch.linalg.vector_norm(slope), steep]))
                points.append((value, image))
            # One transfer from the device for all of them; those beyond the end are as if they had not been.
            for (found, steepness), point in zip(torch.stack(told).tolist(), points, strict=True):
                if scale is None:
                    scale, lowest, best = found, found, point
                else:
                    iterations += 1
                    lowest, best, since = (found, point, 0) if found < lowest else (lowest, best, since + 1)
                limited = since >= _PATIENCE or iterations >= _ITERATIONS
                going = found > self.tolerance * scale and steepness > 0 and not limited
                if not going:
                    break
            ahead = iterations_ahead(slope.device)
            told, points = [], []
        value, image = best
        step = self.processes.same(self.sizes * value).to(weights.dtype)
        defect = slope.new_tensor(lowest / scale if scale else 0.0)
        return ParameterStep(step, image.to(weights.dtype), defect, iterations, "primal-cg")

    def _precondition(self, vector: Float[Tensor, " P"], damping: float) -> Float[Tensor, " P"]:
        if self._factored is None or self._factored[0] != damping:
            found = damped_factor(self.normal, damping)
            self._factored = damping, None if found is None else found[1]
        factor = self._factored[1]
        return vector if factor is None else torch.cholesky_solve(vector[:, None], factor)[:, 0]


def sketched_normal(jacobian: StackedJacobian, seed: int, processes: Alone = ALONE) -> Float[Tensor, "P P"]:
    """(SJ)ᵀSJ in float64 for the sketch S of the parts of J, those of all processes."""
    total = torch.zeros(jacobian.shape[1], jacobian.shape[1], dtype=torch.float64, device=jacobian.device)

    def own() -> dict[tuple[int, int], Tensor]:
        begun: dict[tuple[int, int], Tensor] = {}
        for found in jacobian.grouped(seed):
            add_lower_gram(total, found.whole.to(torch.float64).T)
            add_up(begun, found.begun)
        return begun

    begun = processes.attempt(own)
    shared: dict[tuple[int, int], Tensor] = {}
    for other in processes.gathered(begun):
        add_up(shared, other)
    # Groups that are spread over processes are complete now.
    if processes.rank == 0 and shared:
        add_lower_gram(total, torch.stack(list(shared.values())).to(torch.float64).T)
    return mirror_lower(processes.sum(total))


def add_up(totals: dict[tuple[int, int], Tensor], found: dict[tuple[int, int], Tensor]) -> None:
    """Add numbered rows to those of the same numbers, in float64."""
    for key, row in found.items():
        wide = row.to(torch.float64)
        totals[key] = totals[key] + wide if key in totals else wide
