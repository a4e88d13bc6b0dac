"""Corrections ê: differences of what slots have collected from the running sum G on their fire rows."""

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.certificate import rows as kernels
from widefit.kernels.certificate.slots import CorrectionChains
from widefit.trackers.certificate.flips import slot_dtype
from widefit.trackers.certificate.slot_layout import disperse
from widefit.trackers.fire_pattern import word_dtype


class Corrections:
    """Difference of C from s ∘ G for pairs that have flipped, in units of P.

    Parameters
    ----------
    slots, neurons
        Slots and neurons of the chunk.
    samples
        n.

    Attributes
    ----------
    owner, sample, value
        Slot, sample and correction of each pair.
    used
        Entries in use, the first of each array.
    """

    def __init__(self, slots: int, neurons: int, samples: int):
        self.owner: Integer[np.ndarray, " capacity"] = np.empty(0, slot_dtype(neurons))
        self.sample: Integer[np.ndarray, " capacity"] = np.empty(0, word_dtype(samples))
        self.value: Float[np.ndarray, " capacity"] = np.empty(0)
        self.used = 0
        self._slots = slots
        # Head and links of the chains, kept while entries stand in the order in which they came, not slot after slot.
        self._linked: tuple[np.ndarray, np.ndarray] | None = None

    def chains(self) -> CorrectionChains:
        """Return the entries chained slot by slot, for the kernels."""
        if self._linked is not None:
            head, following = self._linked
        else:
            head = np.full(self._slots, -1, np.int32)
            following = np.empty(self.used, np.int32)
            kernels.link(self.owner, head, following)
        return CorrectionChains(head, following, self.sample, self.value)

    def add(
        self, slots: Integer[np.ndarray, " q"], samples: Integer[np.ndarray, " q"], values: Float[np.ndarray, " q"]
    ) -> None:
        """Add values to the corrections of pairs."""
        if slots.size == 0:
            return
        chains = self.chains()
        if self.used + slots.size > chains.following.size:
            more = slots.size + self.used // 2
            self.owner = self._extended(self.owner, more)
            self.sample = self._extended(self.sample, more)
            self.value = self._extended(self.value, more)
            following = self._extended(chains.following, more)
            chains = CorrectionChains(chains.head, following, self.sample, self.value)
        self._linked = (chains.head, chains.following)
        self.used = kernels.add_corrections(slots, samples, values, self.owner, chains, self.used)
        if not disperse(slots.size, self._slots):
            order = self.ordered()
            self.place(self.owner[order], self.sample[order], self.value[order])

    def _extended(self, entries: np.ndarray, more: int) -> np.ndarray:
        """Return the entries in use with room for more."""
        return np.concatenate([entries[: self.used], np.empty(more, entries.dtype)])

    def clear(self) -> None:
        """Remove all entries."""
        self.place(self.owner[:0], self.sample[:0], self.value[:0])

    def place(
        self,
        owner: Integer[np.ndarray, " entries"],
        sample: Integer[np.ndarray, " entries"],
        value: Float[np.ndarray, " entries"],
    ) -> None:
        """Replace all entries by others that stand slot after slot, the latest of each last."""
        self.owner = owner.astype(self.owner.dtype)
        self.sample = sample.astype(self.sample.dtype)
        self.value = value.astype(self.value.dtype)
        self.used = owner.size
        self._linked = None

    def ordered(self) -> Int[np.ndarray, " used"]:
        """Return the entries slot after slot, the latest of each last."""
        return np.argsort(self.owner[: self.used], kind="stable")

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.owner, self.sample, self.value, *(self._linked or ())))
