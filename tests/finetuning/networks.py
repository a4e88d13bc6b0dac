"""Small networks that were trained elsewhere, as far as fine-tuning knows."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def perceptron(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Linear → ReLU → … → Linear."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).to(dtype)


def moved_problem(dtype: torch.dtype = torch.float64, n: int = 120) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network trained on one labelling, and rows with another one."""
    model = perceptron(5, 40, 40, 3, seed=4, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64).to(dtype)
    return model, x, (x[:, :3] @ torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype)).argmax(1)


class Custom(nn.Module):
    """Blocks called as functions, a dropout, a residual path and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3, bias=False)
        self.unused = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(functional.relu(self.first(x)))
        g = h + functional.gelu(self.second(h))
        return self.third(g.relu())


class FeedForward(nn.Module):
    """The feed-forward block of T5 as transformers writes it (T5LayerFF with T5DenseActDense), over positions."""

    def __init__(self, features: int = 6, hidden: int = 16) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(features)
        self.wi, self.wo = nn.Linear(features, hidden, bias=False), nn.Linear(hidden, features, bias=False)
        self.dropout, self.act = nn.Dropout(0.1), nn.ReLU()

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner = self.dropout(self.act(self.wi(self.layer_norm(hidden_states))))
        if inner.dtype != self.wo.weight.dtype:
            inner = inner.to(self.wo.weight.dtype)
        return hidden_states + self.dropout(self.wo(inner))


class Encoder(nn.Module):
    """Two such blocks, the mean over positions, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList([FeedForward(), FeedForward()])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.head(x.mean(dim=1))
