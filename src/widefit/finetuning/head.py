"""A readout that begins anew: the direction of ridge regression on frozen features, small enough to follow."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.layer_delta import WholeLayer
from widefit.tuning.leave_one_out import RIDGES, leave_one_out

# Root of the mean square of the outputs that a new readout gives: small, so that what lies in front of it is trained
# while there is something left to learn.
_SIZE = 0.1
# Rows that the readout is found from.
_ROWS = 1000


def new_readout(
    features: Float[Tensor, "n d"], targets: Float[Tensor, "n k"], like: Tensor, *, classes: bool
) -> WholeLayer:
    """Return weights that point from the features to the targets.

    Outputs of the size that fits best would leave next to no residual on the training rows, and the layers in front
    would learn nothing; so only their direction is taken (this project).

    Parameters
    ----------
    features
        Inputs of the readout.
    targets
        Class probabilities, or numbers.
    like
        A weight of the layer, for type and device.
    classes
        True: the outputs are logits.
    """
    if len(features) > _ROWS:
        rows = torch.linspace(0, len(features) - 1, _ROWS).long()
        features, targets = features[rows], targets[rows]
    mean = features.double().mean(0)
    centred = features.double() - mean
    wanted = targets.double()
    base = wanted.mean(0)
    gram = (centred @ centred.T).cpu().numpy()
    scale = float(np.trace(gram)) / len(gram)
    residual = (wanted - base).cpu().numpy()
    weight = centred.new_zeros(wanted.shape[1], centred.shape[1])
    if scale > 0:
        ones = np.ones(len(gram))
        fits = [leave_one_out(gram, residual, ones, float(ridge) * scale) for ridge in RIDGES[4::2]]
        best = min(fits, key=lambda fit: fit.error)
        weight = torch.from_numpy(best.coefficients).to(centred).T @ centred
    outputs = centred @ weight.T
    size = float(outputs.square().mean().sqrt())
    spread = _SIZE if classes else _SIZE * float((wanted - base).square().mean().sqrt())
    if size > 0:
        weight = weight * (spread / size)
    start = base.clamp_min(1 / (2 * len(wanted))).log() if classes else base
    start = start - start.mean() if classes else start
    bias = start - weight @ mean
    return WholeLayer(weight.to(like), bias.to(like))


def constant_loss(targets: Float[Tensor, "n k"]) -> float:
    """Return the cross-entropy of always giving the shares of the classes."""
    shares = targets.double().mean(0)
    return -sum(float(share) * math.log(float(share)) for share in shares if share > 0)
