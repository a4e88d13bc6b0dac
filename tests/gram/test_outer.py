"""H from signals and overlaps against J Jᵀ written out."""

import pytest
import torch

from widefit.gram import OuterGram, OuterLayer


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (6, 3, 5, 4), (9, 1, 7, 2), (4, 5, 3, 6)])
def test_outer_gram(shape: tuple[int, int, int, int]):
    n, k, o, i = shape
    torch.manual_seed(n)
    layers, rows = [], []
    for width in (o, o + 2):
        signals, inputs = torch.randn(n, k, width, dtype=torch.float64), torch.randn(n, i, dtype=torch.float64)
        signals[0] = 0
        inputs = torch.cat([inputs, torch.ones(n, 1, dtype=torch.float64)], dim=1)
        layers.append(OuterLayer(signals, inputs @ inputs.T))
        rows.append(torch.einsum("nko,ni->nkoi", signals, inputs).reshape(n * k, -1))
    J = torch.cat(rows, dim=1)
    H, gram = J @ J.T, OuterGram(layers)
    torch.testing.assert_close(gram.dense(), H)
    torch.testing.assert_close(gram.diagonal(), H.diagonal())
    vectors = torch.randn(n * k, 2, dtype=torch.float64)
    torch.testing.assert_close(gram.matmul(vectors), H @ vectors)
    torch.testing.assert_close(gram.matmul(vectors[:, 0]), H @ vectors[:, 0])
