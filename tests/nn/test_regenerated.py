"""Weights that are never stored: to the bit what the arrays hold."""

import copy
import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import widefit
from widefit.kernels.normal import standard_normal, ziggurat_tables
from widefit.linalg.gaussian_rows import gaussian_rows
from widefit.nn import TwoLayer, WeightChange, restorable
from widefit.nn.blocks import block_sizes
from widefit.trackers import Dense

CASES = {
    "plain": {"in_features": 7, "width": 3000},
    "paired": {"in_features": 7, "width": 4601, "paired": True},
    "three outputs": {"in_features": 3, "width": 2501, "out_features": 3, "readout_scale": 1.3},
    "float64": {"in_features": 5, "width": 2100, "dtype": torch.float64},
    "all at once": {
        "in_features": 4, "width": 2307, "out_features": 3, "dtype": torch.float64, "paired": True, "threshold": 0.7,
        "convention": "floor", "readout_scale": 0.1, "seed": 2**64 - 1,
    },
}  # fmt: skip


@restorable
@dataclass(frozen=True)
class RankOne:
    """W − W₀ = u vᵀ."""

    left: np.ndarray
    right: np.ndarray

    def add_to(self, first: int, last: int, rows: np.ndarray) -> None:
        rows += np.outer(self.left[first:last], self.right).astype(rows.dtype)

    def state(self) -> dict[str, np.ndarray]:
        return {"left": self.left, "right": self.right}

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> "RankOne":
        return cls(state["left"], state["right"])


class Unreadable(RankOne):
    """A displacement that says how to be written and not how to be read."""


def both(case: str) -> tuple[TwoLayer, TwoLayer]:
    return TwoLayer(**CASES[case]), TwoLayer(**CASES[case], store="regenerate")


def rank_one(network: TwoLayer, kind: type = RankOne) -> RankOne:
    generator = np.random.default_rng(3)
    return kind(generator.standard_normal(network.width), generator.standard_normal(network.in_features))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 5000), st.integers(0, 9000))
def test_the_kernel_is_the_generator_of_numpy(seed, stream, skip, size):
    """Nine thousand numbers hold some hundred wedges and two of the tail."""
    drawn = np.empty(size, np.float32)
    standard_normal(np.uint64(seed), np.uint64(stream), skip, *ziggurat_tables(), drawn)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
    expected = generator.standard_normal(skip + size, dtype=np.float32)[skip:]
    assert np.array_equal(drawn.view(np.uint32), expected.view(np.uint32))


def test_the_tail_is_the_tail_of_numpy():
    drawn = np.empty(1 << 21, np.float32)
    standard_normal(np.uint64(5), np.uint64(6), 0, *ziggurat_tables(), drawn)
    expected = np.random.Generator(np.random.Philox(key=np.array([5, 6], np.uint64))).standard_normal(
        drawn.size, dtype=np.float32
    )
    assert np.array_equal(drawn.view(np.uint32), expected.view(np.uint32))
    assert 300 < np.count_nonzero(np.abs(drawn) > 3.6541529) < 900  # P = 2.58e-4


@given(st.integers(0, 5000), st.integers(0, 2000), st.booleans(), st.booleans())
def test_rows_are_written_wherever_they_are_wanted(first, size, double, strided):
    whole = gaussian_rows(9, 0, first + size, 3)[first:]
    memory = np.zeros((size, 6), np.float64 if double else np.float32)
    out = memory[:, ::2] if strided else memory[:, :3].copy()
    assert gaussian_rows(9, first, first + size, 3, out) is out
    assert np.array_equal(out, whole)


def test_large_matrices_are_drawn_by_the_kernel_and_small_ones_are_equal():
    columns = 5
    large = gaussian_rows(9, 1000, 3100, columns, rows=(1 << 25) // columns + 1)
    assert np.array_equal(large, gaussian_rows(9, 1000, 3100, columns))


@pytest.mark.parametrize("case", CASES)
class TestBothStores:
    def test_arrays(self, case):
        array, regenerated = both(case)
        width = array.width
        assert regenerated.store == "regenerate"
        assert regenerated.dtype == array.dtype
        assert np.array_equal(regenerated.rows(0, width), array.weight.detach().numpy())
        assert np.array_equal(array.initial_rows(0, width), array.weight.detach().numpy())
        assert np.array_equal(regenerated.coefficients(), array.coefficients())
        assert np.array_equal(regenerated.silent_outputs(), array.silent_outputs())

    def test_any_range(self, case):
        array, regenerated = both(case)

        @given(st.integers(0, array.width), st.integers(0, array.width))
        def check(one, other):
            first, last = sorted((one, other))
            expected = array.weight.detach().numpy()[first:last]
            out = np.empty_like(expected)
            for network in (array, regenerated):
                assert np.array_equal(network.rows(first, last), expected)
                assert np.array_equal(network.initial_rows(first, last), expected)
                assert network.rows(first, last, out) is out
                assert np.array_equal(out, expected)
                assert np.array_equal(network.coefficients(first, last), array.coefficients()[first:last])

        check()

    @pytest.mark.parametrize("samples", [1, 40, 900])
    def test_forward(self, case, samples):
        array, regenerated = both(case)
        x = torch.randn(samples, array.in_features, dtype=array.dtype, generator=torch.Generator().manual_seed(1))
        expected = array(x).detach()
        assert torch.equal(regenerated(x), expected)
        with torch.no_grad():
            assert torch.equal(regenerated(x), expected)
        assert torch.equal(regenerated(x.clone().requires_grad_()).detach(), expected)
        assert torch.equal(regenerated(x.double()), array(x.double()).detach())

    def test_materialize(self, case):
        array, regenerated = both(case)
        for moved in (False, True):
            if moved:
                regenerated.delta = rank_one(regenerated)
                array.weight.data += torch.from_numpy(np.outer(regenerated.delta.left, regenerated.delta.right))
            made = regenerated.materialize()
            assert made.store == "array"
            assert torch.allclose(made.weight, array.weight, rtol=1e-6, atol=1e-6)
            assert np.array_equal(made.weight.detach().numpy(), regenerated.rows(0, made.width))
            assert torch.equal(made.readout, array.readout)
            assert made.readout.requires_grad is False
            assert (made.threshold, made.seed) == (array.threshold, array.seed)
            x = torch.randn(5, made.in_features, dtype=made.dtype)
            assert torch.equal(made(x).detach(), regenerated(x))
            assert np.array_equal(made.initial_rows(3, 90), regenerated.initial_rows(3, 90))

    def test_copies_and_state_dicts(self, case):
        array, regenerated = both(case)
        assert set(array.state_dict()) == {"weight", "readout"}
        regenerated.delta = rank_one(regenerated)
        file = io.BytesIO()
        torch.save(regenerated.state_dict(), file)
        file.seek(0)
        other = TwoLayer(**{**CASES[case], "seed": 1, "paired": False, "readout_scale": 9.0}, store="regenerate")
        other.load_state_dict(torch.load(file, weights_only=True))
        for twin in (other, copy.deepcopy(regenerated)):
            assert np.array_equal(twin.rows(0, twin.width), regenerated.rows(0, twin.width))
            assert np.array_equal(twin.coefficients(), regenerated.coefficients())
            assert twin.readout_identity() == regenerated.readout_identity()


def test_threads_do_not_change_a_bit():
    array, regenerated = both("paired")
    x = torch.randn(60, 7)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with torch.no_grad():
                assert torch.equal(regenerated(x), array(x))
            assert torch.equal(TwoLayer(**CASES["paired"]).weight, array.weight)
    finally:
        torch.set_num_threads(before)


def test_gradients_of_the_inputs():
    array, regenerated = both("float64")
    gradients = []
    for network in (array, regenerated):
        x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(8, 5).requires_grad_()
        network(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    rows = [
        torch.func.vmap(torch.func.jacrev(lambda row, net=net: net(row[None])[0]))(torch.stack([x, -x]))
        for net in (array, regenerated)
    ]
    torch.testing.assert_close(*rows, rtol=1e-12, atol=1e-12)


def test_other_dtypes_and_modules_around():
    array, regenerated = (network.double() for network in both("three outputs"))
    assert regenerated.dtype == torch.float64
    assert np.array_equal(regenerated.rows(5, 2000), array.rows(5, 2000))
    assert np.array_equal(regenerated.coefficients(), array.coefficients())
    assert list(regenerated.parameters()) == []


def test_a_billion_neurons_take_no_memory():
    network = TwoLayer(64, 2**30, paired=True, store="regenerate")
    first = 2**30 - 700
    rows, signs = network.rows(first, 2**30 - 3), np.where(np.arange(697) % 2, -1.0, 1.0)
    assert np.array_equal(rows, np.repeat(gaussian_rows(0, first // 2, 2**29, 64), 2, axis=0)[:697])
    assert np.array_equal(network.coefficients(first, 2**30 - 3), signs / 2**15)
    assert network.silent_outputs() == 0
    assert len(str(network.state_dict())) < 500
    assert "store='regenerate'" in repr(network)
    with pytest.raises(MemoryError, match="a network of width 1,073,741,824 needs about 563 GB"):
        network.materialize()


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_blocks_fill_spans(samples, features):
    span, rows = block_sizes(samples, features)
    assert span % 2048 == 0
    assert span % rows == 0
    assert rows >= 64


@pytest.mark.parametrize("name", ["weight", "readout"])
def test_arrays_that_do_not_exist(name):
    network = TwoLayer(3, 10, store="regenerate")
    assert not hasattr(network, name)
    with pytest.raises(AttributeError, match=rf"no {name}: store=\"regenerate\" .* materialize\(\)\.{name}"):
        getattr(network, name)
    with pytest.raises(AttributeError, match="no attribute 'wieght'"):
        _ = network.wieght


def test_refusals():
    array, regenerated = TwoLayer(3, 10), TwoLayer(3, 10, store="regenerate")
    with pytest.raises(ValueError, match='store must be "array" or "regenerate", got \'disk\''):
        TwoLayer(3, 10, store="disk")
    for network in (array, regenerated):
        with pytest.raises(ValueError, match="range within 0 to 10, got 4 to 11"):
            network.rows(4, 11)
        with pytest.raises(ValueError, match="got 3 to 2"):
            network.coefficients(3, 2)
        with pytest.raises(
            ValueError, match=r"out must have shape \(2, 3\) and dtype float32, got \(2, 3\) and float64"
        ):
            network.rows(0, 2, np.empty((2, 3)))
    with pytest.raises(ValueError, match="delta belongs to networks with store"):
        array.delta = rank_one(array)
    given_tensors = TwoLayer.from_tensors(array.weight.detach(), array.readout.detach(), threshold=1.0)
    with pytest.raises(ValueError, match="made from given tensors"):
        given_tensors.initial_rows(0, 2)
    with pytest.raises(ValueError, match="network with width=12, this one has 10"):
        regenerated.load_state_dict(TwoLayer(3, 12, store="regenerate").state_dict())


def test_displacements_that_cannot_be_read_back_are_not_written():
    network = TwoLayer(3, 10, store="regenerate")
    assert isinstance(rank_one(network), WeightChange)
    network.delta = rank_one(network, Unreadable)
    with pytest.raises(ValueError, match=r"Unreadable could not be read back .* network\.materialize\(\)"):
        network.state_dict()
    network.delta = rank_one(network)
    state = network.state_dict()
    state["regenerated._extra_state"]["delta"]["class"] = "Missing"
    with pytest.raises(ValueError, match="displaced by a Missing, which cannot be restored here"):
        network.load_state_dict(state)
    with pytest.raises(TypeError, match="needs a classmethod from_state"):
        restorable(dict)


def test_the_dense_tracker_says_what_to_do():
    network = TwoLayer(3, 10, store="regenerate")
    with pytest.raises(ValueError, match=r'use tracker="certificate", or train network\.materialize\(\)'):
        Dense().start(network, np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match='"dense" moves weights in memory'):
        widefit.train(network, np.ones((4, 3)), np.ones(4), tracker="dense")
