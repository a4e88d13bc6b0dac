"""Delimited text: every way to write a table, and a stream of it that holds the same rows."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from widefit.data.blocks import TableBlocks
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.table import Table
from widefit.data.words import TableError


class Words(dict):
    """The kinds of a training in which every column was text."""

    def get(self, *_: object) -> str:
        return "category"


TEXT = Reading(kinds=Words())


def read(content: str | bytes, folder: Path, reading: Reading | None = None, name: str = "t.csv") -> Table:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, reading)


def whole(path: Path, reading: Reading | None = None) -> pl.DataFrame | str:
    try:
        return read_table(path, reading).frame
    except TableError as error:
        return str(error)


def streamed(path: Path, rows: int, reading: Reading | None = None) -> list[pl.DataFrame] | str:
    try:
        blocks = [block.frame for block in TableBlocks(path, rows, reading)]
    except TableError as error:
        return str(error)
    return blocks or f"{path} has a header and no rows"


# Pieces of files that readers stumble over.
MARKS = [
    ",",
    ",",
    ",",
    "\n",
    "\n",
    "\n",
    "\r",
    "\r\n",
    ";",
    "\t",
    "|",
    '"',
    '""',
    ' "',
    "#",
    " ",
    "sep=;\n",
    "\ufeff",
    "\0",
]
FIELDS = ["a", "b c", "é", "1", "2.5", "3,5", "1.234", "1,016", "-", "NA", "12%", "$9", "2020-01-02", "true", "0"]
PIECES = st.sampled_from([*MARKS, *FIELDS])
BYTES = st.lists(PIECES.map(str.encode) | st.binary(max_size=2), max_size=60).map(b"".join)


@settings(max_examples=200)
@given(content=BYTES, rows=st.sampled_from([1, 2, 3, 7]))
@example(content=b"a,b\n1,2\n \n3,4\n", rows=1)
@example(content=b"a,b\n1,2\n\n3,4\n ", rows=2)
@example(content=b" \na,b\n1,2\n", rows=1)
@example(content=b"a,b\r1,2\r3,4\r", rows=1)
@example(content=b'a,b\n"1\n\n2",2\n3,"', rows=1)
@example(content=b'a,b\n1,12" board\n2,"6"" nail"\n', rows=1)
def test_a_stream_holds_the_rows_of_the_table(
    content: bytes, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.csv"
    path.write_bytes(content)
    expected, found = whole(path, TEXT), streamed(path, rows, TEXT)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert pl.concat(found).equals(expected)
    assert all(block.height == rows for block in found[:-1])


NUMBERS = st.sampled_from(
    ["1", "-2", "3.5", "0,5", "1.234", "1,016", "1.234,5", "1,016.5", "7%", "$9", "-", "", "x", "inf"]
)


@settings(max_examples=200)
@given(
    columns=st.lists(st.lists(NUMBERS, min_size=6, max_size=6), min_size=2, max_size=3),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    rows=st.sampled_from([1, 2, 3]),
)
@example(columns=[["1", "1", "1.234", "1", "1", "1,016.5"], ["1", "1", "1,016", "1", "1", "1"]], separator=";", rows=3)
def test_numbers_of_a_stream_are_those_of_the_table_or_refused(
    columns: list[list[str]], separator: str, rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.csv"
    names = separator.join("abc"[: len(columns)])
    lines = [separator.join(f'"{field}"' for field in row) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([names, *lines, ""]))
    table = read_table(path)
    blocks = [block.frame for block in TableBlocks(path, rows)]
    for name in table.frame.columns:
        parts = [block[name] for block in blocks]
        # Text where the first block has numbers is refused when it is encoded, and so is a column in doubt.
        if not all(part.dtype.is_numeric() for part in parts) or any(
            block[other].dtype == pl.String != blocks[0][other].dtype for block in blocks for other in block.columns
        ):
            continue
        if name in table.doubts:
            continue
        found = pl.concat([part.cast(pl.Float64) for part in parts])
        assert table.frame[name].dtype.is_numeric()
        assert found.equals(table.frame[name].cast(pl.Float64))


# What a file holds, and the columns that it is.
WRITTEN: dict[str, tuple[str, dict[str, list]]] = {
    "semicolons": ("a;b\n1;x\n2;y\n", {"a": [1, 2], "b": ["x", "y"]}),
    "bars": ("a|b\n1|x\n2|y\n", {"a": [1, 2], "b": ["x", "y"]}),
    "tabs": ("a\tb\n1\tx\n2\ty\n", {"a": [1, 2], "b": ["x", "y"]}),
    "semicolons inside a field": ("a,b\n1,x;y;z\n2,u;v\n", {"a": [1, 2], "b": ["x;y;z", "u;v"]}),
    "a line that names the separator": ("sep=;\na;b\n1;2,5\n2;3,5\n", {"a": [1, 2], "b": [2.5, 3.5]}),
    "lone carriage returns": ("a,b\r1,x\r2,y\r", {"a": [1, 2], "b": ["x", "y"]}),
    "blank lines": (" \na,b\n\n1,x\n \n2,y\n ", {"a": [1, 2], "b": ["x", "y"]}),
    "comments": ("# station 7\n# in m, s\na,b\n1,x\n# moved\n2,y\n", {"a": [1, 2], "b": ["x", "y"]}),
    "names in a comment": ("# a, b\n1,2\n3,4\n", {"a": [1, 3], "b": [2, 4]}),
    "units": ("a,b,y\nm,pcs,EUR\n1,2,3\n4,5,6\n7,8,9\n", {"a": [1, 4, 7], "b": [2, 5, 8], "y": [3, 6, 9]}),
    "inches": ('a,b\n1,12" board\n2,6" nail\n', {"a": [1, 2], "b": ['12" board', '6" nail']}),
    "quotes after blanks": ('a, b\n1, "x, y"\n2, "z"\n', {"a": [1, 2], "b": ["x, y", "z"]}),
    "the index of pandas": (",a,b\n0,1,x\n1,2,y\n", {"a": [1, 2], "b": ["x", "y"]}),
    "an array of pandas": (",0,1,2\n0,1,2,3\n1,4,5,6\n", {"0": [1, 4], "1": [2, 5], "2": [3, 6]}),
    "columns without names": ("a,b,,\n1,x,,\n2,y,,\n", {"a": [1, 2], "b": ["x", "y"]}),
    "years": ("land,1990,1991\nA,1.5,2\nB,3.5,4\n", {"land": ["A", "B"], "1990": [1.5, 3.5], "1991": [2, 4]}),
    "only years": ("1990,1991\n1.5,2\n3.5,4\n", {"1990": [1.5, 3.5], "1991": [2, 4]}),
    "no names": ("M,0.5,6\nF,1.5,7\n", {"column_1": ["M", "F"], "column_2": [0.5, 1.5], "column_3": [6, 7]}),
    "no names above years": ("M,1999\nF,2001\n", {"column_1": ["M", "F"], "column_2": [1999, 2001]}),
    "words only": ("kind,color\nA,red\nB,blue\n", {"kind": ["A", "B"], "color": ["red", "blue"]}),
    "thousands": ('a,b\n1,"1,016"\n2,"21,140"\n', {"a": [1, 2], "b": [1016, 21140]}),
    "thousands and fractions": ('a,b\n1,"1,016.5"\n2,900\n', {"a": [1, 2], "b": [1016.5, 900]}),
    "German thousands": ("a;b\n1;1.016,5\n2;900\n", {"a": [1, 2], "b": [1016.5, 900]}),
    "Swiss and French thousands": ("a,b\n1'016,12 500\n2,3\n", {"a": [1016, 2], "b": [12500, 3]}),
    "late decimal commas": ("a;b\n" + "1;2\n" * 30 + "2;3,5\n", {"a": [1] * 30 + [2], "b": [2.0] * 30 + [3.5]}),
    "quoted decimal commas": ('a,b\n1,"2,5"\n2,"3,75"\n', {"a": [1, 2], "b": [2.5, 3.75]}),
    "dollars": ('a,b\n1,"$1,900.00"\n2,-$5\n', {"a": [1, 2], "b": [1900, -5]}),
    "euros": ("a;b\n1;1.900,00 €\n2;5 EUR\n", {"a": [1, 2], "b": [1900, 5]}),
    "per cent": ("a,b\n1,12%\n2,7.5 %\n", {"a": [1, 2], "b": [0.12, 0.075]}),
    "per cent of some": ("a,b\n1,12%\n2,0.5\n", {"a": [1, 2], "b": ["12%", "0.5"]}),
    "accountants' negatives": ('a,b\n1,(2.50)\n2,"1,016"\n3,($3)\n', {"a": [1, 2, 3], "b": [-2.5, 1016, -3]}),
    "labels in parentheses": ("a,b\n1,(2)\n2,(3)\n", {"a": [1, 2], "b": ["(2)", "(3)"]}),
    "typeset minus signs": ("a,b\n1,\u22122.5\n2,3e2\n", {"a": [1, 2], "b": [-2.5, 300]}),
    "dashes among numbers": ("a,b\n1,2\n-,3\n4,--\n", {"a": [1, None, 4], "b": [2, 3, None]}),
    "a dash among words": ("a,b\n1,x\n2,-\n", {"a": [1, 2], "b": ["x", "-"]}),
    "pandas' marks": ("a,b\n1,x\n1.#QNAN,#N/A\n", {"a": [1, None], "b": ["x", None]}),
    "codes": ("a,b\n1,01\n2,A1\n", {"a": [1, 2], "b": ["01", "A1"]}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_to_write_a_table(name: str, tmp_path: Path) -> None:
    content, expected = WRITTEN[name]
    assert read(content, tmp_path).frame.to_dict(as_series=False) == expected
    blocks = [block.frame for block in TableBlocks(tmp_path / "t.csv", 100)]
    assert [block.to_dict(as_series=False) for block in blocks] == [expected]


@pytest.mark.parametrize("text", ["a b c\n1 2 3\n4 5 6\n", "1.5   2\n3  -4\n"])
def test_numbers_with_blanks_between_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"numbers a line with blanks between them; .* tr -s ' ' , < "):
        read(text, tmp_path)
    assert read("town\nNew York\nLos Angeles\n", tmp_path).frame["town"].to_list() == ["New York", "Los Angeles"]


def test_what_was_decided_is_said(tmp_path: Path) -> None:
    table = read('a,b,c,\n1,"1,016",-,\n2,3,5,\n', tmp_path)
    assert table.notes == (
        "t.csv has 1 column without a name, left out (column 4)",
        "t.csv: read as numbers: 'b' ('1,016' is 1016) (--decimal settles what , and . mean)",
        "t.csv: among numbers, counted as missing: '-' in 'c'",
    )
    assert read("a,b,y\nm,pcs,EUR\n1,2,3\n4,5,6\n7,8,9\n", tmp_path).notes == (
        "t.csv has a line of units under its names, left out (m, pcs, EUR)",
    )


def test_instructions(tmp_path: Path) -> None:
    text = "1999,x\n2001,y\n"
    assert read(text, tmp_path).frame.columns == ["column_1", "column_2"]
    assert read(text, tmp_path, Reading(header=True)).frame.to_dict(as_series=False) == {"1999": [2001], "x": ["y"]}
    assert read("a,b\nx,y\n", tmp_path, Reading(header=False)).frame.height == 2
    text = "a;b\n1,016;2\n"
    assert read(text, tmp_path).frame["a"].to_list() == [1.016]
    assert read(text, tmp_path, Reading(decimal=".")).frame["a"].to_list() == [1016]
    marked = read("a,b\n-999,x\n3.5,never\n-999.0,y\n", tmp_path, Reading(na_values=("-999", "never")))
    assert marked.frame.to_dict(as_series=False) == {"a": [None, 3.5, None], "b": ["x", None, "y"]}
    pl.DataFrame({"a": [-999, 3], "b": ["x", "never"]}).write_parquet(tmp_path / "t.parquet")
    marked = read_table(tmp_path / "t.parquet", Reading(na_values=("-999", "never")))
    assert marked.frame.to_dict(as_series=False) == {"a": [None, 3], "b": ["x", None]}


def test_numbers_in_two_ways_are_a_question(tmp_path: Path) -> None:
    text = "a;b;y\n" + "".join(f"1.{index};0,5;{index % 7}\n" for index in range(100, 140))
    table = read(text, tmp_path)
    with pytest.raises(TableError) as caught:
        TableEncoding.learn(table.frame, "y", doubts=table.doubts)
    assert str(caught.value) == (
        "column 'a': '1.100' is 1.1 with --decimal . and 1100 with --decimal ,; say which, or leave it out with "
        "--drop a"
    )
    assert read(text, tmp_path, Reading(decimal=",")).frame["a"].to_list() == list(range(1100, 1140))
    # Another table of a model that was trained with decimal commas.
    assert read("a;y\n1.100;3\n", tmp_path, Reading(usual_decimal=",")).frame["a"].to_list() == [1100]


def test_a_quote_that_is_never_closed_is_refused_with_its_line(tmp_path: Path) -> None:
    for rows in (1, 1000):
        (tmp_path / "t.csv").write_text('a,b\n1,2\n3,"4\n' + "5,6\n" * 2000)
        message = f"{tmp_path}/t.csv, line 3: unexpected end of data (a quote that is not closed?)"
        assert streamed(tmp_path / "t.csv", rows) == whole(tmp_path / "t.csv") == message
    with pytest.raises(TableError, match=r"line 2: ',' expected after '\"' .write a quote inside quotes twice"):
        read('a,b\n1,"12" board"\n', tmp_path)


def test_fields_of_any_length(tmp_path: Path) -> None:
    long = "x" * 200_000
    assert read(f"a,b\n1,{long}\n\n2,y\n", tmp_path).frame["b"].to_list() == [long, "y"]


def test_a_dialect_comes_from_the_first_lines_whatever_the_block(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a;b\n" + "1;2\n" * 5 + "3;4\n")
    assert [block.frame.rows() for block in TableBlocks(tmp_path / "t.csv", 6)] == [[(1, 2)] * 5 + [(3, 4)]]
