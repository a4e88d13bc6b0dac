"""What the commands do with good input."""

import inspect
import io
import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer
from command_line import ENVIRONMENT, Result, call, call_all, run, run_interpreter, write_houses
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file
from sklearn import metrics

import widefit
from widefit.cli.benches import compared, find, load
from widefit.cli.commands import bench, evaluate, finetune, info, predict, train
from widefit.cli.commands import train as train_command
from widefit.cli.output import Output, number, plain, seconds
from widefit.cli.run import outcome, scores
from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.files import load_parts
from widefit.plan.base import Choice, Plan
from widefit.plan.names import RULES

COMMANDS = ["train", "predict", "evaluate", "info", "bench"]


def test_help_needs_nothing_heavy_and_has_examples(tmp_path: Path) -> None:
    heavy = ["torch", "sklearn", "numba", "scipy", "numpy", "polars", "matplotlib"]
    code = (
        "import sys; from widefit.cli import main\n"
        f"for arguments in ([], *([name] for name in {COMMANDS})):\n"
        "    sys.argv = ['widefit', *arguments, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        f"print('loaded:', [name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "loaded: []" in ran.stdout
    assert ran.stdout.count("Examples") == 1 + len(COMMANDS)


def test_every_command_says_what_it_wrote_alike() -> None:
    for command in (train, predict, finetune, bench):
        option = inspect.get_annotations(command.command)["out"].__metadata__[0]
        assert {option.default, *option.param_decls} == {"--out", "-o"}
    for command in (train, predict, evaluate, info, finetune, bench):
        assert {"json", "quiet"} <= inspect.signature(command.command).parameters.keys()


def test_shells_complete(tmp_path: Path) -> None:
    ran = run_interpreter("--show-completion", "bash", folder=tmp_path)
    assert "_WIDEFIT_COMPLETE" in ran.stdout


def test_version(tmp_path: Path) -> None:
    assert run_interpreter("--version", folder=tmp_path).stdout == f"widefit {widefit.__version__}\n"


def test_defaults_are_those_of_the_estimators() -> None:
    estimator = {name: p.default for name, p in inspect.signature(widefit.WideRegressor).parameters.items()}
    options = {name: p.default for name, p in inspect.signature(train_command.command).parameters.items()}
    assert options["width"] is None
    assert estimator["hidden_layer_sizes"] == "auto"
    assert options["seed"] == estimator["random_state"]
    for name in ("activation", "threshold", "alpha", "rule", "tracker", "solver", "max_iter", "tol"):
        assert options[name] == estimator[name]


@pytest.mark.parametrize("rule", RULES.homes)
def test_every_rule_is_one_of_the_estimators(rule: str) -> None:
    rows = np.random.default_rng(0).standard_normal((12, 2))
    model = widefit.WideRegressor(hidden_layer_sizes=(64,), rule=rule, max_iter=1, tol=0).fit(rows, rows[:, 0])
    assert model.n_iter_ == 1


def test_several_hidden_layers_from_training_to_prediction(tmp_path: Path) -> None:
    sizes = (
        "--hidden-layer-sizes",
        "60,50",
        "--solver",
        "block-cg",
        "--max-iter",
        3,
        "--no-report",
        "--json",
        "--quiet",
    )
    trained = call("train", "iris", *sizes, folder=tmp_path)
    assert trained.code == 0, trained.stderr
    document = json.loads(trained.stdout)
    assert document["settings"]["hidden_layer_sizes"] == [60, 50]
    assert document["metrics"]["held out"]["accuracy"] > 0.6
    measured = call("evaluate", "iris.widefit", "iris", "--json", "--quiet", folder=tmp_path)
    assert measured.code == 0
    for wrong in ("60,x", "60,,50", "1,60"):
        refused = call("train", "iris", "--hidden-layer-sizes", wrong, folder=tmp_path)
        assert refused.code == 2
        assert "2048,2048" in " ".join(refused.stderr.replace("│", " ").split())


class TestTrain:
    def test_says_what_it_did(self, trained: tuple[Path, dict[str, Result]]) -> None:
        folder, (_, said, remarks) = trained[0], trained[1]["houses"]
        assert "houses: 120 rows, 7 features, target price (regression)" in said
        for expected in ("threshold", "solver", "why", "held out (24)", "train (96)", "baseline (always the mean)"):
            assert expected in said
        assert re.search(r"steps? in .* loss .* → .*; training ended because", said)
        assert re.search(r"model +houses.widefit \(", said)
        assert re.search(r"report +houses.html \(", said)
        assert "1 column left out, being constant in the training rows: 'planet'" in remarks
        assert "12 missing values filled in" in remarks
        assert "regression: the target 'price' has 120 different numbers in 120 rows (--task changes it)" in remarks
        assert (folder / "houses.html").read_text().lower().startswith("<!doctype html>")

    def test_json_and_nothing_else(self, trained: tuple[Path, dict[str, Result]]) -> None:
        document = json.loads(trained[1]["flowers"].stdout)
        assert document["data"]["classes"] == ["setosa", "versicolor", "virginica"]
        assert document["data"]["split"] == {"held out": 30, "train": 120}
        assert document["files"] == {"model": "flowers.widefit"}
        assert document["metrics"]["held out"]["accuracy"] > document["metrics"]["baseline (always setosa)"]["accuracy"]
        assert document["history"]["steps"][0]["step"] == 0
        assert not document["interrupted"]

    def test_no_file_but_those_named(self, trained: tuple[Path, dict[str, Result]]) -> None:
        models = {"houses.widefit", "two.widefit", "flowers.widefit", "forced.widefit"}
        found = {path.name for path in trained[0].iterdir() if path.suffix in (".widefit", ".html", ".tmp")}
        assert found == models | {"houses.html", "forced.html"}

    def test_quiet_and_threads_do_not_change_the_result(self, trained: tuple[Path, dict[str, Result]]) -> None:
        folder, said = trained
        assert said["two threads"] == (0, "", "")
        one, two = load_file(folder / "houses.widefit"), load_file(folder / "two.widefit")
        assert one.keys() == two.keys()
        assert all(one[name].equal(two[name]) for name in one)

    def test_forced_choices(self, trained: tuple[Path, dict[str, Result]]) -> None:
        _, stdout, stderr = trained[1]["forced"]
        document = json.loads(stdout)
        assert stderr == ""
        assert document["data"]["target"] == "rooms"
        assert document["data"]["features"] == ["area", "garden", "town=Bonn", "town=Jena", "town=Ulm"]
        assert document["settings"]["alpha"] == 0.5
        assert {step["solver"] for step in document["history"]["steps"][1:]} == {"cg"}
        assert list(document["metrics"]) == ["train", "baseline (always the mean)"]
        assert document["data"]["left_out"][:2] == [
            {"column": "age", "reason": "dropped as asked"},
            {"column": "price", "reason": "dropped as asked"},
        ]


@pytest.fixture(scope="module")
def said(houses: Path) -> dict[str, Result]:
    """Answers of predict, evaluate and info for the two models."""
    frame = pl.read_csv(houses / "new.csv")
    frame.select(*reversed(frame.columns)).write_parquet(houses / "shuffled.parquet")
    (houses / "rome.csv").write_text((houses / "new.csv").read_text().replace("Bonn", "Rome"))
    (houses / "renamed.csv").write_text((houses / "test.csv").read_text().replace("price", "sold_for", 1))
    found = call_all(
        {
            "new": ["predict", "houses.widefit", "new.csv"],
            "shuffled": ["predict", "houses.widefit", "shuffled.parquet", "-o", "out.parquet"],
            "unseen": ["predict", "houses.widefit", "rome.csv", "-o", "out.tsv", "--threads", 1],
            "flowers": ["predict", "flowers.widefit", "iris", "--proba", "--json"],
            "evaluate": ["evaluate", "houses.widefit", "renamed.csv", "--target", "sold_for", "--json"],
            "info": ["info", "houses.widefit"],
        },
        folder=houses,
    )
    assert [result.code for result in found.values()] == [0] * len(found), found
    return found


def predictions(houses: Path, table: str) -> np.ndarray:
    """The same without the command line."""
    model, record = load_parts(houses / "houses.widefit")
    assert record is not None
    return model.predict(TableEncoding.from_dict(record).encode(read_table(houses / table).frame))


class TestPredict:
    def test_every_row_in_order(self, said: dict[str, Result], houses: Path) -> None:
        assert said["new"].stderr == ""
        predicted = pl.read_csv(said["new"].stdout.encode())
        assert predicted.columns == ["prediction"]
        assert np.array_equal(predicted["prediction"].to_numpy(), predictions(houses, "new.csv"))
        assert len(predicted) == 17

    def test_columns_in_another_order_and_format(self, said: dict[str, Result], houses: Path) -> None:
        assert said["shuffled"] == (0, "", "17 predictions in out.parquet\n")
        predicted = pl.read_parquet(houses / "out.parquet")
        assert np.array_equal(predicted["prediction"].to_numpy(), predictions(houses, "new.csv"))

    def test_unseen_category_is_a_warning(self, said: dict[str, Result], houses: Path) -> None:
        warning = "column 'town' has 1 value that training did not see ('Rome'); treated as none of its categories"
        assert said["unseen"] == (0, "", f"warning: {warning}\n17 predictions in out.tsv\n")
        with pytest.warns(UserWarning, match="'Rome'"):
            expected = predictions(houses, "rome.csv")
        assert np.array_equal(pl.read_csv(houses / "out.tsv", separator="\t")["prediction"].to_numpy(), expected)

    def test_probabilities(self, said: dict[str, Result]) -> None:
        document = json.loads(said["flowers"].stdout)
        names = [f"probability_{name}" for name in ("setosa", "versicolor", "virginica")]
        shares = np.array([document[name] for name in names]).T
        assert document["rows"] == len(document["prediction"]) == 150
        assert np.allclose(shares.sum(axis=1), 1)
        assert [names[index].removeprefix("probability_") for index in shares.argmax(axis=1)] == document["prediction"]

    def test_a_reader_that_leaves(self, houses: Path) -> None:
        write_houses(houses / "many.csv", 20_000, 3)
        command = f"{sys.executable} -m widefit predict houses.widefit many.csv | head -n 1"
        ran = subprocess.run(command, shell=True, cwd=houses, env=ENVIRONMENT, capture_output=True, text=True)
        assert (ran.stdout, ran.stderr) == ("prediction\n", "")


class TestTables:
    """Tables as people write them, from training to prediction."""

    QUICK = ("--width", 64, "--max-iter", 2, "--no-report", "--quiet")

    def test_codes_dates_and_marks_of_training_hold_in_prediction(self, tmp_path: Path) -> None:
        kinds = [("01", "$1,000", "01/02/2020"), ("02", "$900", "unknown"), ("A1", "-", "03/02/2020")]
        rows = "".join(f'{kind},"{price}",{day},{index % 7 / 3}\n' for index in range(12) for kind, price, day in kinds)
        (tmp_path / "t.csv").write_text("code,price,day,y\n" + rows)
        (tmp_path / "new.csv").write_text('code,price,day\n02,950,01/02/2020\n01,"$1,100.00",03/02/2020\n')
        (tmp_path / "dates.csv").write_text("code,price,day\n02,2020-01-01,01/02/2020\n")
        trained = call("train", "t.csv", "--impute", *self.QUICK, folder=tmp_path)
        assert trained.code == 0, trained.stderr
        code, stdout, stderr = call("predict", "t.widefit", "new.csv", folder=tmp_path)
        assert (code, stderr, len(stdout.splitlines())) == (0, "", 3)
        code, stdout, stderr = call("predict", "t.widefit", "dates.csv", folder=tmp_path)
        assert (code, stdout) == (2, "")
        assert stderr == (
            "widefit: error: column 'price', row 1: '2020-01-01' is not a number, as it was in training\n"
        )

    def test_instructions_reach_the_reader_and_the_next_table(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("".join(f"{index % 5},{index};-9;{index % 4}\n" for index in range(30)))
        said = ("--no-header", "--decimal", ",", "--na-value", "-9", "--json")
        trained = call("train", "t.csv", *said, *self.QUICK, folder=tmp_path)
        assert trained.code == 0, trained.stderr
        document = json.loads(trained.stdout)
        assert document["data"]["features"] == ["column_1"]
        assert document["data"]["left_out"] == [{"column": "column_2", "reason": "it is empty"}]
        (tmp_path / "new.csv").write_text("column_1\n-9\n")
        refused = call("predict", "t.widefit", "new.csv", folder=tmp_path)
        assert "column 'column_1' has 1 missing value (first in row 1)" in refused.stderr

    def test_gaps_as_information(self, tmp_path: Path) -> None:
        rows = "".join(f"{'' if index % 3 else 'Gd'},{index % 5},{index / 7}\n" for index in range(30))
        (tmp_path / "t.csv").write_text("pool,size,y\n" + rows)
        trained = call("train", "t.csv", "--missing-indicator", "--json", *self.QUICK, folder=tmp_path)
        document = json.loads(trained.stdout)
        assert document["data"]["features"] == ["pool=Gd", "pool is missing", "size"]
        assert "20 missing values taken as values of their own" in document["notes"]

    @pytest.mark.parametrize("stream", [(), ("--stream",)])
    def test_standard_input(self, stream: tuple[str, ...], tmp_path: Path) -> None:
        table = "id,y\n" + "".join(f"{index},{index / 7}\n" for index in range(40))
        arguments = ["train", "-", *stream, "--width", 64, "--max-iter", 2, "--no-report", "--json"]
        ran = run(*arguments, folder=tmp_path, given=table)
        document = json.loads(ran.stdout)
        assert document["files"] == {"model": "stdin.widefit"}
        assert (
            "column 'id' has a different whole number in every row; if it only names the rows, leave it out with "
            "--drop id"
        ) in document["notes"]


def test_standard_output_that_is_closed(houses: Path) -> None:
    command = f"{sys.executable} -m widefit predict houses.widefit new.csv >&-"
    ran = subprocess.run(command, shell=True, cwd=houses, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (1, "widefit: error: standard output is closed\n")


def test_evaluate_with_the_truth_under_another_name(said: dict[str, Result], houses: Path) -> None:
    document = json.loads(said["evaluate"].stdout)
    model, baseline = document["metrics"]["model"], document["metrics"]["baseline (always the mean)"]
    error = predictions(houses, "test.csv") - pl.read_csv(houses / "test.csv")["price"].to_numpy()
    assert document["rows"] == len(error) == 30
    assert model["RMSE"] == pytest.approx(np.sqrt(np.mean(error**2)))
    assert model["MAE"] == pytest.approx(np.mean(np.abs(error)))
    assert model["R²"] > 0.8
    assert baseline["R²"] == pytest.approx(0, abs=1e-12)


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_scores_of_classes_are_those_of_scikit_learn(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    classes = np.array(["a", "bb", "c", "d", "e"])[:count]
    y, predicted = generator.choice(classes, 40), generator.choice(classes, 40)
    probabilities = generator.dirichlet(np.ones(count), 40)
    found = scores.of_classes(y, predicted, probabilities, classes)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, predicted))
    assert found["log loss"] == pytest.approx(metrics.log_loss(y, probabilities, labels=classes))
    recalls = metrics.recall_score(y, predicted, labels=np.unique(y), average="macro")
    assert found["balanced accuracy"] == pytest.approx(recalls)


@given(st.integers(0, 10_000))
def test_scores_of_numbers_are_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    y, predicted = generator.normal(size=30), generator.normal(size=30)
    found = scores.of_numbers(y, predicted)
    assert found["RMSE"] == pytest.approx(metrics.root_mean_squared_error(y, predicted))
    assert found["MAE"] == pytest.approx(metrics.mean_absolute_error(y, predicted))
    assert found["R²"] == pytest.approx(metrics.r2_score(y, predicted))


def test_baselines() -> None:
    name, found = scores.of_constant(np.array(["b", "a", "b"]), np.array(["a", "b"]), "classification")
    assert name == "always b"
    assert found == pytest.approx(
        {"accuracy": 0.5, "log loss": -np.log([1 / 3, 2 / 3]).mean(), "balanced accuracy": 0.5}
    )
    name, found = scores.of_constant(np.array([1.0, 3.0]), np.array([2.0, 4.0]), "regression")
    assert (name, found) == ("always the mean", {"RMSE": pytest.approx(2**0.5), "MAE": 1.0, "R²": -1.0})


def test_info(said: dict[str, Result]) -> None:
    words = " ".join(said["info"].stdout.split())
    assert "Estimator WideRegressor" in words
    assert "Target price" in words
    assert "Columns area (number), rooms (number), garden (boolean), town (category), age (number)" in words


class TestBench:
    def test_found_without_being_imported(self, tmp_path: Path) -> None:
        (tmp_path / "harness.py").write_text("raise RuntimeError('imported')\n")
        (tmp_path / "two_layer.py").write_text(
            '"""The scaling laws.\n\nMore."""\nimport neighbour\n'
            'def run(size): return {"size": size, "n": neighbour.N}\n'
        )
        (tmp_path / "neighbour.py").write_text("N = 7\n")
        found = find(tmp_path)
        assert {name: bench.summary for name, bench in found.items()} == {"two-layer": "The scaling laws."}
        before = list(sys.path)
        assert load(found["two-layer"].path).run("quick") == {"size": "quick", "n": 7}
        assert sys.path == before

    @pytest.fixture
    def benches(self, tmp_path: Path, monkeypatch) -> Path:
        (tmp_path / "harmless_bench.py").write_text(
            '"""A pass."""\ndef run(size, a_row=1):\n'
            '    line = {"name": "pass", "value": 0.5, "unit": "s", "against": "bare product", "ratio": 0.25 * a_row}\n'
            '    return {"figures": [line], "machine": {"cores": 2}}\n'
        )
        monkeypatch.setattr("widefit.cli.benches.folder_of_benches", lambda: tmp_path)
        return tmp_path

    def test_results_read_one_way_and_go_where_those_of_other_commands_go(self, benches: Path) -> None:
        shown = call("bench", "harmless-bench", "-o", "result.json", folder=benches)
        assert shown.code == 0, shown.stderr
        assert "4 × slower than bare product" in shown.stdout
        document = json.loads(call("bench", "harmless-bench", "--json", "--quiet", folder=benches).stdout)
        assert document["figures"] == json.loads((benches / "result.json").read_text())["figures"]
        assert document["command"] == "bench"
        assert json.loads(call("bench", "--json", folder=benches).stdout)["benches"] == {"harmless-bench": "A pass."}

    @pytest.mark.parametrize("given", [["--a-row", "32"], ["--a-row=32"]])
    def test_options_of_the_bench_itself(self, benches: Path, given: list[str]) -> None:
        shown = call("bench", "harmless-bench", *given, folder=benches)
        assert shown.code == 0, shown.stderr
        assert "8 × faster than bare product" in shown.stdout

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (["--columns", "3"], "--columns: the bench harmless-bench takes --a-row"),
            (["--a-row"], "--a-row needs a value"),
            (["--a-row", "many"], "--a-row must be of the kind of 1, got 'many'"),
        ],
    )
    def test_options_that_it_does_not_take(self, benches: Path, given: list[str], words: str) -> None:
        code, _, stderr = call("bench", "harmless-bench", *given, folder=benches)
        assert code == 2
        assert words in stderr

    @pytest.mark.parametrize(
        ("ratio", "unit", "words"),
        [
            (34.2, "s", "34.2 × faster than dense"),
            (0.5, "processor s", "2 × slower than dense"),
            (0.37, "MB", "2.7 × dense"),
            (4.0, "GB", "1/4 of dense"),
            (0.5, "of the labels", "2 × worse than dense"),
            (1.001, "s", "as dense"),
            (None, "s", "beside dense"),
        ],
    )
    def test_comparisons(self, ratio: float | None, unit: str, words: str) -> None:
        assert compared({"ratio": ratio, "unit": unit, "against": "dense"}) == words

    def test_unknown_name(self, tmp_path: Path) -> None:
        code, _, stderr = call("bench", "no-such", folder=tmp_path)
        assert code == 2
        assert "there is no bench 'no-such'" in stderr

    def test_data_that_a_bench_does_not_take(self, tmp_path: Path) -> None:
        code, _, stderr = call("bench", "memory", "--data", "rows.npz", folder=tmp_path)
        assert code == 2
        assert "--data: the bench memory takes none" in stderr

    def test_data_that_is_not_what_it_has_to_be(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "rows.npz", X_train=np.zeros(3))
        code, _, stderr = call("bench", "finetune", "--quick", "--data", "rows.npz", folder=tmp_path)
        assert code == 2
        assert "rows.npz is not an NPZ file with X_train, y_train, X_test, y_test" in stderr


def test_warnings_and_log_records_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, expected in ((False, "warning: careful [b]\ncompiling [b]\n"), (True, "")):
        with Output(quiet=quiet).warnings():
            warnings.warn("careful\n[b]", UserWarning, stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            logging.getLogger("widefit").warning("compiling %s", "[b]")
            logging.getLogger("widefit").info("a step")
        assert capsys.readouterr() == ("", expected)
    assert not logging.getLogger("widefit").handlers


def test_words_for_numbers() -> None:
    values = [0.99166, 1234.5678, 3.21e-9, 0, float("nan"), None, -12.5]
    assert [number(value) for value in values] == ["0.9917", "1235", "3.21e-09", "0", "–", "–", "-12.5000"]
    assert [seconds(value) for value in (0.314, 12.34, 125.2, 3725)] == ["0.31 s", "12.3 s", "2 min 5 s", "1 h 2 min"]
    content = {
        "a": np.float32(0.5),
        "b": [np.nan, np.inf, (1, np.int64(2))],
        "c": Path("x"),
        3: np.arange(2),
        "d": None,
    }
    assert plain(content) == {"a": 0.5, "b": [None, None, [1, 2]], "c": "x", "3": [0, 1], "d": None}
    with pytest.raises(typer.BadParameter, match="'x' is neither auto nor a number"):
        train_command.auto_or_number("x")


@pytest.mark.parametrize("width", [60, 80])
def test_decisions_fit_a_narrow_terminal(width: int) -> None:
    chosen = "each column to variance 1, indicators 0 and 1, then times 0.34 to 0.89, constant 4.5"
    plan = Plan((Choice("input map", chosen, "scales learnt on 107 rows: error on other rows 0.0353"),))
    stream = io.StringIO()
    Console(file=stream, width=width).print(outcome._decisions(plan))
    printed = stream.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    assert set(chosen.split()) <= set(printed.split())
