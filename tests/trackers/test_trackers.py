"""Every tracker, held against dense float64 matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NAMES, DenseReference, make

import widefit
from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.trackers import Certificate, DataTree, Dense, HalfSpaceTree, Torch, Update, VerletList, WeightTree

TRACKERS = [
    Dense(),
    Certificate(),
    WeightTree(),
    DataTree(),
    HalfSpaceTree("data", 8),
    HalfSpaceTree("weights", 8),
    VerletList(),
    Torch(),
]


def grams(run, inputs: np.ndarray, network) -> CurrentGrams:
    """H of every output at the weights that the run has."""
    similarity = inputs.astype(np.float64) @ inputs.astype(np.float64).T
    return CurrentGrams(run, similarity, network.coefficients, held=network.out_features)


# Rounding is what float32 adds: where it is large or hides nothing, and everywhere for the two that "auto" takes.
ROUNDED = ("random", "huge", "tiny", "digits")
CASES = [
    pytest.param(tracker, name, dtype, id=f"{tracker.name}-{index}-{name}-{str(dtype).removeprefix('torch.')}")
    for index, tracker in enumerate(TRACKERS)
    for name in NAMES
    for dtype in (torch.float64, torch.float32)
    if dtype == torch.float64 or index < 2 or name in ROUNDED
]


@pytest.mark.parametrize(("tracker", "name", "dtype"), CASES)
class TestTracker:
    """Contract of every tracker; a new one joins by its line in TRACKERS."""

    def slack(self, reference: DenseReference, dtype: torch.dtype) -> np.ndarray:
        """Rounding of a pre-activation: pairs nearer to the threshold may go either way."""
        size = np.linalg.norm(reference.weight, axis=1)[:, None] * np.linalg.norm(reference.inputs, axis=1)
        return 50 * torch.finfo(dtype).eps * (size + abs(reference.threshold))

    def compare(self, run, reference: DenseReference, dtype: torch.dtype) -> None:
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        fires = np.concatenate([pattern.dense() for pattern in run.patterns()])
        margin = np.abs(reference.preactivations() - reference.threshold)
        wrong = fires != reference.fires()
        assert not np.any(wrong & (margin > self.slack(reference, dtype)))
        outputs = reference.outputs()
        np.testing.assert_allclose(run.outputs, outputs, rtol=tolerance, atol=tolerance * max(1, np.abs(outputs).max()))

    def updates(self, problem, seed: int):
        generator = np.random.default_rng(seed)
        outputs = problem.network.out_features
        size = 0.3 * np.sqrt(problem.network.width) / max(1.0, float(np.abs(problem.inputs).max())) ** 2
        for shrink in (0.0, 0.4, 1.0):
            g = size * generator.standard_normal((problem.inputs.shape[0], outputs)) / 10
            yield Update(g, np.full(outputs, shrink))

    def test_start(self, tracker, name, dtype):
        problem = make(name, dtype)
        run = tracker.start(problem.fresh(), problem.inputs)
        self.compare(run, DenseReference.of(problem), dtype)
        assert run.report().firing_pairs == sum(int(pattern.counts.sum()) for pattern in run.patterns())

    def test_updates_follow_the_reference(self, tracker, name, dtype):
        problem = make(name, dtype)
        network, reference = problem.fresh(), DenseReference.of(problem)
        run = tracker.start(network, problem.inputs, anchor=network.weight.detach().numpy().copy(), threads=2)
        flips, weights = 0, np.empty_like(network.weight.detach().numpy())
        for update in self.updates(problem, 1):
            before = np.concatenate([pattern.dense() for pattern in run.patterns()])
            trial = run.propose(update, grams(run, problem.inputs, network))
            run.commit(trial)
            reference.step(update.g, update.shrink)
            self.compare(run, reference, dtype)
            after = np.concatenate([pattern.dense() for pattern in run.patterns()])
            assert trial.flips == np.count_nonzero(before != after)
            flips += trial.flips
            run.write_weights(weights)
            offset = reference.weight - reference.initial
            response = reference.response(offset)
            tolerance = 1e-11 if dtype == torch.float64 else 1e-3
            # W is rounded to its dtype, W − W₀ inherits that, and J carries it to every sample.
            rounding = np.abs(reference.readout).sum() / np.sqrt(reference.width) * self.slack(reference, dtype).max()
            np.testing.assert_allclose(run.displacement.response, response, rtol=tolerance, atol=tolerance + rounding)
            np.testing.assert_allclose(
                run.displacement.squared_norm.sum(), (offset**2).sum(), rtol=tolerance, atol=tolerance
            )
        assert run.report().flips == flips
        scale = np.abs(reference.weight).max()
        eps = torch.finfo(dtype).eps
        np.testing.assert_allclose(weights, reference.weight, atol=200 * eps * scale)
        run.finish()
        np.testing.assert_array_equal(network.weight.detach().numpy(), weights)

    def test_a_trial_changes_nothing(self, tracker, name, dtype):
        problem = make(name, dtype)
        network = problem.fresh()
        weight = network.weight.detach().clone()
        run = tracker.start(network, problem.inputs, anchor=weight.numpy().copy())
        outputs, patterns = run.outputs.copy(), [pattern.dense() for pattern in run.patterns()]
        for update in self.updates(problem, 2):
            run.propose(update, grams(run, problem.inputs, network))
        assert torch.equal(network.weight, weight)
        assert np.array_equal(run.outputs, outputs)
        assert all(np.array_equal(now.dense(), before) for now, before in zip(run.patterns(), patterns, strict=True))

    def test_threads_do_not_change_a_bit(self, tracker, name, dtype):
        problem = make(name, dtype)
        results = []
        for threads in (1, 3):
            network = problem.fresh()
            run = tracker.start(network, problem.inputs, anchor=network.weight.detach().numpy().copy(), threads=threads)
            for update in self.updates(problem, 3):
                run.commit(run.propose(update, grams(run, problem.inputs, network)))
            run.finish()
            results.append((network.weight.detach().numpy(), run.outputs, run.displacement.response))
        for one, other in zip(*results, strict=True):
            assert np.array_equal(one, other)

    def test_lists_of_a_sample_and_of_a_neuron(self, tracker, name, dtype):
        problem = make(name, dtype)
        run = tracker.start(problem.fresh(), problem.inputs)
        fires = np.concatenate([pattern.dense() for pattern in run.patterns()])
        for sample in {0, problem.inputs.shape[0] - 1}:
            assert np.array_equal(run.fired_neurons(sample), np.flatnonzero(fires[:, sample]))
        for neuron in (0, 77, problem.network.width - 1):
            assert np.array_equal(run.fired_samples(neuron), np.flatnonzero(fires[neuron]))


@given(st.integers(1, 70), st.integers(1, 4), st.integers(2, 90), st.floats(-2, 3), st.integers(0, 99))
def test_random_shapes(samples, features, width, threshold, seed):
    """Sizes around the words of a bitset, few neurons, any density of firing."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((samples, features))
    network = TwoLayer(features, width, threshold=threshold, seed=seed, dtype=torch.float64)
    run = Dense().start(network, inputs)
    z = network.weight.detach().numpy() @ inputs.T
    fires = np.concatenate([pattern.dense() for pattern in run.patterns()])
    clear = np.abs(z - threshold) > 1e-12
    assert np.array_equal(fires[clear], (z > threshold)[clear])
    g = generator.standard_normal((samples, 1))
    trial = run.propose(Update(g, np.zeros(1)), grams(run, inputs, network))
    run.commit(trial)
    again = Dense().start(network, inputs)
    assert np.array_equal(trial.outputs, again.outputs)
    now = np.concatenate([pattern.dense() for pattern in again.patterns()])
    assert trial.flips == np.count_nonzero(now != fires)


@pytest.mark.parametrize("tracker", TRACKERS, ids=lambda tracker: tracker.name)
def test_steps_whose_terms_nearly_cancel_are_summed_exactly(tracker):
    # As those of many samples with a small ridge do: terms a thousand times their sum, each far below a weight.
    generator = np.random.default_rng(0)
    pairs, features = 3000, 4
    network = TwoLayer(features, 256, 1, threshold=0.0, seed=1)
    inputs = np.repeat(generator.standard_normal((pairs, features)), 2, axis=0).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    large, small = generator.standard_normal((2, pairs))
    g = 1e-2 * np.column_stack([large + 1e-3 * (1 + small), -large]).reshape(-1, 1)
    initial = network.weight.detach().numpy().astype(np.float64)
    fires = initial @ inputs.T.astype(np.float64) > 0
    sums = (fires * g[:, 0]) @ inputs.astype(np.float64)
    run = tracker.start(network, inputs)
    run.commit(run.propose(Update(g, np.zeros(1)), grams(run, inputs, network)))
    run.finish()
    moved = network.weight.detach().numpy() - initial
    expected = -network.coefficients()[:, None] * sums
    rounding = np.finfo(np.float32).eps * np.abs(initial).max()
    np.testing.assert_allclose(moved, expected, atol=rounding, rtol=0)
    assert np.abs(expected).max() > 100 * rounding


def test_a_dense_trial_that_is_kept_is_the_one_that_is_made_again(monkeypatch):
    weights = []
    for kept in (0, 1 << 25):
        monkeypatch.setattr("widefit.trackers.dense._KEPT_BYTES", kept)
        problem = make("three outputs", torch.float32)
        network = problem.fresh()
        history = widefit.train(
            network, problem.inputs, problem.targets, tracker="dense", alpha=0.01, max_iter=3, tol=0
        )
        assert len(history) > 2
        weights.append(network.weight.detach())
    assert torch.equal(*weights)
