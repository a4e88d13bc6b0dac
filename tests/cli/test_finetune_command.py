"""`widefit finetune`: a module path, weights and a table in; weights and a delta out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, run
from safetensors.torch import load_file, save_file
from torch import nn

import widefit
from widefit.cli.output import Output
from widefit.cli.run.finetune import Job, load_model
from widefit.cli.run.finetune import run as adapt

MODELS = """
import os, signal
from pathlib import Path
from torch import nn

def build():
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))

def plain():
    return nn.ReLU()

def needs(width):
    return nn.Linear(width, 1)

def fails():
    raise RuntimeError("no such disk")

class Interrupted(nn.Module):
    # Sends SIGTERM in a forward pass once a checkpoint is there, if a file asks for it.

    def __init__(self):
        super().__init__()
        self.net = build()

    def forward(self, x):
        if bool(x.sum() < float("inf")) and Path("ask").exists() and Path("run.ckpt").exists():
            Path("ask").unlink()
            os.kill(os.getpid(), signal.SIGTERM)
        return self.net(x)

def single():
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))

number = 3
def one():
    return 1
"""


def single() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finetune")
    (place / "my_models.py").write_text(MODELS)
    (place / "broken.py").write_text("import nothing_of_that_name")
    (place / "wrong.py").write_text("def build(:")
    torch.manual_seed(0)
    state = build().state_dict()
    torch.save(state, place / "weights.pt")
    save_file(state, place / "weights.safetensors")
    torch.save({f"net.{name}": value for name, value in state.items()}, place / "net.pt")
    torch.save(single().state_dict(), place / "single.pt")
    torch.save([1, 2], place / "list.pt")
    torch.save(build(), place / "whole.pt")
    torch.save({**state, "0.weight": torch.zeros(31, 3)}, place / "shape.pt")
    torch.save(
        {name: value for name, value in state.items() if name != "2.bias"} | {"x": torch.ones(1)}, place / "k.pt"
    )
    (place / "text.pt").write_text("no weights")
    rows = np.random.default_rng(0).normal(size=(60, 3))
    sums = [f"{row[0] - 2 * row[1]:.4f}" for row in rows]
    table = {
        "numbers.csv": ("a,b,c,kind", sums),
        "kinds.csv": ("a,b,c,kind", ["ant" if row[0] + row[1] > 0 else "bee" for row in rows]),
        "four.csv": ("a,b,c,kind", [str(i % 4) for i in range(60)]),
        "two_columns.csv": ("a,b,kind", [str(i % 2) for i in range(60)]),
        "words.csv": ("a,b,c,kind", [str(i % 2) for i in range(60)]),
        "gaps.csv": ("a,b,c,kind", [str(i % 2) for i in range(60)]),
    }
    for name, (head, kinds) in table.items():
        lines = [",".join([*(f"{value:.4f}" for value in row[: head.count(",")]), kind])
                 for row, kind in zip(rows, kinds, strict=True)]  # fmt: skip
        if name == "words.csv":
            lines = ["x" + line for line in lines]
        if name == "gaps.csv":
            lines[4] = lines[4].replace(lines[4].split(",")[1], "", 1)
        (place / name).write_text("\n".join([head, *lines, ""]))
    return place


def test_weights_and_delta(folder: Path):
    source = "my_models:build", "weights.pt", "kinds.csv"
    found = call("finetune", *source, "--target", "kind", "--delta", "d.delta", "--json", folder=folder)
    assert found.code == 0
    document = json.loads(found.stdout)
    assert document["loss"] == "cross_entropy"
    assert document["classes"] == ["ant", "bee"]
    assert document["held-out loss"][1] < 0.5 * document["held-out loss"][0]
    table = np.genfromtxt(folder / "kinds.csv", delimiter=",", skip_header=1, dtype=str)
    X, y = torch.from_numpy(table[:, :3].astype(np.float32)), torch.from_numpy(table[:, 3] == "bee")
    right = {}
    for name in ("weights.pt", "weights.tuned.pt"):
        model = build()
        model.load_state_dict(torch.load(folder / name, weights_only=True))
        right[name] = int((model(X).argmax(1) == y).sum())
    said = [12 * document["held-out accuracy"][i] + 48 * document["training accuracy"][i] for i in (0, 1)]
    assert said == pytest.approx([right["weights.pt"], right["weights.tuned.pt"]])
    assert right["weights.tuned.pt"] > 54 > right["weights.pt"]
    new = torch.load(folder / "weights.tuned.pt", weights_only=True)
    model = build()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    assert list(new) == list(model.state_dict())
    merged = widefit.LowRankDelta.load(folder / "d.delta").merged(model)
    assert all(torch.equal(value, new[name]) for name, value in merged.state_dict().items())


def test_safetensors(folder: Path):
    source = "my_models:build", "weights.safetensors", "kinds.csv"
    found = call("finetune", *source, "--layers", "2", "--out", "new.safetensors", folder=folder)
    assert all(f"{part} {what}" in found.stdout for part in ("held-out", "training") for what in ("accuracy", "loss"))
    assert "training ended because" in found.stderr
    assert "weights in new.safetensors" in found.stderr
    before, after = load_file(folder / "weights.safetensors"), load_file(folder / "new.safetensors")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("data", "options", "score"),
    [
        ("numbers.csv", {}, "held-out R²"),
        ("kinds.csv", {"loss": "bce"}, "held-out accuracy"),
        ("numbers.csv", {"validation": 0.0}, "training R²"),
    ],
)
def test_scores_fit_the_target(folder: Path, data: str, options: dict, score: str):
    """R² of quantities, accuracy of one logit; no held-out score where nothing is held out."""
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    source = "my_models:single", "single.pt", data
    found = call("finetune", *source, "--target", "kind", "--out", "s.pt", "--json", *flags, folder=folder)
    assert found.code == 0, found.stderr
    document = json.loads(found.stdout)
    before, after = document[score]
    assert after > max(0.9, before)
    assert ("held-out R²" in document) == (data == "numbers.csv" and not options)


LONG = ("my_models:Interrupted", "net.pt", "kinds.csv", "--target", "kind", "--layers", "all", "--max-iter", 12)
SAVED = ("--checkpoint", "run.ckpt", "--checkpoint-every", 0)


def test_sigterm_keeps_the_best_and_a_checkpoint_goes_on_to_the_same_bits(folder: Path):
    (folder / "ask").touch()
    first = run("finetune", *LONG, *SAVED, "--out", "first.pt", "--json", folder=folder, code=130)
    interrupted = json.loads(first.stdout)
    assert interrupted["stopped"] == "interrupted"
    assert not (folder / "ask").exists()
    assert (folder / "first.pt").exists()
    resumed = call("finetune", *LONG, *SAVED, "--resume", "--out", "resumed.pt", "--json", folder=folder)
    whole = call("finetune", *LONG, "--out", "straight.pt", "--json", folder=folder)
    one, two = json.loads(resumed.stdout), json.loads(whole.stdout)
    assert one["steps"] == two["steps"] > interrupted["steps"]
    assert one["held-out loss"] == two["held-out loss"]
    weights = [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("resumed", "straight")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    refused = call("finetune", *LONG, *SAVED, folder=folder)
    assert refused.code == 2
    assert "the checkpoint run.ckpt exists; go on from it with --resume" in refused.stderr


CHECKPOINTS_REFUSED = {
    "no file": (["--resume"], "--resume needs --checkpoint FILE"),
    "none to resume": (["--checkpoint", "none.ckpt", "--resume"], "there is no checkpoint none.ckpt to resume"),
    "no checkpoint": (["--checkpoint", "four.csv", "--resume"], "four.csv is not a checkpoint"),
    "the weights": (["--checkpoint", "weights.pt", "--resume"], "is the same file as the weights"),
}


@pytest.mark.parametrize("name", CHECKPOINTS_REFUSED)
def test_checkpoints_that_are_refused(folder: Path, name: str):
    options, message = CHECKPOINTS_REFUSED[name]
    found = call("finetune", "my_models:build", "weights.pt", "kinds.csv", "--target", "kind", *options, folder=folder)
    assert found.code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


def test_help_has_examples(folder: Path):
    said = call("finetune", "--help", folder=folder).stdout
    assert said.count("widefit finetune my_models:") == 5
    assert "--checkpoint tune.ckpt --resume" in said


MODELS_REFUSED = {
    "no colon": ("my_models", "weights.pt", "'my_models' is not MODULE:FACTORY"),
    "no module": ("nothing:build", "weights.pt", "there is no module 'nothing'"),
    "no module inside": (
        "broken:build",
        "weights.pt",
        "'broken' cannot be imported: ModuleNotFoundError: No",
    ),
    "a syntax error": ("wrong:build", "weights.pt", "'wrong' cannot be imported: SyntaxError: "),
    "an error": ("my_models:fails", "weights.pt", "failed when called without arguments: RuntimeError: no such disk"),
    "no factory": ("my_models:number", "weights.pt", "has no function or class 'number'"),
    "arguments": ("my_models:needs", "weights.pt", "failed when called without arguments: TypeError: needs() missing"),
    "not a model": ("my_models:one", "weights.pt", "gives a int, not a torch.nn.Module"),
    "no weights": ("my_models:build", "none.pt", "there is no file"),
    "a list": ("my_models:build", "list.pt", "it holds a list, not tensors by name"),
    "a whole model": ("my_models:build", "whole.pt", "whole.pt is not a state dict"),
    "text": ("my_models:build", "text.pt", "text.pt is not a state dict"),
    "keys": ("my_models:build", "k.pt", "it lacks '2.bias' and it has also 'x'"),
    "shapes": ("my_models:build", "shape.pt", "'0.weight' has shape (31, 3)"),
}

ROWS_REFUSED = {
    "columns": ("two_columns.csv", {}, "in_features=3"),
    "classes": ("four.csv", {}, "class numbers must lie in 0 … 1"),
    "words": ("words.csv", {}, "hold no numbers: 'a'"),
    "gaps": ("gaps.csv", {}, "column 'b' has 1 missing value (first in row 5)"),
    "layer": ("kinds.csv", {"layers": ("1",)}, "'1' cannot be adapted"),
}


@pytest.mark.parametrize("name", MODELS_REFUSED)
def test_models_that_are_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    factory, weights, message = MODELS_REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model(factory, Path(weights))


@pytest.mark.parametrize("name", ROWS_REFUSED)
def test_rows_that_are_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    data, settings, message = ROWS_REFUSED[name]
    job = Job("my_models:build", Path("weights.pt"), data, "kind", settings=settings, out=Path("never.pt"))
    with pytest.raises(ValueError, match=re.escape(message)):
        adapt(job, Output(quiet=True))
    assert not Path("never.pt").exists()


def test_a_refusal_is_one_line(folder: Path):
    found = call("finetune", "my_models:build", "list.pt", "kinds.csv", folder=folder)
    assert found.code == 2
    assert found.stderr.startswith("widefit: error: list.pt is not a state dict")
