"""Numbers of slots that stand slot after slot, or dispersed while a few slots change at a time (this project).

Numbers that stand slot after slot need no places: these are summed up when asked for, and large chunks forget them
again. A slot that outgrows its place moves to the end, and from then on places are kept, until so many slots have moved
that all are put in order again.
"""

import numpy as np
from jaxtyping import Int, Integer

# Part of the slots that may change without all being put in order.
_FEW = 1 / 8
# Slots of a chunk from which places take more memory than order takes time.
_LARGE = 1 << 14


def keeps_places(slots: int) -> bool:
    """Return True where a chunk has so few slots that places are kept rather than summed up again."""
    return slots < _LARGE


def disperse(changed: int, slots: int) -> bool:
    """Return True where it pays to let slots that change move away from the others."""
    return keeps_places(slots) and changed <= _FEW * slots


def in_order(start: Int[np.ndarray, " slots"], sizes: Integer[np.ndarray, " slots"]) -> Int[np.ndarray, " numbers"]:
    """Return the positions of all numbers slot after slot; those of a slot stand together from `start` on."""
    ends = np.cumsum(sizes, dtype=np.int64)
    return np.arange(ends[-1] if ends.size else 0) + np.repeat(start - (ends - sizes), sizes)
