"""The certificate tracker: nothing is looked at until it could have changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float

from widefit.kernels.threads import serial_blas
from widefit.nn import TwoLayer
from widefit.trackers.base import Displacement, Flips, Grams, Tracker, TrackerReport, Tracking, Trial, Update
from widefit.trackers.certificate import cost as certificate_cost
from widefit.trackers.certificate.bounds import Bounds
from widefit.trackers.certificate.checkpoint import restore_run, save_run
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.commit import adopt
from widefit.trackers.certificate.expired import evaluate_expired
from widefit.trackers.certificate.geometry import Geometry
from widefit.trackers.certificate.movement import beyond, drift_of_shrinking, few_expire, own_drift, step_bounds
from widefit.trackers.certificate.opening import open_run
from widefit.trackers.certificate.passes import evaluate_all
from widefit.trackers.certificate.radius import Reach, choose_radius
from widefit.trackers.certificate.reissue import REISSUED, reissue
from widefit.trackers.certificate.run_state import Pace, RunState
from widefit.trackers.certificate.running_update import RunningUpdate
from widefit.trackers.certificate.trial import CandidateStep
from widefit.trackers.certificate.validation import check_state
from widefit.trackers.certificate.weight_change import CertifiedChange
from widefit.trackers.certificate.weights import write_weights
from widefit.trackers.cost import Cost, Steps, Workload
from widefit.trackers.fire_pattern import FirePattern

# Part of the slots that may leave the radius and be evaluated as a whole before a pass over all of them is cheaper.
_WHOLE = 0.2
# Flips that are listed one by one; where there are more, H is counted anew.
_LISTED = 1 << 21


@dataclass(frozen=True)
class Certificate(Tracker):
    """Exact patterns from bounds on how far a pre-activation can have moved (this project).

    Pairs near the threshold, within a radius, hold a certificate: the movement that they are good for. A step is
    evaluated in one of three ways.

    *Bounds.* A neuron that fires on at most κ samples moves z_rj by no more than the sum of the κ largest terms
    |c_r g_i K_ij|. Neurons are put in buckets by κ; the running sums of these bounds, one a bucket and sample, cost
    O(n²) whatever the width. Only pairs whose certificate the bound reaches are evaluated: z is computed exactly from
    W₀ and the running sums of g, and the pair flips or gets a new certificate.

    *Own movements.* In long steps the movement |c_r| ‖Σ g_i x_i‖ of every neuron is computed, m k_r d operations, and
    takes the place of the bound.

    Of many samples K is not held, and steps are evaluated in the two other ways.

    *A pass.* When too many neurons have moved beyond the radius, all are evaluated: 2 m n d flops.

    The weights stay as they were at the start until `Tracking.finish`.

    Parameters
    ----------
    reach
        Radius in units of the movement of the step that called for a pass. Residuals of Gauss-Newton steps shrink fast:
        the steps after it are shorter.
    most, least
        Part of the pairs that may hold certificates: above `most` a pass issues none, and the next step is another
        pass; below `least` the radius that a pass issues them for is widened.
    first
        Part of the pairs that may hold certificates before the first step, the longest: above it another pass is
        cheaper than to evaluate so many (measured).
    """

    reach: float = 0.5
    most: float = 0.2
    least: float = 0.005
    first: float = 0.04
    name: str = "certificate"
    defers_weights: ClassVar[bool] = True
    shares_neurons: ClassVar[bool] = True

    def can_follow(self, work: Workload) -> bool:
        return work.device == "cpu" and work.steps is not Steps.PERTURBED_MINIBATCHES

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
    """Run of the certificate tracker; see `Certificate`.

    Attributes
    ----------
    geometry
        Constants of the run.
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
        self._tracker = tracker
        self._network = network
        self.geometry = Geometry.of(network, inputs, threads)
        opening = open_run(self.geometry, network, expected, Reach(1 + tracker.reach, tracker.first))
        samples, outputs = opening.outputs.shape
        self._run = RunState(opening.chunks, RunningUpdate.none(outputs, samples), opening.bounds)
        self._pace = Pace()
        self._largest = opening.largest
        self.outputs = opening.outputs
        self.displacement = Displacement.none(samples, outputs)
        self._passes = 1
        self._evaluated = network.width * samples
        self._looked_at = 0
        self._renewed = 0
        self._flips = 0
        if state is not None:
            self._restore(state)

    @property
    def chunks(self) -> list[CertifiedChunk]:
        """The neurons that can move."""
        return self._run.chunks

    # Evaluation of a trial.

    def propose(self, update: Update, gram: Grams) -> Trial:
        keep = 1 - update.shrink
        image = _image(update, gram) if update.image is None else update.image
        outputs = self.outputs - update.shrink * self.displacement.response - image
        response = keep * self.displacement.response - image
        squared_norm = (
            keep**2 * self.displacement.squared_norm
            - 2 * keep * np.einsum("ik,ik->k", update.g, self.displacement.response)
            + np.einsum("ik,ik->k", update.g, image)
        )
        candidate = self._evaluate(self._run.update.after(update))
        self._evaluated += candidate.evaluated
        bent, bent_response = candidate.result.effect
        return Trial(
            update=update,
            outputs=outputs + bent,
            flips=candidate.flips,
            rebased=candidate.full_pass,
            displacement=Displacement(response + bent_response, np.maximum(squared_norm, 0)),
            payload=candidate,
            changes=_changes(self.chunks, candidate) if candidate.flips <= _LISTED else None,
        )

    def _evaluate(self, after: RunningUpdate) -> CandidateStep:
        """Find the flips of a step, in the cheapest way that is safe."""
        change = after.since(self._run.update)
        bounds = self._run.bounds
        candidate = None
        if bounds is not None:
            candidate = self._evaluate_by_bounds(after, change, bounds)
        if bounds is not None and candidate is None:
            candidate = self._evaluate_by_movements(after, change, bounds)
        return self._evaluate_by_pass(after, change) if candidate is None else candidate

    def _evaluate_by_bounds(self, after: RunningUpdate, change: RunningUpdate, bounds: Bounds) -> CandidateStep | None:
        """Return None where a pair without a certificate could flip, too many certificates expire, or K is not held."""
        if self.geometry.similarity is None:
            return None
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
            drift = reissue(self.geometry, self.chunks, self._run.update, bounds, leaving, drift)
            self._evaluated += sum(slots.size for slots in leaving) * self.geometry.samples
            leaving = beyond(self.chunks, drift, raised.room())
        if any(slots.size for slots in leaving):
            return None
        return self._evaluate_expired(after, change, raised, step, drift, [None] * len(drift))

    def _evaluate_by_movements(
        self, after: RunningUpdate, change: RunningUpdate, bounds: Bounds
    ) -> CandidateStep | None:
        """Return None where too many neurons leave the radius."""
        drift = own_drift(self.geometry, self.chunks, change, bounds)
        whole = beyond(self.chunks, drift, bounds.room())
        if sum(slots.size for slots in whole) > _WHOLE * sum(own.size for own in drift):
            return None
        return self._evaluate_expired(after, change, bounds, bounds.level[:, :0], drift, whole)

    def _evaluate_expired(
        self,
        after: RunningUpdate,
        change: RunningUpdate,
        bounds: Bounds,
        step: Float[np.ndarray, "k q n"],
        drift: list[np.ndarray],
        whole: Sequence[np.ndarray | None],
    ) -> CandidateStep:
        result = evaluate_expired(self.geometry, self.chunks, after, change, bounds, step, drift, whole)
        candidate = CandidateStep(after, bounds, result, full_pass=False)
        self._looked_at += candidate.expired
        return candidate

    def _evaluate_by_pass(self, after: RunningUpdate, change: RunningUpdate) -> CandidateStep:
        """Evaluate all slots, and issue certificates where they will pay."""
        wanted = self._tracker
        # Without K the bounds of a step are those of its own movements: many certificates cost more than a pass.
        most = wanted.first if self.geometry.similarity is None else wanted.most
        # Many steps like the last are to come when it was like the one before.
        reach = Reach(wanted.reach, most, wanted.least, widely=self._pace.alike)
        with serial_blas():
            radius = choose_radius(self.geometry, self.chunks, change, after, reach)
        bounds = None if radius is None else Bounds.after_pass(radius, self.geometry.samples)
        result = evaluate_all(self.geometry, self.chunks, after, bounds)
        self._passes += 1
        return CandidateStep(after, bounds, result, full_pass=True)

    # Adoption of a trial.

    def commit(self, trial: Trial) -> None:
        candidate: CandidateStep = trial.payload
        self._pace.record(candidate.update.collected - self._run.update.collected)
        self._renewed += candidate.expired
        adopt(self.geometry, self._run, candidate)
        self.outputs = trial.outputs
        self.displacement = trial.displacement or self.displacement
        self._flips += trial.flips

    # Views for others.

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
        write_weights(self.geometry, self.chunks, self._run.update, out)

    def _weight_change(self) -> CertifiedChange:
        """Return W − W₀ of the network, without W."""
        update = self._run.update
        return CertifiedChange(
            tuple(self.chunks), update.collected, update.scale, self.geometry.inputs64, before=self._network.delta
        )

    @contextmanager
    def materialized(self) -> Iterator[None]:
        network = self._network
        if network.store == "regenerate":
            before = network.delta
            network.delta = self._weight_change()
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
            self._network.delta = self._weight_change()
        else:
            self.write_weights(self._network.rows(0, self._network.width))

    def state(self) -> dict[str, np.ndarray]:
        return save_run(self._run) | {
            "outputs": self.outputs,
            "response": self.displacement.response,
            "squared_norm": self.displacement.squared_norm,
        }

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        check_state(state, sum(chunk.neurons.size for chunk in self.chunks), *self.outputs.shape)
        restore_run(self.geometry, self._run, state)
        self.outputs = state["outputs"].copy()
        self.displacement = Displacement(state["response"].copy(), state["squared_norm"].copy())


def _image(update: Update, gram: Grams) -> Float[np.ndarray, "n k"]:
    """Return H g."""
    columns = [torch.from_numpy(np.ascontiguousarray(column)) for column in update.g.T]
    return np.stack([gram(output).matvec(own).numpy() for output, own in enumerate(columns)], axis=1)


def _changes(chunks: list[CertifiedChunk], step: CandidateStep) -> Flips:
    """Return the flips of all chunks as pairs of the network."""
    flipped = [(chunk, result.flips) for chunk, result in zip(chunks, step.result.chunks, strict=True)]
    neurons = [chunk.chunk.first + chunk.neurons[flips.slots].astype(np.int64) for chunk, flips in flipped]
    samples = [flips.samples.astype(np.int32) for _, flips in flipped]
    fires = [flips.fires for _, flips in flipped]
    return Flips(np.concatenate(neurons), np.concatenate(samples), np.concatenate(fires))
