"""What the certificate tracker keeps of a chunk of neurons."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from widefit.kernels import certificate_rows as kernels
from widefit.trackers.fire_pattern import Chunk, FirePattern, word_dtype


def fitting(largest: int) -> type[np.signedinteger]:
    """The shorter dtype of places up to `largest`."""
    return np.int32 if largest < 1 << 31 else np.int64


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
    start, count
        Where the pairs of each slot begin, and how many they are.
    soonest
        When the first of them is due, or before.
    sample, due
        The pairs: one cannot have flipped before the bound of its bucket and sample, and the slot's drift, reach `due`.
    used
        Pairs that are taken; what a slot has left behind counts, too.
    """

    start: Int[np.ndarray, " slots"]
    count: Integer[np.ndarray, " slots"]
    soonest: Float[np.ndarray, " slots"]
    sample: Integer[np.ndarray, " capacity"]
    due: Float[np.ndarray, " capacity"]
    used: int

    @classmethod
    def issued(
        cls,
        count: Integer[np.ndarray, " slots"],
        soonest: Float[np.ndarray, " slots"],
        sample: Integer[np.ndarray, " pairs"],
        due: Float[np.ndarray, " pairs"],
    ) -> "Certificates":
        """Slot after slot."""
        start = (np.cumsum(count, dtype=np.int64) - count).astype(fitting(sample.size))
        return cls(start, count.astype(sample.dtype), soonest, sample, due, sample.size)

    def of(self, slots: Int[np.ndarray, " s"]) -> "Certificates":
        """The slots are numbered anew; the pairs stay where they are."""
        return Certificates(self.start[slots], self.count[slots], self.soonest[slots], self.sample, self.due, self.used)

    def exchange(self, slots: Int[np.ndarray, " a"], issued: "Certificates") -> None:
        """Take back the certificates of slots and issue others."""
        if self.used + issued.used > self.due.size:
            spare = issued.used + self.used // 8
            self.sample = np.concatenate([self.sample[: self.used], np.empty(spare, self.sample.dtype)])
            self.due = np.concatenate([self.due[: self.used], np.empty(spare, np.float32)])
            self.start = self.start.astype(fitting(self.due.size), copy=False)
        place = slice(self.used, self.used + issued.used)
        self.sample[place], self.due[place] = issued.sample, issued.due
        self.start[slots], self.count[slots] = issued.start.astype(np.int64) + self.used, issued.count
        self.soonest[slots] = issued.soonest
        self.used += issued.used

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.start, self.count, self.soonest, self.sample, self.due))


@dataclass
class Corrections:
    """ê: what C of a pair that has flipped differs by from s ∘ G, in units of P; a chain a slot."""

    head: Int[np.ndarray, " slots"]
    sample: Integer[np.ndarray, " capacity"]
    owner: Int[np.ndarray, " capacity"] = field(default_factory=lambda: np.empty(0, np.int32))
    following: Int[np.ndarray, " capacity"] = field(default_factory=lambda: np.empty(0, np.int32))
    value: Float[np.ndarray, " capacity"] = field(default_factory=lambda: np.empty(0))
    used: int = 0

    @classmethod
    def none(cls, slots: int, samples: int) -> "Corrections":
        """Of so many slots."""
        return cls(np.full(slots, -1, np.int32), np.empty(0, word_dtype(samples)))

    def reserve(self, more: int) -> None:
        """Make room for further entries."""
        if self.used + more > self.value.size:
            size = self.used + more + self.used // 2
            for name in ("owner", "following", "sample", "value"):
                held = getattr(self, name)
                larger = np.empty(size, held.dtype)
                larger[: self.used] = held[: self.used]
                setattr(self, name, larger)

    def clear(self) -> None:
        self.head[self.owner[: self.used]] = -1
        self.used = 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.head, self.owner, self.following, self.sample, self.value))


@dataclass(frozen=True)
class ChunkFlips:
    """Flips of a chunk, ordered by slot and then by sample.

    Attributes
    ----------
    slots, samples, fires
        The pairs, and whether they fire afterwards.
    z, y
        Pre-activation after the update, and how far it is from the one at the start.
    """

    slots: Int[np.ndarray, " q"]
    samples: Int[np.ndarray, " q"]
    fires: Bool[np.ndarray, " q"]
    z: Float[np.ndarray, " q"]
    y: Float[np.ndarray, " q"]

    def __len__(self) -> int:
        return self.slots.size

    def touched(self) -> Int[np.ndarray, " s"]:
        """Their slots, each once."""
        first = np.ones(self.slots.size, np.bool_)
        first[1:] = self.slots[1:] != self.slots[:-1]
        return self.slots[first]

    def ordered(self) -> "ChunkFlips":
        """By slot, then by sample."""
        if np.all(self.slots[1:] >= self.slots[:-1]) and not np.any(
            (self.slots[1:] == self.slots[:-1]) & (self.samples[1:] <= self.samples[:-1])
        ):
            return self
        # Two ordered lists, one behind the other, take a stable sort no more than a merge.
        order = np.argsort((self.slots.astype(np.int64) << 32) + self.samples, kind="stable")
        return ChunkFlips(*(array[order] for array in self._arrays))

    def merged(self, other: "ChunkFlips") -> "ChunkFlips":
        """Both, in order."""
        pairs = zip(self._arrays, other._arrays, strict=True)
        return ChunkFlips(*(np.concatenate(pair) for pair in pairs)).ordered()

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.slots, self.samples, self.fires, self.z, self.y


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
    counts, start, words, room, free
        Fire rows, the words each may take where it stands, and the first free word.
    bucket
        Of each slot: its certificates hold while it fires on no more samples than the bucket's cap.
    certificates, corrections
        See there.
    drift
        Movement that the bounds do not cover, for each slot; of size 0 while there is none.
    """

    chunk: Chunk
    samples: int
    neurons: Int[np.ndarray, " slots"]
    sizes: Coefficients
    counts: Integer[np.ndarray, " slots"]
    start: Int[np.ndarray, " slots"]
    words: Integer[np.ndarray, " words"]
    room: Integer[np.ndarray, " slots"]
    free: int
    bucket: Integer[np.ndarray, " slots"]
    certificates: Certificates
    corrections: Corrections
    drift: Float[np.ndarray, " slots_or_none"]

    @classmethod
    def silent(
        cls,
        chunk: Chunk,
        samples: int,
        neurons: Int[np.ndarray, " slots"],
        coefficients: Float[np.ndarray, " slots"],
    ) -> "CertifiedChunk":
        """With slots that fire on nothing and hold no certificates."""
        size, dtype = neurons.size, word_dtype(samples)
        nothing = Certificates.issued(
            np.zeros(size, dtype), np.full(size, np.inf, np.float32), np.empty(0, dtype), np.empty(0, np.float32)
        )
        return cls(
            chunk=chunk,
            samples=samples,
            neurons=neurons,
            sizes=Coefficients.of(coefficients),
            counts=np.zeros(size, dtype),
            start=np.zeros(size, np.int32),
            words=np.empty(0, dtype),
            room=np.zeros(size, dtype),
            free=0,
            bucket=np.zeros(size, np.uint8),
            certificates=nothing,
            corrections=Corrections.none(size, samples),
            drift=np.empty(0, np.float32),
        )

    @property
    def coefficients(self) -> Float[np.ndarray, " slots"]:
        """a_r / √m of each slot; made when asked for."""
        return self.sizes.numbers()

    def pattern(self) -> FirePattern:
        """A view, not a copy."""
        return FirePattern(self.chunk, self.samples, self.counts, self.start, self.words, self.neurons)

    @property
    def nbytes(self) -> int:
        arrays = (
            self.neurons, self.sizes, self.counts, self.start, self.words, self.room, self.bucket, self.drift,
            self.certificates, self.corrections,
        )  # fmt: skip
        return sum(array.nbytes for array in arrays)

    def apply(self, flips: ChunkFlips, collected: Float[np.ndarray, " n"], scale: float) -> None:
        """Carry flips into the fire rows and the corrections; G and P are those after the update."""
        self._correct_flips(flips, collected, scale)
        self.rewrite(flips)

    def rewrite(self, flips: ChunkFlips) -> None:
        """Carry flips into the fire rows alone."""
        if len(flips) == 0:
            return
        touched = flips.touched()
        limit = self.pattern().limit
        need = np.minimum(limit, self.counts[touched] + np.bincount(flips.slots, minlength=1)[touched])
        self.make_room(int(np.minimum(limit, need + need // 4 + 4).sum()))
        self.free = kernels.rewrite_rows(
            flips.slots, flips.samples, flips.fires, self.counts, self.start, self.words, self.room, self.free,
            self.samples,
        )  # fmt: skip

    def correct(
        self, slots: Int[np.ndarray, " q"], samples: Int[np.ndarray, " q"], values: Float[np.ndarray, " q"]
    ) -> None:
        """Add to the corrections of pairs."""
        c = self.corrections
        c.reserve(slots.size)
        c.used = kernels.add_corrections(
            slots, samples, values, c.head, c.owner, c.following, c.sample, c.value, c.used
        )

    def _correct_flips(self, flips: ChunkFlips, collected: Float[np.ndarray, " n"], scale: float) -> None:
        self.correct(flips.slots, flips.samples, np.where(flips.fires, -1.0, 1.0) * collected[flips.samples] / scale)

    def make_room(self, words: int) -> None:
        """Have so many free words."""
        if self.free + words > self.words.size:
            spare = np.empty(words + self.free // 8, self.words.dtype)
            self.words = np.concatenate([self.words[: self.free], spare])
            self.start = self.start.astype(fitting(self.words.size), copy=False)

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
        self._correct_flips(flips, collected, scale)
        self.take_rows(pattern)
        self.certificates, self.bucket = certificates, bucket
        self.drift = np.empty(0, np.float32)

    def take_rows(self, pattern: FirePattern) -> None:
        """The fire rows of a pattern that stand one after the other, in the shortest form."""
        self.words, self.free = pattern.words, pattern.words.size
        self.start = pattern.start[:-1].astype(fitting(self.free))
        self.counts = pattern.counts.astype(self.words.dtype)
        self.room = np.diff(pattern.start).astype(self.words.dtype)

    def state(self) -> dict[str, np.ndarray]:
        """Fire rows as index lists and corrections, slot after slot."""
        c, fired = self.corrections, np.empty(int(self.counts.sum(dtype=np.int64)), np.int32)
        kernels.unpack_lists(self.counts, self.start, self.words, self.samples, fired)
        # A chain begins with its latest entry: the order of the pool, backwards, is that of every chain.
        order = np.lexsort((-np.arange(c.used), c.owner[: c.used]))
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
        dtype = self.words.dtype
        self.room = np.minimum(counts, self.pattern().limit).astype(dtype)
        self.free, self.counts = int(self.room.sum(dtype=np.int64)), counts.astype(dtype)
        self.start = (np.cumsum(self.room, dtype=np.int64) - self.room).astype(fitting(self.free))
        self.words = np.empty(self.free, dtype)
        kernels.pack_rows(self.counts, self.start, self.words, self.samples, fired)
        c = self.corrections
        c.reserve(entry_value.size)
        c.used = entry_value.size
        c.owner[: c.used] = np.repeat(np.arange(corrections.size, dtype=np.int32), corrections)
        c.sample[: c.used], c.value[: c.used] = entry_sample, entry_value
        last = np.cumsum(corrections)
        c.following[: c.used] = np.arange(1, c.used + 1)
        c.following[last[corrections > 0] - 1] = -1
        c.head[:] = np.where(corrections > 0, last - corrections, -1)
        self.certificates = Certificates.issued(
            np.zeros(counts.size, dtype), np.full(counts.size, np.inf, np.float32), np.empty(0, dtype),
            np.empty(0, np.float32),
        )  # fmt: skip
        self.drift = np.empty(0, np.float32)
