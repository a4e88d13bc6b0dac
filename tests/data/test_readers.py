"""Reading tables: what comes out, and what is said when it cannot."""

import gzip
import hashlib
import io
import json
import pickle
import urllib.request
import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefit.data.datasets import BUILT_IN
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.table import TableError
from widefit.data.target import choose_target, learn_target

FRAME = pl.DataFrame(
    {
        "size": [1.5, 2.0, -3.25],
        "rooms": [1, 2, 3],
        "town": ["Ä", "b c", 'd"e,f'],
        "sold": [True, False, True],
        "y": [1, 0, 1],
    }
)


def npz_bytes(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "b")
    return buffer.getvalue()


def refusal(source: str | Path) -> str:
    with pytest.raises(TableError) as caught:
        read_table(source)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV", ".csv.gz", ".tsv.gz", ".parquet", ".pq"])
def test_round_trip_of_a_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"houses.v2{suffix}"
    if suffix in (".parquet", ".pq"):
        FRAME.write_parquet(path)
    else:
        text = FRAME.write_csv(separator="\t" if "tsv" in suffix else ",")
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    table = read_table(path)
    assert table.frame.equals(FRAME)
    assert table.name == "houses.v2"
    assert table.notes == ()


@given(st.lists(st.tuples(st.integers(-(2**40), 2**40), st.floats(allow_nan=False, width=64)), min_size=1, max_size=20))
def test_numbers_survive_csv_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]]) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.csv"
    path.write_text("a,b\n" + "".join(f"{whole},{real!r}\n" for whole, real in rows))
    frame = read_table(path).frame
    assert frame["a"].to_list() == [whole for whole, _ in rows]
    assert frame["b"].cast(pl.Float64).to_list() == [real for _, real in rows]


def test_blanks_around_fields_and_all_marks_of_missing(tmp_path: Path) -> None:
    path = tmp_path / "adult.csv"
    path.write_text("age, job, flag\n39, Private, True\n40, ?, FALSE\n NA , Self-emp ,\n 41,nan, true\n")
    frame = read_table(path).frame
    assert frame.to_dict(as_series=False) == {
        "age": [39, 40, None, 41],
        "job": ["Private", None, "Self-emp", None],
        "flag": [True, False, None, True],
    }


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "wine.csv"
    path.write_text("acid;sugar;quality\n7,4;0;5\n7,8;2;6\n")
    assert read_table(path).frame.to_dict(as_series=False) == {"acid": [7.4, 7.8], "sugar": [0, 2], "quality": [5, 6]}
    path.write_text("acid;quality\n7.4;5\n7.8;6\n")
    assert read_table(path).frame.to_dict(as_series=False) == {"acid": [7.4, 7.8], "quality": [5, 6]}


def test_no_header(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("1,2.5,3\n4,5.5,6\n")
    table = read_table(path)
    assert table.frame.rows() == [(1, 2.5, 3), (4, 5.5, 6)]
    assert table.frame.columns == ["column_1", "column_2", "column_3"]
    assert table.notes == ("bare.csv has no header line: its columns are called column_1 … column_3",)


def test_header_of_numbers_in_order_is_a_header(tmp_path: Path) -> None:
    path = tmp_path / "pandas.csv"
    path.write_text("0,1,2\n4,5.5,6\n")
    assert read_table(path).frame.rows(named=True) == [{"0": 4, "1": 5.5, "2": 6}]


def test_blank_lines_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes('\ufeffa,b\r\n\r\n1,x\r\n   \r\n2,"y\r\n\r\nz"\r\n\r\n'.encode())
    assert read_table(path).frame["a"].to_list() == [1, 2]
    assert read_table(path).frame.columns == ["a", "b"]


def test_a_row_of_missing_values_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("a,b\n1,2\n,\n3,4\n")
    assert read_table(path).frame["a"].to_list() == [1, None, 3]


def test_dates_are_recognized(tmp_path: Path) -> None:
    path = tmp_path / "dates.csv"
    path.write_text("when,y\n2020-01-31,1\n2021-12-01,2\n")
    assert read_table(path).frame["when"].to_list() == [date(2020, 1, 31), date(2021, 12, 1)]


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    X = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    np.savez(path, X=X, y=np.array([[1], [0], [1], [0]]), other=np.zeros(3))
    table = read_table(path)
    assert (table.target, table.declares_target) == ("y", True)
    assert table.frame.columns == ["x0", "x1", "x2", "x3", "x4", "x5", "y"]
    assert np.array_equal(table.frame.drop("y").to_numpy(), X.reshape(4, 6))
    np.savez(path, X=X)
    assert read_table(path).target is None
    np.savez(path, X=X[:, 0, :1], y=np.ones(4))  # one column
    assert read_table(path).frame.rows() == [(0.0, 1.0), (6.0, 1.0), (12.0, 1.0), (18.0, 1.0)]


def test_libsvm_indices_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse.svm"
    path.write_text("1 1:2 3:4.5 # a comment\n-1 2:1\n")
    table = read_table(path)
    assert table.frame.rows(named=True) == [
        {"x1": 2.0, "x2": 0.0, "x3": 4.5, "y": 1.0},
        {"x1": 0.0, "x2": 1.0, "x3": 0.0, "y": -1.0},
    ]
    assert table.absent_is_zero
    path.write_text("1 0:2 1:4.5\n")
    assert read_table(path).frame.columns == ["x0", "x1", "y"]


@pytest.mark.parametrize("name", [name for name, entry in BUILT_IN.items() if entry.bundled])
def test_built_in_sets(name: str) -> None:
    from sklearn import datasets

    table = read_table(name)
    reference = getattr(datasets, BUILT_IN[name].loader)()
    assert table.name == name
    assert table.target == table.frame.columns[-1]
    assert np.array_equal(table.frame[:, :-1].to_numpy(), reference.data)
    y = table.frame[:, -1].to_list()
    labels = reference.target_names if BUILT_IN[name].labels else None
    assert y == [str(labels[index]) for index in reference.target] if labels is not None else reference.target.tolist()


BAD: dict[str, tuple[str, bytes | Callable[[], bytes], str]] = {
    "empty": ("a.csv", b"", "{path} is empty"),
    "blank": ("a.csv", b"\n\r\n \n", "{path} holds only blank lines"),
    "header only": ("a.csv", b"a,b\n", "{path} has a header and no rows"),
    "short line": (
        "a.csv",
        b"a,b,y\n1,2,3\n\n4,5\n",
        "{path}, line 4: 2 fields where the first line has 3; quote fields that contain the separator",
    ),
    "long line": (
        "a.csv",
        b"a,b\n1,2\n3,4,5\n",
        "{path}, line 3: 3 fields where the first line has 2; quote fields that contain the separator",
    ),
    "short line in a quoted file": (
        "a.csv",
        b'a,b\n"1\n2",2\n3\n',
        "{path}, line 4: 1 field where the first line has 2; quote fields that contain the separator",
    ),
    "more fields than the header": (
        "a.csv",
        b"1\n,\n",
        "{path}, line 2: 2 fields where the first line has 1; quote fields that contain the separator",
    ),
    "open quote": (
        "a.csv",
        b'a,b\n1,2\n3,"4\n5,6\n',
        "{path}, line 3: unexpected end of data (a quote that is not closed?)",
    ),
    "same name twice": (
        "a.csv",
        b"a,b, a\n1,2,3\n",
        "{path}, line 1: 2 columns called 'a' (columns 1, 3); give each column a name of its own",
    ),
    "no column with a name": (
        "a.csv",
        b",,\n1,2,3\n",
        "{path}, line 1: no column has a name; with --no-header they are called column_1, …",
    ),
    "latin-1": (
        "a.csv",
        "a,b\n1,2\n3,café\n".encode("latin-1"),
        "{path}, line 3: byte 0xe9 is not UTF-8; save the file as UTF-8",
    ),
    "utf-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), "{path} is not a CSV file: it is UTF-16 text; save it as UTF-8"),
    "zip as csv": ("a.csv", zip_bytes, "{path} is not a CSV file: it is a zip archive (an .npz, .xlsx or .zip file)"),
    "parquet as csv": ("a.csv", b"PAR1....", "{path} is not a CSV file: it is a Parquet file"),
    "gzip as csv": (
        "a.csv",
        gzip.compress(b"a,b\n"),
        "{path} is not a CSV file: it is gzip-compressed; rename it to a.csv.gz",
    ),
    "pickle as csv": (
        "a.csv",
        pickle.dumps([1]),
        "{path} is not a CSV file: it is a pickle, which widefit does not open",
    ),
    "web page": (
        "a.csv",
        b"<!DOCTYPE html><html>",
        "{path} is not a CSV file: it is a web page or XML (a failed download?)",
    ),
    "json": ("a.csv", b'[{"a": 1}]', "{path} is not a CSV file: it looks like JSON"),
    "arff": (
        "a.csv",
        b"@relation x\n@attribute a real\n",
        "{path} is not a CSV file: it is ARFF; rename it to a.arff",
    ),
    "binary": ("a.csv", b"abc\x00\x01,\x02", "{path} is not a CSV file: it holds binary data"),
    "csv as gz": ("a.csv.gz", b"a,b\n1,2\n", "{path} ends in .gz but is not gzip-compressed; take .gz off its name"),
    "truncated gz": (
        "a.csv.gz",
        gzip.compress(b"a,b\n1,2\n" * 99)[:-9],
        "{path} is truncated: the compressed data ends early",
    ),
    "csv as tsv": (
        "a.tsv",
        b"a,b\n1,2\n",
        "{path} is not a TSV file: its first line has commas and no tabs; rename it to .csv",
    ),
    "csv as parquet": ("a.parquet", b"a,b\n1,2\n", "{path} is not a Parquet file: it does not start like one"),
    "csv as npz": ("a.npz", b"a,b\n1,2\n", "{path} is not an NPZ file: it does not start like one"),
    "truncated npz": ("a.npz", npz_bytes(X=np.eye(99))[:500], "{path} is damaged or truncated: File is not a zip file"),
    "npz without X": (
        "a.npz",
        npz_bytes(X_train=np.eye(2), b=np.eye(2)),
        "{path} holds the arrays 'X_train', 'b'; widefit reads X and y",
    ),
    "npz of objects": (
        "a.npz",
        npz_bytes(X=np.array([[1, "a"]], dtype=object)),
        "{path} holds pickled objects, which widefit does not open; save plain arrays",
    ),
    "npz of text": (
        "a.npz",
        npz_bytes(X=np.array([["a"]])),
        "{path}: X has shape (1, 1) and type <U1; it must be numbers of shape (n, d)",
    ),
    "flat npz": (
        "a.npz",
        npz_bytes(X=np.ones(3)),
        "{path}: X has shape (3,) and type float64; it must be numbers of shape (n, d)",
    ),
    "npz without rows": ("a.npz", npz_bytes(X=np.ones((0, 3))), "{path}: X has shape (0, 3), there is nothing in it"),
    "npz of other lengths": (
        "a.npz",
        npz_bytes(X=np.eye(3), y=np.ones(2)),
        "{path}: y has shape (2,) and X 3 rows; one value per row is needed (several outputs: widefit.WideRegressor)",
    ),
    "svm label": ("a.svm", b"1 1:2\nyes 1:3\n", "{path}, line 2: 'yes' is not a number"),
    "svm value": ("a.svm", b"1 1:2\n\n1 1:x\n", "{path}, line 3: 'x' is not a number"),
    "svm form": ("a.libsvm", b"1 1:2\n1 2 3\n", "{path}, line 2: '1 2 3' is not 'label index:value index:value …'"),
    "svm order": ("a.txt", b"1 2:2 1:1\n", "{path}, line 1: the indices must increase from left to right"),
    "svm too wide": (
        "a.svm",
        b"1 1000000:1\n",
        "{path} has 1,000,001 features; as a table at most 20,000 are read. "
        "Give such data to widefit.WideClassifier or WideRegressor as a sparse matrix",
    ),
    "unknown suffix": (
        "a.docx",
        b"",
        "{path}: the name does not end in a format that widefit reads (.csv, .tsv, .txt, .parquet, .npz, .svm, "
        ".libsvm, .svmlight, .arff, .xlsx, .xls or .ods; also with .gz, .bz2, .xz, .zst or .zip)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    file, content, message = BAD[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content())
    assert refusal(path) == message.format(path=path)


# What turns a table into another one, or into none.
TOKENS = [b",", b"\n", b'"', b";", b"\t", b"\r", b"\0", b"\xff", b"1e999", b"nan", b"inf", b"-", b"9" * 400, b"#", b":"]
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 9), st.sampled_from([b"", *TOKENS]) | st.binary(max_size=4)), max_size=4
)


def example_contents() -> dict[str, bytes]:
    text = FRAME.write_csv().encode()
    return {
        "t.csv": text,
        "bare.csv": b"1,2,3\n4,5,6\n7,8,9\n",
        "semicolons.csv": b"a;y\n1,5;0,5\n1,7;1,2\n2;3\n",
        "t.csv.gz": gzip.compress(text),
        "t.tsv": FRAME.write_csv(separator="\t").encode(),
        "t.svm": b"1 1:2 3:4\n-1 1:3 # comment\n1 2:1\n-1 1:4 2:2\n",
        "t.npz": npz_bytes(X=np.arange(12.0).reshape(6, 2), y=np.arange(6) % 2),
    }


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(example_contents())), edits=EDITS, impute=st.booleans())
def test_whatever_a_file_holds_it_is_a_table_or_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, name: str, edits: list[tuple[float, int, bytes]], impute: bool
) -> None:
    # Parquet is left out: a damaged file makes Polars print the backtrace of its panic, though it is caught.
    content = bytearray(example_contents()[name])
    for place, deleted, inserted in edits:
        start = round(place * len(content))
        content[start : start + deleted] = inserted
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        table = read_table(path)
        target = learn_target(table.frame, choose_target(table, None))
        encoding = TableEncoding.learn(table.frame, target, impute=impute)
        X, y = encoding.encode(table.frame), target.values(table.frame)
    except TableError:
        return
    assert X.shape == (table.frame.height, len(encoding.feature_names))
    assert np.isfinite(X).all()
    assert y.shape == (len(X),)


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    FRAME.write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).startswith(f"{path} is damaged or truncated: ")


def test_nothing_there(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} is a folder, not a file"
    assert refusal(tmp_path / "a.csv") == f"there is no file {tmp_path / 'a.csv'}"
    known = "digits, diabetes, breast_cancer, wine, iris, california_housing"
    assert refusal("digit") == f"there is no file and no built-in data set called 'digit'; built in are {known}"


def test_openml_names() -> None:
    assert refusal("openml:") == "openml: needs a name or a number after the colon, such as openml:adult"
    assert refusal("openml:iris@x") == "openml:iris@x: the version after @ must be a number"


def feature(index: int, name: str, kind: str, *, target: bool = False, row: bool = False) -> dict:
    flags = {"is_target": target, "is_ignore": False, "is_row_identifier": row}
    return {"index": str(index), "name": name, "data_type": kind, "number_of_missing_values": "0"} | {
        key: str(flag).lower() for key, flag in flags.items()
    }


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing downloaded before, and a proxy that refuses every connection, as without a network on any machine."""
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(urllib.request, "_opener", None)  # the one that is kept has read the environment


@pytest.mark.filterwarnings("error")
def test_openml_from_its_cache(tmp_path: Path, no_network: None) -> None:
    """The answers of OpenML as its cache keeps them: no network is touched."""
    arff = (
        "@RELATION towns\n@ATTRIBUTE id NUMERIC\n@ATTRIBUTE size REAL\n@ATTRIBUTE town {Oslo,Rome}\n"
        "@ATTRIBUTE rich {no,yes}\n@DATA\n1,1.5,Oslo,yes\n2,?,Rome,no\n3,2.5,?,yes\n"
    )
    url = "https://api.openml.org/data/v1/download/7/towns.arff"
    answers = {
        "api/v1/json/data/list/data_name/towns/limit/2/status/active/": {
            "data": {"dataset": [{"did": 4242, "name": "towns", "version": 1, "status": "active"}]}
        },
        "api/v1/json/data/4242": {
            "data_set_description": {
                "id": "4242",
                "name": "towns",
                "version": "1",
                "status": "active",
                "format": "ARFF",
                "url": url,
                "description": "",
                "md5_checksum": hashlib.md5(arff.encode()).hexdigest(),
            }
        },
        "api/v1/json/data/features/4242": {
            "data_features": {
                "feature": [
                    feature(0, "id", "numeric", row=True),
                    feature(1, "size", "numeric"),
                    feature(2, "town", "nominal"),
                    feature(3, "rich", "nominal", target=True),
                ]
            }
        },
        "api/v1/json/data/qualities/4242": {
            "data_qualities": {"quality": [{"name": "NumberOfInstances", "value": "3.0"}]}
        },
        "data/v1/download/7/towns.arff": arff,
    }
    for name, answer in answers.items():
        path = tmp_path / "openml" / "openml.org" / (name + ".gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress((answer if isinstance(answer, str) else json.dumps(answer)).encode()))
    table = read_table("openml:towns")
    rows = [
        {"size": 1.5, "town": "Oslo", "rich": "yes"},
        {"size": None, "town": "Rome", "rich": "no"},
        {"size": 2.5, "town": None, "rich": "yes"},
    ]
    assert (table.name, table.target) == ("towns", "rich")
    assert str(table.frame.rows(named=True)) == str(rows).replace("'size': None", "'size': nan")


@pytest.mark.parametrize("name", ["openml:61", "california_housing"])
@pytest.mark.filterwarnings("ignore")
def test_without_a_network(no_network: None, name: str) -> None:
    found = refusal(name)
    assert found.startswith(f"{name} cannot be downloaded (")
    assert "without a network use digits, diabetes, breast_cancer, wine, iris, or download it elsewhere" in found
