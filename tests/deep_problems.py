"""Deep networks and samples that every part is tried on, and the mathematics with dense float64 matrices."""

from dataclasses import dataclass

import numpy as np
from problems import digits_parity, sphere

from widefit.nn import Deep


@dataclass(frozen=True)
class DeepProblem:
    """A network before training, samples and targets."""

    settings: dict
    inputs: np.ndarray
    targets: np.ndarray

    def fresh(self) -> Deep:
        return Deep(**self.settings)


NAMES = (
    "random",
    "one layer",
    "three layers",
    "one sample",
    "three outputs",
    "shared readout",
    "plain relu",
    "nothing fires",
    "last layer read",
    "no input share",
    "not paired",
    "duplicates",
    "zero rows",
    "huge",
    "tiny",
    "digits",
)


def make_deep(name: str, dtype, samples: int = 30) -> DeepProblem:
    """Build a problem by name; see `NAMES`."""
    generator = np.random.default_rng(5)
    features, sizes, outputs, threshold = 5, (140, 90), 1, 0.6
    options: dict = {"seed": 7, "dtype": dtype}
    if name == "one layer":
        sizes = (150,)
    elif name == "three layers":
        sizes, threshold = (80, 130, 70), (0.0, 0.5, 1.0)
    elif name == "one sample":
        samples = 1
    elif name in ("three outputs", "shared readout"):
        outputs = 3
    elif name == "plain relu":
        threshold = 0.0
    elif name == "nothing fires":
        threshold = 6.9
    elif name == "last layer read":
        options["readouts"] = "last"
    elif name == "no input share":
        options["input_share"] = 0.0
    elif name == "not paired":
        options["paired"] = False
    rows = sphere(generator.standard_normal((samples, features)))
    if name == "duplicates":
        rows[samples // 2 :] = rows[: samples - samples // 2]
    elif name == "zero rows":
        rows[::3] = 0
    elif name == "huge":
        rows *= 1e4
    elif name == "tiny":
        rows *= 1e-4
        threshold = 0.0
    targets = generator.standard_normal((samples, outputs))
    if name == "digits":
        rows, parity = digits_parity(60)
        features, sizes, threshold, targets = rows.shape[1], (300, 260), 1.6, parity[:, None]
    settings = {
        "in_features": features,
        "hidden_layer_sizes": sizes,
        "out_features": outputs,
        "threshold": threshold,
        **options,
    }
    numpy_dtype = Deep(**settings).input_weights[0].detach().numpy().dtype
    return DeepProblem(settings, np.ascontiguousarray(rows, numpy_dtype), targets)


class DeepReference:
    """Forward, backward, J and steps of section 5, written down with dense float64 matrices."""

    def __init__(self, network: Deep, inputs: np.ndarray):
        self.network, self.inputs = network, inputs.astype(np.float64)
        self.input_weights = [weight.detach().double().numpy().copy() for weight in network.input_weights]
        self.hidden = [linear.weight.detach().double().numpy().copy() for linear in network.low_rank()]
        self.readouts = [readout.detach().double().numpy() for readout in network.readouts]
        self.depth = len(self.readouts)

    def forward(self) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Pre-activations, activations and outputs."""
        network, h = self.network, None
        zs, hs, outputs = [], [], 0
        for layer in range(self.depth):
            z = 0
            if layer < len(self.input_weights):
                z = z + network.input_factor(layer) * self.inputs @ self.input_weights[layer].T
            if layer > 0:
                z = z + network.hidden_factor(layer) * h @ self.hidden[layer - 1].T
            h = network.scales[layer] * np.maximum(z - network.thresholds[layer], 0)
            outputs = outputs + h @ self.readouts[layer]
            zs.append(z)
            hs.append(h)
        return zs, hs, outputs

    def signals(self) -> list[np.ndarray]:
        """Δ_l, (n, k, m_l)."""
        zs, _, _ = self.forward()
        found: list[np.ndarray] = []
        for layer in reversed(range(self.depth)):
            slope = np.broadcast_to(self.readouts[layer].T, (len(self.inputs), *self.readouts[layer].T.shape))
            if found:
                slope = slope + self.network.hidden_factor(layer + 1) * found[-1] @ self.hidden[layer]
            fires = zs[layer] > self.network.thresholds[layer]
            found.append(self.network.scales[layer] * slope * fires[:, None, :])
        return found[::-1]

    def jacobian(self) -> np.ndarray:
        """J, (n k, P): every A_l, then every W_l."""
        _, hs, _ = self.forward()
        signals, network = self.signals(), self.network
        blocks = [
            network.input_factor(layer) * np.einsum("ikr,id->ikrd", signals[layer], self.inputs)
            for layer in range(len(self.input_weights))
        ]
        blocks += [
            network.hidden_factor(layer) * np.einsum("ikr,ic->ikrc", signals[layer], hs[layer - 1])
            for layer in range(1, self.depth)
        ]
        rows = signals[0].shape[0] * signals[0].shape[1]
        return np.concatenate([block.reshape(rows, -1) for block in blocks], axis=1)

    def step(self, g: np.ndarray) -> None:
        """Every weight ← weight − Jᵀ g."""
        self.move(-self.jacobian().T @ g.reshape(-1))

    def weights(self) -> np.ndarray:
        """Every A_l, then every W_l, in one vector: the columns of J."""
        return np.concatenate([weight.reshape(-1) for weight in (*self.input_weights, *self.hidden)])

    def move(self, change: np.ndarray) -> None:
        """Every weight ← weight + change."""
        at = 0
        for weight in (*self.input_weights, *self.hidden):
            weight += change[at : at + weight.size].reshape(weight.shape)
            at += weight.size
