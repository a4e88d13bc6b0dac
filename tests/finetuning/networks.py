"""Small networks that were trained elsewhere, as far as fine-tuning knows."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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


class AttentionBlock(nn.Module):
    """Attention and a feed-forward part with GELU, each behind a norm; gives a tuple, as blocks of libraries do."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(features, features), nn.Linear(features, features)
        self.inner, self.outer = nn.Linear(features, 2 * features), nn.Linear(2 * features, features)
        self.first, self.second = nn.LayerNorm(features), nn.LayerNorm(features)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        h = self.first(hidden_states)
        scores = self.query(h) @ h.mT / h.shape[-1] ** 0.5
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, torch.finfo(scores.dtype).min)
        h = hidden_states + self.dropout(scores.softmax(-1) @ self.value(h))
        return (h + self.outer(functional.gelu(self.inner(self.second(h)))),)


@dataclass
class Answer:
    """Output object with logits."""

    logits: Tensor


class Transformer(nn.Module):
    """Three such blocks on embedded tokens, called by keyword; by position, or with the mean over the mask."""

    def __init__(self, classes: int = 3, features: int = 8, *, by_position: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, features)
        self.layers = nn.ModuleList([AttentionBlock(features) for _ in range(3)])
        self.head = nn.Linear(features, classes)
        self.by_position = by_position

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor | None = None) -> Answer:
        h = self.tokens(input_ids)
        for layer in self.layers:
            (h,) = layer(h, attention_mask=attention_mask)
        if not self.by_position:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            h = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Answer(self.head(h))


def sentences(n: int = 90, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Padded token numbers with their mask, and which kind of token a row has most of."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (n,), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    kinds = torch.randint(0, 3, (n,), generator=generator)
    own = torch.rand(n, 9, generator=generator) < 0.6
    every = torch.randint(1, 20, (n, 9), generator=generator)
    tokens = torch.where(own, 1 + kinds[:, None] + 3 * (every // 4), every) * mask
    return {"input_ids": tokens, "attention_mask": mask}, kinds


def transformer(dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> Transformer:
    """A small transformer with weights of size one."""
    torch.manual_seed(seed)
    return Transformer(**options).to(dtype).eval()
