"""The data of the benches of the two-layer network, and what this version of widefit has to train it with."""

import inspect
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from sklearn.datasets import load_digits


@dataclass(frozen=True)
class Problem:
    """Samples on the unit sphere, float32, with targets in float64; the test half may be empty."""

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


def digits_parity(samples: int = 1000) -> Problem:
    """Even (+1) or odd (−1): scikit-learn's digits, centred, on the unit sphere; d = 64. The other rows test."""
    digits = load_digits()
    rows = digits.data - digits.data[:samples].mean(0)
    inputs = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    targets = np.where(digits.target % 2, -1.0, 1.0)
    return Problem(
        "digits",
        np.ascontiguousarray(inputs[:samples]), targets[:samples],
        np.ascontiguousarray(inputs[samples:]), targets[samples:],
    )  # fmt: skip


def sphere(samples: int, features: int, seed: int = 0) -> Problem:
    """Uniform on the unit sphere, y = sin(4 ⟨x, v⟩) for a fixed direction v; nothing is held out."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((samples + 1, features))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    inputs = np.ascontiguousarray(rows[1:], np.float32)
    return Problem("sphere", inputs, np.sin(4 * rows[1:] @ rows[0]), inputs[:0], np.empty(0))


def members(family: ModuleType, base: type) -> dict[str, type]:
    """The concrete classes of a family, as `widefit.trackers` or `widefit.rules`, by name."""
    found = [kind for kind in vars(family).values() if inspect.isclass(kind) and issubclass(kind, base)]
    return {kind.name: kind for kind in found if not inspect.isabstract(kind)}
