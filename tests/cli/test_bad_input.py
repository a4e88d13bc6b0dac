"""Bad input: one line that names what is wrong, exit code 2, and no file left behind."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from command_line import Result, call, call_all

import widefit

PREFIX = "widefit: error: "


def csv_of(rows: int, header: str, row: str) -> bytes:
    return (
        header + "\n" + "".join(row.format(i=i, r=(i * 37 % 101) / 7, c="ab"[i % 2]) + "\n" for i in range(rows))
    ).encode()


GOOD = csv_of(30, "a,b,y", "{i},{c},{r}")
FILES: dict[str, bytes] = {
    "good.csv": GOOD,
    "empty.csv": b"",
    "ragged.csv": b"a,b,y\n1,2,3\n4,5\n",
    "quote.csv": b'a,y\n1,2\n3,"4\n',
    "twice.csv": b"a,a,y\n1,2,3\n",
    "latin.csv": "a,y\n1,é\n".encode("latin-1"),
    "gaps.csv": csv_of(30, "a,b,y", "{i},{c},{r}").replace(b"\n4,a", b"\n,a"),
    "typo.csv": GOOD.replace(b"\n9,b", b"\nnine,b"),
    "no_y.csv": GOOD.replace(b",b,0.0\n", b",b,\n").replace(b"\n0,a,0.0", b"\n0,a,"),
    "constant_y.csv": csv_of(30, "a,y", "{i},5"),
    "class_per_row.csv": csv_of(30, "a,y", "{i},c{i}"),
    "wrong.csv": b"day,a,y\n2020-01-01,1,1\n2020-01-02,,2\n2020-01-03,3,\n2020-01-04,4,4\n",
    "inches.csv": b'a,y\n"12" board",1\n',
    "tiny.csv": b"a,y\n1,0.5\n2,1.5\n",
    "pickle.csv": pickle.dumps([1, 2]),
    "table.docx": b"PK\x03\x04",
    "csv.widefit": GOOD,
}

TRAIN: dict[str, tuple[list[str], str]] = {
    "no such file": (["none.csv"], "there is no file none.csv"),
    "no such data set": (["digit"],
        "there is no file and no built-in data set called 'digit'; built in are digits, diabetes, "
        "breast_cancer, wine, iris, california_housing"),
    "a folder": (["folder"], "folder is a folder, not a file"),
    "unknown format": (["table.docx"],
        "table.docx: the name does not end in a format that widefit reads (.csv, .tsv, .txt, .parquet, .npz, .svm, "
        ".libsvm, .svmlight, .arff, .xlsx, .xls or .ods; also with .gz, .bz2, .xz, .zst or .zip)"),
    "empty file": (["empty.csv"], "empty.csv is empty"),
    "pickle": (["pickle.csv"], "pickle.csv is not a CSV file: it is a pickle, which widefit does not open"),
    "short line": (["ragged.csv"],
        "ragged.csv, line 3: 2 fields where the first line has 3; quote fields that contain the separator"),
    "open quote": (["quote.csv"], "quote.csv, line 3: unexpected end of data (a quote that is not closed?)"),
    "same name twice": (["twice.csv"],
        "twice.csv, line 1: 2 columns called 'a' (columns 1, 2); give each column a name of its own"),
    "encoding": (["latin.csv"], "latin.csv, line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
    "missing values": (["gaps.csv"],
        "column 'a' has 1 missing value (first in row 5); use --impute to fill them in, --missing-indicator "
        "to learn from them too, or leave the columns out with --drop"),
    "text among numbers": (["typo.csv"],
        "column 'a' holds numbers except for 1 value (first 'nine' in row 10); correct them, or say that "
        "they are missing with --na-value nine"),
    "everything at once": (["wrong.csv"],
        "the target 'y' is missing in 1 row (first in row 3); targets are never filled in, remove those rows; column "
        "'a' has 1 missing value (first in row 2); use --impute to fill them in, --missing-indicator to "
        "learn from them too, or leave the columns out with --drop"),
    "a home of nobody": (["~nosuchuser/x.csv"], "there is no file ~nosuchuser/x.csv"),
    "a quote inside quotes": (["inches.csv"],
        "inches.csv, line 2: ',' expected after '\"' (write a quote inside quotes twice)"),
    "missing target": (["no_y.csv"],
        "the target 'y' is missing in 1 row (first in row 1); targets are never filled in, remove those rows"),
    "constant target": (["constant_y.csv"], "the target 'y' has only one value (5); there is nothing to learn"),
    "a class per row": (["class_per_row.csv"],
        "the target 'y' has 30 different classes in 30 rows; classes must repeat. Name another column with "
        "--target"),
    "classes of fractions": (["good.csv", "--task", "classification"],
        "the target 'y' has numbers that are not whole (5.285714285714286); they cannot be classes, use "
        "--task regression"),
    "no such target": (["good.csv", "--target", "z"], "there is no column 'z' in good; its columns are 'a', 'b', 'y'"),
    "too few rows": (["tiny.csv"], "2 rows are too few to hold out a share of 0.2; use --test-size 0"),
    "no such folder": (["good.csv", "--out", "nowhere/m.widefit"], "--out: the folder nowhere does not exist"),
    "out is the data": (["good.csv", "--out", "good.csv"], "--out: good.csv is the same file as the data"),
    "out is the report": (["good.csv", "--out", "x", "--report", "./x"], "--report: x is the same file as --out"),
    "no checkpoint": (["good.csv", "--checkpoint", "c", "--resume"],
        "there is no checkpoint c to resume; leave out --resume to begin afresh"),
    "checkpoint there": (["good.csv", "--checkpoint", "gaps.csv"],
        "the checkpoint gaps.csv exists; go on from it with --resume, or delete it first"),
}  # fmt: skip

USAGE: dict[str, tuple[list[str], str]] = {
    "no data": (["train"], "Missing argument 'DATA'"),
    "unknown option": (["train", "good.csv", "--widht", "5"], "No such option: --widht"),
    "width": (["train", "good.csv", "--width", "0"], "Invalid value for '--width'"),
    "threshold": (["train", "good.csv", "--threshold", "high"], "'high' is neither auto nor a number"),
    "resume": (["train", "good.csv", "--resume"], "--resume needs --checkpoint FILE, the state to go on from"),
    "report": (["train", "good.csv", "--report", "x", "--no-report"], "--report and --no-report exclude each other"),
}

MODEL: dict[str, tuple[list[str], str]] = {
    "no such model": (["predict", "none.widefit", "good.csv"], "there is no file none.widefit"),
    "csv as model": (["evaluate", "csv.widefit", "good.csv"],
        "csv.widefit is not a model file: it does not start like one, or is altered there"),
    "format of predictions": (["predict", "csv.widefit", "good.csv", "-o", "out.xlsx"],
        "--out: out.xlsx must end in .csv, .tsv or .parquet"),
}  # fmt: skip


WITH_A_MODEL: dict[str, tuple[list[str], str]] = {
    "lacking columns": (["predict", "houses.widefit", "lacking.csv"],
        "2 columns of the training table are not in this one: 'rooms', 'town'"),
    "text for a number": (["predict", "houses.widefit", "text.csv", "-o", "out.csv"],
        "column 'area', row 2: 'big' is not a number, as it was in training"),
    "no truth": (["evaluate", "houses.widefit", "lacking.csv"],
        "there is no column 'price' in lacking to compare with; name it with --target (the columns are "
        "'area', 'garden', 'age')"),
    "no probabilities": (["predict", "houses.widefit", "text.csv", "--proba"],
        "--proba: houses.widefit predicts numbers, which have no probabilities"),
    "altered model": (["info", "altered.widefit"],
        "altered.widefit is altered: its checksum does not match its content"),
    "saved without columns": (["predict", "bare.widefit", "text.csv"],
        "bare.widefit was fitted to an array, whose columns have no names; fit the model to a data frame, or open "
        "it with widefit.load and pass arrays"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Result]:
    """Exit code, standard output and standard error of every case."""
    cases = {name: ["train", *arguments] for name, (arguments, _) in TRAIN.items()}
    cases |= {name: arguments for name, (arguments, _) in (USAGE | MODEL).items()}
    assert len(cases) == len(TRAIN) + len(USAGE) + len(MODEL)
    return call_all(cases, folder)


@pytest.mark.parametrize("name", [*TRAIN, *MODEL])
def test_one_line_names_what_is_wrong(said: dict[str, Result], name: str) -> None:
    code, stdout, stderr = said[name]
    assert stderr.splitlines()[-1] == PREFIX + (TRAIN | MODEL)[name][1]
    assert stderr.count(PREFIX) == 1
    assert "Traceback" not in stderr
    assert (code, stdout) == (2, "")


@pytest.mark.parametrize("name", USAGE)
def test_usage(said: dict[str, Result], name: str) -> None:
    code, stdout, stderr = said[name]
    assert USAGE[name][1] in " ".join(stderr.replace("│", " ").split())
    assert "Traceback" not in stderr
    assert (code, stdout) == (2, "")


def test_no_file_is_left_behind(said: dict[str, Result], folder: Path) -> None:
    assert said
    assert {path.name for path in folder.iterdir()} == {*FILES, "folder"}
    assert all((folder / name).read_bytes() == content for name, content in FILES.items())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_unwritable_folder(folder: Path) -> None:
    ran = call("train", "good.csv", "--out", "/proc/m.widefit", folder=folder)
    assert ran.code == 2
    assert ran.stderr.startswith(f"{PREFIX}--out: the folder /proc is not writable (")


@pytest.fixture(scope="module")
def said_with_a_model(houses: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The same for tables that a good model cannot take, and for models that are no longer good."""
    folder = tmp_path_factory.mktemp("with_a_model")
    content = bytearray((houses / "houses.widefit").read_bytes())
    (folder / "houses.widefit").write_bytes(content)
    content[-5] ^= 1
    (folder / "altered.widefit").write_bytes(content)
    X = np.random.default_rng(0).normal(size=(20, 2))
    model = widefit.WideRegressor(hidden_layer_sizes=(16,), max_iter=1).fit(X, X[:, 0])
    widefit.save(model, folder / "bare.widefit")
    (folder / "lacking.csv").write_text("area,garden,age\n1,True,3\n")
    (folder / "text.csv").write_text("area,rooms,garden,town,age\n1,2,True,Ulm,3\nbig,2,True,Ulm,3\n")
    found = call_all({name: list(arguments) for name, (arguments, _) in WITH_A_MODEL.items()}, folder)
    assert not (folder / "out.csv").exists()
    return found


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_tables_and_models_that_do_not_fit(said_with_a_model: dict[str, Result], name: str) -> None:
    code, stdout, stderr = said_with_a_model[name]
    assert stderr == PREFIX + WITH_A_MODEL[name][1] + "\n"
    assert (code, stdout) == (2, "")


def test_several_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "fit")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = {
        "this command runs in one process": ("predict", "model.widefit", "new.csv"),
        "--stream learns row by row, in one process": ("train", "endless.csv", "--stream"),
    }
    for message, arguments in refused.items():
        ran = call(*arguments, folder=tmp_path)
        assert ran.code == 2
        assert message in ran.stderr
    assert not list(tmp_path.iterdir())
