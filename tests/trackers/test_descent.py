"""Stochastic steps: every tracker takes the ones that the default takes, step by step, with all samples in view."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import NAMES, DenseReference, Problem, make

from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.trackers import (
    Certificate,
    DataTree,
    Dense,
    HalfSpaceTree,
    Minibatches,
    Tracker,
    Tracking,
    VerletList,
    WeightTree,
)

TRACKERS = [
    Dense(),
    Certificate(),
    WeightTree(),
    DataTree(),
    HalfSpaceTree("data", 8),
    HalfSpaceTree("weights", 8),
    VerletList(),
]


@pytest.fixture(params=TRACKERS, ids=lambda tracker: tracker.name)
def tracker(request):
    """A new tracker joins by its line in TRACKERS."""
    return request.param


CASES = [
    (name, loss, shrink)
    for name in NAMES
    for loss, shrink in (("squared", 0.05), ("logistic", 0.0), ("softmax", 0.02))
    if loss != "softmax" or name == "three outputs"
]


def encoded(targets: np.ndarray, loss: str) -> np.ndarray:
    """Targets that a loss can take."""
    if loss == "logistic":
        return np.where(targets > 0, 1.0, -1.0)
    return np.eye(targets.shape[1])[targets.argmax(axis=1)] if loss == "softmax" else targets


def steps(problem: Problem, loss: str, shrink: float, batch: int = 12) -> Minibatches:
    """Two epochs of batches, the last of each short, with steps long enough to move the pattern."""
    generator = np.random.default_rng(3)
    samples = problem.inputs.shape[0]
    edges = np.append(np.arange(0, samples, batch), samples)
    reference = DenseReference.of(problem)
    diagonal = (reference.readout**2).sum(1) @ reference.fires() * (reference.inputs**2).sum(1) / reference.width
    rates = generator.uniform(0.2, 0.5, 2 * (edges.size - 1)) / (diagonal.max() or 1.0)
    return Minibatches(
        samples=np.concatenate([generator.permutation(samples) for _ in range(2)]),
        edges=np.concatenate([edges, samples + edges[1:]]),
        rates=rates,
        targets=encoded(problem.targets, loss),
        sample_weight=generator.uniform(0.5, 1.5, samples),
        loss=loss,
        shrink=np.full(rates.shape, shrink) if shrink else None,
    )


def start(
    problem: Problem, tracker: Tracker = TRACKERS[0], threads: int = 1
) -> tuple[TwoLayer, Tracking, CurrentGrams]:
    network = problem.fresh()
    anchor = network.weight.detach().numpy().copy()
    run = tracker.start(network, problem.inputs, anchor=anchor, threads=threads)
    inputs = problem.inputs.astype(np.float64)
    return network, run, CurrentGrams(run, inputs @ inputs.T, network.coefficients, held=network.out_features)


def patterns(run: Tracking) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


@cache
def by_default(
    name: str, loss: str, shrink: float, dtype: torch.dtype
) -> tuple[Problem, Minibatches, TwoLayer, Tracking, np.ndarray]:
    """A problem, its batches, the network and the run that the default leaves, and the pattern before."""
    problem = make(name, dtype)
    minibatches = steps(problem, loss, shrink, 50 if name in ("digits", "more samples than words") else 12)
    expected, reference, grams = start(problem)
    before = patterns(reference)
    Tracking.descend(reference, minibatches, grams)
    return problem, minibatches, expected, reference, before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "loss", "shrink"), CASES, ids=str)
def test_the_steps_are_those_of_the_default(tracker, name, loss, shrink, dtype):
    problem, minibatches, expected, reference, before = by_default(name, loss, shrink, dtype)
    network, run, grams = start(problem, tracker, threads=2)
    grams(0)
    flips = run.descend(minibatches, grams)
    weight = np.empty_like(network.weight.detach().numpy())
    run.write_weights(weight)

    tolerance = 1e-10 if dtype == torch.float64 else 2e-4
    scale = max(1.0, float(np.abs(reference.outputs).max()))
    np.testing.assert_allclose(run.outputs, reference.outputs, rtol=tolerance, atol=tolerance * scale)
    moved = float((expected.weight - problem.network.weight).detach().abs().max())
    rounding = 100 * torch.finfo(dtype).eps * float(problem.network.weight.detach().abs().max())
    np.testing.assert_allclose(weight, expected.weight.detach(), rtol=0, atol=tolerance * moved + rounding)
    # W is rounded to its dtype; W − W₀ inherits that, and J carries it to every sample.
    norm = float(np.linalg.norm(problem.inputs, axis=1).max())
    carried = rounding * norm * float(problem.network.readout.abs().sum()) / np.sqrt(problem.network.width)
    for found, wanted, least in (
        (run.displacement.response, reference.displacement.response, carried),
        (run.displacement.squared_norm, reference.displacement.squared_norm, rounding),
    ):
        atol = 50 * tolerance * np.abs(wanted).max() + least
        np.testing.assert_allclose(found, wanted, rtol=50 * tolerance, atol=atol)
    changed = np.count_nonzero(before != patterns(run))
    assert flips == run.report().flips
    assert flips >= changed
    # What it says of all samples is what its weights say, and H is that of its pattern.
    after = DenseReference.of(problem)
    after.weight = weight.astype(np.float64)
    np.testing.assert_allclose(run.outputs, after.outputs(), rtol=tolerance, atol=tolerance * scale)
    if dtype == torch.float64:
        assert np.array_equal(patterns(run), after.fires())
        if name != "digits":
            np.testing.assert_allclose(grams(0).matrix.numpy(), after.gram(0), rtol=1e-9, atol=1e-9 * scale)


def test_dense_pays_for_the_batches_and_one_pass():
    problem = make("more samples than words", torch.float32)
    minibatches = steps(problem, "squared", 0.0)
    _, run, grams = start(problem)
    before, width, samples = patterns(run), problem.network.width, problem.inputs.shape[0]
    flips = run.descend(minibatches, grams)
    assert flips == np.count_nonzero(before != patterns(run)) > 0
    assert run.report().full_passes == 2
    assert run.report().pairs_evaluated == width * (minibatches.samples.size + 2 * samples)


@pytest.mark.parametrize("name", ["digits", "three outputs", "plain relu", "more samples than words"])
def test_threads_do_not_change_a_bit(tracker, name):
    problem = make(name, torch.float32, width=6000)
    minibatches = steps(problem, "squared", 0.02, batch=40)
    results = []
    for threads in (1, 2, 5):
        network, run, grams = start(problem, tracker, threads)
        run.descend(minibatches, grams)
        run.finish()
        results.append((network.weight.detach().numpy(), run.outputs, patterns(run)))
    for other in results[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(results[0], other, strict=True))


@given(st.integers(1, 90), st.integers(1, 4), st.integers(2, 90), st.floats(-2, 3), st.integers(1, 90))
@settings(max_examples=25)
def test_batches_of_any_size(samples, features, width, threshold, batch):
    """Around the words of the bits, few neurons, any density of firing: sparse and dense moves alike."""
    generator = np.random.default_rng(width)
    inputs = generator.standard_normal((samples, features))
    network = TwoLayer(features, width, threshold=threshold, seed=1, dtype=torch.float64)
    problem = Problem("any", network, inputs, generator.standard_normal((samples, 1)))
    minibatches = steps(problem, "squared", 0.0, min(batch, samples))
    expected, reference, reference_grams = start(problem)
    Tracking.descend(reference, minibatches, reference_grams)
    descended, run, grams = start(problem)
    run.descend(minibatches, grams)
    scale = float(expected.weight.detach().abs().max())
    torch.testing.assert_close(descended.weight, expected.weight, rtol=1e-8, atol=1e-8 * scale)


def test_an_overflow_shows_in_the_outputs():
    """Weights of infinity or NaN must not look like silent neurons."""
    problem = make("random", torch.float32)
    minibatches = steps(problem, "squared", 0.0)
    for huge in (1e30, 1e300):
        far = Minibatches(
            minibatches.samples, minibatches.edges, huge * minibatches.rates, problem.targets, minibatches.sample_weight
        )
        for descend in (Tracking.descend, type(start(problem)[1]).descend):
            _, run, grams = start(problem)
            with np.errstate(all="ignore"):
                descend(run, far, grams)
            assert not np.isfinite(run.outputs).all()


def test_shrinking_needs_initial_weights():
    problem = make("random", torch.float32)
    network = problem.fresh()
    run = Dense().start(network, problem.inputs)
    with pytest.raises(ValueError, match="started without an anchor"):
        run.descend(steps(problem, "squared", 0.1), start(problem)[2])
