"""The optimizer: damped, curvature-steered Gauss-Newton steps for any module."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.gram.base import Jacobian
from widefit.gram.factored import FactoredJacobian
from widefit.gram.recording import FactorCost
from widefit.losses.base import OutputLoss
from widefit.losses.family import output_loss
from widefit.optim.curvature import Curvature, Primal, SampleSpace, Spectral
from widefit.optim.damping import DampingPolicy
from widefit.optim.memory import StepMemory
from widefit.optim.minimization import minimize
from widefit.optim.modules import check_module, trainable_parameters
from widefit.optim.options import check_options
from widefit.optim.search import Momentum, Outcome, Search
from widefit.optim.system import Expansion, Residual, System, describe_blocks
from widefit.optim.tracing import Traces
from widefit.plan.step import StepPlan, StepShape, available_bytes, named_solver, plan_step
from widefit.solvers import Solver
from widefit.solvers.base import Preconditioner
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.loop import State

# μ where every step sees other data.
_MOMENTUM = 0.9
# Residuals are few where there are so many parameters for each: a batch of them says little about the others.
# (Poisson 5d: leaving a part of the residual over gains at 0.17 residuals a parameter and loses at 0.29.)
_PARAMETERS_A_RESIDUAL = 5


class GaussNewton(torch.optim.Optimizer):
    """Gauss-Newton and Levenberg-Marquardt steps for any `nn.Module`, solved in sample space or in parameter space.

    Each step solves (JᵀLJ + λI) d = −∇loss with J the per-sample Jacobian and L the Hessian of the loss in the
    outputs (generalized Gauss-Newton), bends it by the measured second derivative along d, and accepts it only if it
    lowers the loss on the data it was given. λ and the length follow the curvature; there is nothing to tune.

    Parameters
    ----------
    model
        The network. Parameters with `requires_grad=False` stay as they are.
    params
        Parameters or parameter groups, as for any optimizer; None: all trainable ones of `model`. Groups may differ
        in `lr`.
    loss
        "mse", "cross_entropy", "bce" (logits), "huber", a loss of `widefit.losses`, a loss module of torch, or a
        mean-reduced callable(outputs, targets), for `step(x, y)`.
    residual
        `residual(model, *sample)` for ONE sample; then the loss is ½ mean(residual²), for `step(*data)`.
    lr
        Learning rate: the part of a full step that is taken, for schedulers.
    solver
        "auto", "svd", "primal", "cholesky", "cg", "sketched-cg", "nystrom-cg", or a `widefit.solvers` object.
    damping
        "auto", or λ as a part of ‖J‖²_F, then kept as it is.
    momentum
        μ of SPRING, 0 ≤ μ < 1, for mini-batches; "auto": 0 while the data stay the same and 0.9 where they change
        each step.
    max_norm
        Upper bound on the norm of a step; None: none.
    memory
        Bytes the step may use; "auto": half of what is free when the step begins.
    seed
        Draws the sketches.

    Attributes
    ----------
    history
        One StepInfo a step.
    plan
        What "auto" chose for the latest step, why, and what it takes.

    Raises
    ------
    ValueError
        No trainable parameter, parameters of several types or devices, arguments out of range, batch statistics, and in
        `step`: data or a loss that are not finite, a residual that is not per sample, a step that cannot fit in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        *,
        loss: str | OutputLoss | Callable[[Tensor, Tensor], Tensor] = "mse",
        residual: Callable[..., Tensor] | None = None,
        lr: float = 1.0,
        solver: str | Solver = "auto",
        damping: float | Literal["auto"] = "auto",
        momentum: float | Literal["auto"] = "auto",
        max_norm: float | None = None,
        memory: int | Literal["auto"] = "auto",
        seed: int = 0,
    ):
        check_options(lr, damping, momentum, max_norm, memory)
        check_module(model)
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError("model has no trainable parameter: set requires_grad_(True) on what should be trained")
        super().__init__(trainable if params is None else params, {"lr": lr})
        self.model = model
        self.loss = output_loss(loss)
        self.residual = residual
        self.solver = solver
        self.damping = damping
        self.momentum = momentum
        self.max_norm = max_norm
        self.memory = memory
        self.seed = seed
        self.policy = DampingPolicy()
        self.history = History()
        self.plan: StepPlan | None = None
        self._memory = StepMemory(level=self.policy.start if damping == "auto" else float(damping))
        self._last: tuple[tuple[Tensor, ...], tuple[int, ...]] | None = None
        self._preconditioner: Preconditioner | None = None
        self._costs: dict[tuple[Any, ...], FactorCost | None] = {}
        self._traces = Traces()
        self._checked = False
        self._names()

    def step(self, *data: Tensor | Residual) -> StepInfo:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step on a batch.

        `step(x, y)` with a loss, `step(*data)` with `residual`, or `step(Residual(...), Residual(...))`.

        Returns
        -------
        StepInfo
            With `loss` after the step, on this batch.
        """
        began = time.perf_counter()
        check_module(self.model)
        system, names = System(describe_blocks(self.model, self.loss, self.residual, data, self._traces)), self._names()
        parameters = {name: parameter.detach() for name, (parameter, _) in names.items()}
        if not self._checked:
            system.check_samples(parameters)
            self._checked = True
        expansion = self._expand(system, parameters)
        if not self.history.steps:
            self.history.steps.append(StepInfo(step=self._memory.step, loss=expansion.loss))
        outcome = self._search(system, parameters, expansion, self._changes(data))
        if outcome.change is not None:
            self._apply(outcome.change, parameters, names)
        self._memory.level = outcome.level
        self._memory.tolerance = self.policy.tolerance(
            self._memory.tolerance, outcome.change is not None, outcome.loss / max(expansion.loss, 1e-300)
        )
        if outcome.iterations:
            self._memory.products = 0.5 * (self._memory.products + outcome.iterations)
        self._memory.step += 1
        self._memory.seconds += time.perf_counter() - began
        info = StepInfo(
            self._memory.step,
            outcome.loss,
            damping=outcome.damping,
            gain_ratio=outcome.gain_ratio,
            accepted=outcome.change is not None,
            solver=outcome.direction.solver,
            solver_iterations=outcome.iterations,
            residual_norm=outcome.direction.residual_norm,
            seconds=self._memory.seconds,
        )
        self.history.steps.append(info)
        return info

    def evaluate(self, *data: Tensor | Residual) -> float:
        """The loss on what `step` takes, without a step."""
        system = System(describe_blocks(self.model, self.loss, self.residual, data, self._traces))
        return system.loss(system.outputs({name: found.detach() for name, (found, _) in self._names().items()}))

    def minimize(
        self,
        *data: Tensor | Residual | Callable[[], tuple[Tensor | Residual, ...]],
        max_iter: int = 100,
        tol: float = 0.0,
        metric: Callable[[nn.Module], float] | None = None,
        callbacks: Sequence[Callback] = (),
        resume: State | None = None,
    ) -> History:
        """Step until a goal is reached, with progress and a clean end on Ctrl-C.

        Parameters
        ----------
        data
            What `step` takes, or one function of no argument that draws it anew before each step.
        max_iter
            Largest number of steps, rejected ones included.
        tol
            The run ends when the loss, on the data of its step, is no larger.
        metric
            Called with the model after each step; its value is recorded in `StepInfo.metric`.
        callbacks
            See `widefit.callbacks`: `Progress()` for a bar, `Log()` for the logger.
        resume
            A state from `widefit.files.read_checkpoint`: the run that wrote it goes on, to the same bits where the data
            are the same, until `max_iter` steps from its beginning.

        Returns
        -------
        History
            `self.history`; `stop_reason` is "tol", "max_iter", "stalled" (rounding has won), "interrupted" or
            "callback".

        Raises
        ------
        ValueError
            As `step` does; max_iter below 1, tol below 0, a state of something else.
        """
        return minimize(
            self, self.model, data, max_iter=max_iter, tol=tol, metric=metric, callbacks=callbacks, resume=resume
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on."""
        state = super().state_dict()
        state["widefit"] = {
            **asdict(self._memory),
            "preconditioner": None if self._preconditioner is None else vars(self._preconditioner),
            "history": self.history.to_dict(),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume to the same bits from what `state_dict` gave."""
        if "widefit" not in state_dict:
            raise ValueError("this is not the state of a widefit.GaussNewton: it has no entry 'widefit'")
        own = state_dict["widefit"]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "widefit"})
        self._memory = StepMemory(**{field.name: own[field.name] for field in fields(StepMemory)})
        self.history = History.from_dict(own["history"])
        kept = own["preconditioner"]
        self._preconditioner = None if kept is None else Preconditioner(**kept | {"products": tuple(kept["products"])})
        self._last = None

    def _search(self, system: System, parameters: dict[str, Tensor], expansion: Expansion, changes: bool) -> Outcome:
        flat = torch.cat([tensor.reshape(-1) for tensor in parameters.values()])
        rate, scale = self._rates(parameters)
        sizes = [tensor.numel() for tensor in parameters.values()]

        def moved(change: Float[Tensor, " P"]) -> list[Float[Tensor, "_ _"]]:
            pieces = (flat + (change if scale is None else scale * change)).split(sizes)
            return system.outputs(
                {name: piece.view_as(old) for (name, old), piece in zip(parameters.items(), pieces, strict=True)}
            )

        curvature = self._curvature(system, parameters, expansion, scale, changes)
        few = changes and _PARAMETERS_A_RESIDUAL * len(expansion.residual) < len(flat)
        memory = self._memory
        memory.pace, memory.trend = (
            self.policy.pace(memory.pace, memory.trend, expansion.loss) if few else (1.0, math.inf)
        )
        search = Search(
            evaluate=moved,
            loss=system.loss,
            expansion=expansion,
            curvature=curvature,
            policy=self.policy,
            rate=rate * memory.pace,
            momentum=self._previous_step(curvature, changes),
            max_norm=self.max_norm,
            resampled=changes,
            fresh=few,
        )
        outcome = search.run(memory.level, fixed=self.damping != "auto")
        self._preconditioner = curvature.preconditioner
        return outcome

    def _curvature(
        self,
        system: System,
        parameters: dict[str, Tensor],
        expansion: Expansion,
        scale: Float[Tensor, " P"] | None,
        changes: bool,
    ) -> Curvature:
        residual = expansion.residual
        # Where every step sees other data, what a batch leaves out is far more than what float32 does.
        narrow = changes and scale is None and system.traceable(parameters, self._traces)
        dtype = torch.float32 if narrow else residual.dtype
        free = available_bytes(residual.device) // 2 if self.memory == "auto" else int(self.memory)
        cost = self._factor_cost(system, parameters) if scale is None else None
        shape = StepShape(
            rows=len(residual),
            parameters=sum(parameter.numel() for parameter in parameters.values()),
            itemsize=dtype.itemsize,
            factor_flops=cost.flops if cost is not None else None,
            factor_numbers=cost.numbers if cost is not None else 0.0,
        )
        self.plan = plan = plan_step(shape, dtype, free, self.solver, self._memory.products)
        solver = self.solver if isinstance(self.solver, Solver) else None
        jacobian: Jacobian
        if plan.jacobian == "factors":
            jacobian = system.factored(parameters, expansion)
        else:
            made = None
            if scale is None:
                made = system.traced(parameters, expansion, self._traces, plan.row_bytes, free // 2, dtype)
            if made is None:
                made = system.jacobian(parameters, expansion, plan.row_bytes, scale)
            if plan.solver == "svd":
                return Spectral(made.dense(), residual)
            # H is summed from layer inputs and signals without J; whatever else asks for rows asks for them again.
            summed = plan.solver == "cholesky" and isinstance(made, FactoredJacobian)
            stored = plan.jacobian == "dense" and not summed
            jacobian = made.dense() if stored else made
            if isinstance(jacobian, FactoredJacobian):
                self.plan = plan = plan.traced()
        solver = solver or named_solver(plan.solver, self.seed, self._memory.tolerance)
        if plan.solver == "primal":
            return Primal(jacobian, solver)
        return SampleSpace(jacobian, solver, plan.solver == "cholesky", plan.dtype, self._preconditioner)

    def _factor_cost(self, system: System, parameters: dict[str, Tensor]) -> FactorCost | None:
        """Asked once for every shape of a sample and choice of parameters."""
        shapes = tuple(tensor.shape[1:] for block in system.blocks for tensor in block.outputs.data)
        key = (system.module is None, shapes, tuple(parameters))
        if key not in self._costs:
            self._costs[key] = system.factor_cost(parameters)
        return self._costs[key]

    def _expand(self, system: System, parameters: dict[str, Tensor]) -> Expansion:
        expansion = system.expand(system.outputs(parameters))
        if not math.isfinite(expansion.loss):
            bad = [int((~torch.isfinite(output).all(dim=1)).sum()) for output in expansion.outputs]
            raise ValueError(
                f"the loss is {expansion.loss} before the step: outputs are not finite in {sum(bad)} of "
                f"{sum(map(len, expansion.outputs))} samples (per block: {bad}); check the parameters and the residual "
                "function"
            )
        return expansion

    def _names(self) -> dict[str, tuple[nn.Parameter, dict[str, Any]]]:
        return trainable_parameters(self.model, self.param_groups)

    def _apply(
        self,
        change: Float[Tensor, " P"],
        parameters: dict[str, Tensor],
        names: dict[str, tuple[nn.Parameter, dict[str, Any]]],
    ) -> None:
        scale = self._rates(parameters)[1]
        sizes = [parameter.numel() for parameter, _ in names.values()]
        moves = (change if scale is None else scale * change).split(sizes)
        with torch.no_grad():
            for (parameter, _), move, piece in zip(names.values(), moves, change.split(sizes), strict=True):
                parameter.add_(move.view_as(parameter))
                self.state[parameter]["change"] = piece.view_as(parameter) / self._memory.pace

    def _rates(self, parameters: dict[str, Tensor]) -> tuple[float, Float[Tensor, " P"] | None]:
        """The largest rate, and √(rate / largest) per parameter where groups differ.

        Groups with different rates are a metric: J's columns are scaled, so that the step still goes down the loss.
        """
        rates = [float(group["lr"]) for _, group in self._names().values()]
        largest = max(rates)
        if min(rates) == largest:
            return largest, None
        pieces = [
            torch.full_like(tensor, (rate / largest) ** 0.5).reshape(-1)
            for tensor, rate in zip(parameters.values(), rates, strict=True)
        ]
        return largest, torch.cat(pieces)

    def _previous_step(self, curvature: Curvature, changes: bool) -> Momentum | None:
        rate = (_MOMENTUM if changes else 0.0) if self.momentum == "auto" else float(self.momentum)
        pieces = [self.state[parameter].get("change") for parameter, _ in self._names().values()]
        if rate == 0 or any(piece is None for piece in pieces):
            return None
        offset = rate * torch.cat([piece.reshape(-1) for piece in pieces])
        return Momentum(offset, curvature.image(offset))

    def _changes(self, data: tuple[Tensor | Residual, ...]) -> bool:
        """Whether steps see different data, as mini-batches and resampled points do."""
        current = tuple(t for item in data for t in (item.data if isinstance(item, Residual) else (item,)))
        versions = tuple(t._version for t in current)
        if self._last is not None:
            last, last_versions = self._last
            self._memory.changing = len(last) != len(current) or not all(
                (a is b and v == w) or (a.shape == b.shape and a is not b and torch.equal(a, b))
                for a, b, v, w in zip(current, last, versions, last_versions, strict=True)
            )
        self._last = (current, versions)
        return self._memory.changing
