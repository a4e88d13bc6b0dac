"""Fine-tuning as one would otherwise do it: Adam on all layers, or on the readout behind cached activations."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

RATES = {"all layers": (3e-4, 1e-3, 3e-3), "readout": (1e-3, 3e-3, 1e-2)}
BATCHES = (32, 128)
EPOCHS = 20
# Accuracy is looked at each of so many steps, then after half as many more each time; the clock stands still meanwhile.
EVERY_STEP = 8


def adam_runs(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    accuracy: Callable[[nn.Module], float],
    limit: float,
    clock: Callable[[], float],
) -> Iterator[tuple[str, float, float]]:
    """(setting, seconds, accuracy) at every look, for every choice of layers, rate and batch size."""
    for kind, rates in RATES.items():
        for rate in rates:
            for batch in (size for size in BATCHES if size == BATCHES[0] or size < 2 * len(inputs)):
                yield from _adam(model, inputs, targets, accuracy, limit, clock, rate, batch, kind)


def _adam(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    accuracy: Callable[[nn.Module], float],
    limit: float,
    clock: Callable[[], float],
    rate: float,
    batch: int,
    kind: str,
) -> Iterator[tuple[str, float, float]]:
    name = f"Adam {rate:g}, batches of {batch}, {kind}"
    begun = clock()
    tuned = copy.deepcopy(model)
    trained: nn.Module = tuned
    if kind == "readout":
        assert isinstance(tuned, nn.Sequential)
        trained = tuned[-1]
        with torch.no_grad():
            inputs = tuned[:-1](inputs)
    optimizer = torch.optim.Adam(trained.parameters(), rate, fused=True)
    spent = clock() - begun
    generator = torch.Generator().manual_seed(0)
    steps, look = 0, 1
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch):
            begun = clock()
            optimizer.zero_grad()
            functional.cross_entropy(trained(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            spent += clock() - begun
            steps += 1
            if steps >= look:
                look = steps + (steps // 2 if steps > EVERY_STEP else 1)
                yield name, spent, accuracy(tuned)
            if spent > limit:
                return
