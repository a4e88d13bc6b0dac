"""`widefit train --stream`: a file learnt row by row, interrupted and resumed, refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Result, call_all
from safetensors.torch import load_file

COMMON = ["--stream", "--width", 256, "--block", 300]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stream")
    generator = np.random.default_rng(0)
    u, v = generator.uniform(-1, 1, (2, 1000))
    town = generator.choice(["Ulm", "Bonn"], 1000)
    y = np.sin(3 * u) * v + (town == "Ulm")
    lines = [
        f"{a:.4f},{b:.4f},{c},{d:.4f},{'high' if d > 0.5 else 'low'}" for a, b, c, d in zip(u, v, town, y, strict=True)
    ]
    head = "u,v,town,y,kind"
    (place / "data.csv").write_text("\n".join([head, *lines, ""]))
    (place / "half.csv").write_text("\n".join([head, *lines[:600], ""]))
    (place / "gap.csv").write_text("\n".join([head, *lines[:450], ",0.1,Ulm,0.2,low", *lines[450:], ""]))
    (place / "new.csv").write_text("\n".join([head, *lines[:450], "0.2,0.1,Ulm,0.2,middle", ""]))
    return place


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Result]:
    numbers, labels = ["--target", "y", "--drop", "kind"], ["--target", "kind", "--drop", "y"]
    first = call_all(
        {
            "numbers": ["train", "data.csv", *COMMON, *numbers, "--checkpoint", "a.ckpt", "--checkpoint-every", 0],
            "labels": ["train", "data.csv", *COMMON, *labels, "--json", "--no-report", "-q", "--out", "labels.widefit"],
            "half": ["train", "half.csv", *COMMON, *numbers, "--checkpoint", "b.ckpt", "--checkpoint-every", 0],
            "gap": ["train", "gap.csv", *COMMON, *numbers],
            "new": ["train", "new.csv", *COMMON, *labels],
            "tracker": ["train", "data.csv", *COMMON, *numbers, "--tracker", "certificate"],
            "format": ["train", "digits", *COMMON],
        },
        folder=folder,
    )
    arguments = [
        "train",
        "data.csv",
        *COMMON,
        *numbers,
        "--checkpoint",
        "b.ckpt",
        "--resume",
        "--out",
        "resumed.widefit",
    ]
    return first | call_all({"resumed": arguments}, folder=folder)


def test_numbers(said: dict[str, Result], folder: Path) -> None:
    code, stdout, stderr = said["numbers"]
    assert code == 0, stderr
    assert "data: 1,000 rows, 4 features, target y (regression)" in stdout
    for expected in ("tracker", "predicted before learnt", "all 1,000 rows", "the stream came to its end"):
        assert expected in stdout
    assert "rows/s" in stderr
    assert (folder / "data.html").read_text().lower().startswith("<!doctype html>")


def test_labels(said: dict[str, Result]) -> None:
    document = json.loads(said["labels"].stdout)
    assert document["data"]["rows"] == 1000
    assert document["metrics"]["all 1,000 rows"]["accuracy"] > 0.85
    assert document["metrics"]["last 1,000 rows"] == pytest.approx(document["metrics"]["all 1,000 rows"])
    assert document["history"]["steps"][-1]["samples"] == 1000


def test_a_resumed_stream_ends_in_the_same_weights(said: dict[str, Result], folder: Path) -> None:
    assert said["resumed"].code == 0, said["resumed"].stderr
    assert "goes on after 600 rows" in said["resumed"].stderr
    whole, resumed = load_file(folder / "data.widefit"), load_file(folder / "resumed.widefit")
    assert all(whole[name].equal(resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gap", "rows 301 to 600 of the file: column 'u' has 1 missing value (first in row 151)"),
        ("new", "label 'middle' is none of the model's classes ('high', 'low')"),
        ("tracker", "--stream takes --tracker auto, dense or half-space-tree"),
        ("format", "a stream is read from .csv, .tsv or .txt (also compressed), .parquet, or standard input"),
    ],
)
def test_refusals(case: str, message: str, said: dict[str, Result]) -> None:
    assert said[case].code == 2
    assert message in " ".join(said[case].stderr.replace("│", " ").split())
