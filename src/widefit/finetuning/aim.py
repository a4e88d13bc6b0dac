"""The loss of a batch: rows of the outputs that count, and the directions in which a step moves them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from widefit.finetuning.batches import IGNORED
from widefit.gram.jacobian import apply_root_transposed
from widefit.losses.base import OutputLoss
from widefit.losses.envelopes import CrossEntropy, Envelope
from widefit.losses.softmax import Softmax

# Directions of a sample that are followed one by one; of more outputs the one that the loss falls along is.
_DIRECTIONS = 3
# Curvature of the envelope of a cross-entropy: wrong rows are aimed at logits some three apart, whose features other
# rows will share, not at those that would make the row certain.
_CURVATURE = 1e-2


@dataclass(frozen=True)
class Directions:
    """Weighted sums of the outputs, c a sample, and how far each is from where the loss wants it.

    Attributes
    ----------
    seeds
        Derivatives of the sums by the outputs of the batch, one tensor a sum.
    residual
        The step solves J Δ = −residual, in the units of the square root of the loss.
    """

    seeds: list[Tensor]
    residual: Float[Tensor, "n c"]


@dataclass(frozen=True)
class Aim:
    """A mean-reduced loss over the samples, or over the positions of the samples that have a target.

    Attributes
    ----------
    loss
        Of rows of outputs.
    following
        True where the target of a position is the token behind it.
    """

    loss: OutputLoss
    following: bool = False

    def value(self, outputs: Tensor, targets: Tensor) -> tuple[float, int]:
        """Return the sum of the loss over what counts in a batch, and how much that is."""
        values = self.values(outputs, targets)
        return float(values.sum()), len(values)

    def values(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " r"]:
        """Return the loss of everything that counts in a batch, one by one, in float64."""
        rows, wanted, _ = self.counted(outputs, targets)
        if not len(rows):
            return outputs.new_empty(0, dtype=torch.float64)
        prepared = self.loss.prepared(rows, wanted)
        return self.loss.scale * self.loss.values(rows, prepared).double() / self._width(rows)

    def marks(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " r"]:
        """Return what answers are compared by, one by one: of classes whether they are wrong, else their losses."""
        if not isinstance(self.loss, CrossEntropy):
            return self.values(outputs, targets)
        rows, wanted, _ = self.counted(outputs, targets)
        if not len(rows):
            return outputs.new_empty(0, dtype=torch.float64)
        prepared = self.loss.prepared(rows, wanted)
        if isinstance(self.loss, Softmax):
            return (rows.argmax(1) != prepared.argmax(1)).double()
        return ((rows > 0) != (prepared > 0.5)).double().mean(1)

    def counted(self, outputs: Tensor, targets: Tensor) -> tuple[Float[Tensor, "r k"], Tensor, Int[Tensor, " r"]]:
        """Return the rows that have a target, these targets, and the sample that each row is of."""
        samples = torch.arange(len(outputs), device=outputs.device)
        if not self.by_position(outputs, targets):
            return outputs.reshape(len(outputs), -1), targets, samples
        if self.following:
            outputs, targets = outputs[:, :-1], targets[:, 1:]
        here = targets != IGNORED
        owners = samples[:, None].expand(targets.shape)[here]
        return outputs[here], targets[here], owners

    def smoothed(self) -> OutputLoss:
        """Return what a step lowers: the loss, or its Moreau envelope at a curvature that keeps to modest logits."""
        return Envelope(self.loss, _CURVATURE) if isinstance(self.loss, CrossEntropy) else self.loss

    def by_position(self, outputs: Tensor, targets: Tensor) -> bool:
        """Return whether every position of a sample has a target of its own."""
        return outputs.ndim == 3 and targets.ndim == 2 and not targets.is_floating_point()

    def directions(self, outputs: Tensor, targets: Tensor) -> Directions:
        """Return all directions of few outputs a sample, or the one that the loss falls along.

        Of outputs of a softmax the one that moves all of them alike is left out: it changes nothing. The loss is that
        of `smoothed`, whose Gauss-Newton step is finite from everywhere.
        """
        given = outputs.detach()
        rows, wanted, owners = self.counted(given, targets)
        surrogate = self.smoothed()
        local = surrogate.local(rows, surrogate.prepared(rows, wanted))
        residual = local.residual.to(given.dtype)
        root = local.root.to(given.dtype)
        softmax = isinstance(self.loss, Softmax)
        count = rows.shape[1] - softmax
        if not self.by_position(given, targets) and count <= _DIRECTIONS:
            basis = _contrasts(rows) if softmax else torch.eye(count, dtype=rows.dtype, device=rows.device)
            seeds = [apply_root_transposed(root, column.expand_as(rows)) for column in basis.T]
            return Directions([seed.reshape(given.shape) for seed in seeds], residual @ basis)
        squares = given.new_zeros(len(given)).index_add_(0, owners, residual.square().sum(1))
        lengths = squares.sqrt()
        unit = residual / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)[owners][:, None]
        return Directions([self._placed(apply_root_transposed(root, unit), given, targets)], lengths[:, None])

    def _placed(self, rows: Float[Tensor, "r k"], outputs: Tensor, targets: Tensor) -> Tensor:
        """Values of the rows that count, in the shape of the outputs."""
        if not self.by_position(outputs, targets):
            return rows.reshape(outputs.shape)
        placed = torch.zeros_like(outputs)
        part = placed[:, :-1] if self.following else placed
        part[(targets[:, 1:] if self.following else targets) != IGNORED] = rows
        return placed

    def _width(self, rows: Float[Tensor, "r k"]) -> float:
        """Numbers that the loss of a row is averaged over."""
        return self.loss.scale / (self.loss.mean_weight(rows) * len(rows))


def _contrasts(rows: Float[Tensor, "r k"]) -> Float[Tensor, "k c"]:
    """An orthonormal basis of what is orthogonal to (1, …, 1)."""
    k = rows.shape[1]
    centred = torch.eye(k, dtype=torch.float64) - 1 / k
    return torch.linalg.svd(centred)[0][:, : k - 1].to(rows)
