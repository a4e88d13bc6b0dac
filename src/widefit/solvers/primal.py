"""The direct solver on the side of the parameters: for H = J Jᵀ of fewer columns than rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Jacobian, Operator
from widefit.solvers.base import Preconditioner, Prepared, Solution, Solver, relative_residual


@dataclass(frozen=True)
class Primal(Solver):
    """g = (e − J (JᵀJ + λI)⁻¹ Jᵀ e) / λ by Cholesky of P × P numbers in float64 (Woodbury's identity).

    n P² + P³/3 flops. The difference cancels where λ is far below the eigenvalues of H.

    Raises
    ------
    ValueError
        H is not known by a factor J, or λ = 0.
    """

    name: str = "primal"

    def solve(self, operator: Operator, rhs: Float[Tensor, "n *c"], damping: float) -> Solution:
        return self.prepare(operator, damping).solve(rhs)

    def prepare(self, operator: Operator, damping: float, previous: Preconditioner | None = None) -> Prepared:
        """Sum and factor JᵀJ + λI."""
        if operator.factor is None or not damping > 0:
            raise ValueError("the primal solver takes H with a factor J and a damping above 0; use Cholesky or CG")
        jacobian = operator.factor
        size = jacobian.shape[1]
        normal = torch.zeros(size, size, dtype=torch.float64, device=operator.device)
        for _, rows in jacobian.row_blocks():
            wide = rows.double()
            normal.addmm_(wide.T, wide)
        normal.diagonal().add_(damping)
        return _Normal(self, operator, jacobian, damping, torch.linalg.cholesky(normal))


@dataclass(frozen=True)
class _Normal(Prepared):
    solver: Primal
    operator: Operator
    jacobian: Jacobian
    damping: float
    factor: Float[Tensor, "P P"]

    def solve(self, rhs: Float[Tensor, "n *c"]) -> Solution:
        columns = rhs.reshape(self.operator.size, -1).double()
        image = torch.zeros(self.factor.shape[0], columns.shape[1], dtype=torch.float64, device=columns.device)
        for first, rows in self.jacobian.row_blocks():
            image.addmm_(rows.double().T, columns[first : first + len(rows)])
        inner = torch.cholesky_solve(image, self.factor)
        moved = torch.cat([rows.double() @ inner for _, rows in self.jacobian.row_blocks()])
        value = ((columns - moved) / self.damping).to(rhs.dtype).reshape(rhs.shape)
        return Solution(value, relative_residual(self.operator, value, rhs, self.damping), 0, self.solver.name)
