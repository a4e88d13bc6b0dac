"""What "auto" chooses, why, and what the work will take in bytes and flops."""

import math
from dataclasses import dataclass, field

from widefit import solvers, trackers
from widefit.kernels.memory import available_memory


@dataclass(frozen=True)
class Choice:
    """One decision: what was decided, what was chosen, and the reason."""

    what: str
    chosen: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The decisions behind a run, in the order they were taken.

    Attributes
    ----------
    choices
        One a decision.
    bytes_needed
        Predicted peak memory of the training, beyond what the process held before.
    flops_per_step
        Predicted floating-point operations of a step.
    """

    choices: tuple[Choice, ...] = field(default=())
    bytes_needed: int = 0
    flops_per_step: float = 0.0

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, chosen, reason), one a decision."""
        return [(choice.what, choice.chosen, choice.reason) for choice in self.choices]

    def to_dict(self) -> dict:
        """Plain Python values, ready for JSON."""
        return {
            "choices": [{"what": what, "chosen": chosen, "reason": reason} for what, chosen, reason in self.rows()],
            "bytes_needed": self.bytes_needed,
            "flops_per_step": self.flops_per_step,
        }

    def after(self, earlier: tuple[Choice, ...]) -> "Plan":
        """The same plan with decisions that were taken before it in front."""
        return Plan(earlier + self.choices, self.bytes_needed, self.flops_per_step)

    def then(self, choice: Choice) -> "Plan":
        """The same plan with a decision that was taken after it."""
        return Plan((*self.choices, choice), self.bytes_needed, self.flops_per_step)

    @classmethod
    def from_dict(cls, record: dict) -> "Plan":
        """The inverse of `to_dict`."""
        choices = tuple(Choice(**choice) for choice in record["choices"])
        return cls(choices, record["bytes_needed"], record["flops_per_step"])


@dataclass(frozen=True)
class TwoLayerShape:
    """Sizes that decide the cost of training a two-layer network.

    Attributes
    ----------
    samples, features, width, outputs
        n, d, m, k.
    firing
        p, the expected part of the pairs that fire.
    itemsize
        Bytes a weight.
    anchored
        True when the initial weights are kept (α > 0).
    readout_scale
        |a_r| / √k.
    second_order
        True for rules that converge in a handful of long steps.
    stored
        False when the weights are drawn again whenever they are needed.
    perturbed
        True when steps are taken at points that differ from the samples.
    alive
        Part of the neurons that fire on some sample.
    minibatches
        True for rules whose steps look at a few of the samples, and which never ask for H of more than a few.
    along_samples
        True where these steps move the first layer alone, along the samples, and none are kept (`Minibatches.plain`).
    """

    samples: int
    features: int
    width: int
    outputs: int
    firing: float
    itemsize: int
    anchored: bool
    readout_scale: float = 1.0
    second_order: bool = True
    stored: bool = True
    perturbed: bool = False
    alive: float = 1.0
    minibatches: bool = False
    along_samples: bool = False

    def bytes_needed(self, solver: str, threads: int, tracker: str = "dense") -> int:
        """Peak memory of a run."""
        patterns = self._certificate_bytes(threads) if tracker == "certificate" else self._pattern_bytes(tracker)
        block = max(64, min(1024, (1 << 20) // self.samples))
        blocks = threads * block * (self.samples * self.itemsize + self.samples // 8 + self.features * self.itemsize)
        return patterns + blocks + self._square_bytes(solver, tracker)

    def _square_bytes(self, solver: str, tracker: str) -> int:
        """K, N and H are held at once, and a factorization works on a copy of H."""
        if self.minibatches:
            # The certificate tracker takes each minibatch for a step of its own, which follows H.
            return 20 * (self.samples if tracker == "certificate" else min(self.samples, FEW)) ** 2
        return self.samples**2 * (8 + 4 + 8 + (16 if solver == "cholesky" else 0))

    def _pattern_bytes(self, tracker: str) -> int:
        """W₀ where it is kept, fire patterns before and after a step, and what a tree holds beside them."""
        row = min(self.samples / 8, 4 * self.firing * self.samples) + 12
        pairs, weights = self.width * self.samples, self.width * self.features * self.itemsize
        trees = {
            # Keys twice over and those of a step, or fire patterns as bits both ways.
            "weight-tree": 3 * pairs * self.itemsize,
            "data-tree": 3 * pairs * self.itemsize,
            "half-space-tree": 3 * weights + pairs // 4,
            "verlet-list": self._list_bytes(),
        }
        return int(2 * self.width * row) + weights * int(self.anchored) + trees.get(tracker, 0)

    def _list_bytes(self) -> int:
        """Weights where lists were made and after a step, lists before and after it, long ones early in a run."""
        fixed, listed = 80 * self.width, self.width * self.samples * min(1.0, 6 * self.firing)
        if self.anchored:
            return 2 * self.width * self.features * self.itemsize + fixed + int(6 * listed)
        # In float64 without W₀; and K and half of N, or for minibatches margins, and pairs in the order of the visits.
        steps = 24 * self.width * self.features + fixed
        if self.minibatches:
            return steps + int(23 * listed)
        return steps + int(6 * listed) + (8 + 4 * self.outputs) * self.samples**2

    def _certificate_bytes(self, threads: int) -> int:
        """Neurons that are alive with their fire rows and certificates, and the longest step in the making."""
        word = 2 if self.samples < 1 << 16 else 4
        slots, flips = self.width * self.alive, self.flips()
        rows = self.width * min(self.samples / 8, word * self.firing * self.samples)
        certificates, drift, fixed = _CERTIFIED * flips, 4 * slots, slots * (8 + 2 * word) + rows
        # Where they stand in a chunk takes two bytes while a neuron has less than one.
        looked_at, place = _LOOKED_AT * flips, 2 if certificates < 0.9 * self.width else 4
        if certificates > _MOST_CERTIFIED * slots * self.samples:
            # The first step is another pass: everything of every slot once more.
            certificates /= 3
            first = later = fixed + drift
        else:
            # The first step has its flips and what is looked at, a later one corrections for every flip before it.
            renewals = (place + 4) * looked_at + word * min(slots, looked_at) / 2
            first = renewals + drift + (3 + word) * flips
            later = renewals / 6 + 2 * drift + (10 + word) * flips
        listed = 40 * min(flips, _LISTED)
        held = fixed + (word + 4) * certificates + max(first, later) + listed
        return int(_UNUSED * held) + threads * min(_AT_WORK, int(held))

    def flops_per_step(self, solver: str) -> float:
        """Products W Xᵀ, additions into N, and the solve."""
        if self.minibatches:
            # An epoch and the pass that ends it.
            return (4.0 + 4.0 * self.firing) * self.width * self.samples * self.features
        fired = self.firing * self.samples
        solve = self.samples**3 / 3 if solver == "cholesky" else 200 * self.samples**2
        return 2.0 * self.width * self.samples * self.features + self.width * fired**2 + self.outputs * solve

    def flips(self) -> float:
        """Pairs that flip in a Gauss-Newton run, from runs on digits: they grow as √m in all."""
        group = self.width / self.outputs
        return self.outputs * 1.1e6 * math.sqrt(group / 2**18) * (self.samples / 1000) ** 1.5 / self.readout_scale

    def seconds_of_a_pass(self, threads: int) -> float:
        """Products W Xᵀ and a scan of what comes out."""
        pair = 2 * self.features / _FLOPS + _SCAN
        return self.width * self.samples * pair / threads

    def seconds_of_an_epoch(self, threads: int) -> float:
        """Minibatches that go by lists of near pairs: a pair costs more the more samples its neuron fires on."""
        fired = self.firing * self.samples
        pair = _PAIR + _FEATURE * self.features + _ADDITION * min(fired, self.firing * 1024)
        return _VISIT * self.samples + self.width * fired * pair / threads


# What a plan says of a rule that averages.
AVERAGED = Choice(
    "network", "average of the iterates", "the rule averages; losses of the history are those of the last iterates"
)
# Samples that stand for all in the estimates of stochastic rules.
FEW = 2048
# Measured on one core (AMD Zen 4): products a second, seconds to scan a pre-activation, seconds a flip takes the
# certificate tracker with all that is looked at for it. The last, on two cores: seconds a run takes it at any width.
_FLOPS, _SCAN, _FLIP, _FIXED = 1e11, 2.3e-9, 1.2e-6, 0.3
# Passes that the products of an epoch of minibatches, and the pass that ends it, are worth. Seconds an epoch takes
# lists of near pairs for a sample, and on one core for a pair that fires, its features, and others of its neuron.
_EPOCH, _VISIT, _PAIR, _FEATURE, _ADDITION = 1.4, 4e-5, 7e-8, 4.5e-10, 1e-9
# How much sooner lists have to be, as their first epochs are longer; samples of an epoch in which neurons do not move
# farther than lists pay for (measured: of 4,000, products are almost four times as fast).
_SOONER, _VISITED = 1.5, 2048
# Passes of a dense Gauss-Newton run.
_PASSES = 6
# Certificates for every pair that flips in a run, of which so many are looked at, and part of the pairs from which the
# tracker rather makes another pass; what the allocator holds for a byte in use, with a reserve, and for a thread at
# work (measured).
_CERTIFIED, _LOOKED_AT, _MOST_CERTIFIED, _UNUSED, _AT_WORK = 11.0, 4.8, 0.04, 1.12, 50_000_000
# Flips of a step that the certificate tracker lists one by one.
_LISTED = 1 << 21


def _choose_tracker(
    shape: TwoLayerShape, solver: "str | solvers.Solver", threads: int, memory: int
) -> "tuple[type[trackers.Tracker], str]":
    """The tracker that the cost model predicts to be faster, and why."""
    one = shape.seconds_of_a_pass(threads)
    if not shape.stored:
        return trackers.Certificate, "the weights are not stored"
    if shape.perturbed:
        return trackers.Dense, "steps at points that no tracker has followed"
    name = solver if isinstance(solver, str) and solver != "auto" else "cholesky"
    if not shape.second_order:
        said = f"many short steps; a pass takes about {one:.2g} s"
        if shape.minibatches and not (shape.along_samples and shape.samples <= _VISITED):
            return trackers.Dense, said
        if shape.minibatches:
            dense, sparse = _EPOCH * one, shape.seconds_of_an_epoch(threads)
            said = f"an epoch takes about {dense:.2g} s of products, {sparse:.2g} s with lists of near pairs"
            if dense <= _SOONER * sparse:
                return trackers.Dense, said
        if shape.bytes_needed(name, threads, "verlet-list") > memory:
            return trackers.Dense, f"{said}, and lists of near pairs do not fit in memory"
        return trackers.VerletList, said
    # A dense pass with a ridge multiplies twice: W and W − W₀.
    dense = _PASSES * one * (2 if shape.anchored else 1)
    sparse = 1.1 * one + _FLIP * shape.flips() / threads + _FIXED
    said = f"about {dense:.2g} s of passes against {sparse:.2g} s with one pass and certificates"
    if sparse < dense and shape.bytes_needed(name, threads, "certificate") > memory:
        return trackers.Dense, f"{said}, which do not fit in memory"
    return (trackers.Certificate if sparse < dense else trackers.Dense), said


def firing_probability(threshold: float, norm: float) -> float:
    """P(⟨w, x⟩ > b) for w ~ N(0, I) and ‖x‖ = norm."""
    if norm == 0:
        return float(threshold < 0)
    return 0.5 * math.erfc(threshold / (norm * math.sqrt(2)))


def plan_two_layer(
    shape: TwoLayerShape,
    tracker: "str | trackers.Tracker",
    solver: "str | solvers.Solver",
    threads: int,
    memory: int | None = None,
) -> "tuple[Plan, trackers.Tracker, solvers.Solver]":
    """Choose tracker and solver, and refuse what cannot fit.

    Parameters
    ----------
    shape
        Sizes of the problem.
    tracker, solver
        "auto", a name, or the object itself.
    threads
        Cores to be used.
    memory
        Bytes the training may take; None: what is free.

    Raises
    ------
    ValueError
        An unknown name, or a tracker that cannot follow perturbed samples.
    MemoryError
        The prediction exceeds the memory; the message gives the number and the nearest width that fits.
    """
    memory = available_memory() if memory is None else memory
    choices = []
    if tracker == "auto":
        chosen, reason = _choose_tracker(shape, solver, threads, memory)
        tracker = chosen()
        choices.append(Choice("tracker", tracker.name, reason))
    tracker = named(tracker, TRACKERS, trackers.Tracker, "tracker")
    if shape.perturbed and not tracker.accepts_new_points:
        raise ValueError(
            f"tracker {tracker.name!r} follows the samples alone, and the adversary of the rule moves them: "
            'use "dense" or HalfSpaceTree(over="weights")'
        )
    if solver == "auto" and shape.minibatches:
        solver = solvers.Cholesky()
    if solver == "auto":
        direct = shape.bytes_needed("cholesky", threads) <= memory
        solver = solvers.Cholesky() if direct else solvers.CG()
        need = f"{8 * shape.samples**2 / 1e9:.2g} GB for H in float64"
        reason = f"{need} and as much for its factor fit in memory" if direct else f"{need}, its factor would not fit"
        choices.append(Choice("solver", solver.name, reason))
    solver = named(solver, {"cholesky": solvers.Cholesky, "cg": solvers.CG}, solvers.Solver, "solver")
    needed = shape.bytes_needed(solver.name, threads, tracker.name)
    if needed > memory:
        raise MemoryError(_refusal(shape, tracker.name, solver.name, threads, needed, memory))
    return Plan(tuple(choices), needed, shape.flops_per_step(solver.name)), tracker, solver


TRACKERS: dict[str, type[trackers.Tracker]] = {
    "dense": trackers.Dense,
    "certificate": trackers.Certificate,
    "verlet-list": trackers.VerletList,
    "weight-tree": trackers.WeightTree,
    "data-tree": trackers.DataTree,
    "half-space-tree": trackers.HalfSpaceTree,
}


def named(value, names: dict, kind: type, argument: str):
    """What goes by a name, or itself."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in names:
        return names[value]()
    known = ", ".join(f'"{name}"' for name in ("auto", *names))
    raise ValueError(f"{argument} must be one of {known} or a {kind.__name__}, got {value!r}")


def _refusal(shape: TwoLayerShape, tracker: str, solver: str, threads: int, needed: int, memory: int) -> str:
    """What does not fit, and the nearest setting that does."""
    said = f"training needs about {needed / 1e9:.1f} GB and {memory / 1e9:.1f} GB are free"
    width = shape.width
    while width > 64:
        width //= 2
        smaller = TwoLayerShape(**{**shape.__dict__, "width": width})
        if smaller.bytes_needed(solver, threads, tracker) <= memory:
            return f"{said}; a width of {width:,} fits"
    if shape.minibatches:
        return f"{said}; widefit.train_stream and partial_fit learn any number of samples in memory that does not grow"
    samples = int(math.sqrt(memory / 40))
    return f"{said}; its {shape.samples:,} × {shape.samples:,} Gram matrices fit for about {samples:,} samples"
