"""Windows of the certificate tracker: many small steps in a row, full-batch and stochastic, against dense float64."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DenseReference, sphere

from widefit.gram import CurrentGrams
from widefit.nn import TwoLayer
from widefit.trackers import Certificate, Dense, Minibatches, Tracking, Update


@dataclass(frozen=True)
class Descent:
    """A small problem, and steps short enough for windows."""

    network: TwoLayer
    inputs: np.ndarray
    targets: np.ndarray
    rate: float
    generator: np.random.Generator

    @property
    def reference(self) -> DenseReference:
        weight = self.network.weight.detach().numpy()
        return DenseReference(
            weight.copy(),
            weight.copy(),
            self.network.readout.detach().numpy(),
            self.network.threshold,
            0.0,
            self.inputs,
        )


def descent(seed: int) -> Descent:
    """Plain and shifted ReLU, one output and three, duplicates and rows of zeros, lines and balls."""
    generator = np.random.default_rng(seed)
    samples, features = int(generator.integers(1, 40)), int(generator.integers(1, 6))
    outputs = int(generator.choice([1, 3]))
    inputs = sphere(generator.standard_normal((samples, features)))
    inputs[generator.random(samples) < 0.2] = inputs[0]
    inputs[generator.random(samples) < 0.05] = 0
    threshold = float(generator.choice([0.0, generator.uniform(-0.5, 1.5)]))
    width = outputs * int(generator.integers(2, 150))
    network = TwoLayer(features, width, outputs, threshold=threshold, seed=seed, dtype=torch.float64)
    targets = generator.standard_normal((samples, outputs))
    return Descent(network, inputs, targets, 10.0 ** generator.uniform(-2.5, -0.3) * outputs / samples, generator)


def start(problem: Descent, tracker) -> tuple[Tracking, CurrentGrams]:
    network = problem.network
    own = TwoLayer(
        network.in_features, network.width, network.out_features, threshold=network.threshold, seed=0,
        dtype=torch.float64,
    )  # fmt: skip
    own.load_state_dict(network.state_dict())
    anchor = own.weight.detach().numpy().copy()
    run = tracker.start(own, problem.inputs, anchor=anchor)
    return run, CurrentGrams(run, problem.inputs @ problem.inputs.T, own.coefficients, held=own.out_features)


def fires(run: Tracking) -> np.ndarray:
    return np.concatenate([pattern.dense() for pattern in run.patterns()])


def assert_follows(run: Tracking, reference: DenseReference) -> None:
    """Patterns, outputs and displacement."""
    z = reference.preactivations()
    clear = np.abs(z - reference.threshold) > 1e-11 * (1 + np.abs(z).max())
    assert np.array_equal(fires(run)[clear], reference.fires()[clear])
    offset = reference.weight - reference.initial
    np.testing.assert_allclose(run.outputs, reference.outputs(), atol=1e-10)
    for output in range(run.outputs.shape[1]):
        response = reference.jacobian(output) @ offset.ravel()
        np.testing.assert_allclose(run.displacement.response[:, output], response, atol=1e-8)
    np.testing.assert_allclose(run.displacement.squared_norm.sum(), np.sum(offset**2), rtol=1e-7, atol=1e-9)


WIDE = Certificate(reach=30.0, most=1.0, least=0.5, gain=0.0)


def full_batch(seed: int) -> int:
    """Sixty steps of gradient descent, looked at now and then; the windows that were opened."""
    problem = descent(seed)
    reference = problem.reference
    run, gram = start(problem, WIDE)
    flips = 0
    before = fires(run)
    for step in range(60):
        g = problem.rate * (run.outputs - problem.targets) * (5 if step == 40 else 1)
        update = Update(g, np.zeros(g.shape[1]))
        if step % 7 == 0:
            run.propose(Update(0.5 * g[::-1], update.shrink), gram)
        trial = run.propose(update, gram)
        gram.follow(trial.changes)
        run.commit(trial)
        reference.step(g, update.shrink)
        if step % 6 == 0:
            assert_follows(run, reference)
        if step % 20 == 0:
            np.testing.assert_allclose(gram(0).matrix.numpy(), reference.gram(0), atol=1e-11)
        flips += trial.flips
    assert flips == run.report().flips >= np.count_nonzero(before != fires(run))
    assert_follows(run, reference)
    run.finish()
    return run.windows


@settings(max_examples=6)
@given(st.integers(0, 10**6))
def test_full_batch_steps_follow_dense_matrices(seed):
    full_batch(seed)


def test_steps_that_are_alike_open_windows():
    assert sum(full_batch(seed) > 0 for seed in range(4)) >= 2


def epochs(problem: Descent, loss: str) -> Minibatches:
    """Three epochs."""
    samples, batch = problem.inputs.shape[0], int(problem.generator.integers(1, 9))
    edges = np.append(np.arange(0, samples, batch), samples)
    targets = problem.targets
    if loss == "logistic":
        targets = np.where(targets > 0, 1.0, -1.0)
    if loss == "softmax":
        targets = np.eye(targets.shape[1])[targets.argmax(axis=1)]
    return Minibatches(
        samples=np.concatenate([problem.generator.permutation(samples) for _ in range(3)]),
        edges=np.concatenate([edges, samples + edges[1:], 2 * samples + edges[1:]]),
        rates=np.full(3 * (edges.size - 1), problem.rate),
        targets=targets,
        sample_weight=problem.generator.uniform(0.5, 1.5, samples),
        loss=loss,
    )


def stochastic(seed: int, loss: str) -> int:
    """Two descents of three epochs each; the windows that were opened."""
    problem = descent(seed)
    reference = problem.reference
    run, gram = start(problem, WIDE)
    plain, plain_gram = start(problem, Dense())
    for _ in range(2):
        minibatches = epochs(problem, loss)
        run.descend(minibatches, gram)
        plain.descend(minibatches, plain_gram)
        plain.write_weights(reference.weight)
        np.testing.assert_allclose(run.outputs, plain.outputs, atol=1e-10)
        assert_follows(run, reference)
        np.testing.assert_allclose(gram(0).matrix.numpy(), reference.gram(0), atol=1e-11)
    return run.windows


@settings(max_examples=6)
@given(st.integers(0, 10**6), st.sampled_from(["squared", "logistic", "softmax"]))
def test_stochastic_steps_follow_dense_ones(seed, loss):
    stochastic(seed, loss)


def test_stochastic_steps_open_windows():
    assert sum(stochastic(seed, "squared") > 0 for seed in range(4)) >= 2
