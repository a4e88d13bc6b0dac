"""Data that several processes share out: checked against each other, and put together as one system."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from widefit.optim.system import Block, Portion, Residual, System, check_data
from widefit.processes import Alone
from widefit.records.contents import digest

Batch = tuple[Tensor | Residual, ...]


def check_alike(parameters: Mapping[str, Tensor], settings: Sequence[Any], processes: Alone) -> None:
    """Refuse processes whose models or settings differ."""
    if processes.size == 1:
        return
    names = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in parameters.items()]
    told = processes.gathered((names, digest(parameters.values()), list(settings)))
    subjects = (
        "parameters of other names, shapes or types: build the same model everywhere",
        "other parameters: seed torch alike before the model is built, or load the same state dict everywhere",
        "other options or another state: pass the same options, and load the same state dict, everywhere",
    )
    for rank, found in enumerate(told):
        for own, first, subject in zip(found, told[0], subjects, strict=True):
            if own != first:
                raise ValueError(f"process {rank} has {subject}; those of process 0 are what it is compared with")


def share_out(batch: Batch, blocks: Callable[[Batch], list[Block]], processes: Alone) -> System:
    """The system of the data of all processes.

    Parameters
    ----------
    batch
        The data of this one.
    blocks
        Makes the blocks of data.
    processes
        They have data of the same kinds, but for the number of samples. One that has none of a kind takes part with a
        sample of another process that counts for nothing, so that nobody has to think of it.

    Raises
    ------
    ValueError
        Data of several kinds, no sample of a kind anywhere, and what `blocks` raises, on any process.
    """
    if processes.size == 1:
        _refuse_empty(batch)
        return System(blocks(batch))
    told = processes.gathered([_kind(item) for item in batch])
    for rank, found in enumerate(told):
        if [kind for kind, _ in found] != [kind for kind, _ in told[0]]:
            raise ValueError(
                f"process {rank} passes {_listed(found)}, process 0 {_listed(told[0])}: pass the same kinds"
            )
    counts = [[found[place][1] for found in told] for place in range(len(batch))]
    filled = tuple(_filled(item, own, processes) for item, own in zip(batch, counts, strict=True))
    made = processes.attempt(lambda: blocks(filled))
    # Several tensors are inputs and targets of one block, and have as many samples each.
    samples = counts[: len(made)]
    portions = [Portion(sum(own), sum(own[: processes.rank]), own[processes.rank] / sum(own)) for own in samples]
    return System(made, portions, processes)


def _refuse_empty(batch: Batch) -> None:
    for item in batch:
        if isinstance(item, Residual):
            check_data(item.data, "Residual")


def _kind(item: Tensor | Residual) -> tuple[tuple[Any, ...], int]:
    """Everything about an item that all processes share, and its number of samples."""
    tensors = item.data if isinstance(item, Residual) else (item,)
    shapes = tuple((tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in tensors)
    count = len(tensors[0]) if tensors[0].ndim else 0
    return (type(item).__name__, shapes, getattr(item, "weight", 1.0)), count


def _listed(found: list[tuple[tuple[Any, ...], int]]) -> str:
    kinds = [f"{name} of " + ", ".join(f"{shape} {dtype}" for shape, dtype in shapes) for (name, shapes, _), _ in found]
    return "; ".join(kinds) or "nothing"


def _filled(item: Tensor | Residual, counts: list[int], processes: Alone) -> Tensor | Residual:
    """The item, or where it is empty the first sample of the first process that has one."""
    source = next((rank for rank, count in enumerate(counts) if count), None)
    if source is None:
        raise ValueError("step holds no sample on any process")
    if all(counts):
        return item
    tensors = item.data if isinstance(item, Residual) else (item,)
    firsts = [
        processes.same(tensor[:1] if len(tensor) else tensor.new_zeros(1, *tensor.shape[1:]), source)
        for tensor in tensors
    ]
    if counts[processes.rank]:
        return item
    return Residual(item.function, *firsts, weight=item.weight) if isinstance(item, Residual) else firsts[0]
