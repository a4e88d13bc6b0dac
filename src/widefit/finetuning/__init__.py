"""Fine-tuning of networks that were trained elsewhere: Gauss-Newton in sample space, behind a frozen start."""

from widefit.finetuning.adapt import FineTuning, finetune
from widefit.finetuning.blocks import Block, Structure
from widefit.finetuning.delta import LayerDelta, LowRankDelta

__all__ = ["Block", "FineTuning", "LayerDelta", "LowRankDelta", "Structure", "finetune"]
