"""Moreau envelopes against the definition."""

import pytest
import torch

from widefit.losses.envelopes import Envelope
from widefit.losses.logistic import Logistic
from widefit.losses.softmax import Softmax


def cases():
    generator = torch.Generator().manual_seed(0)
    for scale in (0.0, 1.0, 30.0, 1e4):
        outputs = scale * torch.randn(12, 4, generator=generator, dtype=torch.float64)
        shares = torch.softmax(torch.randn(12, 4, generator=generator, dtype=torch.float64), dim=1)
        yield Envelope(Softmax(), 0.01), Softmax(), outputs, torch.arange(12) % 4
        yield Envelope(Softmax(), 1.0), Softmax(), outputs, shares
        yield Envelope(Logistic(negative=0.0), 0.01), Logistic(negative=0.0), outputs, (shares > 0.25).double()


@pytest.mark.parametrize("case", list(cases()))
def test_value_slope_and_proximal_point(case):
    envelope, loss, outputs, targets = case
    local = envelope.expand(outputs, targets)
    near = outputs - local.residual / local.root
    count = len(outputs) if isinstance(loss, Softmax) else outputs.numel()

    def inner(t: torch.Tensor) -> torch.Tensor:
        return loss.value(t, targets) + 0.5 * envelope.curvature * (t - outputs).square().sum() / count

    slope = torch.func.grad(inner)(near)  # zero at the minimum over t
    assert float(slope.abs().max()) * count < 1e-6
    assert float(envelope.value(outputs, targets)) == pytest.approx(float(inner(near)), rel=1e-9, abs=1e-12)
    assert float(envelope.value(outputs, targets)) <= float(loss.value(outputs, targets)) + 1e-12
    # B r̃ is the slope of the envelope in the outputs.
    if float(outputs.abs().max()) < 100:
        eps = 1e-5
        direction = torch.randn_like(outputs)
        ahead, behind = (envelope.value(outputs + s * eps * direction, targets) for s in (1, -1))
        expected = float((local.root * local.residual * direction).sum())
        assert float((ahead - behind) / (2 * eps)) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_a_sure_and_wrong_sample_moves_by_a_finite_amount():
    outputs = torch.tensor([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]], dtype=torch.float64)
    local = Envelope(Softmax(), 0.01).expand(outputs, torch.tensor([1, 1]))
    shift = -(local.residual / local.root)
    assert 15 < float(shift[0, 1]) < 60  # wrong: its class rises
    assert float(shift[1].abs().max()) < 1e-6  # right: it stays
