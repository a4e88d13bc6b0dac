"""The container: what goes in comes out, and nothing else is ever taken for it."""

import gzip
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from widefit.files import FileError, read_container, write_container
from widefit.files.container import MAX_IN_METADATA

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def example_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 3, generator=generator)
    return {
        "weight": base,
        "rows": base[1:],  # shares memory with weight
        "transposed": base.T,
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 7),
        "mask": torch.tensor([True, False, True]),
    }


DOCUMENT = {"loss": [1.0, 1e-300], "name": "é ∘ ≤", "none": None, "nested": {"flag": True, "count": 2**60}}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("container") / "example.widefit"
    write_container(path, example_tensors(), DOCUMENT, "model")
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "scratch.widefit"


def refuse(path: Path, kind: str = "model") -> str:
    with pytest.raises(FileError) as caught:
        read_container(path, kind)
    message = str(caught.value)
    assert str(path) in message
    return message


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "model.widefit"
    write_container(path, example_tensors(), DOCUMENT, "model")
    tensors, document = read_container(path, "model")
    assert document == DOCUMENT
    assert tensors.keys() == example_tensors().keys()
    for name, tensor in example_tensors().items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert os.listdir(tmp_path) == ["model.widefit"]


@given(st.data())
def test_round_trip_of_anything(scratch: Path, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.text(min_size=1, max_size=5), max_size=4, unique=True))
    names = [name for name in names if name != "__metadata__" and name.isprintable()]
    tensors = {}
    for name in names:
        dtype = data.draw(st.sampled_from(DTYPES))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        tensors[name] = torch.randint(0, 2, shape).to(dtype)
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    document = data.draw(st.dictionaries(st.text(), scalars | st.lists(scalars), max_size=4))
    write_container(scratch, tensors, document, "checkpoint")
    found, read = read_container(scratch, "checkpoint")
    assert read == document
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.widefit"
    write_container(path, example_tensors(), DOCUMENT, "model")
    for name, tensor in load_file(path).items():
        assert torch.equal(tensor, example_tensors()[name])


def test_same_content_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_container(first, example_tensors(), DOCUMENT, "model")
    write_container(second, example_tensors(), dict(reversed(DOCUMENT.items())), "model")
    assert first.read_bytes() == second.read_bytes()


@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_altered_byte_is_noticed(content: bytes, scratch: Path, position: float, change: int) -> None:
    index = int(position * len(content))
    scratch.write_bytes(content[:index] + bytes([content[index] ^ change]) + content[index + 1 :])
    refuse(scratch)


def test_every_bit_of_the_description_is_noticed(content: bytes, scratch: Path) -> None:
    (length,) = struct.unpack("<Q", content[:8])
    for index in range(8 + length):
        change = 1 << index % 8
        scratch.write_bytes(content[:index] + bytes([content[index] ^ change]) + content[index + 1 :])
        refuse(scratch)


@given(position=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_noticed(content: bytes, scratch: Path, position: float) -> None:
    size = int(position * len(content))
    scratch.write_bytes(content[:size])
    message = refuse(scratch)
    assert "is truncated" in message if size >= 9 else "is empty" in message or "is not a model file" in message


def test_altered_tensor_says_so(content: bytes, scratch: Path) -> None:
    scratch.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert refuse(scratch).endswith("is altered: its checksum does not match its content")


def test_appended_bytes(content: bytes, scratch: Path) -> None:
    scratch.write_bytes(content + b"xyz")
    assert refuse(scratch).endswith("is altered: 3 bytes follow its end")


def test_another_kind(content: bytes, scratch: Path) -> None:
    scratch.write_bytes(content)
    assert refuse(scratch, "checkpoint").endswith("is a model file, not a checkpoint")


def test_newer_version(content: bytes, scratch: Path) -> None:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    envelope = json.loads(header["__metadata__"]["widefit"])
    envelope["version"] = 2
    save_file(
        example_tensors() | {"rows": torch.zeros(1), "transposed": torch.ones(1)},
        scratch,
        metadata={"widefit": json.dumps(envelope)},
    )
    assert "was written by a newer widefit: its format version is 2" in refuse(scratch)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": [1.0]}))


def write_torch(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


FOREIGN = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a model file"),
    "absent": (lambda path: None, "there is no file"),
    "csv": (lambda path: path.write_text("a,b,c\n1,2,3\n4,5,6\n"), "is not a model file"),
    "one byte": (lambda path: path.write_bytes(b"{"), "is not a model file"),
    "json": (lambda path: path.write_text('{"format": "widefit"}'), "is not a model file"),
    "pickle": (write_pickle, "it is a pickle, which widefit never opens"),
    "torch": (write_torch, "it is a zip archive (perhaps one of torch.save, or an .npz)"),
    "zip": (write_zip, "it is a zip archive"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x" * 100)), "it is gzip-compressed"),
    "npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00 more"), "it is a NumPy array"),
    "safetensors": (lambda path: save_file({"a": torch.zeros(2)}, path), "but not one that widefit wrote"),
    "other metadata": (
        lambda path: save_file({"a": torch.zeros(2)}, path, metadata={"format": "pt"}),
        "but not one that widefit wrote",
    ),
    "random": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(4096)), "is not a model file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(tmp_path: Path, name: str) -> None:
    write, expected = FOREIGN[name]
    path = tmp_path / "some.widefit"
    write(path)
    assert expected in refuse(path)


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.widefit"
    write_container(path, {}, {"generation": 1}, "model")
    with pytest.raises(TypeError):
        write_container(path, {}, {"generation": object()}, "model")
    for bad in (torch.eye(3).to_sparse(), torch.zeros(2, dtype=torch.complex128)):
        with pytest.raises(ValueError, match="tensor 'bad' cannot be stored: it is torch"):
            write_container(path, {"bad": bad}, {"generation": 2}, "model")
    with pytest.raises(NotImplementedError):  # torch's own: a tensor without data
        write_container(path, {"bad": torch.zeros(2, device="meta")}, {"generation": 2}, "model")
    assert read_container(path, "model")[1] == {"generation": 1}
    assert os.listdir(tmp_path) == ["model.widefit"]


def test_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.widefit"
    write_container(path, {}, {"generation": 1}, "model")
    code = (
        "import resource, sys, torch; from widefit.files import write_container\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "write_container(sys.argv[1], {'a': torch.zeros(100_000)}, {'generation': 2}, 'model')"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "OSError" in ran.stderr.splitlines()[-1]
    assert "File too large" in ran.stderr.splitlines()[-1]
    assert read_container(path, "model")[1] == {"generation": 1}
    assert os.listdir(tmp_path) == ["model.widefit"]


def test_a_document_too_long_for_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.widefit"
    document = {"history": ["0123456789"] * (MAX_IN_METADATA // 10), "name": "é"}
    write_container(path, example_tensors(), document, "model")
    with open(path, "rb") as file:
        assert struct.unpack("<Q", file.read(8))[0] < 10_000
    tensors, found = read_container(path, "model")
    assert found == document
    assert tensors.keys() == example_tensors().keys()


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of model, checkpoint, delta, got 'pickle'"):
        write_container(tmp_path / "x", {}, {}, "pickle")


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_container(tmp_path / "no" / "model.widefit", {}, {}, "model")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_container(tmp_path / "model.widefit", {}, {}, "model")
    assert (tmp_path / "model.widefit").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_keeps_pointing_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_container(tmp_path / "link", {}, {"a": 1}, "model")
    assert (tmp_path / "link").is_symlink()
    assert read_container(tmp_path / "real", "model")[1] == {"a": 1}


def test_read_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.widefit"
    write_container(path, {"a": torch.ones(1000)}, {}, "model")
    tensors, _ = read_container(path, "model")
    with open(path, "r+b") as file:
        file.truncate(0)
    assert torch.equal(tensors["a"], torch.ones(1000))


def seal(path: Path, envelope: object, tensors: dict[str, object] | None = None, data: bytes = b"") -> None:
    """Write a file with any description whose checksum is right."""
    text = envelope if isinstance(envelope, str) else json.dumps(envelope)
    header = json.dumps({"__metadata__": {"widefit": text}, **(tensors or {})}).encode()
    content = struct.pack("<Q", len(header)) + header + data
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content.replace(b"0" * 64, digest, 1))


def description(**changes: object) -> dict[str, object]:
    given = {"document": {}, "format": "widefit", "kind": "model", "version": 1, "widefit": "0.1.0"}
    return {"checksum": "0" * 64} | given | changes


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
SEALED = {
    "a list": (description(document=[1]), {}, b""),
    "no document": ({name: value for name, value in description().items() if name != "document"}, {}, b""),
    "null and nothing else": (description(document=None), {}, b""),
    "a document of half words": (
        description(document=None),
        {"widefit.document": entry("BF16", [1], [0, 2])},
        b"{}",
    ),
    "a document that is a list": (
        description(document=None),
        {"widefit.document": entry("U8", [2], [0, 2])},
        b"[]",
    ),
    "text that is none": (description(document={"a": "\ud800"}), {}, b""),
    "a version that is text": (description(version="1"), {}, b""),
    "a version of a half": (description(version=1.5), {}, b""),
    "a field of its own": (description(more=1), {}, b""),
    "another format": (description(format="other"), {}, b""),
    "nested": (json.dumps(description()).replace('"document": {}', '"document": ' + DEEP), {}, b""),
    "a huge offset": (description(), {"a": entry(offsets=[0, 1e999])}, b""),
    "an offset that is text": (description(), {"a": entry(offsets=["0", "8"])}, b"12345678"),
    "a shape that is too large": (description(), {"a": entry(shape=[2**40])}, b"12345678"),
    "a negative shape": (description(), {"a": entry(shape=[-1, -2])}, b"12345678"),
    "a dtype of tomorrow": (description(), {"a": entry("F8_E4M3", [8])}, b"12345678"),
    "overlapping tensors": (description(), {"a": entry(), "b": entry()}, b"12345678"),
    "a gap": (description(), {"a": entry(offsets=[4, 12])}, b"123456789012"),
    "neither true nor false": (description(), {"a": entry("BOOL", [8])}, b"12345678"),
    "an entry that is a list": (description(), {"a": [1]}, b""),
    "a thousand dimensions": (description(), {"a": entry(shape=[1] * 1000 + [2])}, b"12345678"),
}


@pytest.mark.parametrize("name", SEALED)
def test_nothing_is_trusted_behind_the_checksum(tmp_path: Path, name: str) -> None:
    seal(tmp_path / "m", *SEALED[name])
    assert "is altered" in refuse(tmp_path / "m")


def test_what_seal_writes_is_read_where_nothing_is_wrong(tmp_path: Path) -> None:
    seal(tmp_path / "m", description(document={"a": "😀"}), {"a": entry()}, struct.pack("<2f", 1, 2))
    tensors, document = read_container(tmp_path / "m", "model")
    assert document == {"a": "😀"}
    assert tensors["a"].tolist() == [1, 2]


@pytest.mark.parametrize("place", ["header", "tensor"])
def test_refusing_takes_no_more_memory_than_the_file_twice(tmp_path: Path, place: str) -> None:
    swelling = '{"a":[' + "[]," * 8_000_000 + "1]}"
    if place == "header":
        seal(tmp_path / "m", json.dumps(description()).replace('"document": {}', '"document": ' + swelling))
    else:
        where = {"widefit.document": entry("U8", [len(swelling)], [0, len(swelling)])}
        seal(tmp_path / "m", description(document=None), where, swelling.encode())
    code = (
        "import resource, sys\nfrom widefit.files import FileError, read_container\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "try: read_container(sys.argv[1], 'model')\nexcept FileError: print(1024 * (peak() - before))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 2 * (tmp_path / "m").stat().st_size + 20_000_000


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"the document has .* parts in .* bytes"):
        write_container(tmp_path / "m", {}, {"a": [[]] * 8_000_000}, "model")
    with pytest.raises(ValueError, match="the name is taken"):
        write_container(tmp_path / "m", {"widefit.document": torch.zeros(1)}, {}, "model")
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    write_container(tmp_path / "m", {}, {"a": np.float32(0.5), "b": [np.int64(3), np.bool_(True)]}, "model")
    assert read_container(tmp_path / "m", "model")[1] == {"a": 0.5, "b": [3, True]}


def test_tensors_read_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    write_container(tmp_path / "m", {"a": torch.ones(3)}, {}, "model")
    with torch.inference_mode():
        tensors, _ = read_container(tmp_path / "m", "model")
    assert not tensors["a"].is_inference()
