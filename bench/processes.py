"""A Gauss-Newton step by two processes of one thread against one; steps of up to a million rows, and their memory."""

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
"""

# Rows and widths of the comparison of processes; rows of the steps at P = 1001.
SHARED = {"quick": (40_000, 60), "default": (200_000, 60), "full": (400_000, 100)}
ROWS = {"quick": (10_000, 50_000), "default": (10_000, 100_000, 1_000_000), "full": (10_000, 100_000, 1_000_000)}
WIDTH = 100
STEPS = 3


def measure(size: int, count: int, width: int, solver: str, threads: int) -> list[dict]:
    """Step in so many processes; the figures that each of them prints."""
    settings = [str(count), str(width), str(STEPS), solver, str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(rank), str(size), folder, *settings],
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


def shared(count: int, width: int, repeats: int) -> list[dict]:
    """One process and two, alternated, with each way of taking a step in parameter space."""
    figures = []
    for solver in ("primal", "primal-cg"):
        runs = [(measure(1, count, width, solver, 1), measure(2, count, width, solver, 1)) for _ in range(repeats)]
        losses = [(one[0]["losses"][-1], two[0]["losses"][-1]) for one, two in runs]
        apart = max(abs(a - b) / a for a, b in losses)
        what = f"{solver}, {count} rows, {10 * width + 1} parameters"
        for clock in ("wall", "cpu"):
            one = median(own[0][clock] for own, _ in runs)
            two = median(max(process[clock] for process in own) for _, own in runs)
            ratio = median(o[0][clock] / max(process[clock] for process in t) for o, t in runs)
            figures.append(entry(f"step of one process ({clock}), {what}", one, "s"))
            figures.append(entry(f"step of two processes ({clock}), {what}", two, "s", "one process", ratio))
        figures.append(entry(f"difference of their losses, {what}", apart, "of the loss"))
    return figures


def many(rows: tuple[int, ...]) -> list[dict]:
    """Steps of "auto" at 1001 parameters on all cores, within 3 GB."""
    figures = []
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for count in rows:
        (found,) = measure(1, count, WIDTH, "auto", threads)
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
    """A perceptron 8-m-1 with tanh in float32 on sin of a sum, fixed damping."""
    count, width = SHARED[size]
    figures = shared(count, width, 1 if size == "quick" else 3) + many(ROWS[size])
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
