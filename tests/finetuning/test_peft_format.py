"""PEFT's folders that were made elsewhere: what they mean, and those that are refused."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from widefit.files import FileError
from widefit.finetuning import LayerDelta, LowRankDelta

A, B = "base_model.model.net.0.lora_A.weight", "base_model.model.net.0.lora_B.weight"
WHOLE = "base_model.model.head.weight"


def adapter(place: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """Factors of rank 2 with α = 4, or what is asked for."""
    given = {A: torch.ones(2, 3), B: torch.ones(5, 2)} if tensors is None else tensors
    save_file(given, place / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (place / "adapter_config.json").write_text(json.dumps(content))
    return place


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"0": 6}}, 3.0),
        ({"alpha_pattern": {"net.0": 6}}, 3.0),
        ({"alpha_pattern": {r"net\.[01]": 6}}, 3.0),
        ({"alpha_pattern": {"et.0": 6}}, 2.0),
        ({"alpha_pattern": {"1": 9, ".*0": 6, "0": 12}}, 3.0),
        ({"r": 7, "rank_pattern": {r"\d": 2}}, 2.0),
    ],
)
def test_patterns_are_regular_expressions(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    (layer,) = LowRankDelta.load_peft(adapter(tmp_path, **config)).layers.values()
    torch.testing.assert_close(layer.dense(), scale * torch.full((5, 3), 2.0))


def test_what_is_left_out_is_what_peft_takes(tmp_path: Path) -> None:
    adapter(tmp_path, {A: torch.ones(8, 3), B: torch.ones(5, 8)})
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    torch.testing.assert_close(LowRankDelta.load_peft(tmp_path).layers["net.0"].dense(), torch.full((5, 3), 8.0))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "is empty"),
        ({A: torch.ones(0, 3), B: torch.ones(5, 0)}, "do not belong together"),
        ({A: torch.ones(2, 0), B: torch.ones(5, 2)}, "do not belong together"),
        ({A: torch.full((2, 3), torch.nan), B: torch.ones(5, 2)}, "does not hold finite floating numbers"),
        ({A: torch.ones(2, 3), B: torch.full((5, 2), torch.inf)}, "does not hold finite floating numbers"),
        ({A: torch.ones(2, 3).int(), B: torch.ones(5, 2).int()}, "does not hold finite floating numbers"),
        ({A: torch.ones(2, 3).double(), B: torch.ones(5, 2)}, "do not belong together"),
        ({A: torch.ones(2), B: torch.ones(5, 2)}, "do not belong together"),
        ({A: torch.ones(3, 3), B: torch.ones(5, 3)}, "have rank 3, adapter_config.json says 2"),
        ({WHOLE: torch.ones(4)}, "are not those of a linear layer"),
        ({WHOLE: torch.ones(4, 2), WHOLE.replace("weight", "bias"): torch.ones(3)}, "are not those of a linear layer"),
    ],
)
def test_altered_tensors_are_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(FileError, match=message):
        LowRankDelta.load_peft(adapter(tmp_path, tensors))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": "4"}, "lora_alpha of adapter_config.json must be float"),
        ({"lora_alpha": 10**400}, "lora_alpha of adapter_config.json must be int"),
        ({"lora_alpha": float("nan")}, "must be finite"),
        ({"alpha_pattern": ["0"]}, "alpha_pattern of adapter_config.json must be dict"),
        ({"alpha_pattern": {"0": None}}, "alpha_pattern of adapter_config.json.0 must be float"),
        ({"alpha_pattern": {"(": 3}}, "has a key that cannot be used as a pattern"),
        ({"use_rslora": "no"}, "use_rslora of adapter_config.json must be bool"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes W too"),
        ({"alora_invocation_tokens": [1]}, "makes another model"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(FileError, match=message):
        LowRankDelta.load_peft(adapter(tmp_path, **config))


@pytest.mark.parametrize("content", ["[" * 99999, "[]", "\x00", '{"a": "\\ud800"}'])
def test_configurations_that_are_no_objects_are_refused(tmp_path: Path, content: str) -> None:
    (adapter(tmp_path) / "adapter_config.json").write_text(content)
    with pytest.raises(FileError, match=r"adapter_config.json (cannot be read|must be an object|holds text)"):
        LowRankDelta.load_peft(tmp_path)


def test_factors_are_found_once_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[LayerDelta] = []
    plain = LayerDelta.factors

    def counted(layer: LayerDelta) -> tuple[Tensor, Tensor]:
        found.append(layer)
        return plain(layer)

    monkeypatch.setattr(LayerDelta, "factors", counted)
    LowRankDelta({"0": LayerDelta(torch.randn(4, 2), torch.randn(3, 2))}).save_peft(tmp_path)
    assert len(found) == 1


def test_layers_whose_names_end_alike_keep_their_own_ranks(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(OrderedDict(head=nn.Linear(6, 6), body=nn.Sequential(OrderedDict(head=nn.Linear(6, 6)))))
    changes = {"head": LayerDelta(torch.randn(6, 1), torch.randn(6, 1))}
    changes["body.head"] = LayerDelta(torch.randn(6, 3), torch.randn(6, 3))
    delta = LowRankDelta(changes)
    delta.save_peft(tmp_path)
    X = torch.randn(4, 6)
    expected = delta.merged(model)(X)
    torch.testing.assert_close(LowRankDelta.load_peft(tmp_path).merged(model)(X), expected)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(model, tmp_path)(X), expected)
