"""ê: where what a slot of the certificate tracker has collected differs from G on its fire row."""

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.certificate import rows as kernels
from widefit.trackers.certificate.flips import slot_dtype
from widefit.trackers.certificate.runs import disperse
from widefit.trackers.fire_pattern import word_dtype

Chains = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Corrections:
    """What C of a pair that has flipped differs by from s ∘ G, in units of P.

    Parameters
    ----------
    slots, neurons, samples
        Of the chunk.

    Attributes
    ----------
    owner, sample, value
        The pairs, and their numbers: the first `used` of each.
    """

    def __init__(self, slots: int, neurons: int, samples: int):
        self.owner: Integer[np.ndarray, " capacity"] = np.empty(0, slot_dtype(neurons))
        self.sample: Integer[np.ndarray, " capacity"] = np.empty(0, word_dtype(samples))
        self.value: Float[np.ndarray, " capacity"] = np.empty(0)
        self.used, self._slots = 0, slots
        # Kept while entries stand in the order in which they came, and not slot after slot.
        self._linked: tuple[np.ndarray, np.ndarray] | None = None

    def chains(self) -> Chains:
        """`head` (slots,) and `following`, `sample`, `value`, see `widefit.kernels.certificate.slots`."""
        if self._linked is None:
            linked = np.full(self._slots, -1, np.int32), np.empty(self.used, np.int32)
            kernels.link(self.owner, *linked)
            return *linked, self.sample, self.value
        return *self._linked, self.sample, self.value

    def add(
        self, slots: Integer[np.ndarray, " q"], samples: Integer[np.ndarray, " q"], values: Float[np.ndarray, " q"]
    ) -> None:
        """Add to those of pairs."""
        if slots.size == 0:
            return
        head, following, _, _ = self.chains()
        if self.used + slots.size > following.size:
            size = self.used + slots.size + self.used // 2
            self.owner, self.sample, self.value, following = (
                _longer(array, self.used, size) for array in (self.owner, self.sample, self.value, following)
            )
        self._linked = head, following
        self.used = kernels.add_corrections(
            slots, samples, values, head, self.owner, following, self.sample, self.value, self.used
        )
        if not disperse(slots.size, self._slots):
            order = self.ordered()
            self.place(self.owner[order], self.sample[order], self.value[order])

    def clear(self) -> None:
        self.place(self.owner[:0], self.sample[:0], self.value[:0])

    def place(
        self,
        owner: Integer[np.ndarray, " entries"],
        sample: Integer[np.ndarray, " entries"],
        value: Float[np.ndarray, " entries"],
    ) -> None:
        """Let these be all, slot after slot, the latest of each last."""
        self.owner, self.sample, self.value = (
            given.astype(held.dtype)
            for given, held in ((owner, self.owner), (sample, self.sample), (value, self.value))
        )
        self.used, self._linked = owner.size, None

    def ordered(self) -> Int[np.ndarray, " used"]:
        """Entries slot after slot, the latest of each last."""
        return np.argsort(self.owner[: self.used], kind="stable")

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.owner, self.sample, self.value, *(self._linked or ())))


def _longer(array: np.ndarray, used: int, size: int) -> np.ndarray:
    out = np.empty(size, array.dtype)
    out[:used] = array[:used]
    return out
