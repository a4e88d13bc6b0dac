"""What all losses promise: values, gradients, curvature, means, targets; and which of them stands for what is given."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss, mean_poisson_deviance
from torch import nn
from torch.nn import functional

import widefit
from widefit.gram.jacobian import apply_root_transposed
from widefit.losses.base import OutputLoss
from widefit.losses.custom import Custom
from widefit.losses.envelopes import Envelope
from widefit.losses.family import RULE_LOSSES, TORCH_LOSSES, check_rule_loss, output_loss, rule_loss
from widefit.losses.huber import Huber
from widefit.losses.logistic import Logistic
from widefit.losses.poisson import Poisson
from widefit.losses.quantile import Quantile
from widefit.losses.softmax import Softmax
from widefit.losses.squared import Squared

FAMILY: dict[str, OutputLoss] = {
    "squared": Squared(),
    "huber": Huber(0.7),
    "poisson": Poisson(),
    "quantile": Quantile(0.9, 0.3),
    "median": Quantile(0.5, 1e-3),
    "logistic of signs": Logistic(),
    "logistic of probabilities": Logistic(negative=0.0),
    "softmax": Softmax(),
    "envelope of logistic": Envelope(Logistic(negative=0.0), 0.05),
    "envelope of softmax": Envelope(Softmax(), 0.05),
    "custom": Custom(nn.PoissonNLLLoss()),
}


def targets_for(loss: OutputLoss, raw: torch.Tensor) -> torch.Tensor:
    """Targets that the loss takes, from normal numbers."""
    inner = loss.loss if isinstance(loss, Envelope) else loss
    if isinstance(inner, Softmax):
        return torch.softmax(raw, dim=1)
    if isinstance(inner, Logistic):
        return torch.sign(raw) if inner.negative else torch.sigmoid(raw)
    return raw.exp() if isinstance(inner, Custom | Poisson) else raw


@st.composite
def points(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of several sizes and raw targets."""
    samples, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 8.0]))
    return tuple(torch.randn(2, samples, outputs, generator=generator, dtype=torch.float64) * torch.tensor([scale, 1.0])
                 [:, None, None])  # fmt: skip


@pytest.mark.parametrize("loss", FAMILY.values(), ids=FAMILY)
class TestEveryLoss:
    """A new loss joins by its line in FAMILY."""

    @given(points())
    @settings(max_examples=25)
    def test_gradients_are_those_of_the_values(self, loss: OutputLoss, point) -> None:
        outputs, raw = point
        targets = targets_for(loss, raw)
        live = outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss.values(live, targets).sum(), live)
        torch.testing.assert_close(loss.gradients(outputs, targets), slope, rtol=1e-6, atol=1e-7)

    @given(points())
    @settings(max_examples=25)
    def test_the_local_problem_has_the_gradient_and_the_curvature(self, loss: OutputLoss, point) -> None:
        outputs, raw = point
        targets = targets_for(loss, raw)
        local = loss.local(outputs, targets)
        gradient = loss.gradients(outputs, targets)
        torch.testing.assert_close(apply_root_transposed(local.root, local.residual), gradient, rtol=1e-8, atol=1e-9)
        root = local.root if local.root.ndim == 3 else torch.diag_embed(local.root.expand(outputs.shape))
        largest = torch.linalg.eigvalsh(root @ root.mT).max()
        # The bound that step sizes rest on; curvature that is raised for being flat stays below it too.
        assert float(largest) <= loss.curvature * (1 + 1e-4)

    @given(points())
    @settings(max_examples=25)
    def test_the_mean_is_the_weighted_sum(self, loss: OutputLoss, point) -> None:
        outputs, raw = point
        targets = targets_for(loss, raw)
        values = loss.values(outputs, targets)
        mean = loss.value(outputs, targets)
        torch.testing.assert_close(mean, loss.mean_weight(outputs) * values.sum(), rtol=1e-10, atol=1e-12)
        whole, part = loss.expand(outputs, targets), loss.local(outputs, targets)
        torch.testing.assert_close(
            apply_root_transposed(whole.root, whole.residual),
            loss.mean_weight(outputs) * apply_root_transposed(part.root, part.residual),
        )

    def test_it_is_immutable(self, loss: OutputLoss) -> None:
        with pytest.raises(AttributeError):
            loss.scale = 3.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [*RULE_LOSSES, "huber", "huber(0.3)", "quantile(0.9, 0.01)", "poisson"])
@given(points())
@settings(max_examples=25)
def test_numpy_and_torch_agree(name: str, point) -> None:
    loss = rule_loss(name)
    outputs, raw = point
    targets = targets_for(loss, raw)
    # Terms of the size of rates and targets cancel where a rate is all but right.
    absolute = 1e-11 if name == "poisson" else 1e-300
    for method in (loss.values, loss.gradients):
        found = method(outputs.numpy(), targets.numpy())
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, method(outputs, targets).numpy(), rtol=1e-12, atol=absolute)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sure_and_right_logit_keeps_its_digits(sign: float) -> None:
    outputs, targets = np.array([[50.0 * sign]]), np.array([[sign]])
    assert Logistic().values(outputs, targets)[0] == pytest.approx(np.exp(-50.0), rel=1e-12)
    assert Logistic().gradients(outputs, targets)[0, 0] == pytest.approx(-sign * np.exp(-50.0), rel=1e-12)
    far = np.array([[1e4 * sign, 0.0]])
    assert np.isfinite(Logistic().values(far, np.full((1, 2), -sign))).all()
    assert np.isfinite(Softmax().values(far, np.array([[1.0, 0.0]]))).all()


@pytest.mark.parametrize(
    ("module", "loss"),
    [
        (nn.MSELoss(), Squared()),
        (nn.HuberLoss(delta=0.3), Huber(0.3)),
        (nn.BCEWithLogitsLoss(), Logistic(negative=0.0)),
        (nn.CrossEntropyLoss(), Softmax()),
    ],
)
def test_modules_of_torch_are_recognized(module: nn.Module, loss: OutputLoss) -> None:
    found = output_loss(module)
    assert found == loss
    outputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = targets_for(loss, outputs.flip(0))
    torch.testing.assert_close(found.value(outputs, targets), module(outputs, targets))


@pytest.mark.parametrize(
    "module",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)),
        nn.SmoothL1Loss(beta=0.5),
    ],
)
def test_other_means_are_taken_as_they_are(module: nn.Module) -> None:
    found = output_loss(module)
    assert isinstance(found, Custom)
    outputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.softmax(outputs.flip(0), dim=1)
    torch.testing.assert_close(found.value(outputs, targets), module(outputs, targets))
    local, live = found.expand(outputs, targets), outputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(module(live, targets), live)
    torch.testing.assert_close(apply_root_transposed(local.root, local.residual), slope)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.MSELoss(reduction="sum"), "MSELoss has reduction='sum'"),
        (nn.PoissonNLLLoss(reduction="none"), "PoissonNLLLoss has reduction='none'"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "CrossEntropyLoss with weight averages over weights"),
        (nn.CrossEntropyLoss(ignore_index=0), "CrossEntropyLoss with ignore_index"),
        ("hinge", "loss must be one of 'mse', 'cross_entropy', 'bce', 'huber' or a callable, got 'hinge'"),
    ],
)
def test_what_is_no_mean_over_samples_is_refused(loss, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        output_loss(loss)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (Logistic(), np.array([[1.0], [0.5]]), r'y must be ±1 for loss="logistic", got \[0.5\] in row 1'),
        (Softmax(), np.array([[1.0, 0], [0.2, 0.2]]), r'sum 1 for loss="softmax", got \[0.2, 0.2\] in row 1'),
        (Softmax(), np.array([[-0.5, 1.5], [0, 1]]), "in row 0"),
    ],
)
def test_rows_that_are_no_targets_are_named(loss: OutputLoss, targets: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss.check(targets)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("bce", torch.tensor([[0.0], [-1.0]]), r'targets must be numbers between 0 and 1 for loss="bce".* in row 1'),
        ("cross_entropy", torch.tensor([[0.5, 0.5], [1.0, 1.0]]), r'for loss="cross_entropy", got \[1.0, 1.0\] in row'),
        ("cross_entropy", torch.tensor([0, 7]), "0 … 7, the first of those outside in row 1"),
    ],
)
def test_targets_of_the_optimizer_are_checked_row_by_row(name: str, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TORCH_LOSSES[name].value(torch.zeros(2, targets.shape[-1] if targets.ndim > 1 else 2), targets)


def test_probabilities_may_be_rounded() -> None:
    shares = torch.softmax(torch.randn(500, 40, generator=torch.Generator().manual_seed(2)), dim=1)
    assert torch.isfinite(Softmax().value(torch.zeros(500, 40), shares))


def test_unknown_losses_of_rules() -> None:
    with pytest.raises(
        ValueError,
        match="loss must be one of 'squared', 'logistic', 'softmax', 'huber', 'poisson', 'quantile', got 'mse'",
    ):
        check_rule_loss("mse")
    for wrong in (None, 3, Squared()):
        with pytest.raises(ValueError, match='loss must be a name such as "squared", got'):
            check_rule_loss(wrong)


class OfShape(nn.Module):
    """Outputs of any shape from a linear layer."""

    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(3, int(np.prod(shape)), dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).reshape(len(x), *self.shape)


def inputs(samples: int = 8) -> torch.Tensor:
    return torch.randn(samples, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "given_shape"), [((), (8,)), ((), (8, 1)), ((1,), (8,)), ((2, 5), (8, 2, 5)), ((2, 1, 5), (8, 2, 5))]
)
@pytest.mark.parametrize("loss", ["mse", nn.MSELoss()], ids=["name", "module"])
def test_targets_in_the_shape_of_the_outputs_but_for_ones(shape, given_shape, loss) -> None:
    torch.manual_seed(0)
    model, x = OfShape(*shape), inputs()
    y = torch.randn(given_shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    optimizer = widefit.GaussNewton(model, loss=loss)
    before = float(functional.mse_loss(model(x).detach(), y.reshape(8, *shape)))
    assert optimizer.evaluate(x, y) == pytest.approx(before, rel=1e-12)
    assert optimizer.step(x, y).loss < before


@pytest.mark.parametrize("loss", ["mse", "huber", "bce"])
def test_transposed_targets_are_refused(loss: str) -> None:
    torch.manual_seed(0)
    model, x = OfShape(2, 5), inputs()
    weight = model.linear.weight.detach().clone()
    with pytest.raises(ValueError, match=r"targets of shape \(8, 5, 2\) do not match outputs of shape \(8, 2, 5\)"):
        widefit.GaussNewton(model, loss=loss).step(x, torch.zeros(8, 5, 2, dtype=torch.float64))
    assert torch.equal(model.linear.weight, weight)
    with pytest.raises(ValueError, match=r"y: targets of shape \(8, 5, 2\) do not match"):
        widefit.finetune(model, x, torch.zeros(8, 5, 2, dtype=torch.float64), loss=loss)


@pytest.mark.parametrize("shape", [(), (1,), (2, 5)])
def test_a_custom_loss_sees_the_shape_of_the_model(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, x, seen = OfShape(*shape), inputs(), set()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(outputs.shape[1:]))
        assert outputs.shape == targets.shape
        return (outputs - targets).square().mean()

    y = torch.randn((8, *shape), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    optimizer, reference = widefit.GaussNewton(model, loss=loss), OfShape(*shape)
    reference.load_state_dict(model.state_dict())
    assert optimizer.step(x, y).loss == pytest.approx(widefit.GaussNewton(reference).step(x, y).loss, rel=1e-6)
    assert seen == {shape}


def test_cross_entropy_of_several_places() -> None:
    torch.manual_seed(0)
    model, x = OfShape(4, 2), inputs()
    y = torch.randint(4, (8, 2), generator=torch.Generator().manual_seed(5))
    optimizer = widefit.GaussNewton(model, loss="cross_entropy")
    before = float(functional.cross_entropy(model(x).detach(), y))
    assert optimizer.evaluate(x, y) == pytest.approx(before, rel=1e-12)
    assert optimizer.step(x, y).loss < before


@given(points(), st.floats(0.01, 0.99))
@settings(max_examples=50)
def test_parabolas_lie_above_losses_with_kinks_and_above_the_softmax_loss(point, level: float) -> None:
    outputs, raw = point
    for loss in (Quantile(level, 0.05), Huber(0.3), Softmax()):
        targets = targets_for(loss, raw)
        local = loss.separable(outputs, targets)
        shift = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        bound = loss.values(outputs, targets) + (local.root * local.residual * shift).sum(1)
        bound += 0.5 * (local.root * shift).square().sum(1)
        curved = 0.5 * 2 * shift.square().sum(1) if isinstance(loss, Softmax) else 0.0
        # The softmax loss is bounded by its curvature near the point, and by the largest one farther away.
        assert bool((loss.values(outputs + shift, targets) <= bound + curved + 1e-9).all())


def test_the_separable_softmax_majorizes_its_hessian() -> None:
    outputs = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    targets = torch.softmax(outputs.flip(0), dim=1)
    full, apart = Softmax().local(outputs, targets), Softmax().separable(outputs, targets)
    difference = torch.diag_embed(apart.root**2) - full.root @ full.root.mT
    assert float(torch.linalg.eigvalsh(difference).min()) > -1e-6
    torch.testing.assert_close(apart.root * apart.residual, Softmax().gradients(outputs, targets))


def test_the_quantile_loss_is_that_of_scikit_learn() -> None:
    y, f = np.random.default_rng(0).standard_normal((2, 50))
    for level in (0.1, 0.5, 0.9):
        found = Quantile(level, 1e-9).values(f[:, None], y[:, None]).mean()
        assert found == pytest.approx(mean_pinball_loss(y, f, alpha=level), rel=1e-6)
    counts = np.random.default_rng(0).poisson(1.5, 50).astype(float)
    found = 2 * Poisson().values(f[:, None], counts[:, None]).mean()
    assert found == pytest.approx(mean_poisson_deviance(counts, np.exp(f)), rel=1e-9)
    assert np.isfinite(Poisson().values(np.full((1, 1), 1e5), np.ones((1, 1)))).all()


@pytest.mark.parametrize(
    "name", ["quantile(2, 0.1)", "quantile(0.5, 0)", "huber(-1)", "huber(1, 2)", "poisson(1)", "l1"]
)
def test_names_with_wrong_numbers(name: str) -> None:
    with pytest.raises(ValueError, match="loss"):
        check_rule_loss(name)
