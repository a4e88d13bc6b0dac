"""Every form of J against one backward pass an output: stored, differentiated on demand, layer inputs and signals."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from widefit.gram.jacobian import DenseJacobian, FunctionJacobian, JacobianGram, PerSample
from widefit.gram.recording import factor_cost, factored_jacobian
from widefit.sketches import CountSketch


class Tokens(nn.Module):
    """Embedding with padding, a layer called twice, normalization, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.mix, self.norm, self.out = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.randn(3))

    def forward(self, tokens):
        hidden = torch.tanh(self.mix(self.embed(tokens)))
        hidden = hidden + torch.relu(self.mix(hidden))
        return self.out(self.norm(hidden).mean(dim=1)) * self.scale


def convolutional() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)]
    return nn.Sequential(*layers)


def one_dimensional() -> nn.Module:
    layers = [nn.Conv1d(2, 4, 3, dilation=2, padding=2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2)]
    return nn.Sequential(*layers).eval()


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 1))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2))


def in_place() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 6, bias=False), nn.Tanh(), nn.Linear(6, 1)
    )


CASES = {
    "mlp": (in_place, lambda: torch.randn(9, 5)),
    "mlp-3-outputs": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), lambda: torch.randn(9, 5)),
    "sequence": (sequence, lambda: torch.randn(6, 5, 4)),
    "conv2d": (convolutional, lambda: torch.randn(4, 2, 5, 5)),
    "conv1d": (one_dimensional, lambda: torch.randn(4, 2, 5)),
    "grouped": (grouped, lambda: torch.randn(4, 2, 5, 5)),
    "tokens": (Tokens, lambda: torch.randint(0, 11, (5, 4))),
    "one-sample": (lambda: nn.Linear(3, 1), lambda: torch.randn(1, 3)),
    "zero-input": (in_place, lambda: torch.zeros(4, 5)),
    "duplicates": (in_place, lambda: torch.randn(1, 5).repeat(6, 1)),
}  # fmt: skip
ROOTS = ["scalar", "diagonal", "matrix"]


def make_root(kind: str, n: int, k: int) -> torch.Tensor:
    shape = {"scalar": (), "diagonal": (n, k), "matrix": (n, k, k)}[kind]
    return 0.5 + torch.rand(shape, dtype=torch.float64)


def reference(model: nn.Module, x: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """BᵀJ, one backward pass an output."""
    outputs = model(x).reshape(len(x), -1)
    parameters = list(model.parameters())
    rows = []
    for value in outputs.reshape(-1):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    jacobian = torch.stack(rows).reshape(*outputs.shape, -1)
    full = root if root.ndim == 3 else torch.diag_embed(root.expand(outputs.shape))
    return torch.einsum("nab,nap->nbp", full, jacobian).flatten(0, 1)


def build(form: str, model: nn.Module, x: torch.Tensor, root: torch.Tensor):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    if form == "factors":
        return factored_jacobian(model, parameters, (x,), root)
    k = model(x).reshape(len(x), -1).shape[1]

    def function(values, sample):
        return functional_call(model, values, (sample[None],)).reshape(-1)

    size = sum(p.numel() for p in parameters.values())
    row_bytes = 10**8 if form == "function" else 3 * 8 * size * 2 * k
    jacobian = FunctionJacobian([PerSample(function, (x,))], [root], [k], parameters, row_bytes)
    return jacobian.dense() if form == "dense" else jacobian


@pytest.mark.parametrize("form", ["dense", "function", "function-chunked", "factors"])
@pytest.mark.parametrize("root_kind", ROOTS)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_backward_passes(case: str, root_kind: str, form: str) -> None:
    torch.manual_seed(0)
    model, x = CASES[case][0]().double(), CASES[case][1]()
    x = x.double() if x.is_floating_point() else x
    n, k = len(x), model(x).reshape(len(x), -1).shape[1]
    root = make_root(root_kind, n, k)
    expected = reference(model, x, root)
    jacobian = build(form, model, x, root)
    v, u = torch.randn(expected.shape[1], dtype=torch.float64), torch.randn(expected.shape[0], dtype=torch.float64)
    chosen = torch.randperm(n * k)[: max(1, n * k // 2)]
    gram = expected @ expected.T
    close = {"rtol": 1e-9, "atol": 1e-11}
    assert jacobian.shape == tuple(expected.shape)
    torch.testing.assert_close(jacobian.matvec(v), expected @ v, **close)
    torch.testing.assert_close(jacobian.rmatvec(u), expected.T @ u, **close)
    torch.testing.assert_close(jacobian.rows(chosen), expected[chosen], **close)
    torch.testing.assert_close(jacobian.diagonal(), gram.diagonal(), **close)
    torch.testing.assert_close(jacobian.gram(torch.float64), gram, **close)
    torch.testing.assert_close(jacobian.gram_columns(chosen), gram[:, chosen], **close)
    torch.testing.assert_close(torch.cat([block for _, block in jacobian.row_blocks()]), expected, **close)
    sketch = CountSketch(7, expected.shape[1])
    torch.testing.assert_close(jacobian.sketched(sketch), sketch.apply(expected.T), **close)


def test_tiles_cover_what_one_product_does() -> None:
    matrix = torch.randn(1300, 3, dtype=torch.float64)
    torch.testing.assert_close(DenseJacobian(matrix).gram(torch.float64), matrix @ matrix.T)
    narrow = DenseJacobian(matrix.float())
    assert narrow.gram(torch.float64).dtype == torch.float64
    torch.testing.assert_close(narrow.gram(torch.float64), matrix.float().double() @ matrix.float().double().T)


def test_operator_of_a_jacobian() -> None:
    matrix = torch.randn(6, 40, dtype=torch.float64)
    operator = JacobianGram(DenseJacobian(matrix))
    vectors = torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(operator.matvec(vectors), matrix @ matrix.T @ vectors)
    torch.testing.assert_close(operator.dense(), matrix @ matrix.T)
    assert operator.factor.shape == (6, 40)


def test_column_scale_and_two_blocks() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def first(values, sample):
        return functional_call(model, values, (sample,))

    def second(values, sample):
        return first(values, sample).square().sum(dim=0, keepdim=True)

    blocks = [PerSample(first, (x,)), PerSample(second, (x[:4],))]
    roots = [torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)]
    scale = torch.rand(8, dtype=torch.float64)
    jacobian = FunctionJacobian(blocks, roots, [2, 1], parameters, 10**6, scale)
    dense = jacobian.dense().matrix
    plain = FunctionJacobian(blocks, roots, [2, 1], parameters, 10**6).dense().matrix
    torch.testing.assert_close(dense, plain * scale)
    v, u = torch.randn(8, dtype=torch.float64), torch.randn(14, dtype=torch.float64)
    torch.testing.assert_close(jacobian.matvec(v), dense @ v)
    torch.testing.assert_close(jacobian.rmatvec(u), dense.T @ u)
    torch.testing.assert_close(jacobian.gram(torch.float64), dense @ dense.T)
    chosen = torch.tensor([13, 0, 7, 10])
    torch.testing.assert_close(jacobian.rows(chosen), dense[chosen])


class Functional(nn.Module):
    """Uses a layer's weight without calling the layer: no hook can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.layer(x)), self.layer.weight)[:, :1]


def test_hidden_use_of_a_weight_is_noticed() -> None:
    x = torch.randn(5, 4)
    model, plain = Functional(), nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    assert not factor_cost(model, {n: p.detach() for n, p in model.named_parameters()}, (x,)).exact
    assert factor_cost(plain, {n: p.detach() for n, p in plain.named_parameters()}, (x,)).exact
