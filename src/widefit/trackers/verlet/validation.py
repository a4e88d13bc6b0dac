"""States of the verlet-list tracker that come from a file: their numbers are places in memory to its kernels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefit.records import FileError, array
from widefit.trackers.validation import check_sums


def check_state(
    state: Mapping[str, np.ndarray], weight: NDArray[Any], samples: int, groups: Sequence[tuple[int, int]]
) -> None:
    """Check what a run is resumed from.

    Parameters
    ----------
    state
        From `VerletListTracking.state`.
    weight
        Of the layer, whose dtype and shape count.
    samples
        n.
    groups
        Neurons of every output, half open.

    Raises
    ------
    FileError
        An array is absent, of another dtype or shape, or holds what is no neuron, no sample or no count.
    """
    outputs = len(groups)
    check_sums(state, samples, outputs, displaced=False)
    array(state, "weight", weight.dtype, weight.shape)
    _check_outlook(state, samples, outputs)
    if "epochs" in state:
        _check_counts(array(state, "epochs", np.float64, (2,)), "epochs")
        array(state, "reference", weight.dtype, weight.shape)
        skins = array(state, "skins", np.float64, (3, len(weight)))
        if not np.all(skins >= 0):
            raise FileError("'skins' must be at least 0 everywhere")
    inner = [any(name.startswith(f"{output}.") for name in state) for output in range(outputs)]
    if any(inner) and not all(inner):
        raise FileError("inner steps must be there of every output, or of none")
    for output, group in enumerate(groups):
        if inner[output]:
            _check_inner(state, f"{output}.", samples, group)


def _check_outlook(state: Mapping[str, np.ndarray], samples: int, outputs: int) -> None:
    outlook = array(state, "outlook", np.float64, (4,))
    if not np.all(np.abs(outlook) < 2**62):
        raise FileError("'outlook' holds what is no number of steps")
    for output in range(outputs):
        if f"shape.{output}" in state:
            array(state, f"shape.{output}", np.float64, (samples + 1,))
    if "before" in state:
        array(state, "before", np.float64, (samples, outputs))


def _check_counts(numbers: NDArray[np.float64], name: str) -> None:
    if not np.all((numbers >= 0) & (numbers < 2**62)):
        raise FileError(f"{name!r} holds what is no number of steps")


def _check_inner(state: Mapping[str, np.ndarray], prefix: str, samples: int, group: tuple[int, int]) -> None:
    """Steps of an output: near pairs in the order of their neurons, and the samples that each of those fires on."""
    numbers = array(state, f"{prefix}numbers", np.float64, (2,))
    _check_counts(numbers[1:], f"{prefix}numbers")
    array(state, f"{prefix}sums", np.float64, (4, samples))
    array(state, f"{prefix}deviation", np.float64, (samples + 1,))
    array(state, f"{prefix}half", (np.float32, np.float64), (samples, samples))
    near = array(state, f"{prefix}near", np.float64, (4, None))
    neurons, of = array(state, f"{prefix}pairs", np.int64, (2, near.shape[1]), least=0)
    awake, first, length = array(state, f"{prefix}rows", np.int64, (3, None), least=0)
    words = array(state, f"{prefix}words", np.int32, (None,))
    pairs = neurons * samples + of
    if np.any(of >= samples) or np.any(neurons >= group[1]) or np.any(neurons < group[0]):
        raise FileError(f"'{prefix}pairs' holds what is no neuron or no sample")
    if np.any(pairs[1:] <= pairs[:-1]) or not np.array_equal(np.unique(neurons), awake):
        raise FileError(f"'{prefix}pairs' must ascend, and have the neurons of '{prefix}rows'")
    room = np.diff(np.append(first, words.size))
    if (first.size and first[0] != 0) or np.any(room < 0) or np.any(length > room):
        raise FileError(f"'{prefix}rows' must follow one another")
    slot = np.repeat(np.arange(awake.size), length)
    place = np.repeat(first, length) + np.arange(slot.size) - np.repeat(np.cumsum(length) - length, length)
    held = words[place].astype(np.int64)
    if np.any(held < 0) or np.any(held >= samples):
        raise FileError(f"'{prefix}words' holds what is no sample")
    # What a pair that flips changes: its sample joins the row, or leaves it.
    rows = np.sort(awake[slot] * samples + held)
    fires = near[1] > 0
    silent = np.bincount(np.searchsorted(awake, neurons[~fires]), minlength=awake.size)
    twice, contradicted = np.any(rows[1:] == rows[:-1]), not np.array_equal(np.isin(pairs, rows), fires)
    if twice or contradicted or np.any(length + silent > room):
        raise FileError(f"'{prefix}rows' contradicts '{prefix}near'")
