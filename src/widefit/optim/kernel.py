"""The empirical neural tangent kernel of any module."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.gram.base import Jacobian, Operator
from widefit.gram.jacobian import FunctionJacobian, JacobianGram
from widefit.gram.recording import factor_cost, factored_jacobian, module_outputs
from widefit.kernels.precision import full_precision
from widefit.losses.squared import HalfSquare
from widefit.optim.batch import as_batch
from widefit.optim.modules import check_module
from widefit.optim.parameters import MovingParameters
from widefit.optim.system import Block, System, check_data

# Bytes for the rows of J alive at a time.
_ROWS = 1 << 28


def ntk(model: nn.Module, x: Any, x2: Any = None, *, dense: bool = True) -> Float[Tensor, "M N"] | Operator:
    """⟨∂f_c(x_i)/∂θ, ∂f_e(x'_j)/∂θ⟩ at the present weights, over all trainable parameters.

    Rows and columns are pairs of a sample and an output, output c of sample i in row i k + c.

    Parameters
    ----------
    model
        Any module whose outputs are functions of one sample each.
    x, x2
        Inputs, one sample an entry of the first dimension; without x2 the kernel of x with itself.
    dense
        The matrix; False: the kernel of x with itself as an operator that is never stored, with products, columns and
        diagonal.

    Raises
    ------
    ValueError
        A model as `GaussNewton` refuses it, inputs that are not finite, dense=False with x2.
    """
    check_module(model)
    if x2 is not None and not dense:
        raise ValueError("dense=False is for the kernel of x with itself: leave out x2")
    with full_precision(), torch.inference_mode(False), torch.enable_grad():
        first = _jacobian(model, x)
        if x2 is not None:
            return _across(first, _jacobian(model, x2))
        return first.gram(first.dtype).detach() if dense else JacobianGram(first)


def _jacobian(model: nn.Module, x: Any) -> Jacobian:
    """J of the plain outputs; from layer inputs and backward signals where the model allows it."""
    moving = MovingParameters.of(model, [{"params": list(model.parameters()), "lr": 1.0}])
    inputs = tuple(item for item in as_batch((x,), moving.dtype, moving.device) if isinstance(item, Tensor))
    check_data(inputs, "ntk")
    block = Block(module_outputs(model, inputs), HalfSquare(), None, model, model)
    System([block]).check_samples(moving.values())
    values = moving.values()
    root = torch.ones((), dtype=moving.dtype, device=moving.device)
    if factor_cost(model, values, inputs).exact:
        return factored_jacobian(model, values, inputs, root)
    with torch.no_grad():
        outputs = block.outputs.values(values).shape[1]
    return FunctionJacobian([block.outputs], [root], [outputs], values, _ROWS)


def _across(first: Jacobian, second: Jacobian) -> Float[Tensor, "M N"]:
    """J₁ J₂ᵀ, in blocks of the rows of both."""
    with torch.no_grad():
        return torch.cat(
            [torch.cat([upper @ lower.T for _, lower in second.row_blocks()], dim=1) for _, upper in first.row_blocks()]
        )
