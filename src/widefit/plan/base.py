"""A plan: what "auto" chose, why, and what the work will take in bytes and flops."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any, TypeVar

import torch
from torch import nn

from widefit.data.markup import html_table
from widefit.kernels.devices import told

Kind = TypeVar("Kind", bound="Plan")
# The longest line of a printed plan.
LINE = 110


@dataclass(frozen=True)
class Choice:
    """One decision: what was decided, what was chosen, and the reason."""

    what: str
    chosen: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.chosen} ({self.reason})"


def placed(device: torch.device, dtype: torch.dtype, reason: str = "where the model is") -> Choice:
    """Device and precision, as a plan says them."""
    return Choice("device", told(device, dtype), reason)


def placed_model(model: nn.Module) -> Choice:
    """Device and precision of a model's first weights, as a plan says them."""
    weight = next(own for own in model.parameters() if own.is_floating_point())
    return placed(weight.device, weight.dtype)


# What a plan says of a rule that averages.
AVERAGED = Choice(
    "network", "average of the iterates", "the rule averages; losses of the history are those of the last iterates"
)


@dataclass(frozen=True)
class Plan:
    """The decisions behind a piece of work, in the order they were taken.

    Attributes
    ----------
    choices
        One a decision.
    bytes_needed
        Predicted peak memory of the work, beyond what the process held before; 0 where nobody predicted it.
    flops_per_step
        Predicted floating-point operations of a step; 0 where nobody predicted them.
    """

    choices: tuple[Choice, ...] = ()
    bytes_needed: int = 0
    flops_per_step: float = 0.0

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (what, chosen, reason), one a decision."""
        return [(choice.what, choice.chosen, choice.reason) for choice in self.choices]

    def after(self: Kind, earlier: Iterable[Choice]) -> Kind:
        """Return the same plan with decisions that were taken before it in front."""
        return replace(self, choices=(*earlier, *self.choices))

    def then(self: Kind, *later: Choice) -> Kind:
        """Return the same plan with decisions that were taken after it."""
        return replace(self, choices=(*self.choices, *later))

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, ready for JSON."""
        return {
            "choices": [{"what": what, "chosen": chosen, "reason": reason} for what, chosen, reason in self.rows()],
            "bytes_needed": self.bytes_needed,
            "flops_per_step": self.flops_per_step,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Plan":
        """Return the plan that `to_dict` was called on."""
        choices = tuple(Choice(**choice) for choice in record["choices"])
        return Plan(choices, record["bytes_needed"], record["flops_per_step"])

    def __str__(self) -> str:
        """Return one decision a line, what was chosen with the reason; what is too long goes on below itself."""
        rows = self._all_rows()
        start = max((len(what) for what, _, _ in rows), default=0) + 2
        hanging = {"width": LINE, "subsequent_indent": start * " ", "break_on_hyphens": False}
        return "\n".join(fill(f"{what:<{start}}{chosen} ({reason})", **hanging) for what, chosen, reason in rows)

    def _repr_html_(self) -> str:
        return html_table(("what", "chosen", "why"), self._all_rows())

    def _all_rows(self) -> list[tuple[str, str, str]]:
        """Return the decisions, and what the work takes where somebody has predicted it."""
        rows = self.rows()
        if self.bytes_needed:
            rows.append(("memory", f"{self.bytes_needed / 1e9:.2g} GB", "at the peak, beyond what the process held"))
        if self.flops_per_step:
            rows.append(("work", f"{self.flops_per_step:.2g} flops", "a step"))
        return rows
