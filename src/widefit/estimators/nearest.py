"""Training rows nearest to others by the Gram matrix."""

import numpy as np
from jaxtyping import Float, Int

from widefit.estimators.training_sample import TrainingSample
from widefit.tuning.limit_kernel import deep_limit_kernel

# Numbers of the kernel at a time.
_BLOCK_NUMBERS = 1 << 22


def nearest(
    sample: TrainingSample,
    inputs: Float[np.ndarray, "q d"],
    thresholds: tuple[float, ...],
    input_share: float,
    count: int,
) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
    """Return the places of the nearest rows in the training table, and how near they are.

    Parameters
    ----------
    sample
        Of the training rows.
    inputs
        Rows on the sphere.
    thresholds, input_share
        Of the limit kernel.
    count
        k, unless there are fewer rows.
    """
    count = min(count, sample.member.size)
    own = float(deep_limit_kernel(np.ones((1, 1)), thresholds, input_share)[0, 0])
    places = np.empty((len(inputs), count), np.int64)
    likeness = np.empty((len(inputs), count))
    rows = max(1, _BLOCK_NUMBERS // sample.member.size)
    for first in range(0, len(inputs), rows):
        block = slice(first, first + rows)
        near = deep_limit_kernel(inputs[block] @ sample.inputs.T, thresholds, input_share)[:, sample.member] / own
        # Of equally near ones the first in the table.
        order = np.lexsort((np.broadcast_to(sample.place, near.shape), -near), axis=1)[:, :count]
        places[block] = sample.place[order]
        likeness[block] = np.take_along_axis(near, order, axis=1)
    return places, likeness
