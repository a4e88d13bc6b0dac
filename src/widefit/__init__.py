"""widefit trains wide neural networks to convergence in a handful of second-order steps."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from widefit import callbacks, files, gram, losses, nn, pinn, plan, rules, sketches, solvers, trackers
    from widefit.estimators import WideClassifier, WideRegressor
    from widefit.files import load, save
    from widefit.finetuning import LowRankDelta, finetune
    from widefit.optim import GaussNewton, Residual
    from widefit.optim.curve_fit import curve_fit
    from widefit.optim.kernel import ntk
    from widefit.processes import Processes
    from widefit.training.history import History, StepInfo
    from widefit.training.train import train
    from widefit.training.train_stream import train_stream

# Imported on first use: scikit-learn, SciPy and Numba would otherwise double the time of `import widefit`.
_HOME = {
    "GaussNewton": "widefit.optim",
    "History": "widefit.training.history",
    "LowRankDelta": "widefit.finetuning",
    "Processes": "widefit.processes",
    "Residual": "widefit.optim",
    "StepInfo": "widefit.training.history",
    "WideClassifier": "widefit.estimators",
    "WideRegressor": "widefit.estimators",
    "curve_fit": "widefit.optim.curve_fit",
    "finetune": "widefit.finetuning",
    "load": "widefit.files",
    "ntk": "widefit.optim.kernel",
    "save": "widefit.files",
    "train": "widefit.training.train",
    "train_stream": "widefit.training.train_stream",
}
_MODULES = ("callbacks", "files", "gram", "losses", "nn", "pinn", "plan", "rules", "sketches", "solvers", "trackers")

__all__ = [
    "GaussNewton",
    "History",
    "LowRankDelta",
    "Processes",
    "Residual",
    "StepInfo",
    "WideClassifier",
    "WideRegressor",
    "__version__",
    "callbacks",
    "curve_fit",
    "files",
    "finetune",
    "gram",
    "load",
    "losses",
    "nn",
    "ntk",
    "pinn",
    "plan",
    "rules",
    "save",
    "sketches",
    "solvers",
    "trackers",
    "train",
    "train_stream",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"widefit.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'widefit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
