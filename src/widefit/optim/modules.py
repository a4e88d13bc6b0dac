"""Layers that a step cannot take, because their outputs are not functions of one sample each."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm


def check_module(model: nn.Module) -> None:
    """Refuse layers that mix the samples of a batch, change state, or draw random numbers in the forward pass."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        where = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, _BatchNorm):
            raise ValueError(
                f"{where} normalizes by the statistics of the batch, so its outputs are not per sample: call "
                "model.eval() to use its running statistics, or replace it by GroupNorm or LayerNorm"
            )
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            raise ValueError(f"{where} updates its running statistics in the forward pass: call model.eval() first")
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise ValueError(
                f"{where} draws random numbers in the forward pass, so a step cannot be compared with its prediction: "
                "call model.eval() or set its p to 0"
            )
