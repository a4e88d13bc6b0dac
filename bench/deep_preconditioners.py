"""Ways to solve with H of a deep network: its factor, conjugate gradients, and what may stand before them."""

import math
import time

import numpy as np
import torch
from harness import describe_machine, entry, main
from sklearn.datasets import load_digits
from torch import Tensor

from widefit.gram import CoupledGram, DenseGram
from widefit.linalg.sparse_layer_rows import SparseLayerRows
from widefit.nn import Deep
from widefit.sketches import TensorSRHT
from widefit.solvers import CG, BlockCG, Cholesky, NystromCG
from widefit.solvers.pcg import preconditioned_cg
from widefit.trackers.deep.sparse import SparseTracking

SAMPLES = {"quick": (500,), "default": (1000, 1700), "full": (1000, 1700)}
WIDTH, THRESHOLD = 2048, 1.645
# λ relative to the mean of diag H, as late in a training; 1e-4, as at its start, takes as many products.
DAMPING = 1e-6
TOLERANCE = 1e-6
# Rows of a sketch, relative to n; below one, the rest of H is taken to be a multiple of the identity.
SKETCHES = (0.25, 1.0, 4.0)


def run(size: str, mnist: str = "", samples: str = "") -> dict:
    """Digits at the start of a training: even against odd, one output, and all ten.

    `mnist` is an .npz with X_train and y_train to take more rows from; `samples` a list such as 2000,4000.
    """
    counts = tuple(int(count) for count in samples.split(",")) if samples else SAMPLES[size]
    figures = []
    for count in counts:
        rows, labels = _rows(count, mnist)
        figures += _figures(count, rows, np.where(labels % 2, 1.0, -1.0)) + _ten_outputs(count, rows, labels)
    chosen = {"width": WIDTH, "threshold": THRESHOLD, "tolerance": TOLERANCE, "size": size}
    return {"machine": describe_machine(), "settings": chosen, "figures": figures}


def _rows(count: int, mnist: str) -> tuple[np.ndarray, np.ndarray]:
    if mnist:
        with np.load(mnist) as data:
            order = np.random.default_rng(0).permutation(len(data["y_train"]))[:count]
            rows, labels = data["X_train"][order].reshape(count, -1).astype(np.float64), data["y_train"][order]
    else:
        data = load_digits()
        order = np.random.default_rng(0).permutation(len(data.target))[:count]
        rows, labels = data.data[order], data.target[order]
    rows = rows - rows.mean(0)
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True)), labels


def _figures(count: int, rows: np.ndarray, targets: np.ndarray) -> list[dict]:
    network = Deep(rows.shape[1], (WIDTH, WIDTH), threshold=THRESHOLD, dtype=torch.float64)
    run = SparseTracking(network, rows, torch.get_num_threads())
    begun = time.process_time()
    layers = run.factors()
    gram = CoupledGram(layers).dense()
    formed = time.process_time() - begun
    operator, rhs = DenseGram(gram), torch.from_numpy(targets)
    figures = [entry(f"n = {count}, forming H", formed, "s of CPU")]
    shift = DAMPING * float(gram.diagonal().mean())
    for solver in (Cholesky(), CG(tolerance=TOLERANCE), NystromCG(tolerance=TOLERANCE)):
        begun = time.process_time()
        solution = solver.solve(operator, rhs, shift)
        figures += _lines(f"n = {count}, {solver.name}", time.process_time() - begun, solution.iterations)
    for part in SKETCHES:
        begun = time.process_time()
        sketch = _sketched(layers, rows, run, network, round(part * count))
        drawn = time.process_time() - begun
        products = _behind(sketch, gram, rhs, shift)
        figures += _lines(f"n = {count}, CG behind a TensorSRHT of {part:g} n rows, drawing alone", drawn, products)
    return figures


def _ten_outputs(count: int, rows: np.ndarray, labels: np.ndarray) -> list[dict]:
    """H of ten outputs is applied, not formed: conjugate gradients behind its diagonal, and behind its mean block."""
    threads = torch.get_num_threads()
    network = Deep(rows.shape[1], (WIDTH, WIDTH), 10, threshold=THRESHOLD)
    operator = CoupledGram(SparseTracking(network, rows.astype(np.float32), threads).factors())
    targets = np.where(labels[:, None] == np.arange(10), 1.0, -1.0)
    rhs, shift = torch.from_numpy((targets - targets.mean(0)).reshape(-1)), DAMPING * float(operator.diagonal().mean())
    figures = []
    for tolerance in (1e-3, TOLERANCE):
        for solver in (CG(tolerance=tolerance), BlockCG(tolerance=tolerance)):
            begun = time.process_time()
            products = solver.solve(operator, rhs, shift).iterations
            name = f"n = {count}, ten outputs, {solver.name} to {tolerance:g}"
            figures += _lines(name, time.process_time() - begun, products)
    return figures


def _lines(name: str, seconds: float, products: int) -> list[dict]:
    return [entry(f"{name}, time", seconds, "s of CPU"), entry(f"{name}, products", products, "")]


def _sketched(
    layers: list[SparseLayerRows], inputs: np.ndarray, run: SparseTracking, network: Deep, rows: int
) -> Tensor:
    """S Jᵀ (rows × n), S a TensorSRHT for every layer: E[(S Jᵀ)ᵀ S Jᵀ] = H."""
    total = torch.zeros(rows, len(run.outputs), dtype=torch.float64)
    x = torch.from_numpy(inputs)
    for number, layer in enumerate(layers):
        delta = torch.from_numpy(layer.signal_rows().dense())
        seen = network.input_factor(number) * x
        if number > 0:
            h = torch.from_numpy(run.activations[number - 1].dense())
            seen = torch.cat([network.hidden_factor(number) * h, seen], dim=1)
        sketch = TensorSRHT(rows, delta.shape[1], seen.shape[1], seed=number)
        total += sketch.apply_pair(delta.T.contiguous(), seen.T.contiguous())
    return total


def _behind(sketch: Tensor, gram: Tensor, rhs: Tensor, shift: float) -> int:
    """Products that conjugate gradients take behind the sketch: the fewest over what stands for the rest of H."""
    values, basis = torch.linalg.eigh(sketch.T @ sketch)
    least = 10 * len(rhs)
    for rest in (0.0, *(float(gram.diagonal().mean()) * 10.0**-power for power in range(4))):
        inverse = 1 / (values.clamp_min(0) + shift + rest)

        def precondition(v: Tensor, inverse: Tensor = inverse) -> Tensor:
            return basis @ (inverse * (basis.T @ v))

        limit = min(least, math.ceil(2 * len(rhs)))
        *_, products = preconditioned_cg(lambda v: gram @ v, shift, rhs, precondition, TOLERANCE, limit, 50)
        least = min(least, products)
    return least


if __name__ == "__main__":
    main("deep-preconditioners", run)
