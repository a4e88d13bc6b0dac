"""Fine-tuning of networks that were trained elsewhere: Gauss-Newton in sample space, behind a frozen start."""

from widefit.finetuning.adapt import finetune
from widefit.finetuning.blocks import Block, Structure
from widefit.finetuning.delta import LowRankDelta
from widefit.finetuning.layer_delta import LayerDelta, WholeLayer
from widefit.finetuning.named_deltas import NamedDeltas
from widefit.finetuning.record import FineTuning

__all__ = ["Block", "FineTuning", "LayerDelta", "LowRankDelta", "NamedDeltas", "Structure", "WholeLayer", "finetune"]
