"""All losses by name. A loss is one file here and one line below."""

import re
from collections.abc import Callable
from functools import cache

from torch import Tensor, nn

from widefit.losses.base import OutputLoss
from widefit.losses.custom import Custom
from widefit.losses.huber import Huber
from widefit.losses.logistic import Logistic
from widefit.losses.poisson import Poisson
from widefit.losses.quantile import Quantile
from widefit.losses.softmax import Softmax
from widefit.losses.squared import Squared

# For rules, which sum; and for the optimizer and fine-tuning, which average as torch does.
RULE_LOSSES: dict[str, OutputLoss] = {loss.name: loss for loss in (Squared(), Logistic(), Softmax())}
# Of regressors, for Gauss-Newton; some have numbers, which belong to the name: "huber(1.35)", "quantile(0.9, 0.01)".
_WITH_NUMBERS: dict[str, Callable[..., OutputLoss]] = {kind.name: kind for kind in (Huber, Poisson, Quantile)}
TORCH_LOSSES: dict[str, OutputLoss] = {
    loss.torch_name: loss for loss in (Squared(), Softmax(), Logistic(negative=0.0), Huber())
}


def rule_loss(name: str) -> OutputLoss:
    """Return the loss of a rule by its name, with its numbers in parentheses where it has some.

    Raises
    ------
    ValueError
        An unknown name, or numbers that the loss does not take.
    """
    return RULE_LOSSES[name] if name in RULE_LOSSES else _parsed(name)


@cache
def _parsed(name: str) -> OutputLoss:
    parts = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", name)
    if parts is None or parts[1] not in _WITH_NUMBERS:
        known = ", ".join(map(repr, (*RULE_LOSSES, *_WITH_NUMBERS)))
        raise ValueError(f"loss must be one of {known}, got {name!r}")
    try:
        return _WITH_NUMBERS[parts[1]](*(float(number) for number in (parts[2] or "").split(",") if number.strip()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"loss {name!r} has wrong numbers: {error}") from error


def check_rule_loss(name: object) -> OutputLoss:
    """Return the loss of a rule by its name.

    Raises
    ------
    ValueError
        Something that is no name of such a loss.
    """
    if not isinstance(name, str):
        raise ValueError(f'loss must be a name such as "squared", got {name!r}')
    return rule_loss(name)


def output_loss(loss: str | OutputLoss | Callable[[Tensor, Tensor], Tensor]) -> OutputLoss:
    """Return the mean-reduced loss of a name, of a loss module of torch, or of any callable; a loss is itself.

    Raises
    ------
    ValueError
        An unknown name, something that cannot be called, a module that does not average over samples.
    """
    if isinstance(loss, str):
        if loss not in TORCH_LOSSES:
            raise ValueError(f"loss must be one of {', '.join(map(repr, TORCH_LOSSES))} or a callable, got {loss!r}")
        return TORCH_LOSSES[loss]
    if isinstance(loss, OutputLoss):
        return loss
    if not callable(loss):
        raise ValueError(f"loss must be a name or a callable(outputs, targets), got {type(loss).__name__}")
    if isinstance(loss, nn.Module):
        _refuse_reduction(loss)
        for kind in (Squared, Softmax, Logistic, Huber):
            found = kind.of_module(loss)
            if found is not None:
                return found
    return Custom(loss)


def _refuse_reduction(module: nn.Module) -> None:
    reduction = getattr(module, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(
            f"loss must be the mean over samples: {type(module).__name__} has reduction={reduction!r}; make it with "
            'reduction="mean"'
        )
