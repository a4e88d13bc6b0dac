"""Networks behind the estimators: two-layer for one width, deep for several."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from widefit.estimators.parameters import HiddenLayers
from widefit.linalg.gaussian_rows import Initial
from widefit.nn import Deep, TwoLayer
from widefit.nn.blocks import aligned_empty
from widefit.nn.deep import norm_keeping_scale
from widefit.plan.names import ACTIVATIONS
from widefit.tuning.limit_kernel import deep_limit_gram
from widefit.tuning.tune import Tuning

# γ of `widefit.nn.Deep`.
_INPUT_SHARE = 0.5


def limit_kernel(thresholds: tuple[float, ...]):
    """Return H of a deep network at infinite width as a function of inputs on the sphere; None for one layer."""
    if len(thresholds) == 1:
        return None
    return lambda inputs: deep_limit_gram(inputs, thresholds, _INPUT_SHARE)


def draw(
    tuning: Tuning, layers: HiddenLayers, outputs: int, activation: str, seed: int, store: str = "array"
) -> TwoLayer | Deep:
    """Draw an untrained network for the inputs and the readout scale of a tuning; `store` is of one hidden layer."""
    features = tuning.sphere.out_features
    if len(layers.widths) == 1:
        return TwoLayer(
            features,
            layers.widths[0],
            outputs,
            threshold=layers.thresholds[0],
            convention=ACTIVATIONS[activation],
            readout_scale=tuning.readout_scale,
            paired=True,
            seed=seed,
            store=store,
        )
    # In the units of a two-layer network, whose activations keep no norm.
    scale = tuning.readout_scale / norm_keeping_scale(1, layers.thresholds[0])
    return Deep(
        features,
        layers.widths,
        outputs,
        threshold=layers.thresholds,
        input_share=_INPUT_SHARE,
        readout_scale=scale,
        seed=seed,
    )


def limit_settings(network: TwoLayer | Deep) -> tuple[tuple[float, ...], float]:
    """Return thresholds and γ with which `deep_limit_kernel` is the limit of a network's kernel."""
    if isinstance(network, TwoLayer):
        return (network.threshold,), _INPUT_SHARE
    return network.thresholds, network.input_share


def initial_network(network: TwoLayer | Deep, seed: int) -> TwoLayer | None:
    """Return a two-layer network as `draw` has drawn it, but with readouts of ±1 and weights drawn when needed."""
    if not isinstance(network, TwoLayer):
        return None
    return TwoLayer(
        network.in_features,
        network.width,
        network.out_features,
        threshold=network.threshold,
        convention=network.activation.convention,
        paired=True,
        seed=seed,
        store="regenerate",
    )


def network_parts(network: TwoLayer | Deep, whole: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a network as tensors and plain values; `network_from_parts` is the inverse.

    Parameters
    ----------
    network
        A two-layer one that was drawn gives the pairs of neurons that have moved alone: the two of any other are equal
        and cancel. They are drawn again, as the second layer is, and outputs do not rest on them.
    whole
        True for all neurons.
    """
    if not isinstance(network, TwoLayer):
        tensors = {f"network.{name}": tensor.detach() for name, tensor in network.state_dict().items()}
        return tensors, {"thresholds": list(network.thresholds), "input_share": network.input_share}
    weight = network.weight.detach()
    readout = network.readout.detach()
    activation = {"threshold": network.threshold, "convention": network.activation.convention}
    initial = network.initial
    if whole or initial is None or not initial.paired:
        return {"weight": weight, "readout": readout}, activation
    drawn = _drawn(initial, weight.dtype)
    moved = (weight != drawn[0]).any(dim=1)
    # The last neuron of an odd width has no other.
    pairs = moved[: len(moved) // 2 * 2].view(-1, 2).any(dim=1)
    moved[: 2 * len(pairs)] = pairs.repeat_interleave(2)
    moved[2 * len(pairs) :] = True
    if not moved.any() or not torch.equal(readout, drawn[1]):
        return {"weight": weight, "readout": readout}, activation
    return {"weight": weight[moved], "moved": moved}, activation | {"drawn": asdict(initial)}


def network_from_parts(tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> TwoLayer | Deep:
    """Build the network that `network_parts` was given."""
    if "thresholds" in document:
        own = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
        return Deep.from_tensors(own, **document)
    settings = {name: value for name, value in document.items() if name != "drawn"}
    if document.get("drawn") is None:
        return TwoLayer.from_tensors(tensors["weight"], tensors["readout"], **settings)
    initial = Initial(**document["drawn"])
    weight, readout = _drawn(initial, tensors["weight"].dtype)
    weight[tensors["moved"]] = tensors["weight"]
    return TwoLayer.from_tensors(weight, readout, **settings, initial=initial)


def _drawn(initial: Initial, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return W₀ and a."""
    weight = aligned_empty(initial.width, initial.in_features, dtype)
    readout = aligned_empty(initial.width, initial.out_features, dtype)
    initial.write_rows(0, initial.width, weight.numpy())
    initial.write_readout(0, initial.width, readout.numpy())
    return weight, readout
