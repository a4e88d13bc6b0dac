"""What is found in a module, and whether its two parts are the module."""

import pytest
import torch
from networks import Custom, Encoder, perceptron
from torch import nn

from widefit.finetuning.blocks import observe
from widefit.finetuning.split import Split, split


def test_blocks_of_a_sequential():
    model, x = perceptron(4, 8, 8, 2), torch.randn(16, 4, dtype=torch.float64)
    structure = observe(model, x)
    assert structure.layers == ("0", "2", "4")
    assert structure.readout == "4"
    assert [(block.first, block.second, block.activation) for block in structure.blocks] == [
        ("0", "2", "relu"),
        ("2", "4", "relu"),
    ]
    density = float((model[:2](x) > 0).double().mean())
    assert structure.blocks[0].density == structure.densities["2"] == pytest.approx(density)
    assert not structure.skipped


def test_a_custom_module_tells_what_is_in_the_way():
    model = Custom().eval()
    structure = observe(model, torch.randn(8, 6))
    assert [(block.first, block.second) for block in structure.blocks] == [("first", "second")]
    assert structure.readout == "third"
    assert "unused" not in structure.layers
    assert "takes no part" in structure.skipped["unused"]
    assert "add stands between" in structure.skipped["first → third"]


def test_feed_forward_blocks_of_t5():
    structure = observe(Encoder().eval(), torch.randn(8, 5, 6))
    assert [(block.first, block.second, block.activation) for block in structure.blocks] == [
        (f"block.{i}.wi", f"block.{i}.wo", "relu") for i in range(2)
    ]
    assert structure.readout == "head"


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Sigmoid(), nn.Identity()])
def test_other_activations_make_no_block(activation: nn.Module):
    structure = observe(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)), torch.randn(4, 3))
    assert structure.blocks == ()
    assert "0 → 2" in structure.skipped
    assert structure.layers == ("0", "2")


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.LeakyReLU(), nn.ReLU6(), nn.PReLU()])
def test_the_family_makes_blocks(activation: nn.Module):
    structure = observe(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2)), torch.randn(4, 3))
    assert [(block.first, block.second) for block in structure.blocks] == [("0", "2")]


def test_shared_repeated_and_unusual_layers_are_passed_over():
    tied = nn.Linear(4, 4)
    tied.weight = (first := nn.Linear(4, 4)).weight
    twice = nn.Linear(4, 4)
    model = nn.Sequential(first, nn.ReLU(), tied, nn.ReLU(), twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(4, 1))
    structure = observe(model, torch.randn(4, 4))
    assert structure.layers == ("8",)
    assert "shares its weights" in structure.skipped["0"]
    assert "shares its weights" in structure.skipped["2"]
    assert "called 2 times" in structure.skipped["4"]


@pytest.mark.parametrize("use", ["function", "penalty"])
def test_weights_used_outside_of_their_layer_are_passed_over(use: str):
    class Unusual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x).relu().to(self.second.weight)
            if use == "function":
                return nn.functional.linear(h, self.second.weight, self.second.bias)
            return self.second(h) + self.second.weight.sum()

    structure = observe(Unusual(), torch.randn(6, 3))
    assert structure.layers == ("first",)
    assert structure.readout is None
    assert structure.skipped["second"] == "its weights are used outside of its own forward pass"


@pytest.mark.parametrize("with_boundary", [True, False])
@pytest.mark.parametrize("adapted", [["4"], ["2", "4"], ["0", "2", "4"], ["0"], ["0", "4"]])
def test_the_parts_are_the_module(adapted: list[str], with_boundary: bool):
    model, x = perceptron(4, 8, 8, 2), torch.randn(5, 4, dtype=torch.float64)
    parts = split(model, adapted, (x[:2],), with_boundary=with_boundary)
    assert parts.prefix is not None
    assert parts.boundary_layers == ((adapted[0],) if with_boundary else ())
    assert torch.equal(joined(parts, model, x), model(x))
    names = {name for name, _ in parts.suffix.named_parameters()}
    behind = [name for name in adapted if name not in parts.boundary_layers]
    assert {f"{name}.{kind}" for name in behind for kind in ("weight", "bias")} <= names


def joined(parts: Split, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The outputs of a module from its two parts."""
    values = parts.frozen_values((x,))
    layers = [model.get_submodule(name) for name in parts.boundary_layers]
    outputs = [layer(value) for layer, value in zip(layers, values, strict=False)]
    return parts.suffix(*outputs, *values[len(layers) :])


def test_residual_paths_are_carried_over_the_boundary():
    model, x = Custom().eval(), torch.randn(7, 6)
    parts = split(model, ["second", "third"], (x[:2],))
    assert parts.boundary_layers == ("second",)
    assert len(parts.frozen_values((x,))) == 2  # the inputs of the second layer, and h, which goes around it
    assert torch.equal(joined(parts, model, x), model(x))


def test_inputs_by_keyword_are_followed():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(input=self.first(input=x).relu())

    model, x = Keyword().eval(), torch.randn(4, 3)
    parts = split(model, ["second"], (x[:2],))
    assert parts.boundary_layers == ("second",)
    assert torch.equal(joined(parts, model, x), model(x))


def test_what_cannot_be_traced_stays_whole():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if bool(x.sum() > -1e9) else x

    model = Branching()
    parts = split(model, ["layer"], (torch.randn(2, 3),))
    assert parts.prefix is None
    assert parts.suffix is model
