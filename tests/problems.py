"""Problems that every part is tried on: random, degenerate and real."""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

from widefit.nn import TwoLayer


@dataclass(frozen=True)
class Problem:
    """A network before training, samples on the unit sphere (unless the name says otherwise) and targets."""

    name: str
    network: TwoLayer
    inputs: np.ndarray
    targets: np.ndarray

    def fresh(self) -> TwoLayer:
        """A copy of the network that may be trained."""
        net = self.network
        copy = TwoLayer(
            net.in_features,
            net.width,
            net.out_features,
            threshold=net.threshold,
            convention=net.activation.convention,
            seed=net.seed,
            dtype=net.weight.dtype,
        )
        copy.weight.data.copy_(net.weight)
        copy.readout.data.copy_(net.readout)
        return copy


def sphere(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1; zero rows stay."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm == 0, 1, norm)


def digits_parity(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits, centred and on the sphere, with ±1 for even and odd."""
    data = load_digits()
    rows = data.data[:samples] - data.data.mean(0)
    return sphere(rows), np.where(data.target[:samples] % 2, 1.0, -1.0)


def real(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A data set of scikit-learn, float32: standardized, on the sphere, with ±1 for two halves of the classes."""
    if name == "digits":
        rows, targets = digits_parity(300)
    else:
        load = {"wine": load_wine, "breast cancer": load_breast_cancer}[name]
        data, classes = (np.asarray(part) for part in load(return_X_y=True))
        rows, targets = sphere((data - data.mean(0)) / data.std(0)), 2.0 * (classes == 1) - 1
    return rows.astype(np.float32), targets


def make(name: str, dtype, width: int | None = None) -> Problem:
    """Build a problem by name; see `NAMES`. The width is 4096 for digits, two blocks of neurons, else 600."""
    generator = np.random.default_rng(5)
    samples, features, outputs, threshold, convention = 40, 5, 1, "auto", "zero"
    if name == "one sample":
        samples = 1
    elif name == "one feature":
        features = 1
    elif name == "three outputs":
        outputs = 3
    elif name == "plain relu":
        threshold = 0.0
    elif name == "floored":
        convention, threshold = "floor", 0.7
    elif name == "negative threshold":
        threshold = -0.5
    elif name == "nothing fires":
        threshold = 30.0
    elif name == "more samples than words":
        samples = 130
    rows = sphere(generator.standard_normal((samples, features)))
    if name == "duplicates":
        rows[20:] = rows[:20]
    elif name == "zero rows":
        rows[::3] = 0
    elif name == "huge":
        rows *= 1e6
    elif name == "tiny":
        rows *= 1e-6
        threshold = 0.0
    targets = generator.standard_normal((samples, outputs))
    if name == "digits":
        rows, parity = digits_parity(120)
        features, targets = rows.shape[1], parity[:, None]
    width = width or (4096 if name == "digits" else 600)
    network = TwoLayer(features, width, outputs, threshold=threshold, convention=convention, seed=11, dtype=dtype)
    numpy_dtype = network.weight.detach().numpy().dtype
    return Problem(name, network, np.ascontiguousarray(rows, numpy_dtype), targets)


NAMES = (
    "random",
    "one sample",
    "one feature",
    "three outputs",
    "plain relu",
    "floored",
    "negative threshold",
    "nothing fires",
    "more samples than words",
    "duplicates",
    "zero rows",
    "huge",
    "tiny",
    "digits",
)


@dataclass
class DenseReference:
    """The mathematics of section 1 written down with dense float64 matrices, one neuron a row and no blocks."""

    weight: np.ndarray
    initial: np.ndarray
    readout: np.ndarray
    threshold: float
    silent: float
    inputs: np.ndarray

    @classmethod
    def of(cls, problem: Problem) -> "DenseReference":
        net = problem.network
        weight = net.weight.detach().double().numpy()
        return cls(
            weight.copy(),
            weight.copy(),
            net.readout.detach().double().numpy(),
            net.threshold,
            net.activation.silent,
            problem.inputs.astype(np.float64),
        )

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def preactivations(self) -> np.ndarray:
        return self.weight @ self.inputs.T

    def fires(self) -> np.ndarray:
        return self.preactivations() > self.threshold

    def outputs(self) -> np.ndarray:
        hidden = np.maximum(self.preactivations() - self.threshold, 0) + self.silent
        return hidden.T @ self.readout / np.sqrt(self.width)

    def jacobian(self, output: int) -> np.ndarray:
        """J of one output, (n, m d)."""
        coefficients = self.readout[:, output] / np.sqrt(self.width)
        rows = (coefficients[:, None] * self.fires())[:, :, None] * self.inputs[None]
        return rows.transpose(1, 0, 2).reshape(self.inputs.shape[0], -1)

    def response(self, offset: np.ndarray) -> np.ndarray:
        """J applied to a change of the weights (m, d), for every output, (n, k)."""
        moved = self.fires() * (offset @ self.inputs.T)
        return moved.T @ self.readout / np.sqrt(self.width)

    def gram(self, output: int) -> np.ndarray:
        jacobian = self.jacobian(output)
        return jacobian @ jacobian.T

    def step(self, g: np.ndarray, shrink: np.ndarray) -> None:
        # Jᵀ g of all outputs.
        move = -(self.fires() * (self.readout @ g.T)) @ self.inputs / np.sqrt(self.width)
        for output in range(g.shape[1]):
            own = self.readout[:, output] != 0
            move[own] -= shrink[output] * (self.weight - self.initial)[own]
        self.weight = self.weight + move
