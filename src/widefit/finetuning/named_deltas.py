"""Several deltas on one model, of which one acts at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from widefit.finetuning.delta import LowRankDelta, check_fits


class NamedDeltas:
    """A model that changes from one fine-tuning to another in the time that U Vᵀ takes.

    Parameters
    ----------
    model
        The module that was fine-tuned. Its own weights change with `use`; those it was given with are kept once, for
        the layers that any of the deltas adapts.
    deltas
        By name.

    Attributes
    ----------
    active
        Name of the delta that acts; None: the model is as it was given.

    Raises
    ------
    ValueError
        A delta that does not fit the model.
    """

    def __init__(self, model: nn.Module, deltas: Mapping[str, LowRankDelta]):
        self.active: str | None = None
        self._model = model
        self._deltas = dict(deltas)
        for delta in deltas.values():
            check_fits(delta, model)
        names = dict.fromkeys(name for delta in deltas.values() for name in (*delta.layers, *delta.whole))
        self._given: dict[str, dict[str, Tensor]] = {
            name: {kind: value.detach().clone() for kind, value in model.get_submodule(name).named_parameters()}
            for name in names
        }

    def use(self, name: str | None) -> nn.Module:
        """Put a delta in force, or none, and return the model.

        Raises
        ------
        ValueError
            No delta of that name.
        """
        if name is not None and name not in self._deltas:
            raise ValueError(f"there is no delta {name!r}; there are {', '.join(map(repr, self._deltas)) or 'none'}")
        with torch.no_grad():
            for layer, tensors in self._given.items():
                for kind, value in tensors.items():
                    self._model.get_submodule(layer).get_parameter(kind).copy_(value)
        if name is not None:
            self._deltas[name].add_to(self._model)
        self.active = name
        return self._model
