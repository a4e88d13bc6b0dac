"""What torch is asked for, and given back as it was."""

from contextlib import suppress
from operator import attrgetter

import pytest
import torch

import widefit
from widefit.kernels.devices import check_precision, device_named, devices, double_cost, free_memory, told
from widefit.kernels.precision import full_precision
from widefit.kernels.surroundings import insulated


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


def test_blocks_that_overlap_put_back_what_was_there(tf32):
    first, second = full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert allowed() == (False, False)
    second.__exit__(None, None, None)
    assert allowed() == (True, True)


BY_OPERATION = ["", "cuda.matmul", "cudnn", "cudnn.conv", "mkldnn.matmul"]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has no settings by operation")
@pytest.mark.parametrize("name", BY_OPERATION)
def test_settings_of_single_operations(name):
    """Torch refuses to tell the setting for all operations then."""
    kinds = {kind: attrgetter(kind)(torch.backends) for kind in BY_OPERATION[1:]}
    chosen = kinds.get(name, torch.backends)
    before = chosen.fp32_precision
    try:
        chosen.fp32_precision = "tf32" if name != "cudnn.conv" else "ieee"
        asked = {kind: operation.fp32_precision for kind, operation in kinds.items()}
        with full_precision():
            assert torch.backends.cuda.matmul.fp32_precision == torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert asked == {kind: operation.fp32_precision for kind, operation in kinds.items()}
    finally:
        chosen.fp32_precision = before


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


@pytest.mark.parametrize(("capability", "cost"), [((9, 0), 2.0), ((8, 0), 2.0), ((8, 9), 64.0), ((12, 0), 64.0)])
def test_float64_is_slow_but_on_what_data_centers_have(monkeypatch, capability, cost):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "one of them")
    device = torch.device("cuda")
    assert double_cost(device) == cost
    assert ("float64 is slow there" in told(device, torch.float32)) == (cost > 2)
    assert double_cost(torch.device("cpu")) == 2.0


def test_a_number_that_is_too_high():
    with pytest.raises(ValueError, match='device="cpu:3" is not at hand; here there is "cpu"'):
        device_named("cpu:3")
