"""Choices of "auto" for a two-layer network: trackers tell their cost, the plan compares and refuses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float

from widefit.kernels.devices import free_memory
from widefit.nn import TwoLayer
from widefit.plan.base import Choice, Plan
from widefit.plan.names import TRACKERS, TWO_LAYER_SOLVERS, resolve
from widefit.rules import SGD, GaussNewton, Rule
from widefit.solvers import CG, Cholesky, NystromCG, Solver
from widefit.trackers import Tracker
from widefit.trackers.cost import FLOPS, REFERENCE_THREADS, Cost, Steps, Workload, expected_firing

# Samples that stand for all in the estimates of stochastic rules.
ESTIMATE_SAMPLES = 2048
# Neurons that tell how many fire at all: at least so many, and more of a wide network, but no more pairs than this.
_SEEN = 1024
_SEEN_PART = 1 << 10
_SEEN_PAIRS = 1 << 23
# Pre-activations of them that are held at a time.
_ALIVE_NUMBERS = 1 << 20
# Iterations of conjugate gradients that a step is reckoned to take, in products with H.
_ITERATIONS = 100
# Solvers that need H for its products and a few of its columns alone.
_BY_PRODUCTS = ("cg", "nystrom-cg")
# The forms of H, by the names that a plan gives them.
_ARRAY, _LISTS = "n × n array", "fire lists"
# Samples up to which n × n arrays are taken wherever they fit.
_FEW = 8192
# Bytes an entry of N and H.
_GRAM_ENTRY = 12
# More where several processes share the neurons out: those of all.
_SUMMED_ENTRY = 12
# Where H is applied: products with it that a step takes behind a preconditioner, those after which a solve gives up,
# and the part of the right-hand side that it may leave: less changes no prediction (measured on tables and images).
_PRODUCTS = 20
_MOST_PRODUCTS = 300
_INEXACT = 1e-2
_LEAST_TOLERANCE = 1e-4
# Columns that a preconditioner may have, and the numbers that they should not exceed; products that a solve takes
# behind 512 columns of an output, which fall as the root of these (measured on images).
_RANKS, _RANK_NUMBERS = (128, 256, 512, 1024, 1536), 1 << 28
_PRODUCTS_A_SOLVE = 28.0
# Samples from which products add up tiles of samples in float64 whatever the dtype of the network: rounding of float32
# grows with them, and with a million it hides a small ridge from a solve.
_MANY_SUMMED = 1 << 17
# Bytes of the sums of a thousand neurons over a block of columns.
_TASK_BYTES = 1 << 20
# Measured on one core (AMD Zen 4): operations of a factorization in float64 and from fire lists a second, seconds a
# pair of a product beside them, an entry of an array, and an addition to N. Behind masks (Intel, 2.6 GHz) operations of
# all pairs, those that do not fire included.
_DOUBLE_FLOPS, _LIST_FLOPS, _MASK_FLOPS = 4e10, 1.3e10, 1e11
_PAIR, _ENTRY, _ADDITION = 8e-9, 1e-9, 2.5e-10
# A column of H, a pair that fires, and the square of the columns of a preconditioner, a sample.
_COLUMN_PAIR, _COLUMNS_SQUARED = 4.5e-10, 7e-11


def workload_of(
    network: TwoLayer, inputs: Float[np.ndarray, "n d"], alpha: float, rule: Rule, few: bool = False
) -> Workload:
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
    few
        True where one or two steps of Gauss-Newton are expected.
    """
    scale = float(np.abs(network.coefficients(0, 2)).max()) * math.sqrt(network.width / network.out_features)
    return Workload(
        samples=inputs.shape[0],
        features=inputs.shape[1],
        width=network.width,
        outputs=network.out_features,
        firing=expected_firing(network.threshold, inputs),
        itemsize=inputs.itemsize,
        steps=_steps_of(rule, alpha, few),
        anchored=alpha > 0,
        stored=network.store == "array",
        alive=_alive(network, inputs),
        readout_scale=max(1e-6, scale),
        device=network.weight.device.type if network.store == "array" else "cpu",
    )


@dataclass(frozen=True)
class TwoLayerPlan(Plan):
    """The plan of a training.

    Attributes
    ----------
    arrays
        True where K, N and H are held as n × n arrays, False where H is applied from fire lists.
    grams
        Outputs whose N and H are held at once, where those are arrays.
    """

    arrays: bool = True
    grams: int = 1


def plan_two_layer(
    work: Workload,
    tracker: str | Tracker,
    solver: str | Solver,
    threads: int,
    memory: int | None = None,
    tol: float = 1e-6,
) -> tuple[TwoLayerPlan, Tracker, Solver]:
    """Choose the form of H, tracker and solver, and refuse what cannot fit.

    Parameters
    ----------
    work
        Sizes of the problem.
    tol
        Training loss that is asked for, in units of that before the first step: a solver that iterates need not be
        more exact.
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
    budget = _Budget(threads, free_memory(torch.device(work.device)) if memory is None else memory)
    wanted = "auto" if solver == "auto" else cast(Solver, resolve(solver, TWO_LAYER_SOLVERS)).name
    if work.steps.sees_few or wanted not in ("auto", *_BY_PRODUCTS):
        return _plan_with_arrays(work, tracker, solver, budget)
    refused: MemoryError | None = None
    for form, reason in _forms(work, wanted):
        try:
            if form == _ARRAY:
                plan, followed, solved = _plan_with_arrays(work, tracker, solver, budget)
            else:
                plan, followed, solved = _plan_with_lists(replace(work, arrays=False), tracker, solver, budget, tol)
        except MemoryError as error:
            # What is told of many samples is what the thriftier form would take.
            thrifty = form == _LISTS and work.samples > _FEW
            refused = error if refused is None or thrifty else refused
            continue
        if refused is not None:
            reason = f"{_LISTS if form == _ARRAY else _ARRAY} does not fit in memory"
        # Of few samples in an array there is nothing to tell.
        return (plan.then(Choice("Gram matrix", form, reason)) if reason else plan), followed, solved
    assert refused is not None
    raise refused


def _forms(work: Workload, solver: str) -> list[tuple[str, str]]:
    """The two forms of H, the better one first, and the reason for it."""
    square = f"{_ARRAY} of {8 * work.samples**2 / 1e9:.2g} GB"
    if work.samples <= _FEW:
        return [(_ARRAY, ""), (_LISTS, "")]
    # Those of all neurons: a form of its own would have several processes end elsewhere than one.
    whole = replace(work, width=work.width * work.processes)
    array, lists = seconds_with_arrays(whole, solver), seconds_with_lists(whole)
    if array <= lists:
        return [(_ARRAY, f"a step takes about {array:.2g} s, against {lists:.2g} s with {_LISTS}"), (_LISTS, "")]
    return [(_LISTS, f"a step takes about {lists:.2g} s, against {array:.2g} s with an {square}"), (_ARRAY, "")]


def _plan_with_lists(
    work: Workload, tracker: str | Tracker, solver: str | Solver, budget: "_Budget", tol: float
) -> tuple[TwoLayerPlan, Tracker, Solver]:
    """Choose tracker and solver where H is applied."""
    rank = preconditioner_rank(work)
    tolerance = _INEXACT if work.anchored else min(_INEXACT, max(math.sqrt(tol), _LEAST_TOLERANCE))
    behind = NystromCG(tolerance=tolerance, rank=rank, max_iterations=_MOST_PRODUCTS)
    plain = CG(tolerance=tolerance, max_iterations=_MOST_PRODUCTS)
    wanted = [behind, plain] if solver == "auto" else [cast(Solver, resolve(solver, TWO_LAYER_SOLVERS))]
    followed, choices = _tracker_for(work, tracker, wanted, budget)
    solved = wanted[0]
    if solver == "auto":
        told = f"systems solved to {tolerance:.2g} of their right-hand sides"
        if budget.holds(work, followed, behind):
            choices.append(Choice("solver", solved.name, f"{told}, behind {rank} columns of H"))
        else:
            solved = plain
            choices.append(Choice("solver", solved.name, f"{told}; {rank} columns of H do not fit in memory"))
    needed = budget.bytes_needed(work, followed, solved)
    if needed > budget.memory:
        raise MemoryError(_refusal(work, followed, solved, budget))
    return TwoLayerPlan(tuple(choices), needed, _flops_per_step(work, solved.name), arrays=False), followed, solved


def _tracker_for(
    work: Workload, tracker: str | Tracker, solvers: Sequence[Solver], budget: "_Budget"
) -> tuple[Tracker, list[Choice]]:
    """The tracker that was asked for, or the one that is chosen and why."""
    if tracker == "auto":
        followed, reason = _choose_tracker(work, solvers, budget)
        return followed, [Choice("tracker", followed.name, reason)]
    followed = cast(Tracker, resolve(tracker, TRACKERS))
    _refuse_what_it_cannot_follow(followed, work)
    return followed, []


def _plan_with_arrays(
    work: Workload, tracker: str | Tracker, solver: str | Solver, budget: "_Budget"
) -> tuple[TwoLayerPlan, Tracker, Solver]:
    """Choose tracker and solver where K, N and H are arrays."""
    wanted = [Cholesky(), CG()] if solver == "auto" else [cast(Solver, resolve(solver, TWO_LAYER_SOLVERS))]
    followed, choices = _tracker_for(work, tracker, wanted, budget)
    solved = wanted[0]
    if solver == "auto":
        direct = budget.holds(work, followed, solved)
        solved = wanted[0 if direct or work.steps.sees_few else 1]
        if not work.steps.sees_few:
            need = f"{8 * work.samples**2 / 1e9:.2g} GB for H in float64"
            fits = f"{need} and as much for its factor fit in memory"
            choices.append(Choice("solver", solved.name, fits if direct else f"{need}, its factor would not fit"))
    needed = budget.bytes_needed(work, followed, solved)
    if needed > budget.memory:
        raise MemoryError(_refusal(work, followed, solved, budget))
    # Those of further outputs are followed from step to step as far as half of what is left holds them.
    each = _gram_bytes(work)
    more = 0 if work.steps.sees_few else min(work.outputs - 1, (budget.memory - needed) // (2 * each))
    plan = TwoLayerPlan(tuple(choices), needed + more * each, _flops_per_step(work, solved.name), grams=1 + more)
    return plan, followed, solved


@dataclass(frozen=True)
class _Budget:
    """The machine: what decides whether a plan fits, and never which of those that fit is taken."""

    threads: int
    memory: int

    def bytes_needed(self, work: Workload, tracker: Tracker, solver: Solver) -> int:
        """Peak memory of a run: what the tracker keeps, a block of a pass for each thread, and the matrices."""
        cost = tracker.cost(work)
        block = max(64, min(1024, (1 << 20) // work.samples))
        passing = block * (work.samples * work.itemsize + work.samples // 8 + work.features * work.itemsize)
        held = cost.bytes + self.threads * (cost.bytes_a_thread + passing)
        return held + (_square_bytes(work, solver) if work.arrays else _list_bytes(work, solver, self.threads))

    def holds(self, work: Workload, tracker: Tracker, solver: Solver) -> bool:
        """Whether that fits."""
        return self.bytes_needed(work, tracker, solver) <= self.memory


def _choose_tracker(work: Workload, solvers: Sequence[Solver], budget: _Budget) -> tuple[Tracker, str]:
    """The tracker that is predicted to be the fastest of those that fit, and why."""
    known: list[Tracker] = [resolve(name, TRACKERS) for name in TRACKERS.homes]
    able = [tracker for tracker in known if tracker.can_follow(work)]
    ranked = sorted(((tracker.cost(work), tracker) for tracker in able), key=lambda pair: pair[0].seconds)
    if not able:
        raise ValueError(
            f'the adversary of the rule moves samples, and no tracker follows them on {work.device}: use device="cpu"'
        )
    if len(ranked) == 1:
        reason = f"the weights are on {work.device}" if work.stored else "the weights are not stored"
        return ranked[0][1], reason
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
    if work.processes > 1 and not tracker.shares_neurons:
        raise ValueError(
            f'tracker "{tracker.name}" follows the neurons of one process: several take tracker="auto", "certificate" '
            'or "dense"'
        )
    if work.stored and not tracker.can_follow(work):
        raise ValueError(
            f'tracker "{tracker.name}" works on the CPU, and the weights are on {work.device}: use tracker="torch", or '
            'device="cpu"'
        )
    if not tracker.can_follow(work):
        raise ValueError(
            f'tracker "{tracker.name}" moves weights in memory, and this network holds none (store="regenerate"); use '
            'tracker="certificate", or train network.materialize()'
        )


def _steps_of(rule: Rule, alpha: float, few: bool) -> Steps:
    if isinstance(rule, GaussNewton):
        return Steps.FEW if few else Steps.LONG
    if not isinstance(rule, SGD):
        return Steps.SHORT
    if rule.perturbs:
        return Steps.PERTURBED_MINIBATCHES
    return Steps.GENERAL_MINIBATCHES if alpha > 0 or rule.train_readout or rule.averages else Steps.MINIBATCHES


def _alive(network: TwoLayer, inputs: Float[np.ndarray, "n d"]) -> float:
    """Part of the neurons that fire on some sample, from the first of them; more rather than less."""
    seen = min(network.width, max(_SEEN, min(network.width // _SEEN_PART, _SEEN_PAIRS // len(inputs))))
    rows = network.rows(0, seen)
    fire = np.zeros(seen, bool)
    step = max(1, _ALIVE_NUMBERS // seen)
    for first in range(0, len(inputs), step):
        fire |= np.any(rows @ inputs[first : first + step].T > network.threshold, axis=1)
    alive = float(np.count_nonzero(fire))
    return min(1.0, (alive + 2 * alive**0.5 + 1) / seen)


def _square_bytes(work: Workload, solver: Solver) -> int:
    """K, N and H are held at once, and a factorization works on a copy of H."""
    if work.steps.sees_few:
        return 20 * min(work.samples, ESTIMATE_SAMPLES) ** 2
    beside = solver.bytes_needed(work.samples) if isinstance(solver, NystromCG) else 0
    return work.samples**2 * (8 + (16 if solver.name == Cholesky.name else 0)) + _gram_bytes(work) + beside


def _gram_bytes(work: Workload) -> int:
    """N and H of one output."""
    return work.samples**2 * (_GRAM_ENTRY + (_SUMMED_ENTRY if work.processes > 1 else 0))


def product_dtype(samples: int, dtype: np.dtype) -> np.dtype:
    """Dtype in which a product with H adds up the sums over tiles of samples, for a network of some dtype."""
    return np.dtype(np.float64) if samples >= _MANY_SUMMED else dtype


def preconditioner_rank(work: Workload) -> int:
    """Columns of H that a preconditioner is made from, where H is applied: those with which a solve is the quickest.

    More of them take fewer products, and are made once for every output of a step. Several processes take those of
    one, and so its solution to rounding.
    """
    neurons = work.width * work.processes / work.outputs
    product = seconds_of_a_product(work.samples, work.features, neurons, work.firing)
    # From a bitset 64 neurons are counted at a time.
    counted = neurons * min(work.firing, 1 / 32)

    def seconds(rank: int) -> float:
        columns = work.samples * rank * (_COLUMN_PAIR * counted + 2 * work.features / FLOPS + _COLUMNS_SQUARED * rank)
        return columns + _PRODUCTS_A_SOLVE * math.sqrt(512 / rank) * product

    able = [rank for rank in _RANKS if rank * work.samples <= _RANK_NUMBERS] or [_RANKS[0]]
    return min(work.samples, min(able, key=seconds))


def _list_bytes(work: Workload, solver: Solver, threads: int) -> int:
    """X twice more, the vectors of a solve, the sums of the neurons at work, and the columns of a preconditioner."""
    n = work.samples
    row = 64 * math.ceil(work.features * work.itemsize / 64) + 64 + work.features * work.itemsize
    vectors = 8 * n * (20 + 8 * work.outputs) + threads * 5 * (8 * n + _TASK_BYTES)
    columns = 0
    if isinstance(solver, NystromCG):
        # Each thread counts some columns of H by itself.
        columns = solver.bytes_needed(n) + 512 * n * min(threads, 2)
    return n * row + vectors + columns


def seconds_with_arrays(work: Workload, solver: str) -> float:
    """Predicted time of a step beside the tracker's, with K, N and H as arrays."""
    n = float(work.samples)
    counted = work.width * (work.firing * n) ** 2 / 2 * _ADDITION
    solve = n**3 / 3 / _DOUBLE_FLOPS if solver in ("auto", "cholesky") else _ITERATIONS * n**2 * _ENTRY
    return (counted + work.outputs * (solve + n**2 * 3 * _ENTRY)) / REFERENCE_THREADS


def seconds_with_lists(work: Workload) -> float:
    """Predicted time of a step beside the tracker's, with H applied from fire lists."""
    product = seconds_of_a_product(work.samples, work.features, work.width, work.firing)
    return _PRODUCTS * product / REFERENCE_THREADS


def seconds_of_a_product(samples: int, features: int, neurons: float, firing: float) -> float:
    """Predicted time of H v on one core, with so many neurons and the part of the samples that each fires on."""
    listed = firing * (_PAIR + 4 * features / _LIST_FLOPS)
    return samples * neurons * min(listed, 4 * features / _MASK_FLOPS)


def _flops_per_step(work: Workload, solver: str) -> float:
    """Products W Xᵀ, additions into N, and the solve; of an epoch and the pass that ends it for minibatches."""
    if work.steps.sees_few:
        return (4.0 + 4.0 * work.firing) * work.pairs * work.features
    fired = work.firing * work.samples
    if not work.arrays:
        return (2.0 + 4.0 * _PRODUCTS * work.firing) * work.pairs * work.features
    solve = work.samples**3 / 3 if solver == "cholesky" else 2.0 * _ITERATIONS * work.samples**2
    return 2.0 * work.pairs * work.features + work.width * fired**2 + work.outputs * solve


def _refusal(work: Workload, tracker: Tracker, solver: Solver, budget: _Budget) -> str:
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
    if not work.arrays:
        return (
            f'{said}; fewer samples fit, and rule="sgd", widefit.train_stream and partial_fit learn any number of them '
            "in memory that does not grow"
        )
    samples = int(math.sqrt(budget.memory / 40))
    return (
        f"{said}; its {work.samples:,} × {work.samples:,} Gram matrices fit for about {samples:,} samples, and "
        'solver="auto" takes any number of them'
    )
