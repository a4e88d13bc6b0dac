"""The starting point of a step: the system, the parameters, and the least-squares problem there."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from widefit.optim.parameters import MovingParameters
from widefit.optim.system import Expansion, System


@dataclass(frozen=True)
class StartingPoint:
    """The system at the present parameters.

    Attributes
    ----------
    system
        All blocks.
    moving
        The parameters that train.
    values
        They themselves, as tensors apart from any graph.
    expansion
        Outputs, loss and local least-squares problem.
    """

    system: System
    moving: MovingParameters
    values: dict[str, Tensor]
    expansion: Expansion

    @cached_property
    def residual(self) -> Float[Tensor, " M"]:
        """r̃, one tensor for all who ask."""
        return self.expansion.residual

    @property
    def size(self) -> float:
        """‖r̃‖ of all processes."""
        return self.expansion.size

    @classmethod
    def of(cls, system: System, moving: MovingParameters) -> "StartingPoint":
        """The present point.

        Raises
        ------
        ValueError
            A loss that is not finite.
        """
        values = moving.values()
        outputs = system.outputs(values)
        expansion = system.expand(outputs)
        if not math.isfinite(expansion.loss):
            own = torch.tensor([int((~torch.isfinite(output).all(dim=1)).sum()) for output in outputs])
            bad = system.processes.sum(own).tolist()
            samples = sum(portion.total for portion in system.portions)
            raise ValueError(
                f"the loss is {expansion.loss} before the step: outputs are not finite in {sum(bad)} of {samples} "
                f"samples (per block: {bad}); check the parameters and the residual function"
            )
        return cls(system, moving, values, expansion)

    def outputs_after(self, change: Float[Tensor, " P"]) -> list[Float[Tensor, "_ _"]]:
        """Outputs of every block at the parameters plus a change."""
        pieces = self.moving.split(change)
        return self.system.outputs({name: value + pieces[name] for name, value in self.values.items()})
