"""The ridge of many rows, judged on held-out rows by regressions on all others with the network's own H."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from widefit.gram.base import Operator
from widefit.gram.fire_lists import FireListGram
from widefit.gram.fired_rows import Samples
from widefit.gram.summed import SummedOperator
from widefit.nn import TwoLayer
from widefit.processes import Alone
from widefit.solvers.ridge_path import RidgeFit, ridge_path
from widefit.trackers import Dense

# Rows that judge: this part of all, at most so many, or a fiftieth where that is enough of them: a training may then
# leave them out.
_HELD_PART, _HELD = 0.1, 4000
_FEW_PART, _ENOUGH = 0.02, 1000
# Ridges that are tried, one after the other, in units of the one that few rows have chosen.
_FACTORS = 10.0 ** np.arange(1.5, -3.1, -0.5)
# What a ridge may add to the smallest error: with larger ones steps take fewer products.
_TOLERATED = 1.002
# Products after which a regression is given up, and with it all smaller ridges.
_MOST_PRODUCTS = 50


@dataclass(frozen=True)
class FullRidge:
    """A ridge with its regression on all rows but some.

    Attributes
    ----------
    alpha
        α, in the units of the network's H.
    error
        Root of the weighted mean squared error on the held-out rows, summed over outputs.
    rows, predictions
        The held-out rows, and H g there, shapes (q,) and (q, k).
    coefficients
        g, shape (n, k).
    residual
        ‖√ω H √ω g̃ + α g̃ − √ω y‖ / ‖√ω y‖ on the other rows, the largest of any output.
    products
        Products with H, the most of any output.
    tried
        Ridges that it was compared with, itself included.
    """

    alpha: float
    error: float
    rows: Int[np.ndarray, " q"]
    predictions: Float[np.ndarray, "q k"]
    coefficients: Float[np.ndarray, "n k"]
    residual: float
    products: int
    tried: int


def full_ridge(
    network: TwoLayer,
    inputs: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    *,
    alpha: float,
    summed: np.dtype,
    rank: int,
    threads: int,
    processes: Alone,
    seed: int,
) -> FullRidge:
    """Try ridges around one that few rows have chosen (this project).

    Parameters
    ----------
    network
        Before training, `paired`; of several processes the share of this one.
    inputs
        X in the dtype of the network.
    targets, sample_weight
        y, and ω > 0.
    alpha
        α of few rows, in the units of the network's H.
    summed
        Dtype of sums over tiles of samples (`widefit.plan.two_layer.product_dtype`).
    rank
        Columns of preconditioners.
    threads
        Cores to use.
    processes
        Those that share the neurons; all of them call it at once.
    seed
        Draws the held-out rows.
    """
    few = int(_FEW_PART * len(inputs))
    size = min(_HELD, few if few >= _ENOUGH else int(_HELD_PART * len(inputs)))
    held = np.sort(np.random.default_rng(seed).choice(len(inputs), size, replace=False))
    samples = Samples.of(inputs, summed)
    ridges = alpha * _FACTORS
    weight = torch.from_numpy(sample_weight)
    paths: list[list[RidgeFit]] = []
    for output in range(targets.shape[1]):
        gram: Operator = _gram(network, samples, output, threads)
        gram = gram if processes.size == 1 else SummedOperator(gram, processes)
        own = torch.from_numpy(np.ascontiguousarray(targets[:, output]))
        path = ridge_path(
            gram, own, weight, torch.from_numpy(held), ridges, rank, _MOST_PRODUCTS, whole=bool(paths)
        )  # fmt: skip
        if not paths:
            # The first output says which ridges are too small; they take the most products.
            ridges = ridges[: 1 + int(np.argmin([fit.error for fit in path]))]
        paths.append(path)
    errors = np.sqrt([sum(path[place].error for path in paths) for place in range(len(ridges))])
    best = int(np.flatnonzero(errors <= _TOLERATED * errors.min())[0])
    fits = [path[best] for path in paths]
    return FullRidge(
        float(ridges[best]),
        float(errors[best]),
        held,
        np.stack([fit.predictions for fit in fits], axis=1),
        np.stack([fit.coefficients.numpy() for fit in fits], axis=1),
        max(fit.residual for fit in fits),
        max(path[-1].products for path in paths),
        len(ridges),
    )


def _gram(network: TwoLayer, samples: Samples, output: int, threads: int) -> FireListGram:
    """H of an output: the first neuron of a pair stands for both."""
    first, last = network.neurons_of(output)
    firsts = network.rows(first, last)[::2]
    readout = torch.ones(len(firsts), 1, dtype=network.dtype)
    own = TwoLayer.from_tensors(torch.from_numpy(firsts.copy()), readout, threshold=network.threshold)
    squares = network.coefficients(first, last) ** 2
    seconds = np.append(squares[1::2], np.zeros(len(firsts) - len(squares) // 2))
    both = np.sqrt(squares[::2] + seconds)
    patterns = Dense().start(own, samples.inputs, threads=threads).patterns()
    return FireListGram(patterns, samples, lambda low, high: both[low:high], threads)
