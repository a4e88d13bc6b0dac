"""Every sketch keeps lengths in expectation and subspaces with small distortion."""

import pytest
import torch

from widefit.sketches import SRHT, CountSketch, Gaussian, TensorSketch, TensorSRHT

SIZE = 300
PLAIN = {
    "srht": lambda rows, seed: SRHT(rows, SIZE, seed=seed),
    "count": lambda rows, seed: CountSketch(rows, SIZE, seed=seed),
    "count-1": lambda rows, seed: CountSketch(rows, SIZE, nonzeros=1, seed=seed),
    "gaussian": lambda rows, seed: Gaussian(rows, SIZE, seed=seed),
    "tensor-srht": lambda rows, seed: TensorSRHT(rows, 15, 20, seed=seed),
    "tensor-sketch": lambda rows, seed: TensorSketch(rows, 15, 20, seed=seed),
}


def distortion(make, rows: int, subspace: torch.Tensor, seed: int) -> float:
    """Largest | ‖S v‖² − 1 | over unit v in the subspace."""
    values = torch.linalg.svdvals(make(rows, seed).apply(subspace)).square()
    return float((values - 1).abs().max())


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
class TestSketch:
    def test_agrees_with_its_matrix(self, make) -> None:
        sketch = make(40, 3)
        matrix = torch.randn(SIZE, 4, dtype=torch.float64)
        torch.testing.assert_close(sketch.apply(matrix), sketch.dense() @ matrix)
        torch.testing.assert_close(sketch.apply(matrix[:, 0]), sketch.dense() @ matrix[:, 0])

    def test_seed_fixes_it(self, make) -> None:
        assert torch.equal(make(40, 3).dense(), make(40, 3).dense())
        assert not torch.equal(make(40, 3).dense(), make(40, 4).dense())

    def test_length_is_kept_in_expectation(self, make) -> None:
        vector = torch.linspace(-1, 2, SIZE, dtype=torch.float64)
        lengths = torch.stack([make(64, seed).apply(vector).square().sum() for seed in range(400)])
        error = lengths.std() / 20 / vector.square().sum()
        assert abs(float(lengths.mean() / vector.square().sum()) - 1) < 4 * float(error) + 1e-12

    def test_product_is_the_identity_in_expectation(self, make) -> None:
        mean = torch.zeros(SIZE, SIZE, dtype=torch.float64)
        for seed in range(300):
            dense = make(64, seed).dense()
            mean += dense.T @ dense / 300
        # Entries deviate by about 1/sqrt(64 * 300) = 0.007.
        assert float((mean - torch.eye(SIZE, dtype=torch.float64)).abs().max()) < 0.15

    @pytest.mark.parametrize("coherent", [False, True])
    def test_subspace_embedding(self, make, coherent: bool) -> None:
        basis = torch.randn(SIZE, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        if coherent:  # spiky directions are the hard ones for sampling
            basis[:, :3] = torch.eye(SIZE, dtype=torch.float64)[:, :3]
        subspace = torch.linalg.qr(basis)[0]
        found = sorted(distortion(make, 200, subspace, seed) for seed in range(21))
        assert found[10] < 0.7

    def test_more_rows_distort_less(self, make) -> None:
        subspace = torch.linalg.qr(
            torch.randn(SIZE, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        )[0]
        few = sorted(distortion(make, 16, subspace, seed) for seed in range(15))[7]
        many = sorted(distortion(make, 240, subspace, seed) for seed in range(15))[7]
        assert many < 0.7 * few

    def test_wrong_operand(self, make) -> None:
        with pytest.raises(ValueError, match="drawn for vectors of 300"):
            make(40, 0).apply(torch.randn(SIZE + 1, 2))


@pytest.mark.parametrize("kind", [TensorSRHT, TensorSketch])
def test_pair_is_the_sketch_of_the_product(kind) -> None:
    sketch = kind(50, 6, 9, seed=2)
    left, right = torch.randn(6, 7, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    product = torch.stack([torch.kron(left[:, c], right[:, c]) for c in range(7)], dim=1)
    torch.testing.assert_close(sketch.apply_pair(left, right), sketch.dense() @ product)


@pytest.mark.parametrize("kind", [TensorSRHT, TensorSketch])
def test_pair_of_other_sizes(kind) -> None:
    with pytest.raises(ValueError, match="columns of 6 and 9"):
        kind(50, 6, 9).apply_pair(torch.randn(9, 2), torch.randn(6, 2))


@pytest.mark.parametrize(("rows", "size"), [(0, 5), (5, 0), (-1, 3)])
@pytest.mark.parametrize("kind", [SRHT, CountSketch, Gaussian])
def test_sizes_out_of_range(kind, rows: int, size: int) -> None:
    with pytest.raises(ValueError, match="rows >= 1 and size >= 1"):
        kind(rows, size)


def test_srht_has_no_more_rows_than_the_transform() -> None:
    with pytest.raises(ValueError, match="16 rows to draw from"):
        SRHT(17, 12)
    full = SRHT(16, 12).dense()
    torch.testing.assert_close(full.T @ full, torch.eye(12, dtype=torch.float64))


def test_one_of_everything() -> None:
    for sketch in (SRHT(1, 1), CountSketch(1, 1), Gaussian(1, 1), TensorSRHT(1, 1, 1), TensorSketch(1, 1, 1)):
        assert sketch.dense().shape == (1, 1)
