"""The ridge of many rows, against regressions of the same rows written out."""

import numpy as np
import torch

from widefit.gram import co_firing
from widefit.nn import TwoLayer
from widefit.processes import ALONE
from widefit.trackers import Dense
from widefit.tuning import full_ridge as module
from widefit.tuning.full_ridge import full_ridge


def test_the_ridge_of_dense_regressions(monkeypatch):
    monkeypatch.setattr(module, "_HELD_PART", 0.3)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((200, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.stack([np.sin(4 * x[:, 0]), x[:, 1]], axis=1) + 0.3 * generator.standard_normal((200, 2))
    weight = generator.uniform(0.5, 2, 200)
    network = TwoLayer(4, 1000, 2, threshold=0.5, readout_scale=3.0, paired=True, dtype=torch.float64)
    settings = {"alpha": 1.0, "summed": np.dtype(float), "rank": 60, "threads": 1, "processes": ALONE, "seed": 0}
    found = full_ridge(network, x, y, weight, **settings)
    assert len(found.rows) == 60

    others = np.setdiff1d(np.arange(200), found.rows)
    patterns = Dense().start(network, x).patterns()
    own = [[one for one in patterns if one.chunk.output == output] for output in range(2)]
    grams = [co_firing(chunks, x @ x.T, network.coefficients()).matrix.numpy() for chunks in own]

    def regression(ridge: float) -> tuple[float, np.ndarray]:
        predictions = []
        for output, H in enumerate(grams):
            system = H[np.ix_(others, others)] + ridge * np.diag(1 / weight[others])
            predictions.append(H[np.ix_(found.rows, others)] @ np.linalg.solve(system, y[others, output]))
        squares = ((np.stack(predictions, axis=1) - y[found.rows]) ** 2).sum(axis=1)
        share = weight[found.rows] / weight[found.rows].sum()
        return float(np.sqrt(share @ squares)), np.stack(predictions, axis=1)

    errors = {ridge: regression(ridge)[0] for ridge in 10.0 ** np.arange(1.5, -3.1, -0.5)}
    assert errors[min(errors, key=lambda ridge: abs(ridge - found.alpha))] <= 1.01 * min(errors.values())
    np.testing.assert_allclose(found.error, regression(found.alpha)[0], rtol=0.02)
    np.testing.assert_allclose(found.predictions, regression(found.alpha)[1], atol=0.05)
    assert found.residual < 0.1
