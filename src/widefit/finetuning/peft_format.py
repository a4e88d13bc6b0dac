"""PEFT's LoRA format: a change of weights as a folder with adapter_config.json and adapter_model.safetensors.

Each layer has `lora_A` of shape (r, inputs) and `lora_B` of shape (outputs, r) with a rank of its own, and α = r, so
that W = W₀ + B A. Changes of biases are biases of `lora_B`. Layers that are kept whole, such as a head that begins from
random weights wherever it is loaded, are `modules_to_save`. (Hu et al., arXiv 2106.09685; PEFT 0.14 or later.)
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from widefit.files.atomic import replacing
from widefit.files.json_text import parse
from widefit.finetuning.layer_delta import LayerDelta, WholeLayer
from widefit.finetuning.name_patterns import fits_end
from widefit.records import FileError, read

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Options of PEFT that make another model of the same factors; each with the value that it has here.
_PLAIN = {
    "peft_type": "LORA",
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
# Beginnings of the factors that leave W₀ alone; others take from it what the factors begin with.
_BEGINNINGS = (True, False, None, "gaussian", "eva")
# PEFT's rank and α where a configuration has none.
_DEFAULT = 8
_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def write_peft(
    directory: Path, layers: Mapping[str, LayerDelta], whole: Mapping[str, WholeLayer], base_model: str | None
) -> None:
    """Write the two files of an adapter.

    Raises
    ------
    ValueError
        Nothing was adapted.
    OSError
        The folder cannot be made or written, or the disk is full.
    """
    if not layers:
        raise ValueError("the delta has no adapted layer: PEFT has no format for that")
    biased = any(layer.bias is not None for layer in layers.values())
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        down, up = layer.factors()
        ranks[name] = len(down)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.contiguous()
        if biased:
            tensors[f"{_PREFIX}{name}.lora_B.bias"] = (
                up.new_zeros(len(up)) if layer.bias is None else layer.bias.clone()
            )
    for name, one in whole.items():
        tensors |= {f"{_PREFIX}{name}.{kind}": value.clone() for kind, value in one.tensors().items()}
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    with replacing(directory / CONFIG) as temporary:
        config = _config(ranks, list(whole), biased, base_model)
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(ranks: dict[str, int], whole: list[str], biased: bool, base_model: str | None) -> dict[str, Any]:
    rank = max(ranks.values())
    others = {_pattern(name, ranks): own for name, own in ranks.items() if own != rank}
    return {
        "alpha_pattern": others,
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_bias": biased,
        "lora_dropout": 0.0,
        "modules_to_save": whole or None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": others,
        "target_modules": list(ranks),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _pattern(name: str, names: Iterable[str]) -> str:
    """A key of PEFT's patterns that fits one layer alone: they are compared with the ends of names."""
    return f"^{name}" if any(other.endswith(f".{name}") for other in names) else name


def read_peft(directory: Path) -> tuple[dict[str, LayerDelta], dict[str, WholeLayer]]:
    """Return changes of layers, and layers kept whole, from the folder of an adapter that PEFT or widefit wrote.

    Raises
    ------
    FileError
        No such folder; not a LoRA of linear layers, or an empty or altered one; options that make another model of the
        factors.
    """
    config = _read_config(directory / CONFIG)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{directory / WEIGHTS} cannot be read: {error}") from error
    if not tensors:
        raise FileError(f"{directory / WEIGHTS} is empty")
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, kind = _parted(key, directory)
        if tensor.dtype not in _FLOATING or not bool(torch.isfinite(tensor).all()):
            raise FileError(f"{directory}: {key!r} does not hold finite floating numbers")
        parts[name][kind] = tensor
    layers, whole = {}, {}
    for name, found in parts.items():
        if "lora_A.weight" in found:
            layers[name] = _layer(name, found, config)
        elif "weight" in found and found.keys() <= {"weight", "bias"}:
            whole[name] = _whole(name, found)
        else:
            raise FileError(f"{directory} has {sorted(found)} of {name!r}, which are no LoRA of a linear layer")
    return layers, whole


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    config = parse(content, str(path))
    for option, plain in _PLAIN.items():
        value = config.get(option, plain)
        if value != plain and (value or plain):
            raise FileError(f"{path}: {option}={value!r} makes another model than W + B A; merge it with PEFT first")
    beginning = config.get("init_lora_weights")
    if beginning not in _BEGINNINGS:
        raise FileError(f"{path}: init_lora_weights={beginning!r} changes W too; convert it with PEFT first")
    return config


def _parted(key: str, directory: Path) -> tuple[str, str]:
    """Name of the layer, and of its part."""
    if not key.startswith(_PREFIX):
        raise FileError(f"{directory}: {key!r} is no tensor of a LoRA adapter")
    bare = key.removeprefix(_PREFIX)
    for kind in ("lora_A.weight", "lora_B.weight", "lora_B.bias", "weight", "bias"):
        if bare.endswith(f".{kind}"):
            return bare.removesuffix(f".{kind}").removesuffix(".modules_to_save"), kind
    raise FileError(f"{directory}: {key!r} is no tensor of a LoRA of linear layers")


def _layer(name: str, found: dict[str, Tensor], config: dict[str, Any]) -> LayerDelta:
    down, up, bias = found["lora_A.weight"], found.get("lora_B.weight"), found.get("lora_B.bias")
    if up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down) or not min(*up.shape, *down.shape):
        raise FileError(f"the factors of {name!r} do not belong together")
    if bias is not None and bias.shape != up.shape[:1]:
        raise FileError(f"the bias of {name!r} does not belong to its factors")
    if any(tensor.dtype != down.dtype for tensor in found.values()) or not found.keys().isdisjoint(("weight", "bias")):
        raise FileError(f"the tensors of {name!r} do not belong together")
    scale = _scale(name, config, len(down))
    return LayerDelta(up * scale, down.T.contiguous(), None if bias is None else bias * scale)


def _whole(name: str, found: dict[str, Tensor]) -> WholeLayer:
    weight, bias = found["weight"], found.get("bias")
    fits = bias is None or (bias.shape == weight.shape[:1] and bias.dtype == weight.dtype)
    if weight.ndim != 2 or not weight.numel() or not fits:
        raise FileError(f"the tensors of {name!r} are not those of a linear layer")
    return WholeLayer(weight, bias)


def _scale(name: str, config: dict[str, Any], rank: int) -> float:
    """α / r, or α / √r."""
    declared = _own(name, config, "rank_pattern", "r")
    if declared != rank:
        raise FileError(f"the factors of {name!r} have rank {rank}, {CONFIG} says {declared:g}")
    by_root = read(bool | None, config.get("use_rslora"), f"use_rslora of {CONFIG}")
    scale = _own(name, config, "alpha_pattern", "lora_alpha") / (rank**0.5 if by_root else rank)
    if not math.isfinite(scale):
        raise FileError(f"the alpha of {name!r} must be finite, it is {scale * rank:g}")
    return scale


def _own(name: str, config: dict[str, Any], patterns: str, common: str) -> float:
    """A number of a layer: that of the first pattern which its name ends in, as in PEFT, or the one of all layers."""
    found = read(dict[str, float] | None, config.get(patterns), f"{patterns} of {CONFIG}") or {}
    try:
        own = next((value for pattern, value in found.items() if fits_end(pattern, name)), None)
    except (re.error, ValueError, RecursionError, OverflowError) as error:
        raise FileError(f"{patterns} of {CONFIG} has a key that cannot be used as a pattern: {error}") from error
    return read(float, config.get(common, _DEFAULT), f"{common} of {CONFIG}") if own is None else own
