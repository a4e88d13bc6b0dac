"""Objects that docs/extending.md writes, each held to dense float64 mathematics or to its built-in counterpart."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from gram.operator_case import OperatorCase, rows
from problems import NAMES, DenseReference, make
from torch import Tensor, nn

import widefit
from widefit.gram import DenseGram, Operator
from widefit.losses import Custom
from widefit.losses.family import RULE_LOSSES
from widefit.rules import GaussNewton, GradientDescent
from widefit.solvers import BlockCG, Cholesky
from widefit.trackers import Dense, FirePattern, Update

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@cache
def example(title: str) -> SimpleNamespace:
    """Names that the example below a heading leaves behind."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1]
    block = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    names = {"__name__": "__main__"}
    # One example registers a loss, in this process.
    with contextlib.redirect_stdout(io.StringIO()), patch.dict(RULE_LOSSES):
        exec(compile(block[1], f"<{title}>", "exec"), names)
    return SimpleNamespace(**names)


class TestRule:
    @pytest.fixture
    def page(self) -> SimpleNamespace:
        return example("A rule")

    @pytest.mark.parametrize("name", [name for name in NAMES if name not in ("nothing fires", "huge", "tiny")])
    def test_steps_are_those_of_autograd(self, page, name: str) -> None:
        problem = make(name, torch.float64)
        network, expected = problem.fresh(), problem.fresh()
        x, y = torch.from_numpy(problem.inputs), torch.from_numpy(problem.targets)
        losses = []
        for _ in range(5):
            expected.weight.grad = None
            half = 0.5 * (expected(x) - y).square().sum()
            half.backward()
            losses.append(2 * half.item() / len(x))
            with torch.no_grad():
                expected.weight -= half / expected.weight.grad.square().sum() * expected.weight.grad
        history = widefit.train(network, x, y, rule=page.Polyak(), max_iter=5, tol=0)
        np.testing.assert_allclose(history.losses[:5], losses, rtol=1e-8)
        torch.testing.assert_close(network.weight, expected.weight, rtol=1e-7, atol=1e-9)

    def test_nothing_to_move_is_no_step(self, page) -> None:
        problem = make("nothing fires", torch.float64)
        network = problem.fresh()
        widefit.train(network, problem.inputs, problem.targets, rule=page.Polyak(), max_iter=2)
        assert torch.equal(network.weight, problem.network.weight)

    def test_it_gets_where_gradient_descent_does(self, page) -> None:
        assert page.history.stop_reason == "tol"
        network = widefit.nn.TwoLayer(in_features=5, width=2048, seed=0)
        plain = widefit.train(network, page.X, page.y, rule=GradientDescent(), max_iter=300, tol=1e-4)
        assert len(page.history) < len(plain)

    def test_a_run_resumes_to_the_same_bits(self, page, tmp_path: Path) -> None:
        problem = make("digits", torch.float32)
        straight, resumed = problem.fresh(), problem.fresh()
        data = (problem.inputs, problem.targets)
        settings = {"rule": page.Polyak(), "tol": 0}
        widefit.train(straight, *data, max_iter=6, **settings)
        path = tmp_path / "state"
        widefit.train(resumed, *data, max_iter=3, callbacks=[widefit.files.Checkpoint(path)], **settings)
        widefit.train(resumed, *data, max_iter=6, resume=widefit.files.read_checkpoint(path), **settings)
        assert torch.equal(straight.weight, resumed.weight)

    def test_a_ridge_is_refused(self, page) -> None:
        with pytest.raises(ValueError, match="alpha must be 0"):
            widefit.train(page.network, page.X, page.y, rule=page.Polyak(), alpha=1.0)


class TestTracker:
    @pytest.fixture
    def page(self) -> SimpleNamespace:
        return example("A tracker")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("name", NAMES)
    def test_updates_follow_the_reference(self, page, name: str, dtype: torch.dtype) -> None:
        problem = make(name, dtype)
        network, reference = problem.fresh(), DenseReference.of(problem)
        run = page.Alive().start(network, problem.inputs)
        generator = np.random.default_rng(1)
        samples, outputs = problem.targets.shape
        size = 0.03 * np.sqrt(reference.width) / max(1.0, float(np.abs(problem.inputs).max())) ** 2
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        for _ in range(3):
            update = Update(size * generator.standard_normal((samples, outputs)), np.zeros(outputs))
            before = np.concatenate([pattern.dense() for pattern in run.patterns()])
            trial = run.propose(update, None)
            run.commit(trial)
            reference.step(update.g, update.shrink)
            expected = reference.outputs()
            atol = tolerance * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(run.outputs, expected, rtol=tolerance, atol=atol)
            fires = np.concatenate([pattern.dense() for pattern in run.patterns()])
            norms = np.linalg.norm(reference.weight, axis=1)[:, None] * np.linalg.norm(reference.inputs, axis=1)
            slack = 50 * torch.finfo(dtype).eps * (norms + abs(reference.threshold))
            margin = np.abs(reference.preactivations() - reference.threshold)
            assert not np.any((fires != reference.fires()) & (margin > slack))
            assert trial.flips == np.count_nonzero(before != fires)
        scale = np.abs(reference.weight).max()
        np.testing.assert_allclose(network.weight.detach(), reference.weight, atol=200 * torch.finfo(dtype).eps * scale)
        assert run.report().firing_pairs == np.count_nonzero(fires)

    @pytest.mark.parametrize("rule", [GaussNewton(), widefit.rules.SGD(batch_size=8, seed=0)], ids=["gn", "sgd"])
    def test_training_is_that_of_the_dense_tracker(self, page, rule) -> None:
        losses = []
        for tracker in (page.Alive(), Dense()):
            problem = make("three outputs", torch.float64)
            data = (problem.inputs, problem.targets)
            losses.append(widefit.train(problem.fresh(), *data, rule=rule, tracker=tracker, max_iter=4).losses)
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-8)

    def test_it_looks_at_few_pairs(self, page) -> None:
        problem = make("digits", torch.float32)
        run = page.Alive().start(problem.fresh(), problem.inputs)
        before = run.report().pairs_evaluated
        run.commit(run.propose(Update.none(*problem.targets.shape), None))
        fires = problem.network.weight.detach().numpy() @ problem.inputs.T > run.layer.threshold
        alive = np.count_nonzero(fires.any(axis=1))
        assert run.report().pairs_evaluated - before == alive * len(problem.inputs) < fires.size

    def test_a_ridge_is_refused(self, page) -> None:
        with pytest.raises(ValueError, match="does not follow a ridge"):
            widefit.train(page.network, page.X, page.y, tracker=page.Alive(), alpha=1.0)

    @pytest.mark.parametrize("samples", [1, 31, 32, 33, 100])
    @pytest.mark.parametrize("probability", [0.0, 0.02, 0.5, 1.0])
    def test_patterns_of_matrices(self, samples: int, probability: float) -> None:
        fires = np.random.default_rng(0).random((50, samples)) < probability
        chunk = widefit.trackers.Chunk(7, 57, 0)
        pattern = FirePattern.of(chunk, fires)
        np.testing.assert_array_equal(pattern.dense(), fires)
        np.testing.assert_array_equal(pattern.fired(9), np.flatnonzero(fires[2]))
        some = np.array([1, 30, 49])
        whole = np.zeros_like(fires)
        whole[some] = fires[some]
        np.testing.assert_array_equal(FirePattern.of(chunk, fires[some], some).dense(), whole)


class TestSolver:
    @pytest.fixture
    def page(self) -> SimpleNamespace:
        return example("A solver")

    @pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
    @pytest.mark.parametrize("kind", ["random", "one sample", "duplicates", "zeros", "rank deficient", "huge", "tiny"])
    def test_damped_systems(self, page, kind: str, damping: float) -> None:
        factor = rows(kind, 9)
        matrix = factor @ factor.T
        damping *= max(1.0, float(matrix.diagonal().mean())) if kind == "huge" else 1.0
        rhs = torch.randn(len(matrix), 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        expected = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), rhs)
        for columns in (rhs, rhs[:, 0]):
            found = page.MinRes().solve(DenseGram(matrix), columns, damping)
            wanted = expected.reshape(len(matrix), -1)[:, : columns[0].numel()].reshape(columns.shape)
            torch.testing.assert_close(found.value, wanted, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
            torch.testing.assert_close(found.image, matrix @ found.value)
            assert found.residual_norm < 1e-7
            assert found.iterations >= columns[0].numel()

    def test_a_singular_system_gets_its_least_squares_solution(self, page) -> None:
        factor = rows("rank deficient", 9)
        matrix = factor @ factor.T
        rhs = matrix @ torch.ones(len(matrix), dtype=torch.float64)
        found = page.MinRes().solve(DenseGram(matrix), rhs, 0.0)
        torch.testing.assert_close(matrix @ found.value, rhs)

    def test_training_is_that_of_cholesky(self, page) -> None:
        problem = make("digits", torch.float64)
        data = (problem.inputs, problem.targets)
        histories = [
            widefit.train(problem.fresh(), *data, solver=solver, tol=1e-12, max_iter=4)
            for solver in (page.MinRes(), Cholesky())
        ]
        np.testing.assert_allclose(histories[0].losses, histories[1].losses, rtol=1e-4)
        assert histories[0][-1].solver == "minres"

    @pytest.mark.parametrize("known", [False, True], ids=["of the page", "BlockCG"])
    def test_the_optimizer_takes_it(self, page, known: bool) -> None:
        solver = BlockCG(tolerance=1e-12) if known else page.MinRes()
        x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y = torch.sin(3 * x[:, :1]) * x[:, 1:]
        losses = []
        for chosen in (solver, "cholesky"):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(2, 30), nn.Tanh(), nn.Linear(30, 1)).double()
            optimizer = widefit.GaussNewton(model, solver=chosen, damping=1e-3)
            losses.append([optimizer.step(x, y).loss for _ in range(3)])
            assert optimizer.plan is not None
            name = chosen if isinstance(chosen, str) else chosen.name
            assert dict(row[:2] for row in optimizer.plan.rows())["solver"] == name
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


class TestOperator(OperatorCase):
    def make(self, kind: str, dtype: torch.dtype) -> tuple[Operator, Tensor]:
        inputs = rows(kind, 3)
        difference = inputs[:, None] - inputs[None]
        operator = example("An operator").GaussianKernel(inputs.to(dtype), 0.7, rows=4)
        return operator, torch.exp(-difference.square().sum(-1) / (2 * 0.7**2))

    def test_the_page_solves_its_system(self) -> None:
        page = example("An operator")
        matrix = page.kernel.dense()
        expected = torch.linalg.solve(matrix + 1e-4 * torch.eye(len(matrix), dtype=matrix.dtype), page.y)
        torch.testing.assert_close(page.found.image, matrix @ expected, rtol=0, atol=1e-5)


class TestLoss:
    @pytest.fixture
    def page(self, monkeypatch) -> SimpleNamespace:
        page = example("A loss")
        monkeypatch.setitem(RULE_LOSSES, "poisson", page.Poisson())
        return page

    def test_values_gradients_and_curvature(self, page) -> None:
        generator = torch.Generator().manual_seed(0)
        outputs = 2 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
        targets = torch.poisson(outputs.exp(), generator=generator)
        loss, peer = page.Poisson(), Custom(nn.PoissonNLLLoss(reduction="mean"))
        # torch averages over all numbers, Custom over samples.
        torch.testing.assert_close(loss.value(outputs, targets), peer.value(outputs, targets))
        torch.testing.assert_close(loss.gradients(outputs, targets), 3 * peer.gradients(outputs, targets))
        root = peer.local(outputs, targets).root
        torch.testing.assert_close(
            torch.diag_embed(loss.local(outputs, targets).root.square()).diagonal(dim1=1, dim2=2).sort(1).values,
            3 * (root @ root.mT).diagonal(dim1=1, dim2=2).sort(1).values,
            rtol=1e-6,
            atol=1e-3 * float(outputs.exp().max()),
        )
        local = loss.local(outputs, targets)
        torch.testing.assert_close(local.root * local.residual, loss.gradients(outputs, targets))
        for method in (loss.values, loss.gradients):
            np.testing.assert_allclose(method(outputs.numpy(), targets.numpy()), method(outputs, targets).numpy())

    def test_the_optimizer_takes_the_steps_of_torchs_module(self, page) -> None:
        losses = []
        for loss in (page.Poisson(), nn.PoissonNLLLoss()):
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
            optimizer = widefit.GaussNewton(model, loss=loss)
            losses.append([optimizer.step(page.X, page.counts).loss for _ in range(6)])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        assert losses[0][-1] < losses[0][0]

    def test_a_gradient_step_is_that_of_autograd(self, page) -> None:
        problem = make("three outputs", torch.float64)
        network, expected = problem.fresh(), problem.fresh()
        x, y = torch.from_numpy(problem.inputs), torch.from_numpy(np.abs(problem.targets).round())
        (nn.functional.poisson_nll_loss(expected(x), y, reduction="sum")).backward()
        widefit.train(network, x, y, rule=GradientDescent(0.01), loss="poisson", max_iter=1, tol=0)
        torch.testing.assert_close(network.weight, expected.weight - 0.01 * expected.weight.grad)

    def test_finetuning_takes_it(self, page) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)).double()
        losses = [
            widefit.finetune(model, page.X, page.counts, loss=loss, layers="readout").finetuning_.history.losses
            for loss in (page.Poisson(), nn.PoissonNLLLoss())
        ]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)

    def test_targets_are_checked(self, page) -> None:
        y = page.counts.clone()
        y[3] = -1
        with pytest.raises(ValueError, match=r'counts, none below 0, for loss="poisson", got \[-1.0\] in row 3'):
            widefit.GaussNewton(page.model, loss=page.Poisson()).step(page.X, y)


class TestCallback:
    @pytest.fixture
    def page(self) -> SimpleNamespace:
        return example("A callback")

    def test_it_restores_the_network_of_the_best_step(self, page) -> None:
        metrics = [info.metric for info in page.history[1:]]
        assert page.best.metric == min(metrics) < metrics[-1]
        assert page.best.number == 1 + metrics.index(min(metrics))
        assert page.error(page.network) == page.best.metric
        straight = widefit.nn.TwoLayer(in_features=5, width=2048, seed=0)
        widefit.train(straight, page.X[:100], page.y[:100], rule="gradient-descent", max_iter=page.best.number)
        assert torch.equal(page.network.weight, straight.weight)
