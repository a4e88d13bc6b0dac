"""The network: its formula, its weights block by block, its refusals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import NAMES, DenseReference, make

from widefit.linalg.gaussian_rows import gaussian_rows
from widefit.nn import ShiftedReLU, TwoLayer, automatic_threshold


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_the_formula(name):
    problem = make(name, torch.float64)
    outputs = problem.network(torch.from_numpy(problem.inputs)).detach().numpy()
    expected = DenseReference.of(problem).outputs()
    np.testing.assert_allclose(outputs, expected, rtol=1e-12, atol=1e-12 * max(1, np.abs(expected).max()))


def test_forward_has_gradients_and_takes_the_dtype_of_its_input():
    network = TwoLayer(3, 50, 2)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    outputs = network(x)
    assert outputs.dtype == torch.float64
    outputs.sum().backward()
    assert network.weight.grad is not None
    assert x.grad is not None


def test_the_two_conventions_differ_by_a_constant():
    kwargs = {"in_features": 3, "width": 101, "threshold": 0.4, "seed": 2, "dtype": torch.float64}
    zero, floor = TwoLayer(**kwargs), TwoLayer(**kwargs, convention="floor")
    x = torch.randn(6, 3, dtype=torch.float64)
    difference = (floor(x) - zero(x)).detach()
    torch.testing.assert_close(difference, torch.full_like(difference, 0.4 / 101**0.5))
    assert floor.silent_outputs() == pytest.approx(0.4 / 101**0.5)


def test_activation():
    z = torch.tensor([-1.0, 0.5, 2.0])
    assert ShiftedReLU(0.5)(z).tolist() == [0.0, 0.0, 1.5]
    assert ShiftedReLU(0.5, "floor")(z).tolist() == [0.5, 0.5, 2.0]
    assert torch.equal(ShiftedReLU()(z), torch.relu(z))
    with pytest.raises(ValueError, match='convention must be "zero" or "floor"'):
        ShiftedReLU(0.5, "ceiling")


@given(st.integers(0, 2**64 - 1), st.integers(0, 5000), st.integers(0, 3000), st.integers(1, 4))
def test_rows_are_the_same_in_whatever_block_they_are_drawn(seed, first, size, columns):
    whole = gaussian_rows(seed, 0, first + size, columns)
    assert np.array_equal(gaussian_rows(seed, first, first + size, columns), whole[first:])


def test_initial_weights_are_standard_normal():
    rows = gaussian_rows(1, 0, 1 << 16, 4)
    assert abs(rows.mean()) < 0.01
    assert abs(rows.std() - 1) < 0.01
    # Neighbouring streams are independent: no correlation between rows 1024 apart.
    assert abs(np.corrcoef(rows[:-1024, 0], rows[1024:, 0])[0, 1]) < 0.02
    assert not np.array_equal(rows[:1024], gaussian_rows(2, 0, 1024, 4))


def test_pairs_cancel_before_training():
    network = TwoLayer(5, 700, 3, paired=True, readout_scale=50.0)
    outputs = network(torch.randn(9, 5)).detach()
    assert outputs.abs().max() < 1e-4
    assert torch.equal(network.weight[0], network.weight[1])


@pytest.mark.parametrize("outputs", [1, 2, 3, 7])
def test_every_neuron_feeds_one_output(outputs):
    network = TwoLayer(2, 50, outputs)
    edges = [network.neurons_of(output) for output in range(outputs)]
    assert edges[0][0] == 0
    assert edges[-1][1] == 50
    assert all(one[1] == other[0] for one, other in itertools.pairwise(edges))
    assert torch.equal((network.readout != 0).sum(1), torch.ones(50, dtype=torch.int64))
    np.testing.assert_allclose(np.abs(network.coefficients()), np.sqrt(outputs / 50))


def test_automatic_threshold_keeps_the_bound_of_the_paper():
    from scipy.stats import norm

    for width in (2, 100, 10**4, 10**6, 10**9):
        assert norm.sf(automatic_threshold(width)) <= width**-0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": 0}, "in_features must be at least 1"),
        ({"out_features": 0}, "out_features must be at least 1"),
        ({"width": 1}, "width must be at least 2 neurons an output, 2 here, got 1"),
        ({"width": 5, "out_features": 3}, "6 here, got 5"),
        ({"threshold": float("nan")}, "threshold must be a finite number"),
        ({"threshold": "high"}, 'threshold must be a finite number or "auto"'),
        ({"seed": -1}, "seed must be between"),
        ({"dtype": torch.float16}, "dtype must be"),
        ({"readout_scale": 0.0}, "readout_scale must be a positive number"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        TwoLayer(**{"in_features": 3, "width": 10, **change})
