"""Accuracy of a classifier under attack."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.losses.family import check_rule_loss, rule_loss
from widefit.trackers import Adversary, attack

# Numbers in the activations of a block of samples.
_BLOCK_NUMBERS = 1 << 24


@dataclass(frozen=True)
class RobustAccuracy:
    """Part of the samples that a network still classifies rightly after an adversary has moved them.

    Made for `metric=` of `widefit.train`, whose `StepInfo.metric` then holds it for every epoch. Any module that torch
    can differentiate in its inputs may be judged.

    Parameters
    ----------
    adversary
        Such as `PGD`; one with radius 0 gives the accuracy itself.
    inputs
        X, shape (n, d), as the network gets them.
    targets
        y, shape (n, k): ±1 with one output, whose sign is the class; rows whose largest entry is the class otherwise.
    loss
        What the adversary ascends: "squared", "logistic" or "softmax".

    Raises
    ------
    ValueError
        Shapes that do not go together, no samples, or targets that the loss cannot take.
    """

    adversary: Adversary
    inputs: Float[np.ndarray, "n d"]
    targets: Float[np.ndarray, "rows k"]
    loss: str = "squared"

    def __post_init__(self) -> None:
        if self.inputs.shape[0] == 0 or self.inputs.shape[0] != self.targets.shape[0]:
            raise ValueError(
                f"targets must have a row for each of the {self.inputs.shape[0]} rows of inputs, and at least one, got "
                f"{self.targets.shape[0]}"
            )
        check_rule_loss(self.loss)
        rule_loss(self.loss).check(self.targets)
        if self.targets.shape[1] == 1 and np.any(np.abs(self.targets) != 1):
            row = int(np.argmax(np.abs(self.targets[:, 0]) != 1))
            raise ValueError(f"targets must be ±1 for one output, got {self.targets[row, 0]} in row {row}")

    def __call__(self, network: nn.Module) -> float:
        width = max((parameter.shape[0] for parameter in network.parameters()), default=1)
        rows = max(1, _BLOCK_NUMBERS // width)
        right = sum(self._right(network, slice(low, low + rows)) for low in range(0, self.inputs.shape[0], rows))
        return right / self.inputs.shape[0]

    def _right(self, network: nn.Module, block: slice) -> int:
        """Number of samples that are classified rightly after the attack."""
        x, targets = self.inputs[block], self.targets[block]
        held: list[Tensor] = []

        def evaluate(points: np.ndarray) -> np.ndarray:
            at = torch.from_numpy(points).requires_grad_()
            held[:] = [at, network(at)]
            return held[1].detach().double().numpy()

        def pull_back(slope: np.ndarray) -> np.ndarray:
            at, outputs = held
            (found,) = torch.autograd.grad(outputs, at, torch.from_numpy(slope).to(outputs.dtype))
            return found.double().numpy()

        _, outputs = attack(self.adversary, self.loss, targets, x, evaluate(x), evaluate, pull_back)
        if targets.shape[1] == 1:
            return int(np.count_nonzero(np.sign(outputs) == targets))
        return int(np.count_nonzero(outputs.argmax(axis=1) == targets.argmax(axis=1)))
