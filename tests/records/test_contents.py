"""Bytes of tensors, whatever they lie in."""

import numpy as np
import pytest
import torch

import widefit
from widefit.records.contents import contents, digest

TENSORS = {
    "a number": torch.tensor(3.5),
    "one of a column": torch.arange(5.0)[2::5],
    "nothing": torch.empty(0, 3),
    "a transposed matrix": torch.arange(6, dtype=torch.int64).view(2, 3).T,
    "every other": torch.arange(8, dtype=torch.float64)[::2],
    "booleans": torch.tensor([True, False, True]),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_contents(tensor):
    assert bytes(contents(tensor)) == np.ascontiguousarray(tensor.numpy()).tobytes()
    assert digest([tensor]) == digest([tensor.clone(memory_format=torch.contiguous_format)])


def test_digests_tell_types_shapes_and_numbers():
    like = torch.zeros(2, 3)
    others = [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.ones(2, 3), like.bfloat16()]
    assert len({digest([tensor]) for tensor in [like, *others]}) == 5


def test_a_step_on_one_row_of_many_can_be_saved():
    x, y = torch.linspace(-1, 1, 6, dtype=torch.float64).view(6, 1), torch.arange(6, dtype=torch.float64)
    optimizer = widefit.GaussNewton(torch.nn.Linear(1, 1, dtype=torch.float64).requires_grad_())
    optimizer.step(x[::6], y[::6])
    assert optimizer.state_dict()
