"""A readout that begins anew: the differences of the means of classes, small enough to follow."""

import math

from jaxtyping import Float
from torch import Tensor

from widefit.finetuning.layer_delta import WholeLayer

# Root of the mean square of the outputs that a new readout gives: small, so that what lies in front of it is trained
# while there is something left to learn.
_SIZE = 0.1


def new_readout(features: Float[Tensor, "n d"], targets: Float[Tensor, "n k"], like: Tensor) -> WholeLayer:
    """Return weights that point from the mean of the features to the mean of those of each class.

    A regression fits the rows that it is found from, and what lies in front of it would then learn from signals that
    know these rows: a kernel of such signals fits them, and others less. Means of classes hardly know any row. (The
    limit of ridge regression for a large ridge; that it serves the layers in front is this project's.)

    Parameters
    ----------
    features
        Inputs of the readout.
    targets
        Class probabilities.
    like
        A weight of the layer, for type and device.
    """
    mean = features.double().mean(0)
    centred = features.double() - mean
    wanted = targets.double()
    base = wanted.mean(0)
    weight = (wanted - base).T @ centred
    size = float((centred @ weight.T).square().mean().sqrt())
    if size > 0:
        weight = weight * (_SIZE / size)
    start = base.clamp_min(1 / (2 * len(wanted))).log()
    bias = start - start.mean() - weight @ mean
    return WholeLayer(weight.to(like), bias.to(like))


def constant_loss(targets: Float[Tensor, "n k"]) -> float:
    """Return the cross-entropy of always giving the shares of the classes."""
    shares = targets.double().mean(0)
    return -sum(float(share) * math.log(float(share)) for share in shares if share > 0)
