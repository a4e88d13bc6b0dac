"""No tensor on the wrong device, and few waits: shown without an accelerator, by tensors that report another device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, data, network
from elsewhere import DEVICE, Watched

import widefit
from widefit.gram import MaskGrams
from widefit.trackers.deep.masks import DeepTorch


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*residuals at the same points:UserWarning")
def test_the_numbers_are_those_of_the_host(name: str):
    expected = torch.tensor(CASES[name]("cpu"), dtype=torch.float64)
    with Watched():
        found = torch.tensor(CASES[name](DEVICE), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


class TestTheDevice:
    """Properties that the tests above rely on."""

    def test_the_host_may_not_be_mixed_in(self):
        with Watched():
            x = torch.ones(3).to(DEVICE)
            for mixed in (lambda: x + torch.ones(3), lambda: torch.cat([x, torch.ones(1)]), lambda: x @ torch.ones(3)):
                with pytest.raises(RuntimeError, match="mixes lazy:0 with the host"):
                    mixed()

    def test_the_host_cannot_read_it(self):
        with Watched():
            x = torch.ones(3).to(DEVICE)
            with pytest.raises((RuntimeError, TypeError)):
                x.numpy()

    def test_generators_belong_to_a_device(self):
        with Watched(), pytest.raises(RuntimeError, match="takes a generator of the host"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())

    def test_waits_are_counted(self):
        with Watched() as watched:
            x = torch.arange(3.0).to(DEVICE)
            assert (float(x.sum()), bool(x.any()), x[x > 0].cpu().tolist()) == (3.0, True, [1.0, 2.0])
        assert watched.waits == {"_local_scalar_dense": 2, "index": 1, "_to_copy": 1}


# Waits of a step that keeps its first λ and corrects its point at most once, listed in docs/devices.md.
WAITS = {
    ("svd", 20): 9,
    ("cholesky", 20): 8,
    ("primal", 90): 8,
    ("primal-cg", 90): 11,
    ("cg", 5): 10,
    ("sketched-cg", 5): 10,
    ("nystrom-cg", 5): 24,
}


@pytest.mark.parametrize(("solver", "rows"), WAITS)
def test_a_step_waits_for_the_device_a_handful_of_times(solver: str, rows: int):
    with Watched() as watched:
        optimizer = widefit.GaussNewton(network(DEVICE, 3, 8, 1), solver=solver, memory=10**9)
        optimizer.policy = replace(optimizer.policy, fewest=1, most=1)
        counts = []
        for _ in range(5):
            watched.waits.clear()
            optimizer.step(*data(DEVICE, rows))
            counts.append(watched.waits.total())
    assert min(counts[1:]) <= WAITS[solver, rows], counts


def test_a_trial_of_masks_waits_once():
    network = widefit.nn.TwoLayer(3, 5000).double()
    with Watched() as watched:
        run = widefit.trackers.Torch().start(network.to(DEVICE), data("cpu", 30)[0].numpy())
        update, grams = widefit.trackers.Update.none(30, 1), MaskGrams(run, held=1)
        watched.waits.clear()
        trial = run.propose(update, grams)
        assert watched.waits.total() == 1
        run.commit(trial)
        assert watched.waits.total() == 1


def test_a_trial_of_layers_waits_once():
    network = widefit.nn.Deep(3, (300, 200), 2, dtype=torch.float64)
    with Watched() as watched:
        run = DeepTorch().start(network.to(DEVICE), data("cpu", 30)[0].numpy(), anchored=True)
        watched.waits.clear()
        trial = run.propose(widefit.trackers.Update(np.full((60, 1), 1e-3), np.zeros(1)))
        run.commit(trial)
        assert watched.waits.total() == 1
        assert trial.squared_norm > 0
