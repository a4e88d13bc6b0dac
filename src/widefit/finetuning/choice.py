"""The layer to begin with: the one whose kernel predicts rows that it has not seen."""

import numpy as np
import torch
from torch import Tensor

from widefit.finetuning.curvature import operator_of
from widefit.finetuning.stage import Stage
from widefit.losses.base import OutputLoss
from widefit.tuning.leave_one_out import leave_one_out

# Rows that are left out one by one.
LOOKED_AT = 300


def left_out_error(stage: Stage, targets: Tensor, surrogate: OutputLoss, damping: float) -> float:
    """Return the relative leave-one-out error of one damped step, the part of the residual left on unseen rows.

    The step is that of kernel ridge regression with the mean of H over the outputs, each row left out in turn, in
    closed form; 300 rows tell. (This project.)

    Parameters
    ----------
    stage
        A stage of one boundary layer.
    targets
        On its training rows.
    surrogate
        The loss that the step minimizes.
    damping
        λ as a part of the mean of diag H.
    """
    count = len(targets)
    if count > LOOKED_AT:
        chosen = torch.linspace(0, count - 1, LOOKED_AT, device=targets.device).long()
        stage = stage.subset(chosen)
        targets = targets[chosen]
    point = stage.start()
    assert point.outputs is not None
    local = surrogate.expand(point.outputs, targets)
    jacobian = stage.jacobian(point, local.root)
    gram = operator_of(stage, point, jacobian, local.root).mean_block().double().cpu().numpy()
    residual = local.residual.double().cpu().numpy()
    size = (residual**2).sum(1).mean()
    scale = float(np.trace(gram)) / len(gram)
    if not (scale > 0 and size > 0):
        return 1.0
    return leave_one_out(gram, residual, np.ones(len(residual)), damping * scale).error / size
