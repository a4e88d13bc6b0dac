"""Models with repeated blocks: inputs of every kind, kept states, projected steps, and what is refused."""

import errno
import gc
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from networks import Answer, Transformer, sentences, transformer
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import widefit
from widefit.files import Checkpoint, read_checkpoint
from widefit.finetuning import LayerDelta, LowRankDelta, NamedDeltas, adapt_blocks, block_steps, kept_states
from widefit.finetuning.aim import Aim
from widefit.finetuning.batches import Batch, read_batches
from widefit.finetuning.block_choice import Probe, first_block
from widefit.finetuning.block_steps import BlockSteps, damped_solution
from widefit.finetuning.head import constant_loss, new_readout
from widefit.finetuning.judgement import Judgement
from widefit.finetuning.kept_states import KeptStates, find_blocks
from widefit.finetuning.linear_calls import LinearCalls, linear_calls
from widefit.finetuning.projected_layers import differentiated, projected, whole
from widefit.losses.family import output_loss

SETTINGS: dict[str, Any] = {"loss": "cross_entropy", "max_iter": 3}


def batch(n: int = 6, dtype: torch.dtype = torch.float64) -> Batch:
    inputs, kinds = sentences(n)
    return Batch((), inputs, kinds)


def test_blocks_are_found_by_running_the_model():
    model = transformer()
    lists = find_blocks(model, batch())
    assert [one.blocks for one in lists] == [("layers.0", "layers.1", "layers.2")]
    found = linear_calls(model, lists, batch())
    assert found.places["layers.0.query"] == 0
    assert found.places["layers.2.outer"] == 2
    assert found.places["head"] == 3
    assert found.readout == "head"


@pytest.mark.parametrize("first", [None, "layers.1", "layers.2"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_behind_kept_states_the_model_gives_the_same(first: str | None, on_disk: bool, monkeypatch):
    if on_disk:
        monkeypatch.setattr(kept_states, "available_memory", lambda: 0)
    model, batches = transformer(), [batch(5), batch(7)]
    states = KeptStates(model, find_blocks(model, batches[0]), first)
    expected = [states.run(one) for one in batches]
    assert states.on_disk == (on_disk and first is not None)
    calls: list[nn.Module] = []
    model.layers[0].query.register_forward_hook(lambda module, args, output: calls.append(module))
    for number, one in enumerate(batches):
        with torch.no_grad(), states.behind(number):
            assert torch.equal(one.call(model), expected[number])
    assert len(calls) == (2 if first is None else 0)
    assert torch.equal(batches[0].call(model), expected[0])


def test_states_in_front_are_kept_without_running_what_is_behind():
    model, one = transformer(), batch(5)
    lists = find_blocks(model, one)
    states = KeptStates(model, lists, "layers.1")
    expected = states.run(one)
    called: list[nn.Module] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: called.append(module))
    states.run_in_front(one)
    assert called == [model.layers[0]]
    with torch.no_grad(), states.behind(1):
        assert torch.equal(one.call(model), expected)
    whole_model = KeptStates(model, lists, None)
    whole_model.run_in_front(one)
    with torch.no_grad(), whole_model.behind(0):
        assert torch.equal(one.call(model), expected)


def test_of_many_rows_some_run_through_the_model_at_the_start(monkeypatch):
    monkeypatch.setattr(adapt_blocks, "_THROUGH", 16)
    model, (inputs, kinds) = transformer(), sentences(80)
    run_in_front, stopped = KeptStates.run_in_front, []

    def run(self: KeptStates, one: Batch) -> None:
        stopped.append(one.rows)
        run_in_front(self, one)

    monkeypatch.setattr(KeptStates, "run_in_front", run)
    settings = {"validation": 0, "batch_size": 8, "max_iter": 1, "loss": "cross_entropy"}
    losses = widefit.finetune(model, inputs, kinds, **settings).finetuning_.history.losses
    assert stopped == [8] * 8
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("rows", "share", "held"), [(90, None, 18), (400, None, 50), (900, None, 90), (90, 0.5, 45), (20, None, 0)]
)
def test_a_tenth_is_held_out_and_of_few_rows_more(rows: int, share: float | None, held: int):
    wishes = adapt_blocks.Wishes("cross_entropy", "auto", share, 2, None, 1, 0, None, 0, (), None)
    data = adapt_blocks._data(transformer(), *sentences(rows), None, None, True, wishes)
    assert sum(one.rows for one in data.held or []) == held
    assert sum(one.rows for one in data.training) == rows - held


def test_mapped_states_leave_no_file_behind(tmp_path, monkeypatch):
    """Not even while they are in use, so that a process that is killed leaves none either."""
    monkeypatch.setattr(kept_states, "available_memory", lambda: 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, one = transformer(), batch(5)
    states = KeptStates(model, find_blocks(model, one), "layers.2")
    expected = states.run(one)
    assert states.on_disk
    assert not list(tmp_path.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad(), states.behind(0):
            assert torch.equal(one.call(model), expected)
        del states
        gc.collect()
    if hasattr(os, "posix_fallocate"):
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            KeptStates(model, find_blocks(model, one), "layers.2").run(one)
        assert not list(tmp_path.iterdir())


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("kind", ["classes", "two classes", "many classes", "numbers", "positions", "following"])
@pytest.mark.parametrize("rank", [3, 99])
def test_rows_and_steps_are_those_of_autograd(kind: str, rank: int):
    """J, its products and the step beside dense ones in float64, with some and with all directions of every layer."""
    classes = {"two classes": 2, "many classes": 7, "numbers": 1}.get(kind, 3)
    by_position = kind in ("positions", "following")
    model = transformer(classes=20 if kind == "following" else classes, by_position=by_position)
    one = batch(5)
    if kind == "numbers":
        one = Batch((), one.kwargs, one.targets.double())
    elif kind == "positions":
        targets = torch.where(one.kwargs["attention_mask"] == 0, -100, one.kwargs["input_ids"] % 3)
        one = Batch((), one.kwargs, targets)
    elif kind == "following":
        one = Batch((), one.kwargs, torch.where(one.kwargs["attention_mask"] == 0, -100, one.kwargs["input_ids"]))
    aim = Aim(output_loss("mse" if kind == "numbers" else "cross_entropy"), kind == "following")
    names = ["layers.1.query", "layers.2.inner", "head"]
    modules = {name: model.get_submodule(name) for name in names}
    outputs, directions, calls = differentiated(model.requires_grad_(False), modules, one, aim)
    layers = [projected(name, modules[name], [calls[name]], rank, 0) for name in names[:2]]
    layers.append(whole("head", modules["head"]))
    layers = [layer.balanced(layer.rows(calls[layer.name])) for layer in layers]
    rows = torch.cat([layer.rows(calls[layer.name]) for layer in layers], dim=1)

    parameters = {f"{name}.weight": modules[name].weight for name in names} | {"head.bias": model.head.bias}

    def sums(values: dict[str, Tensor]) -> Tensor:
        found = functional_call(model, values, (), one.kwargs).logits
        return torch.stack([(seed * found).flatten(1).sum(1) for seed in directions.seeds], dim=1).flatten()

    dense = jacrev(sums)(parameters)
    parts = []
    for layer in layers:
        assert layer.shape == tuple(min(rank, size) if layer.name != "head" else size for size in layer.given.shape)
        parts.append((layer.left.T @ dense[f"{layer.name}.weight"] @ layer.right).flatten(1) * layer.scale)
    expected = torch.cat([*parts, layers[-1].scale * dense["head.bias"]], dim=1)
    torch.testing.assert_close(rows, expected)
    if rank > 16:
        every = [layer.scale * dense[f"{layer.name}.weight"].flatten(1) for layer in layers]
        full = torch.cat([*every, layers[-1].scale * dense["head.bias"]], dim=1)
        torch.testing.assert_close(rows @ rows.T, full @ full.T)
    residual = directions.residual.reshape(-1)
    step = rows.T @ damped_solution(rows, residual, 0.3)
    gram = expected.T @ expected
    damping = 0.3 * float((expected @ expected.T).diagonal().mean())
    wanted = torch.linalg.solve(gram + damping * torch.eye(len(gram)).double(), expected.T @ residual)
    torch.testing.assert_close(step, wanted)
    for layer, move in zip(layers, wanted.split([layer.size for layer in layers]), strict=True):
        p, q = layer.shape
        change = layer.scale * layer.left @ move[: p * q].view(p, q) @ layer.right.T
        torch.testing.assert_close(layer.delta(move).dense(), change)
        layer.put(move)
        torch.testing.assert_close(layer.module.weight, layer.given + change)
    # The residual is the slope of the smoothed loss along the directions.
    slope = sum(
        directions.residual[:, c].view(-1, *[1] * (outputs.ndim - 1)) * seed for c, seed in enumerate(directions.seeds)
    )
    leaf = outputs.clone().requires_grad_()
    counted, targets, _ = aim.counted(leaf, one.targets)
    smooth = aim.smoothed()
    flat = smooth.gradients(counted.detach(), smooth.prepared(counted.detach(), targets))
    (expected_slope,) = torch.autograd.grad(counted, leaf, flat)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("rows", ["zero", "twice", "one"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_solutions_of_degenerate_rows_are_finite(rows: str, scale: float):
    torch.manual_seed(0)
    made = torch.randn(1 if rows == "one" else 6, 9, dtype=torch.float64) * scale
    made = torch.zeros_like(made) if rows == "zero" else torch.cat([made, made]) if rows == "twice" else made
    residual = torch.ones(len(made), dtype=torch.float64)
    found = damped_solution(made, residual, 0.5)
    gram = made @ made.T
    damped = gram + 0.5 * gram.diagonal().mean() * torch.eye(len(gram)).double()
    if rows == "zero":
        assert not found.any()
    else:
        torch.testing.assert_close(damped @ found, residual)


def test_a_new_readout_points_to_the_targets_and_is_small():
    torch.manual_seed(0)
    kinds = torch.arange(60) % 3
    features = torch.randn(60, 5, dtype=torch.float64) + 4 * nn.functional.one_hot(kinds, 5) + 100
    targets = nn.functional.one_hot(kinds, 3).double()
    made = new_readout(features, targets, features)
    outputs = features @ made.weight.T + made.bias
    assert float((outputs.argmax(1) == kinds).double().mean()) > 0.9
    centred = outputs - outputs.mean(0)
    assert float(centred.square().mean().sqrt()) == pytest.approx(0.1)
    means = torch.stack([features[kinds == kind].mean(0) for kind in range(3)]) - features.mean(0)
    torch.testing.assert_close(nn.functional.normalize(made.weight), nn.functional.normalize(means))
    same = new_readout(torch.ones_like(features), targets, features)
    assert not same.weight.any()
    assert constant_loss(targets) == pytest.approx(math.log(3))


def test_as_many_blocks_as_help_with_rows_left_out():
    """Kernels by place: noise in front, the truth behind it."""
    torch.manual_seed(0)
    residual = torch.tensor([1.0, -1.0] * 10, dtype=torch.float64)
    truth = torch.outer(residual, residual) + 0.1 * torch.eye(20).double()
    noise = torch.randn(20, 40, dtype=torch.float64)
    grams = {0: 20 * noise @ noise.T, 1: truth, 2: torch.eye(20).double()}
    layers = {str(place): whole(str(place), nn.Linear(2, 2)) for place in grams}
    found = LinearCalls({name: int(name) for name in layers}, None, {})
    place, why = first_block(Probe(layers, grams, residual), found, 2, "auto")
    assert place == 1
    assert why.startswith("residual that one step would leave on rows left out")
    assert first_block(Probe(layers, grams, residual), found, 2, "all") == (0, "asked for")


def test_blocks_in_front_are_looked_at_where_those_behind_do_not_tell(monkeypatch):
    model, (inputs, kinds) = transformer(), sentences(40)
    looked: list[set[int]] = []
    chosen = iter([1, 0])

    def choose(probe: Probe, found: LinearCalls, blocks: int, layers: Any) -> tuple[int, str]:
        looked.append(set(probe.grams))
        return next(chosen), ""

    monkeypatch.setattr(adapt_blocks, "first_block", choose)
    widefit.finetune(model, inputs, kinds, **SETTINGS)
    assert looked == [{1, 2, 3}, {0, 1, 2, 3}]
    looked.clear()
    chosen = iter([2])
    widefit.finetune(model, inputs, kinds, **SETTINGS)
    assert looked == [{1, 2, 3}]


@pytest.mark.parametrize(("least", "tried"), [(8, [16, 8]), (16, [16, 8]), (32, [16, 32]), (99, [16, 32, 64])])
@pytest.mark.parametrize("moved", [torch.ones(2), torch.tensor([0.1, -0.1])])
def test_the_lowest_rank_that_costs_next_to_nothing_is_found_by_halving(
    moved: Tensor, least: int, tried: list[int], monkeypatch
):
    steps = object.__new__(BlockSteps)
    steps._held = []  # type: ignore[assignment]
    change = LowRankDelta({"a": LayerDelta(torch.randn(99, 70), torch.randn(99, 70))})
    asked: list[int] = []
    uncut = torch.tensor([1.0, 2.0])

    def losses(self: BlockSteps, delta: LowRankDelta) -> Tensor:
        asked.append(delta.layers["a"].rank)
        return uncut if asked[-1] >= min(least, 70) else uncut + moved

    monkeypatch.setattr(BlockSteps, "delta", lambda self: change)
    monkeypatch.setattr(BlockSteps, "_held_losses_of", losses)
    cut, _ = steps.compressed([64, 32, 16, 8], 1.005)
    assert asked == [70, *tried]
    assert cut.layers["a"].rank == (70 if least == 99 else least)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "marks"),
    [
        ("cross_entropy", [[1.0, 2.0], [3.0, 1.0]], [1, 1], [0.0, 1.0]),
        ("bce", [[1.0, -2.0], [3.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5]),
        ("mse", [[1.0], [3.0]], [[1.0], [1.0]], [0.0, 4.0]),
    ],
)
def test_answers_are_compared_by_whether_they_are_wrong(loss: str, outputs: Any, targets: Any, marks: list[float]):
    found = Aim(output_loss(loss)).marks(torch.tensor(outputs), torch.tensor(targets))
    assert found.tolist() == marks


def test_the_last_point_within_the_error_of_the_best_is_kept():
    spread = torch.linspace(-1, 1, 100)
    error = float(spread.std()) / 10
    lowest = Judgement(torch.zeros(100), torch.zeros(100))
    for part, close in ((0.99, True), (1.01, False), (0.0, True), (-2.0, True)):
        assert Judgement(torch.zeros(100), spread + part * error).is_close(lowest) == close
    assert not Judgement(torch.zeros(1), torch.zeros(1)).is_close(Judgement(torch.zeros(1), torch.zeros(1)))


def test_an_epoch_gains_where_chance_does_not_tell_its_answers():
    spread = torch.linspace(-1, 1, 100)
    error = float(spread.std()) / 10
    before = Judgement(torch.zeros(100), torch.zeros(100))
    for part, sure in ((1.64, False), (1.65, True), (0.0, False), (-3.0, False)):
        for losses, marks in ((spread - part * error, spread), (spread, spread - part * error)):
            assert Judgement(losses, marks).is_surely_better(before) == sure
    assert Judgement(before.losses - 1, before.marks).is_surely_better(before)
    assert not before.is_surely_better(before)


def test_epochs_that_gain_no_more_than_chance_end_the_run(monkeypatch):
    """The held-out loss falls by five percent an epoch, by other rows each time."""
    given = iter(range(99))

    def judged(self: BlockSteps, point: Tensor) -> tuple[Judgement, Tensor]:
        number = next(given)
        level = 0.5 * 0.95**number
        noise = torch.randn(50, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        losses = level + (steady[0] * (noise - noise.mean()))
        return Judgement(losses, torch.zeros(50)), point

    monkeypatch.setattr(BlockSteps, "_judged", judged)
    monkeypatch.setattr(BlockSteps, "compressed", lambda self, ranks, factor: (self.delta(), "not asked for"))
    inputs, kinds = sentences(60)
    for spread, epochs in ((1.0, 3), (0.0, 6)):
        steady, given = [spread], iter(range(99))
        history = widefit.finetune(transformer(), inputs, kinds, **(SETTINGS | {"max_iter": 6})).finetuning_.history
        assert history[-1].step == epochs


class Loader:
    """Batches again and again, as a DataLoader gives them."""

    def __init__(self, batches: list[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def in_every_form() -> dict[str, tuple[Any, Any]]:
    inputs, kinds = sentences(40)
    cut = [{name: tensor[start : start + 8] for name, tensor in inputs.items()} for start in range(0, 40, 8)]
    labels = kinds.split(8)
    single = [
        {"input_ids": ids[: int(mask.sum())].tolist(), "attention_mask": [1] * int(mask.sum()), "labels": int(kind)}
        for ids, mask, kind in zip(inputs["input_ids"], inputs["attention_mask"], kinds, strict=True)
    ]
    return {
        "mapping": (inputs, kinds),
        "arrays": ({name: tensor.numpy() for name, tensor in inputs.items()}, kinds.numpy()),
        "labels within": ({**inputs, "labels": kinds}, None),
        "pairs": (Loader(list(zip(cut, labels, strict=True))), None),
        "mappings": (Loader([{**part, "labels": own} for part, own in zip(cut, labels, strict=True)]), None),
        "rows": (single, None),
    }


@pytest.mark.parametrize("form", in_every_form())
def test_inputs_of_every_form_are_the_same_rows(form: str):
    inputs, kinds = sentences(40)
    X, y = in_every_form()[form]
    like = torch.zeros(1)
    found = read_batches(X, y, like)
    assert sum(one.rows for one in found) == 40
    rows = {(tuple(ids[mask != 0].tolist()), int(kind)) for one in found for ids, mask, kind in _rows_of(one)}
    expected = Batch((), inputs, kinds)
    assert rows == {(tuple(ids[mask != 0].tolist()), int(kind)) for ids, mask, kind in _rows_of(expected)}
    for one in found:  # nothing but padding was cut away, and nothing but padding is left over
        assert bool(one.kwargs["attention_mask"].any(0).all())


@pytest.mark.parametrize("targets", ["quantities", "whole quantities", "positions", "classes"])
def test_nothing_but_tokens_is_cut_where_all_rows_are_short(targets: str):
    """Nine positions, five of them used; pixels and targets that happen to be nine wide stay as they are."""
    mask = (torch.arange(9) < 5).long().expand(4, 9)
    ids = torch.arange(36).view(4, 9)
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "boxes": ids[..., None].expand(4, 9, 4),
        "pixels": torch.rand(4, 9),
        "images": torch.rand(4, 9, 2, 2),
        "inputs_embeds": torch.rand(4, 9, 3),
        "decoder_input_ids": ids,
    }
    y = {"quantities": torch.rand(4, 9), "whole quantities": ids, "positions": ids, "classes": ids[:, 0]}[targets]
    classes = targets in ("positions", "classes")
    for X, own in ((inputs, y), (Loader([(inputs, y)]), None)):
        (found,) = read_batches(X, own, torch.zeros(1), classes=classes)
        cut = {"input_ids", "attention_mask", "boxes", "inputs_embeds"}
        assert {name for name, tensor in found.kwargs.items() if tensor.shape[1] == 5} == cut
        assert all(torch.equal(found.kwargs[name], inputs[name][:, :5]) for name in cut)
        assert torch.equal(found.targets, (y[:, :5] if targets == "positions" else y).to(found.targets))
        assert found.targets.is_floating_point() == (not classes)


def test_rows_one_by_one_are_filled_up_behind_their_masks():
    rows = [
        {"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1], "boxes": torch.ones(3, 4), "labels": [1, 0, 1]},
        {"input_ids": [6], "attention_mask": [1], "boxes": torch.ones(1, 4), "labels": [2]},
    ]
    (found,) = read_batches(rows, None, torch.zeros(1))
    assert found.kwargs["input_ids"].tolist() == [[6, 0, 0], [3, 4, 5]]
    assert found.kwargs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert found.kwargs["boxes"].shape == (2, 3, 4)
    assert found.targets.tolist() == [[2, -100, -100], [1, 0, 1]]


def test_rows_one_by_one_of_several_inputs_or_of_numbers():
    rows = [((torch.tensor([1, 2]), torch.tensor([3, 4])), 0), ((torch.tensor([5, 6]), torch.tensor([7, 8])), 1)]
    (found,) = read_batches(rows, None, torch.zeros(1))
    assert [tensor.tolist() for tensor in found.args] == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    (found,) = read_batches([([1.0, 2.0], 0), ([3.0, 4.0], 1)], None, torch.zeros(1))
    assert [tensor.tolist() for tensor in found.args] == [[[1.0, 2.0], [3.0, 4.0]]]
    rows = [{"input_ids": [1, 2], "labels": [0, 1]}, {"input_ids": [3, 4], "labels": [1, 1]}]
    (found,) = read_batches(rows, None, torch.zeros(1))
    assert found.kwargs["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert found.targets.tolist() == [[0, 1], [1, 1]]


MASKED = {"input_ids": [3, 4], "attention_mask": [1, 1], "labels": 1}


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (
            {"input_ids": torch.ones(2, 3).long(), "text": ["a", "b"]},
            [0, 1],
            r"X\['text'\] holds texts beside the numbers",
        ),
        ({"input_ids": torch.ones(1, 3).long(), "text": np.array(["a"])}, [0], r"X\['text'\] holds texts beside"),
        ([MASKED | {"text": "a"}, MASKED | {"text": "b"}], None, r"X\['text'\] holds texts beside the numbers"),
        (
            [{"input_ids": [3, 4], "labels": 1}, {"input_ids": [3], "labels": 0}],
            None,
            "and no attention_mask of the same",
        ),
        ([([1.0, 2.0], 0), ([1.0], 1)], None, "X has rows of several lengths or shapes"),
        ([MASKED, MASKED | {"input_ids": [3]}], None, r"X\['input_ids'\] has rows of several lengths, and no"),
        ([MASKED, {"input_ids": [3], "labels": 1}], None, "row 1 of X has other inputs than the first"),
        (
            [MASKED | {"labels": [0.5, 0.5]}, {"input_ids": [3], "attention_mask": [1], "labels": [0.5]}],
            None,
            "y has rows of several lengths",
        ),
        ({"input_ids": torch.ones(2, 0).long()}, [0, 1], r"X has rows without a number, its shape is \(2, 0\)"),
        (torch.ones(2, 0), [0, 1], r"X has rows without a number, its shape is \(2, 0\)"),
    ],
)
def test_rows_that_are_no_table_are_refused(X: Any, y: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read_batches(X, y, torch.zeros(1))


def _rows_of(one: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return zip(one.kwargs["input_ids"], one.kwargs["attention_mask"], one.targets, strict=True)


class Positional(nn.Module):
    """The same, called with a tensor or two, giving a tuple."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return self.model(input_ids=ids, attention_mask=mask).logits, None


@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_positional_inputs_and_tuples_of_outputs(form: str):
    inputs, kinds = sentences()
    ids = inputs["input_ids"].clamp_min(1)
    X = ids if form == "tensor" else (ids, inputs["attention_mask"])
    model = Positional(transformer(torch.float32))
    adapted = widefit.finetune(model, X, kinds, **SETTINGS)
    record = adapted.finetuning_
    best = min(info.metric for info in record.history)
    assert best < record.history[0].metric
    assert adapted.state_dict().keys() == model.state_dict().keys()


def test_a_list_of_rows_is_the_table_of_them():
    inputs, kinds = sentences(20)
    ids = inputs["input_ids"]
    settings = SETTINGS | {"max_iter": 1}
    expected = widefit.finetune(Positional(transformer()), ids, kinds, **settings).state_dict()
    found = widefit.finetune(Positional(transformer()), list(ids), kinds, **settings).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_learns_in_every_precision_and_leaves_the_model_alone(dtype: torch.dtype):
    inputs, kinds = sentences(150)
    model = transformer(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = widefit.finetune(model, inputs, kinds, **(SETTINGS | {"max_iter": 8, "patience": 3}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(adapted.parameters()).dtype == dtype
    assert not any("forward" in vars(module) for module in adapted.modules())
    record = adapted.finetuning_
    fresh, answers = sentences(300, seed=1)
    right = float((adapted(**fresh).logits.argmax(1) == answers).double().mean())
    assert right > 0.6 > float((model(**fresh).logits.argmax(1) == answers).double().mean())
    merged = record.delta.merged(model)
    assert all(torch.equal(value, adapted.state_dict()[name]) for name, value in merged.state_dict().items())
    assert record.delta.whole.keys() == {"head"}


def test_no_change_has_a_higher_rank_than_the_bases(monkeypatch):
    monkeypatch.setattr(adapt_blocks, "_RANKS", (8,))
    inputs, kinds = sentences(40)
    settings = SETTINGS | {"max_iter": 2, "layers": "all", "validation": 0}
    layers = widefit.finetune(transformer(features=16), inputs, kinds, **settings).finetuning_.delta.layers
    assert len(layers) == 12
    assert {layer.rank for layer in layers.values()} == {8}
    assert max(int(torch.linalg.matrix_rank(layer.dense())) for layer in layers.values()) == 8


def test_targets_for_every_position_and_tokens_that_follow():
    inputs, _ = sentences(120)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    model = transformer(torch.float32, by_position=True)
    targets = torch.where(mask == 0, -100, (ids > 9).long() + (ids > 14))
    adapted = widefit.finetune(model, inputs, targets, **(SETTINGS | {"max_iter": 20, "patience": 5}))
    right = (adapted(**inputs).logits.argmax(2) == targets)[mask != 0].double().mean()
    assert right > 0.65 > (model(**inputs).logits.argmax(2) == targets)[mask != 0].double().mean()
    speaker = transformer(torch.float32, classes=20, by_position=True)
    ids = (ids[:, :1] + torch.arange(9)) % 19 + 1
    told = widefit.finetune(speaker, {"input_ids": ids}, ids, loss="next_token", max_iter=5)
    steps = told.finetuning_.history.steps
    assert min(info.metric for info in steps) < 0.8 * steps[0].metric


@pytest.mark.parametrize("layers", ["auto", "all", "readout", ["layers.2.value", "head"]])
def test_layers_that_were_asked_for(layers: Any):
    inputs, kinds = sentences()
    record = widefit.finetune(transformer(), inputs, kinds, layers=layers, **SETTINGS).finetuning_
    if layers == "all":
        assert len(record.stages[0]) == 13
    elif layers != "auto":
        assert record.stages == (("head",) if layers == "readout" else tuple(layers),)
    assert {"layers", "readout", "rank", "frozen start"} <= {choice.what for choice in record.plan.choices}


def test_resumes_to_the_same_bits(tmp_path):
    inputs, kinds = sentences()
    settings = SETTINGS | {"max_iter": 4, "patience": 9}
    model = transformer()
    whole_run = widefit.finetune(model, inputs, kinds, **settings)
    path = tmp_path / "run.state"
    widefit.finetune(model, inputs, kinds, callbacks=[Checkpoint(path)], **(settings | {"max_iter": 2}))
    resumed = widefit.finetune(model, inputs, kinds, resume=read_checkpoint(path), **settings)
    assert resumed.finetuning_.history.losses == whole_run.finetuning_.history.losses
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole_run.state_dict().items())
    with pytest.raises(ValueError, match="belongs to another model"):
        widefit.finetune(model, inputs, kinds.flip(0), resume=read_checkpoint(path), **settings)


class Far:
    """Squared distance, of the size it was made with."""

    def __init__(self, size: float):
        self.size = size

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.size * (outputs - targets).square().mean()


def test_resumes_with_an_equal_loss_that_was_made_anew(tmp_path):
    inputs, kinds = sentences(20)
    y = nn.functional.one_hot(kinds, 3).double()
    path = tmp_path / "run.state"
    settings: dict[str, Any] = {"layers": "readout", "max_iter": 1}
    widefit.finetune(transformer(), inputs, y, loss=Far(2.0), callbacks=[Checkpoint(path)], **settings)
    resumed = widefit.finetune(transformer(), inputs, y, loss=Far(2.0), resume=read_checkpoint(path), **settings)
    assert resumed.finetuning_.history[-1].step == 1
    with pytest.raises(ValueError, match="belongs to another model"):
        widefit.finetune(transformer(), inputs, y, loss=Far(3.0), resume=read_checkpoint(path), **settings)


class Counting(Transformer):
    """Notes how many rows it is called with."""

    seen: ClassVar[list[int]] = []

    def forward(self, **inputs: Tensor) -> Any:
        self.seen.append(len(inputs["input_ids"]))
        return super().forward(**inputs)


@pytest.mark.parametrize("form", ["mapping", "rows"])
def test_batches_have_the_size_that_was_asked_for(form: str):
    X, y = in_every_form()[form]
    Counting.seen.clear()
    widefit.finetune(Counting(), X, y, batch_size=5, **(SETTINGS | {"max_iter": 1}))
    assert max(Counting.seen) == 5
    (found,) = read_batches({"input_ids": torch.ones(99, 99).long()}, torch.arange(99), torch.zeros(1), size=100)
    assert found.rows == 99


def test_an_epoch_that_is_taken_back_tells_the_loss_of_the_point_it_goes_back_to(monkeypatch):
    monkeypatch.setattr(block_steps, "_FAR", 0.5)
    inputs, kinds = sentences(40)
    settings = SETTINGS | {"max_iter": 2, "patience": 9, "damping": 1e-12}
    steps = widefit.finetune(transformer(), inputs, kinds, **settings).finetuning_.history.steps
    refused = [info for info in steps if not info.accepted]
    assert refused
    for info in refused:
        best = min(steps[: info.step], key=lambda one: one.metric)
        assert (info.loss, info.metric) == (best.loss, best.metric)
        assert info.loss != info.metric


@pytest.mark.parametrize(
    ("layers", "damping", "reason"), [("readout", None, "the readout alone"), ("all", 1e-12, "no epoch")]
)
def test_the_rank_of_nothing_has_its_reason(layers: str, damping: float | None, reason: str):
    inputs, kinds = sentences(40)
    settings = SETTINGS | {"max_iter": 1, "damping": damping}
    plan = widefit.finetune(transformer(), inputs, kinds, layers=layers, **settings).finetuning_.plan
    (choice,) = [choice for choice in plan.choices if choice.what == "rank"]
    assert choice.chosen == "0"
    assert choice.reason.startswith(reason)


def test_a_state_is_moved_to_where_the_model_is(monkeypatch):
    """The device without memory stands for an accelerator."""
    steps = []
    monkeypatch.setattr(BlockSteps, "finish", lambda self: steps.append(self))
    inputs, kinds = sentences(20)
    history = widefit.finetune(transformer(), inputs, kinds, **(SETTINGS | {"max_iter": 1})).finetuning_.history
    tensors, document = steps[0].state()
    monkeypatch.setattr(steps[0], "_point", steps[0]._point.to("meta"))
    monkeypatch.setattr(steps[0], "_put", lambda point: None)
    steps[0].restore((tensors, document | {"history": history.to_dict()}))
    assert steps[0]._point.device.type == steps[0]._best.device.type == "meta"


def test_the_readout_is_as_long_as_held_out_rows_want(monkeypatch):
    steps: list[BlockSteps] = []
    monkeypatch.setattr(BlockSteps, "finish", lambda self: steps.append(self))
    inputs, kinds = sentences(60)
    widefit.finetune(transformer(torch.float64), inputs, kinds, **(SETTINGS | {"max_iter": 1}))
    (run,) = steps
    assert run._held is not None

    def outputs(point: Tensor) -> Tensor:
        run._put(point)
        with torch.no_grad():
            return torch.cat([one.call(run._work) for one in run._held.batches])  # pyright: ignore[reportOptionalMemberAccess]

    point = torch.randn(len(run._point), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.cat([one.targets for one in run._held.batches])
    before = outputs(point)
    losses = {scale: float(nn.functional.cross_entropy(scale * before, wanted)) for scale in block_steps._SCALES}
    best = min(losses, key=lambda scale: losses[scale])
    judgement, scaled = run._judged(point)
    assert best != 1
    assert judgement is not None
    assert judgement.loss == pytest.approx(losses[best])
    torch.testing.assert_close(outputs(scaled), best * before)


def test_named_deltas_take_turns():
    inputs, kinds = sentences()
    model = transformer()
    given = model(**inputs).logits
    adapted = {name: widefit.finetune(model, inputs, y, **SETTINGS) for name, y in (("a", kinds), ("b", kinds.flip(0)))}
    named = NamedDeltas(model, {name: one.finetuning_.delta for name, one in adapted.items()})
    for name in ("a", "b", None, "b", "a"):
        expected = given if name is None else adapted[name](**inputs).logits
        assert torch.equal(named.use(name)(**inputs).logits, expected)
        assert named.active == name
    with pytest.raises(ValueError, match="no delta 'c'; there are 'a', 'b'"):
        named.use("c")


def refusals() -> dict[str, tuple[dict[str, Any], str]]:
    inputs, kinds = sentences(30)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return {
        "classes": ({"y": kinds + 1}, "y holds class 3, the model has outputs for 0 … 2: number the classes"),
        "negative class": ({"y": kinds - 1}, "y holds class -1"),
        "lengths": ({"y": kinds[:-1]}, r"X\['input_ids'\] has 30 rows, y has 29"),
        "lengths of inputs": (
            {"X": {"input_ids": ids, "attention_mask": mask[1:]}},
            r"X\['attention_mask'\] has 29 rows",
        ),
        "tokens": ({"X": {"input_ids": ids + 9, "attention_mask": mask}}, "but tokens has 20 entries: is it the token"),
        "unknown input": ({"X": {**inputs, "pixels": ids}}, "which the model does not take: .*pixels"),
        "ragged": ({"X": {"input_ids": [[1, 2], [3]]}, "y": [0, 1]}, "padding=True, return_tensors='pt'"),
        "texts": ({"X": {"input_ids": ["a", "b"]}, "y": [0, 1]}, "texts go through a tokenizer first"),
        "no targets": ({"y": None}, "y is missing: pass targets"),
        "empty mask": ({"X": {"input_ids": ids, "attention_mask": mask * 0}}, "attention_mask leaves out all of row 0"),
        "fractions": ({"y": kinds.double()}, "class numbers as whole numbers"),
        "layer": ({"layers": ["tokens"]}, "'tokens' cannot be adapted; the layers that can are 'layers.0.query'"),
        "layers word": ({"layers": "head"}, r'layers must be "auto", "readout", "all" or a list of names, got .head.'),
        "no layer": ({"layers": []}, "layers must name at least one layer"),
        "rows of several lengths": ({"X": [ids[0], ids[1, :4]], "y": [0, 1]}, "X has rows of several lengths"),
        "ridge": ({"alpha": 0.1}, "alpha: repeated blocks are held back by held-out rows"),
        "threads": ({"threads": 2}, "threads: repeated blocks have no sparse products"),
        "batches of its own": (
            {"X": Loader([(inputs, kinds)]), "y": None, "batch_size": 4},
            "batch_size: X comes in batches of its own",
        ),
        "other held-out inputs": (
            {"X_val": {"attention_mask": mask}, "y_val": kinds},
            "all rows must have the same inputs",
        ),
        "other held-out targets": ({"X_val": inputs, "y_val": kinds[:, None]}, "targets must have the same axes"),
        "half": ({"X_val": inputs, "y_val": None}, "y_val is missing: pass targets"),
        "following": ({"loss": "next_token"}, "takes tokens of shape"),
    }


@pytest.mark.parametrize("case", refusals())
def test_wrong_input_is_refused(case: str):
    wrong, message = refusals()[case]
    inputs, kinds = sentences(30)
    arguments = {"X": inputs, "y": kinds} | SETTINGS | wrong
    with pytest.raises(ValueError, match=message):
        widefit.finetune(transformer(), arguments.pop("X"), arguments.pop("y"), **arguments)


def test_positions_are_compared():
    inputs, _ = sentences(30)
    model = transformer(by_position=True)
    for targets, message in (
        (inputs["input_ids"][:, :5] % 3, "y has 5 targets a row, the model gives outputs for 9 positions"),
        (torch.full_like(inputs["input_ids"], -100), "y has no target that counts: all of them are -100"),
    ):
        with pytest.raises(ValueError, match=message):
            widefit.finetune(model, inputs, targets, **SETTINGS)


def test_an_output_without_logits_is_refused():
    class Encoder(Transformer):
        def forward(self, **inputs: Tensor) -> Any:
            return {"states": super().forward(**inputs).logits}

    inputs, kinds = sentences(30)
    with pytest.raises(ValueError, match="got dict without logits: wrap it in a module with a head"):
        widefit.finetune(Encoder().double(), inputs, kinds, **SETTINGS)
    assert isinstance(transformer()(**inputs), Answer)


def test_a_dropout_that_does_not_heed_the_mode_is_refused():
    class Stubborn(Transformer):
        def forward(self, **inputs: Tensor) -> Any:
            return Answer(nn.functional.dropout(super().forward(**inputs).logits, 0.5, training=True))

    inputs, kinds = sentences(30)
    with pytest.raises(ValueError, match=r"a dropout that does not heed model\.eval"):
        widefit.finetune(Stubborn().double(), inputs, kinds, **SETTINGS)


def test_empty_batches_are_passed_over():
    inputs, kinds = sentences(30)
    none = {name: tensor[:0] for name, tensor in inputs.items()}, kinds[:0]
    like = torch.zeros(1)
    found = read_batches(Loader([none, (inputs, kinds), none]), None, like)
    assert [one.rows for one in found] == [30]
    with pytest.raises(ValueError, match="X has no rows"):
        read_batches(Loader([none]), None, like)
