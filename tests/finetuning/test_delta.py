"""Factors in files, merged into modules."""

import pytest
import torch
from networks import perceptron
from safetensors.torch import load_file

import widefit
from widefit.files import FileError
from widefit.finetuning import LayerDelta, LowRankDelta


@pytest.fixture
def adapted():
    model = perceptron(5, 60, 60, 3, dtype=torch.float32)
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    return model, widefit.finetune(model, x, torch.arange(24) % 3, loss="cross_entropy", validation=0, max_iter=8)


def test_a_delta_saved_alone_gives_the_same_model(adapted, tmp_path):
    model, result = adapted
    delta = result.finetuning_.delta
    delta.save(tmp_path / "delta.safetensors")
    read = widefit.LowRankDelta.load(tmp_path / "delta.safetensors")
    merged = read.merged(model)
    assert all(torch.equal(value, result.state_dict()[name]) for name, value in merged.state_dict().items())
    assert read.layers["2"].rank == 24  # one column a row, whatever the number of steps
    stored = load_file(tmp_path / "delta.safetensors")
    assert stored["2.U"].shape == (60, 24)
    assert stored["2.V"].shape == (60, 24)
    assert stored["4.delta"].shape == (3, 60)
    assert read.nbytes == sum(tensor.nbytes for tensor in stored.values())


def test_truncation_is_the_nearest_of_its_rank():
    torch.manual_seed(0)
    U, V = torch.randn(20, 6, dtype=torch.float64), torch.randn(15, 6, dtype=torch.float64)
    for layer in (LayerDelta(U, V), LayerDelta(U @ V.T, None)):
        left, singular, right = torch.linalg.svd(U @ V.T)
        best = left[:, :2] * singular[:2] @ right[:2]
        cut = LowRankDelta({"a": layer}).truncated(2).layers["a"]
        assert cut.rank == 2
        torch.testing.assert_close(cut.dense(), best)
        torch.testing.assert_close(layer.truncated(99).dense(), U @ V.T)


def test_sums_of_deltas():
    torch.manual_seed(0)
    low = LayerDelta.of(torch.randn(9, 2), torch.randn(8, 2), torch.randn(9))
    full = LayerDelta.of(torch.randn(9, 7), torch.randn(8, 7), None)
    assert low.V is not None
    assert full.V is None
    for one, two in ((low, low), (low, full), (full, low), (full, full)):
        torch.testing.assert_close(one.plus(two).dense(), one.dense() + two.dense())
    assert torch.equal(low.plus(full).bias, low.bias)
    both = LowRankDelta({"a": low}).plus(LowRankDelta({"a": low, "b": full}))
    torch.testing.assert_close(both.layers["a"].bias, 2 * low.bias)
    assert both.layers["b"] is full


def test_what_does_not_belong_is_refused(adapted, tmp_path):
    _, result = adapted
    delta = result.finetuning_.delta
    with pytest.raises(ValueError, match=r"layer '4' of the delta must be a linear layer .* nothing of that name"):
        delta.merged(perceptron(5, 60, 60))
    with pytest.raises(ValueError, match=r"has weights of shape \(60, 60\), the model's are \(61, 60\)"):
        delta.merged(perceptron(5, 60, 61, 3))
    with pytest.raises(ValueError, match="rank must be at least 1"):
        delta.truncated(0)
    (tmp_path / "wrong").write_text("hello, this is not a delta")
    with pytest.raises(FileError, match="is not a fine-tuning delta"):
        LowRankDelta.load(tmp_path / "wrong")
