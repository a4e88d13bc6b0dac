"""Record of a fine-tuning."""

from dataclasses import dataclass

from widefit.finetuning.blocks import Structure
from widefit.finetuning.delta import LowRankDelta
from widefit.plan.base import Plan
from widefit.training.history import History


@dataclass(frozen=True)
class FineTuning:
    """Record of a fine-tuning: the attribute `finetuning_` of what `widefit.finetune` returns.

    Attributes
    ----------
    history
        One StepInfo a step; `metric` is the loss on held-out rows.
    delta
        Adapted minus given weights.
    structure
        Layers and blocks that were found, and those that were passed over, with the reason.
    stages
        The layers that were trained together, stage by stage.
    plan
        Decisions, and the reasons for them.
    """

    history: History
    delta: LowRankDelta
    structure: Structure
    stages: tuple[tuple[str, ...], ...]
    plan: Plan

    @property
    def decisions(self) -> tuple[str, ...]:
        """The plan in sentences."""
        return tuple(f"{what}: {reason}, so {chosen}" for what, chosen, reason in self.plan.rows())
