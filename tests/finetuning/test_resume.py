"""Fine-tunings that go on from a checkpoint, and checkpoints that are refused."""

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import Running
from networks import moved_problem
from torch import Tensor, nn

import widefit
from widefit.callbacks import Callback
from widefit.files import Checkpoint, FileError, read_checkpoint, write_checkpoint


class Stop(Callback):
    def __init__(self, at: int):
        self.at = at

    def step(self, run, info):
        return info.step == self.at


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("settings", [{}, {"layers": "all", "batch_size": 30}, {"layers": "all", "alpha": 1e-3}])
def test_resumes_to_the_same_bits(settings: dict, at: int, tmp_path):
    model, x, y = moved_problem()
    arguments = {"loss": "cross_entropy", "max_iter": 8, "patience": 9} | settings
    whole = widefit.finetune(model, x, y, **arguments)
    path = tmp_path / "run.state"
    widefit.finetune(model, x, y, callbacks=[Checkpoint(path), Stop(at)], **arguments)
    resumed = widefit.finetune(model, x, y, resume=read_checkpoint(path), **arguments)
    assert resumed.finetuning_.history.losses == whole.finetuning_.history.losses
    assert resumed.finetuning_.stages == whole.finetuning_.stages
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)
    with pytest.raises(ValueError, match="belongs to another model"):
        widefit.finetune(model, -x, y, resume=read_checkpoint(path), **arguments)


@pytest.mark.parametrize("apart", [True, False])
def test_steps_in_parts_resume_to_the_same_bits(apart: bool, tmp_path, monkeypatch):
    """Where parts have nothing in common, steps are on all rows in between."""
    monkeypatch.setattr("widefit.finetuning.sweep._ROWS", 20)
    model, x, y = moved_problem()
    y = torch.arange(len(x)) % 3 if apart else y
    arguments = {"loss": "cross_entropy", "layers": ["2"], "max_iter": 5, "patience": 9}
    whole = widefit.finetune(model, x, y, **arguments)
    path = tmp_path / "run.state"
    for at in (1, 3):
        widefit.finetune(model, x, y, callbacks=[Checkpoint(path), Stop(at)], **arguments)
        resumed = widefit.finetune(model, x, y, resume=read_checkpoint(path), **arguments)
        assert resumed.finetuning_.history.losses == whole.finetuning_.history.losses
        for key, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value)


@pytest.mark.parametrize("layers", ["readout", "auto", "all"])
def test_a_fine_tuning_that_has_ended_stays_as_it_is(layers: str, tmp_path):
    model, x, y = moved_problem()
    model = nn.Sequential(nn.BatchNorm1d(5).double(), *model)
    path = tmp_path / "run.state"
    whole = widefit.finetune(model, x, y, loss="cross_entropy", layers=layers, callbacks=[Checkpoint(path)])
    again = widefit.finetune(model, x, y, loss="cross_entropy", layers=layers, resume=read_checkpoint(path))
    assert again.finetuning_.history.steps == whole.finetuning_.history.steps
    assert again.finetuning_.history.stop_reason == whole.finetuning_.history.stop_reason
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


SCRIPT = """
import sys
import widefit
from networks import moved_problem
from torch.nn.functional import one_hot, smooth_l1_loss
from widefit.files import Checkpoint

model, x, y = moved_problem()
y = one_hot(y, 3).double()
arguments = {"loss": smooth_l1_loss, "layers": "readout", "max_iter": 4}
widefit.finetune(model, x, y, callbacks=[Checkpoint(sys.argv[1])], **arguments)
for name, value in [("max_iter", 2.5), ("tol", None), ("resume", "run.ckpt"), ("layers", 2), ("patience", "3")]:
    try:
        widefit.finetune(model, x, y, **{**arguments, name: value})
    except ValueError as error:
        print(error)
"""


def test_another_process(tmp_path: Path):
    """A loss that is a function is the same there; and without the type checks of the tests, words refuse types."""
    path = tmp_path / "run.state"
    process = Running(path, code=SCRIPT, folder=tmp_path)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert stdout.splitlines() == [
        "max_iter must be a whole number of at least 1, got 2.5",
        "tol must be a finite number ≥ 0, got None",
        "resume must be what widefit.files.read_checkpoint returns, got str",
        'layers must be "auto", "readout", "all" or a list of names, got 2',
        "patience must be a whole number of at least 1, got '3'",
    ]
    model, x, y = moved_problem()
    y = nn.functional.one_hot(y, 3).double()
    arguments: dict[str, Any] = {"layers": "readout", "max_iter": 4, "resume": read_checkpoint(path)}
    resumed = widefit.finetune(model, x, y, loss=nn.functional.smooth_l1_loss, **arguments)
    assert resumed.finetuning_.history[-1].step == 4
    with pytest.raises(ValueError, match="belongs to another model"):
        widefit.finetune(model, x, y, loss=nn.functional.mse_loss, **arguments)


ARGUMENTS = {"loss": "cross_entropy", "max_iter": 8, "patience": 9, "layers": "all"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state in the second stage, with boundary layers and others."""
    model, x, y = moved_problem(n=40)
    path = tmp_path_factory.mktemp("saved") / "run.state"
    widefit.finetune(model, x, y, callbacks=[Checkpoint(path), Stop(6)], **ARGUMENTS)
    return read_checkpoint(path)


def resume(state: tuple[dict[str, Tensor], dict[str, Any]], path: Path) -> nn.Module:
    """Go on from a state that went through a file."""
    model, x, y = moved_problem(n=40)
    assert write_checkpoint(path, state)
    return widefit.finetune(model, x, y, resume=read_checkpoint(path), **ARGUMENTS)


def altered_tensors(tensors: dict[str, Tensor], name: str) -> Iterator[dict[str, Tensor]]:
    """The tensors with one of them absent, renamed, or of another shape or type."""
    others = {key: tensor for key, tensor in tensors.items() if key != name}
    tensor = tensors[name]
    yield others
    yield {**others, f"{name}.": tensor}
    yield {**others, f"{name}.0": tensor, name: tensor}
    yield {**others, name: tensor[:0]}
    yield {**others, name: torch.cat([tensor, tensor])}
    yield {**others, name: tensor[None]}
    yield {**others, name: tensor.to(torch.float16)}
    yield {**others, name: tensor.to(torch.int64)}
    if tensor.is_floating_point():
        yield {**others, name: tensor / 0}


def test_every_tensor_is_checked(saved: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path):
    tensors, document = saved
    resume((dict(tensors), document), tmp_path / "same")
    kinds = {re.sub(r"\d+", "#", name.split(".")[0]) + "." + ".".join(name.split(".")[1:2]) for name in tensors}
    assert kinds == {
        *("generator.", "stage#.sample_coefficients"),
        *(f"{point}.{part}" for point in ("point", "best") for part in ("sample_coefficients", "weights")),
    }
    for name in tensors:
        for number, altered in enumerate(altered_tensors(tensors, name)):
            with pytest.raises(FileError, match="checkpoint"):
                resume((altered, document), tmp_path / f"{name}.{number}")
    with pytest.raises(FileError, match="no state of a random generator"):
        resume(({**tensors, "generator": 0 * tensors["generator"]}, document), tmp_path / "generator")


REFUSED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("finetuning",): (None, 1, "", "a", []),
    ("stages",): (None, -1, 0, 2, 3, 2**40, 1.5, "1", [], True),
    ("progress",): (None, 1, [], {}),
    ("progress", "damping"): (None, 0, -1.0, math.nan, math.inf, "1", []),
    ("progress", "waited"): (None, -1, 1.5, "1", True),
    ("progress", "best_loss"): (None, math.nan, math.inf, "1", []),
    ("history",): (None, 1, [], {"steps": []}),
    ("history", "steps"): (None, [], [None], [{}], {}),
    ("history", "steps", "-1", "step"): (None, -1, 1.5, "1"),
    ("history", "steps", "-1", "loss"): (None, "1", []),
    ("history", "stop_reason"): (None, "why not", 1),
}


@pytest.mark.parametrize("place", REFUSED, ids=".".join)
def test_every_field_is_checked(
    saved: tuple[dict[str, Tensor], dict[str, Any]], place: tuple[str, ...], tmp_path: Path
):
    assert {name for name, *_ in REFUSED} == saved[1].keys()
    for number, value in enumerate((*REFUSED[place], "absent", "renamed")):
        document = copy.deepcopy(saved[1])
        holder: Any = document
        for key in place[:-1]:
            holder = holder[int(key)] if isinstance(holder, list) else holder[key]
        if value == "absent" and place != ("history", "stop_reason"):
            del holder[place[-1]]
        elif value == "renamed":
            holder[f"{place[-1]}s"] = holder.pop(place[-1])
        else:
            holder[place[-1]] = value
        with pytest.raises(ValueError, match=r"checkpoint|why not|absent"):
            resume((saved[0], document), tmp_path / f"{number}")


def test_the_checkpoint_of_a_training_is_refused(tmp_path: Path):
    model, x, y = moved_problem(n=40)
    network = widefit.nn.TwoLayer(5, 64, 1, seed=0)
    widefit.train(network, x.numpy(), y.double().numpy(), max_iter=1, callbacks=[Checkpoint(tmp_path / "c")])
    with pytest.raises(FileError, match="not one of a fine-tuning"):
        widefit.finetune(model, x, y, resume=read_checkpoint(tmp_path / "c"), **ARGUMENTS)
