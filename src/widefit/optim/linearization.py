"""J̃ at a point, in the form that the plan of the step asks for."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.gram.base import Jacobian
from widefit.gram.jacobian import DenseJacobian
from widefit.gram.recording import FactorCost
from widefit.gram.stacked import Part, StackedJacobian
from widefit.kernels.devices import double_cost
from widefit.optim.point import StartingPoint
from widefit.optim.tracing import Traces
from widefit.plan.step import PART, StepPlan, StepShape

# Solvers that take the columns of J̃ as they are.
IN_PARAMETERS = ("svd", "qr", "primal", "primal-cg")


@dataclass(frozen=True)
class JacobianRequest:
    """Everything that is known of J̃ before it is made.

    Attributes
    ----------
    dtype
        Precision of J̃.
    cost
        Cost of its factored form, layer inputs and backward signals; None: there is no such form.
    metric
        Factors of the columns, shape (P,); None: 1.
    """

    dtype: torch.dtype
    cost: FactorCost | None
    metric: Float[Tensor, " P"] | None

    def shape(self, point: StartingPoint) -> StepShape:
        """The sizes that decide what a step costs."""
        processes = point.system.processes
        total = point.system.total_rows(point.expansion)
        told = processes.gathered((len(point.residual), double_cost(point.moving.device)))
        return StepShape(
            rows=total,
            own_rows=max(rows for rows, _ in told),
            processes=processes.size,
            parameters=point.moving.count,
            itemsize=self.dtype.itemsize,
            double=max(double for _, double in told),
            factor_flops=None if self.cost is None else self.cost.flops,
            factor_numbers=0.0 if self.cost is None else self.cost.numbers,
        )


def make_jacobian(
    point: StartingPoint, request: JacobianRequest, plan: StepPlan, traces: Traces, memory: int
) -> tuple[Jacobian, StepPlan]:
    """J̃ and the plan, which then names the form that it has."""
    system, values, expansion = point.system, point.values, point.expansion
    if plan.solver in IN_PARAMETERS and plan.jacobian != "dense":
        return _stacked(point, request, plan, traces, memory)
    if plan.jacobian == "factors":
        return system.factored(values, expansion), plan
    # In parameter space the columns are scaled afterwards, together with the sizes of the parameters.
    metric = None if plan.solver in IN_PARAMETERS else request.metric
    traced = None
    if metric is None:
        traced = system.traced(values, expansion, traces, plan.row_bytes, memory // 2, request.dtype)
    made = traced or system.jacobian(values, expansion, plan.row_bytes, metric)
    # H is summed from layer inputs and signals without J; whatever else asks for rows asks for them again.
    summed = plan.solver == "cholesky" and traced is not None
    if plan.solver == "svd" or (plan.jacobian == "dense" and not summed):
        return DenseJacobian(made.dense().matrix.detach()), plan
    return made, plan.traced() if traced is not None else plan


def _stacked(
    point: StartingPoint, request: JacobianRequest, plan: StepPlan, traces: Traces, memory: int
) -> tuple[Jacobian, StepPlan]:
    """J̃ in parts of some thousand samples, from layer inputs and signals that are held where they can be."""
    parts = []
    followed = True
    for kind, first, group, system, expansion in point.system.stretches(point.expansion, plan.group, PART):
        # Twice as much as for all samples at once: the graph of one stretch is gone when the next one comes.
        free = memory * system.samples // point.system.samples
        if plan.jacobian == "factors":
            made: Jacobian = system.factored(point.values, expansion)
        else:
            traced = system.traced(point.values, expansion, traces, plan.row_bytes, free, request.dtype)
            made = traced or system.jacobian(point.values, expansion, plan.row_bytes)
            followed = followed and traced is not None
        parts.append(Part(made, first, kind, group))
    traced_all = followed and plan.jacobian != "factors"
    return StackedJacobian(parts), plan.traced() if traced_all else plan
