"""Streams: peak memory against the number of rows, and a step that touches only neurons that fire."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import describe_machine, entry, main

from widefit.nn import TwoLayer
from widefit.rules import SGD
from widefit.training.stream import Streaming

# A process of its own for each number of rows: the peak of a process never falls.
PROGRAM = """
import resource, sys
from widefit.cli.app import app
try:
    where = ["--out", sys.argv[3], "--no-report", "--quiet"]
    app(["train", sys.argv[1], "--stream", "--target", "y", "--width", sys.argv[2], *where])
except SystemExit as end:
    assert not end.code
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
ROWS = {"quick": (10_000, 50_000), "default": (100_000, 1_000_000), "full": (100_000, 1_000_000, 10_000_000)}
WIDTHS = {"quick": (14,), "default": (14, 16, 18), "full": (14, 16, 18, 20)}


def run(size: str, width: int = 4096) -> dict:
    """A noisy function of two columns from a file; and both ways of finding the neurons on unseen samples."""
    figures = []
    peaks: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in ROWS[size]:
            path = Path(folder) / f"{rows}.csv"
            _write(path, rows)
            command = [sys.executable, "-c", PROGRAM, str(path), str(width), str(Path(folder) / "model.widefit")]
            started = time.perf_counter()
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            spent = time.perf_counter() - started
            peaks[rows] = int(printed.split()[-1]) / 1e6
            first = next(iter(peaks))
            ratio = peaks[first] / peaks[rows] if rows > first else None
            figures.append(
                entry(f"peak memory, {rows:,} rows", peaks[rows], "MB", f"{first:,} rows" if ratio else None, ratio)
            )
            figures.append(entry(f"whole command, {rows:,} rows", rows / spent, "rows/s"))
            path.unlink()
    for features in (2, 3, 8):
        for exponent in WIDTHS[size]:
            seconds = {tracker: _seconds(features, exponent, tracker) for tracker in ("dense", "half-space-tree")}
            title = f"unseen samples, d = {features}, m = 2^{exponent}"
            figures.append(entry(f"{title}, dense", seconds["dense"] * 1e6, "µs a sample"))
            ratio = seconds["dense"] / seconds["half-space-tree"]
            figures.append(entry(f"{title}, tree", seconds["half-space-tree"] * 1e6, "µs a sample", "dense", ratio))
    return {"machine": describe_machine(), "settings": {"size": size, "width": width}, "figures": figures}


def _write(path: Path, rows: int) -> None:
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("u,v,y\n")
        for first in range(0, rows, 50_000):
            u, v = generator.uniform(-1, 1, (2, min(50_000, rows - first)))
            y = np.sin(3 * u) * v + 0.1 * generator.standard_normal(u.size)
            np.savetxt(file, np.column_stack([u, v, y]), fmt="%.4f", delimiter=",")


def _seconds(features: int, exponent: int, tracker: str) -> float:
    """Time a sample of the steps alone, after a first block."""
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((1024, features)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    streaming = Streaming(TwoLayer(features, 1 << exponent, seed=0), rule=SGD(0.1), tracker=tracker)
    streaming.learn(inputs, inputs[:, 0])
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        streaming.learn(inputs, inputs[:, 0])
        spent.append((time.perf_counter() - started) / 1024)
    return min(spent)


if __name__ == "__main__":
    main("stream", run)
