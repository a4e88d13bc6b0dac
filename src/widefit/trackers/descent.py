"""Minibatch steps on weights that are stored: the cost of a step is m b d, whatever n (this project).

A step reads the weights once. Each block of neurons, which fits the cache, takes the update of the step before, and is
multiplied by the samples of this batch: who fires on them is added to their outputs, and g follows from the sum.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from widefit.kernels import minibatch
from widefit.kernels.threads import serial_blas, team
from widefit.trackers.averaging import IterateAverage
from widefit.trackers.layer import Layer
from widefit.trackers.minibatches import Minibatches

# Numbers in a block, weights and pre-activations together: half of a second-level cache in float32.
_BLOCK_NUMBERS = 1 << 17
# Share of firing pairs from which a dense product is faster than row by row.
_DENSE_SHARE = 1 / 8


@dataclass
class _Block:
    """Neurons of one output: who fired on the last batch, and their terms in its outputs and in the gradient by x."""

    rows: slice
    output: int
    bits: np.ndarray
    fired: int = 0
    outputs: np.ndarray | None = None
    pulled: np.ndarray | None = None


@dataclass(frozen=True)
class _Share:
    """Blocks of one thread, and room for the pre-activations and the move of one block."""

    blocks: list[_Block]
    values: np.ndarray
    moves: np.ndarray


@dataclass(frozen=True)
class _Step:
    """Step W ← W − shrink (W − W₀) − Jᵀ g on a batch, and the like for the readout if it is trained."""

    inputs: np.ndarray
    g: np.ndarray
    shrink: float
    trains_readout: bool
    averaged: float = 0.0
    average: IterateAverage | None = None


def descend(
    layer: Layer, inputs: Float[np.ndarray, "n d"], minibatches: Minibatches, threads: int
) -> Float[np.ndarray, "visits k"]:
    """Take the steps; the layer is up to date when it returns.

    Parameters
    ----------
    layer
        W and the rest of the network.
    inputs
        X, in the dtype of W.
    minibatches
        The batches.
    threads
        Cores to use; the result does not depend on it.

    Returns
    -------
    f at every visited sample before the step of its batch, in the order of the visits; m pre-activations each.

    Raises
    ------
    ValueError
        The steps shrink towards weights that the layer does not have.
    """
    if layer.anchor is None and minibatches.shrink is not None and np.any(minibatches.shrink != 0):
        raise ValueError("minibatches shrink towards initial weights, and the run was started without an anchor")
    shares = _shares(layer, int(np.diff(minibatches.edges).max(initial=1)), threads)
    blocks = [block for share in shares for block in share.blocks]
    before = np.tile(layer.silent, (minibatches.samples.size, 1))
    with serial_blas(), team(threads) as for_each:
        last: _Step | None = None

        def evaluate(sampled: np.ndarray, last: _Step | None = None) -> np.ndarray:
            for_each(partial(_advance, layer, last, sampled), shares)
            outputs = np.tile(layer.silent, (sampled.shape[0], 1))
            for block in blocks:
                outputs[:, block.output] += block.outputs
            return outputs

        def pull_back(slope: np.ndarray) -> np.ndarray:
            for_each(partial(_pull_back, layer, slope), shares)
            total = np.zeros((slope.shape[0], layer.weight.shape[1]))
            for block in blocks:
                total += np.asarray(block.pulled)
            return total

        for step in range(len(minibatches)):
            sampled = inputs[minibatches.batch(step)]
            outputs = evaluate(sampled, last)
            before[minibatches.edges[step] : minibatches.edges[step + 1]] = outputs
            sampled, outputs = minibatches.attacked(step, sampled, outputs, evaluate, pull_back)
            last = _Step(
                sampled, minibatches.g(step, outputs), minibatches.pull(step), minibatches.trains_readout,
                *minibatches.kept(step),
            )  # fmt: skip
        for_each(partial(_advance, layer, last, None), shares)
    return before


def _shares(layer: Layer, batch: int, threads: int) -> list[_Share]:
    """Deal out blocks of a size that does not depend on the threads, in order."""
    width, features = layer.weight.shape
    rows = min(width, max(64, _BLOCK_NUMBERS // (features + batch)))
    blocks = []
    for output, (first, last) in enumerate(layer.groups):
        for low in range(first, last, rows):
            high = min(low + rows, last)
            blocks.append(_Block(slice(low, high), output, np.zeros((high - low, (batch + 31) // 32), np.uint32)))
    edges = [share * len(blocks) // threads for share in range(threads + 1)]
    dtype = layer.weight.dtype
    return [
        _Share(blocks[low:high], np.empty(rows * batch, dtype), np.empty((rows, features), dtype))
        for low, high in pairwise(edges)
        if low < high
    ]


def _advance(layer: Layer, last: _Step | None, sampled: np.ndarray | None, share: _Share) -> None:
    """Finish the last step and begin the next, block by block while it is in the cache."""
    # Weights that overflow show in the outputs; a thread does not inherit what its caller ignores.
    with np.errstate(over="ignore", invalid="ignore"):
        for block in share.blocks:
            if last is not None:
                _apply(layer, last, block, share)
            if sampled is not None:
                _evaluate(layer, sampled, block, share)


def _evaluate(layer: Layer, sampled: Float[np.ndarray, "b d"], block: _Block, share: _Share) -> None:
    """Find who of a block fires on a batch, and add them to its outputs."""
    weights = layer.weight[block.rows]
    size = sampled.shape[0]
    z = share.values[: weights.shape[0] * size].reshape(-1, size)
    np.matmul(weights, sampled.T, out=z)
    block.outputs = np.zeros(size)
    coefficients = layer.coefficients[block.rows]
    block.fired = int(minibatch.fire_batch(z, layer.threshold, coefficients, block.bits, block.outputs))


def _pull_back(layer: Layer, slope: Float[np.ndarray, "b k"], share: _Share) -> None:
    """Compute the terms of the blocks of a thread in ∂ Σ s_ic f_c(x_i) / ∂x at the batch last evaluated."""
    for block in share.blocks:
        weights = layer.weight[block.rows]
        size = slope.shape[0]
        factors = share.values[: weights.shape[0] * size].reshape(-1, size)
        own = np.ascontiguousarray(slope[:, block.output])
        minibatch.spread_batch(layer.coefficients[block.rows], own, block.bits, factors)
        block.pulled = factors.T @ weights


def _apply(layer: Layer, step: _Step, block: _Block, share: _Share) -> None:
    """Move the neurons of a block."""
    weights = layer.weight[block.rows]
    coefficients = layer.coefficients[block.rows]
    g = np.ascontiguousarray(step.g[:, block.output])
    size = step.inputs.shape[0]
    kept = None if step.average is None else step.average.weight[block.rows]
    moves = None
    if step.trains_readout and block.fired:
        moves = np.empty(weights.shape[0])
        minibatch.readout_moves(weights, layer.threshold, g / layer.weight.shape[0], step.inputs, block.bits, moves)
    if step.shrink != 0 and layer.anchor is not None:
        if kept is not None:
            kept += step.averaged * step.shrink * (weights - layer.anchor[block.rows])
        minibatch.shrink_rows(weights, layer.anchor[block.rows], weights.dtype.type(step.shrink))
    if block.fired > _DENSE_SHARE * size * weights.shape[0]:
        factors = share.values[: weights.shape[0] * size].reshape(-1, size)
        minibatch.spread_batch(coefficients, g, block.bits, factors)
        move = share.moves[: weights.shape[0]]
        np.matmul(factors, step.inputs, out=move)
        weights -= move
        if kept is not None:
            kept += step.averaged * move
    elif block.fired:
        minibatch.step_batch(weights, coefficients, g, step.inputs, block.bits)
        if kept is not None:
            minibatch.step_batch(kept, coefficients, -step.averaged * g, step.inputs, block.bits)
    if moves is not None:
        coefficients -= moves
        if step.average is not None:
            step.average.readout[block.rows] += step.averaged * moves
