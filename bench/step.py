"""Time and memory of a Gauss-Newton step on a supervised MLP, by each solver, beside one forward and backward pass.

Processor time stands beside wall-clock time, and the choice of "auto" is judged by it. A forced solver is stopped when
it has taken three times as long as "auto": by then it has lost.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from harness import describe_machine, entry, main, peak_memory_gb, synchronize
from torch import nn

from widefit import GaussNewton

SIZES = {
    "quick": [(10**4, 300), (10**5, 1000)],
    "default": [(10**4, 300), (10**4, 4000), (10**5, 1000), (10**5, 4000), (10**6, 300), (10**6, 2000)],
    "full": [
        (10**4, 100), (10**4, 1000), (10**4, 16_000), (10**5, 300), (10**5, 1000), (10**5, 4000), (10**6, 100),
        (10**6, 2000), (10**7, 300), (10**5, 16_000), (10**6, 4000), (10**7, 2000),
    ],
}  # fmt: skip
# Seconds after which nothing further is begun.
BUDGETS = {"quick": 40.0, "default": 240.0, "full": 420.0}
SOLVERS = ("auto", "cholesky", "nystrom-cg", "sketched-cg", "cg", "primal", "svd")
FEATURES = 64


def network_of(parameters: int) -> nn.Sequential:
    """A tanh network with two hidden layers and about so many parameters."""
    width = round((-(FEATURES + 3) + ((FEATURES + 3) ** 2 + 4 * parameters) ** 0.5) / 2)
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)]
    return nn.Sequential(*layers)


def measure(parameters: int, samples: int, solver: str, steps: int, device: str = "cpu") -> dict:
    """Seconds of forward + backward and of a step, and the memory a step adds; in this process."""
    model = network_of(parameters).to(device)
    x = torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(1))
    x = x.to(device)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]

    def forward_backward() -> None:
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        synchronize(device)

    forward_backward()
    plain, plain_cpu = medians([timed(forward_backward) for _ in range(7)])
    model.zero_grad()
    before = peak_memory_gb()
    optimizer = GaussNewton(model, solver=solver)
    times = [timed(lambda: (optimizer.step(x, y), synchronize(device))) for _ in range(steps)]
    plan = optimizer.plan
    wall, cpu = medians(times[1:])
    return {
        "forward_backward": plain,
        "forward_backward_cpu": plain_cpu,
        "step": wall,
        "cpu": cpu,
        "first": times[0][0],
        "memory_gb": peak_memory_gb() - before,
        "loss": optimizer.history[-1].loss,
        "parameters": sum(p.numel() for p in model.parameters()),
        "way": f"{plan.solver}/{plan.jacobian}" if plan is not None else "",
    }


def timed(action) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    began, worked = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - began, time.process_time() - worked


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Median wall-clock and processor seconds."""
    return statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times)


def in_own_process(
    parameters: int, samples: int, solver: str, steps: int, limit: float, device: str = "cpu"
) -> dict | str:
    """`measure` in a process of its own, whose peak memory is its own; its last words where it refuses."""
    command = [sys.executable, __file__, "--one", str(parameters), str(samples), solver, str(steps), device]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    return json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else ran.stderr.splitlines()[-1]


def run(
    size: str,
    steps: int = 6,
    limit: float = 120.0,
    solvers: str = "",
    peers: str = "",
    sizes: str = "",
    device: str = "cpu",
) -> dict:
    """Measure every solver on every size.

    Parameters
    ----------
    size
        Which sizes.
    steps
        Steps per measurement; the first is left out of the median.
    limit
        Seconds for each measurement.
    solvers
        Comma-separated names instead of all.
    peers
        Interpreter of the environment with torch-levenberg-marquardt; empty: without.
    sizes
        P:n, comma-separated, instead of those of the size; these are all measured, however long it takes.
    device
        Of torch, for widefit.
    """
    figures, skipped = [], []
    chosen = [tuple(map(int, pair.split(":"))) for pair in sizes.split(",")] if sizes else SIZES[size]
    started = time.perf_counter()
    for parameters, samples in chosen:
        place = f"P = {parameters:.0e}, n = {samples}"
        found, patience = {}, limit
        for solver in solvers.split(",") if solvers else SOLVERS:
            if solver == "primal" and parameters >= samples:
                continue
            began = time.perf_counter()
            if not sizes and began - started > BUDGETS[size]:
                reason = f"no time left; --sizes {parameters}:{samples} measures it"
                skipped.append({"name": f"{place}: {solver}", "reason": reason})
                continue
            result = in_own_process(parameters, samples, solver, steps, patience, device)
            if isinstance(result, str):
                skipped.append({"name": f"{place}: {solver}", "reason": result})
            else:
                found[solver] = result
            if solver == "auto":
                patience = min(limit, 3 * (time.perf_counter() - began))
        if peers and samples * parameters <= 2 * 10**8:
            script = Path(__file__).with_name("step_peers.py")
            ran = subprocess.run(
                [peers, str(script), str(parameters), str(samples)],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            if ran.returncode == 0:
                found["torch-levenberg-marquardt"] = json.loads(ran.stdout.splitlines()[-1])
        figures += lines_of(parameters, samples, found)
    settings = {"size": size, "steps": steps, "dtype": "float32", "features": FEATURES, "device": device}
    return {"machine": describe_machine(), "settings": settings, "figures": figures, "skipped": skipped}


def lines_of(parameters: int, samples: int, found: dict[str, dict]) -> list[dict]:
    """Figures of one size."""
    lines = []
    for solver, result in found.items():
        name = f"P = {parameters:.0e}, n = {samples}: {solver}" + (f" ({result['way']})" if result.get("way") else "")
        plain = result.get("forward_backward")
        lines.append(
            entry(f"{name}, step", result["step"], "s", "forward + backward", plain / result["step"] if plain else None)
        )
        if "cpu" in result:
            ratio = result["forward_backward_cpu"] / result["cpu"]
            lines.append(entry(f"{name}, step", result["cpu"], "processor s", "forward + backward", ratio))
        dense = 4e-9 * samples * parameters
        memory = max(result["memory_gb"], 1e-3)
        lines.append(entry(f"{name}, memory", memory, "GB", "dense Jacobian", dense / memory))
    if "auto" in found:
        forced = {solver: result for solver, result in found.items() if solver != "auto" and "way" in result}
        if forced:
            best = min(forced, key=lambda solver: forced[solver]["cpu"])
            ratio = forced[best]["cpu"] / found["auto"]["cpu"]
            title = f"P = {parameters:.0e}, n = {samples}: auto against the best forced choice"
            lines.append(entry(title, found["auto"]["cpu"], "processor s", best, ratio))
    return lines


def draw(result: dict, path: Path) -> None:
    """Step time of every solver, one group a size."""
    import matplotlib.pyplot as plt

    lines = [line for line in result["figures"] if line["name"].endswith("step") and line["unit"] == "s"]
    figure, panel = plt.subplots(figsize=(8, 0.25 * len(lines) + 1))
    panel.barh([line["name"].removesuffix(", step") for line in lines], [line["value"] for line in lines])
    panel.set(xscale="log", xlabel="seconds a step")
    panel.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        print(json.dumps(measure(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])))
    else:
        main("step", run, draw)
