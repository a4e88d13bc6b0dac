"""What one would write in plain torch instead of widefit: the two-layer network dense, the same rules, float32.

Every pass goes over cache-sized blocks of neurons, applies the step to the block and evaluates it while it is in the
cache; the fire pattern is kept between passes as m × n bytes. Counts are products SᵀS in float32 (exact up to 2²⁴
neurons), over the lower triangle in column blocks; systems are solved by Cholesky in float64.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

# Neurons a block: the fastest of 256 … 8192 in a pass, of 1024 … 8192 in the counts.
PASS_ROWS = 1024
COUNT_ROWS = 4096
# Numbers of a block of a minibatch, whose rows are short.
BATCH_NUMBERS = 1 << 20
# q column blocks of SᵀS, of which only the lower ones are computed: (q + 1) / 2q of the flops, half the time.
COUNT_COLUMNS = 4


@dataclass
class DenseNetwork:
    """f(x) = Σ_r c_r max(⟨w_r, x⟩ − b, 0) of one output, c_r = a_r / √m.

    Attributes
    ----------
    weight
        W, shape (m, d), float32; changed in place by the first-order methods.
    coefficients
        c, shape (m,), float32, all of one size.
    threshold
        b.
    """

    weight: Tensor
    coefficients: Tensor
    threshold: float

    def sweep(
        self,
        inputs: Tensor,
        fires: Tensor,
        step: tuple[Tensor, Tensor, Tensor] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """One pass: W ← W − Jᵀ g block by block, then the outputs and the fire pattern at the new weights.

        Parameters
        ----------
        inputs
            Where to evaluate, shape (b, d).
        fires
            Receives the pattern, bool of shape (m, b); may be the pattern of `step`.
        step
            Pattern (m, s), samples (s, d) and g (s,) of the step; None: evaluate only.
        out
            Receives the new weights, shape (m, d); may be `weight` itself.

        Returns
        -------
        Tensor of shape (b,), float64.
        """
        width, samples = self.weight.shape[0], inputs.shape[0]
        rows = min(width, max(PASS_ROWS, BATCH_NUMBERS // samples))
        outputs = torch.zeros(samples, dtype=torch.float64)
        z, push = torch.empty(rows, samples), torch.empty(rows, step[1].shape[0] if step is not None else 0)
        for first in range(0, width, rows):
            block = slice(first, min(first + rows, width))
            weight, coefficients = self.weight[block], self.coefficients[block]
            if step is not None and out is not None:
                before, seen, g = step
                torch.mul(before[block], g, out=push[: len(weight)])
                change = push[: len(weight)] @ seen
                weight = torch.addcmul(weight, change, coefficients[:, None], value=-1, out=out[block])
            values = torch.mm(weight, inputs.T, out=z[: len(weight)])
            torch.gt(values, self.threshold, out=fires[block])
            outputs += torch.mv(values.sub_(self.threshold).relu_().T, coefficients)
        return outputs

    def gram(self, fires: Tensor, similarity: Tensor) -> Tensor:
        """H = K ∘ SᵀS c², float64."""
        samples = fires.shape[1]
        counts = torch.zeros(samples, samples)
        edges = [samples * block // COUNT_COLUMNS for block in range(COUNT_COLUMNS + 1)]
        for first in range(0, fires.shape[0], COUNT_ROWS):
            pattern = fires[first : first + COUNT_ROWS].float()
            for low, high in pairwise(edges):
                counts[low:high, :high].addmm_(pattern[:, low:high].T, pattern[:, :high])
        counts = counts.tril()
        counts += counts.tril(-1).T
        return similarity * counts * float(self.coefficients[0].double() ** 2)


@dataclass
class Timed:
    """Outcome of a run of a peer.

    Attributes
    ----------
    losses
        Mean squared residual before the first step and after each.
    start
        Seconds before the first step.
    steps
        Seconds of each step.
    solves
        Seconds of each step that do not depend on the width.
    """

    losses: list[float] = field(default_factory=list)
    start: float = 0.0
    steps: list[float] = field(default_factory=list)
    solves: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.start + sum(self.steps)


def gauss_newton(
    network: DenseNetwork, inputs: Tensor, targets: Tensor, *, tol: float, max_iter: int, limit: float
) -> Timed:
    """g = (H + λI)⁻¹ (f − y), λ / mean diag H = 1e-4 at first, a tenth of it after a gain ratio above 0.75, ten times
    it below 0.25, thirty times it where the loss rose and the step is taken back: the policy of widefit's rule.

    Ends at tol, where a step gains or promises less than a thousandth, or once `limit` seconds are over.
    """
    begun = time.perf_counter()
    timed, damping = Timed(), 1e-4
    width, samples = network.weight.shape[0], inputs.shape[0]
    similarity = inputs.double() @ inputs.double().T
    fires, trial_fires = (torch.empty(width, samples, dtype=torch.bool) for _ in range(2))
    trial_weight = torch.empty_like(network.weight)
    residual = network.sweep(inputs, fires) - targets
    timed.losses.append(float(residual.square().mean()))
    gram: Tensor | None = None
    timed.start = time.perf_counter() - begun
    while timed.losses[-1] > tol and len(timed.steps) < max_iter:
        begun = time.perf_counter()
        gram = network.gram(fires, similarity) if gram is None else gram
        counted = time.perf_counter()
        system = gram.clone()
        system.diagonal().add_(damping * float(gram.diagonal().mean()))
        g = torch.cholesky_solve(residual[:, None], torch.linalg.cholesky(system))[:, 0]
        expected = float((residual - gram @ g).square().mean())
        timed.solves.append(time.perf_counter() - counted)
        trial = network.sweep(inputs, trial_fires, (fires, inputs, g.float()), trial_weight) - targets
        before, after = timed.losses[-1], float(trial.square().mean())
        accepted = after < before
        if accepted:
            residual, gram = trial, None
            network.weight, trial_weight = trial_weight, network.weight
            fires, trial_fires = trial_fires, fires
            gain = (before - after) / (before - expected)
            damping *= 0.1 if gain > 0.75 else 10.0 if gain < 0.25 else 1.0
        else:
            damping = max(damping, 1e-8) * 30
        timed.losses.append(min(before, after))
        timed.steps.append(time.perf_counter() - begun)
        if before - (after if accepted else expected) <= 1e-3 * before or timed.seconds >= limit:
            break
    return timed


def gradient_descent(
    network: DenseNetwork, inputs: Tensor, targets: Tensor, *, lr: float, steps: int, limit: float
) -> Timed:
    """W ← W − lr ∇ ½ Σ_i (f(x_i) − y_i)²: one pass a step."""
    begun = time.perf_counter()
    fires = torch.empty(network.weight.shape[0], inputs.shape[0], dtype=torch.bool)
    residual = network.sweep(inputs, fires) - targets
    timed = Timed([float(residual.square().mean())], time.perf_counter() - begun)
    while len(timed.steps) < steps and (not timed.steps or timed.seconds < limit):
        begun = time.perf_counter()
        step = (fires, inputs, (lr * residual).float())
        residual = network.sweep(inputs, fires, step, network.weight) - targets
        timed.losses.append(float(residual.square().mean()))
        timed.steps.append(time.perf_counter() - begun)
    return timed


def sgd(network: DenseNetwork, inputs: Tensor, targets: Tensor, batches: Sequence[Tensor], *, lr: float) -> Timed:
    """The same on one batch of samples a step; a pass applies one batch and evaluates the next.

    The losses are those of all samples before the first and after the last step, which is not timed.
    """
    width, largest = network.weight.shape[0], max(len(batch) for batch in batches)
    everything = torch.empty(width, inputs.shape[0], dtype=torch.bool)
    timed = Timed([float((network.sweep(inputs, everything) - targets).square().mean())])
    begun = time.perf_counter()
    held = [torch.empty(width * largest, dtype=torch.bool) for _ in range(2)]

    def pattern(step: int) -> Tensor:
        return held[step % 2][: width * len(batches[step])].view(width, -1)

    outputs = network.sweep(inputs[batches[0]], pattern(0))
    timed.start = time.perf_counter() - begun
    for number, batch in enumerate(batches):
        begun = time.perf_counter()
        step = (pattern(number), inputs[batch], (lr * (outputs - targets[batch])).float())
        if number + 1 == len(batches):
            loss = (network.sweep(inputs, everything, step, network.weight) - targets).square().mean()
            timed.losses.append(float(loss))
            break
        outputs = network.sweep(inputs[batches[number + 1]], pattern(number + 1), step, network.weight)
        timed.steps.append(time.perf_counter() - begun)
    return timed


def largest_eigenvalue(network: DenseNetwork, inputs: Tensor, batch_size: int | None = None) -> float:
    """λ_max of H at the start, from the first 2¹⁴ neurons; with a batch size, the largest over 64 random batches."""
    part = DenseNetwork(network.weight[: 1 << 14], network.coefficients[: 1 << 14], network.threshold)
    fires = torch.empty(part.weight.shape[0], inputs.shape[0], dtype=torch.bool)
    part.sweep(inputs, fires)
    gram = part.gram(fires, inputs.double() @ inputs.double().T) * (network.weight.shape[0] / part.weight.shape[0])
    if batch_size is None or batch_size >= inputs.shape[0]:
        return float(torch.linalg.eigvalsh(gram)[-1])
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randperm(inputs.shape[0], generator=generator)[:batch_size] for _ in range(64)]
    return max(float(torch.linalg.eigvalsh(gram[batch][:, batch])[-1]) for batch in batches)
