"""What one would run without widefit: deep Gauss-Newton steps with dense matrices in torch, and Adam."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from widefit.nn import Deep


class DenseGaussNewton:
    """Steps on the same network and the same system: dense float32 products, H and its Cholesky factor in float64.

    No step is taken back, so no weight is copied; the forward pass of a step serves the next one.
    """

    def __init__(self, network: Deep, inputs: Tensor, targets: Tensor, damping: float = 1e-4):
        self.network, self.inputs, self.targets, self.damping = network, inputs, targets, damping
        self.fed = [weight.detach() for weight in network.input_weights]
        self.hidden = [linear.weight.detach() for linear in network.low_rank()]
        self.readouts = [readout.detach() for readout in network.readouts]
        self.depth = len(self.readouts)
        self.similarity = inputs @ inputs.T
        self.forward()

    @property
    def loss(self) -> float:
        """Mean over samples of the squared residual."""
        return float((self.outputs - self.targets).square().sum(1).mean())

    def forward(self) -> None:
        network, h = self.network, self.inputs
        self.seen, self.slopes, outputs = [], [], 0
        for layer in range(self.depth):
            self.seen.append(h)
            parts = []
            if layer < len(self.fed):
                parts.append(network.input_factor(layer) * (self.inputs @ self.fed[layer].T))
            if layer > 0:
                parts.append(network.hidden_factor(layer) * (h @ self.hidden[layer - 1].T))
            z = parts[0] if len(parts) == 1 else parts[0].add_(parts[1])
            self.slopes.append((z > network.thresholds[layer]).to(z.dtype).mul_(network.scales[layer]))
            h = torch.relu_(z.sub_(network.thresholds[layer])).mul_(network.scales[layer])
            outputs = outputs + h @ self.readouts[layer]
        self.outputs = outputs

    def backward(self) -> list[Tensor]:
        """Δ_l of the one output, (n, m_l)."""
        found: list[Tensor] = []
        for layer in reversed(range(self.depth)):
            slope = self.readouts[layer][:, 0]
            if found:
                slope = slope + self.network.hidden_factor(layer + 1) * (found[-1] @ self.hidden[layer])
            found.append(self.slopes[layer] * slope)
        return found[::-1]

    def step(self) -> float:
        """Take one step; returns the loss after it."""
        network, signals = self.network, self.backward()
        gram = torch.zeros(len(self.inputs), len(self.inputs), dtype=torch.float64)
        for layer, delta in enumerate(signals):
            seen = network.input_factor(layer) ** 2 * self.similarity
            if layer > 0:
                seen = seen + network.hidden_factor(layer) ** 2 * (self.seen[layer] @ self.seen[layer].T)
            gram += (delta @ delta.T).mul_(seen)
        gram.diagonal().add_(self.damping * float(gram.diagonal().mean()))
        residual = (self.outputs - self.targets).double()
        g = torch.cholesky_solve(residual, torch.linalg.cholesky(gram)).to(self.inputs.dtype)
        before = self.loss
        for layer, delta in enumerate(signals):
            moved = (delta * g).T
            if layer < len(self.fed):
                self.fed[layer].addmm_(moved, self.inputs, alpha=-network.input_factor(layer))
            if layer > 0:
                self.hidden[layer - 1].addmm_(moved, self.seen[layer], alpha=-network.hidden_factor(layer))
        self.forward()
        self.damping *= 0.1 if self.loss < 0.25 * before else 1.0
        return self.loss


# The usual recipe: batches of 128 and a rate that rises to 1e-3 and falls to nothing along half a cosine.
EPOCHS, BATCH, RATE = 15, 128, 1e-3


def adam_network(inputs: Tensor, labels: Tensor, sizes: Sequence[int], seed: int) -> tuple[nn.Module, float]:
    """Plain ReLUs with biases, every layer trained by Adam on cross-entropy; the network and its last loss.

    Inputs on the unit sphere are scaled to a mean square of one.
    """
    torch.manual_seed(seed)
    features, classes = inputs.shape[1], int(labels.max()) + 1
    layers: list[nn.Module] = [_Scaled(math.sqrt(features))]
    for before, size in zip((features, *sizes), sizes, strict=False):
        layers += [nn.Linear(before, size), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))
    optimizer = torch.optim.Adam(network.parameters())
    steps = -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps, cycle_momentum=False)
    loss = torch.zeros(())
    for _ in range(EPOCHS):
        losses = []
        for batch in torch.randperm(len(inputs)).split(BATCH):
            loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        loss = torch.tensor(losses).mean()
    return network, float(loss)


class _Scaled(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x
