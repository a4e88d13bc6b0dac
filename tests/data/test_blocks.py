"""Files read a block at a time hold what they hold when read at once."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from widefit.data.blocks import TableBlocks
from widefit.data.readers import read_table
from widefit.data.table import TableError


def table(rows: int) -> pl.DataFrame:
    generator = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "x": generator.standard_normal(rows).round(4),
            "count": generator.integers(0, 9, rows),
            "text": [f'say "{value}",\nthen' if value % 3 else str(value) for value in range(rows)],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_blocks_make_the_table(suffix: str, size: int, tmp_path: Path) -> None:
    path, frame = tmp_path / f"data{suffix}", table(120)
    if suffix == ".parquet":
        frame.write_parquet(path)
    else:
        text = frame.write_csv(separator="\t" if suffix == ".tsv" else ",").encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text.replace(b"\n", b"\r\n"))
    blocks = TableBlocks(path, size)
    assert blocks.name == "data"
    for _ in range(2):
        found = list(blocks)
        assert [block.first for block in found] == list(np.cumsum([0, *(b.frame.height for b in found)]))[:-1]
        whole = pl.concat([block.frame.cast({"text": pl.String}) for block in found], how="vertical_relaxed")
        assert whole.equals(read_table(path).frame.cast({"text": pl.String}))
    assert max(block.frame.height for block in found) <= 2 * size + 1


def test_text_stays_text_and_lines_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("code,y\nA1,1\n007,2\nB2,3\n008,4\n009,5\n")
    assert [block.frame["code"].to_list() for block in TableBlocks(path, 3)] == [["A1", "007", "B2"], ["008", "009"]]
    path.write_text("code,y\n1,1\n2,2\n3,3\n4,4,4\n")
    with pytest.raises(TableError, match="line 5: 3 fields where the first line has 2"):
        list(TableBlocks(path, 2))
    path.write_bytes(b"code,y\n1,1\n2,2\n\xff,3\n")
    with pytest.raises(TableError, match="line 4: byte 0xff is not UTF-8"):
        list(TableBlocks(path, 2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.npz", b"PK", "a stream is read from"),
        ("none.csv", None, "there is no file"),
        ("empty.csv", b"", "is empty"),
        ("data.csv", b"PAR1", "it is a Parquet file"),
        ("data.csv.gz", b"a,b\n1,2\n", "is not gzip-compressed"),
    ],
)
def test_refusals(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message):
        TableBlocks(tmp_path / name, 10)
