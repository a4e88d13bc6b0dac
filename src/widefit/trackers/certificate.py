"""The certificate tracker: nothing is looked at until it could have changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels import certificate as kernels
from widefit.kernels.threads import ordered_map, serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.certified_chunk import Certificates, CertifiedChunk, ChunkFlips, Corrections
from widefit.trackers.dense import block_rows
from widefit.trackers.fire_pattern import Chunk, FirePattern, partition
from widefit.trackers.minibatches import LOSSES, Minibatches, gradient
from widefit.trackers.window import CandidateLook, Candidates, Window

# Slots on which movements and margins are surveyed before certificates are issued.
_SURVEY = 192
# Part of the slots that may have expired certificates before their own movements are worth computing (measured).
_OPEN = 0.35
# Steps of a window at least and at most, and pairs that may be candidates in it before it is made shorter.
_SHORTEST, _LONGEST, _MOST_CANDIDATES = 4, 1024, 20_000
# Part of the slots of a bucket that may move farther than the radius is made for.
_TAIL = 0.1


@dataclass(frozen=True)
class Certificate(Tracker):
    """Exact patterns from bounds on how far a pre-activation can have moved (this project).

    Pairs near the threshold, within a radius, hold a certificate: how much movement they are good for. There are four
    ways to follow a step.

    *Bounds.* A neuron that fires on at most κ samples moves z_rj by no more than the sum of the κ largest terms
    |c_r g_i K_ij|. Neurons are put in buckets by κ; the running sums of these bounds, one a bucket and sample, cost
    O(n²) whatever the width. Only pairs whose certificate the bound reaches are looked at: z is computed exactly from
    W₀ and the running sums of g, and the pair flips or gets a new certificate.

    *Own movements.* In long steps the movement |c_r| ‖Σ g_i x_i‖ of every neuron is computed, m k_r d operations, and
    takes the place of the bound.

    *Windows.* Of many small steps in a row a few pairs at most can flip; these candidates are found once, and each is
    looked at again when the path length Σ ‖g‖ could have taken it to the threshold.

    *A pass.* When too many neurons have moved beyond the radius, all are looked at: 2 m n d flops.

    The weights stay as they were at the start until `Tracking.finish`.

    Parameters
    ----------
    reach
        Radius in units of the movement of the step that called for a pass. Residuals of Gauss-Newton steps shrink fast:
        what follows a step is shorter than the step.
    most, least
        Part of the pairs that may hold certificates: above `most` a pass issues none, and the next step is another
        pass; below `least` the radius is widened.
    """

    reach: float = 0.5
    most: float = 0.2
    least: float = 0.005
    name: str = "certificate"
    lazy: ClassVar[bool] = True

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> "CertificateTracking":
        if anchor is not None and not np.array_equal(anchor, network.weight.detach().numpy()):
            raise ValueError("the certificate tracker starts from W₀: anchor must be the network's weights")
        return CertificateTracking(self, network, inputs, threads, state, expected)


@dataclass(frozen=True)
class _Found:
    """What a trial comes to in a chunk.

    Attributes
    ----------
    flips
        In order.
    expired, due
        Certificates that have expired, and when they are due again.
    touched, soonest
        Their slots, and when the first certificate of each is due.
    anew
        Slots that were looked at as a whole.
    pattern, issued
        Fire rows and certificates of those.
    """

    flips: ChunkFlips
    expired: Int[np.ndarray, " e"]
    due: Float[np.ndarray, " e"]
    touched: Int[np.ndarray, " t"]
    soonest: Float[np.ndarray, " t"]
    anew: Int[np.ndarray, " a"]
    pattern: FirePattern | None = None
    issued: Certificates | None = None


@dataclass(frozen=True)
class _Payload:
    """The run after a trial, as far as it differs."""

    collected: Float[np.ndarray, "k n"]
    scale: Float[np.ndarray, " k"]
    level: Float[np.ndarray, "k q n"]
    drift: list[np.ndarray]
    radius: Float[np.ndarray, "k q"] | None
    passed: bool
    found: list[_Found]
    looks: list[CandidateLook] | None = None


def bucket_caps(samples: int) -> Int[np.ndarray, " q"]:
    """Ascending numbers of samples, in steps of a factor of about √2, the last of them n."""
    caps, cap = [], 2
    while cap < samples:
        caps.append(cap)
        caps.append(cap + cap // 2)
        cap *= 2
    return np.array([*sorted({cap for cap in caps if cap < samples}), samples], np.int64)


def _typical_movements(
    moved: Float[np.ndarray, " slots"], bucket: Int[np.ndarray, " slots"] | np.ndarray, caps: Int[np.ndarray, " q"]
) -> Float[np.ndarray, " q"]:
    """A movement that few neurons of each bucket exceed; buckets without an example follow √κ."""
    relative = moved / np.sqrt(caps[bucket])
    out = np.empty(caps.size)
    for q in range(caps.size):
        own = relative[bucket == q]
        # Neurons of other buckets count where there are too few examples for a quantile.
        own = own if own.size >= 1 / _TAIL else relative
        out[q] = np.quantile(own, 1 - _TAIL) * np.sqrt(caps[q])
    return np.maximum.accumulate(out)


class CertificateTracking(Tracking):
    """See `Certificate`."""

    displacement: Displacement

    def __init__(
        self,
        tracker: Certificate,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        threads: int,
        state: dict[str, np.ndarray] | None,
        expected: Float[np.ndarray, "n k"] | None,
    ):
        samples, outputs = inputs.shape[0], network.out_features
        self._tracker, self._network, self._threads = tracker, network, threads
        self._base = network.weight.detach().numpy()
        self._inputs, self._inputs64 = inputs, inputs.astype(np.float64)
        self._inputs32 = inputs.astype(np.float32)
        similarity = self._inputs64 @ self._inputs64.T
        self._similarity = similarity.astype(np.float32)
        self._kappa = np.abs(similarity).max(axis=0) * (1 + 1e-12)
        self._lengths = (np.linalg.norm(self._inputs64, axis=1) * (1 + 2e-7)).astype(np.float32)
        self._longest = float(self._lengths.max())
        self._threshold = float(self._base.dtype.type(network.threshold))
        eps = float(np.finfo(inputs.dtype).eps)
        self._tolerance = (inputs.shape[1] + 8) * eps * self._longest
        self._floor = 4 * eps * abs(self._threshold)
        self._caps = bucket_caps(samples)
        fired = np.arange(samples + 1)
        wanted = np.minimum(fired + np.maximum(1, fired // 8), samples)
        self._bucket_of = np.searchsorted(self._caps, wanted).astype(np.uint8)
        self._collected, self._scale = np.zeros((outputs, samples)), np.ones(outputs)
        self._level = np.zeros((outputs, self._caps.size, samples))
        self._radius: np.ndarray | None = None
        self._window: Window | None = None
        self._steady, self._last_size, self._horizon = 0, 0.0, 8
        self._passes = self._evaluated = self._looked_at = self._renewed = self._flips = 0
        self.displacement = Displacement(np.zeros((samples, outputs)), np.zeros(outputs))
        self._open(network, expected)
        if state is not None:
            self._restore(state)

    # The start: who fires, and the slots.

    def _open(self, network: TwoLayer, expected: np.ndarray | None) -> None:
        coefficients = network.coefficients()
        chunks = partition([network.neurons_of(output) for output in range(network.out_features)])
        groups = [network.neurons_of(output) for output in range(network.out_features)]
        self._largest = np.array([np.abs(coefficients[first:last]).max() for first, last in groups])
        self.outputs = np.tile(network.silent_outputs(), (self._inputs.shape[0], 1))
        self._chunks: list[CertifiedChunk] = []

        def open_chunk(chunk: Chunk, radius: np.ndarray | None) -> tuple[CertifiedChunk, np.ndarray]:
            own = coefficients[chunk.rows]
            pattern, certificates, outputs = self._scan(chunk, own, iter([self._base[chunk.rows]]), radius, idle=False)
            alive = np.flatnonzero(pattern.counts).astype(np.int32)
            counts, start = pattern.counts[alive], pattern.start[:-1][alive]
            held = CertifiedChunk(
                chunk, self._inputs.shape[0], alive, own[alive], counts, start, pattern.words,
                np.diff(pattern.start)[alive].astype(np.int32), pattern.words.size, self._bucket_of[counts],
                certificates.of(alive),
                Corrections(np.full(alive.size, -1, np.int32)), np.empty(0, np.float32),
            )  # fmt: skip
            return held, outputs

        with serial_blas():
            if expected is not None:
                survey = [
                    open_chunk(Chunk(middle, min(middle + _SURVEY, last), output), None)[0]
                    for output, (first, last) in enumerate(groups)
                    for middle in [(first + last) // 2]
                ]
                update = np.ascontiguousarray(expected.T)
                self._radius = self._choose_radius(survey, update, np.zeros_like(update), 1 + self._tracker.reach)
            radius = [None] * len(groups) if self._radius is None else self._radius
            for held, outputs in ordered_map(
                lambda chunk: open_chunk(chunk, radius[chunk.output]), chunks, self._threads
            ):
                self._chunks.append(held)
                self.outputs[:, held.chunk.output] += outputs
        self._passes += 1
        self._evaluated += self._base.shape[0] * self._inputs.shape[0]

    def _scan(
        self,
        chunk: Chunk,
        coefficients: np.ndarray,
        weights: Iterator[np.ndarray],
        radius: np.ndarray | None,
        level: np.ndarray | None = None,
        *,
        idle: bool = True,
    ) -> tuple[FirePattern, Certificates, np.ndarray]:
        """Fire rows, certificates and outputs of neurons whose weights come block by block."""
        samples, limit = self._inputs.shape[0], (self._inputs.shape[0] + 31) // 32
        size, rows = coefficients.size, min(block_rows(self._inputs.shape[0]), coefficients.size)
        z = np.empty((rows, samples), self._base.dtype)
        words, scratch = np.empty(rows * limit, np.uint32), np.empty((2, samples + 1), np.int32)
        radius = np.empty(0, np.float32) if radius is None else radius.astype(np.float32)
        most = rows * samples if radius.size else 0
        pair_sample, due = np.empty(most, np.int32), np.empty(most, np.float32)
        issued, soonest = np.empty(size, np.int32), np.empty(size, np.float32)
        bound = np.zeros((self._caps.size, samples), np.float32) if level is None else level
        counts, start, outputs = np.empty(size, np.int32), np.zeros(size + 1, np.int64), np.zeros(samples)
        pieces = [(np.empty(0, np.uint32), np.empty(0, np.int32), np.empty(0, np.float32))]
        first = 0
        for given in weights:
            for low in range(0, given.shape[0], rows):
                block = given[low : low + rows]
                last = first + block.shape[0]
                values = z[: last - first]
                np.matmul(block.astype(self._base.dtype, copy=False), self._inputs.T, out=values)
                block_start = np.empty(last - first + 1, np.int64)
                pairs = kernels.pass_block(
                    values, block, self._inputs64, self._threshold, self._tolerance, self._floor,
                    coefficients[first:last], self._bucket_of, radius, bound, idle, counts[first:last], block_start,
                    words, scratch, issued[first:last], soonest[first:last], pair_sample, due, outputs,
                )  # fmt: skip
                pieces.append((words[: block_start[-1]].copy(), pair_sample[:pairs].copy(), due[:pairs].copy()))
                start[first + 1 : last + 1] = start[first] + block_start[1:]
                first = last
        all_words, all_samples, all_due = (np.concatenate(part) for part in zip(*pieces, strict=True))
        pattern = FirePattern(chunk, samples, counts, start, all_words)
        return pattern, Certificates.issued(issued, soonest, all_samples, all_due), outputs

    # A trial.

    def propose(self, update: Update, gram: Grams) -> Trial:
        keep = 1 - update.shrink
        collected = keep[:, None] * self._collected + update.g.T
        scale = self._scale * keep
        displacement = self.displacement
        image = np.stack([gram(output).matrix.numpy() @ update.g[:, output] for output in range(keep.size)], axis=1)
        outputs = self.outputs - update.shrink * displacement.response - image
        response = keep * displacement.response - image
        squared_norm = (
            keep**2 * displacement.squared_norm
            - 2 * keep * np.einsum("ik,ik->k", update.g, displacement.response)
            + np.einsum("ik,ik->k", update.g, image)
        )
        payload = self._follow(collected, scale, collected - self._collected, in_small_steps=bool(np.all(keep == 1)))
        if payload.looks is None:
            flipped = [(chunk, found.flips) for chunk, found in zip(self._chunks, payload.found, strict=True)]
        else:
            flipped = [(self._chunks[look.index], look.flips) for look in payload.looks]
        for chunk, flips in flipped:
            self._add_flips(chunk, flips, outputs[:, chunk.chunk.output], response[:, chunk.chunk.output])
        return Trial(
            update=update,
            outputs=outputs,
            flips=sum(len(flips) for _, flips in flipped),
            rebased=payload.passed,
            displacement=Displacement(response, np.maximum(squared_norm, 0)),
            payload=payload,
            changes=self._changes(flipped),
        )

    def _add_flips(self, chunk: CertifiedChunk, flips: ChunkFlips, outputs: np.ndarray, response: np.ndarray) -> None:
        """What flips change f and J (W − W₀) by, beyond the linear model."""
        if len(flips) == 0:
            return
        signed = np.where(flips.fires, 1.0, -1.0) * chunk.coefficients[flips.slots]
        np.add.at(outputs, flips.samples, signed * (flips.z - self._threshold))
        np.add.at(response, flips.samples, signed * flips.y)

    def _follow(
        self, collected: np.ndarray, scale: np.ndarray, change: np.ndarray, *, in_small_steps: bool
    ) -> _Payload:
        """Find the flips of a step, in the cheapest way that is safe."""
        if in_small_steps and self._ready_for(change):
            looks = self._look_at_candidates(collected, self._window_path(change))
            return _Payload(collected, scale, self._level, [], self._radius, False, [], looks)
        self._close_window()
        if self._radius is not None:
            step = self._bounds(change)
            level = self._level + step
            drift = [self._drift_of_shrinking(chunk, scale) for chunk in self._chunks]
            if self._within(level, drift) and self._few_expire(level, drift):
                found = self._look(collected, scale, change, step, level, drift, [None] * len(drift))
                return _Payload(collected, scale, level, drift, self._radius, False, found)
            drift, beyond = self._own_movements(change, scale)
            if sum(slots.size for slots in beyond) <= self._tracker.most * sum(own.size for own in drift):
                found = self._look(collected, scale, change, np.zeros_like(step), self._level, drift, beyond)
                return _Payload(collected, scale, self._level, drift, self._radius, False, found)
        with serial_blas():
            radius = self._choose_radius(self._chunks, change, collected, self._tracker.reach, scale)
        found = self._pass(collected, scale, radius)
        drift = [np.empty(0, np.float32)] * len(found)
        return _Payload(collected, scale, np.zeros_like(self._level), drift, radius, True, found)

    def _bounds(self, change: Float[np.ndarray, "k n"], *, absolute: bool = False) -> Float[np.ndarray, "k q n"]:
        """How far a neuron of each bucket can move z at each sample."""
        outputs, samples = change.shape
        out = np.empty((outputs, self._caps.size, samples))
        narrow, tile = change.astype(np.float32), 128

        def fill(item: tuple[int, int]) -> None:
            output, first = item
            last = min(first + tile, samples)
            kernels.bound_columns(self._similarity, narrow[output], self._caps, absolute, first, last, out[output])

        items = [(output, first) for output in range(outputs) for first in range(0, samples, tile)]
        for _ in ordered_map(fill, items, self._threads):
            pass
        return out * self._largest[:, None, None]

    def _drift_of_shrinking(self, chunk: CertifiedChunk, scale: np.ndarray) -> np.ndarray:
        """Drift once corrections have shrunk, which no bound covers."""
        corrections, output = chunk.corrections, chunk.chunk.output
        shrinking = abs(self._scale[output] - scale[output])
        if shrinking == 0 or corrections.used == 0:
            return chunk.drift
        drift = chunk.drift.copy() if chunk.drift.size else np.zeros(chunk.neurons.size, np.float32)
        kernels.drift_of_corrections(
            corrections.owner, corrections.value, corrections.used, chunk.coefficients,
            shrinking * float(self._kappa.max()), drift,
        )  # fmt: skip
        return drift

    def _within(self, level: np.ndarray, drift: list[np.ndarray]) -> bool:
        """True when the bounds leave every pair without a certificate safe."""
        assert self._radius is not None
        room = self._radius - level.max(axis=2) * (1 + 1e-6)
        for chunk, own in zip(self._chunks, drift, strict=True):
            if chunk.neurons.size == 0:
                continue
            left = room[chunk.chunk.output][chunk.bucket]
            if not np.all(left > (own if own.size else 0)):
                return False
        return True

    def _few_expire(self, level: np.ndarray, drift: list[np.ndarray]) -> bool:
        """True when looking at what the bounds leave open takes less than the movements of all neurons."""
        highest, opened, seen = level.max(axis=2), 0, 0
        for chunk, own in zip(self._chunks, drift, strict=True):
            sample = slice(0, None, 1 + chunk.neurons.size // _SURVEY)
            extra = own[sample] if own.size else 0
            soonest = chunk.certificates.soonest[sample]
            opened += np.count_nonzero(highest[chunk.chunk.output][chunk.bucket[sample]] + extra >= soonest)
            seen += soonest.size
        return bool(opened <= _OPEN * seen)

    def _own_movements(self, change: np.ndarray, scale: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Drift once every neuron's own movement is counted, and the slots that it takes beyond the radius."""
        assert self._radius is not None
        room = self._radius - self._level.max(axis=2) * (1 + 1e-6)

        def walk(chunk: CertifiedChunk) -> tuple[np.ndarray, np.ndarray]:
            output = chunk.chunk.output
            moved = self._movements(chunk, change[output], scale[output] - self._scale[output])
            if chunk.drift.size:
                moved += chunk.drift * np.float32(1 + 2e-7)
            beyond = np.flatnonzero(~(moved < room[output][chunk.bucket])).astype(np.int32)
            return moved, beyond

        walked = list(ordered_map(walk, self._chunks, self._threads))
        return [moved for moved, _ in walked], [beyond for _, beyond in walked]

    def _movements(
        self, chunk: CertifiedChunk, change: np.ndarray, scale_change: float, slots: slice = slice(None)
    ) -> Float[np.ndarray, " slots"]:
        """How far the slots' pre-activations move at most."""
        span = range(chunk.neurons.size)[slots]
        moved, corrections = np.empty(len(span), np.float32), chunk.corrections
        kernels.own_movements(
            chunk.coefficients, chunk.counts, chunk.start, chunk.words, span.start, span.stop,
            change.astype(np.float32), corrections.head, corrections.following, corrections.sample,
            corrections.value, float(scale_change), self._inputs32, self._lengths, moved,
        )  # fmt: skip
        return moved * np.float32(self._longest * (1 + 2e-7))

    def _look(
        self,
        collected: np.ndarray,
        scale: np.ndarray,
        change: np.ndarray,
        step: np.ndarray,
        level: np.ndarray,
        drift: list[np.ndarray],
        beyond: Sequence[np.ndarray | None],
    ) -> list[_Found]:
        """Evaluate the pairs whose certificates expire, and the slots beyond the radius as a whole."""
        bound = (level * (1 + 2e-7)).astype(np.float32)

        def look(item: tuple[CertifiedChunk, np.ndarray, np.ndarray | None]) -> tuple[_Found, int]:
            chunk, own, anew = item
            output = chunk.chunk.output
            whole = None
            if anew is not None and anew.size:
                whole = self._look_at(chunk, anew, collected, scale, bound[output])
                own[anew] = -np.inf
            found, evaluated = self._expired(
                chunk, own, bound[output], step[output], change[output], collected[output], float(scale[output])
            )
            if whole is None:
                return found, evaluated
            own[whole.anew] = 0
            found = replace(
                found,
                flips=found.flips.merged(whole.flips),
                anew=whole.anew,
                pattern=whole.pattern,
                issued=whole.issued,
            )
            return found, evaluated + whole.anew.size * self._inputs.shape[0]

        with serial_blas():
            looks = list(ordered_map(look, zip(self._chunks, drift, beyond, strict=True), self._threads))
        self._looked_at += sum(found.expired.size for found, _ in looks)
        self._evaluated += sum(evaluated for _, evaluated in looks)
        return [found for found, _ in looks]

    def _expired(
        self,
        chunk: CertifiedChunk,
        drift: np.ndarray,
        bound: np.ndarray,
        step: np.ndarray,
        change: np.ndarray,
        collected: np.ndarray,
        scale: float,
    ) -> tuple[_Found, int]:
        held, corrections = chunk.certificates, chunk.corrections
        size, slots = held.used, chunk.neurons.size
        position, due = np.empty(size, np.int64), np.empty(size, np.float32)
        touched, soonest = np.empty(slots, np.int32), np.empty(slots, np.float32)
        flips = (np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.bool_))
        values = (np.empty(size), np.empty(size))
        expired, visited, flipped, evaluated = kernels.look_at_certificates(
            0, slots, held.start, held.count, held.soonest, held.sample, held.due, chunk.neurons,
            self._base[chunk.chunk.rows], 0, chunk.coefficients, chunk.counts, chunk.start, chunk.words, chunk.bucket,
            drift, bound, bound.max(axis=1), step, change, collected, corrections.head, corrections.following,
            corrections.sample, corrections.value, scale, self._kappa, self._inputs64, self._threshold, position, due,
            touched, soonest, *flips, *values,
        )  # fmt: skip
        found = _Found(
            ChunkFlips(*(array[:flipped].copy() for array in (*flips, *values))).ordered(),
            position[:expired].copy(), due[:expired].copy(), touched[:visited].copy(), soonest[:visited].copy(),
            np.empty(0, np.int32),
        )  # fmt: skip
        return found, evaluated

    def _look_at(
        self, chunk: CertifiedChunk, slots: np.ndarray, collected: np.ndarray, scale: np.ndarray, level: np.ndarray
    ) -> _Found:
        """Look at slots as a whole: they get new rows and certificates, from the present radius and level."""
        assert self._radius is not None
        return self._scan_slots(chunk, slots, collected, scale, self._radius, level)

    def _pass(self, collected: np.ndarray, scale: np.ndarray, radius: np.ndarray | None) -> list[_Found]:
        """Look at all slots at the weights after the update."""

        def look(chunk: CertifiedChunk) -> _Found:
            slots = np.arange(chunk.neurons.size, dtype=np.int32)
            return self._scan_slots(chunk, slots, collected, scale, radius, None)

        with serial_blas():
            passed = list(ordered_map(look, self._chunks, self._threads))
        self._passes += 1
        self._evaluated += sum(chunk.neurons.size for chunk in self._chunks) * self._inputs.shape[0]
        return passed

    def _scan_slots(
        self,
        chunk: CertifiedChunk,
        slots: np.ndarray,
        collected: np.ndarray,
        scale: np.ndarray,
        radius: np.ndarray | None,
        level: np.ndarray | None,
    ) -> _Found:
        output, samples = chunk.chunk.output, self._inputs.shape[0]
        own = None if radius is None else radius[output]
        weights = self._weights(chunk, slots, collected[output], float(scale[output]))
        pattern, issued, _ = self._scan(chunk.chunk, chunk.coefficients[slots], weights, own, level)
        most = int(chunk.counts[slots].sum(dtype=np.int64) + pattern.counts.sum(dtype=np.int64))
        slot, sample, fires = np.empty(most, np.int32), np.empty(most, np.int32), np.empty(most, np.bool_)
        count = kernels.differing_pairs(
            chunk.counts, chunk.start, chunk.words, slots, pattern.counts, pattern.start, pattern.words, samples, slot,
            sample, fires,
        )  # fmt: skip
        slot, sample = slot[:count].copy(), sample[:count].copy()
        z, y = self._exact(chunk, slot, sample, collected[output], float(scale[output]))
        flips = ChunkFlips(slot, sample, fires[:count].copy(), z, y)
        none, never = np.empty(0, np.int32), np.empty(0, np.float32)
        return _Found(flips, none.astype(np.int64), never, none, never, slots, pattern, issued)

    def _exact(
        self, chunk: CertifiedChunk, slots: np.ndarray, samples: np.ndarray, collected: np.ndarray, scale: float
    ) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """z of pairs, those of a slot together, and how far it is from the one at the start."""
        z, y, corrections = np.empty(slots.size), np.empty(slots.size), chunk.corrections
        kernels.exact_pairs(
            slots, samples, chunk.neurons, self._base[chunk.chunk.rows], 0, chunk.coefficients, chunk.counts,
            chunk.start, chunk.words, collected, corrections.head, corrections.following, corrections.sample,
            corrections.value, scale, self._inputs64, z, y,
        )  # fmt: skip
        return z, y

    def _weights(
        self, chunk: CertifiedChunk, slots: np.ndarray, collected: np.ndarray, scale: float
    ) -> Iterator[Float[np.ndarray, "rows d"]]:
        """Weights of slots in float64, block by block."""
        base, corrections = self._base[chunk.chunk.rows], chunk.corrections
        rows = block_rows(self._inputs.shape[0])
        for first in range(0, slots.size, rows):
            block = slots[first : first + rows]
            out = np.empty((block.size, self._inputs.shape[1]))
            kernels.materialize(
                block, base[chunk.neurons[block]], chunk.coefficients, chunk.counts, chunk.start, chunk.words,
                collected, corrections.head, corrections.following, corrections.sample, corrections.value, scale,
                self._inputs64, out,
            )  # fmt: skip
            yield out

    def _choose_radius(
        self,
        chunks: list[CertifiedChunk],
        change: np.ndarray,
        collected: np.ndarray,
        reach: float,
        scale: np.ndarray | None = None,
    ) -> Float[np.ndarray, "k q"] | None:
        """How far around the threshold pairs get certificates: wide enough for steps to come, few enough to pay."""
        outputs, buckets = change.shape[0], self._caps.size
        scale = self._scale if scale is None else scale
        total = max(1, sum(chunk.neurons.size for chunk in chunks))
        moved: list[list[np.ndarray]] = [[] for _ in range(outputs)]
        held: list[list[np.ndarray]] = [[] for _ in range(outputs)]
        margins: list[list[np.ndarray]] = [[] for _ in range(outputs)]
        for chunk in chunks:
            output, size = chunk.chunk.output, chunk.neurons.size
            take = slice(0, min(size, 1 + _SURVEY * outputs * size // total))
            if size == 0:
                continue
            slots = np.arange(take.stop, dtype=np.int32)
            moved[output].append(self._movements(chunk, change[output], scale[output] - self._scale[output], take))
            held[output].append(chunk.bucket[take])
            weights = np.concatenate(list(self._weights(chunk, slots, collected[output], float(scale[output]))))
            margins[output].append(np.abs(weights @ self._inputs64.T - self._threshold))
        radius = np.zeros((outputs, buckets))
        near, widen = [], []
        for output in range(outputs):
            if not moved[output]:
                continue
            own, bucket = np.concatenate(moved[output]), np.concatenate(held[output])
            radius[output] = reach * _typical_movements(own, bucket, self._caps)
            ratio = np.concatenate(margins[output]) / np.maximum(radius[output][bucket], 1e-300)[:, None]
            near.append(np.mean(ratio < 1))
            widen.append(float(np.quantile(ratio, self._tracker.least)))
        if near and np.mean(near) > self._tracker.most:
            return None
        return radius * max([1.0, *widen]) if np.all(np.isfinite(radius)) else None

    def _changes(self, flipped: list[tuple[CertifiedChunk, ChunkFlips]]) -> Flips:
        pairs = [(chunk, flips) for chunk, flips in flipped if len(flips)]
        none = np.empty(0, np.int64)
        neurons = [chunk.chunk.first + chunk.neurons[flips.slots].astype(np.int64) for chunk, flips in pairs]
        samples, fires = [flips.samples for _, flips in pairs], [flips.fires for _, flips in pairs]
        return Flips(
            np.concatenate([none, *neurons]),
            np.concatenate([none.astype(np.int32), *samples]),
            np.concatenate([none.astype(np.bool_), *fires]),
        )

    # Small steps, in windows.

    def _ready_for(self, change: np.ndarray) -> bool:
        """True when a window covers the step; opens one where steps have become small and steady."""
        if self._radius is None:
            return False
        if self._window is not None:
            if self._fits(change):
                return True
            self._close_window()
        if self._steady < 2 or not 0.5 < np.abs(change).sum() / self._last_size < 2:
            return False
        size = np.abs(change)
        return self._open_window(lambda steps: steps * (1.25 * size + 0.25 * size.mean(axis=1, keepdims=True)))

    def _fits(self, change: np.ndarray) -> bool:
        assert self._window is not None
        return bool(np.all(self._window.spent + np.abs(change) <= self._window.budget))

    def _window_path(self, change: np.ndarray) -> np.ndarray:
        """Path length after a step."""
        assert self._window is not None
        return self._window.path + np.linalg.norm(change, axis=1)

    def _open_window(self, budget_of: Callable[[int], np.ndarray]) -> bool:
        """Choose candidates for the longest window that the radius allows, up to the horizon."""
        steps = self._horizon
        while steps >= _SHORTEST:
            budget = budget_of(steps)
            level = self._level + self._bounds(budget, absolute=True)
            if self._within(level, [chunk.drift for chunk in self._chunks]):
                break
            steps //= 4
        else:
            return False
        bound = (level * (1 + 2e-7)).astype(np.float32)
        candidates = [self._candidates(chunk, bound[chunk.chunk.output]) for chunk in self._chunks]
        zero = np.zeros_like(self._collected)
        self._window = Window(self._collected.copy(), budget, zero, np.zeros(len(zero)), candidates, steps)
        if self._window.size > _MOST_CANDIDATES:
            self._horizon = max(_SHORTEST, steps // 2)
        return True

    def _candidates(self, chunk: CertifiedChunk, bound: np.ndarray) -> Candidates:
        held = chunk.certificates
        slots, samples = np.empty(held.used, np.int32), np.empty(held.used, np.int32)
        fires = np.empty(held.used, np.bool_)
        found = kernels.open_certificates(
            held.start, held.count, held.soonest, held.sample, held.due, chunk.counts, chunk.start, chunk.words,
            chunk.bucket, chunk.drift, bound, bound.max(axis=1), self._inputs.shape[0], slots, samples, fires,
        )  # fmt: skip
        slots, samples, fires = slots[:found].copy(), samples[:found].copy(), fires[:found].copy()
        caps = self._caps[chunk.bucket[slots]]
        rate = np.abs(chunk.coefficients[slots]) * np.sqrt(caps) * self._kappa[samples] * (1 + 1e-9)
        return Candidates(slots, samples, fires, rate, np.zeros(found), 0.0 if found else np.inf)

    def _look_at_candidates(self, collected: np.ndarray, path: np.ndarray) -> list[CandidateLook]:
        """Evaluate the candidates that are due."""
        assert self._window is not None
        looks = []
        for index, (chunk, own) in enumerate(zip(self._chunks, self._window.candidates, strict=True)):
            output = chunk.chunk.output
            now = path[output] * (1 + 1e-12)
            if own.next_due > now:
                continue
            # What is due soon is looked at along with it.
            due = np.flatnonzero(own.due <= now + 0.1 * (now - own.next_due))
            z, y = self._exact(chunk, own.slots[due], own.samples[due], collected[output], float(self._scale[output]))
            margin = np.maximum(np.abs(z - self._threshold) - 1e-12 * (np.abs(z) + abs(self._threshold)), 0)
            changed = np.flatnonzero((z > self._threshold) != own.fires[due])
            pairs = due[changed]
            flips = ChunkFlips(own.slots[pairs], own.samples[pairs], ~own.fires[pairs], z[changed], y[changed])
            rate = own.rate[due]
            far = np.divide(margin, rate, out=np.full_like(margin, np.inf), where=rate > 0)
            looks.append(CandidateLook(index, due, path[output] + far * (1 - 1e-9), flips.ordered(), pairs))
            self._evaluated += due.size
        return looks

    def _renew_candidates(self, looks: list[CandidateLook]) -> None:
        assert self._window is not None
        outgrown = False
        for look in looks:
            self._window.renew(look)
            if len(look.flips):
                chunk = self._chunks[look.index]
                output = chunk.chunk.output
                chunk.apply(look.flips, self._collected[output], float(self._scale[output]))
                slots = look.flips.touched()
                outgrown |= bool(np.any(chunk.counts[slots] > self._caps[chunk.bucket[slots]]))
        if outgrown:
            self._close_window()

    def _close_window(self) -> None:
        """Go back to bounds: those of what the window has moved in all, which is less than the path."""
        window, self._window = self._window, None
        if window is None:
            return
        if window.steps >= window.planned // 2 and window.size < _MOST_CANDIDATES // 2:
            self._horizon = min(2 * self._horizon, _LONGEST)
        self._level = self._level + self._bounds(self._collected - window.begun)
        for chunk, flipped in zip(self._chunks, window.flipped, strict=True):
            if flipped:
                self._drift_of_flipped(chunk, np.unique(np.concatenate(flipped)), window.spent[chunk.chunk.output])

    def _drift_of_flipped(self, chunk: CertifiedChunk, slots: np.ndarray, spent: np.ndarray) -> None:
        """Neurons whose fire rows have changed may have followed any part of the path."""
        if chunk.drift.size == 0:
            chunk.drift = np.zeros(chunk.neurons.size, np.float32)
        most = np.sort(spent)[::-1].cumsum()
        caps = np.minimum(self._caps[chunk.bucket[slots]], chunk.samples)
        moved = np.abs(chunk.coefficients[slots]) * most[caps - 1] * float(self._kappa.max())
        chunk.drift[slots] += (moved * (1 + 1e-6)).astype(np.float32)
        self._rebucket(chunk, slots)

    def descend(self, minibatches: Minibatches, gram: Grams) -> int:
        """Stochastic steps in windows: a step costs b n operations, whatever the width (this project)."""
        if minibatches.shrink is not None and np.any(minibatches.shrink):
            return super().descend(minibatches, gram)
        flips, step, done = 0, 0, 0
        while step < len(minibatches):
            if self._window is None and (self._radius is None or not self._open_for(minibatches, step)):
                flips += super().descend(minibatches.part(step, step + 1), gram)
                step += 1
                continue
            done = self._walk(minibatches, step, gram)
            flips += self._settle(gram)
            if done == step:
                self._close_window()
            step = done
        return flips

    def _open_for(self, minibatches: Minibatches, step: int) -> bool:
        """Open a window for the coming batches, with a budget from the gradients as they are now."""
        slope = np.abs(gradient(minibatches.loss, self.outputs, minibatches.targets)).T * minibatches.sample_weight
        spare = slope.mean(axis=1, keepdims=True)

        def budget_of(steps: int) -> np.ndarray:
            coming = minibatches.part(step, min(step + steps, len(minibatches)))
            rates = np.repeat(coming.rates, np.diff(coming.edges))
            visits = np.bincount(coming.samples, weights=rates, minlength=slope.shape[1])
            return visits * (1.25 * slope + 0.25 * spare)

        return self._open_window(budget_of)

    def _walk(self, minibatches: Minibatches, step: int, gram: Grams) -> int:
        window = self._window
        assert window is not None
        grams = tuple(gram(output).matrix.numpy() for output in range(self._collected.shape[0]))
        outputs, response = self.outputs.T.copy(), self.displacement.response.T.copy()
        collected, squared_norm = self._collected.copy(), self.displacement.squared_norm.copy()
        last = min(step + window.planned - window.steps, len(minibatches))
        done = kernels.walk_minibatches(
            minibatches.samples, minibatches.edges, minibatches.rates, step, last, minibatches.targets,
            minibatches.sample_weight, LOSSES.index(minibatches.loss), grams, outputs, response, collected,
            window.budget, window.spent, window.path, window.next_due(self._chunks), squared_norm,
        )  # fmt: skip
        window.steps += done - step
        self._collected = collected
        self.outputs = np.ascontiguousarray(outputs.T)
        self.displacement = Displacement(np.ascontiguousarray(response.T), squared_norm)
        return done

    def _settle(self, gram: Grams) -> int:
        """Look at the candidates that are due where the walk stands, and carry out their flips."""
        assert self._window is not None
        looks = self._look_at_candidates(self._collected, self._window.path)
        flipped = [(self._chunks[look.index], look.flips) for look in looks if len(look.flips)]
        gram.follow(self._changes(flipped))
        for chunk, flips in flipped:
            output = chunk.chunk.output
            self._add_flips(chunk, flips, self.outputs[:, output], self.displacement.response[:, output])
        self._renew_candidates(looks)
        count = sum(len(flips) for _, flips in flipped)
        self._flips += count
        return count

    # Carrying it out.

    def commit(self, trial: Trial) -> None:
        payload: _Payload = trial.payload
        size = float(np.abs(payload.collected - self._collected).sum())
        alike = self._last_size > 0 and 0.5 < size / self._last_size < 2
        self._steady, self._last_size = (self._steady + 1 if alike else 0), size
        if payload.looks is not None:
            self._step_in_window(trial, payload)
            return
        reset = payload.scale == 0
        self._collected, self._scale = payload.collected, np.where(reset, 1.0, payload.scale)
        self._level, self._radius = payload.level, payload.radius

        def carry_out(item: tuple[CertifiedChunk, _Found, np.ndarray]) -> None:
            chunk, found, drift = item
            output = chunk.chunk.output
            own, scale = self._collected[output], float(self._scale[output])
            if reset[output]:
                chunk.corrections.clear()
            chunk.drift = drift
            if payload.passed:
                assert found.pattern is not None
                assert found.issued is not None
                chunk.replace(
                    found.pattern, found.issued, self._bucket_of[found.pattern.counts], found.flips, own, scale
                )
                return
            chunk.certificates.due[found.expired] = found.due
            chunk.certificates.soonest[found.touched] = found.soonest
            chunk.apply(found.flips, own, scale)
            if found.issued is not None:
                chunk.bucket[found.anew] = self._bucket_of[chunk.counts[found.anew]]
                chunk.certificates.exchange(found.anew, found.issued)
            self._rebucket(chunk, found.flips.touched())

        with serial_blas():
            work = zip(self._chunks, payload.found, payload.drift, strict=True)
            for _ in ordered_map(carry_out, work, self._threads):
                pass
        self._renewed += sum(found.expired.size for found in payload.found)
        self.outputs, self.displacement = trial.outputs, trial.displacement or self.displacement
        self._flips += trial.flips

    def _step_in_window(self, trial: Trial, payload: _Payload) -> None:
        window = self._window
        assert window is not None
        assert payload.looks is not None
        change = payload.collected - self._collected
        window.path = self._window_path(change)
        window.spent = window.spent + np.abs(change)
        window.steps += 1
        self._collected = payload.collected
        self.outputs, self.displacement = trial.outputs, trial.displacement or self.displacement
        self._flips += trial.flips
        self._renew_candidates(payload.looks)

    def _rebucket(self, chunk: CertifiedChunk, slots: np.ndarray) -> None:
        """Neurons that fire on more samples than their bucket allows move to another."""
        outgrown = slots[chunk.counts[slots] > self._caps[chunk.bucket[slots]]]
        if outgrown.size == 0 or self._radius is None:
            return
        if chunk.drift.size == 0:
            chunk.drift = np.zeros(chunk.neurons.size, np.float32)
        output, held = chunk.chunk.output, chunk.certificates
        bound = (self._level[output] * (1 + 2e-7)).astype(np.float32)
        kernels.move_to_bucket(
            outgrown, self._bucket_of[chunk.counts[outgrown]], chunk.bucket, self._radius[output].astype(np.float32),
            bound, chunk.drift, held.start, held.count, held.soonest, held.sample, held.due,
        )  # fmt: skip

    # What others see.

    def patterns(self) -> Sequence[FirePattern]:
        return [chunk.pattern() for chunk in self._chunks]

    def report(self) -> TrackerReport:
        return TrackerReport(
            tracker=Certificate.name,
            full_passes=self._passes,
            pairs_evaluated=self._evaluated,
            flips=self._flips,
            firing_pairs=int(sum(int(chunk.counts.sum(dtype=np.int64)) for chunk in self._chunks)),
            bytes_held=sum(chunk.nbytes for chunk in self._chunks),
            nodes_visited=self._looked_at,
            keys_updated=self._renewed,
        )

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        def write(chunk: CertifiedChunk) -> None:
            target = out[chunk.chunk.rows]
            if out is not self._base:
                target[...] = self._base[chunk.chunk.rows]
            output, first = chunk.chunk.output, 0
            slots = np.arange(chunk.neurons.size, dtype=np.int32)
            for block in self._weights(chunk, slots, self._collected[output], float(self._scale[output])):
                target[chunk.neurons[first : first + block.shape[0]]] = block
                first += block.shape[0]

        for _ in ordered_map(write, self._chunks, self._threads):
            pass

    @contextmanager
    def materialized(self) -> Iterator[None]:
        initial = self._base.copy()
        self.write_weights(self._base)
        try:
            yield
        finally:
            self._base[...] = initial

    def finish(self) -> None:
        self.write_weights(self._base)

    def state(self) -> dict[str, np.ndarray]:
        arrays: dict[str, list[np.ndarray]] = {}
        for chunk in self._chunks:
            for name, array in chunk.state().items():
                arrays.setdefault(name, []).append(array)
        return {
            "collected": self._collected,
            "scale": self._scale,
            "outputs": self.outputs,
            "response": self.displacement.response,
            "squared_norm": self.displacement.squared_norm,
            **{name: np.concatenate(parts) for name, parts in arrays.items()},
        }

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a state: the patterns are those it holds, certificates are issued by the next pass."""
        self._collected, self._scale = state["collected"].copy(), state["scale"].copy()
        self.outputs = state["outputs"].copy()
        self.displacement = Displacement(state["response"].copy(), state["squared_norm"].copy())
        self._radius = None
        rows = entries = words = 0
        for chunk in self._chunks:
            size = chunk.neurons.size
            counts, used = state["counts"][rows : rows + size], state["corrections"][rows : rows + size]
            own = slice(entries, entries + int(used.sum()))
            length = int(counts.sum(dtype=np.int64))
            chunk.restore(
                counts,
                state["fired"][words : words + length],
                used,
                state["entry_sample"][own],
                state["entry_value"][own],
            )
            rows, entries, words = rows + size, own.stop, words + length
            chunk.bucket = self._bucket_of[chunk.counts]
