"""Coefficients of neurons in a byte each, where a few of them are distinct."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer


@dataclass(frozen=True)
class Coefficients:
    """Numbers of which at most 256 are distinct, or any numbers.

    Attributes
    ----------
    values
        The distinct numbers; or all of them, where more are distinct.
    code
        Index of each slot's number; of size 0 where `values` has a number for each slot.
    """

    values: Float[np.ndarray, " distinct"]
    code: Integer[np.ndarray, " slots_or_none"]

    @classmethod
    def of(cls, numbers: Float[np.ndarray, " slots"]) -> "Coefficients":
        values, code = np.unique(numbers, return_inverse=True)
        if values.size > 256:
            return cls(numbers, np.empty(0, np.uint8))
        return cls(values, code.astype(np.uint8))

    def numbers(self) -> Float[np.ndarray, " slots"]:
        return self.values[self.code] if self.code.size else self.values

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.code.nbytes
