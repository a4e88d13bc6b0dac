"""The memory that a plan predicts is what a step takes at most."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, json, re, sys
import torch
from torch import nn
from widefit import GaussNewton, Residual

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024

torch.set_num_threads(1)
found = {}
for name, count, widths, dtype in (
    ("svd", 30000, (4, 20, 1), torch.float64),
    ("primal", 6000, (4, 80, 1), torch.float64),
    ("primal-cg", 120000, (4, 80, 1), torch.float32),
    ("nystrom-cg", 4000, (64, 256, 256, 1), torch.float32),
    ("cholesky", 2200, (64, 256, 256, 1), torch.float32),
):
    layers = [part for a, b in zip(widths, widths[1:]) for part in (nn.Linear(a, b), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    x = torch.rand(count, widths[0], dtype=dtype)
    y = x.sum(dim=1, keepdim=True)
    GaussNewton(model, solver="svd").step(x[:20], y[:20])
    optimizer = GaussNewton(model, solver=name)
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    optimizer.step(x, y)
    found[name] = [optimizer.plan.bytes_needed, status("VmHWM") - before]
    del optimizer
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs the peak of a Linux process")
def test_peak_of_a_step() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    for name, (predicted, measured) in json.loads(ran.stdout).items():
        assert measured < 1.25 * predicted + 20e6, name
