"""State of a run whose neurons several processes share out: put together for a file, and taken apart again."""

from collections.abc import Mapping, Sequence

import numpy as np

from widefit.trackers.certificate.validation import check_state

# Arrays with an entry a slot, and those with as many entries a slot as one of them says.
_SIZES = {
    "counts": None,
    "corrections": None,
    "fired": "counts",
    "entry_sample": "corrections",
    "entry_value": "corrections",
}

# Slots by process and output.
Slots = Sequence[Sequence[int]]


def join_states(states: Sequence[Mapping[str, np.ndarray]], slots: Slots) -> dict[str, np.ndarray]:
    """Return the state of all neurons from those of the processes, which agree in all but what belongs to slots.

    Parameters
    ----------
    states
        From `checkpoint.save_run`, by process; their neurons are shared out as `widefit.nn.shard.shared_out` does.
    slots
        Of each process and output.
    """
    pieces = [_cut(state, own) for state, own in zip(states, slots, strict=True)]
    ordered = [own[output] for output in range(len(slots[0])) for own in pieces]
    joined = {name: np.concatenate([piece[name] for piece in ordered]) for name in _SIZES}
    return {**states[0], **joined}


def split_state(
    state: Mapping[str, np.ndarray], slots: Slots, rank: int, samples: int, outputs: int
) -> dict[str, np.ndarray]:
    """Return the state of the neurons of one process, from that of all; the inverse of `join_states`.

    Raises
    ------
    FileError
        A state that is not one of so many slots, samples and outputs.
    """
    check_state(state, sum(sum(own) for own in slots), samples, outputs)
    order = [(output, process) for output in range(outputs) for process in range(len(slots))]
    pieces = _cut(state, [slots[process][output] for output, process in order])
    own = [piece for (_, process), piece in zip(order, pieces, strict=True) if process == rank]
    return {**state, **{name: np.concatenate([piece[name] for piece in own]) for name in _SIZES}}


def _cut(state: Mapping[str, np.ndarray], slots: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Cut everything that belongs to slots into runs of so many of them."""
    edges = np.append(0, np.cumsum(slots))
    pieces: list[dict[str, np.ndarray]] = [{} for _ in slots]
    for name, size in _SIZES.items():
        places = edges if size is None else np.append(0, np.cumsum(state[size], dtype=np.int64))[edges]
        for piece, part in zip(pieces, np.split(state[name], places[1:-1]), strict=True):
            piece[name] = part
    return pieces
