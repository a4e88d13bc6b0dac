"""Steps, stages and what is returned, against dense float64 algebra written out."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from networks import Custom, Encoder, FeedForward, moved_problem, perceptron
from torch import nn
from torch.func import functional_call, jacrev
from torch.utils.data import DataLoader, TensorDataset

import widefit
from widefit.callbacks import Callback
from widefit.finetuning.adapt import _sparse_layers
from widefit.finetuning.blocks import observe
from widefit.finetuning.curvature import StageSolver, operator_of
from widefit.finetuning.rows import Rows
from widefit.finetuning.schedule import Task
from widefit.finetuning.stage import Products, Stage, parameters_of
from widefit.finetuning.stage_run import Problem, StageRun
from widefit.finetuning.sweep import parts_of, swept
from widefit.gram import IdenticalBlocks, ImplicitGram
from widefit.losses.softmax import Softmax
from widefit.losses.squared import Squared
from widefit.training.phases import Phases


def dense_jacobian(model: nn.Module, names: list[str], x: torch.Tensor) -> torch.Tensor:
    """∂f/∂(weights and biases of the layers), (n k) × P, by autograd."""
    chosen = parameters_of(model, names)
    found = jacrev(lambda p: functional_call(model, p, (x,)).reshape(-1))(chosen)
    return torch.cat([found[name].reshape(-1, chosen[name].numel()) for name in chosen], dim=1).detach()


def stage_of(model: nn.Module, names: list[str], x: torch.Tensor, held: torch.Tensor | None = None) -> Stage:
    model = copy.deepcopy(model).requires_grad_(False)
    inputs = Rows((x,), None if held is None else (held,))
    return Stage.of(model, names, inputs, parameters_of(model, names), Products())


CASES = {
    "readout": (perceptron(4, 9, 9, 3), ["4"]),
    "last block": (perceptron(4, 9, 9, 3), ["2", "4"]),
    "before the readout": (perceptron(4, 9, 9, 3), ["2"]),
    "every layer": (perceptron(4, 9, 9, 3), ["0", "2", "4"]),
    "first layer": (perceptron(4, 9, 9, 3), ["0"]),
    "no bias, residual path": (Custom().eval().double(), ["second", "third"]),
    "positions": (Encoder().eval().double(), ["block.1.wi", "block.1.wo", "head"]),
}


def rows_for(name: str, n: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = {"no bias, residual path": (n, 6), "positions": (n, 5, 6)}.get(name, (n, 4))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 7, 30])
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_dense_one(name: str, n: int):
    model, names = CASES[name]
    x, held = rows_for(name, n), rows_for(name, 5, seed=2)
    if n == 7:
        x[3] = x[2]
        x[4] = 0
    stage = stage_of(model, names, x, held)
    point = stage.start()
    with torch.no_grad():
        torch.testing.assert_close(point.outputs, model(x))
        torch.testing.assert_close(point.held_out, model(held))
    targets = torch.arange(n) % point.outputs.shape[1]
    local = Softmax().expand(point.outputs, targets)
    jacobian = stage.jacobian(point, local.root)
    operator = operator_of(stage, point, jacobian, local.root)
    scale = operator.trace() / operator.size

    J = torch.einsum("nab,nap->nbp", local.root, dense_jacobian(model, names, x).reshape(*point.outputs.shape, -1))
    J = J.flatten(0, 1)
    H = J @ J.T
    assert scale == pytest.approx(float(H.diagonal().mean()), rel=1e-9)
    step = torch.randn_like(point.outputs)
    torch.testing.assert_close(operator.matvec(step.reshape(-1)), H @ step.reshape(-1), rtol=1e-9, atol=1e-12)

    damping = 0.1 * scale
    g = torch.linalg.solve(H + damping * torch.eye(len(H), dtype=torch.float64), local.residual.reshape(-1))
    solution = StageSolver().solve(operator, local.residual.reshape(-1), damping)
    error = torch.linalg.vector_norm(solution.value - g)
    exact = solution.solver in ("cholesky", "primal")
    assert error <= (1e-8 if exact else 0.9) * torch.linalg.vector_norm(g)
    left = H @ solution.value + damping * solution.value - local.residual.reshape(-1)
    part = torch.linalg.vector_norm(left) / torch.linalg.vector_norm(local.residual)
    assert solution.residual_norm == pytest.approx(float(part), rel=1e-3, abs=1e-9)
    assert part <= 0.4

    moved = stage.advance(point, jacobian, g.reshape(step.shape), 1.0)
    change = -J.T @ g
    expected = copy.deepcopy(model)
    for value in parameters_of(expected, names).values():
        piece, change = change.split([value.numel(), change.numel() - value.numel()])
        value.add_(piece.view_as(value))
    with torch.no_grad():
        torch.testing.assert_close(moved.outputs, expected(x))
        torch.testing.assert_close(moved.held_out, expected(held))
    merged = stage.delta(moved).merged(model)
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[key], value)
    before, after = (torch.cat([p.reshape(-1) for p in m.parameters()]) for m in (model, expected))
    assert stage.squared_displacement(moved) == pytest.approx(float((after - before).detach().square().sum()))


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (374, 1), (376, 2), (800, 3), (1000, 4)])
def test_parts_have_some_250_rows(rows: int, parts: int):
    assert parts_of(rows) == parts


@pytest.mark.parametrize("features", [4, 40])
def test_a_sweep_steps_on_part_after_part(features: int, monkeypatch: pytest.MonkeyPatch):
    """Against steps of weights, one part after the other, and the mean of the points from the middle on."""
    monkeypatch.setattr("widefit.finetuning.sweep._ROWS", 7)
    monkeypatch.setattr("widefit.finetuning.curvature._TOLERANCE", 1e-12)
    model = perceptron(4, features, 9, 3, seed=2)
    x = rows_for("", 28)
    targets = torch.arange(28) % 3
    stage, surrogate = stage_of(model, ["2"], x), Softmax().smoothed()
    point = stage.start()
    damping = 0.3
    found = swept(stage, point, targets, surrogate, damping, torch.Generator().manual_seed(0), Phases())
    assert found.iterations > 4

    work = copy.deepcopy(model).requires_grad_(False)
    points = []
    for rows in torch.randperm(28, generator=torch.Generator().manual_seed(0)).split(7):
        local = surrogate.expand(work(x[rows]), targets[rows])
        J = local.root * dense_jacobian(work, ["2"], x[rows])
        H = J @ J.T
        own = stage_of(work, ["2"], x[rows])
        mean = operator_of(own, own.start(), own.jacobian(own.start(), local.root), local.root).trace() / len(H)
        g = torch.linalg.solve(H + damping * mean * torch.eye(len(H), dtype=H.dtype), local.residual.reshape(-1))
        change = (-J.T @ g).split([9 * features, 9])
        work[2].weight += change[0].view(9, features)
        work[2].bias += change[1]
        points.append(torch.cat([work[2].weight.reshape(-1), work[2].bias]))
    mean = torch.stack(points[1:]).mean(0)
    merged = stage.delta(stage.point(found.sample_coefficients, {})).merged(model)
    torch.testing.assert_close(torch.cat([merged[2].weight.reshape(-1), merged[2].bias]), mean, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("apart", [True, False])
def test_where_parts_undo_each_other_a_step_is_on_all_rows(apart: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("widefit.finetuning.sweep._ROWS", 7)
    model, x = perceptron(4, 9, 9, 3), rows_for("", 28)
    targets = torch.arange(28) % 3 if apart else (x[:, 0] > 0).long()
    loss = Softmax()
    problem = Problem(loss, loss.smoothed(), targets, None, 0.0, 2, None, 0)
    run = StageRun(Task(stage_of(model, ["2"], x), 9, 0.1), problem, torch.Generator().manual_seed(0), Phases())
    before = run._surrogate_value(run.best)
    info, stop = run.step(1)
    assert info.accepted
    assert stop is None
    assert (info.gain_ratio is None) != apart
    assert run._surrogate_value(run._point) < before


@pytest.mark.parametrize("n", [6, 40])
def test_a_readout_is_solved_in_the_smaller_of_two_spaces(n: int):
    model, x = perceptron(4, 9, 9, 3), rows_for("", n)
    stage = stage_of(model, ["4"], x)
    point = stage.start()
    local = Squared().expand(point.outputs, torch.ones_like(point.outputs))
    jacobian = stage.jacobian(point, local.root)
    operator, solver = operator_of(stage, point, jacobian, local.root), StageSolver()
    assert isinstance(operator, IdenticalBlocks)
    J = local.root * dense_jacobian(model, ["4"], x)
    for level in (1e-4, 1.0, 1e4):
        damping = level * operator.trace() / operator.size
        g = torch.linalg.solve(J @ J.T + damping * torch.eye(len(J), dtype=torch.float64), local.residual.reshape(-1))
        solution = solver.solve(operator, local.residual.reshape(-1), damping)
        torch.testing.assert_close(solution.value, g, rtol=1e-6, atol=1e-9)
        assert solution.residual_norm < 1e-8
        assert solution.solver == ("cholesky" if n == 6 else "primal")
    assert operator_of(stage, point, jacobian, local.root, operator) is operator


def test_large_systems_are_iterated_to_the_tolerance(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("widefit.finetuning.curvature.FACTORED", 10)
    model, x = perceptron(4, 60, 60, 3), rows_for("", 30)
    stage = stage_of(model, ["2", "4"], x)
    point = stage.start()
    local = Squared().expand(point.outputs, torch.ones_like(point.outputs))
    operator = operator_of(stage, point, stage.jacobian(point, local.root), local.root)
    assert isinstance(operator, ImplicitGram)
    J = local.root * dense_jacobian(model, ["2", "4"], x)
    damping = 0.01 * operator.trace() / operator.size
    solution = StageSolver().solve(operator, local.residual.reshape(-1), damping)
    assert solution.solver == "block-cg"
    left = (J @ J.T) @ solution.value + damping * solution.value - local.residual.reshape(-1)
    size = torch.linalg.vector_norm(left) / torch.linalg.vector_norm(local.residual)
    assert size <= 0.4
    assert solution.residual_norm == pytest.approx(float(size), rel=1e-3)


def test_the_mean_over_many_outputs_is_estimated_from_a_few_signs():
    model, x = perceptron(4, 30, 400, 9), rows_for("", 25)
    stage = stage_of(model, ["2"], x)
    point = stage.start()
    local = Squared().expand(point.outputs, torch.zeros_like(point.outputs))
    operator = operator_of(stage, point, stage.jacobian(point, local.root), local.root)
    J = (local.root * dense_jacobian(model, ["2"], x)).reshape(25, 9, -1)
    mean = torch.einsum("ncp,mcp->nm", J, J) / 9
    assert isinstance(operator, ImplicitGram)
    assert torch.linalg.norm(operator.mean_block() - mean) < 0.2 * torch.linalg.norm(mean)
    assert operator.trace() / operator.size == pytest.approx(float(mean.diagonal().mean()), rel=0.2)


def test_where_to_begin_follows_what_the_rows_ask_for():
    """New labels for the same features are the readout's business, other inputs that of the layer before."""
    model, x, y = moved_problem()
    model = widefit.finetune(model, x, y, loss="cross_entropy", layers="all")
    with torch.no_grad():
        told = model(x).argmax(1)
    turned = x @ torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(7), dtype=x.dtype)).Q
    relabelled = widefit.finetune(model, x, (told + 1) % 3, loss="cross_entropy", max_iter=4)
    assert relabelled.finetuning_.stages == (("4",),)
    assert "4 alone" in " ".join(relabelled.finetuning_.decisions)
    moved = widefit.finetune(model, turned, told, loss="cross_entropy", max_iter=4)
    assert moved.finetuning_.stages == (("2",), ("4",))


def test_a_ridge_pulls_to_the_given_weights():
    """At the optimum of a linear model with a squared loss: W − W₀ = the solution of ridge regression."""
    model, x = nn.Sequential(nn.Linear(4, 2)).double(), rows_for("", 20)
    y = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for alpha in (1e-3, 1.0):
        adapted = widefit.finetune(model, x, y, alpha=alpha, validation=0, max_iter=200, patience=50, tol=0)
        A = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
        with torch.no_grad():
            residual = y - model(x)
        weight = torch.linalg.solve(
            2 / 40 * A.T @ A + alpha * torch.eye(5, dtype=torch.float64), 2 / 40 * A.T @ residual
        )
        delta = adapted.finetuning_.delta.layers["0"]
        found = torch.cat([delta.dense().T, delta.bias[None]])
        torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layers", ["auto", "readout", "all", ["0", "4"]])
def test_the_result_has_the_same_keys_and_the_model_is_untouched(layers):
    model, x, y = moved_problem(torch.float32)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = widefit.finetune(model, x, y, loss="cross_entropy", layers=layers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(adapted.state_dict()) == list(before)
    assert type(adapted) is type(model)
    assert adapted.training
    assert all(p.requires_grad for p in adapted.parameters())
    assert not hasattr(model, "finetuning_")
    record = adapted.finetuning_
    assert record.history.losses[-1] < 0.2 * record.history.losses[0]
    touched = {name.rpartition(".")[0] for name, value in adapted.state_dict().items() if (value != before[name]).any()}
    assert touched <= set(record.delta.layers) == {name for stage in record.stages for name in stage}
    assert touched >= ({"2"} if layers == "auto" else {"4"})
    best = min(info.metric for info in record.history)
    rows = np.random.default_rng(0).permutation(len(x))[:24]
    assert float(Softmax().value(adapted(x[rows]), y[rows]).detach()) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "bce", "huber", nn.SmoothL1Loss()])
def test_every_loss_falls(loss):
    model, x, classes = moved_problem()
    y = classes if loss == "cross_entropy" else nn.functional.one_hot(classes, 3).double()
    adapted = widefit.finetune(model, x, y, loss=loss, validation=0, max_iter=10)
    history = adapted.finetuning_.history
    assert history.losses[-1] < 0.2 * history.losses[0]
    assert len(history) <= 11


@pytest.mark.parametrize("layers", ["auto", "all"])
def test_batches_of_rows(layers: str):
    model, x, y = moved_problem(n=300)
    adapted = widefit.finetune(model, x, y, loss="cross_entropy", batch_size=100, layers=layers, max_iter=12)
    record = adapted.finetuning_
    assert record.history[-1].metric < 0.5 * record.history[0].metric
    assert "100 rows a step" in record.decisions[-1]
    assert record.delta.layers.keys() == ({"0", "2", "4"} if layers == "all" else {"2", "4"})
    with torch.no_grad():
        rows = np.random.default_rng(0).permutation(len(x))[:60]
        best = min(info.metric for info in record.history)
        assert float(Softmax().value(adapted(x[rows]), y[rows])) == pytest.approx(best, rel=1e-6)


def test_feed_forward_blocks_are_adapted():
    torch.manual_seed(0)
    model, x = Encoder().double(), rows_for("positions", 60)
    y = (x[:, :, 0].mean(1) > 0).long()
    names = ["block.1.wi", "block.1.wo", "head"]
    adapted = widefit.finetune(model, x, y, loss="cross_entropy", layers=names)
    assert adapted.finetuning_.history.losses[-1] < 0.5 * adapted.finetuning_.history.losses[0]
    assert adapted.training  # with its dropout as it was


def test_a_module_without_readout():
    model, x = FeedForward().double().eval(), torch.randn(30, 4, 6, dtype=torch.float64)
    adapted = widefit.finetune(model, x, (0.5 * x).reshape(30, -1), validation=0, max_iter=5)
    assert adapted.finetuning_.stages == (("wi", "wo"),)
    assert adapted.finetuning_.history.losses[-1] < 0.5 * adapted.finetuning_.history.losses[0]


def test_sparse_inputs_give_the_same_as_dense_ones(monkeypatch: pytest.MonkeyPatch):
    model, x = perceptron(5, 200, 80, 3, seed=6), rows_for("", 40)[:, :1].repeat(1, 5)
    with torch.no_grad():
        model[0].bias -= 2.5
    structure = observe(model, x)
    assert structure.densities["2"] < 1 / 8
    assert _sparse_layers(("2", "4"), structure, model, x)[0] == frozenset()  # too small to pay
    y = torch.arange(40) % 3
    dense = widefit.finetune(model, x, y, loss="cross_entropy", max_iter=8)
    monkeypatch.setattr("widefit.finetuning.adapt._SPARSE_WEIGHTS", 1)
    sparse = widefit.finetune(model, x, y, loss="cross_entropy", max_iter=8)
    assert "so sparse products" in sparse.finetuning_.decisions[0]
    assert "so dense products" in dense.finetuning_.decisions[0]
    assert sparse.finetuning_.history.losses == pytest.approx(dense.finetuning_.history.losses, rel=1e-6)
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(sparse.state_dict()[name], value, rtol=1e-6, atol=1e-9)


def test_own_held_out_rows_and_repetition():
    model, x, y = moved_problem()
    held = x[90:]
    one, two = (
        widefit.finetune(model, x[:90], y[:90], loss="cross_entropy", X_val=held, y_val=y[90:]) for _ in range(2)
    )
    assert one.finetuning_.history[0].metric == pytest.approx(float(Softmax().value(model(held), y[90:]).detach()))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_dropout_and_batch_statistics_of_a_model_in_training_mode_are_off():
    _, x, y = moved_problem()
    parts = (nn.Linear(5, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 3))
    training = nn.Sequential(*parts).double().train()
    statistics = training[1].running_mean.clone()
    with torch.random.fork_rng():
        adapted = widefit.finetune(training, x, y, loss="cross_entropy")
    evaluating = widefit.finetune(copy.deepcopy(training).eval(), x, y, loss="cross_entropy")
    assert adapted.training
    assert torch.equal(training[1].running_mean, statistics)
    for key, value in evaluating.state_dict().items():
        assert torch.equal(adapted.state_dict()[key], value)


def test_a_callback_ends_it_and_sees_the_history():
    seen = []

    class Watch(Callback):
        def step(self, run, info):
            seen.append(len(run.history))
            return info.step == 2

    model, x, y = moved_problem()
    adapted = widefit.finetune(model, x, y, loss="cross_entropy", callbacks=[Watch()])
    assert seen == [2, 3]
    assert adapted.finetuning_.history.stop_reason == "callback"


def test_an_interrupt_keeps_the_best():
    class Interrupt(Callback):
        def step(self, run, info):
            if info.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    model, x, y = moved_problem()
    adapted = widefit.finetune(model, x, y, loss="cross_entropy", callbacks=[Interrupt()])
    assert adapted.finetuning_.history.stop_reason == "interrupted"
    assert len(adapted.finetuning_.history) == 3
    assert adapted.finetuning_.delta.layers


X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(30) % 3
GOOD = perceptron(5, 8, 8, 3, dtype=torch.float32)
BAD = {
    "no linear layer": (lambda: widefit.finetune(nn.ReLU(), X, X), "model has no linear layer"),
    "weights not finite": (
        lambda: widefit.finetune(nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 1)).apply(spoil), X, X[:, 0]),
        "parameter '0.weight' is not finite",
    ),
    "columns": (
        lambda: widefit.finetune(GOOD, X[:, :4], X[:, 0]),
        r"X has rows of shape \(4,\), which the model does not take \(its first linear layer has in_features=5\)",
    ),
    "rows": (lambda: widefit.finetune(GOOD, X, X[:9, :3]), "argument 1 holds 9 samples, argument 0 holds 30"),
    "NaN": (lambda: widefit.finetune(GOOD, X / 0 * 0, X[:, :3]), "argument 0 is not finite in 30 of 30 samples"),
    "text": (lambda: widefit.finetune(GOOD, [["a"]], [0]), "X must hold numbers"),
    "pairs and targets": (
        lambda: widefit.finetune(GOOD, [(X[:3], X[:3, :3]), (X[3:6], X[3:6, :3])], X[:, :3]),
        "X has rows of several lengths or shapes",
    ),
    "a loader and targets": (
        lambda: widefit.finetune(GOOD, DataLoader(TensorDataset(X, X[:, :3])), X[:, :3]),
        "X must hold numbers, got object",
    ),
    "target shape": (lambda: widefit.finetune(GOOD, X, X[:, :2]), "do not match outputs"),
    "classes": (
        lambda: widefit.finetune(GOOD, X, torch.full((30,), 3), loss="cross_entropy"),
        "y: class numbers must lie in 0 … 2, the network's outputs; got 3 … 3",
    ),
    "loss": (lambda: widefit.finetune(GOOD, X, X[:, :3], loss="l1"), "loss must be one of"),
    "layers": (
        lambda: widefit.finetune(GOOD, X, X[:, :3], layers=["1"]),
        "'1' cannot be adapted; the layers that can are '0', '2', '4'",
    ),
    "layers word": (lambda: widefit.finetune(GOOD, X, X[:, :3], layers="first"), "layers must be"),
    "no layers": (lambda: widefit.finetune(GOOD, X, X[:, :3], layers=[]), "at least one layer"),
    "half a validation": (lambda: widefit.finetune(GOOD, X, X[:, :3], X_val=X), "belong together"),
    "validation": (lambda: widefit.finetune(GOOD, X, X[:, :3], validation=1.0), "validation must be a share"),
    "alpha": (lambda: widefit.finetune(GOOD, X, X[:, :3], alpha=-1.0), "alpha must be"),
    "max_iter": (
        lambda: widefit.finetune(GOOD, X, X[:, :3], max_iter=0),
        "max_iter must be a whole number",
    ),
    "batch_size": (lambda: widefit.finetune(GOOD, X, X[:, :3], batch_size=True), "batch_size must be .* got True"),
    "threads": (lambda: widefit.finetune(GOOD, X, X[:, :3], threads=0), "threads must be a whole number"),
    "seed": (lambda: widefit.finetune(GOOD, X, X[:, :3], seed=2**70), "seed must be a whole number in"),
    "held-out lengths": (
        lambda: widefit.finetune(GOOD, X, X[:, :3], X_val=X, y_val=X[:4, :3]),
        "X_val, y_val.*: argument 1 holds 4 samples, argument 0 holds 30",
    ),
    "held-out classes": (
        lambda: widefit.finetune(GOOD, X, CLASSES, loss="cross_entropy", X_val=X, y_val=CLASSES + 1),
        "y_val: class numbers must lie in 0 … 2, the network's outputs; got 1 … 3",
    ),
    "fractional classes": (
        lambda: widefit.finetune(GOOD, X, CLASSES.double(), loss="cross_entropy"),
        "y: cross_entropy takes class numbers as whole numbers, got torch.float32",
    ),
    "no rows": (lambda: widefit.finetune(GOOD, X[:0], X[:0, :3]), "holds no sample"),
    "whole numbers": (lambda: widefit.finetune(GOOD, X.long(), X[:, :3]), "X holds torch.int64"),
    "a bare layer": (lambda: widefit.finetune(nn.Linear(5, 3), X, X[:, :3]), "pass torch.nn.Sequential"),
    "lazy parameters": (
        lambda: widefit.finetune(nn.Sequential(nn.LazyLinear(3)), X, X[:, :3]),
        "parameters that are not initialized",
    ),
    "outputs at random": (
        lambda: widefit.finetune(nn.Sequential(nn.Linear(5, 8), AlwaysDropout(), nn.Linear(8, 3)), X, X[:, :3]),
        "dropout that does not heed model.eval",
    ),
    "an infinite loss": (
        lambda: widefit.finetune(GOOD, X, 1e25 * X[:, :3], validation=0),
        "its loss on X is inf",
    ),
    "an infinite loss on held-out rows": (
        lambda: widefit.finetune(GOOD, X, X[:, :3], X_val=X, y_val=1e25 * X[:, :3]),
        "its loss on the held-out rows is inf",
    ),
    "no readout": (
        lambda: widefit.finetune(nn.Sequential(nn.Linear(5, 3), nn.Softmax(1)), X, X[:, :3], layers="readout"),
        "do not come straight from a linear layer",
    ),
    "only shared layers": (lambda: widefit.finetune(shared(), X, X), "no linear layer that can be adapted"),
}


class AlwaysDropout(nn.Module):
    """Dropout in training and evaluation mode alike."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)


def spoil(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.weight.data.fill_(float("nan"))


def shared() -> nn.Module:
    a, b = nn.Linear(5, 5), nn.Linear(5, 5)
    b.weight = a.weight
    return nn.Sequential(a, nn.ReLU(), b)


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_readout_with_many_rows_is_refined_no_further_than_a_step_needs():
    model, x = perceptron(4, 30, 9, 3, dtype=torch.float32), rows_for("", 400).float()
    stage = stage_of(model, ["4"], x)
    point = stage.start()
    local = Squared().expand(point.outputs, torch.ones_like(point.outputs))
    operator = operator_of(stage, point, stage.jacobian(point, local.root), local.root)
    damping = 0.01 * operator.trace() / operator.size
    solution = StageSolver().solve(operator, local.residual.reshape(-1), damping)
    assert solution.solver == "primal"
    J = local.root.double() * dense_jacobian(copy.deepcopy(model).double(), ["4"], x.double())
    assert solution.residual_norm <= 1e-3
    left = J @ (J.T @ solution.value.double()) + damping * solution.value - local.residual.reshape(-1)
    assert torch.linalg.vector_norm(left) <= 1.1e-3 * torch.linalg.vector_norm(local.residual)


def test_a_custom_loss_gets_whole_numbers_as_they_are():
    seen: set[torch.dtype] = set()

    def loss(outputs: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        seen.add(kinds.dtype)
        return nn.functional.nll_loss(outputs.log_softmax(1), kinds)

    model, X, y = perceptron(5, 9, 3), torch.randn(40, 5), torch.arange(40) % 3
    widefit.finetune(model, X, y, loss=loss, max_iter=1)
    assert seen == {torch.int64}


def test_whole_numbers_are_quantities_to_a_custom_loss_that_wants_those():
    loss = nn.functional.binary_cross_entropy_with_logits
    model, X, y = perceptron(5, 9, 3), torch.randn(40, 5), nn.functional.one_hot(torch.arange(40) % 3)
    of_whole, of_floating = (
        widefit.finetune(model, X, targets, loss=loss, max_iter=1).finetuning_.history.losses
        for targets in (y, y.double())
    )
    assert of_whole == of_floating
