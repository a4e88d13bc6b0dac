"""The same numbers on the accelerators of this machine as on its processor; skipped where there are none."""

import pytest
import torch
from cases import CASES

from widefit.kernels.devices import devices

# Apple's has no float64, and is refused.
ACCELERATORS = [kind for kind in devices() if kind not in ("cpu", "mps")]


@pytest.mark.gpu
@pytest.mark.skipif(not ACCELERATORS, reason="torch finds no accelerator with float64 here")
@pytest.mark.parametrize("device", ACCELERATORS or ["none"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:.*residuals at the same points:UserWarning")
def test_the_numbers_are_those_of_the_processor(name: str, device: str):
    expected = torch.tensor(CASES[name]("cpu"), dtype=torch.float64)
    found = torch.tensor(CASES[name](device), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
