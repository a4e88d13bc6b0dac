"""H from fire masks: against K ∘ N / m written out."""

import numpy as np
import pytest
import torch
from operator_case import OperatorCase, rows
from problems import NAMES, make

from widefit.gram import CurrentGrams, MaskGram, MaskGrams, co_firing, similarity
from widefit.nn import TwoLayer
from widefit.trackers import Dense, Torch, Update


class TestMaskGram(OperatorCase):
    dtypes = (torch.float64,)

    def make(self, kind, dtype):
        inputs = rows(kind, 4).numpy()
        network = TwoLayer(4, 40, threshold=0.2, dtype=torch.float64)
        expected = co_firing(Dense().start(network, inputs).patterns(), inputs @ inputs.T, network.coefficients())
        return MaskGram(Torch().start(network, inputs), 0), expected.matrix


class TestUnequalReadouts(OperatorCase):
    """Sums of squares in place of counts."""

    dtypes = (torch.float64,)

    def make(self, kind, dtype):
        inputs = rows(kind, 4).numpy()
        network = TwoLayer(4, 40, threshold=0.2, dtype=torch.float64)
        network.readout.data *= torch.linspace(0.5, 2, 40, dtype=torch.float64)[:, None]
        expected = co_firing(Dense().start(network, inputs).patterns(), inputs @ inputs.T, network.coefficients())
        return MaskGram(Torch().start(network, inputs), 0), expected.matrix


@pytest.mark.parametrize("name", NAMES)
def test_follows_the_run(name):
    problem = make(name, torch.float64)
    network = problem.fresh()
    run = Torch().start(network, problem.inputs)
    grams = MaskGrams(run, held=1)
    for _ in range(2):
        for output in range(network.out_features):
            counted = CurrentGrams(run, similarity(problem.inputs), network.coefficients, 1)(output).matrix
            expected = torch.triu(counted) + torch.triu(counted, 1).T
            scale = max(float(expected.abs().max()), 1e-300)
            torch.testing.assert_close(grams(output).dense(), expected, rtol=1e-12, atol=1e-13 * scale)
        size = 0.1 * np.sqrt(network.width) / max(1.0, float(np.abs(problem.inputs).max())) ** 2
        g = size * np.random.default_rng(0).standard_normal((len(problem.inputs), network.out_features))
        trial = run.propose(Update(g, np.zeros(network.out_features)), grams)
        grams.follow(trial.changes)
        run.commit(trial)


def test_counts_are_exact_whatever_fires():
    """All neurons fire on all samples: every product of masks is the number of neurons, to the last bit."""
    network = TwoLayer(2, 5000, threshold=-100.0)
    inputs = np.ones((3, 2), np.float32)
    assert torch.equal(MaskGram(Torch().start(network, inputs), 0).dense(), torch.full((3, 3), 2.0).double())
