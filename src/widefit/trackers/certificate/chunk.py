"""What the certificate tracker keeps of a chunk of neurons."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from widefit.kernels.certificate import rows as kernels
from widefit.trackers.certificate.corrections import Corrections
from widefit.trackers.certificate.flips import ChunkFlips, slot_dtype
from widefit.trackers.certificate.runs import disperse, in_order, keeps_places
from widefit.trackers.fire_pattern import Chunk, FirePattern, fitting, word_dtype


@dataclass(frozen=True)
class Coefficients:
    """Numbers of which a few are distinct, in a byte each.

    Attributes
    ----------
    values
        The distinct ones, at most 256 of them; or all of them, where they are more.
    code
        Which one each slot has; of size 0 where `values` has one a slot.
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


@dataclass
class Certificates:
    """Pairs near the threshold; those of a slot stand together.

    Attributes
    ----------
    count
        How many pairs each slot has.
    soonest
        When the first of them is due, or before.
    sample, due
        The pairs: one cannot have flipped before the bound of its bucket and sample, and the slot's drift, reach `due`.
    places
        Where the pairs of each slot begin; None where they stand slot after slot and nobody has asked.
    """

    count: Integer[np.ndarray, " slots"]
    soonest: Float[np.ndarray, " slots"]
    sample: Integer[np.ndarray, " pairs"]
    due: Float[np.ndarray, " pairs"]
    places: Int[np.ndarray, " slots"] | None = None

    @property
    def start(self) -> Int[np.ndarray, " slots"]:
        """Where the pairs of each slot begin; summed up when asked for where that is not kept."""
        if self.places is not None:
            return self.places
        dtype = fitting(self.sample.size)
        start = np.cumsum(self.count, dtype=dtype) - self.count.astype(dtype)
        self.places = start if keeps_places(start.size) else None
        return start

    @classmethod
    def none(cls, slots: int, samples: int) -> "Certificates":
        dtype = word_dtype(samples)
        never = np.full(slots, np.inf, np.float32)
        return cls(np.zeros(slots, dtype), never, np.empty(0, dtype), np.empty(0, np.float32))

    def of(self, slots: Int[np.ndarray, " s"]) -> "Certificates":
        """Of slots in order, slot after slot, when the others have none."""
        return Certificates(self.count[slots], self.soonest[slots], self.sample, self.due)

    def renew(
        self,
        expired: Integer[np.ndarray, " e"],
        due: Float[np.ndarray, " e"],
        touched: Integer[np.ndarray, " t"],
    ) -> None:
        """Certificates are due again; `touched` are their slots."""
        self.due[expired] = due
        kernels.first_due(touched, self.start, self.count, self.due, self.soonest)

    def exchange(self, slots: Int[np.ndarray, " a"], issued: "Certificates") -> None:
        """Take back the certificates of slots and issue others."""
        start = self.start
        start[slots] = issued.start + np.asarray(self.due.size, start.dtype)
        self.count[slots], self.soonest[slots] = issued.count, issued.soonest
        self.sample = np.concatenate([self.sample, issued.sample])
        self.due = np.concatenate([self.due, issued.due])
        self.places = start.astype(fitting(self.due.size), copy=False)
        if not disperse(slots.size, self.count.size) or self.due.size > 2 * self.count.sum(dtype=np.int64):
            order = in_order(start, self.count)
            self.sample, self.due, self.places = self.sample[order], self.due[order], None

    @property
    def nbytes(self) -> int:
        held = (self.count, self.soonest, self.sample, self.due, self.places)
        return sum(array.nbytes for array in held if array is not None)


@dataclass
class CertifiedChunk:
    """The neurons of a chunk that fired on some sample at the start of the run; no other can ever move.

    Attributes
    ----------
    chunk
        The neurons.
    neurons
        The neuron of each slot, counted from the first of the chunk.
    sizes
        a_r / √m of each slot.
    counts, words
        Fire rows.
    places, room, free
        Where each row begins, the words it may take there, and the first free word; None where they stand slot after
        slot and fill the words, of places where nobody has asked.
    bucket
        Of each slot: its certificates hold while it fires on no more samples than the bucket's cap.
    certificates, corrections
        See there.
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
        """With slots that fire on nothing and hold no certificates."""
        size, dtype = neurons.size, word_dtype(samples)
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
        """a_r / √m of each slot; made when asked for."""
        return self.sizes.numbers()

    def pattern(self) -> FirePattern:
        """A view, not a copy."""
        return FirePattern(self.chunk, self.samples, self.counts, self.places, self.words, self.neurons)

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`counts`, `start`, `words` of the fire rows."""
        start = self.pattern().start[: self.counts.size]
        self.places = start if self.room is not None or keeps_places(start.size) else None
        return self.counts, start, self.words

    @property
    def nbytes(self) -> int:
        held = (
            self.neurons, self.sizes, self.counts, self.places, self.words, self.room, self.bucket, self.drift,
            self.certificates, self.corrections,
        )  # fmt: skip
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
        """Take over what a pass has found; the flips are those from the pattern before."""
        self._correct(flips, collected, scale)
        self.counts, self.words = pattern.counts.astype(self.words.dtype), pattern.words
        self.places = self.room = None
        self.certificates, self.bucket = certificates, bucket
        self.drift = np.empty(0, np.float32)

    def _correct(self, flips: ChunkFlips, collected: Float[np.ndarray, " n"], scale: float) -> None:
        values = np.where(flips.fires, -1.0, 1.0) * collected[flips.samples] / scale
        self.corrections.add(flips.slots, flips.samples, values)

    def _rewrite(self, flips: ChunkFlips) -> None:
        """Carry flips into the fire rows; rows that outgrow their room move to the end."""
        if len(flips) == 0:
            return
        limit, touched = self.pattern().limit, flips.touched()
        counts, start, words = self.rows()
        if self.room is None:
            self.free = words.size
            self.room = np.minimum(counts, limit)
        need = np.minimum(limit, counts[touched] + np.bincount(flips.slots, minlength=1)[touched])
        more = int(np.minimum(limit, need + need // 4 + 4).sum())
        if self.free + more > words.size:
            words = np.concatenate([words[: self.free], np.empty(more + self.free // 8, words.dtype)])
            start = start.astype(fitting(words.size), copy=False)
        self.free = kernels.rewrite_rows(
            flips.slots, flips.samples, flips.fires, counts, start, words, self.room, self.free, self.samples
        )
        self.words, self.places = words, start
        if not disperse(len(flips), counts.size):
            self.words = words[in_order(start, np.minimum(counts, limit))]
            self.places = self.room = None

    def state(self) -> dict[str, np.ndarray]:
        """Fire rows as index lists and corrections, slot after slot."""
        c, fired = self.corrections, np.empty(int(self.counts.sum(dtype=np.int64)), np.int32)
        kernels.unpack_lists(*self.rows(), self.samples, fired)
        order = c.ordered()
        return {
            "counts": self.counts.astype(np.int32),
            "fired": fired,
            "corrections": np.bincount(c.owner[: c.used], minlength=self.neurons.size),
            "entry_sample": c.sample[order].astype(np.int32),
            "entry_value": c.value[order],
        }

    def restore(
        self,
        counts: Int[np.ndarray, " slots"],
        fired: Int[np.ndarray, " pairs"],
        corrections: Int[np.ndarray, " slots"],
        entry_sample: Int[np.ndarray, " entries"],
        entry_value: Float[np.ndarray, " entries"],
    ) -> None:
        """The inverse of `state`."""
        self.counts = counts.astype(self.words.dtype)
        self.places = self.room = None
        size = int(np.minimum(counts, self.pattern().limit).sum(dtype=np.int64))
        self.words = np.empty(size, self.words.dtype)
        kernels.pack_rows(*self.rows(), self.samples, fired)
        self.corrections.place(np.repeat(np.arange(corrections.size), corrections), entry_sample, entry_value)
        self.certificates = Certificates.none(counts.size, self.samples)
        self.drift = np.empty(0, np.float32)
