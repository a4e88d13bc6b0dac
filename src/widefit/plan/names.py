"""The names that arguments take: the one registry behind Python, the command line and their messages.

Nothing is imported here until a name is resolved, so that a shell completes names at once. What is new is one file of
its own and one line below.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Registry:
    """Names that one argument may take.

    Attributes
    ----------
    argument
        The argument, for messages.
    base
        "module:class" of the objects that are taken in place of a name.
    homes
        "module:class" of every name.
    automatic
        True where "auto" leaves the choice to a plan.
    """

    argument: str
    base: str
    homes: Mapping[str, str] = field(repr=False)
    automatic: bool = True

    def __iter__(self) -> Iterator[str]:
        """All that the argument may be called, "auto" first."""
        return iter((*(("auto",) if self.automatic else ()), *self.homes))

    def kind(self, name: str) -> type:
        """Import the class of a name."""
        if name not in self.homes:
            raise self.unknown(name)
        return _imported(self.homes[name])

    def unknown(self, value: Any) -> ValueError:
        """Return the error for anything else."""
        known = ", ".join(f'"{name}"' for name in self)
        *_, kind = self.base.split(":")
        return ValueError(f"{self.argument} must be one of {known} or a {kind}, got {value!r}")


def resolve(value: Any, registry: Registry) -> Any:
    """Return what goes by a name, with its settings as they are by default; an object of the right kind is itself.

    Raises
    ------
    ValueError
        Neither.
    """
    if isinstance(value, str):
        return registry.kind(value)()
    if isinstance(value, _imported(registry.base)):
        return value
    raise registry.unknown(value)


def _imported(home: str) -> type:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


RULES = Registry(
    "rule",
    "widefit.rules.base:Rule",
    {
        "gauss-newton": "widefit.rules.gauss_newton:GaussNewton",
        "gradient-descent": "widefit.rules.gradient_descent:GradientDescent",
        "sgd": "widefit.rules.sgd:SGD",
    },
    automatic=False,
)

TRACKERS = Registry(
    "tracker",
    "widefit.trackers.base:Tracker",
    {
        "dense": "widefit.trackers.dense:Dense",
        "certificate": "widefit.trackers.certificate:Certificate",
        "verlet-list": "widefit.trackers.verlet.verlet_list:VerletList",
        "weight-tree": "widefit.trackers.trees.weight_tree:WeightTree",
        "data-tree": "widefit.trackers.trees.data_tree:DataTree",
        "half-space-tree": "widefit.trackers.half_space.half_space_tree:HalfSpaceTree",
        "torch": "widefit.trackers.masks:Torch",
    },
)
# Of deep networks.
DEEP_TRACKERS = Registry(
    "tracker",
    "widefit.trackers.deep.base:DeepTracker",
    {"sparse": "widefit.trackers.deep.sparse:Sparse", "torch": "widefit.trackers.deep.masks:DeepTorch"},
)
# Those that can follow samples which are seen once.
STREAM_TRACKERS = ("dense", "half-space-tree")

_SOLVER = "widefit.solvers.base:Solver"
_CHOLESKY, _CG = "widefit.solvers.cholesky:Cholesky", "widefit.solvers.cg:CG"
# For a network of one hidden layer each output has a system of its own, for a deep one all outputs share one.
_NYSTROM = "widefit.solvers.nystrom_cg:NystromCG"
TWO_LAYER_SOLVERS = Registry("solver", _SOLVER, {"cholesky": _CHOLESKY, "cg": _CG, "nystrom-cg": _NYSTROM})
DEEP_SOLVERS = Registry(
    "solver", _SOLVER, {"cholesky": _CHOLESKY, "cg": _CG, "block-cg": "widefit.solvers.block_cg:BlockCG"}
)
# For the optimizer: four that work in parameter space, and those in sample space.
STEP_SOLVERS = Registry(
    "solver",
    _SOLVER,
    {
        "svd": "widefit.optim.curvature:Spectral",
        "qr": "widefit.optim.many_rows:Triangular",
        "primal": _CHOLESKY,
        "primal-cg": "widefit.optim.many_rows:SketchedPrimal",
        "cholesky": _CHOLESKY,
        "cg": _CG,
        "sketched-cg": "widefit.solvers.sketched_cg:SketchedCG",
        "nystrom-cg": _NYSTROM,
    },
)

# What neurons compute, with what silent ones give.
ACTIVATIONS = {"relu": "zero", "shifted_relu": "zero", "floored_relu": "floor"}

# Of a rule; `widefit.train` takes "cross_entropy" as well. And of the optimizer and fine-tuning.
RULE_LOSSES = ("squared", "logistic", "softmax")
TORCH_LOSSES = ("mse", "cross_entropy", "bce", "huber")

# Layers that fine-tuning adapts, beside a list of their names.
LAYERS = ("auto", "readout", "all")
