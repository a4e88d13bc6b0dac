"""Products of a pass: in the dtype of the network or, where that tells enough, in integers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int16

from widefit.kernels.certificate.passes import LEAST, LENGTH
from widefit.kernels.products import BLOCK, INTEGERS, panels_of, together_of

# Features up to which rounding does not make rows so much longer that products could overflow.
_MOST_FEATURES = 1 << 16
# Products of a pass from which on integers gain more time than the compilation of their kernel takes, in some fits.
_WORTH_INTEGERS = 1e10
# Least radius of certificates for integer products, in units of their largest error.
_FINE = 16.0


@dataclass(frozen=True)
class Operand:
    """X as the kernels multiply by it.

    Attributes
    ----------
    panels
        X as `widefit.kernels.products` reads it, in the dtype of the network or rounded to int16.
    features
        d.
    rounding
        Rounding of int16: the unit, the largest length of a rounded sample, and the largest of what one lacks, rounded
        up.
    """

    panels: Float[np.ndarray, "panels d width"] | Int16[np.ndarray, "panels d_half width"]
    features: int
    rounding: Float[np.ndarray, " 3"]

    @classmethod
    def of(cls, inputs: Float[np.ndarray, "n d"]) -> "Operand":
        """Return X in its own dtype."""
        return cls(panels_of(inputs), inputs.shape[1], np.zeros(3))

    @classmethod
    def rounded(cls, inputs: Float[np.ndarray, "n d"]) -> "Operand":
        """Return X in integers."""
        exact = inputs.astype(np.float64)
        step = max(float(np.linalg.norm(exact, axis=1).max()) / LENGTH, LEAST)
        whole = np.rint(exact / step)
        longest = np.linalg.norm(step * whole, axis=1).max()
        lost = np.linalg.norm(exact - step * whole, axis=1).max()
        rounding = np.array([step, longest * (1 + 1e-9), lost * (1 + 1e-9)])
        return cls(panels_of(whole.astype(np.int16)), inputs.shape[1], rounding)

    def held(self) -> Float[np.ndarray, "rows d"] | Int16[np.ndarray, "rows d_even"]:
        """Allocate room for a block of weights in the dtype of the panels."""
        together = together_of(self.panels.dtype)
        return np.zeros((BLOCK, -(-self.features // together) * together), self.panels.dtype)


@dataclass(frozen=True)
class Products:
    """Choice of products for a pass.

    Attributes
    ----------
    exact, rounded
        X in the dtype of the network, and in integers; None where the processor has no instruction for those.
    error
        Largest error of integer products, for a weight of ordinary length.
    """

    exact: Operand
    rounded: Operand | None
    error: float

    @classmethod
    def of(cls, inputs: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "rows d"], width: int) -> "Products":
        """Prepare products of samples with so many neurons, whose weights are like the given ones."""
        exact = Operand.of(inputs)
        if not INTEGERS or inputs.shape[1] > _MOST_FEATURES or width * inputs.size < _WORTH_INTEGERS:
            return cls(exact, None, 0.0)
        rounded = Operand.rounded(inputs)
        _, longest, lost = rounded.rounding
        length = float(np.median(np.linalg.norm(weights.astype(np.float64), axis=1)))
        return cls(exact, rounded, length * (lost + longest * np.sqrt(inputs.shape[1]) / 2 / LENGTH))

    def within(self, radius: float | None) -> Operand:
        """Choose for a pass that issues certificates within a radius of the threshold, or none."""
        fine = radius is None or radius > _FINE * self.error
        return self.rounded if self.rounded is not None and fine else self.exact
