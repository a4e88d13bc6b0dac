"""The certificate tracker: nothing is looked at until it could have changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from widefit.kernels.threads import serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.certificate import cost as certificate_cost
from widefit.trackers.certificate.bounds import beyond, drift_of_shrinking, few_expire, own_drift, step_bounds
from widefit.trackers.certificate.checkpoint import restore_run, save_run
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.commit import carry_out
from widefit.trackers.certificate.delta import CertificateDelta
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.look import look
from widefit.trackers.certificate.passes import pass_over
from widefit.trackers.certificate.radius import Reach, choose_radius
from widefit.trackers.certificate.reissue import REISSUED, issue_anew
from widefit.trackers.certificate.standing import Pace, Standing
from widefit.trackers.certificate.start import open_run
from widefit.trackers.certificate.trial import Bounds, Followed, Sums
from widefit.trackers.certificate.validation import check_state
from widefit.trackers.certificate.weights import write_weights
from widefit.trackers.cost import Cost, Steps, Workload
from widefit.trackers.fire_pattern import FirePattern

# Part of the slots that may leave the radius and be looked at as a whole before a pass over all of them is cheaper.
_WHOLE = 0.2
# Flips that are listed one by one; where there are more, H is counted anew.
_LISTED = 1 << 21


@dataclass(frozen=True)
class Certificate(Tracker):
    """Exact patterns from bounds on how far a pre-activation can have moved (this project).

    Pairs near the threshold, within a radius, hold a certificate: how much movement they are good for. There are three
    ways to follow a step.

    *Bounds.* A neuron that fires on at most κ samples moves z_rj by no more than the sum of the κ largest terms
    |c_r g_i K_ij|. Neurons are put in buckets by κ; the running sums of these bounds, one a bucket and sample, cost
    O(n²) whatever the width. Only pairs whose certificate the bound reaches are looked at: z is computed exactly from
    W₀ and the running sums of g, and the pair flips or gets a new certificate.

    *Own movements.* In long steps the movement |c_r| ‖Σ g_i x_i‖ of every neuron is computed, m k_r d operations, and
    takes the place of the bound.

    *A pass.* When too many neurons have moved beyond the radius, all are looked at: 2 m n d flops.

    The weights stay as they were at the start until `Tracking.finish`.

    Parameters
    ----------
    reach
        Radius in units of the movement of the step that called for a pass. Residuals of Gauss-Newton steps shrink fast:
        what follows a step is shorter than the step.
    most, least
        Part of the pairs that may hold certificates: above `most` a pass issues none, and the next step is another
        pass; below `least` the radius that a pass issues them for is widened.
    first
        Part of the pairs that may hold certificates before the first step, the longest: above it another pass is
        cheaper than to look at so many (measured).
    """

    reach: float = 0.5
    most: float = 0.2
    least: float = 0.005
    first: float = 0.04
    name: str = "certificate"
    lazy: ClassVar[bool] = True

    def can_follow(self, work: Workload) -> bool:
        return work.steps is not Steps.PERTURBED_MINIBATCHES

    def cost(self, work: Workload) -> Cost:
        return certificate_cost.cost(work)

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
        if anchor is not None and not np.array_equal(anchor, network.rows(0, network.width)):
            raise ValueError("the certificate tracker starts from W₀: anchor must be the network's weights")
        return CertificateTracking(self, network, inputs, threads, state, expected)


class CertificateTracking(Tracking):
    """See `Certificate`.

    Attributes
    ----------
    geometry
        What is fixed in the run.
    """

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
        self._tracker, self._network = tracker, network
        self.geometry = Geometry.of(network, inputs, threads)
        reach = Reach(1 + tracker.reach, tracker.first)
        opened = open_run(self.geometry, network, expected, reach)
        samples, outputs = opened.outputs.shape
        sums = Sums(np.zeros((outputs, samples)), np.ones(outputs))
        self._standing = Standing(opened.chunks, sums, opened.bounds)
        self._pace, self._largest = Pace(), opened.largest
        self.outputs = opened.outputs
        self.displacement = Displacement(np.zeros((samples, outputs)), np.zeros(outputs))
        self._passes, self._evaluated = 1, network.width * samples
        self._looked_at = self._renewed = self._flips = 0
        if state is not None:
            self._restore(state)

    @property
    def chunks(self) -> list[CertifiedChunk]:
        """The neurons that can move."""
        return self._standing.chunks

    # A trial.

    def propose(self, update: Update, gram: Grams) -> Trial:
        after = self._standing.sums.after(update)
        keep, displacement = 1 - update.shrink, self.displacement
        image = np.stack([gram(output).matrix.numpy() @ update.g[:, output] for output in range(keep.size)], axis=1)
        outputs = self.outputs - update.shrink * displacement.response - image
        response = keep * displacement.response - image
        squared_norm = (
            keep**2 * displacement.squared_norm
            - 2 * keep * np.einsum("ik,ik->k", update.g, displacement.response)
            + np.einsum("ik,ik->k", update.g, image)
        )
        payload = self._follow(after)
        self._evaluated += payload.evaluated
        bent, bent_response = payload.looked.effect
        return Trial(
            update=update,
            outputs=outputs + bent,
            flips=payload.flips,
            rebased=payload.passed,
            displacement=Displacement(response + bent_response, np.maximum(squared_norm, 0)),
            payload=payload,
            changes=_changes(self.chunks, payload) if payload.flips <= _LISTED else None,
        )

    def _follow(self, after: Sums) -> Followed:
        """Find the flips of a step, in the cheapest way that is safe."""
        change, bounds = after.since(self._standing.sums), self._standing.bounds
        if bounds is not None:
            followed = self._follow_by_bounds(after, change, bounds) or self._follow_by_movements(after, change, bounds)
            if followed is not None:
                return followed
        return self._pass(after, change)

    def _follow_by_bounds(self, after: Sums, change: Sums, bounds: Bounds) -> Followed | None:
        """None where a pair without a certificate could flip, or too many certificates expire."""
        step = step_bounds(self.geometry, change.collected, self._largest)
        raised = bounds.raised(step)
        drift = [
            drift_of_shrinking(self.geometry, chunk, abs(change.scale[chunk.chunk.output])) for chunk in self.chunks
        ]
        if not few_expire(self.chunks, raised.level, drift):
            return None
        leaving = beyond(self.chunks, drift, raised.room())
        if 0 < sum(slots.size for slots in leaving) <= REISSUED * sum(own.size for own in drift):
            # A few have drifted far: from where they stand now the bounds cover them, too.
            drift = issue_anew(self.geometry, self.chunks, self._standing.sums, bounds, leaving, drift)
            self._evaluated += sum(slots.size for slots in leaving) * self.geometry.samples
            leaving = beyond(self.chunks, drift, raised.room())
        if any(slots.size for slots in leaving):
            return None
        return self._look(after, change, raised, step, drift, [None] * len(drift))

    def _follow_by_movements(self, after: Sums, change: Sums, bounds: Bounds) -> Followed | None:
        """None where too many neurons leave the radius."""
        drift = own_drift(self.geometry, self.chunks, change, bounds)
        whole = beyond(self.chunks, drift, bounds.room())
        if sum(slots.size for slots in whole) > _WHOLE * sum(own.size for own in drift):
            return None
        return self._look(after, change, bounds, bounds.level[:, :0], drift, whole)

    def _look(
        self,
        after: Sums,
        change: Sums,
        bounds: Bounds,
        step: Float[np.ndarray, "k q n"],
        drift: list[np.ndarray],
        whole: Sequence[np.ndarray | None],
    ) -> Followed:
        looked = look(self.geometry, self.chunks, after, change, bounds, step, drift, whole)
        followed = Followed(after, bounds, looked, passed=False)
        self._looked_at += followed.expired
        return followed

    def _pass(self, after: Sums, change: Sums) -> Followed:
        """Look at all slots, and issue certificates where they will pay."""
        with serial_blas():
            radius = choose_radius(self.geometry, self.chunks, change, after, self._reach())
        bounds = None if radius is None else Bounds.after_pass(radius, self.geometry.samples)
        looked = pass_over(self.geometry, self.chunks, after, bounds)
        self._passes += 1
        return Followed(after, bounds, looked, passed=True)

    def _reach(self) -> Reach:
        # Many steps like the last are to come when it was like the one before.
        tracker = self._tracker
        return Reach(tracker.reach, tracker.most, tracker.least, widely=self._pace.alike)

    # Carrying it out.

    def commit(self, trial: Trial) -> None:
        payload: Followed = trial.payload
        self._pace.record(payload.sums.collected - self._standing.sums.collected)
        self._renewed += payload.expired
        carry_out(self.geometry, self._standing, payload)
        self.outputs, self.displacement = trial.outputs, trial.displacement or self.displacement
        self._flips += trial.flips

    # What others see.

    def patterns(self) -> Sequence[FirePattern]:
        return [chunk.pattern() for chunk in self.chunks]

    def report(self) -> TrackerReport:
        return TrackerReport(
            tracker=Certificate.name,
            full_passes=self._passes,
            pairs_evaluated=self._evaluated,
            flips=self._flips,
            firing_pairs=int(sum(int(chunk.counts.sum(dtype=np.int64)) for chunk in self.chunks)),
            bytes_held=sum(chunk.nbytes for chunk in self.chunks),
            nodes_visited=self._looked_at,
            keys_updated=self._renewed,
        )

    def write_weights(self, out: Float[np.ndarray, "m d"]) -> None:
        write_weights(self.geometry, self.chunks, self._standing.sums, out)

    def _delta(self) -> CertificateDelta:
        sums = self._standing.sums
        return CertificateDelta(
            tuple(self.chunks), sums.collected, sums.scale, self.geometry.inputs64, before=self._network.delta
        )

    @contextmanager
    def materialized(self) -> Iterator[None]:
        network = self._network
        if network.store == "regenerate":
            before, network.delta = network.delta, self._delta()
            try:
                yield
            finally:
                network.delta = before
            return
        own = network.rows(0, network.width)
        initial = own.copy()
        self.write_weights(own)
        try:
            yield
        finally:
            own[...] = initial

    def finish(self) -> None:
        if self._network.store == "regenerate":
            self._network.delta = self._delta()
        else:
            self.write_weights(self._network.rows(0, self._network.width))

    def state(self) -> dict[str, np.ndarray]:
        return save_run(self._standing) | {
            "outputs": self.outputs,
            "response": self.displacement.response,
            "squared_norm": self.displacement.squared_norm,
        }

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        check_state(state, sum(chunk.neurons.size for chunk in self.chunks), *self.outputs.shape)
        restore_run(self.geometry, self._standing, state)
        self.outputs = state["outputs"].copy()
        self.displacement = Displacement(state["response"].copy(), state["squared_norm"].copy())


def _changes(chunks: list[CertifiedChunk], step: Followed) -> Flips:
    """Flips of the network."""
    flipped = [(chunk, found.flips) for chunk, found in zip(chunks, step.looked.found, strict=True)]
    neurons = [chunk.chunk.first + chunk.neurons[flips.slots].astype(np.int64) for chunk, flips in flipped]
    samples = [flips.samples.astype(np.int32) for _, flips in flipped]
    return Flips(
        np.concatenate(neurons), np.concatenate(samples), np.concatenate([flips.fires for _, flips in flipped])
    )
