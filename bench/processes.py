"""Two processes of one thread against one: wide trainings, steps of many rows; steps of up to a million rows."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from harness import describe_machine, entry, main

# A process of its own for each measurement: the peak of a process never falls.
PROGRAM = """
import gc, json, resource, sys, time
import torch
import torch.distributed as dist
import widefit

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
count, width, steps, solver = int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]), sys.argv[7]
torch.set_num_threads(int(sys.argv[8]))
group = None
if size > 1:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    group = dist.group.WORLD

def network(width):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))

generator = torch.Generator().manual_seed(1)
x = 2 * torch.rand(count, 8, generator=generator) - 1
x = x[count * rank // size : count * (rank + 1) // size].clone()
y = torch.sin(2 * x.sum(dim=1, keepdim=True))
widefit.GaussNewton(network(4)).step(x[:500], y[:500])
gc.collect()
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
# The damping that the search would find after some steps: every step does the same work.
optimizer = widefit.GaussNewton(network(width), solver=solver, damping=1e-3, memory=3 * 10**9, process_group=group)
optimizer.step(x, y)
if group is not None:
    dist.barrier()
wall, used = time.perf_counter(), time.process_time()
infos = [optimizer.step(x, y) for _ in range(steps)]
wall, used = (time.perf_counter() - wall) / steps, (time.process_time() - used) / steps
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
print(json.dumps({
    "wall": wall, "cpu": used, "peak": peak, "planned": optimizer.plan.bytes_needed, "solver": optimizer.plan.solver,
    "losses": [info.loss for info in infos], "residual": max(info.residual_norm for info in infos),
    "products": sum(info.solver_iterations for info in infos) / steps,
}))
if group is not None:
    dist.destroy_process_group()
"""

# A two-layer training: the neurons are shared out, every process has all rows.
TRAINING = """
import json, sys, time
import numpy as np
import torch
import torch.distributed as dist
import widefit

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
width, count, features, outputs = map(int, sys.argv[4:8])
torch.set_num_threads(1)
group = None
if size > 1:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=size)
    group = widefit.Processes()

def fit(width, count):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((count, features)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.sin(4 * x @ generator.standard_normal((features, outputs)))
    network = widefit.nn.TwoLayer(features, width, outputs, readout_scale=10.0, paired=True)
    if group is not None:
        group.meet()
    wall, used = time.perf_counter(), time.process_time()
    history = widefit.train(network, x, y, max_iter=4, tol=0.0, process_group=group)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return {"wall": wall, "cpu": used, "losses": history.losses, "phases": dict(history.phases)}

fit(width, count)  # compiles, and loads what is compiled
print(json.dumps(fit(width, count)))
if group is not None:
    dist.destroy_process_group()
"""

# Widths, rows, features and outputs of the trainings; of many rows H is applied from fire lists.
TRAINED = {
    "quick": [(1 << 14, 200, 16, 1)],
    "default": [(1 << 18, 1000, 64, 1), (1 << 20, 1000, 64, 1), (1 << 18, 1000, 64, 10), (1 << 14, 20_000, 20, 1)],
    "full": [(1 << 18, 1000, 64, 1), (1 << 20, 1000, 64, 1), (1 << 20, 1000, 64, 10), (1 << 16, 20_000, 20, 1)],
}
# Rows and widths of the comparison of processes; rows of the steps at P = 1001.
SHARED = {"quick": (40_000, 60), "default": (200_000, 60), "full": (400_000, 100)}
ROWS = {"quick": (10_000, 50_000), "default": (10_000, 100_000, 1_000_000), "full": (10_000, 100_000, 1_000_000)}
WIDTH = 100
STEPS = 3


def measure(size: int, program: str, settings: tuple, threads: int) -> list[dict]:
    """Run a program in so many processes; the figures that each of them prints."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(rank), str(size), folder, *map(str, settings)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(size)
        ]
        printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a process has failed; its output stands above")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def compared(program: str, settings: tuple, repeats: int, what: tuple[str, str]) -> list[dict]:
    """One process of one thread and two, alternated: `what` they do, and to what."""
    runs = [(measure(1, program, settings, 1), measure(2, program, settings, 1)) for _ in range(repeats)]
    figures = []
    for clock in ("wall", "cpu"):
        one = median(own[0][clock] for own, _ in runs)
        two = median(max(process[clock] for process in own) for _, own in runs)
        ratio = median(o[0][clock] / max(process[clock] for process in t) for o, t in runs)
        figures.append(entry(f"{what[0]} of one process ({clock}), {what[1]}", one, "s"))
        figures.append(entry(f"{what[0]} of two processes ({clock}), {what[1]}", two, "s", "one process", ratio))
    apart = max(abs(one[0]["losses"][-1] - two[0]["losses"][-1]) / one[0]["losses"][0] for one, two in runs)
    figures.append(entry(f"difference of their losses, {what[1]}", apart, "of the first loss"))
    return figures


def trained(problems: list[tuple[int, int, int, int]], repeats: int) -> list[dict]:
    """Gauss-Newton on two-layer networks of width m, n rows of d numbers, k outputs."""
    figures = []
    for problem in problems:
        width, count, features, outputs = problem
        what = f"width {width}, {count} rows of {features} numbers, {outputs} outputs"
        figures += compared(TRAINING, problem, repeats, ("training", what))
    return figures


def shared(count: int, width: int, repeats: int) -> list[dict]:
    """Each way of taking a step in parameter space."""
    figures = []
    for solver in ("primal", "primal-cg"):
        what = f"{solver}, {count} rows, {10 * width + 1} parameters"
        figures += compared(PROGRAM, (count, width, STEPS, solver, 1), repeats, ("step", what))
    return figures


def many(rows: tuple[int, ...]) -> list[dict]:
    """Steps of "auto" at 1001 parameters on all cores, within 3 GB."""
    figures = []
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for count in rows:
        (found,) = measure(1, PROGRAM, (count, WIDTH, STEPS, "auto", threads), threads)
        what = f"{count} rows, {10 * WIDTH + 1} parameters, {found['solver']}"
        figures += [
            entry(f"step (wall), {what}", found["wall"], "s"),
            entry(f"step (processor time of {threads} cores), {what}", found["cpu"], "s"),
            entry(f"products a step, {what}", found["products"], "products"),
            entry(f"largest residual of the equations, {what}", found["residual"], "of the right-hand side"),
            entry(f"peak, {what}", found["peak"] / 1e6, "MB", "the plan", found["planned"] / found["peak"]),
            entry(f"loss, {what}", found["losses"][-1], "mean squared residual"),
        ]
    return figures


def run(size: str) -> dict:
    """Two-layer networks; a perceptron 8-m-1 with tanh in float32 on sin of a sum, fixed damping."""
    count, width = SHARED[size]
    repeats = 1 if size == "quick" else 3
    figures = trained(TRAINED[size], repeats) + shared(count, width, repeats) + many(ROWS[size])
    return {"machine": describe_machine(), "settings": {"steps": STEPS, "inputs": 8}, "figures": figures}


def draw(result: dict, path: Path) -> None:
    """Seconds of a step against its rows."""
    import matplotlib.pyplot as plt

    points = [
        (int(line["name"].split(", ")[1].split()[0]), line["value"])
        for line in result["figures"]
        if line["name"].startswith("step (wall)")
    ]
    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.loglog(*zip(*points, strict=True), "o-")
    axes.set(xlabel="rows", ylabel="seconds a step", title="1001 parameters")
    figure.savefig(path)


if __name__ == "__main__":
    main("processes", run, draw)
