"""Every operator, as `OperatorCase` has it."""

import numpy as np
import pytest
import torch
from operator_case import OperatorCase, rows
from torch import Tensor, nn
from torch.func import functional_call

from widefit import Residual, pinn
from widefit.gram import CoupledGram, DenseGram, IdenticalBlocks, ImplicitGram, JacobianGram, LayerRows, WeightedGram
from widefit.gram import co_firing as co_firing_gram
from widefit.gram.jacobian import DenseJacobian, FunctionJacobian, PerSample
from widefit.gram.recording import factored_jacobian
from widefit.linalg.sparse_layer_rows import SparseLayerRows
from widefit.nn import SparseRows, TwoLayer
from widefit.optim.system import Block, System
from widefit.optim.tracing import Traces
from widefit.trackers import Dense


def outer(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Rows of J: Σ_t δ_t ⊗ a_t of every layer, side by side."""
    made = [torch.einsum("nkto,nti->nkoi", signals, inputs).flatten(2).flatten(0, 1) for inputs, signals in parts]
    return torch.cat(made, dim=1)


def factors(kind: str, layers: int, outputs: int, positions: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs with a constant among them, and signals, of some layers of different sizes."""
    made = []
    for layer in range(layers):
        inputs = rows(kind, positions * (4 + layer), seed=layer)
        inputs = inputs.view(len(inputs), positions, -1)
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=2)
        signals = rows(kind, outputs * positions * (5 - layer), seed=10 + layer)
        made.append((inputs, signals.view(len(signals), outputs, positions, -1)))
    return made


class TestDenseGram(OperatorCase):
    def make(self, kind, dtype):
        factor = rows(kind, 8)
        matrix = factor @ factor.T
        return DenseGram(matrix.to(dtype), outputs=1 if len(factor) % 2 else 2), matrix


class TestCoFiringGram(OperatorCase):
    dtypes = (torch.float64,)

    def make(self, kind, dtype):
        inputs = rows(kind, 4).numpy()
        network = TwoLayer(4, 40, threshold=0.2, dtype=torch.float64)
        patterns = Dense().start(network, inputs).patterns()
        fires = torch.cat([torch.from_numpy(pattern.dense()) for pattern in patterns]).double()
        similarity = inputs @ inputs.T
        coefficients = network.coefficients()
        expected = torch.from_numpy(similarity) * (fires.T @ (torch.from_numpy(coefficients**2)[:, None] * fires))
        return co_firing_gram(patterns, similarity, coefficients), expected


@pytest.mark.parametrize(("positions", "overlap"), [(1, False), (1, True), (3, False)])
class TestCoupledGram(OperatorCase):
    @pytest.fixture(autouse=True)
    def choose(self, positions, overlap):
        self.positions, self.overlap = positions, overlap

    def make(self, kind, dtype):
        parts = factors(kind, 2, 3, self.positions)
        J = outer(parts)
        layers = [
            LayerRows(inputs[..., :-1].to(dtype), signals.to(dtype), f"{i}.weight", f"{i}.bias")
            for i, (inputs, signals) in enumerate(parts)
        ]
        layers = [layer.with_overlap() for layer in layers] if self.overlap else layers
        return CoupledGram(layers), J @ J.T


class TestWideLayers(OperatorCase):
    """Layers so wide that overlaps of several positions take less than rows of J."""

    def make(self, kind, dtype):
        signals, inputs = rows(kind, 2 * 2 * 50).view(-1, 2, 2, 50), rows(kind, 2 * 60, seed=1).view(-1, 2, 60)
        marks = torch.tensor([1.0, 0.0], dtype=torch.float64)
        bias = torch.einsum("nkto,t->nko", signals, marks).flatten(0, 1)
        J = torch.cat([outer([(inputs, signals)]), bias], dim=1)
        layer = LayerRows(inputs.to(dtype), signals.to(dtype), "w", "b", marks.to(dtype))
        assert layer.overlap_pays(layer)
        return CoupledGram([layer]), J @ J.T


@pytest.mark.parametrize("outputs", [1, 3])
class TestSparseCoupledGram(OperatorCase):
    dtypes = (torch.float64,)

    @pytest.fixture(autouse=True)
    def choose(self, outputs):
        self.outputs = outputs

    def make(self, kind, dtype):
        made, parts = [], []
        for layer in range(2):
            pattern = rows(kind, 30, seed=layer) * (torch.rand(len(rows(kind, 1)), 30) < 0.3)
            inputs = rows(kind, 5, seed=layer + 5)
            sparse = SparseRows.from_dense(pattern.numpy())
            signals = np.random.default_rng(layer).standard_normal((sparse.index.size, self.outputs))
            dense = [torch.from_numpy(sparse.with_values(np.ascontiguousarray(own)).dense()) for own in signals.T]
            parts.append((inputs[:, None], torch.stack(dense, dim=1)[:, :, None]))
            made.append(SparseLayerRows(sparse, signals, (inputs @ inputs.T).numpy(), threads=2))
        J = outer(parts)
        return CoupledGram(made), J @ J.T


@pytest.mark.parametrize("size", [1, 2])
class TestWeightedGram(OperatorCase):
    estimates = True

    @pytest.fixture(autouse=True)
    def choose(self, size):
        self.size = size

    def make(self, kind, dtype):
        factor = torch.cat([rows(kind, 8), rows(kind, 8, seed=1)])
        matrix = factor @ factor.T
        root = torch.randn(len(factor) // self.size, self.size, self.size, dtype=torch.float64)
        B = torch.block_diag(*root)
        return WeightedGram(DenseGram(matrix.to(dtype), outputs=2), root.to(dtype)), B.T @ matrix @ B


class TestIdenticalBlocks(OperatorCase):
    def make(self, kind, dtype):
        factor = rows(kind, 4)
        operator = IdenticalBlocks(JacobianGram(DenseJacobian(factor.to(dtype))), outputs=3)
        return operator, torch.kron(factor @ factor.T, torch.eye(3, dtype=torch.float64))


class TestImplicitGram(OperatorCase):
    estimates = True

    def make(self, kind, dtype):
        factor = torch.cat([rows(kind, 8), rows(kind, 8, seed=1)])
        matrix = factor @ factor.T
        narrow = matrix.to(dtype)
        return ImplicitGram(lambda block: narrow @ block, narrow[::2, ::2], outputs=2), matrix


class TestDenseJacobian(OperatorCase):
    def make(self, kind, dtype):
        J = torch.cat([rows(kind, 20), rows(kind, 20, seed=1)])
        return JacobianGram(DenseJacobian(J.to(dtype)), outputs=2), J @ J.T


class Network(nn.Module):
    """Layers of every kind that has factors, one called twice, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mix = nn.Conv1d(1, 3, 3, padding=1), nn.LayerNorm(3), nn.Linear(3, 3)
        self.out, self.scale = nn.Linear(12, 2, bias=False), nn.Parameter(torch.ones(2))

    def forward(self, x):
        hidden = self.norm(self.conv(x[:, None]).mT)
        hidden = torch.tanh(self.mix(torch.tanh(self.mix(hidden))))
        return self.out(hidden.flatten(1)) * self.scale


def written_out(model: nn.Module, x: Tensor, root: Tensor) -> Tensor:
    """H, one backward pass an output."""
    outputs = root * model(x)
    rows = []
    for value in outputs.reshape(-1):
        found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
        pairs = zip(found, model.parameters(), strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs]))
    J = torch.stack(rows)
    return J @ J.T


@pytest.mark.parametrize("form", ["factors", "function", "sample by sample"])
class TestModules(OperatorCase):
    @pytest.fixture(autouse=True)
    def choose(self, form):
        self.form = form

    def make(self, kind, dtype):
        model, x = Network().double(), rows(kind, 4)
        root = 0.5 + torch.rand(len(x), 2, dtype=torch.float64)
        expected = written_out(model, x, root)
        parameters = {name: p.detach().to(dtype) for name, p in model.named_parameters()}
        x, root = x.to(dtype), root.to(dtype)
        if self.form == "factors":
            return JacobianGram(factored_jacobian(model, parameters, (x,), root), outputs=2), expected

        def function(values, sample):
            return functional_call(model, values, (sample[None],)).reshape(-1)

        known = {}
        outputs = PerSample(function, (x,), None, known)
        if self.form == "sample by sample":
            outputs.vectorizes(parameters)
            known.update(dict.fromkeys(known, False))
        return JacobianGram(FunctionJacobian([outputs], [root], [2], parameters, 10**4), outputs=2), expected


class TestTracedResiduals(OperatorCase):
    dtypes = (torch.float64,)

    def make(self, kind, dtype):
        torch.manual_seed(1)
        model, x = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1)).double(), rows(kind, 2)
        blocks = [Residual(pinn.laplacian, x), Residual(lambda network, point: network(point), x[:2])]
        problem = System([Block.of_residual(model, block) for block in blocks])
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        expansion = problem.expand(problem.outputs(parameters))
        jacobian = problem.traced(parameters, expansion, Traces(), 10**4, 10**9)
        assert jacobian is not None
        J = problem.jacobian(parameters, expansion, 10**9).dense().matrix
        return JacobianGram(jacobian), J @ J.T
