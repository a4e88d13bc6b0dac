"""The pairs of an output that small steps could flip, in one flat structure over all its neurons."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from widefit.kernels import certificate_front as kernels
from widefit.kernels.certificate_front import Hot, Near, Now, Plane, Rows
from widefit.kernels.threads import ordered_map
from widefit.trackers.certificate.candidates import Candidates
from widefit.trackers.certificate.chunk import CertifiedChunk, ChunkFlips
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.trial import Sums

# Parts that the samples are cut into, whatever the number of threads.
_PARTS = 8
# Steps within which a pair is hot: it is cheaper to evaluate it in each of them.
CLOSE = 2.0


@dataclass(frozen=True)
class FrontTrial:
    """What a full-batch step would do.

    Attributes
    ----------
    now, z, collected
        See `widefit.kernels.certificate_front`; the last two of the hot pairs.
    outputs, response, squared_norm
        f, J (W − W₀) and ‖W − W₀‖².
    path
        After the step.
    flips
        Pairs that change.
    """

    now: Now
    z: Float[np.ndarray, " room"]
    collected: Float[np.ndarray, " room"]
    outputs: Float[np.ndarray, " n"]
    response: Float[np.ndarray, " n"]
    squared_norm: float
    path: Float[np.ndarray, " q"]
    flips: int


@dataclass
class Front:
    """See `widefit.kernels.certificate_front`, whose arrays these are.

    Attributes
    ----------
    chunks
        Positions of the chunks of the output.
    edges
        Rows of each of them.
    slots
        Of every row, in its chunk.
    path
        For every bucket.
    counters
        Pairs evaluated, and flips that looking at near pairs has brought.
    """

    geometry: Geometry
    plane: Plane
    rows: Rows
    near: Near
    hot: Hot
    now: Now
    chunks: list[int]
    edges: Int[np.ndarray, " chunks_plus_one"]
    slots: Int[np.ndarray, " rows"]
    path: Float[np.ndarray, " q"]
    counters: Int[np.ndarray, " two"]

    @classmethod
    def opened(
        cls,
        geometry: Geometry,
        chunks: list[CertifiedChunk],
        candidates: list[Candidates],
        output: int,
        sums: Sums,
        gram: Float[np.ndarray, "n n"],
        similarity: Float[np.ndarray, "n n"],
        outputs: Float[np.ndarray, " n"],
        response: Float[np.ndarray, " n"],
    ) -> "Front":
        """A front before its first step; it takes over `gram`, H of the output."""
        own = [index for index, chunk in enumerate(chunks) if chunk.chunk.output == output]
        collected, scale = sums.of(output)
        parts = [_RowsOfChunk.of(geometry, chunks[index], candidates[index], scale) for index in own]
        edges = np.cumsum([0, *(part.slots.size for part in parts)])
        counts = np.concatenate([part.counts for part in parts])
        corrections = np.concatenate([part.corrections for part in parts])
        coefficient = np.concatenate([part.coefficients for part in parts])
        bucket = np.searchsorted(geometry.caps, np.concatenate([part.most for part in parts])).astype(np.uint8)
        network = geometry.initial.network
        rows = Rows(
            weights=network.rows(0, network.width),
            neuron=np.concatenate([part.neurons for part in parts]),
            coefficient=coefficient,
            bucket=bucket,
            first=np.cumsum(counts, dtype=np.int64) - counts,
            count=counts,
            fired=np.concatenate([part.fired for part in parts]),
            spare=np.concatenate([part.spare for part in parts]) / geometry.steepest,
            head=np.full(counts.size, -1, np.int32),
            stamp=np.zeros(counts.size, np.int32),
            corrected_first=np.concatenate([[0], np.cumsum(corrections, dtype=np.int64)]),
            corrected_sample=np.concatenate([part.corrected_sample for part in parts]),
            corrected_value=np.concatenate([part.corrected_value for part in parts]),
        )
        held = [candidates[index] for index in own]
        pairs = np.concatenate([part.rows + first for part, first in zip(parts, edges, strict=False)])
        near = _near(
            geometry,
            rows,
            pairs.astype(np.int32),
            np.concatenate([each.samples for each in held]),
            np.concatenate([each.fires for each in held]),
            np.concatenate([each.left for each in held]),
        )
        plane = Plane(geometry.inputs64, similarity, geometry.peak, gram)
        now = Now(collected.copy(), collected.copy(), outputs.copy(), response - outputs)
        slots = np.concatenate([part.slots for part in parts])
        path, counters = np.zeros(geometry.caps.size), np.zeros(2, np.int64)
        hot = _room_for(np.zeros(geometry.samples, np.int64))
        return cls(geometry, plane, rows, near, hot, now, own, edges, slots, path, counters)

    # Sizes.

    @property
    def size(self) -> int:
        """Candidates."""
        return self.near.row.size

    @property
    def hot_pairs(self) -> int:
        return int(self.hot.count.sum())

    # Full-batch steps.

    def propose(
        self, g: Float[np.ndarray, " n"], response: Float[np.ndarray, " n"], squared_norm: float
    ) -> FrontTrial | None:
        """What a step would do; pairs that it could flip become hot, which changes nothing yet.

        None where neurons have nothing to spare for the samples that they have begun to fire on.

        `response` and `squared_norm` are J (W − W₀) and ‖W − W₀‖² before it.
        """
        caps, threshold = self.geometry.caps, self.geometry.threshold
        step = np.sort(np.abs(g))[::-1].cumsum()[caps - 1] * (1 + 1e-12)
        self.look(self.path + step, CLOSE * step)
        if not kernels.charge(self.rows, self.hot, threshold, g):
            return None
        hot, now, samples = self.hot, self.now, g.size
        collected, z = hot.collected.copy(), hot.z.copy()
        total, cold = now.collected + g, now.outputs.copy()
        edges = [samples * part // _PARTS for part in range(_PARTS + 1)]
        spans = [span for span in pairwise(edges) if span[0] < span[1]]

        def push(span: tuple[int, int]) -> np.ndarray:
            out = np.zeros(samples)
            kernels.push_samples(self.plane, self.rows, hot, threshold, *span, g, collected, out)
            return out

        for out in ordered_map(push, spans, self.geometry.threads):
            cold += out
        outputs, moved, before = cold.copy(), cold + now.offset, cold + now.offset

        def evaluate(span: tuple[int, int]) -> int:
            return kernels.evaluate_samples(
                self.plane, self.rows, hot, threshold, *span, total, collected, z, outputs, moved, before
            )

        flips = sum(ordered_map(evaluate, spans, self.geometry.threads))
        # ‖W − W₀ − Jᵀg‖² from J (W − W₀) before the step and after it, both with J before it.
        squared_norm -= float(g @ (response + before))
        after = Now(total, now.begun, cold, now.offset)
        return FrontTrial(after, z, collected, outputs, moved, max(squared_norm, 0.0), self.path + step, flips)

    def commit(self, trial: FrontTrial) -> None:
        """Carry out what was proposed last."""
        self.now, self.path = trial.now, trial.path
        self.hot = self.hot._replace(z=trial.z, collected=trial.collected)

    def look(self, reached: Float[np.ndarray, " q"], close: Float[np.ndarray, " q"]) -> None:
        """Evaluate the near pairs that a path could take to the threshold, where the run stands."""
        sample = 0
        while sample < self.geometry.samples:
            sample = kernels.look_at_samples(
                self.plane, self.rows, self.near, self.hot, self.now, self.geometry.threshold, sample, reached,
                self.path, close, self.counters,
            )  # fmt: skip
            if sample < self.geometry.samples:
                self.make_room()

    def evaluate(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """f and J (W − W₀) where the run stands; every hot pair is evaluated."""
        outputs, response = self.now.outputs.copy(), self.now.outputs + self.now.offset
        samples = self.geometry.samples
        self.counters[1] += kernels.evaluate_samples(
            self.plane, self.rows, self.hot, self.geometry.threshold, 0, samples, self.now.collected,
            self.hot.collected, self.hot.z, outputs, response, np.empty(samples),
        )  # fmt: skip
        self.counters[0] += self.hot_pairs
        return outputs, response

    def make_room(self) -> None:
        """Have room for more hot pairs of every sample."""
        count = self.hot.count
        larger, old = _room_for(count), self._hot_at()
        new = np.repeat(larger.first[:-1], count) + np.arange(old.size) - np.repeat(np.cumsum(count) - count, count)
        place = np.full(self.hot.row.size + 1, -1, np.int32)
        place[old] = new
        for name in ("row", "sample", "base", "z", "collected", "begun", "origin", "fires", "silent", "recorded"):
            getattr(larger, name)[new] = getattr(self.hot, name)[old]
        larger.following[new] = place[self.hot.following[old]]
        self.rows.head[:] = place[self.rows.head]
        self.hot = larger

    def _hot_at(self) -> Int[np.ndarray, " hot"]:
        """Where the hot pairs stand."""
        first, count = self.hot.first[:-1], self.hot.count
        return np.repeat(first - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))

    # Going back to fire rows.

    def settle(self, chunks: list[CertifiedChunk], scale: float) -> list[Int[np.ndarray, " s"]]:
        """Carry what the hot pairs have come to into the fire rows; slots with flips, chunk by chunk."""
        hot, at = self.hot, self._hot_at()
        fires = hot.z[at] > self.geometry.threshold
        own = hot.collected[at] - np.where(fires, self.now.collected[hot.sample[at]], 0.0)
        changed, moved = fires != hot.fires[at], own != hot.recorded[at]
        at, fires, own = (array[changed | moved] for array in (at, fires, own))
        order = np.lexsort((hot.sample[at], hot.row[at]))
        at, fires, own = at[order], fires[order], own[order]
        edges = np.searchsorted(hot.row[at], self.edges)
        touched = []
        for index, low, high, first, last in zip(
            self.chunks, edges[:-1], edges[1:], self.edges[:-1], self.edges[1:], strict=True
        ):
            part = at[low:high]
            slots = self.slots[first:last][hot.row[part] - first]
            samples, changes = hot.sample[part], fires[low:high] != hot.fires[part]
            chunk = chunks[index]
            chunk.correct(slots, samples, (own[low:high] - hot.recorded[part]) / scale)
            z = hot.z[part[changes]]
            flips = ChunkFlips(
                slots[changes], samples[changes], fires[low:high][changes], z, z - hot.origin[part[changes]]
            )
            chunk.rewrite(flips)
            touched.append(flips.touched())
        hot.fires[at], hot.recorded[at] = fires, own
        return touched

    def displaced(self) -> list[tuple[Int[np.ndarray, " s"], Float[np.ndarray, " s"]]]:
        """Slots with hot pairs, chunk by chunk, and how far their neurons have moved, rounded up."""
        which = np.flatnonzero(self.rows.head >= 0)
        length = np.empty(which.size)
        change = self.now.collected - self.now.begun
        kernels.displacements(self.plane, self.rows, self.hot, change, which, length)
        length *= np.abs(self.rows.coefficient[which]) * self.geometry.longest * (1 + 1e-6)
        edges = np.searchsorted(which, self.edges)
        return [(self.slots[which[low:high]], length[low:high]) for low, high in pairwise(edges)]

    def whole_gram(self) -> Float[np.ndarray, "n n"]:
        """H of all pairs; the front is of no use afterwards."""
        kernels.add_hot_gram(self.plane, self.rows, self.hot, self.geometry.threshold)
        return self.plane.gram


@dataclass(frozen=True)
class _RowsOfChunk:
    """Neurons of a chunk that have candidates, and the row of every candidate."""

    slots: Int[np.ndarray, " rows"]
    rows: Int[np.ndarray, " pairs"]
    neurons: Int[np.ndarray, " rows"]
    coefficients: Float[np.ndarray, " rows"]
    counts: Int[np.ndarray, " rows"]
    most: Int[np.ndarray, " rows"]
    spare: Float[np.ndarray, " rows"]
    fired: Int[np.ndarray, " fired"] | np.ndarray
    corrections: Int[np.ndarray, " rows"]
    corrected_sample: Int[np.ndarray, " e"]
    corrected_value: Float[np.ndarray, " e"]

    @classmethod
    def of(cls, geometry: Geometry, chunk: CertifiedChunk, held: Candidates, scale: float) -> "_RowsOfChunk":
        fresh = np.ones(held.slots.size, np.bool_)
        fresh[1:] = held.slots[1:] != held.slots[:-1]
        slots, rows = held.slots[fresh], np.cumsum(fresh) - 1
        counts = chunk.counts[slots].astype(np.int64)
        silent = np.bincount(rows[~held.fires], minlength=slots.size)
        fired = np.empty(int(counts.sum(dtype=np.int64)), np.uint16 if geometry.samples <= 2**16 else np.int32)
        first = np.cumsum(counts, dtype=np.int64) - counts
        kernels.list_rows(chunk.counts, chunk.start, chunk.words, slots, geometry.samples, first, fired)
        c, edges, sample, value = (
            chunk.corrections,
            np.zeros(slots.size + 1, np.int64),
            np.empty(0, np.int32),
            np.empty(0),
        )
        for _ in range(2):  # to count them, and to take them
            arguments = (c.head, c.following, c.sample, c.value, scale, slots, edges, sample, value)
            total = kernels.list_corrections(*arguments)
            sample, value = (sample, value) if total == sample.size else (np.empty(total, np.int32), np.empty(total))
        return cls(
            slots, rows, chunk.chunk.first + chunk.neurons[slots].astype(np.int64), chunk.coefficients[slots], counts,
            counts + silent, held.spare[slots], fired, np.diff(edges), sample, value,
        )  # fmt: skip


def _near(
    geometry: Geometry,
    rows: Rows,
    row: Int[np.ndarray, " pairs"],
    samples: Int[np.ndarray, " pairs"],
    fires: Bool[np.ndarray, " pairs"],
    left: Float[np.ndarray, " pairs"],
) -> Near:
    groups = geometry.samples * geometry.caps.size
    near = Near(
        first=np.zeros(groups + 1, np.int64),
        soonest=np.empty(groups, np.float32),
        row=np.empty(row.size, np.int32),
        fires=np.empty(row.size, np.bool_),
        due=np.empty(row.size, np.float32),
        base=np.empty(row.size),
        stamp=np.full(row.size, -1, np.int32),
    )
    kernels.group_pairs(
        row, samples, fires, left, rows.bucket, rows.coefficient, geometry.peak, geometry.caps.size, near.first,
        near.soonest, near.row, near.fires, near.due,
    )  # fmt: skip
    return near


def _room_for(count: Int[np.ndarray, " n"]) -> Hot:
    """Room for twice as many hot pairs of every sample as the fullest has; none of it is taken."""
    first = np.arange(count.size + 1) * (2 * int(count.max()) + 16)
    room = int(first[-1])
    numbers = {name: np.empty(room) for name in ("base", "z", "collected", "begun", "origin", "recorded")}
    whole = {name: np.empty(room, np.int32) for name in ("row", "sample", "following")}
    return Hot(
        first=first,
        count=count.copy(),
        fires=np.empty(room, np.bool_),
        silent=np.empty(room, np.bool_),
        **numbers,
        **whole,
    )
