"""Peak memory of a training run at a million neurons, against the weights themselves."""

import json
import subprocess
import sys

from harness import describe_machine, entry, main

# A process of its own for each width: the peak of a process never falls.
PROGRAM = """
import json, resource, sys
import numpy as np, torch
from sklearn.datasets import load_digits
import widefit, widefit.training
from widefit.nn import TwoLayer

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

rows = load_digits()
inputs = rows.data[:1000] - rows.data.mean(0)
inputs = (inputs / np.linalg.norm(inputs, axis=1, keepdims=True)).astype(np.float32)
targets = np.where(rows.target[:1000] % 2, 1.0, -1.0)
widefit.train(TwoLayer(64, 1024), inputs, targets, max_iter=2)
before = resident()
network = TwoLayer(64, int(sys.argv[1]))
history = widefit.train(network, inputs, targets, max_iter=4, tol=1e-8)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
weights = network.weight.nelement() * network.weight.element_size()
print(json.dumps({"weights": weights, "used": peak - before, "before": before, "loss": history.losses[-1]}))
"""

SIZES = {"quick": (18,), "default": (18, 20), "full": (18, 20, 22)}


def run(size: str) -> dict:
    """Digits parity, n = 1000, d = 64, float32: network, four steps, everything."""
    figures = []
    for exponent in SIZES[size]:
        command = [sys.executable, "-c", PROGRAM, str(1 << exponent)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result = json.loads(printed.splitlines()[-1])
        ratio = result["weights"] / result["used"]
        figures.append(entry(f"weights, m = 2^{exponent}", result["weights"] / 1e6, "MB"))
        figures.append(entry(f"peak of training, m = 2^{exponent}", result["used"] / 1e6, "MB", "the weights", ratio))
        figures.append(entry(f"loss reached, m = 2^{exponent}", result["loss"], "mean squared residual"))
    return {"machine": describe_machine(), "settings": {"samples": 1000, "features": 64}, "figures": figures}


if __name__ == "__main__":
    main("memory", run)
