"""Layers before and after a network: periodic inputs, Fourier features, values that hold by construction or are kept.

All take points, shape (…, d), or a jet in their place, and give features or values, shape (…, k).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Periodic(nn.Module):
    """Inputs of which some are replaced by cosines and sines: every function of them is periodic, with all derivatives.

    Parameters
    ----------
    in_features
        d.
    periods
        {coordinate: period}.
    harmonics
        Cosines and sines of 1, 2, … times the angle.

    Attributes
    ----------
    out_features
        Two a periodic coordinate and harmonic, and the other coordinates as they are.

    Raises
    ------
    ValueError
        A coordinate out of range, a period that is not positive, harmonics below 1.
    """

    def __init__(self, in_features: int, periods: Mapping[int, float], harmonics: int = 1):
        super().__init__()
        if not periods or any(not 0 <= axis < in_features for axis in periods):
            raise ValueError(f"periods must name coordinates 0 … {in_features - 1}, got {sorted(periods)}")
        if any(not 0 < period < math.inf for period in periods.values()):
            raise ValueError(f"periods must be positive and finite, got {dict(periods)}")
        if harmonics < 1:
            raise ValueError(f"harmonics must be at least 1, got {harmonics}")
        self.periods = dict(periods)
        self.harmonics = harmonics
        angles = self._angles(in_features)
        kept = [axis for axis in range(in_features) if axis not in periods]
        # In float64 whatever the model is.
        self.register_buffer("angles", angles)
        self.register_buffer("kept", torch.eye(in_features, dtype=torch.float64)[kept])
        self.out_features = 2 * len(angles) + len(kept)

    def _angles(self, in_features: int) -> Float[Tensor, "a d"]:
        found = torch.zeros(len(self.periods) * self.harmonics, in_features, dtype=torch.float64)
        for row, (axis, k) in enumerate(product(self.periods, range(1, self.harmonics + 1))):
            found[row, axis] = 2 * math.pi * k / self.periods[axis]
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Periodic":
        """Move the module, but keep the angles in float64: a period once rounded would stay so."""
        super()._apply(fn, recurse)
        given = self.get_buffer("angles")
        self.angles = self._angles(given.shape[1]).to(given.device)
        return self

    def forward(self, x: Any) -> Any:
        angles = functional.linear(x, self.get_buffer("angles").to(x.dtype))
        pieces = [torch.cos(angles), torch.sin(angles)]
        if len(self.get_buffer("kept")):
            pieces.append(functional.linear(x, self.get_buffer("kept").to(x.dtype)))
        return torch.cat(pieces, dim=-1)


class Fourier(nn.Module):
    """Random Fourier features, cos and sin of W x (Tancik et al., arXiv 2006.10739), whose frequencies W are learnt.

    Parameters
    ----------
    in_features
        d.
    frequencies
        Number of frequencies; twice as many outputs.
    scale
        Standard deviation of the entries of W at the start: about the largest wave number of the solution, for all
        coordinates or for each.
    learnt
        Whether W trains.
    seed
        Draws W.

    Raises
    ------
    ValueError
        No frequency, a scale that is not positive, not one number a coordinate.
    """

    def __init__(
        self,
        in_features: int,
        frequencies: int,
        scale: float | Sequence[float] = 1.0,
        learnt: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        scales = [scale] * in_features if isinstance(scale, int | float) else list(scale)
        if len(scales) != in_features:
            raise ValueError(f"scale must be one number, or one for each of {in_features} coordinates, got {scales}")
        if frequencies < 1 or not all(0 < one < math.inf for one in scales):
            raise ValueError(f"frequencies and scale must be positive, got {frequencies} and {scale}")
        self.waves = nn.Linear(in_features, frequencies, bias=False)
        drawn = torch.randn(frequencies, in_features, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.waves.weight.copy_(torch.tensor(scales) * drawn)
        self.waves.requires_grad_(learnt)
        self.out_features = 2 * frequencies

    def forward(self, x: Any) -> Any:
        angles = self.waves(x)
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class Constrained(nn.Module):
    """lift(x) + distance(x) · network(x): values that hold exactly where the distance is 0, without any residual.

    Parameters
    ----------
    network
        Any module.
    distance
        From x, shape (…, d), to (…, 1), or (…, k) with one for each output: 0 where values are given and nowhere else,
        smooth; 1 for an output of which none is given.
    lift
        From x to the given values there, anything smooth elsewhere, shape (…, k) or (…, 1); None: 0.
    """

    def __init__(
        self,
        network: nn.Module,
        distance: Callable[[Tensor], Tensor],
        lift: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.network = network
        self.distance = distance
        self.lift = lift

    def forward(self, x: Any) -> Any:
        found = self.distance(x) * self.network(x)
        return found if self.lift is None else found + self.lift(x)


class Held(nn.Module):
    """A copy of a network that no longer trains, with some coordinates held: where the last slab of time has ended.

    `Constrained(inner, lambda p: p[..., 1:] - time, Held(last, {1: time}))` begins there, exactly.

    Parameters
    ----------
    network
        Any module.
    values
        {coordinate: value}.

    Raises
    ------
    ValueError
        No value, a negative coordinate, a value that is not finite.
    """

    def __init__(self, network: nn.Module, values: Mapping[int, float]):
        super().__init__()
        if not values or any(axis < 0 for axis in values):
            raise ValueError(f"values must name coordinates 0, 1, …, got {sorted(values)}")
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"values must be finite, got {dict(values)}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.values = {axis: float(value) for axis, value in values.items()}

    def forward(self, x: Any) -> Any:
        columns = [x[..., axis : axis + 1] for axis in range(x.shape[-1])]
        held = [
            0 * column + self.values[axis] if axis in self.values else column for axis, column in enumerate(columns)
        ]
        return self.network(torch.cat(held, dim=-1))
