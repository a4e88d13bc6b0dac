"""Linear layers of a module with repeated blocks: which can be adapted, in which block each is, and the readout."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widefit.finetuning.batches import Batch
from widefit.finetuning.kept_states import BlockList

# Numbers up to which a readout is trained as a whole.
_READOUT = 1 << 18


@dataclass(frozen=True)
class LinearCalls:
    """Findings of one forward pass.

    Attributes
    ----------
    places
        Layers that can be adapted, in the order of their calls, each with the number of its block, counted through all
        lists of blocks; behind the last block the number of blocks.
    readout
        The layer whose outputs are those of the module, where it is small enough to be trained as a whole.
    skipped
        Other layers, each with the reason.
    """

    places: dict[str, int]
    readout: str | None
    skipped: dict[str, str]


def linear_calls(model: nn.Module, lists: Sequence[BlockList], batch: Batch) -> LinearCalls:
    """Return the linear layers that take part in a forward pass on a batch."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    users = Counter(id(own) for module in model.modules() for own in module.parameters(recurse=False))
    blocks = [block for one in lists for block in one.blocks]
    calls: list[tuple[str, int, bool, Tensor]] = []
    entered: list[str] = []
    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            hooks.enter_context(model.get_submodule(block).register_forward_pre_hook(_entering(block, entered)))
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(_noting(name, entered, calls, batch.rows)))
        outputs = batch.call(model)
    counts = Counter(name for name, *_ in calls)
    skipped = {name: _reason(module, users, counts[name]) for name, module in layers.items()}
    places = {}
    for name, entered_blocks, by_sample, _ in calls:
        inside = [number for number, block in enumerate(blocks) if name.startswith(f"{block}.")]
        if not by_sample:
            skipped[name] = "its inputs have no entry a row"
        elif not inside and entered_blocks < len(blocks):
            skipped[name] = skipped[name] or "it stands in front of or between the blocks"
        if not skipped[name]:
            places[name] = inside[0] if inside else len(blocks)
    found = [name for name, _, _, output in calls if name in places and _same(output, outputs)]
    readout = found[-1] if found else None
    if readout is not None and layers[readout].weight.numel() > _READOUT:
        del places[readout]
        skipped[readout] = f"a readout of more than {_READOUT:,} weights stays as it is"
        readout = None
    return LinearCalls(places, readout, {name: why for name, why in skipped.items() if why})


def _reason(module: nn.Linear, users: Counter, calls: int) -> str:
    """The reason why a layer cannot be adapted; empty where it can."""
    if type(module) is not nn.Linear and type(module).__name__ != "NonDynamicallyQuantizableLinear":
        return f"it is a {type(module).__name__}, which may compute something else"
    if any(users[id(own)] > 1 for own in module.parameters(recurse=False)):
        return "another layer shares its weights"
    if calls != 1:
        return "it takes no part in the forward pass" if calls == 0 else f"it is called {calls} times"
    return ""


def _entering(block: str, entered: list[str]) -> Callable[..., None]:
    def enter(*_: object) -> None:
        entered.append(block)

    return enter


def _noting(
    name: str, entered: list[str], calls: list[tuple[str, int, bool, Tensor]], rows: int
) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        by_sample = bool(args) and args[0].ndim >= 2 and len(args[0]) == rows
        calls.append((name, len(entered), by_sample, output))

    return note


def _same(output: Tensor, outputs: Tensor) -> bool:
    """Whether a layer gave the outputs of the module."""
    return output.numel() == outputs.numel() and torch.equal(output.reshape(-1).to(outputs), outputs.reshape(-1))
