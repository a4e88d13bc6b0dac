"""The optimizer: damped, curvature-steered Gauss-Newton steps for any module."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.gram.base import Jacobian
from widefit.gram.jacobian import DenseJacobian
from widefit.gram.recording import FactorCost
from widefit.gram.sharded import ShardedJacobian
from widefit.gram.stacked import StackedJacobian
from widefit.kernels import clock
from widefit.kernels.devices import check_precision, free_memory
from widefit.kernels.precision import full_precision
from widefit.losses.base import OutputLoss
from widefit.losses.family import output_loss
from widefit.optim.batch import as_arguments, as_batch
from widefit.optim.bounds import BoundedCurvature, Bounds, masked
from widefit.optim.covariance import system_covariance
from widefit.optim.curvature import (
    NORMAL_FLOOR,
    Curvature,
    NonFiniteDerivativeError,
    Primal,
    SampleSpace,
    Spectral,
    rounding_floor,
)
from widefit.optim.damping import DampingPolicy
from widefit.optim.latest import LatestData
from widefit.optim.linearization import JacobianRequest, make_jacobian
from widefit.optim.many_rows import SketchedPrimal, TallSpectral, Triangular
from widefit.optim.minimization import minimize
from widefit.optim.modules import check_module
from widefit.optim.options import check_model, check_options
from widefit.optim.parameters import MovingParameters
from widefit.optim.point import StartingPoint
from widefit.optim.scaling import Scaling
from widefit.optim.search import Momentum, Search, SearchResult
from widefit.optim.shards import check_alike, share_out
from widefit.optim.state import StepState
from widefit.optim.system import Block, Residual, System, describe_blocks
from widefit.optim.threads import few_threads
from widefit.optim.tracing import Traces
from widefit.plan.base import placed
from widefit.plan.step import StepPlan, named_solver, plan_step
from widefit.processes import as_processes
from widefit.solvers import Solver
from widefit.solvers.base import Preconditioner
from widefit.training.callback import Callback
from widefit.training.history import History, StepInfo
from widefit.training.loop import State

# μ where every step sees other data.
_MOMENTUM = 0.9
# So many times fewer residuals than parameters are few: a batch of them says little about the others. (Poisson 5d:
# leaving a part of the residual over gains at 0.17 residuals a parameter and loses at 0.29.)
_FEW = 5
# Times that a step towards a point without a finite derivative is halved, before it is taken back.
_HALVINGS = 12
# Solvers of which a further right-hand side costs a few products.
_DIRECT = ("svd", "qr", "primal", "cholesky")
# Residuals a parameter from which a small loss at fixed points speaks for the points between.
_ENOUGH = 2
# JᵀJ is left where λ takes more than this part of what the model promises, and formed again so far above its rounding.
_TAKEN = 0.01
_AGAIN = 10


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
        "auto", "svd", "qr", "primal", "primal-cg", "cholesky", "cg", "sketched-cg", "nystrom-cg", or an object of
        `widefit.solvers`.
    damping
        "auto", or λ as a part of ‖J‖²_F, then kept as it is.
    momentum
        μ of SPRING, 0 ≤ μ < 1, for mini-batches; "auto": 0 while the data stay the same and 0.9 where they change
        each step.
    max_norm
        Upper bound on the norm of a step; None: none.
    bounds
        {name: (lower, upper)} for parameters that are to stay within bounds: numbers, tensors in the shape of the
        parameter, or None for no bound. `bounds={"log_k": (0, None)}` keeps model.log_k from falling below 0.
    memory
        Bytes the step may use; "auto": half of what is free when the step begins.
    seed
        Draws the sketches.
    process_group
        A group of torch.distributed, or a `widefit.Processes`. Every process of it has the same model and passes rows
        of its own, any number of them, to `step`, `evaluate`, `minimize` and `covariance`; a step is that of one
        process on all rows. None: this process by itself.

    Attributes
    ----------
    history
        One StepInfo a step.
    plan
        The choice of "auto" for the latest step, its reason, and its predicted cost.

    Raises
    ------
    ValueError
        No trainable parameter, parameters of several types or devices, arguments out of range, batch statistics, and in
        `step`: data or a loss that are not finite, a residual that is not per sample, a step that cannot fit in memory.
        With several processes also: a model, options or kinds of data that differ; what one process raises, all do.
    ProcessError
        Another process has ended, or has not answered for a minute.
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
        bounds: Mapping[str, Any] | None = None,
        memory: int | Literal["auto"] = "auto",
        seed: int = 0,
        process_group: Any = None,
    ):
        check_model(model)
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
        self.processes = as_processes(process_group)
        self.policy = DampingPolicy()
        self.history = History()
        self.plan: StepPlan | None = None
        self._state = StepState(level=self.policy.start if damping == "auto" else float(damping))
        self._preconditioner: Preconditioner | None = None
        self._checked = False
        self._warned = False
        self._data = LatestData()
        self._forget()
        moving = MovingParameters.of(model, self.param_groups)
        check_precision(moving.device)
        self._bounds = None if bounds is None else Bounds(bounds, moving)
        if bounds is not None and momentum not in ("auto", 0):
            raise ValueError(f"momentum={momentum} may carry parameters over their bounds: leave one of the two out")

    def _forget(self) -> None:
        """Drop what is only remembered to save time."""
        self._compared = False
        self._idle = ""
        self._latest: System | None = None
        self._costs: dict[tuple[Any, ...], FactorCost | None] = {}
        self._traces = Traces()

    def step(self, *data: Any) -> StepInfo:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step on a batch.

        `step(x, y)` with a loss, `step(*data)` with `residual`, or `step(Residual(...), Residual(...))`. NumPy arrays
        are taken too, and floating-point data in another precision than the parameters' are converted.

        Returns
        -------
        StepInfo
            With `loss` after the step, on this batch.
        """
        began = clock.now()
        self.processes.meet()
        moving = self.processes.attempt(self._moving)
        # The derivatives are the step's own: what is around it makes no difference, and it leaves no graph.
        with full_precision(), torch.inference_mode(False), torch.no_grad():
            system = self._system(data, moving)
            info = self._step(system, moving) if moving.rate > 0 else self._rest(system)
        self._state.seconds += clock.now() - began
        info = replace(info, seconds=self._state.seconds)
        self.history.steps.append(info)
        return info

    def evaluate(self, *data: Any) -> float:
        """The loss on what `step` takes, without a step."""
        moving = self.processes.attempt(lambda: MovingParameters.of(self.model, self.param_groups))
        with full_precision(), torch.inference_mode(False):
            system = self._system(data, moving)
            return system.loss(system.outputs(moving.values()))

    def minimize(
        self,
        *data: Any,
        max_iter: int = 100,
        tol: float = 0.0,
        metric: Callable[[nn.Module], float] | None = None,
        callbacks: Sequence[Callback] = (),
        resume: State | None = None,
        validation: Any = None,
    ) -> History:
        """Step until a goal is reached, with progress and a clean end on Ctrl-C.

        Parameters
        ----------
        data
            What `step` takes, or one function of no argument that draws it anew before each step: a tuple, or one
            tensor or Residual by itself.
        max_iter
            Largest number of steps, rejected ones included.
        tol
            The run ends when the loss, on the data of its step, is no larger.
        metric
            Called with the model after each step; its value is recorded in `StepInfo.metric`.
        validation
            What `step` takes, at points that are not trained on, as a tuple or one Residual by itself, or a function
            that draws it: the loss there is recorded in place of a metric. A small loss at few points of an equation
            is not a solution yet.
        callbacks
            See `widefit.callbacks`: `Progress()` for a bar, `Log()` for the logger.
        resume
            A state from `widefit.files.read_checkpoint`: the run that wrote it goes on, to the same bits where the data
            are the same, until `max_iter` steps from its beginning.

        Returns
        -------
        History
            `self.history`; `stop_reason` is "tol", "max_iter", "stalled" (rounding has won), "interrupted" or
            "callback". `status` says whether the run ended at a stationary point.

        Raises
        ------
        ValueError
            As `step` does; max_iter below 1, tol below 0, a state of something else, both metric and validation.
        """
        if validation is not None:
            if metric is not None:
                raise ValueError("metric and validation are both recorded as StepInfo.metric: give one of them")
            metric = partial(_loss_elsewhere, self, validation)
        return minimize(
            self,
            self.model,
            data,
            max_iter=max_iter,
            tol=tol,
            metric=metric,
            callbacks=callbacks,
            resume=resume,
            agree=self.processes.any,
        )

    def covariance(self, *data: Any, absolute: bool = False) -> Float[Tensor, "P P"]:
        """Covariance matrix of the parameters, s² (JᵀJ)⁻¹ at their present values, for least squares.

        Parameters
        ----------
        data
            What `step` takes; nothing: the data of the latest step.
        absolute
            The residuals are in units of their standard deviations, s² = 1; otherwise s² is estimated from them, as the
            sum of squares over M − P, and blocks of residuals count by their weights.

        Returns
        -------
        Tensor
            In the order of the model's trainable parameters, each flattened; float64.

        Raises
        ------
        ValueError
            A loss other than squares, no data, parameters that the residuals do not determine (named), a matrix J
            beyond the memory budget.
        """
        moving = self.processes.attempt(lambda: MovingParameters.of(self.model, self.param_groups))
        with full_precision(), torch.inference_mode(False), torch.no_grad():
            given = self.processes.any(bool(data))
            system = self._system(data, moving) if given else self.processes.attempt(self._latest_system)
            return system_covariance(system, moving, self._budget(moving.device), absolute)

    def standard_errors(self, *data: Any, absolute: bool = False) -> dict[str, Tensor]:
        """Standard errors of the parameters by their names, in their shapes: roots of the diagonal of `covariance`."""
        moving = MovingParameters.of(self.model, self.param_groups)
        return moving.split(self.covariance(*data, absolute=absolute).diagonal().sqrt())

    @property
    def stationary(self) -> bool:
        """Whether the latest step found nothing left to gain beyond rounding."""
        return self._state.promise == 0.0

    @property
    def status(self) -> str:
        """One sentence on how far from a stationary point the latest step was, and what to try where it is stuck."""
        promise = self._state.promise
        if promise is None:
            return "no step has been taken"
        if self.stationary:
            single = any(parameter.dtype == torch.float32 for parameter in self.model.parameters())
            return (
                "stationary: no step lowers the loss by more than rounding; a loss that is still too high asks for "
                + ("float64, " if single else "")
                + "another start, a wider network or other weights of the blocks"
                + self._idle
            )
        if not self.history[-1].accepted:
            return (
                f"stuck: the linear model promised to lower the loss by {100 * promise:.2g} %, but no step did, "
                "however short: the outputs are rougher than their derivative says; try smoother activations, "
                "float64, or scaled inputs and outputs"
            )
        return (
            f"not stationary: the linear model of the latest step promised to lower the loss by {100 * promise:.2g} %; "
            "take more steps"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on."""
        state = super().state_dict()
        state["widefit"] = {
            **asdict(self._state),
            "preconditioner": None if self._preconditioner is None else vars(self._preconditioner),
            "history": self.history.to_dict(),
            # Another number of processes shares the samples out in another way.
            "data": self._data.digest if self.processes.size == 1 else None,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume to the same bits from what `state_dict` gave."""
        if "widefit" not in state_dict:
            raise ValueError("this is not the state of a widefit.GaussNewton: it has no entry 'widefit'")
        own = state_dict["widefit"]
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "widefit"})
        # A state of an earlier version lacks what only later ones know.
        known = {field.name for field in fields(StepState)} & own.keys()
        self._state = StepState(**{name: own[name] for name in known})
        self.history = History.from_dict(own["history"])
        kept = own["preconditioner"]
        if kept is not None:
            place = next(self.model.parameters()).device
            kept = kept | {"factor": kept["factor"].to(place), "products": tuple(kept["products"])}
        self._preconditioner = None if kept is None else Preconditioner(**kept)
        self._data = LatestData(own["data"] if self.processes.size == 1 else None)
        self._checked = False
        # Whatever there is to say of the points was said at the second step.
        self._warned = self._warned or self._state.step > 1

    def __getstate__(self) -> dict[str, Any]:
        # torch's optimizers keep their groups and states only; a copy of this one must step as the original does.
        hooks = {name for name in vars(self) if name.startswith("_optimizer_")} | {"step"}
        passing = hooks | {"_compared", "_idle", "_latest", "_costs", "_traces"}
        kept = {name: value for name, value in vars(self).items() if name not in passing}
        return kept | {"_data": LatestData(self._data.digest)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _moving(self) -> MovingParameters:
        check_module(self.model)
        return MovingParameters.of(self.model, self.param_groups)

    def _system(self, data: tuple[Any, ...], moving: MovingParameters) -> System:
        def blocks(batch: tuple[Tensor | Residual, ...]) -> list[Block]:
            return describe_blocks(self.model, self.loss, self.residual, batch, self._traces)

        batch = self.processes.attempt(lambda: as_batch(data, moving.dtype, moving.device))
        return share_out(batch, blocks, self.processes)

    def _latest_system(self) -> System:
        if self._latest is None:
            raise ValueError("covariance needs data: give it what step takes, or take a step first")
        return self._latest

    def _step(self, system: System, moving: MovingParameters) -> StepInfo:
        if not self._checked:
            check_alike(moving.tensors, self._settings(moving), self.processes)
            self.processes.attempt(lambda: system.check_samples(moving.values()))
            self._checked = True
        changes = self._changes(system)
        self._latest = system
        with few_threads(system.samples * moving.count):
            point, curvature = self._linearized(system, moving, changes)
            self._state.surprise = self.policy.surprise(self._state.reached, point.expansion.loss)
            self._warn_of_few_points(point, changes)
            if not self.history.steps:
                self.history.steps.append(StepInfo(step=self._state.step, loss=point.expansion.loss))
            result = self._search(point, curvature, changes)
        self._keep(point, curvature, result)
        return StepInfo(
            self._state.step,
            result.loss,
            damping=result.damping,
            gain_ratio=result.gain_ratio,
            accepted=result.change is not None,
            solver=result.step.solver,
            solver_iterations=result.iterations,
            residual_norm=result.residual_norm,
        )

    def _warn_of_few_points(self, point: StartingPoint, changes: bool) -> None:
        """Say once that equations at few, fixed points may become small where they are not solved."""
        if self._warned or changes or not self._compared:
            return
        self._warned = True
        residuals, parameters = point.system.total_rows(point.expansion), point.moving.count
        if point.system.equations and residuals < _ENOUGH * parameters:
            warnings.warn(
                f"{residuals} residuals at the same points in every step for {parameters} parameters: they can become "
                f"small while the equation is not solved between the points; take {_ENOUGH * parameters} or more "
                "(pinn.sobol, pinn.grid), draw new points in every step, or watch minimize(validation=…)",
                UserWarning,
                stacklevel=5,
            )

    def _settings(self, moving: MovingParameters) -> list[Any]:
        """Everything beside the model and the data that a step depends on."""
        # A loss may hold a function, whose address differs from process to process.
        names = type(self.loss).__name__, str(self.solver), moving.rates
        options = self.damping, self.momentum, self.max_norm, self.seed, self._bounds is None
        return [*names, *options, asdict(replace(self._state, seconds=0.0))]

    def _rest(self, system: System) -> StepInfo:
        """The step of a schedule that has come to a rate of 0."""
        self._changes(system)
        self._state.step += 1
        return StepInfo(self._state.step, system.loss(system.outputs({})), accepted=False)

    def _linearized(self, system: System, moving: MovingParameters, changes: bool) -> tuple[StartingPoint, Curvature]:
        """The present point and its curvature; a point where the derivative is not finite is left for a nearer one."""
        for part in range(_HALVINGS):
            point = StartingPoint.of(system, moving)
            try:
                return point, self._curvature(point, changes)
            except NonFiniteDerivativeError as error:
                change = moving.kept(self.state, "change")
                if change is None or part == _HALVINGS - 1:
                    raise ValueError(f"{error} at the start: begin elsewhere, or scale inputs and outputs") from error
                # Half of the step that led here is taken back, or in the end all of it.
                back = 0.5 if part < _HALVINGS - 2 else 1.0
                moving.move(-back * self._state.pace * change)
                moving.keep(self.state, "change", (1 - back) * change)
                self._state.level = self.policy.after_failure(self._state.level, 3)
        raise AssertionError("unreachable")

    def _curvature(self, point: StartingPoint, changes: bool) -> Curvature:
        request = self._request(point, changes)
        memory = self._budget(point.moving.device)
        state = self._state
        plan = plan_step(request.shape(point), request.dtype, memory, self.solver, state.products, state.squared)
        with torch.enable_grad():
            jacobian, self.plan = self.processes.attempt(
                lambda: make_jacobian(point, request, plan, self._traces, memory)
            )
        self.plan = self.plan.then(placed(point.moving.device, request.dtype))
        build = partial(self._curvature_of, point, request, plan)
        curvature = build(jacobian, self._scaling(point))
        if self._bounds is None:
            return curvature
        fixed = replace(self._scaling(point), given=curvature.sizes)
        return BoundedCurvature(
            curvature,
            lambda held: build(masked(jacobian, held), fixed),
            point.residual,
            *self._bounds.limits(point.moving),
        )

    def _curvature_of(
        self, point: StartingPoint, request: JacobianRequest, plan: StepPlan, jacobian: Jacobian, scaling: Scaling
    ) -> Curvature:
        processes = self.processes
        if plan.solver == "svd":
            if isinstance(jacobian, DenseJacobian) and processes.size == 1:
                return Spectral(jacobian, point.residual, scaling)
            return TallSpectral(jacobian, point.residual, scaling, processes)
        if plan.solver == "qr":
            return Triangular(jacobian, point.residual, scaling, processes)
        if isinstance(jacobian, StackedJacobian) and plan.solver == "primal-cg":
            return SketchedPrimal(jacobian, scaling, self._state.tolerance, self.seed, processes)
        solver = self.solver if isinstance(self.solver, Solver) else None
        solver = solver or named_solver(plan.solver, self.seed, self._state.tolerance, plan.narrow)
        if plan.solver == "primal":
            return Primal(jacobian, solver, scaling, processes)
        form = plan.solver == "cholesky"
        shards = None
        if processes.size > 1:
            shards = ShardedJacobian(jacobian, processes, point.system.present(point.expansion))
        return SampleSpace(jacobian, solver, form, plan.dtype, request.metric, self._preconditioner, shards)

    def _budget(self, device: torch.device) -> int:
        own = free_memory(device) // 2 if self.memory == "auto" else int(self.memory)
        # Processes of one machine share what is free, and all of them follow one plan.
        return min(self.processes.gathered(own // self.processes.neighbours if self.memory == "auto" else own))

    def _scaling(self, point: StartingPoint) -> Scaling:
        return Scaling(
            largest=point.moving.kept(self.state, "column_norm"),
            single=point.moving.single(),
            several=point.moving.several(),
            scalars=point.moving.flat().abs(),
            residual=point.size,
            metric=point.moving.metric(),
            plain=self.damping != "auto",
        )

    def _request(self, point: StartingPoint, changes: bool) -> JacobianRequest:
        metric = point.moving.metric()
        # Where every step sees other data, what a batch leaves out is far more than what float32 does, until that keeps
        # λ from falling.
        narrow = changes and metric is None and not self._state.exact
        narrow = narrow and not self.processes.any(
            self.processes.attempt(lambda: not point.system.traceable(point.values, self._traces))
        )
        dtype = torch.float32 if narrow else point.moving.dtype
        cost = self._factor_cost(point) if metric is None else None
        return JacobianRequest(dtype, cost, metric)

    def _factor_cost(self, point: StartingPoint) -> FactorCost | None:
        """Asked once for every shape of a sample and choice of parameters."""
        shapes = tuple(tensor.shape[1:] for block in point.system.blocks for tensor in block.outputs.data)
        key = (point.system.module is None, shapes, tuple(point.values))

        def known() -> FactorCost | None:
            if key not in self._costs:
                with torch.enable_grad():
                    self._costs[key] = point.system.factor_cost(point.values)
            return self._costs[key]

        cost = self.processes.attempt(known)
        return None if self.processes.any(cost is None) else cost

    def _search(self, point: StartingPoint, curvature: Curvature, changes: bool) -> SearchResult:
        state = self._state
        scarce = _FEW * point.system.total_rows(point.expansion) < point.moving.count
        few = changes and scarce
        # Noise of data is as strange in every batch, and the small parts of steps that few data allow surprise nobody.
        alike = point.system.equations and not scarce and self.policy.alike(state.surprise)
        strange = changes and not alike
        state.pace, state.trend = (
            self.policy.pace(state.pace, state.trend, point.expansion.loss) if few else (1.0, math.inf)
        )
        search = Search(
            evaluate=point.outputs_after,
            loss=point.system.loss_on_device,
            expansion=point.expansion,
            residual=point.residual,
            size=point.size,
            curvature=curvature,
            policy=self.policy,
            rate=point.moving.rate * state.pace,
            momentum=self._previous_step(point, curvature, changes),
            max_norm=self.max_norm,
            limits=None if self._bounds is None else self._bounds.limits(point.moving),
            strange=strange,
            # Few data in the first step may be the first of many batches.
            cautious=strange or (scarce and state.step == 0),
            fresh=few,
            corrections=self._affordable(point),
            nearby=lambda: torch.finfo(point.moving.dtype).eps ** 0.5 * point.moving.norm().double(),
            processes=self.processes,
        )
        return search.run(state.level, fixed=self.damping != "auto")

    def _affordable(self, point: StartingPoint) -> int:
        """Most corrections of a point; one where a solve is an iteration, or makes J again."""
        if self.plan is None or self.plan.solver not in _DIRECT or self.plan.jacobian == "function":
            return 1
        return self.policy.affordable(min(point.system.total_rows(point.expansion), point.moving.count))

    def _previous_step(self, point: StartingPoint, curvature: Curvature, changes: bool) -> Momentum | None:
        automatic = _MOMENTUM if changes and self._bounds is None else 0.0
        rate = automatic if self.momentum == "auto" else float(self.momentum)
        change = point.moving.kept(self.state, "change")
        if rate == 0 or change is None:
            return None
        return Momentum(rate * change, curvature.image(rate * change))

    def _keep(self, point: StartingPoint, curvature: Curvature, result: SearchResult) -> None:
        """Move the parameters, and note what the next step begins from."""
        state = self._state
        if result.change is not None:
            point.moving.move(result.change)
            if self._bounds is not None:
                self._bounds.settle(point.moving)
            point.moving.keep(self.state, "change", result.change / state.pace)
        if curvature.column_norms is not None:
            point.moving.keep(self.state, "column_norm", curvature.column_norms.to(point.moving.dtype))
        self._preconditioner = curvature.preconditioner
        self._idle = self._told_idle(point, curvature) if result.stationary else ""
        state.promise = 0.0 if result.stationary else result.promised / max(point.expansion.loss, 1e-300)
        state.level = result.level
        if curvature.sums_squares:
            state.squared = not self._rounded_off(curvature, result)
        elif result.level > _AGAIN * NORMAL_FLOOR:
            state.squared = True
        state.reached = result.loss
        floor = rounding_floor(torch.float32, point.system.total_rows(point.expansion))
        state.exact = self.policy.exact(state.exact, state.surprise, state.level, floor)
        fell = result.loss / max(point.expansion.loss, 1e-300)
        state.tolerance = self.policy.tolerance(state.tolerance, result.change is not None, fell)
        if result.iterations:
            state.products = 0.5 * (state.products + result.iterations)
        state.step += 1

    def _rounded_off(self, curvature: Curvature, result: SearchResult) -> bool:
        """Whether the rounding of JᵀJ holds steps back: λ has come down to it, and takes part of what they promise."""
        if result.level > curvature.floor or not result.promised > 0:
            return False
        taken = result.damping * float(curvature.norm(result.step.value)) ** 2
        return taken > _TAKEN * result.promised

    def _told_idle(self, point: StartingPoint, curvature: Curvature) -> str:
        """Say how many parameters move no output: those where Jᵀ w vanishes for any w."""
        drawn = torch.randn(len(point.residual), generator=torch.Generator().manual_seed(self.seed))
        idle = int((curvature.gradient(drawn.to(point.residual)) == 0).sum())
        reason = "their units never fire, are saturated or are not used"
        return f"; {idle} of {point.moving.count} parameters move no output: {reason}" if idle else ""

    def _changes(self, system: System) -> bool:
        """Whether steps see different data, as mini-batches and resampled points do."""
        differ = self._data.replace(system.data)
        self._compared = not self.processes.any(differ is None)
        told = self.processes.any(bool(differ))
        if self._compared:
            self._state.changing = told
        return self._state.changing


def _loss_elsewhere(optimizer: GaussNewton, validation: Any, _: nn.Module) -> float:
    """The loss on data that are not trained on."""
    return optimizer.evaluate(*as_arguments(validation() if callable(validation) else validation, "validation"))
