"""Files by their names and bytes: a name is a name, and whatever cannot be opened is said in one sentence."""

import bz2
import gc
import gzip
import io
import lzma
import os
import sys
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefit.data.blocks import TableBlocks
from widefit.data.readers import read_table
from widefit.data.words import TableError

CSV = b"a,b\n1,x\n2,y\n"
FRAME = pl.DataFrame({"a": [1, 2], "b": ["x", "y"]})


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def refusal(source: str | Path, rows: int | None = None) -> str:
    with pytest.raises(TableError) as caught:
        read_table(source) if rows is None else list(TableBlocks(source, rows))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv.gz", gzip.compress(CSV, mtime=0)),
        ("t.csv.bz2", bz2.compress(CSV)),
        ("t.csv.xz", lzma.compress(CSV)),
        ("t.csv.zip", zipped(**{"data/inner.csv": CSV, "__MACOSX/inner.csv": b"\0"})),
        ("t.zip", zipped(**{"inner.csv": CSV})),
        ("t.txt", CSV),
        ("t.txt.gz", gzip.compress(CSV.replace(b",", b"\t"), mtime=0)),
        ("t.tab", CSV.replace(b",", b"\t")),
    ],
)
def test_compressed_files_and_text(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    table = read_table(tmp_path / name)
    assert table.frame.equals(FRAME)
    assert table.name == "t"
    for _ in range(2):
        assert pl.concat([block.frame for block in TableBlocks(tmp_path / name, 1)]).equals(FRAME)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.zip", zipped(**{"a.csv": CSV, "b.csv": CSV}), "holds 'a.csv', 'b.csv'; a zip archive with one table"),
        ("t.zip", zipped(**{"a.doc": CSV}), "holds 'a.doc', whose name does not end in a format"),
        ("t.zip", zipped(), "holds nothing; a zip archive"),
        ("t.zip", b"PK\x03\x04", "is damaged: File is not a zip file"),
        ("t.csv.xz", lzma.compress(CSV)[:-8], "is truncated: the compressed data ends early"),
        ("t.csv.bz2", CSV, "ends in .bz2 but is not bzip2-compressed; take .bz2 off its name"),
        ("t.csv.gz", gzip.compress(b"", mtime=0), "is empty once decompressed"),
        ("t.gz", gzip.compress(CSV, mtime=0), "the name does not end in a format"),
    ],
)
def test_compressed_files_that_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)
    assert message in refusal(tmp_path / name, rows=1)


def test_packages_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "zstandard", "fastexcel"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "t.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    (tmp_path / "t.xlsx").write_bytes(zipped(a=b""))
    assert "needs the package zstandard: pip install 'widefit[tables]'" in refusal(tmp_path / "t.csv.zst")
    assert "need the package fastexcel: pip install 'widefit[tables]'" in refusal(tmp_path / "t.xlsx")


def test_zstd(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "t.csv.zst").write_bytes(zstandard.compress(CSV))
    assert read_table(tmp_path / "t.csv.zst").frame.equals(FRAME)
    (tmp_path / "t.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 40)
    assert refusal(tmp_path / "t.csv.zst").startswith(f"{tmp_path}/t.csv.zst is damaged: ")


def test_spreadsheets(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in FRAME.iter_rows():
        book.active.append(row)
    book.active.insert_rows(1)
    for column, name in enumerate(FRAME.columns, start=1):
        book.active.cell(1, column, name)
    book.save(tmp_path / "t.xlsx")
    found = read_table(tmp_path / "t.xlsx")
    assert found.frame.cast({"a": pl.Int64}).equals(FRAME)
    assert found.notes == ("t.xlsx: its first sheet",)


def test_a_name_is_a_name(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "q[1].parquet")
    FRAME.reverse().write_parquet(tmp_path / "q1.parquet")
    FRAME.write_parquet(tmp_path / "all*.parquet")
    FRAME.write_parquet(tmp_path / "all2.parquet")
    for name in ("q[1].parquet", "all*.parquet"):
        assert read_table(tmp_path / name).frame.equals(FRAME)
        assert [block.frame.rows() for block in TableBlocks(tmp_path / name, 9)] == [FRAME.rows()]
    (tmp_path / "q[1].parquet").unlink()
    assert refusal(tmp_path / "q[1].parquet", rows=9) == f"there is no file {tmp_path}/q[1].parquet"


def test_names_of_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "folder.csv").mkdir()
    for rows in (None, 9):
        assert refusal("~nosuchuser/x.csv", rows) == "there is no file ~nosuchuser/x.csv"
        assert refusal("loop.csv", rows) == "loop.csv cannot be read: Too many levels of symbolic links"
        assert refusal("folder.csv", rows) == "folder.csv is a folder, not a file"
        assert refusal("none.csv", rows) == "there is no file none.csv"
        assert refusal("a\0b.csv", rows) == "'a\\x00b.csv' is not the name of a file: embedded null byte"
        assert "cannot be read: File name too long" in refusal("x" * 300 + ".csv", rows)


@pytest.mark.parametrize("content", [CSV, gzip.compress(CSV, mtime=0), lzma.compress(CSV)])
@pytest.mark.parametrize("rows", [None, 1])
def test_standard_input(content: bytes, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        if rows is None:
            table = read_table("-")
            assert (table.name, table.frame.rows()) == ("stdin", FRAME.rows())
        else:
            assert [block.frame.rows() for block in TableBlocks("-", rows)] == [[(1, "x")], [(2, "y")]]


def test_the_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2, 3]}, index=pandas.Index([7, 9, 8], name="key"))
    try:
        frame.to_parquet(tmp_path / "t.parquet")
    except ImportError:
        # No pyarrow: what it would write.
        metadata = {"pandas": '{"index_columns": ["key"]}'}
        pl.DataFrame({"a": [1, 2, 3], "key": [7, 9, 8]}).write_parquet(tmp_path / "t.parquet", metadata=metadata)
    note = "t.parquet: the index of pandas is left out: 'key'"
    blocks = TableBlocks(tmp_path / "t.parquet", 2)
    assert [block.frame.columns for block in blocks] == [["a"], ["a"]]
    table = read_table(tmp_path / "t.parquet")
    assert (table.frame.columns, table.notes, blocks.notes) == (["a"], (note,), (note,))
    pl.DataFrame({"a": [1], "__index_level_0__": [3]}).write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").frame.columns == ["a"]


def test_arff(tmp_path: Path) -> None:
    path = tmp_path / "t.arff"
    head = "% towns\n@relation t\n@attribute size real\n@attribute town {Oslo,Rome}\n"
    path.write_text(head + "@attribute day date 'yyyy-MM-dd'\n@data\n1.5,Oslo,2020-01-31\n?,?,2021-12-01\n")
    frame = read_table(path).frame
    assert frame["town"].to_list() == ["Oslo", None]
    assert frame["size"].fill_nan(None).to_list() == [1.5, None]
    assert frame["day"].cast(pl.Datetime).to_list() == [datetime(2020, 1, 31), datetime(2021, 12, 1)]
    path.write_text(head + "@attribute note string\n@data\n1.5,Oslo,x\n")
    assert "delete that attribute, or save the table as CSV" in refusal(path)
    path.write_text(head + "@data\n1.5,Paris\n")
    assert refusal(path).startswith(f"{path} is not a readable ARFF file: ")


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64


X = npy(np.arange(8.0).reshape(4, 2))
WORDS = npy(np.array(list("abcd")))
MEMBERS: dict[str, tuple[dict[str, bytes], str]] = {
    "no array": ({"X": b"hello"}, "the member X is not an array; save it with numpy.savez"),
    "no array as y": ({"X.npy": X, "y.npy": b"hello"}, "the member y is not an array; save it with numpy.savez"),
    "a header that does not end": ({"X.npy": with_header(b"{'descr': '<f8', 'shape': (4,2")}, "is damaged: "),
    "a shape of booleans": (
        {"X.npy": with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (True, 12), }\n")},
        "is damaged: ",
    ),
    "a shape beyond memory": (
        {"X.npy": with_header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999, 12), }\n")},
        "does not fit in memory, or is damaged: ",
    ),
    "numbers that are no letters": (
        {"X.npy": X, "y.npy": WORDS[:-4] + b"\xff\xff\xff\xff"},
        "is damaged: y holds text that is not Unicode",
    ),
    "halves of letters": (
        {"X.npy": X, "y.npy": WORDS[:-4] + b"\x00\xd8\x00\x00"},
        "is damaged: y holds text that is not Unicode",
    ),
    "dates": ({"X.npy": npy(np.zeros((4, 2), "M8[s]"))}, "it must be numbers of shape (n, d)"),
    "records": ({"X.npy": npy(np.zeros((4, 2), [("a", "f8")]))}, "it must be numbers of shape (n, d)"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_of_archives(name: str, tmp_path: Path) -> None:
    members, message = MEMBERS[name]
    (tmp_path / "t.npz").write_bytes(zipped(**members))
    assert message in refusal(tmp_path / "t.npz")


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "g", ">i4", "u8", "?"])
def test_numbers_of_any_width_and_order(dtype: str, tmp_path: Path) -> None:
    values = np.array([[0, 1], [1, 0], [1, 1]])
    np.savez(tmp_path / "t.npz", X=values.astype(dtype), y=values[:, 0].astype(dtype))
    frame = read_table(tmp_path / "t.npz").frame
    assert frame.cast(pl.Int64).rows() == [(0, 1, 0), (1, 0, 1), (1, 1, 1)]
    np.savez(tmp_path / "t.npz", X=values, y=np.array(["é", "b", ""], ">U1"))
    assert read_table(tmp_path / "t.npz").frame["y"].to_list() == ["é", "b", ""]


@settings(max_examples=150)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=4),
    member=st.sampled_from(["X.npy", "y.npy"]),
    dtype=st.sampled_from(["f8", "g", "i2", "U3", "?", "c16", "M8[s]", "S4"]),
)
def test_damaged_members_are_arrays_or_an_error_in_words(
    edits: list[tuple[float, int, bytes]], member: str, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = bytearray(npy(np.ones((3, 2) if member == "X.npy" else 3).astype(dtype)))
    for place, deleted, inserted in edits:
        start = round(place * len(damaged))
        damaged[start : start + deleted] = inserted
    path = tmp_path_factory.getbasetemp() / "members.npz"
    path.write_bytes(zipped(**({"X.npy": npy(np.ones((3, 2))), "y.npy": npy(np.ones(3))} | {member: bytes(damaged)})))
    try:
        table = read_table(path)
    except TableError:
        return
    assert table.frame.height > 0


@pytest.mark.filterwarnings("error")
def test_no_file_stays_open(tmp_path: Path) -> None:
    """Refused or read: a file left to the garbage collector would be a warning there, and locked on Windows."""
    contents = {
        "refused.csv": "\ufeff".encode("utf-16") + CSV,
        "t.csv.xz": lzma.compress(CSV),
        "t.zip": zipped(**{"t.csv": CSV}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    refusal(tmp_path / "refused.csv")
    for name in ("t.csv.xz", "t.zip"):
        assert read_table(tmp_path / name).frame.equals(FRAME)
        assert len(list(TableBlocks(tmp_path / name, 100))) == 1
    gc.collect()
