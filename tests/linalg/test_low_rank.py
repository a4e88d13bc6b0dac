"""LowRankLinear, held against the dense float64 layer it stands for."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from widefit.nn import LowRankLinear, SparseRows

OUT, IN = 70, 90


def sparse(rows: int, columns: int, seed: int, part: float = 0.1) -> SparseRows:
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, columns)) < part
    return SparseRows.from_dense(np.where(mask, generator.standard_normal((rows, columns)), 0))


def dense(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))


class Against(RuleBasedStateMachine):
    """Any order of appends, queries, folds and take-backs leaves the layer equal to its dense twin."""

    def __init__(self):
        super().__init__()
        self.layer = LowRankLinear(IN, OUT, seed=3, dtype=torch.float64)
        self.twin = self.layer.weight.detach().clone()
        self.before: torch.Tensor | None = None
        self.seed = 0

    def next_seed(self) -> int:
        self.seed += 1
        return self.seed

    @rule(rank=st.integers(1, 5))
    def append_dense(self, rank):
        U, V = dense(OUT, rank, self.next_seed()), dense(IN, rank, self.next_seed())
        self.layer.append(U, V)
        self.before, self.twin = self.twin, self.twin + U @ V.T

    @rule(rank=st.integers(1, 30), part=st.sampled_from([0.0, 0.02, 0.4]))
    def append_sparse(self, rank, part):
        U, V = sparse(rank, OUT, self.next_seed(), part), sparse(rank, IN, self.next_seed(), part)
        self.layer.append(U, V, threads=2)
        change = torch.from_numpy(U.dense().T @ V.dense())
        self.before, self.twin = self.twin, self.twin + change

    @precondition(lambda self: self.layer.rank > 0 and self.before is not None)
    @rule()
    def undo(self):
        self.layer.undo()
        self.twin, self.before = self.before, None

    @rule()
    def fold(self):
        self.layer.fold()
        self.before = None
        assert self.layer.rank == 0
        torch.testing.assert_close(self.layer.weight.detach(), self.twin)

    @rule(samples=st.integers(1, 80), part=st.sampled_from([0.02, 0.1, 0.5]))
    def query(self, samples, part):
        rows = sparse(samples, IN, self.next_seed(), part)
        expected = rows.dense() @ self.twin.numpy().T
        np.testing.assert_allclose(self.layer.query(rows, threads=2), expected, rtol=1e-11, atol=1e-11)
        x = torch.from_numpy(rows.dense())
        np.testing.assert_allclose(self.layer(x).detach().numpy(), expected, rtol=1e-11, atol=1e-11)

    @rule()
    def materialize(self):
        torch.testing.assert_close(self.layer.materialize(), self.twin)

    @rule(part=st.sampled_from([0.02, 0.5]), outputs=st.sampled_from([1, 3]))
    def pull_back(self, part, outputs):
        above, below = sparse(70, OUT, self.next_seed()), sparse(70, IN, self.next_seed(), part)
        signals = np.random.default_rng(self.next_seed()).standard_normal((above.index.size, outputs))
        found = self.layer.pull_back(above, signals, below, threads=2)
        for own, column in zip(signals.T, found.T, strict=True):
            expected = np.where(below.dense() != 0, above.with_values(own).dense() @ self.twin.numpy(), 0)
            np.testing.assert_allclose(below.with_values(column).dense(), expected, rtol=1e-11, atol=1e-11)

    @rule()
    def release(self):
        self.layer.release()
        self.before = None


TestAgainst = Against.TestCase
TestAgainst.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("queried", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "half full"])
def test_undo_is_exact(kind, queried):
    layer = LowRankLinear(IN, OUT, seed=1, density=0.5 if kind == "half full" else None)
    rows = sparse(40, IN, 5)
    rows = rows.with_values(rows.value.astype(np.float32))
    if queried:
        layer.query(rows)
    weight, before = layer.weight.detach().clone(), layer.query(rows) if queried else None
    if kind == "dense":
        layer.append(dense(OUT, 3, 1), dense(IN, 3, 2))
    else:
        U, V = sparse(40, OUT, 3), sparse(40, IN, 4)
        layer.append(U.with_values(U.value.astype(np.float32)), V.with_values(V.value.astype(np.float32)), at_once=True)
    assert not torch.equal(layer.materialize(), weight)
    layer.undo()
    assert torch.equal(layer.weight, weight)
    if queried:
        np.testing.assert_array_equal(layer.query(rows), before)
    with pytest.raises(ValueError, match="nothing to undo"):
        layer.undo()


def test_packed_weights_follow_a_fold_to_the_bit():
    layer = LowRankLinear(IN, OUT, seed=1)
    rows = sparse(40, IN, 5)
    rows = rows.with_values(rows.value.astype(np.float32))
    layer.query(rows)
    for seed in range(3):
        U, V = sparse(40, OUT, seed), sparse(40, IN, seed + 10)
        layer.append(U.with_values(U.value.astype(np.float32)), V.with_values(V.value.astype(np.float32)))
        ahead = layer.query(rows)
        layer.fold()
        fresh = LowRankLinear.from_weight(layer.weight.detach().clone())
        np.testing.assert_array_equal(ahead, layer.query(rows))
        np.testing.assert_array_equal(ahead, fresh.query(rows))


@given(st.integers(1, 12), st.integers(1, 6))
def test_a_forced_threshold_bounds_the_rank(fold_rank, rank):
    layer = LowRankLinear(IN, OUT, dtype=torch.float64, fold_rank=fold_rank)
    twin = layer.weight.detach().clone()
    for seed in range(6):
        U, V = dense(OUT, rank, seed), dense(IN, rank, seed + 50)
        layer.append(U, V)
        twin += U @ V.T
        assert layer.rank <= max(fold_rank, rank)
    torch.testing.assert_close(layer.materialize(), twin)


def test_the_cost_model_folds_what_is_queried_often_and_carries_what_is_not():
    often, seldom = (LowRankLinear(400, 400, dtype=torch.float64) for _ in range(2))
    for seed in range(30):
        U, V = dense(400, 4, seed), dense(400, 4, seed + 100)
        often.append(U, V)
        seldom.append(U, V)
        often(dense(500, 400, seed))
    assert often.rank < 30
    assert seldom.rank == 120
    torch.testing.assert_close(often.materialize(), seldom.materialize())


def test_state_dict_is_an_ordinary_one():
    layer = LowRankLinear(IN, OUT, dtype=torch.float64)
    layer.query(sparse(3, IN, 0))
    layer.append(dense(OUT, 2, 1), dense(IN, 2, 2))
    expected = layer.materialize()
    other = torch.nn.Linear(IN, OUT, bias=False, dtype=torch.float64)
    other.load_state_dict(copy.deepcopy(layer).state_dict())
    torch.testing.assert_close(other.weight.detach(), expected)
    rows = sparse(5, IN, 9)
    layer.load_state_dict({"weight": torch.zeros(OUT, IN, dtype=torch.float64)})
    assert layer.rank == 0
    assert not layer.query(rows).any()


def test_gradients_pass_through_what_is_appended():
    layer = LowRankLinear(IN, OUT, dtype=torch.float64)
    layer.append(dense(OUT, 2, 1), dense(IN, 2, 2))
    x = dense(3, IN, 3).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, OUT, dtype=torch.float64) @ layer.materialize())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LowRankLinear(0, 3), "in_features must be at least 1"),
        (lambda: LowRankLinear(3, 0), "out_features must be at least 1"),
        (lambda: LowRankLinear(3, 3, dtype=torch.float16), "dtype must be"),
        (lambda: LowRankLinear(3, 3, fold_rank=0), "fold_rank must be"),
        (lambda: LowRankLinear(IN, OUT).append(dense(OUT + 1, 2, 0), dense(IN, 2, 0)), "same r"),
        (lambda: LowRankLinear(IN, OUT).append(sparse(3, OUT, 0), sparse(4, IN, 0)), "same r"),
        (lambda: LowRankLinear(IN, OUT).append(sparse(3, OUT, 0), dense(IN, 3, 0)), "both"),
        (lambda: LowRankLinear(IN, OUT).query(sparse(3, OUT, 0)), f"{IN} columns"),
        (
            lambda: LowRankLinear(IN, OUT).pull_back(sparse(3, OUT, 0), np.ones((1, 1)), sparse(4, IN, 0)),
            "above and below",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
