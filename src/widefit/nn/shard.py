"""Neurons of a two-layer network that one of several processes holds (this project)."""

import math
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from widefit.linalg.gaussian_rows import group_edge
from widefit.nn.blocks import aligned_empty
from widefit.nn.two_layer import TwoLayer
from widefit.processes import Alone

# Half-open ranges of neurons of the whole network, one an output.
Ranges = list[tuple[int, int]]


def shared_out(width: int, outputs: int, size: int) -> list[Ranges]:
    """Return the neurons of each of so many processes: an equal part of those of every output, in order, whole pairs.

    Raises
    ------
    ValueError
        An output has too few neurons for that.
    """
    shares: list[Ranges] = [[] for _ in range(size)]
    for output in range(outputs):
        first, last = group_edge(width, outputs, output), group_edge(width, outputs, output + 1)
        edges = [first + 2 * ((last - first) * rank // (2 * size)) for rank in range(size)]
        for share, (low, high) in zip(shares, pairwise([*edges, last]), strict=True):
            if low == high:
                raise ValueError(
                    f"{size} processes need a width of at least {2 * size * outputs}, two neurons each an output, got "
                    f"{width}: take a wider network or fewer processes"
                )
            share.append((low, high))
    return shares


class NeuronShard(TwoLayer):
    """The share of one process, as a network of its own: what all shares give adds up to what the network gives.

    With several outputs a share has neurons of each, so that all processes have as much to do for every output.

    Attributes
    ----------
    processes
        Those that share the neurons out.
    shares
        Neurons of the whole network by process and output.
    whole
        Shape of the weights of the whole network, (m, d).
    """

    processes: Alone
    shares: list[Ranges]
    whole: tuple[int, int]

    @classmethod
    def of(cls, network: TwoLayer, processes: Alone) -> "NeuronShard":
        """Return the share of this process, copied from arrays or drawn."""
        shares = shared_out(network.width, network.out_features, processes.size)
        own = shares[processes.rank]
        sizes = [last - first for first, last in own]
        weight = aligned_empty(sum(sizes), network.in_features, network.dtype)
        readout = aligned_empty(sum(sizes), network.out_features, network.dtype)
        for (first, last), rows, entries in zip(own, weight.split(sizes), readout.split(sizes), strict=True):
            network.rows(first, last, rows.numpy())
            entries.copy_(torch.from_numpy(network.readout_rows(first, last)))
        held = cls.from_tensors(weight, readout, threshold=network.threshold, convention=network.activation.convention)
        shard = cast(NeuronShard, held)
        shard.processes, shard.shares = processes, shares
        shard.whole = (network.width, network.in_features)
        return shard

    @property
    def norm(self) -> float:
        return math.sqrt(self.whole[0])

    def neurons_of(self, output: int) -> tuple[int, int]:
        sizes = [last - first for first, last in self.shares[self.processes.rank]]
        return sum(sizes[:output]), sum(sizes[: output + 1])

    def summed(self, part: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        return self.processes.sum(torch.from_numpy(part)).numpy()

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return f(x) of the whole network; all processes call it, with the same inputs."""
        return self.processes.sum(super().forward(x))

    def part(self, rows: Shaped[Tensor, "m *c"]) -> Shaped[Tensor, "rows *c"]:
        """Return the rows of this process, from those of the whole network."""
        return torch.cat([rows[first:last] for first, last in self.shares[self.processes.rank]])

    def join(self, rows: Shaped[Tensor, "rows *c"], whole: Shaped[Tensor, "m *c"]) -> None:
        """Write the rows of the whole network on every process, from those of each; all processes call it."""
        self.processes.attempt(lambda: self._place(rows, whole))
        for rank, ranges in enumerate(self.shares):
            for first, last in ranges:
                self.processes.spread(whole[first:last], rank)

    def joined(self, rows: Shaped[Tensor, "rows *c"]) -> Shaped[Tensor, "m *c"]:
        """Return the rows of the whole network, from those of each; see `join`."""
        whole = aligned_empty(*self.whole, rows.dtype)
        self.join(rows, whole)
        return whole

    def _place(self, rows: Shaped[Tensor, "rows *c"], whole: Shaped[Tensor, "m *c"]) -> None:
        """Copy the rows of this process to where they belong."""
        ranges = self.shares[self.processes.rank]
        sizes = [last - first for first, last in ranges]
        for (first, last), piece in zip(ranges, rows.split(sizes), strict=True):
            whole[first:last] = piece
