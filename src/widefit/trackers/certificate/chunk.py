"""State of a chunk of neurons: fire rows, corrections, certificates and buckets."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.certificate import rows as kernels
from widefit.kernels.certificate.slots import Collected
from widefit.kernels.fire_rows import FireRows
from widefit.trackers.certificate.certificates import Certificates
from widefit.trackers.certificate.coefficients import Coefficients
from widefit.trackers.certificate.corrections import Corrections
from widefit.trackers.certificate.flips import ChunkFlips, slot_dtype
from widefit.trackers.certificate.slot_layout import disperse, in_order, keeps_places
from widefit.trackers.fire_pattern import Chunk, FirePattern, fitting, word_dtype


@dataclass
class CertifiedChunk:
    """The neurons of a chunk that fired on some sample at the start of the run; no other can ever move.

    Attributes
    ----------
    chunk
        The neurons.
    samples
        n.
    neurons
        The neuron of each slot, counted from the first of the chunk.
    sizes
        a_r / √m of each slot.
    counts, words
        Fire rows.
    places, room, free
        First word of each row, the words it may take there, and the first free word. `room` is None while rows stand
        slot after slot and fill the words; then `places` is None until somebody asks.
    bucket
        Bucket of each slot: its certificates hold while it fires on no more samples than the bucket's cap.
    certificates
        Pairs near the threshold.
    corrections
        Difference of what a slot has collected from G, pair by pair.
    drift
        Movement that the bounds do not cover, for each slot; of size 0 while there is none.
    """

    chunk: Chunk
    samples: int
    neurons: Integer[np.ndarray, " slots"]
    sizes: Coefficients
    counts: Integer[np.ndarray, " slots"]
    words: Integer[np.ndarray, " words"]
    bucket: Integer[np.ndarray, " slots"]
    certificates: Certificates
    corrections: Corrections
    drift: Float[np.ndarray, " slots_or_none"]
    places: Int[np.ndarray, " slots"] | None = None
    room: Integer[np.ndarray, " slots"] | None = None
    free: int = 0

    @classmethod
    def silent(
        cls,
        chunk: Chunk,
        samples: int,
        neurons: Integer[np.ndarray, " slots"],
        coefficients: Float[np.ndarray, " slots"],
    ) -> "CertifiedChunk":
        """Return a chunk of slots that fire on nothing and hold no certificates."""
        size = neurons.size
        dtype = word_dtype(samples)
        return cls(
            chunk=chunk,
            samples=samples,
            neurons=neurons.astype(slot_dtype(chunk.last - chunk.first)),
            sizes=Coefficients.of(coefficients),
            counts=np.zeros(size, dtype),
            words=np.empty(0, dtype),
            bucket=np.zeros(size, np.uint8),
            certificates=Certificates.none(size, samples),
            corrections=Corrections(size, chunk.last - chunk.first, samples),
            drift=np.empty(0, np.float32),
        )

    @property
    def coefficients(self) -> Float[np.ndarray, " slots"]:
        """a_r / √m of each slot, decoded."""
        return self.sizes.numbers()

    def pattern(self) -> FirePattern:
        """Return the fire pattern, a view."""
        return FirePattern(self.chunk, self.samples, self.counts, self.places, self.words, self.neurons)

    def rows(self) -> FireRows:
        """Return the fire rows, for the kernels."""
        start = self.pattern().start[: self.counts.size]
        self.places = start if self.room is not None or keeps_places(start.size) else None
        return FireRows(self.counts, start, self.words)

    def collected(self, total: Float[np.ndarray, " n"], scale: float) -> Collected:
        """Return C, or its change, for the kernels, given G and P of the output or their changes."""
        return Collected(self.rows(), total, self.corrections.chains(), scale)

    @property
    def nbytes(self) -> int:
        rows = (self.counts, self.places, self.words, self.room)
        others = (self.neurons, self.sizes, self.bucket, self.drift, self.certificates, self.corrections)
        held = (*rows, *others)
        return sum(array.nbytes for array in held if array is not None)

    def apply(self, flips: ChunkFlips, collected: Float[np.ndarray, " n"], scale: float) -> None:
        """Carry flips into the fire rows and the corrections; G and P are those after the update."""
        self._correct(flips, collected, scale)
        self._rewrite(flips)

    def replace(
        self,
        pattern: FirePattern,
        certificates: Certificates,
        bucket: Integer[np.ndarray, " slots"],
        flips: ChunkFlips,
        collected: Float[np.ndarray, " n"],
        scale: float,
    ) -> None:
        """Take over the result of a pass; the flips are those from the pattern before."""
        self._correct(flips, collected, scale)
        self._store(pattern.counts, pattern.words)
        self.certificates = certificates
        self.bucket = bucket
        self.drift = np.empty(0, np.float32)

    def _correct(self, flips: ChunkFlips, collected: Float[np.ndarray, " n"], scale: float) -> None:
        values = np.where(flips.fires, -1.0, 1.0) * collected[flips.samples] / scale
        self.corrections.add(flips.slots, flips.samples, values)

    def _rewrite(self, flips: ChunkFlips) -> None:
        """Carry flips into the fire rows; rows that outgrow their room move to the end."""
        if len(flips) == 0:
            return
        limit = self.pattern().limit
        rows = self.rows()
        if self.room is None:
            self.free = rows.words.size
            self.room = np.minimum(rows.counts, limit)
        rows = self._with_space(rows, self._growth(flips, limit))
        self.free = kernels.rewrite_rows(
            flips.slots, flips.samples, flips.fires, rows, self.room, self.free, self.samples
        )
        self.words = rows.words
        self.places = rows.start
        if not disperse(len(flips), self.counts.size):
            self._store(self.counts, self.words[in_order(rows.start, np.minimum(self.counts, limit))])

    def _growth(self, flips: ChunkFlips, limit: int) -> int:
        """Return the words that rows moved to the end can take."""
        touched = flips.touched()
        need = np.minimum(limit, self.counts[touched] + np.bincount(flips.slots, minlength=1)[touched])
        return int(np.minimum(limit, need + need // 4 + 4).sum())

    def _with_space(self, rows: FireRows, more: int) -> FireRows:
        """Return the rows with space for so many words at the end."""
        if self.free + more <= rows.words.size:
            return rows
        space = np.empty(more + self.free // 8, rows.words.dtype)
        words = np.concatenate([rows.words[: self.free], space])
        return FireRows(rows.counts, rows.start.astype(fitting(words.size), copy=False), words)

    def _store(self, counts: Integer[np.ndarray, " slots"], words: Integer[np.ndarray, " words"]) -> None:
        """Store fire rows that stand slot after slot."""
        self.counts = counts.astype(self.words.dtype, copy=False)
        self.words = words
        self.places = None
        self.room = None

    def state(self) -> dict[str, np.ndarray]:
        """Return fire rows as index lists and corrections, slot after slot."""
        fired = np.empty(int(self.counts.sum(dtype=np.int64)), np.int32)
        kernels.unpack_lists(self.rows(), self.samples, fired)
        held = self.corrections
        order = held.ordered()
        return {
            "counts": self.counts.astype(np.int32),
            "fired": fired,
            "corrections": np.bincount(held.owner[: held.used], minlength=self.neurons.size),
            "entry_sample": held.sample[order].astype(np.int32),
            "entry_value": held.value[order],
        }

    def restore(
        self,
        counts: Int[np.ndarray, " slots"],
        fired: Int[np.ndarray, " pairs"],
        corrections: Int[np.ndarray, " slots"],
        entry_sample: Int[np.ndarray, " entries"],
        entry_value: Float[np.ndarray, " entries"],
    ) -> None:
        """Take over what `state` has returned, without certificates."""
        size = int(np.minimum(counts, self.pattern().limit).sum(dtype=np.int64))
        self._store(counts, np.empty(size, self.words.dtype))
        kernels.store_lists(self.rows(), self.samples, fired)
        self.corrections.place(np.repeat(np.arange(corrections.size), corrections), entry_sample, entry_value)
        self.certificates = Certificates.none(counts.size, self.samples)
        self.drift = np.empty(0, np.float32)
