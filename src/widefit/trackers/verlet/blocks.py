"""Blocks of neurons with lists of near pairs, and the result of a step in one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.trackers.fire_pattern import Chunk
from widefit.trackers.verlet.near_lists import Lists
from widefit.trackers.verlet.near_pairs import NearPairs


@dataclass(frozen=True)
class BlockTrial:
    """Block after a step.

    Attributes
    ----------
    chunk
        The neurons.
    lists, leaving
        The lists, and the neurons whose lists were made anew.
    outputs, flips
        Terms of the block in f, and the pairs that differ from before.
    response, squared_norm
        J (W − W₀) and ‖W − W₀‖²; None and 0 where W₀ is not kept.
    near
        Pairs that the next steps can take to the threshold; None where nobody has looked ahead, or there are many.
    """

    chunk: Chunk
    lists: Lists
    leaving: Int[np.ndarray, " q"]
    outputs: Float[np.ndarray, " n"]
    flips: int = 0
    response: Float[np.ndarray, " n"] | None = None
    squared_norm: float = 0.0
    near: NearPairs | None = None


def blocks_of(groups: Sequence[tuple[int, int]], rows: int) -> list[Chunk]:
    """Cut the neurons of every output into blocks of `rows`."""
    return [
        Chunk(low, min(low + rows, last), output)
        for output, (first, last) in enumerate(groups)
        for low in range(first, last, rows)
    ]
