"""The deep network as a module."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from widefit.nn import Deep
from widefit.nn.deep import norm_keeping_scale


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 0.7, 1.65, 3.0])
def test_the_scale_keeps_the_norm(threshold):
    z = np.random.default_rng(0).standard_normal(2_000_000)
    squares = np.maximum(z - threshold, 0) ** 2
    deviation = 6 * squares.std() / np.sqrt(z.size)
    assert abs(1 / norm_keeping_scale(1, threshold) ** 2 - squares.mean()) < deviation


@pytest.mark.parametrize("threshold", [0.0, 1.0, "auto"])
def test_activations_keep_the_norm_of_the_inputs(threshold):
    network = Deep(20, (3000, 3000), threshold=threshold, paired=False)
    x = torch.nn.functional.normalize(torch.randn(5, 20, generator=torch.Generator().manual_seed(0)))
    h = network.scales[0] * torch.relu(x @ network.input_weights[0].T - network.thresholds[0])
    assert torch.linalg.vector_norm(h, dim=1).detach().numpy() == pytest.approx(1.0, abs=0.15)


def test_paired_networks_start_at_zero_and_others_do_not():
    x = torch.randn(6, 4, dtype=torch.float64)
    options = {"threshold": 0.3, "dtype": torch.float64}
    assert Deep(4, (30, 20), 3, **options)(x).abs().max() < 1e-12
    assert Deep(4, (30, 20), 3, paired=False, **options)(x).abs().max() > 1e-3


@given(st.integers(1, 4), st.integers(2, 30), st.integers(0, 9))
def test_every_output_reads_every_neuron_with_signs_of_its_own(outputs, width, seed):
    network = Deep(3, (width, width + 1), outputs, seed=seed, dtype=torch.float64)
    for readout in network.readouts:
        assert torch.allclose(readout.abs(), torch.full_like(readout, 0.5**0.5))
        assert torch.equal(readout[1::2], -readout[: 2 * (len(readout) // 2) : 2])
        assert bool((readout[::2, 0] > 0).all())


def test_signs_of_different_outputs_are_independent():
    readout = Deep(3, (8000,), 4).readouts[0].detach().double()
    assert float((readout.T @ readout / 8000 - torch.eye(4)).abs().max()) < 0.1


def test_a_seed_fixes_the_weights_in_every_dtype():
    a, b = (Deep(4, (10, 8), seed=3, dtype=dtype) for dtype in (torch.float32, torch.float64))
    other = Deep(4, (10, 8), seed=4)
    for name, weight in a.state_dict().items():
        assert torch.equal(weight, b.state_dict()[name].float())
    assert not torch.equal(a.hidden[0].weight, other.hidden[0].weight)
    assert not torch.equal(a.input_weights[0][:8], a.input_weights[1])


def test_is_an_ordinary_module():
    network = Deep(4, (10, 8), 2, seed=1)
    names = {"input_weights.0", "input_weights.1", "hidden.0.weight", "readouts.0", "readouts.1"}
    assert set(network.state_dict()) == names
    assert set(Deep(4, (10, 8), input_share=0).state_dict()) == {*names - {"input_weights.1"}}
    twin = copy.deepcopy(network)
    x = torch.randn(3, 4)
    assert torch.equal(network(x), twin(x))
    assert network.double()(x.double()).dtype == torch.float64
    network.float()(x).sum().backward()
    assert all((weight.grad is not None) == weight.requires_grad for weight in network.parameters())
    assert "thresholds=(" in repr(network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features must be at least 1"),
        ({"out_features": 0}, "out_features must be at least 1"),
        ({"hidden_layer_sizes": ()}, "hidden_layer_sizes"),
        ({"hidden_layer_sizes": (10, 1)}, "hidden_layer_sizes"),
        ({"threshold": "best"}, "threshold must be"),
        ({"threshold": [0.0]}, "one number for each of 2 layers"),
        ({"threshold": float("nan")}, "threshold must lie"),
        ({"threshold": 30.0}, "threshold must lie"),
        ({"input_share": 1.0}, "input_share"),
        ({"readouts": "some"}, "readouts must be"),
        ({"readout_scale": 0.0}, "readout_scale"),
        ({"seed": -1}, "seed"),
        ({"dtype": torch.float16}, "dtype"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Deep(**{"in_features": 3, "hidden_layer_sizes": (10, 10), **arguments})


def test_refuses_what_cannot_fit():
    with pytest.raises(MemoryError, match=r"widths of about [0-9,]+ fit"):
        Deep(3, (1 << 22, 1 << 22))
