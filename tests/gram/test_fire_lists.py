"""H applied from fire lists: against K ∘ N / m written out, whatever the rows, the words and the threads."""

import numpy as np
import pytest
import torch
from operator_case import OperatorCase, rows
from problems import NAMES, make

from widefit.gram import CurrentGrams, FireListGram, FireListGrams, Samples, co_firing, similarity
from widefit.kernels import fire_lists as kernels
from widefit.nn import TwoLayer
from widefit.trackers import Certificate, Dense
from widefit.trackers.fire_pattern import Chunk, FirePattern


def random_patterns(generator: np.random.Generator, neurons: int, samples: int, share: float) -> list[FirePattern]:
    """Two chunks of one output: sparse rows, rows that fire on all samples, and rows that fire on none."""
    fires = generator.random((neurons, samples)) < share
    fires[::7] = True
    fires[3::7] = False
    half = neurons // 2
    return [FirePattern.of(Chunk(0, half, 0), fires[:half]), FirePattern.of(Chunk(half, neurons, 0), fires[half:])]


def written_out(patterns: list[FirePattern], inputs: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    fires = np.concatenate([pattern.dense() for pattern in patterns]).astype(np.float64)
    exact = inputs.astype(np.float64)
    return (exact @ exact.T) * ((fires.T * coefficients**2) @ fires)


class TestFireListGram(OperatorCase):
    dtypes = (torch.float64,)

    def make(self, kind, dtype):
        inputs = rows(kind, 4).numpy()
        network = TwoLayer(4, 40, threshold=0.2, dtype=torch.float64)
        patterns = Dense().start(network, inputs).patterns()
        expected = co_firing(patterns, inputs @ inputs.T, network.coefficients()).matrix
        return FireListGram(patterns, Samples.of(inputs), network.coefficients), expected


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_counted_matrix(name):
    problem = make(name, torch.float64)
    network = problem.fresh()
    run = Dense().start(network, problem.inputs)
    dense = CurrentGrams(run, similarity(problem.inputs), network.coefficients, 1)
    lists = FireListGrams(run, Samples.of(problem.inputs), network.coefficients)
    for output in range(network.out_features):
        expected = dense(output).matrix
        scale = max(float(expected.abs().max()), 1e-300)
        torch.testing.assert_close(lists(output).dense(), expected, rtol=1e-10, atol=1e-12 * scale)
        vector = torch.randn(len(expected), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        size = float((expected.abs() @ vector.abs()).max())
        torch.testing.assert_close(
            lists(output).matvec(vector), expected @ vector, rtol=1e-10, atol=1e-13 * max(size, 1e-300)
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("samples", "features"), [(1, 1), (63, 5), (700, 70), (10_000, 3)])
def test_tiles_blocks_and_threads(samples, features, dtype):
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((samples, features)).astype(dtype)
    patterns = random_patterns(generator, 60 if samples > 1000 else 3000, samples, 0.03)
    coefficients = generator.uniform(0, 2, patterns[-1].chunk.last)

    def operator(threads: int) -> FireListGram:
        return FireListGram(patterns, Samples.of(inputs), lambda low, high: coefficients[low:high], threads)

    vectors = torch.from_numpy(generator.standard_normal((samples, 3)))
    found = operator(1).matvec(vectors)
    assert torch.equal(found, operator(3).matvec(vectors))
    some = torch.arange(0, samples, max(1, samples // 150))
    assert torch.equal(operator(1).columns(some), operator(3).columns(some))
    tolerance = 1e-12 if dtype == np.float64 else 2e-6
    if samples > 1000:
        # The same sums neuron by neuron, without tiles.
        fires = np.concatenate([pattern.dense() for pattern in patterns]).astype(np.float64)
        expected, largest = np.zeros((samples, 3)), np.zeros((samples, 3))
        for row, weight in zip(fires, coefficients**2, strict=True):
            own = row[:, None] * inputs
            expected += weight * (own @ (own.T @ vectors.numpy()))
            largest += weight * (np.abs(own) @ (np.abs(own).T @ np.abs(vectors.numpy())))
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance * largest.max())
        return
    expected = torch.from_numpy(written_out(patterns, inputs, coefficients))
    scale = float((expected.abs() @ vectors.abs()).max())
    torch.testing.assert_close(found, expected @ vectors, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(
        operator(1).columns(some), expected[:, some], rtol=0, atol=tolerance * float(expected.abs().max())
    )
    torch.testing.assert_close(operator(1).diagonal(), expected.diagonal(), rtol=1e-12, atol=0)


def pairs_that_differ(generator: np.random.Generator, pairs: int, samples: int) -> np.ndarray:
    """Fire rows, two by two: equal ones, ones that differ a little, and ones with nothing in common."""
    fires = np.repeat(generator.random((pairs, samples)) < generator.choice([0.08, 0.2], (pairs, 1)), 2, axis=0)
    fires[1::2] ^= generator.random((pairs, samples)) < 0.005
    fires[1:40:4] = fires[:40:4]
    fires[42] = ~fires[43]
    fires[44:46] = False
    return fires


@pytest.mark.parametrize(("dtype", "summed"), [(np.float64, np.float64), (np.float32, np.float32), (np.float32, float)])
def test_neurons_of_a_pair_share_a_walk(dtype, summed):
    generator = np.random.default_rng(2)
    inputs = generator.standard_normal((900, 21)).astype(dtype)
    fires = pairs_that_differ(generator, 60, 900)
    # Neurons that fire on nothing have no row, and a chunk may begin within a pair.
    kept = np.setdiff1d(np.arange(51), [20, 33])
    chunks = [FirePattern.of(Chunk(0, 51, 0), fires[kept], kept), FirePattern.of(Chunk(51, 120, 0), fires[51:])]
    fires[[20, 33]] = False
    weights = generator.uniform(0, 2, 120)
    operator = FireListGram(chunks, Samples.of(inputs, np.dtype(summed)), lambda low, high: weights[low:high])
    assert sum(task.twins.weights.size for task in operator._tasks) < 70
    assert any(task.twins.samples.size for task in operator._tasks)
    exact = inputs.astype(np.float64)
    expected = torch.from_numpy((exact @ exact.T) * ((fires.T * weights**2) @ fires))
    vectors = torch.from_numpy(generator.standard_normal((900, 3)))
    scale = float((expected.abs() @ vectors.abs()).max())
    tolerance = 1e-13 if dtype == np.float64 else 1e-6
    torch.testing.assert_close(operator.matvec(vectors), expected @ vectors, rtol=0, atol=tolerance * scale)
    some = torch.from_numpy(generator.permutation(900)[:70])
    largest = float(expected.abs().max())
    torch.testing.assert_close(operator.columns(some), expected[:, some], rtol=0, atol=tolerance * largest)
    torch.testing.assert_close(operator.block(some), expected[some][:, some], rtol=0, atol=tolerance * largest)
    torch.testing.assert_close(operator.diagonal(), expected.diagonal(), rtol=1e-6, atol=tolerance * largest)


@pytest.mark.parametrize("kinds", [1, 3, 60])
def test_columns_of_neurons_with_few_or_many_weights(kinds):
    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((333, 4))
    fires = pairs_that_differ(generator, 60, 333)
    weights = generator.uniform(0.5, 2, kinds)[np.arange(120) // 2 % kinds]
    patterns = [FirePattern.of(Chunk(0, 120, 0), fires)]
    operator = FireListGram(patterns, Samples.of(inputs), lambda low, high: weights[low:high])
    expected = torch.from_numpy((inputs @ inputs.T) * ((fires.T * weights**2) @ fires))
    some = torch.from_numpy(generator.permutation(333)[:100])
    torch.testing.assert_close(operator.columns(some), expected[:, some], rtol=0, atol=1e-12 * float(expected.max()))


def test_pairs_start_with_one_row():
    network = TwoLayer(5, 64, 2, paired=True)
    run = Dense().start(network, np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32))
    operator = FireListGrams(run, Samples.of(np.eye(40, 5, dtype=np.float32)), network.coefficients)(1)
    assert 16 <= sum(task.twins.weights.size for task in operator._tasks) < 24
    assert not any(task.twins.samples.size for task in operator._tasks)


def test_patterns_of_the_certificate_tracker():
    """Short words, and rows of the neurons that fire alone."""
    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((50, 6))
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    network = TwoLayer(6, 300, 2, threshold=2.0, dtype=torch.float64, seed=1)
    run = Certificate().start(network, inputs)
    assert any(pattern.neurons is not None for pattern in run.patterns())
    dense = CurrentGrams(run, similarity(inputs), network.coefficients, 2)
    lists = FireListGrams(run, Samples.of(inputs), network.coefficients)
    for output in range(2):
        torch.testing.assert_close(lists(output).dense(), dense(output).matrix, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("features", [1, 16, 17, 100, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_hold_all_columns(features, dtype):
    inputs = np.random.default_rng(0).standard_normal((5, features)).astype(dtype)
    blocks = kernels.blocks_of(inputs)
    assert blocks.ctypes.data % 64 == 0
    whole = np.concatenate(list(blocks), axis=1)
    np.testing.assert_array_equal(whole[:, :features], inputs)
    assert not whole[:, features:].any()
