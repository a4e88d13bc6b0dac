"""Pairs near the threshold, and the fire rows of their neurons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels.verlet import inner_steps as kernels
from widefit.trackers.fire_pattern import Chunk
from widefit.trackers.verlet.near_lists import Lists


@dataclass(frozen=True)
class NearPairs:
    """Pairs of the neurons of an output that can come to the threshold, in the order of the neurons.

    Attributes
    ----------
    neurons, samples
        The pairs.
    margins
        ⟨w, x⟩ − b of each.
    fires
        True for pairs that fire.
    awake
        The neurons that have such pairs.
    first, length, words
        Samples that each of these fires on: words[first[s]:first[s] + length[s]], with room for all of its pairs.
    """

    neurons: Int[np.ndarray, " pairs"]
    samples: Int[np.ndarray, " pairs"]
    margins: Float[np.ndarray, " pairs"]
    fires: Bool[np.ndarray, " pairs"]
    awake: Int[np.ndarray, " slots"]
    length: Int[np.ndarray, " slots"]
    first: Int[np.ndarray, " slots"]
    words: np.ndarray

    @classmethod
    def of(
        cls, block: Chunk, lists: Lists, margins: Float[np.ndarray, " listed"], near: Bool[np.ndarray, " listed"]
    ) -> "NearPairs":
        """Return those of a block, some of the listed pairs."""
        positions = np.flatnonzero(near)
        rows = np.searchsorted(lists.start, positions, side="right") - 1
        awake, count = np.unique(rows, return_counts=True)
        room = np.diff(np.append(0, np.cumsum(lists.fires))[lists.start])[awake] + count
        first = np.cumsum(room) - room
        length = np.empty(awake.size, np.int64)
        words = np.zeros(int(room.sum()), lists.samples.dtype)
        kernels.rows_of(lists.entries, awake, first, length, words)
        return cls(
            neurons=rows + block.first,
            samples=lists.samples[positions].astype(np.int64),
            margins=margins[positions],
            fires=lists.fires[positions],
            awake=awake + block.first,
            length=length,
            first=first,
            words=words,
        )

    @classmethod
    def joined(cls, parts: Sequence["NearPairs"]) -> "NearPairs":
        """Return those of consecutive blocks together."""
        shift = np.cumsum([0, *(part.words.size for part in parts[:-1])])
        first = np.concatenate([part.first + by for part, by in zip(parts, shift, strict=True)])
        whole = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("neurons", "samples", "margins", "fires", "awake", "length", "words")
        }
        return cls(first=first, **whole)
