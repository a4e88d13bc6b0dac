"""State that all trackers keep of a run, checked when it comes from a file."""

from collections.abc import Mapping

import numpy as np

from widefit.records import array


def check_sums(state: Mapping[str, np.ndarray], samples: int, outputs: int, *, displaced: bool) -> None:
    """Check f, and where `displaced` the displacement.

    Parameters
    ----------
    state
        Of a tracker: "outputs" of shape (n, k); "response" (n, k) and "squared_norm" (k,).
    samples, outputs
        n and k.

    Raises
    ------
    FileError
        One of them is absent or other.
    """
    array(state, "outputs", np.float64, (samples, outputs))
    if displaced:
        array(state, "response", np.float64, (samples, outputs))
        array(state, "squared_norm", np.float64, (outputs,))
