"""H = K ∘ N / m against J Jᵀ with J written out."""

import numpy as np
import pytest
import torch
from problems import NAMES, DenseReference, make
from scipy.stats import multivariate_normal

from widefit.gram import DenseGram, co_firing
from widefit.nn import TwoLayer
from widefit.trackers import Dense
from widefit.trackers.base import Flips
from widefit.tuning.limit_kernel import co_firing_probability, limit_gram


@pytest.mark.parametrize("weighted", [False, True], ids=["equal readouts", "any readouts"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_product_of_the_jacobian(name, weighted):
    problem = make(name, torch.float64)
    network = problem.fresh()
    if weighted:
        factors = torch.linspace(0, 2, network.width, dtype=torch.float64)[:, None]
        network.readout.data *= factors
    reference = DenseReference.of(problem)
    reference.readout = network.readout.detach().numpy()
    run = Dense().start(network, problem.inputs)
    similarity = problem.inputs @ problem.inputs.T
    for output in range(network.out_features):
        own = [pattern for pattern in run.patterns() if pattern.chunk.output == output]
        expected = reference.gram(output)
        operator = co_firing(own, similarity, network.coefficients())
        atol = 1e-13 * max(np.abs(expected).max(), 1e-300)
        np.testing.assert_allclose(operator.matrix.numpy(), expected, rtol=1e-11, atol=atol)
        threaded = co_firing(own, similarity, network.coefficients(), threads=3)
        assert torch.equal(operator.matrix, threaded.matrix)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal readouts", "any readouts"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("threads", [1, 3])
def test_following_many_flips_is_counting_anew(weighted, threshold, threads):
    generator = np.random.default_rng(1)
    inputs = generator.standard_normal((90, 4))
    similarity = inputs @ inputs.T
    weight = generator.standard_normal((2000, 4))
    coefficients = generator.uniform(0.5, 2, 2000) if weighted else np.full(2000, 0.5)

    def patterns(at: np.ndarray):
        network = TwoLayer.from_tensors(
            torch.from_numpy(at), torch.from_numpy(coefficients[:, None]), threshold=threshold
        )
        return Dense().start(network, inputs).patterns()

    before, after = patterns(weight), patterns(weight + 0.3 * generator.standard_normal(weight.shape))
    fired = [np.concatenate([pattern.dense() for pattern in own]) for own in (before, after)]
    neurons, samples = np.nonzero(fired[0] != fired[1])
    assert neurons.size > 2000
    for taken in (slice(None), slice(0, 300)):
        fires = fired[1][neurons[taken], samples[taken]]
        changed = fired[0].copy()
        changed[neurons[taken], samples[taken]] = fires
        operator = co_firing(before, similarity, coefficients, threads)
        operator.flip(before, Flips(neurons[taken], samples[taken].astype(np.int32), fires))
        expected = similarity * ((changed * coefficients[:, None] ** 2).T @ changed)
        np.testing.assert_allclose(operator.matrix.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_operator_views_agree():
    matrix = torch.randn(7, 7, dtype=torch.float64)
    matrix = matrix @ matrix.T
    operator = DenseGram(matrix)
    vectors = torch.randn(7, 2, dtype=torch.float64)
    assert torch.equal(operator.matvec(vectors), matrix @ vectors)
    assert torch.equal(operator.diagonal(), matrix.diagonal())
    assert torch.equal(operator.columns(torch.tensor([3, 1])), matrix[:, [3, 1]])
    operator.dense().zero_()
    assert torch.equal(operator.matrix, matrix)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 2.0, 3.0])
def test_limit_probability_is_the_bivariate_normal(threshold):
    for correlation in (-0.99, -0.5, 0.0, 0.3, 0.9, 0.999):
        cov = [[1, correlation], [correlation, 1]]
        expected = multivariate_normal([0, 0], cov).cdf([-threshold, -threshold])
        found = co_firing_probability(np.array([[correlation]]), threshold)[0, 0]
        assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_wide_networks_approach_the_limit(threshold):
    inputs = make("random", torch.float64).inputs
    network = TwoLayer(inputs.shape[1], 1 << 16, threshold=threshold, dtype=torch.float64)
    run = Dense().start(network, inputs)
    finite = co_firing(run.patterns(), inputs @ inputs.T, network.coefficients()).matrix.numpy()
    # The standard error of a count over 2^16 neurons is below 0.002.
    np.testing.assert_allclose(finite, limit_gram(inputs, threshold), atol=0.01)
