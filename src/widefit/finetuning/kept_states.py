"""A module cut between its repeated blocks: those in front run once, and what they give is kept."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from widefit.finetuning.batches import Batch
from widefit.kernels.memory import available_memory

# Part of the free memory that kept states may take; beyond it they are mapped from a file.
_SHARE = 0.25


@dataclass(frozen=True)
class BlockList:
    """Blocks of one type that are called one after the other.

    Attributes
    ----------
    name
        Of the `nn.ModuleList`.
    blocks
        Names of its blocks, in the order of their calls.
    """

    name: str
    blocks: tuple[str, ...]


def find_blocks(model: nn.Module, batch: Batch) -> tuple[BlockList, ...]:
    """Return the lists of repeated blocks that take part in a forward pass, in the order of their calls.

    A list counts where its blocks are of one type and each is called once, in order, with hidden states, an entry a
    row, that come back in the same shape. Seen in one pass on a batch, whatever the code is (this project).
    """
    lists = {
        name: [f"{name}.{number}" for number in range(len(module))]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(block) for block in module}) == 1
    }
    calls: list[tuple[str, bool]] = []
    with ExitStack() as hooks, torch.no_grad():
        for name in (block for blocks in lists.values() for block in blocks):
            hooks.enter_context(model.get_submodule(name).register_forward_hook(_noting(name, calls, batch.rows)))
        batch.call(model)
    called = [name for name, _ in calls]
    sound = {name for name, same in calls if same}
    found = [
        BlockList(name, tuple(blocks))
        for name, blocks in lists.items()
        if [one for one in called if one in set(blocks)] == blocks and sound.issuperset(blocks)
    ]
    outer = [
        one for one in found if not any(one.name.startswith(f"{block}.") for other in found for block in other.blocks)
    ]
    return tuple(sorted(outer, key=lambda one: called.index(one.blocks[0])))


def _noting(name: str, calls: list[tuple[str, bool]], rows: int) -> Any:
    def note(module: nn.Module, args: tuple, output: Any) -> None:
        states: Any = output[0] if isinstance(output, tuple) and output else output
        given = [one for one in args if isinstance(one, Tensor)]
        sound = isinstance(states, Tensor) and states.is_floating_point() and states.ndim >= 2 and len(states) == rows
        calls.append((name, sound and (not given or given[0].shape == states.shape)))

    return note


class KeptStates:
    """Outputs of the blocks right in front of the cut, batch by batch.

    Parameters
    ----------
    model
        In evaluation mode.
    lists
        Its repeated blocks.
    first
        Name of the first block that runs in every step; None: nothing is skipped.

    Attributes
    ----------
    skipped
        Blocks that no longer run.
    on_disk
        True where the states are mapped from a file.
    nbytes
        Bytes that they take.
    """

    def __init__(self, model: nn.Module, lists: Sequence[BlockList], first: str | None):
        self.on_disk = False
        self.nbytes = 0
        self._model = model
        self._first = first
        self._kept: list[dict[str, Any]] = []
        in_front = [] if first is None else _in_front(lists, first)
        self.skipped = tuple(block for blocks in in_front for block in blocks)
        # The last of its list gives what the first block that runs takes; those before it give the same, unread.
        self._last = {block: blocks[-1] for blocks in in_front for block in blocks}

    def run(self, batch: Batch) -> Tensor:
        """Return the outputs for one more batch, and keep its states."""
        with self._keeping_states():
            return batch.call(self._model)

    def run_in_front(self, batch: Batch) -> None:
        """Keep the states of one more batch; the model stops at the first block that runs in every step."""
        if self._first is None:
            self._kept.append({})
            return
        with ExitStack() as hooks, contextlib.suppress(_ArrivedError):
            hooks.enter_context(self._keeping_states())
            hooks.enter_context(self._model.get_submodule(self._first).register_forward_pre_hook(_stopping))
            batch.call(self._model)

    @contextmanager
    def _keeping_states(self) -> Iterator[None]:
        """Inside, the model runs once without gradients, and the states of a batch are kept, however it ends."""
        states: dict[str, Any] = {}
        with ExitStack() as hooks, torch.no_grad():
            for name in dict.fromkeys(self._last.values()):
                hooks.enter_context(self._model.get_submodule(name).register_forward_hook(_keeping(name, states)))
            yield
        self._kept.append({name: self._stored(value) for name, value in states.items()})

    @contextmanager
    def behind(self, number: int) -> Iterator[None]:
        """Inside, the model skips the blocks in front, given the batch of that number."""
        blocks = [self._model.get_submodule(name) for name in self.skipped]
        try:
            for name, block in zip(self.skipped, blocks, strict=True):
                block.forward = _given(self._kept[number][self._last[name]])
            yield
        finally:
            for block in blocks:
                vars(block).pop("forward", None)

    def _stored(self, value: Any) -> Any:
        return trees.tree_map_only(Tensor, self._kept_tensor, value)

    def _kept_tensor(self, tensor: Tensor) -> Tensor:
        self.nbytes += tensor.nbytes
        if not self.on_disk and self.nbytes <= _SHARE * available_memory():
            return tensor.detach().clone()
        if tensor.device.type != "cpu":
            return tensor.detach()
        self.on_disk = True
        return _mapped(tensor)


def _mapped(tensor: Tensor) -> Tensor:
    """A copy in a file without a name, which ends with the tensor, and with the process however that ends.

    Raises
    ------
    OSError
        The disk is full.
    """
    if not tensor.numel():
        return tensor.detach().clone()
    descriptor, path = tempfile.mkstemp(prefix="widefit-states-")
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk is told here, and not by a signal where it is written
            os.posix_fallocate(descriptor, 0, tensor.nbytes)
        stored = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    finally:
        os.close(descriptor)
        with contextlib.suppress(PermissionError):  # of systems that keep the names of open files
            os.unlink(path)
    return stored.view(tensor.shape).copy_(tensor)


def _in_front(lists: Sequence[BlockList], first: str) -> list[tuple[str, ...]]:
    """Blocks in front of one, list by list."""
    found: list[tuple[str, ...]] = []
    for one in lists:
        if first in one.blocks:
            return [*found, one.blocks[: one.blocks.index(first)]]
        found.append(one.blocks)
    raise ValueError(f"no repeated block is called {first!r}")


def _keeping(name: str, states: dict[str, Any]) -> Any:
    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        states[name] = output

    return keep


class _ArrivedError(Exception):
    """A model has come to the block where it is to stop."""


def _stopping(*_: object) -> None:
    raise _ArrivedError


def _given(output: Any) -> Any:
    return lambda *args, **kwargs: output
