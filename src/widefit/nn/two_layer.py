"""The two-layer network in the parametrization of the theory: f(x) = (1/√m) Σ_r a_r φ(⟨w_r, x⟩)."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.memory import available_memory
from widefit.nn.initial import gaussian_rows
from widefit.nn.shifted_relu import ShiftedReLU

# Pre-activations of one block of neurons in `forward`, in numbers: what a second-level cache holds (four times faster
# than blocks sixteen times larger).
_FORWARD_BLOCK = 1 << 18


def automatic_threshold(width: int) -> float:
    """b = √(0.4 ln m): a neuron fires on a unit vector with probability below m^(−1/5) (arXiv 2208.04508)."""
    return math.sqrt(0.4 * math.log(max(width, 1)))


class TwoLayer(nn.Module):
    """f(x) = (1/√m) Σ_r a_r φ(⟨w_r, x⟩) with w_r ~ N(0, I) and φ a shifted ReLU.

    With k outputs, each has a contiguous group of m / k neurons of its own, a_rc = ±√k there and 0 elsewhere: k
    networks of width m / k side by side, so that J Jᵀ is block diagonal.

    Parameters
    ----------
    in_features
        d. Inputs are taken as they are; the theory has them on the unit sphere.
    width
        m ≥ 2 out_features.
    out_features
        k.
    threshold
        b, or "auto": √(0.4 ln m). 0 is plain ReLU.
    convention
        "zero" for max(z − b, 0), "floor" for max(z, b).
    readout_scale
        Size of the entries of a before the factor √k. The larger, the less the first layer has to move to fit the same
        data and the fewer neurons flip (lazy training, Chizat, Oyallon and Bach 2019).
    paired
        Neurons 2j and 2j + 1 start with equal weights and opposite signs: f = 0 before training, whatever the scale.
    seed
        Fixes `weight`; the same numbers in every dtype and whatever the block they are drawn in.
    dtype
        torch.float32 or torch.float64.

    Attributes
    ----------
    weight
        W, shape (m, d).
    readout
        a, shape (m, k); signs alternate, so that the silent network has mean zero. Not trained by `widefit.train`.
    threshold
        b.

    Raises
    ------
    ValueError
        A size below 1, a width below 2 k, a threshold that is neither finite nor "auto", another dtype.
    MemoryError
        The weights cannot fit; said before they are drawn.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int = 1,
        *,
        threshold: float | str = "auto",
        convention: str = "zero",
        readout_scale: float = 1.0,
        paired: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        for name, value, least in (("in_features", in_features, 1), ("out_features", out_features, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if width < 2 * out_features:
            raise ValueError(f"width must be at least 2 neurons an output, {2 * out_features} here, got {width}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2**64 - 1, got {seed}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if not 0 < readout_scale < math.inf:
            raise ValueError(f"readout_scale must be a positive number, got {readout_scale!r}")
        if threshold == "auto":
            threshold = automatic_threshold(width)
        if isinstance(threshold, str) or not math.isfinite(threshold):
            raise ValueError(f'threshold must be a finite number or "auto", got {threshold!r}')
        needed = width * (2 * in_features + 3 * out_features) * torch.finfo(dtype).bits // 8
        if needed > available_memory():
            fits = 2 ** int(math.log2(max(1, width * available_memory() / needed)))
            raise MemoryError(
                f"a network of width {width:,} needs about {needed / 1e9:.3g} GB and "
                f"{available_memory() / 1e9:.3g} GB are free; a width of {fits:,} fits"
            )
        self.in_features, self.width, self.out_features = in_features, width, out_features
        self.seed = seed
        self.activation = ShiftedReLU(threshold, convention)
        if paired:
            rows = np.repeat(gaussian_rows(seed, 0, -(-width // 2), in_features), 2, axis=0)[:width]
        else:
            rows = gaussian_rows(seed, 0, width, in_features)
        self.weight = nn.Parameter(torch.from_numpy(rows).to(dtype))
        readout = torch.zeros(width, out_features, dtype=dtype)
        for output in range(out_features):
            first, last = self.neurons_of(output)
            signs = 1 - 2 * (torch.arange(first, last) % 2)
            readout[first:last, output] = signs * readout_scale * math.sqrt(out_features)
        self.readout = nn.Parameter(readout, requires_grad=False)

    @classmethod
    def from_tensors(
        cls, weight: Float[Tensor, "m d"], readout: Float[Tensor, "m k"], *, threshold: float, convention: str = "zero"
    ) -> "TwoLayer":
        """The network with given tensors, which it takes over; nothing is drawn."""
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.width, network.in_features = weight.shape
        network.out_features, network.seed = readout.shape[1], 0
        network.activation = ShiftedReLU(threshold, convention)
        network.weight = nn.Parameter(weight)
        network.readout = nn.Parameter(readout, requires_grad=False)
        return network

    @property
    def threshold(self) -> float:
        return self.activation.threshold

    def neurons_of(self, output: int) -> tuple[int, int]:
        """Half-open range of the neurons that feed an output; it begins at an even neuron."""

        def edge(group: int) -> int:
            return self.width if group == self.out_features else 2 * (group * self.width // (2 * self.out_features))

        return edge(output), edge(output + 1)

    def coefficients(self) -> Float[np.ndarray, " m"]:
        """a_r / √m of every neuron, towards the one output it feeds.

        Raises
        ------
        ValueError
            A neuron feeds an output outside its group: J Jᵀ would couple the outputs.
        """
        readout = self.readout.detach().cpu().double().numpy()
        out = np.empty(self.width)
        nonzero = np.count_nonzero(readout, axis=1)
        for output in range(self.out_features):
            first, last = self.neurons_of(output)
            out[first:last] = readout[first:last, output]
            if np.any(nonzero[first:last] > (out[first:last] != 0)):
                raise ValueError(
                    f"readout must let neurons {first} to {last - 1} feed output {output} alone; "
                    "build a TwoLayer without changing which entries of readout are zero"
                )
        return out / math.sqrt(self.width)

    def silent_outputs(self) -> Float[np.ndarray, " k"]:
        """What the network gives where nothing fires: 0, or b Σ_r a_r / √m with the "floor" convention."""
        return self.activation.silent * self.readout.detach().cpu().double().sum(0).numpy() / math.sqrt(self.width)

    def sample(self, width: int) -> "TwoLayer":
        """A narrower network with the first neurons of every output: f and J Jᵀ have the same distribution.

        Parameters
        ----------
        width
            Neurons to take, at least 2 an output and at most all.
        """
        edges = [self.neurons_of(output) for output in range(self.out_features)]
        smaller = [2 * (group * width // (2 * self.out_features)) for group in range(self.out_features)] + [width]
        take = torch.cat(
            [torch.arange(first, first + smaller[group + 1] - smaller[group]) for group, (first, _) in enumerate(edges)]
        )
        return TwoLayer.from_tensors(
            self.weight.detach()[take],
            self.readout.detach()[take],
            threshold=self.threshold,
            convention=self.activation.convention,
        )

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """f(x), computed in the dtype of x."""
        rows = max(64, _FORWARD_BLOCK // max(1, x.shape[0]))
        outputs = x.new_zeros(x.shape[0], self.out_features)
        for first in range(0, self.width, rows):
            block = slice(first, first + rows)
            z = x @ self.weight[block].to(x.dtype).T
            outputs = outputs + self.activation(z) @ self.readout[block].to(x.dtype)
        return outputs / math.sqrt(self.width)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, width={self.width}, out_features={self.out_features}, seed={self.seed}"
