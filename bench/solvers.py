"""Products with H that solvers take on many rows: conjugate gradients, behind columns, and block coordinate steps."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from harness import describe_machine, entry, main
from samples import made_up, read
from torch import Tensor

ROWS = {"quick": 2_000, "default": 6_000, "full": 12_000}
WIDTH = 8192
RANK = 200
# Ridges in parts of the mean of diag H, and residuals in parts of the right-hand side.
RIDGES = (1e-1, 1e-2, 1e-3)
RESIDUALS = (1e-1, 1e-2)
MOST_PRODUCTS = 400


def run(size: str, data: str = "", rows: int = 0) -> dict:
    """(H + αI) g = y with H of an untrained network on so many rows, as an array that all solvers share.

    Made up, or the first rows of an NPZ file as `widefit bench samples` takes it. Block coordinate steps are ASkotch
    (arXiv 2407.10070): blocks of a hundredth of the rows, but of 200 at least, drawn at random, a Nyström approximation
    of rank 100 of H within each, Nesterov's acceleration. They need the rows of H of a block alone, so that as many
    steps as there are blocks count as one product. Processor seconds include preconditioners.
    """
    count = rows or ROWS[size]
    H, y = _system(count, data)
    figures = []
    for ridge in RIDGES:
        damping = ridge * float(H.diagonal().mean())
        for name, solve in _SOLVERS.items():
            found = _reached(solve(H, y, damping), H, y, damping)
            for residual in RESIDUALS:
                products, seconds = found.get(residual, (float("inf"), float("inf")))
                label = f"ridge {ridge:g}, residual {residual:g}, {name}"
                figures.append(entry(f"{label}, products", products, ""))
                figures.append(entry(f"{label}, time", seconds, "processor s"))
    settings = {"rows": count, "width": WIDTH, "rank": RANK, "data": data or "made up", "gave up after": MOST_PRODUCTS}
    return {"machine": describe_machine(), "settings": settings, "figures": figures}


def _system(count: int, data: str) -> tuple[Tensor, Tensor]:
    """H and centred targets of unit spread."""
    from widefit.gram import co_firing, similarity
    from widefit.nn import TwoLayer
    from widefit.trackers import Dense
    from widefit.tuning.sphere import SphereMap

    X, y, *_ = read(Path(data)) if data else made_up(count)
    chosen = np.random.default_rng(0).permutation(len(X))[:count]
    inputs = SphereMap.fit(X[chosen], np.ones(count), scaling="columns", constant=0.5)(X[chosen])
    network = TwoLayer(inputs.shape[1], WIDTH, paired=True, dtype=torch.float64)
    patterns = Dense().start(network, inputs).patterns()
    H = co_firing(patterns, similarity(inputs), network.coefficients()).matrix
    target = torch.from_numpy(y[chosen].astype(float))
    return H, (target - target.mean()) / target.std()


# Products so far, and the iterate.
Iterates = Iterator[tuple[float, Tensor]]


def _reached(iterates: Iterates, H: Tensor, y: Tensor, damping: float) -> dict[float, tuple[float, float]]:
    """Products and processor seconds after which each residual was reached; checks take no part in the time."""
    found: dict[float, tuple[float, float]] = {}
    spent = 0.0
    begun = time.process_time()
    for products, g in iterates:
        spent += time.process_time() - begun
        left = float(torch.linalg.vector_norm(H @ g + damping * g - y) / torch.linalg.vector_norm(y))
        for residual in RESIDUALS:
            if left <= residual and residual not in found:
                found[residual] = (products, spent)
        if len(found) == len(RESIDUALS) or products >= MOST_PRODUCTS:
            break
        begun = time.process_time()
    return found


def _conjugate_gradients(H: Tensor, y: Tensor, damping: float, precondition: Callable[[Tensor], Tensor]) -> Iterates:
    g, residual, products = torch.zeros_like(y), y.clone(), 0
    ahead = precondition(residual)
    direction, rho = ahead, residual @ ahead
    while True:
        moved = H @ direction + damping * direction
        products += 1
        step = rho / (direction @ moved)
        g = g + step * direction
        residual = residual - step * moved
        ahead = precondition(residual)
        rho, before = residual @ ahead, rho
        direction = ahead + (rho / before) * direction
        yield products, g


def _plain(H: Tensor, y: Tensor, damping: float) -> Iterates:
    return _conjugate_gradients(H, y, damping, lambda vector: vector)


def _behind_columns(H: Tensor, y: Tensor, damping: float) -> Iterates:
    from widefit.gram import DenseGram
    from widefit.solvers import NystromCG
    from widefit.solvers.pcg import Preconditioned

    prepared = NystromCG(rank=RANK).prepare(DenseGram(H), damping)
    assert isinstance(prepared, Preconditioned)
    yield from _conjugate_gradients(H, y, damping, prepared.precondition)


def _block_steps(H: Tensor, y: Tensor, damping: float) -> Iterates:
    """ASkotch: w, v and z are its three sequences."""
    generator = torch.Generator().manual_seed(0)
    samples = len(y)
    size = max(RANK, samples // 100)
    growth = samples / size
    convexity = min(damping, 1 / growth)
    keep, long = 1 - (convexity / growth) ** 0.5, 1 / (convexity * growth) ** 0.5
    mix = 1 / (1 + long * growth)
    w, v, z = (torch.zeros_like(y) for _ in range(3))
    steps = 0
    while True:
        own = torch.randperm(samples, generator=generator)[:size]
        step = _block_step(H[own[:, None], own], H[own] @ z + damping * z[own] - y[own], damping, generator)
        w = z.clone()
        w[own] -= step
        v = keep * v + (1 - keep) * z
        v[own] -= long * step
        z = mix * v + (1 - mix) * w
        steps += 1
        if steps % max(1, round(growth)) == 0:
            yield steps / growth, w


def _block_step(block: Tensor, gradient: Tensor, damping: float, generator: torch.Generator) -> Tensor:
    """(Ĥ + ρI)⁻¹ times the gradient over the largest eigenvalue of what is preconditioned, by ten powers."""
    rank = min(100, len(block) // 2)
    test = torch.linalg.qr(torch.randn(len(block), rank, generator=generator, dtype=block.dtype)).Q
    sketch = block @ test
    shift = torch.finfo(block.dtype).eps * float(block.trace())
    factor = torch.linalg.cholesky(test.T @ (sketch + shift * test))
    left = torch.linalg.solve_triangular(factor, (sketch + shift * test).T, upper=False).T
    vectors, values, _ = torch.linalg.svd(left, full_matrices=False)
    values = (values.square() - shift).clamp_min(0)
    rho = damping + float(values[-1])

    def inverse(vector: Tensor, power: float) -> Tensor:
        inner = vectors.T @ vector
        return vectors @ (((values + rho) ** power - rho**power) * inner) + rho**power * vector

    probe = torch.randn(len(block), generator=generator, dtype=block.dtype)
    largest = 1.0
    for _ in range(10):
        probe = probe / torch.linalg.vector_norm(probe)
        half = inverse(probe, -0.5)
        moved = inverse(block @ half + damping * half, -0.5)
        largest = float(probe @ moved)
        probe = moved
    return inverse(gradient, -1.0) / max(largest, 1.0)


_SOLVERS = {"cg": _plain, f"cg behind {RANK} columns": _behind_columns, "block coordinate steps": _block_steps}


if __name__ == "__main__":
    main("solvers", run)
