"""H of a network of finite width before training, on the rows that a tuning looks at."""

import math

import numpy as np
from jaxtyping import Float

from widefit.gram.current import CurrentGrams, similarity
from widefit.nn import TwoLayer
from widefit.trackers import Dense
from widefit.tuning.limit_kernel import limit_gram

# Neurons that are drawn at most: more would take as long as the training of a small table.
_DRAWN = 1 << 16


def drawn_bytes(width: int, features: int, rows: int) -> int:
    """Return what the neurons that `network_gram` draws and their fire patterns take, in single precision."""
    return min(width, _DRAWN) * (4 * (features + 1) + rows // 8)


def network_gram(inputs: Float[np.ndarray, "n d"], width: int, threshold: float, seed: int) -> Float[np.ndarray, "n n"]:
    """Return K ∘ N / m, N the co-firing counts of the first neurons of an output as `TwoLayer` draws them.

    Directions in which the limit is nearly singular are noise in a network: to fit them takes far longer moves, and
    gains nothing on other rows. A ridge has to be chosen with that noise (this project).

    Parameters
    ----------
    inputs
        Rows on the unit sphere.
    width
        m, the neurons of one output. Beyond 65,536 the noise of so many is scaled as the root of the width.
    threshold
        b.
    seed
        Of the network.
    """
    drawn = min(width, _DRAWN)
    network = TwoLayer(inputs.shape[1], drawn, threshold=threshold, paired=True, seed=seed)
    tracking = Dense().start(network, inputs.astype(network.weight.detach().numpy().dtype))
    found = CurrentGrams(tracking, similarity(inputs), network.coefficients, held=1)(0).matrix.numpy()
    if not found.any():  # there is no network to speak of
        return limit_gram(inputs, threshold)
    share = math.sqrt(drawn / width)
    return found if share == 1 else share * found + (1 - share) * limit_gram(inputs, threshold)
