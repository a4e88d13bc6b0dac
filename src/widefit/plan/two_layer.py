"""Choices of "auto" for a two-layer network: trackers tell their cost, the plan compares and refuses."""

import math
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Float

from widefit.kernels.memory import available_memory
from widefit.nn import TwoLayer
from widefit.plan.base import Choice, Plan
from widefit.plan.names import TRACKERS, TWO_LAYER_SOLVERS, resolve
from widefit.rules import SGD, GaussNewton, Rule
from widefit.solvers import Solver
from widefit.trackers import Tracker
from widefit.trackers.cost import Cost, Steps, Workload, expected_firing

# Samples that stand for all in the estimates of stochastic rules.
ESTIMATE_SAMPLES = 2048
# Neurons that tell how many fire at all: at least so many, and more of a wide network, but no more pairs than this.
_SEEN = 1024
_SEEN_PART = 1 << 10
_SEEN_PAIRS = 1 << 23
# Iterations of conjugate gradients that a step is reckoned to take, in products with H.
_ITERATIONS = 100


def workload_of(network: TwoLayer, inputs: Float[np.ndarray, "n d"], alpha: float, rule: Rule) -> Workload:
    """Return the sizes of a training.

    Parameters
    ----------
    network
        What is trained.
    inputs
        X, in the dtype of the network.
    alpha
        α.
    rule
        What chooses the steps.
    """
    scale = float(np.abs(network.coefficients(0, 2)).max()) * math.sqrt(network.width / network.out_features)
    return Workload(
        samples=inputs.shape[0],
        features=inputs.shape[1],
        width=network.width,
        outputs=network.out_features,
        firing=expected_firing(network.threshold, inputs),
        itemsize=inputs.itemsize,
        steps=_steps_of(rule, alpha),
        anchored=alpha > 0,
        stored=network.store == "array",
        alive=_alive(network, inputs),
        readout_scale=max(1e-6, scale),
    )


def plan_two_layer(
    work: Workload,
    tracker: str | Tracker,
    solver: str | Solver,
    threads: int,
    memory: int | None = None,
) -> tuple[Plan, Tracker, Solver]:
    """Choose tracker and solver, and refuse what cannot fit.

    Parameters
    ----------
    work
        Sizes of the problem.
    tracker, solver
        "auto", a name, or the object itself.
    threads
        Cores to be used: they take memory, and decide nothing else.
    memory
        Bytes the training may take; None: what is free.

    Raises
    ------
    ValueError
        An unknown name, or a tracker that cannot follow perturbed samples or weights that are not stored.
    MemoryError
        The prediction exceeds the memory; the message gives the number and the nearest width that fits.
    """
    budget = _Budget(threads, available_memory() if memory is None else memory)
    choices = []
    wanted = ["cholesky", "cg"] if solver == "auto" else [cast(Solver, resolve(solver, TWO_LAYER_SOLVERS)).name]
    if tracker == "auto":
        followed, reason = _choose_tracker(work, wanted, budget)
        choices.append(Choice("tracker", followed.name, reason))
    else:
        followed = cast(Tracker, resolve(tracker, TRACKERS))
        _refuse_what_it_cannot_follow(followed, work)
    if solver == "auto":
        direct = budget.holds(work, followed, "cholesky")
        solved = cast(Solver, resolve("cholesky" if direct or work.steps.sees_few else "cg", TWO_LAYER_SOLVERS))
        if not work.steps.sees_few:
            need = f"{8 * work.samples**2 / 1e9:.2g} GB for H in float64"
            fits = f"{need} and as much for its factor fit in memory"
            choices.append(Choice("solver", solved.name, fits if direct else f"{need}, its factor would not fit"))
    else:
        solved = cast(Solver, resolve(solver, TWO_LAYER_SOLVERS))
    needed = budget.bytes_needed(work, followed, solved.name)
    if needed > budget.memory:
        raise MemoryError(_refusal(work, followed, solved.name, budget))
    return Plan(tuple(choices), needed, _flops_per_step(work, solved.name)), followed, solved


@dataclass(frozen=True)
class _Budget:
    """The machine: what decides whether a plan fits, and never which of those that fit is taken."""

    threads: int
    memory: int

    def bytes_needed(self, work: Workload, tracker: Tracker, solver: str) -> int:
        """Peak memory of a run: what the tracker keeps, a block of a pass for each thread, and the matrices."""
        cost = tracker.cost(work)
        block = max(64, min(1024, (1 << 20) // work.samples))
        passing = block * (work.samples * work.itemsize + work.samples // 8 + work.features * work.itemsize)
        return cost.bytes + self.threads * (cost.bytes_a_thread + passing) + _square_bytes(work, solver)

    def holds(self, work: Workload, tracker: Tracker, solver: str) -> bool:
        """Whether that fits."""
        return self.bytes_needed(work, tracker, solver) <= self.memory


def _choose_tracker(work: Workload, solvers: list[str], budget: _Budget) -> tuple[Tracker, str]:
    """The tracker that is predicted to be the fastest of those that fit, and why."""
    known: list[Tracker] = [resolve(name, TRACKERS) for name in TRACKERS.homes]
    able = [tracker for tracker in known if tracker.can_follow(work)]
    ranked = sorted(((tracker.cost(work), tracker) for tracker in able), key=lambda pair: pair[0].seconds)
    if len(ranked) == 1 and not work.stored:
        return ranked[0][1], "the weights are not stored"
    ranked = [pair for pair in ranked if pair[0].seconds < math.inf] or ranked[:1]
    for solver in solvers:
        for place, (cost, tracker) in enumerate(ranked):
            if budget.holds(work, tracker, solver):
                return tracker, _reason(work, cost, ranked[:place], ranked[place + 1 :])
    # Nothing fits: the least is what the refusal is about.
    least = min(ranked, key=lambda pair: pair[0].bytes)
    return least[1], "takes the least memory"


def _reason(work: Workload, cost: Cost, faster: list[tuple[Cost, Tracker]], slower: list[tuple[Cost, Tracker]]) -> str:
    said = f"{work.steps.value} takes about {cost.seconds:.2g} s"
    for other, tracker in slower[:1]:
        said += f", against {other.seconds:.2g} s with {tracker.name}"
    for other, tracker in faster:
        said += f"; {tracker.name} would take {other.seconds:.2g} s and does not fit in memory"
    return said if faster or slower else f"{said}; no other tracker is known to be faster"


def _refuse_what_it_cannot_follow(tracker: Tracker, work: Workload) -> None:
    if work.steps is Steps.PERTURBED_MINIBATCHES and not tracker.accepts_new_points:
        raise ValueError(
            f"tracker {tracker.name!r} follows the samples alone, and the adversary of the rule moves them: "
            'use "dense" or HalfSpaceTree(over="weights")'
        )
    if not tracker.can_follow(work):
        raise ValueError(
            f'tracker "{tracker.name}" moves weights in memory, and this network holds none (store="regenerate"); use '
            'tracker="certificate", or train network.materialize()'
        )


def _steps_of(rule: Rule, alpha: float) -> Steps:
    if isinstance(rule, GaussNewton):
        return Steps.LONG
    if not isinstance(rule, SGD):
        return Steps.SHORT
    if rule.perturbs:
        return Steps.PERTURBED_MINIBATCHES
    return Steps.GENERAL_MINIBATCHES if alpha > 0 or rule.train_readout or rule.averages else Steps.MINIBATCHES


def _alive(network: TwoLayer, inputs: Float[np.ndarray, "n d"]) -> float:
    """Part of the neurons that fire on some sample, from the first of them; more rather than less."""
    seen = min(network.width, max(_SEEN, min(network.width // _SEEN_PART, _SEEN_PAIRS // len(inputs))))
    fire = np.any(network.rows(0, seen) @ inputs.T > network.threshold, axis=1)
    alive = float(np.count_nonzero(fire))
    return min(1.0, (alive + 2 * alive**0.5 + 1) / seen)


def _square_bytes(work: Workload, solver: str) -> int:
    """K, N and H are held at once, and a factorization works on a copy of H."""
    if work.steps.sees_few:
        return 20 * min(work.samples, ESTIMATE_SAMPLES) ** 2
    return work.samples**2 * (8 + 4 + 8 + (16 if solver == "cholesky" else 0))


def _flops_per_step(work: Workload, solver: str) -> float:
    """Products W Xᵀ, additions into N, and the solve; of an epoch and the pass that ends it for minibatches."""
    if work.steps.sees_few:
        return (4.0 + 4.0 * work.firing) * work.pairs * work.features
    fired = work.firing * work.samples
    solve = work.samples**3 / 3 if solver == "cholesky" else 2.0 * _ITERATIONS * work.samples**2
    return 2.0 * work.pairs * work.features + work.width * fired**2 + work.outputs * solve


def _refusal(work: Workload, tracker: Tracker, solver: str, budget: _Budget) -> str:
    """The message on work that does not fit, with the nearest setting that does."""
    needed = budget.bytes_needed(work, tracker, solver)
    said = f"training needs about {needed / 1e9:.1f} GB and {budget.memory / 1e9:.1f} GB are free"
    width = work.width
    while width > 64:
        width //= 2
        if budget.holds(replace(work, width=width), tracker, solver):
            return f"{said}; a width of {width:,} fits"
    if work.steps.sees_few:
        return f"{said}; widefit.train_stream and partial_fit learn any number of samples in memory that does not grow"
    samples = int(math.sqrt(budget.memory / 40))
    return f"{said}; its {work.samples:,} × {work.samples:,} Gram matrices fit for about {samples:,} samples"
