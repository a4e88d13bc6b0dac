"""Forward, backward, H and steps of deep networks by every tracker, held against dense float64 matrices."""

import numpy as np
import pytest
import torch
from deep_problems import NAMES, DeepProblem, DeepReference, make_deep

from widefit.gram import CoupledGram
from widefit.nn import Deep
from widefit.trackers import Update
from widefit.trackers.deep import masks
from widefit.trackers.deep.base import DeepTracker, DeepTracking, DeepTrial
from widefit.trackers.deep.masks import DeepMaskTracking, DeepTorch
from widefit.trackers.deep.sparse import Sparse, SparseTracking

TRACKERS = [Sparse(), DeepTorch()]
# Rounding is what float32 adds: for the torch tracker where it is large or hides nothing.
ROUNDED = ("random", "three outputs", "huge", "tiny", "digits")
CASES = [
    pytest.param(tracker, name, dtype, id=f"{tracker.name}-{name}-{str(dtype).removeprefix('torch.')}")
    for tracker in TRACKERS
    for name in NAMES
    for dtype in (torch.float64, torch.float32)
    if dtype == torch.float64 or tracker.name == "sparse" or name in ROUNDED
]


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Layers in several blocks, as those of large networks are."""
    monkeypatch.setattr(masks, "block_numbers", lambda device: 1 << 8)


def started(
    tracker: DeepTracker, problem: DeepProblem, name: str, threads: int = 1
) -> tuple[Deep, DeepTracking, DeepReference]:
    network = problem.fresh()
    if name == "shared readout":  # every neuron feeds every output
        for readout in network.readouts:
            shape = tuple(readout.shape)
            readout.data.copy_(torch.from_numpy(np.random.default_rng(0).standard_normal(shape)))
    return network, tracker.start(network, problem.inputs, threads), DeepReference(network, problem.inputs)


def activations(run: DeepTracking) -> list[np.ndarray]:
    """h_1, …, h_L."""
    if isinstance(run, SparseTracking):
        return [rows.dense() for rows in run.activations]
    assert isinstance(run, DeepMaskTracking)
    return [h.numpy() for h in run.layers.activations]


def fire_masks(run: DeepTracking) -> list[np.ndarray]:
    """Which neurons fire on which samples, layer by layer."""
    if isinstance(run, DeepMaskTracking):
        return [fires.numpy() for fires in run.layers.fires]
    assert isinstance(run, SparseTracking)
    found = [np.zeros((rows.rows, rows.columns), bool) for rows in run.activations]
    for fires, rows in zip(found, run.activations, strict=True):
        fires[np.repeat(np.arange(rows.rows), np.diff(rows.start)), rows.index] = True
    return found


def signals(run: DeepTracking) -> list[np.ndarray]:
    """Δ_l, (n, k, m_l)."""
    if isinstance(run, DeepMaskTracking):
        return [layer.numpy() for layer in run.signals()]
    assert isinstance(run, SparseTracking)
    return [layer.signal_rows().dense().reshape(layer.samples, layer.outputs, -1) for layer in run.factors()]


def gram(run: DeepTracking) -> np.ndarray:
    return CoupledGram(run.factors()).dense().numpy()


def propose(run: DeepTracking, g: np.ndarray, shrink: float = 0.0) -> DeepTrial:
    image = CoupledGram(run.factors()).matvec(torch.from_numpy(g.reshape(-1).copy())).numpy()
    return run.propose(Update(g.reshape(-1, 1), np.array([shrink])), image)


def close(found: np.ndarray, expected: np.ndarray, dtype: torch.dtype, size: float = 0.0) -> None:
    """Equal to rounding of the largest entry, or of sums whose terms add up to `size` without their signs."""
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    size = max(size, float(np.abs(expected).max()), 1e-30)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * size)


def terms(reference: DeepReference) -> float:
    """Size of the terms of the outputs, without signs: a paired network cancels all of it."""
    _, hs, _ = reference.forward()
    sums = [np.abs(h) @ np.abs(readout) for h, readout in zip(hs, reference.readouts, strict=True)]
    return float(np.max(np.sum(sums, axis=0)))


@pytest.mark.parametrize(("tracker", "name", "dtype"), CASES)
class TestDeepTracking:
    """Contract of every tracker of deep networks; a new one joins by its line in TRACKERS."""

    def compare(self, run: DeepTracking, reference: DeepReference, dtype: torch.dtype) -> None:
        zs, hs, outputs = reference.forward()
        close(run.outputs, outputs, dtype, terms(reference))
        thresholds = reference.network.thresholds
        found = zip(activations(run), fire_masks(run), strict=True)
        for (own, fires), h, z, b in zip(found, hs, zs, thresholds, strict=True):
            close(own, h, dtype)
            size = max(1.0, float(np.abs(z).max()))
            assert not np.any((fires != (z > b)) & (np.abs(z - b) > 1e3 * torch.finfo(dtype).eps * size))

    def test_start(self, tracker, name, dtype):
        network, run, reference = started(tracker, make_deep(name, dtype), name)
        self.compare(run, reference, dtype)
        x = torch.from_numpy(reference.inputs).to(dtype)
        close(network(x).detach().numpy(), reference.forward()[2], dtype, terms(reference))

    def test_signals_and_gram(self, tracker, name, dtype):
        network, run, reference = started(tracker, make_deep(name, dtype), name, threads=2)
        largest = max(float(np.abs(readout).max()) for readout in reference.readouts) * max(network.scales)
        for found, expected in zip(signals(run), reference.signals(), strict=True):
            close(found, expected, dtype, largest)
        jacobian = reference.jacobian()
        expected = jacobian @ jacobian.T
        close(gram(run), expected, dtype)
        operator, outputs = CoupledGram(run.factors()), network.out_features
        vectors = np.random.default_rng(3).standard_normal((len(expected), 2))
        close(operator.matvec(torch.from_numpy(vectors)).numpy(), expected @ vectors, dtype)
        at = np.arange(len(expected))[::2]
        close(operator.columns(torch.from_numpy(at)).numpy(), expected[:, at], dtype)
        close(operator.diagonal().numpy(), expected.diagonal(), dtype)
        blocks = expected.reshape(-1, outputs, len(expected) // outputs, outputs)
        close(operator.mean_block().numpy(), np.mean([blocks[:, c, :, c] for c in range(outputs)], axis=0), dtype)
        at = np.arange(len(blocks))
        close(operator.block_diagonal(outputs).numpy(), blocks[at, :, at, :], dtype)

    def test_the_displacement_follows_the_reference(self, tracker, name, dtype):
        problem = make_deep(name, dtype)
        network, _, reference = started(tracker, problem, name)
        run = tracker.start(network, problem.inputs, 2, anchored=True)
        start, generator = reference.weights(), np.random.default_rng(1)
        size = 0.05 / max(1.0, float(np.abs(problem.inputs).max())) ** 2
        for shrink in (0.0, 0.3, 0.0, 1.0, 0.5):
            g = size * generator.standard_normal(run.outputs.shape)
            moved = reference.weights() - start
            reference.step(g)
            reference.move(-shrink * moved)
            run.commit(propose(run, g, shrink))
            moved = reference.weights() - start
            self.compare(run, reference, dtype)
            assert run.displacement is not None
            jacobian = reference.jacobian()
            # The reference takes the difference of weights, which costs it digits where the moves are tiny.
            lost = 1e-4 * float((np.abs(jacobian) @ np.abs(start)).max())
            close(run.displacement.response[:, 0], jacobian @ moved, dtype, lost)
            tolerance = 1e-9 if dtype == torch.float64 else 1e-3
            # A difference of weights has the rounding of weights.
            rounding = 0.0 if tracker.name == "sparse" else torch.finfo(dtype).eps * float(np.linalg.norm(start))
            distance, expected = float(run.displacement.squared_norm[0]) ** 0.5, float(np.linalg.norm(moved))
            assert distance == pytest.approx(expected, rel=tolerance, abs=rounding + 1e-15)
        state = run.state()
        if tracker.name == "sparse":
            assert len(state["scales"]) == 2  # all the way back once: what came before is forgotten
        run.finish()
        again = tracker.start(network, problem.inputs, 1, anchored=True, state=state)
        assert again.displacement is not None
        np.testing.assert_array_equal(again.displacement.response, run.displacement.response)

    def test_steps_follow_the_reference(self, tracker, name, dtype):
        problem = make_deep(name, dtype)
        network, run, reference = started(tracker, problem, name, threads=2)
        generator = np.random.default_rng(1)
        size = 0.05 / max(1.0, float(np.abs(problem.inputs).max())) ** 2
        flips = 0
        for _ in range(3):
            before = fire_masks(run)
            propose(run, generator.standard_normal(run.outputs.shape))  # tried, and not carried out
            g = size * generator.standard_normal(run.outputs.shape)
            trial = propose(run, g)
            run.commit(trial)
            reference.step(g)
            self.compare(run, reference, dtype)
            flips += trial.flips
            assert trial.flips == sum(np.count_nonzero(a != b) for a, b in zip(before, fire_masks(run), strict=True))
        report = run.report()
        assert report.flips == flips
        assert report.full_passes == 7  # at the start, and in every trial
        assert report.tracker == tracker.name
        assert report.firing_pairs == sum(np.count_nonzero(fires) for fires in fire_masks(run))
        run.finish()
        weights = [*network.input_weights, *(linear.weight for linear in network.low_rank())]
        for weight, expected in zip(weights, (*reference.input_weights, *reference.hidden), strict=True):
            close(weight.detach().numpy(), expected, dtype)
        close(
            network(torch.from_numpy(reference.inputs).to(dtype)).detach().numpy(), run.outputs, dtype, terms(reference)
        )

    def test_a_trial_changes_nothing(self, tracker, name, dtype):
        problem = make_deep(name, dtype)
        network, run, _ = started(tracker, problem, name)
        weights = {key: value.clone() for key, value in network.state_dict().items()}
        outputs, before = run.outputs.copy(), gram(run)
        for seed in range(2):
            propose(run, np.random.default_rng(seed).standard_normal(outputs.shape))
        run.finish()
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
        again = tracker.start(network, problem.inputs)
        np.testing.assert_array_equal(again.outputs, outputs)
        np.testing.assert_array_equal(gram(again), before)

    def test_threads_do_not_change_a_bit(self, tracker, name, dtype):
        problem = make_deep(name, dtype)
        results = []
        for threads in (1, 3):
            _, run, _ = started(tracker, problem, name, threads)
            for seed in range(2):
                run.commit(propose(run, 0.01 * np.random.default_rng(seed).standard_normal(run.outputs.shape)))
            results.append((run.outputs, gram(run)))
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_array_equal(results[0][1], results[1][1])
