"""Change of a module by fine-tuning: low-rank factors a layer, saved alone and merged later."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from widefit.files.container import altered, read_container, write_container
from widefit.finetuning.layer_delta import LayerDelta, WholeLayer
from widefit.finetuning.peft_format import read_peft, write_peft
from widefit.records import FileError, read

_KIND = "delta"


@dataclass(frozen=True)
class LowRankDelta:
    """Adapted minus given weights of a module.

    Attributes
    ----------
    layers
        By the names of the layers in the module.
    whole
        Layers whose final weights are kept in place of their change.
    """

    layers: Mapping[str, LayerDelta]
    whole: Mapping[str, WholeLayer] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that the factors take."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def plus(self, other: "LowRankDelta") -> "LowRankDelta":
        """Return the sum of two deltas to the same module."""
        merged = dict(self.layers)
        for name, layer in other.layers.items():
            merged[name] = merged[name].plus(layer) if name in merged else layer
        return LowRankDelta(merged, {**self.whole, **other.whole})

    def truncated(self, rank: int) -> "LowRankDelta":
        """Return an approximation with every layer cut to a rank, for a smaller file.

        Raises
        ------
        ValueError
            A rank below 1.
        """
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        return LowRankDelta({name: layer.truncated(rank) for name, layer in self.layers.items()}, self.whole)

    def merged(self, model: nn.Module) -> nn.Module:
        """Return a copy of a module with the delta added to its weights.

        Parameters
        ----------
        model
            The module that was fine-tuned, or one with the same layers; it stays as it is.

        Raises
        ------
        ValueError
            A layer of the delta is missing in the module, or has another shape or no bias there.
        """
        check_fits(self, model)
        result = copy.deepcopy(model)
        self.add_to(result)
        return result

    def add_to(self, model: nn.Module) -> None:
        """Add the delta to the weights of a module itself, whose layers `merged` would take."""
        with torch.no_grad():
            for name, delta in self.layers.items():
                layer = model.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                layer.weight.add_(delta.dense().to(layer.weight))
                if delta.bias is not None:
                    layer.bias.add_(delta.bias.to(layer.bias))
            for name, whole in self.whole.items():
                for kind, value in whole.tensors().items():
                    model.get_submodule(name).get_parameter(kind).copy_(value)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: `NAME.U` and `NAME.V` or `NAME.delta`, and `NAME.bias` for every layer.

        Raises
        ------
        OSError
            The folder does not exist or is not writable, or the disk is full.
        """
        document = {"layers": list(self.layers), "whole": list(self.whole)}
        write_container(path, self.tensors(), document if self.whole else {"layers": list(self.layers)}, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> "LowRankDelta":
        """Read a file that `save` wrote.

        Raises
        ------
        FileError
            No such file, or not a delta of widefit, or an altered one.
        """
        tensors, document = read_container(path, _KIND)
        with altered(path):
            names = read(_Document, document, "its document")
            layers = {name: _read_layer(name, tensors) for name in names.layers}
            return cls(layers, {name: _read_whole(name, tensors) for name in names.whole})

    def save_peft(self, directory: str | Path, *, base_model: str | None = None) -> None:
        """Write an adapter that PEFT loads: `PeftModel.from_pretrained(model, directory)`.

        Parameters
        ----------
        directory
            A folder, which is made where it is missing; gets adapter_config.json and adapter_model.safetensors. The
            rank of each layer is the one that its change has, and α the same.
        base_model
            Name or folder of the model that was adapted, for those who load it.

        Raises
        ------
        ValueError
            Nothing was adapted.
        OSError
            The folder cannot be made or written, or the disk is full.
        """
        write_peft(Path(directory), self.layers, self.whole, base_model)

    @classmethod
    def load_peft(cls, directory: str | Path) -> "LowRankDelta":
        """Read a LoRA adapter of linear layers, from PEFT or from `save_peft`.

        Raises
        ------
        FileError
            No such folder, not a LoRA of linear layers, or one with options that make another model of the factors.
        """
        return cls(*read_peft(Path(directory)))

    def tensors(self) -> dict[str, Tensor]:
        """Return all factors by name, as in the file."""
        found = {}
        for name, layer in self.layers.items():
            if layer.V is None:
                found[f"{name}.delta"] = layer.U
            else:
                found |= {f"{name}.U": layer.U, f"{name}.V": layer.V}
            if layer.bias is not None:
                found[f"{name}.bias"] = layer.bias
        for name, layer in self.whole.items():
            found |= {f"{name}.{kind}": value for kind, value in layer.tensors().items()}
        return found


@dataclass(frozen=True)
class _Document:
    """Document beside the tensors of a file."""

    layers: list[str]
    whole: list[str] = field(default_factory=list)


def _read_part(name: str, part: str, dimensions: int, tensors: dict[str, Tensor]) -> Tensor:
    tensor = tensors.get(f"{name}.{part}")
    if tensor is None or tensor.ndim != dimensions or not tensor.dtype.is_floating_point:
        raise FileError(f"it has no tensor of {dimensions} dimensions '{name}.{part}'")
    return tensor


def _read_whole(name: str, tensors: dict[str, Tensor]) -> WholeLayer:
    weight = _read_part(name, "weight", 2, tensors)
    bias = _read_part(name, "bias", 1, tensors) if f"{name}.bias" in tensors else None
    if bias is not None and (len(bias) != len(weight) or bias.dtype != weight.dtype):
        raise FileError(f"the tensors of {name!r} do not belong together")
    return WholeLayer(weight, bias)


def _read_layer(name: str, tensors: dict[str, Tensor]) -> LayerDelta:
    whole = f"{name}.delta" in tensors
    U = _read_part(name, "delta" if whole else "U", 2, tensors)
    V = None if whole else _read_part(name, "V", 2, tensors)
    bias = _read_part(name, "bias", 1, tensors) if f"{name}.bias" in tensors else None
    others = [tensor for tensor in (V, bias) if tensor is not None]
    fits = (V is None or V.shape[1] == U.shape[1]) and (bias is None or len(bias) == len(U))
    if not fits or any(tensor.dtype != U.dtype for tensor in others):
        raise FileError(f"the tensors of {name!r} do not belong together")
    return LayerDelta(U, V, bias)


def _check_layer(name: str, delta: LayerDelta | WholeLayer, layer: nn.Module | None) -> None:
    where = f"layer {name!r} of the delta"
    if not isinstance(layer, nn.Linear):
        there = "nothing of that name" if layer is None else f"a {type(layer).__name__}"
        raise ValueError(f"{where} must be a linear layer of the model, which has {there}")
    if delta.shape != tuple(layer.weight.shape):
        raise ValueError(f"{where} has weights of shape {delta.shape}, the model's are {tuple(layer.weight.shape)}")
    if delta.bias is not None and layer.bias is None:
        raise ValueError(f"{where} has a bias, the model's has none")


def check_fits(delta: LowRankDelta, model: nn.Module) -> None:
    """Raise a ValueError for a layer of a delta that a module does not have, or has in another shape."""
    modules = dict(model.named_modules())
    for name, layer in (*delta.layers.items(), *delta.whole.items()):
        _check_layer(name, layer, modules.get(name))
