"""Contribution of each kind of layer to a row of J: an input times a backward signal."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer in a forward pass."""

    module: nn.Module
    input: Tensor
    output: Tensor


def outer_inputs(module: nn.Module, given: Tensor) -> Float[Tensor, "n T i"] | None:
    """a with ∂/∂W of one sample = Σ_t δ_t ⊗ a_t, T positions a sample; None for layers without that form."""
    if isinstance(module, nn.Linear):
        return given.reshape(len(given), -1, given.shape[-1])
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _patches(module, given)
    if isinstance(module, nn.Embedding):
        hot = functional.one_hot(given.reshape(len(given), -1), module.num_embeddings).to(module.weight.dtype)
        if module.padding_idx is not None:
            hot[..., module.padding_idx] = 0
        return hot
    return None


def outer_signals(module: nn.Module, signal: Float[Tensor, "n *o"]) -> Float[Tensor, "n T o"]:
    """The backward signal of a layer's output, in the positions of `outer_inputs`."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return signal.flatten(2).transpose(1, 2)
    return signal.reshape(len(signal), -1, signal.shape[-1])


def supports(module: nn.Module) -> bool:
    """Whether a layer's parameters have a form known here."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.sparse and not module.scale_grad_by_freq
    return type(module) is nn.Linear or type(module) in _NORMALIZED


def affine_rows(call: LayerCall, signal: Float[Tensor, "n *o"], name: str) -> Float[Tensor, "n p"]:
    """Per-sample derivatives of a normalization layer's weight or bias."""
    shape = call.module.get_parameter(name).shape
    product = signal
    if name == "weight":
        product = signal * _NORMALIZED[type(call.module)](call.module, call.input)
    n = len(product)
    if isinstance(call.module, nn.LayerNorm):
        return product.reshape(n, -1, shape.numel()).sum(dim=1)
    return product.reshape(n, shape.numel(), -1).sum(dim=2)


def _patches(module: nn.Conv1d | nn.Conv2d, given: Tensor) -> Float[Tensor, "n T i"]:
    options = [module.kernel_size, module.dilation, module.padding, module.stride]
    if isinstance(module, nn.Conv1d):
        given = given.unsqueeze(2)
        options = [(one, int(option[0])) for one, option in zip((1, 1, 0, 1), options, strict=True)]  # pyright: ignore[reportArgumentType]
    kernel, dilation, padding, stride = options
    return functional.unfold(given, kernel, dilation, padding, stride).transpose(1, 2)  # pyright: ignore[reportArgumentType]


def _layer_norm(module: nn.LayerNorm, given: Tensor) -> Tensor:
    return functional.layer_norm(given, module.normalized_shape, eps=module.eps)


def _group_norm(module: nn.GroupNorm, given: Tensor) -> Tensor:
    return functional.group_norm(given, module.num_groups, eps=module.eps)


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d, given: Tensor) -> Tensor:
    return functional.batch_norm(given, module.running_mean, module.running_var, eps=module.eps)


_NORMALIZED: dict[type, Callable[..., Tensor]] = {
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
