"""Deep network in the parametrization of the theory: h_l = c_b φ_b(W_l h_{l−1}), with a readout from every layer."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.kernels.memory import available_memory
from widefit.linalg.gaussian_rows import gaussian_rows
from widefit.linalg.low_rank import LowRankLinear
from widefit.nn.shifted_relu import firing_probability
from widefit.nn.two_layer import automatic_threshold

# Beyond it a neuron in a million millions fires, and the scale that keeps the norm has lost its digits.
_LARGEST_THRESHOLD = 7.0


def norm_keeping_scale(width: int, threshold: float) -> float:
    """Return c_b = (m E[φ_b(z)²])^(−1/2), z ~ N(0, 1): with it ‖h_l‖ ≈ ‖h_{l−1}‖ for inputs on the unit sphere."""
    fires = firing_probability(threshold)
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    return 1 / math.sqrt(width * ((1 + threshold**2) * fires - threshold * density))


class Deep(nn.Module):
    """Network of L layers of shifted ReLUs, h_l = c_b φ_b(z_l), and the sum of linear readouts from them.

    z_1 = A_1 x, z_l = √(1 − γ) W_l h_{l−1} + √γ A_l x and f(x) = Σ_l B_lᵀ h_l, with standard normal A_l and W_l: the
    network of arXiv 2112.07628 with two additions of this project. Stacked shifted layers drive all inner products
    between samples towards zero, and the network stops generalizing; a share γ of the input in every layer, and
    readouts from every layer, keep it as good as plain ReLUs.

    Parameters
    ----------
    in_features
        d. Inputs are taken as they are; the theory has them on the unit sphere.
    hidden_layer_sizes
        m_1, …, m_L, each at least 2.
    out_features
        k. Every output reads all neurons, with signs of its own: its H is that of a network as wide as this one, and
        what couples two outputs falls as 1/√m. With m_l / k neurons for each, H would be sparser and far noisier.
    threshold
        b, one for all layers or one for each, or "auto": √(0.4 ln m_l). 0 is plain ReLU.
    input_share
        γ in [0, 1): part of the input in the squared norm of what a later layer sees; 0 leaves its A_l out.
    readouts
        "all", or "last" for the last layer alone.
    readout_scale
        Size of the entries of B before the factor 1/√(layers that are read); the larger, the less the layers move.
    paired
        Neurons 2j and 2j + 1 of every layer start with equal weights and opposite readouts: f = 0 before training.
    seed
        Fixes all weights, whatever the dtype.
    dtype
        torch.float32 or torch.float64.

    Attributes
    ----------
    input_weights
        A_l, shape (m_l, d): one if γ = 0, otherwise L.
    hidden
        W_l for l ≥ 2, LowRankLinear of shape (m_l, m_{l−1}).
    readouts
        B_l, shape (m_l, k); not trained.
    thresholds, scales
        b and c_b of every layer.

    Raises
    ------
    ValueError
        Sizes, thresholds or shares that make no sense; the message names them.
    MemoryError
        The weights and their packed copy cannot fit; said before they are drawn.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        in_features: int,
        hidden_layer_sizes: Sequence[int],
        out_features: int = 1,
        *,
        threshold: float | str | Sequence[float] = "auto",
        input_share: float = 0.5,
        readouts: str = "all",
        readout_scale: float = 1.0,
        paired: bool = True,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        sizes = tuple(hidden_layer_sizes)
        _check_sizes(in_features, sizes, out_features)
        _check_settings(input_share, readouts, readout_scale, seed, dtype)
        thresholds = _thresholds(threshold, sizes)
        _check_memory(in_features, sizes, out_features, input_share, torch.finfo(dtype).bits // 8)

        # One stream of random numbers a matrix.
        seeds = iter(np.random.SeedSequence(seed).generate_state(2 * len(sizes), np.uint64).tolist())

        def draw(rows: int, columns: int) -> Tensor:
            if not paired:
                return torch.from_numpy(gaussian_rows(next(seeds), 0, rows, columns)).to(dtype)
            half = gaussian_rows(next(seeds), 0, -(-rows // 2), columns)
            return torch.from_numpy(np.repeat(half, 2, axis=0)[:rows]).to(dtype)

        def read(layer: int) -> Tensor:
            if readouts == "last" and layer < len(sizes) - 1:
                return torch.zeros(sizes[layer], out_features, dtype=dtype)
            size = readout_scale / math.sqrt(len(sizes) if readouts == "all" else 1)
            return (size * _signs(sizes[layer], out_features, (seed, layer))).to(dtype)

        fed = [draw(size, in_features) for size in (sizes if input_share > 0 else sizes[:1])]
        hidden = [draw(size, before) for size, before in zip(sizes[1:], sizes[:-1], strict=True)]
        self._assemble(fed, hidden, [read(layer) for layer in range(len(sizes))], thresholds, input_share)

    def _assemble(
        self,
        input_weights: Sequence[Tensor],
        hidden: Sequence[Tensor],
        readouts: Sequence[Tensor],
        thresholds: tuple[float, ...],
        input_share: float,
    ) -> None:
        """Build the layers around given tensors."""
        nn.Module.__init__(self)
        self.in_features = input_weights[0].shape[1]
        self.out_features = readouts[0].shape[1]
        self.hidden_layer_sizes = tuple(len(readout) for readout in readouts)
        self.thresholds = thresholds
        self.input_share = float(input_share)
        self.scales = tuple(
            norm_keeping_scale(m, b) for m, b in zip(self.hidden_layer_sizes, self.thresholds, strict=True)
        )
        self.input_weights = nn.ParameterList(input_weights)
        # Thresholds alone decide how products are done, so that training resumes to the same bits.
        active = [firing_probability(threshold) for threshold in thresholds[:-1]]
        self.hidden = nn.ModuleList(
            [LowRankLinear.from_weight(weight, density=p) for weight, p in zip(hidden, active, strict=True)]
        )
        self.readouts = nn.ParameterList([nn.Parameter(readout, requires_grad=False) for readout in readouts])

    @classmethod
    @torch.inference_mode(False)
    def from_tensors(cls, tensors: Mapping[str, Tensor], thresholds: Sequence[float], input_share: float) -> "Deep":
        """Return the network with a given state dict, whose tensors it takes over; nothing is drawn."""

        def numbered(name: str, suffix: str = "") -> list[Tensor]:
            count = sum(key.startswith(f"{name}.") for key in tensors)
            return [tensors[f"{name}.{number}{suffix}"] for number in range(count)]

        network = cls.__new__(cls)
        parts = numbered("input_weights"), numbered("hidden", ".weight"), numbered("readouts")
        network._assemble(*parts, tuple(thresholds), input_share)
        return network

    @property
    def dtype(self) -> torch.dtype:
        return self.input_weights[0].dtype

    def low_rank(self) -> Iterator[LowRankLinear]:
        """Yield W_2, …, W_L."""
        for layer in self.hidden:
            assert isinstance(layer, LowRankLinear)
            yield layer

    def input_factor(self, layer: int) -> float:
        """Return the factor of A_l x: 1 in the first layer, √γ later, 0 where there is no A_l."""
        return 1.0 if layer == 0 else math.sqrt(self.input_share)

    def hidden_factor(self, layer: int) -> float:
        """Return the factor of W_l h_{l−1}: 0 in the first layer, √(1 − γ) later."""
        return 0.0 if layer == 0 else math.sqrt(1 - self.input_share)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return f(x), computed in the dtype of x."""
        outputs = x.new_zeros(x.shape[0], self.out_features)
        h = x
        for layer in range(len(self.hidden_layer_sizes)):
            z = x.new_zeros(x.shape[0], self.hidden_layer_sizes[layer])
            if layer < len(self.input_weights):
                z = z + self.input_factor(layer) * (x @ self.input_weights[layer].to(x.dtype).T)
            if layer > 0:
                z = z + self.hidden_factor(layer) * self.hidden[layer - 1](h)
            h = self.scales[layer] * torch.relu(z - self.thresholds[layer])
            outputs = outputs + h @ self.readouts[layer].to(x.dtype)
        return outputs

    def extra_repr(self) -> str:
        thresholds = ", ".join(f"{threshold:.3g}" for threshold in self.thresholds)
        return (
            f"in_features={self.in_features}, hidden_layer_sizes={self.hidden_layer_sizes}, "
            f"out_features={self.out_features}, thresholds=({thresholds}), input_share={self.input_share:.3g}"
        )


def _signs(width: int, outputs: int, seed: tuple[int, int]) -> Float[Tensor, "m k"]:
    """Draw ±1, opposite for neurons 2j and 2j + 1; + for all 2j in the first column."""
    signs = np.ones((-(-width // 2), outputs))
    signs[:, 1:] -= 2 * np.random.default_rng(seed).integers(0, 2, (len(signs), outputs - 1))
    return torch.from_numpy(np.stack([signs, -signs], axis=1).reshape(-1, outputs)[:width])


def _check_sizes(in_features: int, sizes: tuple[int, ...], out_features: int) -> None:
    for name, value in (("in_features", in_features), ("out_features", out_features)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not sizes or min(sizes) < 2:
        raise ValueError(f"hidden_layer_sizes must be at least one width, each of 2 neurons or more, got {sizes}")


def _check_memory(
    in_features: int, sizes: tuple[int, ...], out_features: int, input_share: float, itemsize: int
) -> None:
    """Refuse weights that do not fit, with the packed copy of those between hidden layers."""
    between = sum(a * b for a, b in zip(sizes[1:], sizes[:-1], strict=True))
    fed = sum(sizes) if input_share > 0 else sizes[0]
    needed = itemsize * (2 * between + fed * in_features + sum(sizes) * out_features)
    free = available_memory()
    if needed > free:
        fits = int(sizes[-1] * math.sqrt(free / needed))
        raise MemoryError(
            f"layers of {sizes} neurons need about {needed / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; widths of "
            f"about {fits:,} fit"
        )


def _check_settings(input_share: float, readouts: str, readout_scale: float, seed: int, dtype: torch.dtype) -> None:
    if not 0 <= input_share < 1:
        raise ValueError(f"input_share must lie in [0, 1), got {input_share!r}")
    if readouts not in ("all", "last"):
        raise ValueError(f'readouts must be "all" or "last", got {readouts!r}')
    if not 0 < readout_scale < math.inf:
        raise ValueError(f"readout_scale must be a positive number, got {readout_scale!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


def _thresholds(threshold: float | str | Sequence[float], sizes: tuple[int, ...]) -> tuple[float, ...]:
    """Return b of every layer, checked."""
    if isinstance(threshold, str):
        if threshold != "auto":
            raise ValueError(f'threshold must be a number, one number a layer, or "auto", got {threshold!r}')
        return tuple(automatic_threshold(size) for size in sizes)
    found = [float(threshold)] * len(sizes) if isinstance(threshold, int | float) else list(map(float, threshold))
    if len(found) != len(sizes):
        raise ValueError(f"threshold must have one number for each of {len(sizes)} layers, got {len(found)}")
    if not all(abs(b) <= _LARGEST_THRESHOLD for b in found):  # NaN fails too
        raise ValueError(f"threshold must lie between -{_LARGEST_THRESHOLD:g} and {_LARGEST_THRESHOLD:g}, got {found}")
    return tuple(found)
