"""Where to begin: at the layer whose kernel predicts rows that it has not seen."""

import numpy as np
import torch
from torch import Tensor

from widefit.finetuning.assembly import system_of
from widefit.finetuning.stage import Stage
from widefit.finetuning.system import Averaged, Readout
from widefit.losses.base import OutputLoss
from widefit.tuning.leave_one_out import leave_one_out

# Rows that are left out one by one.
LOOKED_AT = 300


def left_out_error(stage: Stage, targets: Tensor, merit: OutputLoss, damping: float) -> float:
    """What one step would leave of the residual on rows that it has not seen, as a part of what there is.

    The step is that of kernel ridge regression with the mean of H over the outputs, each row left out in turn, in
    closed form; 300 rows tell. (This project.)

    Parameters
    ----------
    stage
        Of one direct layer.
    targets
        On its training rows.
    merit
        What the step is to lower.
    damping
        λ as a part of the mean of diag H.
    """
    count = len(targets)
    if count > LOOKED_AT:
        chosen = torch.linspace(0, count - 1, LOOKED_AT, device=targets.device).long()
        stage, targets = stage.on(chosen), targets[chosen]
    point = stage.start()
    assert point.outputs is not None
    local = merit.expand(point.outputs, targets)
    system = system_of(stage, point, stage.linearized(point, local.root), local.root)
    assert isinstance(system, Readout | Averaged)
    gram, residual = system.average.cpu().numpy(), local.residual.double().cpu().numpy()
    size = (residual**2).sum(1).mean()
    if not (system.scale > 0 and size > 0):
        return 1.0
    return leave_one_out(gram, residual, np.ones(len(residual)), damping * system.scale).error / size
