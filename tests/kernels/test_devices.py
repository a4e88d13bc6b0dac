"""What torch is asked for, and given back as it was."""

from contextlib import suppress

import pytest
import torch

import widefit
from widefit.kernels.devices import check_precision, device_named, devices, free_memory, told
from widefit.kernels.surroundings import full_precision, insulated


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def allowed() -> tuple[bool, bool]:
    return bool(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("context", [full_precision, insulated])
def test_tf32_is_off_and_as_before(context, tf32):
    with suppress(KeyError), context():
        assert allowed() == (False, False)
        raise KeyError
    assert allowed() == (True, True)
    assert torch.get_float32_matmul_precision() == "high"


def test_work_is_in_full_precision(tf32):
    seen = []

    class Spy(torch.nn.Linear):
        def forward(self, x):
            seen.append(allowed())
            return super().forward(x)

    def watch(network) -> float:
        seen.append(allowed())
        return 0.0

    x = torch.randn(12, 3)
    widefit.GaussNewton(Spy(3, 1)).minimize(x, x.sum(1, keepdim=True), max_iter=1)
    widefit.finetune(torch.nn.Sequential(Spy(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)), x, x[:, 0], max_iter=1)
    widefit.train(widefit.nn.TwoLayer(3, 64), x, x[:, 0], max_iter=1, metric=watch)
    assert set(seen) == {(False, False)}
    assert allowed() == (True, True)


def test_the_processor_is_always_there():
    assert devices()[0] == "cpu"
    assert device_named("cpu") == torch.device("cpu")
    assert free_memory(torch.device("cpu")) > 0
    assert told(torch.device("cpu"), torch.float64) == "cpu, float64"


def test_apple_has_no_float64():
    with pytest.raises(ValueError, match="which MPS does not have: leave the model on the CPU"):
        check_precision(torch.device("mps"))


def test_a_number_that_is_too_high():
    with pytest.raises(ValueError, match='device="cpu:3" is not at hand; here there is "cpu"'):
        device_named("cpu:3")
