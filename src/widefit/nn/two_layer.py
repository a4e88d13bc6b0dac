"""Two-layer network in the parametrization of the theory: f(x) = (1/√m) Σ_r a_r φ(⟨w_r, x⟩)."""

import copy
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.kernels.memory import available_memory
from widefit.kernels.threads import ordered_map
from widefit.linalg.gaussian_rows import NEURONS_PER_STREAM, Initial, group_edge, readout_entry
from widefit.nn.blocks import aligned_empty, numpy_dtype, span_sum, spans
from widefit.nn.regenerated import Regenerated
from widefit.nn.shifted_relu import ShiftedReLU
from widefit.nn.weight_change import WeightChange


def automatic_threshold(width: int) -> float:
    """Return b = √(0.4 ln m): a neuron fires on a unit vector with probability below m^(−1/5) (arXiv 2208.04508)."""
    return math.sqrt(0.4 * math.log(max(width, 1)))


class TwoLayer(nn.Module):
    """Network f(x) = (1/√m) Σ_r a_r φ(⟨w_r, x⟩) with w_r ~ N(0, I) and φ a shifted ReLU.

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
        Size of the entries of a before the factor √k. The larger it is, the less the first layer has to move to fit the
        same data, and the fewer neurons flip (lazy training, Chizat, Oyallon and Bach 2019).
    paired
        Neurons 2j and 2j + 1 start with equal weights and opposite signs: f = 0 before training, whatever the scale.
    seed
        Fixes `weight`; the same numbers in every dtype and whatever the block they are drawn in.
    dtype
        torch.float32 or torch.float64.
    store
        "array" holds `weight` and `readout`. "regenerate" holds neither: rows are drawn from the seed whenever they are
        needed, to the same bits, so that memory does not grow with m. Nothing but a tracker can train such a network;
        `materialize` turns it into one with arrays.

    Attributes
    ----------
    weight
        W, shape (m, d); with store="array" alone.
    readout
        a, shape (m, k); signs alternate, so that the silent network has mean zero. Not trained by `widefit.train`.
        With store="array" alone.
    threshold
        b.
    store
        "array" or "regenerate".
    delta
        W − W₀ of a regenerated network that was trained, None before and with store="array".

    Raises
    ------
    ValueError
        A size below 1, a width below 2 k, a threshold that is neither finite nor "auto", another dtype or store.
    MemoryError
        The weights cannot fit; said before they are drawn.
    """

    in_features: int
    width: int
    out_features: int
    store: str
    activation: ShiftedReLU
    regenerated: Regenerated
    weight: nn.Parameter
    readout: nn.Parameter

    @torch.inference_mode(False)
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
        store: str = "array",
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
        if abs(threshold) > torch.finfo(dtype).max:
            raise ValueError(f"threshold must be finite in {dtype}, got {threshold!r}")
        if store not in ("array", "regenerate"):
            raise ValueError(f'store must be "array" or "regenerate", got {store!r}')
        entry = readout_entry(readout_scale, out_features, numpy_dtype(dtype))
        initial = Initial(seed, in_features, width, out_features, paired, entry)
        self.in_features, self.width, self.out_features = in_features, width, out_features
        self.store = store
        self.activation = ShiftedReLU(threshold, convention)
        if store == "regenerate":
            self.regenerated = Regenerated(initial, dtype)
        else:
            self._drawn: Initial | None = initial
            self._fill(Regenerated(initial, dtype))

    @classmethod
    @torch.inference_mode(False)
    def from_tensors(
        cls,
        weight: Float[Tensor, "m d"],
        readout: Float[Tensor, "m k"],
        *,
        threshold: float,
        convention: str = "zero",
        initial: Initial | None = None,
    ) -> "TwoLayer":
        """Return the network with given tensors, which it takes over; nothing is drawn.

        Where the weights were drawn once, `initial` says from which seed.
        """
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.width, network.in_features = weight.shape
        network.out_features, network.store = readout.shape[1], "array"
        network._drawn = initial
        network.activation = ShiftedReLU(threshold, convention)
        network.weight = nn.Parameter(weight)
        network.readout = nn.Parameter(readout, requires_grad=False)
        return network

    @property
    def threshold(self) -> float:
        return self.activation.threshold

    @property
    def initial(self) -> Initial | None:
        """Seed and sizes from which W₀ and a were drawn; None for a network made from given tensors."""
        return self.regenerated.initial if self.store == "regenerate" else self._drawn

    @property
    def seed(self) -> int:
        """Seed of the initial weights; 0 for a network made from given tensors."""
        return 0 if self.initial is None else self.initial.seed

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.regenerated.like.dtype if self.store == "regenerate" else self.weight.dtype

    @property
    def delta(self) -> WeightChange | None:
        """W − W₀ of a regenerated network that was trained."""
        return self.regenerated.delta if self.store == "regenerate" else None

    @delta.setter
    def delta(self, delta: WeightChange | None) -> None:
        if self.store != "regenerate":
            raise ValueError('delta belongs to networks with store="regenerate"; this one has its weights in `weight`')
        self.regenerated.delta = delta

    @property
    def norm(self) -> float:
        """√m, by which sums over neurons are divided; m of the whole network, where this is a part of one."""
        return math.sqrt(self.width)

    def neurons_of(self, output: int) -> tuple[int, int]:
        """Return the half-open range of the neurons that feed an output; it begins at an even neuron."""
        return group_edge(self.width, self.out_features, output), group_edge(self.width, self.out_features, output + 1)

    def rows(self, first: int, last: int, out: np.ndarray | None = None) -> Float[np.ndarray, "rows d"]:
        """Return the current weights of neurons `first` to `last`, in the dtype of the network.

        Safe to call from several threads. A regenerated network draws whole streams of 1024 neurons (2048 when
        `paired`) from their beginning: blocks that begin and end at multiples of them cost the least.

        Parameters
        ----------
        first, last
            Half-open range of neurons.
        out
            Array for them, shape (last − first, d) and the dtype of the network; None: a new array, or a view of
            `weight` with store="array".

        Raises
        ------
        ValueError
            A range outside the network, or `out` of another shape or dtype.
        """
        self._check_range(first, last)
        if self.store == "array":
            rows = self.weight.detach()[first:last].cpu().numpy()
            if out is None:
                return rows
            self._checked(out, first, last)[...] = rows
            return out
        out = self._checked(out, first, last)
        self.regenerated.write_rows(first, last, out)
        return out

    def initial_rows(self, first: int, last: int, out: np.ndarray | None = None) -> Float[np.ndarray, "rows d"]:
        """Return the weights of neurons `first` to `last` as they were drawn, W₀; see `rows`.

        Raises
        ------
        ValueError
            See `rows`; or the network was made from given tensors.
        """
        self._check_range(first, last)
        if self.initial is None:
            raise ValueError("initial_rows needs a network drawn from a seed; this one was made from given tensors")
        out = self._checked(out, first, last)
        self.initial.write_rows(first, last, out)
        return out

    def readout_rows(self, first: int, last: int) -> Float[np.ndarray, "rows k"]:
        """Return a of neurons `first` to `last`, in the dtype of the network; see `rows`."""
        self._check_range(first, last)
        if self.store == "array":
            return self.readout.detach()[first:last].cpu().numpy()
        return self.regenerated.readout_rows(first, last).numpy()

    def coefficients(self, first: int = 0, last: int | None = None) -> Float[np.ndarray, " rows"]:
        """Return a_r / √m of neurons `first` to `last` (None: all others), float64, for the one output that each feeds.

        Raises
        ------
        ValueError
            A neuron feeds an output outside its group: J Jᵀ would couple the outputs.
        """
        last = self.width if last is None else last
        self._check_range(first, last)
        readout = self.readout_rows(first, last).astype(np.float64)
        out = np.empty(last - first)
        nonzero = np.count_nonzero(readout, axis=1)
        for output in range(self.out_features):
            edges = self.neurons_of(output)
            low, high = max(first, edges[0]) - first, min(last, edges[1]) - first
            if low >= high:
                continue
            out[low:high] = readout[low:high, output]
            if np.any(nonzero[low:high] > (out[low:high] != 0)):
                raise ValueError(
                    f"readout must let neurons {edges[0]} to {edges[1] - 1} feed output {output} alone; "
                    "build a TwoLayer without changing which entries of readout are zero"
                )
        return out / self.norm

    def readout_identity(self) -> bytes:
        """Return bytes that are equal for equal readouts: those of a, or of the seed and sizes it is drawn from."""
        if self.store == "regenerate":
            return repr(self.regenerated.initial).encode()
        return self.readout.detach().cpu().numpy().tobytes()

    def silent_outputs(self) -> Float[np.ndarray, " k"]:
        """Return f where nothing fires: 0, or b Σ_r a_r / √m with the "floor" convention."""
        if self.activation.silent == 0:
            return np.zeros(self.out_features)
        if self.store == "regenerate":
            # Signs alternate from an even neuron on: the last neuron of an odd group is all that is left of the sum.
            edges = [self.neurons_of(output) for output in range(self.out_features)]
            last = float(self.readout_rows(0, 1)[0, 0])
            total = np.array([last * ((high - low) % 2) for low, high in edges])
        else:
            columns = self.readout.detach().cpu().double().numpy().T
            total = np.array([math.fsum(column) for column in columns])
        return self.activation.silent * total / self.norm

    def summed(self, part: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return the sum over all neurons, from that over those that are here: all of them, but for a shard."""
        return part

    def materialize(self) -> "TwoLayer":
        """Return a copy of the network that holds its current weights, with store="array".

        Raises
        ------
        MemoryError
            The weights cannot fit.
        """
        if self.store == "array":
            return copy.deepcopy(self)
        network = TwoLayer.__new__(TwoLayer)
        nn.Module.__init__(network)
        network.in_features, network.width, network.out_features = self.in_features, self.width, self.out_features
        network.store, network._drawn = "array", self.initial
        network.activation = copy.deepcopy(self.activation)
        network._fill(self.regenerated)
        return network.train(self.training)

    def holding(self, weight: Float[Tensor, "m d"]) -> "TwoLayer":
        """Return this network with given weights, which it takes over, and store="array"."""
        readout = torch.from_numpy(self.readout_rows(0, self.width).copy())
        convention = self.activation.convention
        network = TwoLayer.from_tensors(
            weight, readout, threshold=self.threshold, convention=convention, initial=self.initial
        )
        return network.train(self.training)

    def sample(self, width: int) -> "TwoLayer":
        """Return a narrower network with the first neurons of every output: f and J Jᵀ have the same distribution.

        Parameters
        ----------
        width
            Neurons to take, at least 2 an output and at most all.
        """
        edges = [self.neurons_of(output) for output in range(self.out_features)]
        sizes = np.diff([group_edge(width, self.out_features, group) for group in range(self.out_features + 1)])
        taken = [(first, first + int(size)) for (first, _), size in zip(edges, sizes, strict=True)]
        weight = np.concatenate([self.rows(first, last) for first, last in taken])
        readout = np.zeros((width, self.out_features), weight.dtype)
        for output, (first, last) in enumerate(taken):
            own = slice(group_edge(width, self.out_features, output), group_edge(width, self.out_features, output + 1))
            readout[own, output] = self.coefficients(first, last) * self.norm
        return TwoLayer.from_tensors(
            torch.from_numpy(weight),
            torch.from_numpy(readout),
            threshold=self.threshold,
            convention=self.activation.convention,
        )

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return f(x), computed in the dtype of x."""
        if self.store == "regenerate":
            return self.regenerated.weighted_sum(x, self.activation) / self.norm
        outputs = x.new_zeros(x.shape[0], self.out_features)
        for first, last in spans(self.width, *x.shape):
            outputs = outputs + span_sum(x, self.weight[first:last], self.readout[first:last], self.activation)
        return outputs / self.norm

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, width={self.width}, out_features={self.out_features}"
        return f"{sizes}, seed={self.seed}, store={self.store!r}"

    def _fill(self, source: Regenerated) -> None:
        """Take the weights of a regenerated network into arrays."""
        like = source.like
        needed = self.width * (2 * self.in_features + 3 * self.out_features) * torch.finfo(like.dtype).bits // 8
        if needed > available_memory():
            fits = 2 ** int(math.log2(max(1, self.width * available_memory() / needed)))
            raise MemoryError(
                f"a network of width {self.width:,} needs about {needed / 1e9:.3g} GB and "
                f"{available_memory() / 1e9:.3g} GB are free; a width of {fits:,} fits"
            )
        weight = aligned_empty(self.width, self.in_features, like.dtype)
        readout = aligned_empty(self.width, self.out_features, like.dtype)

        def fill(first: int) -> None:
            last = min(first + 2 * NEURONS_PER_STREAM, self.width)
            source.write_rows(first, last, weight[first:last].numpy())
            readout[first:last] = source.readout_rows(first, last)

        for _ in ordered_map(fill, range(0, self.width, 2 * NEURONS_PER_STREAM), torch.get_num_threads()):
            pass
        self.weight = nn.Parameter(weight.to(like.device))
        self.readout = nn.Parameter(readout.to(like.device), requires_grad=False)

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last <= self.width:
            raise ValueError(f"neurons must be a range within 0 to {self.width}, got {first} to {last}")

    def _checked(self, out: np.ndarray | None, first: int, last: int) -> np.ndarray:
        shape, dtype = (last - first, self.in_features), numpy_dtype(self.dtype)
        if out is None:
            return np.empty(shape, dtype)
        if out.shape != shape or out.dtype != dtype:
            raise ValueError(f"out must have shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}")
        return out

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "readout") and self.__dict__.get("store") == "regenerate":
            raise AttributeError(
                f'this network has no {name}: store="regenerate" draws weights when they are needed; '
                f"use rows() and coefficients(), or materialize().{name}"
            )
        return super().__getattr__(name)
