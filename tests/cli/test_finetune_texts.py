"""`widefit finetune --text`: a folder of transformers and a table of texts in, such a folder out. And PEFT's format."""

import contextlib
import copy
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call
from safetensors.torch import load_file, save_file
from torch import nn

import widefit
from widefit.cli.run.text_folder import load_to_adapt, open_folder
from widefit.data.target import Target
from widefit.files import FileError
from widefit.finetuning import LayerDelta, LowRankDelta, WholeLayer

GOOD = ["good", "fine", "great", "lovely", "warm"]
BAD = ["bad", "poor", "awful", "dull", "cold"]
REST = ["the", "film", "a", "plot", "was", "and", "very", "with", "cast", "scene"]


def small_bert(labels: int = 2) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=labels,
        initializer_range=0.3,
    )
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and tables of texts."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    place = tmp_path_factory.mktemp("texts")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *REST]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    tokenizer.save_pretrained(place / "bert")
    small_bert().save_pretrained(place / "bert")  # pyright: ignore[reportCallIssue]
    random.seed(0)
    for name, rows in (("train.csv", 160), ("test.csv", 60)):
        lines = ["question,label"]
        for _ in range(rows):
            liked = random.random() < 0.5
            text = random.choices(REST, k=random.randint(2, 6)) + random.choices(GOOD if liked else BAD, k=2)
            random.shuffle(text)
            lines.append(f"{' '.join(text)},{'liked' if liked else 'panned'}")
        (place / name).write_text("\n".join([*lines, ""]))
    return place


def test_a_folder_is_adapted_evaluated_and_applied(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    ran = call(
        *("finetune", "bert", "train.csv", "--text", "question", "--target", "label", "--delta", "adapter", "--json"),
        folder=folder,
    )
    assert ran.code == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["classes"] == ["liked", "panned"]
    scored = call("evaluate", "bert.tuned", "test.csv", "--json", folder=folder)
    assert scored.code == 0, scored.stderr
    assert json.loads(scored.stdout)["metrics"]["model"]["accuracy"] > 0.65
    applied = call("predict", "bert.tuned", "test.csv", "--proba", folder=folder)
    assert applied.stdout.splitlines()[0] == "prediction,probability_liked,probability_panned"
    assert len(applied.stdout.splitlines()) == 61
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    tokens = {"input_ids": torch.tensor([[2, 4, 15, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        expected = load(folder / "bert.tuned")(**tokens).logits
        adapter = peft.PeftModel.from_pretrained(load(folder / "bert"), folder / "adapter")
        torch.testing.assert_close(adapter(**tokens).logits, expected)
        torch.testing.assert_close(adapter.merge_and_unload()(**tokens).logits, expected)


def test_it_resumes(folder: Path) -> None:
    arguments = ("finetune", "bert", "train.csv", "--text", "question", "--checkpoint", "run.ckpt")
    first = call(*arguments, "--max-iter", "1", "--out", "first", folder=folder)
    assert first.code == 0, first.stderr
    again = call(*arguments, "--max-iter", "2", "--out", "second", "--resume", "--json", folder=folder)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["steps"] == 2
    refused = call(*arguments, folder=folder)
    assert refused.code == 2
    assert "exists; go on from it with --resume" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bert", "train.csv", "--text", "words"), "there is no column 'words' of texts; the columns are"),
        (("nothing", "train.csv", "--text", "question"), "nothing is not the folder of a model: it has no config.json"),
        (("bert", "train.csv", "x.csv", "--text", "question"), "give the folder and the table alone"),
        (("bert", "train.csv", "--text", "question", "--out", "bert"), "--out: bert is the given model"),
        (("bert", "train.csv", "--text", "question", "--loss", "mse"), "texts are classified, with cross_entropy"),
        (("m:build", "w.pt"), "a table is missing: MODULE:FACTORY WEIGHTS DATA, or FOLDER DATA with --text COLUMN"),
    ],
)
def test_wrong_arguments_are_refused(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = call("finetune", *arguments, folder=folder)
    assert ran.code == 2
    assert message in " ".join(ran.stderr.split())


def test_a_folder_without_a_record_is_refused(folder: Path) -> None:
    ran = call("predict", "bert", "test.csv", folder=folder)
    assert ran.code == 2
    assert "is a folder without widefit.json" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "readout", "--delta", "adapter"), "--delta: PEFT has no format for the readout alone"),
        (("--out", "same", "--delta", "./same"), "--delta: same is that of --out; name another folder"),
        (("--delta", "bert"), "--delta: bert is the given model; name another folder"),
        (("--out", "train.csv"), "--out: train.csv is a file; name a folder"),
        (("--delta", "nowhere/adapter"), "nowhere does not exist"),
        (("--out", "/proc/out"), "--out: the folder /proc is not writable"),
        (("--validation", "0.995"), "--validation 0.995 leaves fewer than two of 160 rows"),
    ],
)
def test_places_are_refused_before_any_work(
    folder: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widefit, "finetune", lambda *_, **__: pytest.fail("it has begun to work"))
    ran = call("finetune", "bert", "train.csv", "--text", "question", *arguments, folder=folder)
    assert ran.code == 2
    assert message in " ".join(ran.stderr.split())


def test_the_adapter_of_a_readout_alone_is_told_to_be_none(folder: Path) -> None:
    ran = call(
        *("finetune", "bert", "train.csv", "--text", "question", "--max-iter", "1", "--out", "head", "--json"),
        *("--layers", "classifier", "--delta", "none"),
        folder=folder,
    )
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["delta"] is None
    assert "no adapter: nothing but the readout was changed" in ran.stderr
    assert (folder / "head" / "widefit.json").is_file()
    assert not (folder / "none").exists()


def tuned(folder: Path, place: Path) -> Path:
    """A folder as `widefit finetune --text` writes it."""
    shutil.copytree(folder / "bert", place)
    target = {"name": "label", "task": "classification", "labels": ["liked", "panned"], "reason": "text"}
    document = {"text": "question", "target": target, "widefit": "0.2.0"}
    (place / "widefit.json").write_text(json.dumps(document))
    return place


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_a_folder_is_never_run(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    place = tuned(folder, tmp_path / "model")
    config = json.loads((place / name).read_text())
    for key in ("model_type", "tokenizer_class"):
        config[key] = "own"
    classes = {
        "AutoConfig": "own.Own",
        "AutoModelForSequenceClassification": "own.Own",
        "AutoTokenizer": ["own.Own"] * 2,
    }
    (place / name).write_text(json.dumps(config | {"auto_map": classes}))
    (place / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with contextlib.suppress(FileError):  # a tokenizer that is known in another form is opened as that
        open_folder(place)
    assert not (tmp_path / "ran").exists()


def altered_record(place: Path, **changes: Any) -> None:
    document = json.loads((place / "widefit.json").read_text())
    document["target"] |= changes.pop("target", {})
    (place / "widefit.json").write_text(json.dumps(document | changes))


def rewritten(place: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = place / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


ALTERATIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (lambda place: (place / "widefit.json").write_text("{"), "its document cannot be read"),
    "nested": (lambda place: (place / "widefit.json").write_text("[" * 9999), "its document cannot be read"),
    "list": (lambda place: (place / "widefit.json").write_text("[]"), "must be an object"),
    "text": (lambda place: altered_record(place, text=3), "text must be str"),
    "unknown": (lambda place: altered_record(place, more=3), "has a field 'more'"),
    "quantity": (lambda place: altered_record(place, target={"task": "regression", "labels": []}), "has labels, each"),
    "twice": (lambda place: altered_record(place, target={"labels": ["a", "a"]}), "has labels, each once"),
    "mixed": (lambda place: altered_record(place, target={"labels": ["a", 1]}), "labels is a list of 2"),
    "more": (lambda place: altered_record(place, target={"labels": ["a", "b", "c"]}), "2 classes apart, widefit.json"),
    "no head": (
        lambda place: rewritten(place, lambda all_: {k: v for k, v in all_.items() if k != "classifier.weight"}),
        "weights lack .classifier.weight",
    ),
    "other head": (
        lambda place: rewritten(place, lambda all_: all_ | {"classifier.weight": torch.zeros(3, 16)}),
        "cannot be opened by transformers",
    ),
    "truncated": (
        lambda place: (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:2000]),
        "cannot be opened by transformers",
    ),
    "pickle": (
        lambda place: (
            torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
            or (place / "model.safetensors").unlink()
        ),
        "cannot be opened by transformers",
    ),
    "config": (lambda place: (place / "config.json").write_text("[1]"), "cannot be opened by transformers"),
    "numbers": (
        lambda place: (place / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide"}'),
        "cannot be opened by transformers",
    ),
}


@pytest.mark.parametrize("case", ALTERATIONS)
def test_an_altered_folder_is_refused(folder: Path, tmp_path: Path, case: str) -> None:
    place = tuned(folder, tmp_path / "model")
    alter, message = ALTERATIONS[case]
    alter(place)
    with pytest.raises(FileError, match=message):
        open_folder(place)


def test_a_written_folder_is_opened(folder: Path, tmp_path: Path) -> None:
    classifier, encoding = open_folder(tuned(folder, tmp_path / "model"))
    assert encoding.target == Target("label", "classification", ("liked", "panned"), "text")
    shares = classifier.predict_proba(np.asarray(["good film", "dull"], dtype=object))
    assert shares.sum(1) == pytest.approx([1.0, 1.0])


def test_peft_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = small_bert(3)
    tokens = {"input_ids": torch.randint(0, 30, (5, 7)), "attention_mask": torch.ones(5, 7, dtype=torch.long)}
    query, outer = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"
    changes = {
        query: LayerDelta(torch.randn(16, 3), torch.randn(16, 3)),
        outer: LayerDelta(torch.randn(16, 5), torch.randn(32, 5), torch.randn(16)),
        "bert.pooler.dense": LayerDelta(torch.randn(16, 16), None),
    }
    delta = LowRankDelta(changes, {"classifier": WholeLayer(torch.randn(3, 16), torch.randn(3))})
    delta.save_peft(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16
    assert config["rank_pattern"] == config["alpha_pattern"] == {query: 3, outer: 5}
    with torch.no_grad():
        expected = delta.merged(model)(**tokens).logits
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
        # An adapter beside its layer sums in another order than the two in one.
        torch.testing.assert_close(loaded(**tokens).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loaded.merge_and_unload()(**tokens).logits, expected)
        read = widefit.LowRankDelta.load_peft(tmp_path / "ours")
        torch.testing.assert_close(read.merged(model)(**tokens).logits, expected)
        delta.save(tmp_path / "delta")
        assert torch.equal(widefit.LowRankDelta.load(tmp_path / "delta").merged(model)(**tokens).logits, expected)
        for rslora in (False, True):
            settings = peft.LoraConfig(
                r=4,
                lora_alpha=16,
                target_modules=["query", "dense"],
                modules_to_save=["classifier"],
                init_lora_weights=False,
                rank_pattern={"query": 2},
                alpha_pattern={"query": 3},
                use_rslora=rslora,
            )
            theirs = peft.get_peft_model(copy.deepcopy(model), settings).eval()
            theirs.save_pretrained(tmp_path / f"theirs{rslora}")
            ours = LowRankDelta.load_peft(tmp_path / f"theirs{rslora}").merged(model)
            torch.testing.assert_close(ours(**tokens).logits, theirs(**tokens).logits, rtol=1e-5, atol=1e-5)
    dora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["query"], use_dora=True))
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(FileError, match="use_dora=True makes another model than W"):
        LowRankDelta.load_peft(tmp_path / "dora")
    with pytest.raises(FileError, match="cannot be read"):
        LowRankDelta.load_peft(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no adapted layer"):
        LowRankDelta({}).save_peft(tmp_path / "empty")


@pytest.mark.parametrize("lacking", ["bert.pooler.dense.weight", "classifier.weight"])
def test_weights_in_front_of_the_head_that_begin_at_random_are_told(folder: Path, tmp_path: Path, lacking: str):
    place = shutil.copytree(folder / "bert", tmp_path / "bert")
    tensors = load_file(place / "model.safetensors")
    del tensors[lacking]
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_to_adapt(place, 2)
    told = [str(one.message) for one in caught if "begin at random" in str(one.message)]
    assert [lacking in one for one in told] == ([True] if lacking.startswith("bert.") else [])
