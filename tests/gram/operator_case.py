"""Contract of every operator: a new one inherits `OperatorCase` and says how it is made, and what it is."""

from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor

from widefit.gram import Operator
from widefit.sketches import CountSketch

KINDS = ("random", "one sample", "duplicates", "zeros", "rank deficient", "huge", "tiny")
SAMPLES = 6


def rows(kind: str, columns: int, seed: int = 0) -> Tensor:
    """Samples of one kind, float64."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 if kind == "one sample" else SAMPLES
    made = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    if kind == "duplicates":
        made[1::2] = made[::2]
    elif kind == "rank deficient":
        made = made[:, :1] @ torch.randn(1, columns, generator=generator, dtype=torch.float64)
    return made * {"zeros": 0.0, "huge": 1e6, "tiny": 1e-6}.get(kind, 1.0)


class OperatorCase(ABC):
    """H against the matrix that it stands for, in float64.

    Attributes
    ----------
    dtypes
        Of the operators of this kind.
    estimates
        True where the mean block is an estimate.
    """

    dtypes = (torch.float64, torch.float32)
    estimates = False

    @abstractmethod
    def make(self, kind: str, dtype: torch.dtype) -> tuple[Operator, Tensor]:
        """The operator on samples of one kind, and H written out."""

    @pytest.fixture(params=[*((kind, torch.float64) for kind in KINDS), ("random", torch.float32)], ids=str)
    def case(self, request) -> tuple[Operator, Tensor]:
        kind, dtype = request.param
        if dtype not in self.dtypes:
            pytest.skip(f"not made in {dtype}")
        # Of the host alone: torch.manual_seed keeps a stack trace for each kind of accelerator that is absent.
        torch.default_generator.manual_seed(0)
        operator, expected = self.make(kind, dtype)
        assert expected.dtype == torch.float64
        return operator, expected

    def close(self, found: Tensor, expected: Tensor, scale: Tensor) -> None:
        """The same shape and dtype, and the same numbers up to rounding of sums of the size of `scale`."""
        assert found.shape == expected.shape
        assert found.dtype in self.dtypes
        tolerance = {torch.float64: 1e-11, torch.float32: 2e-5}[found.dtype]
        largest = float(scale.abs().max()) if scale.numel() else 0.0
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * largest)

    def vectors(self, operator: Operator, *shape: int) -> Tensor:
        made = torch.randn(operator.size, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return made.to(operator.dtype)

    def indices(self, operator: Operator) -> Tensor:
        """Some rows in any order, one of them twice."""
        order = torch.randperm(operator.size, generator=torch.Generator().manual_seed(2))
        return torch.cat([order[: max(1, operator.size // 2)], order[:1]])

    def test_attributes(self, case):
        operator, expected = case
        assert operator.size == len(expected)
        assert operator.dtype in self.dtypes
        assert operator.device == torch.device("cpu")
        assert operator.size % operator.outputs == 0

    def test_product_with_a_vector(self, case):
        operator, expected = case
        vector = self.vectors(operator)
        self.close(operator.matvec(vector), expected @ vector.double(), expected.abs() @ vector.double().abs())

    def test_product_with_a_block(self, case):
        operator, expected = case
        block = self.vectors(operator, 3)
        self.close(operator.matvec(block), expected @ block.double(), expected.abs() @ block.double().abs())

    def test_product_with_a_block_is_one_with_each_vector(self, case):
        operator, expected = case
        block = self.vectors(operator, 35)
        some = [0, 1, 15, 16, 31, 32, 34]
        apart = torch.stack([operator.matvec(block[:, column].contiguous()) for column in some], dim=1)
        self.close(operator.matvec(block)[:, some], apart.double(), expected.abs() @ block[:, some].double().abs())

    def test_product_with_a_strided_block(self, case):
        operator, expected = case
        block = self.vectors(operator, 4).T.contiguous().T[:, ::2]
        self.close(operator.matvec(block), expected @ block.double(), expected.abs() @ block.double().abs())

    def test_product_with_zeros(self, case):
        operator, _ = case
        assert not operator.matvec(torch.zeros(operator.size, 2, dtype=operator.dtype)).any()

    def test_product_leaves_its_vector(self, case):
        operator, _ = case
        vector = self.vectors(operator)
        first = operator.matvec(vector).clone()
        assert torch.equal(vector, self.vectors(operator))
        assert torch.equal(operator.matvec(vector), first)

    def test_columns(self, case):
        operator, expected = case
        chosen = self.indices(operator)
        self.close(operator.columns(chosen), expected[:, chosen], expected)

    def test_block(self, case):
        operator, expected = case
        chosen = self.indices(operator)
        self.close(operator.block(chosen), expected[chosen[:, None], chosen], expected)

    def test_diagonal(self, case):
        operator, expected = case
        self.close(operator.diagonal(), expected.diagonal(), expected)

    def test_blocks_of_the_diagonal(self, case):
        operator, expected = case
        for size in {1, operator.outputs, operator.size}:
            blocks = expected.view(operator.size // size, size, -1, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            self.close(operator.block_diagonal(size), blocks, expected)

    def test_mean_block(self, case):
        operator, expected = case
        k = operator.outputs
        mean = torch.stack([expected[c::k, c::k] for c in range(k)]).mean(dim=0)
        found = operator.mean_block()
        assert found.shape == mean.shape
        if self.estimates:
            assert bool(torch.linalg.eigvalsh(found.double()).min() >= -1e-5 * mean.abs().max())
        else:
            self.close(found, mean, expected)

    def test_dense(self, case):
        operator, expected = case
        self.close(operator.dense(), expected, expected)

    def test_what_is_returned_may_be_overwritten(self, case):
        operator, expected = case
        operator.dense().fill_(torch.nan)
        operator.mean_block().fill_(torch.nan)
        self.close(operator.dense(), expected, expected)

    def test_symmetric(self, case):
        operator, expected = case
        dense = operator.dense()
        self.close(dense, dense.T.double(), expected)

    def test_positive_semidefinite(self, case):
        operator, expected = case
        smallest = torch.linalg.eigvalsh(operator.dense().double()).min()
        slack = {torch.float64: 1e-11, torch.float32: 1e-4}[operator.dtype]
        assert bool(smallest >= -slack * expected.abs().max())

    def test_factor(self, case):
        operator, expected = case
        factor = operator.factor
        if factor is None:
            pytest.skip("holds no factor")
        assert factor.shape[0] == operator.size
        block = self.vectors(operator, 2)
        scale = expected.abs() @ block.double().abs()
        self.close(factor.matvec(factor.rmatvec(block)), expected @ block.double(), scale)
        every = torch.cat([made for _, made in factor.row_blocks()])
        self.close(every @ every.T, expected, expected)
        sketch = CountSketch(5, factor.shape[1])
        self.close(factor.sketched(sketch), sketch.apply(every.T).double(), every)
