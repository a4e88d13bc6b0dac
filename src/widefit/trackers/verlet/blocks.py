"""Blocks of neurons with lists of near pairs, and what a step makes of one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.trackers.fire_pattern import Chunk
from widefit.trackers.verlet.inner_steps import NearPairs
from widefit.trackers.verlet.near_lists import Lists


@dataclass(frozen=True)
class BlockTrial:
    """A block after a step.

    Attributes
    ----------
    chunk
        Its neurons.
    lists, leaving
        The lists, and the neurons whose lists were made anew.
    outputs, flips
        What the block adds to f, and the pairs that differ from before.
    response, squared_norm
        J (W − W₀) and ‖W − W₀‖²; None and 0 where W₀ is not kept.
    near
        The pairs that the next steps can take to the threshold; None where nobody has looked ahead or there are many.
    """

    chunk: Chunk
    lists: Lists
    leaving: Int[np.ndarray, " q"]
    outputs: Float[np.ndarray, " n"]
    flips: int
    response: Float[np.ndarray, " n"] | None
    squared_norm: float
    near: NearPairs | None = None


def blocks_of(groups: Sequence[tuple[int, int]], rows: int) -> list[Chunk]:
    """The neurons of every output, `rows` at a time."""
    return [
        Chunk(low, min(low + rows, last), output)
        for output, (first, last) in enumerate(groups)
        for low in range(first, last, rows)
    ]
