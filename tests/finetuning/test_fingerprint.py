"""Words for settings: the same for what is made anew, other ones for what is other."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, smooth_l1_loss

from widefit.finetuning.aim import Aim
from widefit.finetuning.fingerprint import fingerprint, name_of
from widefit.losses.custom import Custom
from widefit.losses.envelopes import Envelope
from widefit.losses.huber import Huber
from widefit.losses.softmax import Softmax


class Own:
    def __init__(self, size: float):
        self.size = size

    def loss(self) -> float:
        return self.size


MADE: dict[str, tuple[Any, Any]] = {
    "functions": (lambda: Custom(smooth_l1_loss), lambda: Custom(mse_loss)),
    "partial functions": (
        lambda: Custom(partial(smooth_l1_loss, beta=2.0)),
        lambda: Custom(partial(smooth_l1_loss, beta=3.0)),
    ),
    "objects": (lambda: Own(1.0), lambda: Own(2.0)),
    "methods": (lambda: Own(1.0).loss, lambda: Own(2.0).loss),
    "modules": (lambda: Custom(nn.HuberLoss(delta=2.0)), lambda: Custom(nn.HuberLoss(delta=3.0))),
    "weights": (lambda: nn.CrossEntropyLoss(torch.ones(2)), lambda: nn.CrossEntropyLoss(torch.zeros(2))),
    "arrays": (lambda: {"a": np.arange(2000)}, lambda: {"a": np.arange(2000)[::-1].copy()}),
    "losses": (lambda: Envelope(Softmax(), 0.1), lambda: Envelope(Softmax(), 0.2)),
    "losses of two kinds": (lambda: Huber(), lambda: Softmax()),
    "aims": (lambda: Aim(Custom(mse_loss)), lambda: Aim(Custom(mse_loss), following=True)),
    "numbers": (lambda: (1, "a", None), lambda: (1, "a", 0)),
}


@pytest.mark.parametrize("kind", MADE)
def test_names_are_those_of_settings(kind: str) -> None:
    make, other = MADE[kind]
    assert name_of(make()) == name_of(make())
    assert name_of(make()) != name_of(other())
    assert " 0x" not in name_of(make())


def test_a_hash_is_of_every_part() -> None:
    model = nn.Linear(2, 2)
    data = [torch.ones(3), None, torch.ones(3, dtype=torch.bfloat16)]
    whole = fingerprint("a", data, model)
    assert fingerprint("a", data, model) == whole
    others = [
        fingerprint("b", data, model),
        fingerprint("a", data[:1], model),
        fingerprint("a", [torch.ones(3, 1), *data[1:]], model),
        fingerprint("a", data, nn.Linear(2, 2)),
    ]
    assert len({whole, *others}) == 5
