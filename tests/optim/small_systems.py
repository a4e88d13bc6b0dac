"""Small systems with known answers, and the Jacobian the slow way."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*widths: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for size, following in pairwise(widths):
        layers += [nn.Linear(size, following), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def regression(count: int = 40, features: int = 3, outputs: int = 1, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, features, generator=generator, dtype=dtype)
    y = torch.stack([torch.sin((j + 1) * x[:, 0]) + x[:, 1] * x[:, 2] for j in range(outputs)], dim=1)
    return x, y


def slow_jacobian(model: nn.Module, outputs: Tensor) -> Tensor:
    """One backward pass an output."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for value in outputs.reshape(-1):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows)
