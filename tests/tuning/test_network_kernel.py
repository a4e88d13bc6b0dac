"""H of a network before training, as a tuning sees it."""

import numpy as np
import pytest

from widefit.nn import TwoLayer
from widefit.tuning import network_kernel
from widefit.tuning.duplicates import merge_duplicates
from widefit.tuning.limit_kernel import limit_gram
from widefit.tuning.network_kernel import network_gram
from widefit.tuning.tune import tune


def inputs_of(samples: int, features: int) -> np.ndarray:
    """Rows on the sphere, the last one twice."""
    rows = np.random.default_rng(samples).standard_normal((samples, features))
    rows[-1] = rows[0]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("samples", "width", "threshold"), [(1, 64, 0.0), (40, 500, 0.5), (90, 3000, 2.1), (5, 8, 9.0)]
)
def test_the_kernel_is_that_of_the_network_that_is_drawn(samples, width, threshold):
    inputs = inputs_of(samples, 6)
    network = TwoLayer(6, width, threshold=threshold, paired=True, seed=7)
    fires = (inputs @ network.weight.detach().numpy().astype(float).T > threshold).astype(float)
    expected = (inputs @ inputs.T) * (fires @ fires.T) / width
    np.testing.assert_allclose(network_gram(inputs, width, threshold, 7), expected, atol=1e-12)


def test_wider_networks_have_less_noise(monkeypatch):
    inputs = inputs_of(60, 5)
    limit = limit_gram(inputs, 1.0)
    noise = [np.linalg.norm(network_gram(inputs, width, 1.0, 0) - limit) for width in (200, 3200)]
    assert noise[1] < noise[0] / 2
    # Neurons that are not drawn count as those that are, with the noise of all.
    monkeypatch.setattr(network_kernel, "_DRAWN", 200)
    np.testing.assert_allclose(np.linalg.norm(network_gram(inputs, 3200, 1.0, 0) - limit), noise[0] / 4, rtol=1e-6)


def test_a_narrow_network_is_credited_with_less_and_moved_less():
    generator = np.random.default_rng(0)
    rows = generator.uniform(-1, 1, (250, 4))
    targets = (rows @ [1.0, -2.0, 0.5, 1.0])[:, None] + 0.3 * rows[:, :1] ** 2
    merged = merge_duplicates(rows, targets / targets.std(), np.ones(250))
    narrow, wide = (
        tune(merged, threshold=1.5, width=width, alpha="auto", readout_scale="auto", seed=0)
        for width in (1 << 14, 1 << 20)
    )
    assert narrow.error > 2 * wide.error
    assert narrow.readout_scale > 2 * wide.readout_scale
