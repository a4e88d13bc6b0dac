"""Activation φ(z) = max(z − b, 0), and the variant of arXiv 2208.04508, max(z, b)."""

import math

import torch
from torch import Tensor, nn


def firing_probability(threshold: float, norm: float = 1.0) -> float:
    """Return P(⟨w, x⟩ > b) for w ~ N(0, I) and ‖x‖ = norm: the part of the neurons that fire."""
    if norm == 0:
        return float(threshold < 0)
    return 0.5 * math.erfc(threshold / (norm * math.sqrt(2)))


class ShiftedReLU(nn.Module):
    """Activation φ(z) = max(z − b, 0), or max(z, b) with ``convention="floor"``; b = 0 is plain ReLU under both.

    Parameters
    ----------
    threshold
        b. A neuron fires when z > b.
    convention
        "zero": silent neurons give 0. "floor": silent neurons give b, as arXiv 2208.04508 writes it; the same
        derivative.
    """

    def __init__(self, threshold: float = 0.0, convention: str = "zero"):
        super().__init__()
        if convention not in ("zero", "floor"):
            raise ValueError(f'convention must be "zero" or "floor", got {convention!r}')
        self.threshold = float(threshold)
        self.convention = convention

    @property
    def silent(self) -> float:
        """Value of a neuron that does not fire."""
        return self.threshold if self.convention == "floor" else 0.0

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z - self.threshold) + self.silent

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:.4g}, convention={self.convention!r}"
