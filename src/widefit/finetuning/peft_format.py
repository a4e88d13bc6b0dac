"""PEFT's LoRA format: a change of weights as a folder with adapter_config.json and adapter_model.safetensors.

Each layer has `lora_A` of shape (r, inputs) and `lora_B` of shape (outputs, r) with a rank of its own, and α = r, so
that W = W₀ + B A. Changes of biases are biases of `lora_B`. Layers that are kept whole, such as a head that begins from
random weights wherever it is loaded, are `modules_to_save`. (Hu et al., arXiv 2106.09685; PEFT 0.14 or later.)
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from widefit.files.atomic import replacing
from widefit.finetuning.layer_delta import LayerDelta, WholeLayer
from widefit.records import FileError

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
}


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
    for name, layer in layers.items():
        down, up = layer.factors()
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.contiguous()
        if biased:
            tensors[f"{_PREFIX}{name}.lora_B.bias"] = (
                up.new_zeros(len(up)) if layer.bias is None else layer.bias.clone()
            )
    for name, one in whole.items():
        tensors |= {f"{_PREFIX}{name}.{kind}": value.clone() for kind, value in one.tensors().items()}
    ranks = {name: layer.factors()[0].shape[0] for name, layer in layers.items()}
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    with replacing(directory / CONFIG) as temporary:
        config = _config(ranks, list(whole), biased, base_model)
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(ranks: dict[str, int], whole: list[str], biased: bool, base_model: str | None) -> dict[str, Any]:
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
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


def read_peft(directory: Path) -> tuple[dict[str, LayerDelta], dict[str, WholeLayer]]:
    """Return changes of layers, and layers kept whole, from the folder of an adapter that PEFT or widefit wrote.

    Raises
    ------
    FileError
        No such folder; not a LoRA of linear layers; options that make another model of the factors.
    """
    config = _read_config(directory / CONFIG)
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{directory / WEIGHTS} cannot be read: {error}") from error
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, kind = _parted(key, directory)
        parts[name][kind] = tensor
    layers, whole = {}, {}
    for name, found in parts.items():
        if "lora_A.weight" in found:
            layers[name] = _layer(name, found, config)
        elif "weight" in found and found.keys() <= {"weight", "bias"}:
            whole[name] = WholeLayer(found["weight"], found.get("bias"))
        else:
            raise FileError(f"{directory} has {sorted(found)} of {name!r}, which are no LoRA of a linear layer")
    return layers, whole


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise FileError(f"{path} is not a configuration of PEFT")
    for option, plain in _PLAIN.items():
        value = config.get(option, plain)
        if value != plain and (value or plain):
            raise FileError(f"{path}: {option}={value!r} makes another model than W + B A; merge it with PEFT first")
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
    if up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down):
        raise FileError(f"the factors of {name!r} do not belong together")
    if bias is not None and bias.shape != up.shape[:1]:
        raise FileError(f"the bias of {name!r} does not belong to its factors")
    scale = _scale(name, config, len(down))
    return LayerDelta(up * scale, down.T.contiguous(), None if bias is None else bias * scale)


def _scale(name: str, config: dict[str, Any], rank: int) -> float:
    """α / r, or α / √r."""
    patterns = config.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if name == pattern or name.endswith(f".{pattern}")]
    alpha = own[0] if own else config.get("lora_alpha", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise FileError(f"the alpha of {name!r} must be a number, got {alpha!r}")
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    if not torch.isfinite(torch.tensor(scale)):
        raise FileError(f"the alpha of {name!r} must be finite, got {alpha!r}")
    return scale
