"""One step of torch-levenberg-marquardt on the MLP of the step bench; runs in the peers' environment, prints JSON."""

import json
import resource
import statistics
import sys
import time

import torch
import torch_levenberg_marquardt as tlm
from torch import nn

FEATURES = 64


def main(parameters: int, samples: int, steps: int = 4) -> dict:
    """The package's own defaults but for Cholesky, its fastest solve; J is materialized."""
    width = round((-(FEATURES + 3) + ((FEATURES + 3) ** 2 + 4 * parameters) ** 0.5) / 2)
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    model = nn.Sequential(*layers)
    x = torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(1))
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    module = tlm.training.LevenbergMarquardtModule(model, tlm.loss.MSELoss(), solve_method="cholesky")
    model(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        _, loss, _, _ = module.training_step(x, y)
        times.append(time.perf_counter() - began)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    return {"step": statistics.median(times[1:]), "memory_gb": memory, "loss": float(loss)}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
