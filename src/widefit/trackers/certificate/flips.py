"""Flips of a chunk, and their effect beyond the linear model."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

from widefit.trackers.fire_pattern import word_dtype


@dataclass(frozen=True)
class ChunkFlips:
    """Flips of a chunk, ordered by slot and then by sample.

    Attributes
    ----------
    slots, samples, fires
        The pairs, and whether they fire afterwards.
    """

    slots: Integer[np.ndarray, " q"]
    samples: Integer[np.ndarray, " q"]
    fires: Bool[np.ndarray, " q"]

    def __len__(self) -> int:
        return self.slots.size

    def touched(self) -> Integer[np.ndarray, " s"]:
        """Return their slots, each once."""
        first = np.ones(self.slots.size, np.bool_)
        first[1:] = self.slots[1:] != self.slots[:-1]
        return self.slots[first]


@dataclass(frozen=True)
class EvaluatedFlips:
    """Flips in the order in which they were found.

    Attributes
    ----------
    slots, samples, fires
        The pairs, and whether they fire afterwards.
    z, y
        Pre-activation after the update, and its difference from the start.
    """

    slots: Integer[np.ndarray, " q"]
    samples: Integer[np.ndarray, " q"]
    fires: Bool[np.ndarray, " q"]
    z: Float[np.ndarray, " q"]
    y: Float[np.ndarray, " q"]

    def merged(self, other: "EvaluatedFlips") -> "EvaluatedFlips":
        """Return both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return EvaluatedFlips(*(np.concatenate(pair) for pair in pairs))

    def pairs(self, size: int, samples: int) -> ChunkFlips:
        """Return the pairs in order, and in as few bytes as a chunk of `size` neurons needs."""
        # Two ordered lists, one behind the other, take a stable sort no more than a merge.
        order = np.argsort((self.slots.astype(np.int64) << 32) + self.samples, kind="stable")
        slots = self.slots[order].astype(slot_dtype(size))
        where = self.samples[order].astype(word_dtype(samples))
        return ChunkFlips(slots, where, self.fires[order])

    def effect(
        self, coefficients: Float[np.ndarray, " slots"], threshold: float, samples: int
    ) -> Float[np.ndarray, "2 n"]:
        """Return their effect on f and J (W − W₀), beyond the linear model."""
        out = np.zeros((2, samples))
        if self.slots.size == 0:
            return out
        signed = np.where(self.fires, 1.0, -1.0) * coefficients[self.slots]
        np.add.at(out[0], self.samples, signed * (self.z - threshold))
        np.add.at(out[1], self.samples, signed * self.y)
        return out


def slot_dtype(neurons: int) -> type[np.integer]:
    """Return the shortest dtype of the slots of a chunk of so many neurons."""
    return np.uint16 if neurons <= 1 << 16 else np.int32
