"""Every tracker on every kind of network: it trains, or says what to do; a file names the class of a change alone."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import sphere

import widefit
from widefit.nn import TwoLayer
from widefit.rules import SGD
from widefit.trackers import Certificate, DataTree, Dense, HalfSpaceTree, Tracker, VerletList, WeightTree

TRACKERS = [
    Dense(), Certificate(), WeightTree(), DataTree(), HalfSpaceTree("weights", 8), HalfSpaceTree("data", 8),
    VerletList(),
]  # fmt: skip
NAMES = [f"{tracker.name}-{number}" for number, tracker in enumerate(TRACKERS)]


def problem(store: str) -> tuple[TwoLayer, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    inputs = sphere(generator.standard_normal((12, 4)))
    network = TwoLayer(4, 300, threshold=0.3, seed=5, store=store, dtype=torch.float64)
    return network, inputs, generator.standard_normal(12)


@pytest.mark.parametrize("rule", ["gauss-newton", "gradient-descent", SGD(batch_size=5)], ids=["gn", "gd", "sgd"])
@pytest.mark.parametrize("alpha", [0.0, 1e-2])
@pytest.mark.parametrize("store", ["array", "regenerate"])
@pytest.mark.parametrize("tracker", TRACKERS, ids=NAMES)
def test_it_trains_or_says_what_to_do(tracker: Tracker, store: str, alpha: float, rule: str | SGD):
    network, inputs, targets = problem(store)
    settings = {"rule": rule, "alpha": alpha, "max_iter": 5, "tol": 0.0}
    if store == "regenerate" and not tracker.defers_weights:
        with pytest.raises(ValueError, match=rf'"{tracker.name}" moves weights in memory, .* network\.materialize\(\)'):
            widefit.train(network, inputs, targets, tracker=tracker, **settings)
        return
    history = widefit.train(network, inputs, targets, tracker=tracker, **settings)
    dense, _, _ = problem("array")
    expected = widefit.train(dense, inputs, targets, tracker=Dense(), **settings)
    np.testing.assert_allclose(history.losses, expected.losses, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(network.rows(0, 300), dense.weight.detach().numpy(), atol=1e-8)


@pytest.mark.parametrize("tracker", [Dense(), HalfSpaceTree("weights", 8)], ids=["dense", "half-space-tree"])
def test_streams_say_what_to_do(tracker: Tracker):
    network, _, _ = problem("regenerate")
    with pytest.raises(ValueError, match=rf'"{tracker.name}" moves weights in memory, .* network\.materialize\(\)'):
        tracker.stream(network)


def trained_state() -> dict:
    network, inputs, targets = problem("regenerate")
    widefit.train(network, inputs, targets, tracker="certificate", max_iter=3)
    widefit.train(network, inputs, -targets, tracker="certificate", max_iter=3)
    return network.state_dict()


def test_states_of_version_0_1_are_read():
    """They name a module beside the class; the name is not looked at."""
    state = trained_state()
    change = state["regenerated._extra_state"]["delta"]
    assert change["class"] == "CertificateDelta"
    assert any(name.startswith("before.CertificateDelta.") for name in change["state"])
    network, _, _ = problem("regenerate")
    network.load_state_dict(state)
    rows = network.rows(0, 300)
    for home in ("widefit.trackers.certificate.delta", "antigravity"):
        change["home"] = home
        again, _, _ = problem("regenerate")
        again.load_state_dict(state)
        assert np.array_equal(again.rows(0, 300), rows)
    assert "antigravity" not in sys.modules
    assert not np.array_equal(rows, problem("regenerate")[0].rows(0, 300))


def test_a_process_that_has_no_tracker_reads_a_change(tmp_path):
    state = trained_state()
    torch.save(state, tmp_path / "state.pt")
    code = (
        "import sys, torch; from widefit.nn import TwoLayer; assert 'widefit.trackers' not in sys.modules;"
        "network = TwoLayer(4, 300, threshold=0.3, seed=5, store='regenerate', dtype=torch.float64);"
        f"network.load_state_dict(torch.load({str(tmp_path / 'state.pt')!r})); print(network.rows(0, 300).sum())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    network, _, _ = problem("regenerate")
    network.load_state_dict(state)
    assert float(found.stdout) == network.rows(0, 300).sum()


def test_trackers_say_which_points_they_take():
    takers = {tracker.name for tracker in TRACKERS if tracker.accepts_new_points}
    assert takers == {"dense", "verlet-list", "half-space-tree"}
    assert not replace(HalfSpaceTree(), over="data").accepts_new_points
    assert [tracker.name for tracker in TRACKERS if tracker.defers_weights] == ["certificate"]
