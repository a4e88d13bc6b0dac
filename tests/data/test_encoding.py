"""From a table to numbers: what is learnt, what it gives, and what is refused in which words."""

import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefit.data.encoding import TableEncoding
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.survey import survey
from widefit.data.table import Table
from widefit.data.target import Target, choose_target, learn_target
from widefit.data.words import TableError

Y = pl.Series("y", [0.5, 1.5, 2.5, 3.5])


def frame_of(**columns: list) -> pl.DataFrame:
    frame = pl.DataFrame(columns, strict=False)
    return frame if "y" in columns else frame.with_columns(Y)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(TableError) as caught:
        act()
    return str(caught.value)


def mixed() -> pl.DataFrame:
    return frame_of(
        size=[1.0, 2.0, 3.0, 10.0],
        flag=[True, False, True, True],
        town=["b", "a", "c", "a"],
        fixed=[7, 7, 7, 7],
        void=[None, None, None, None],
    )


class TestEncoding:
    def test_the_matrix(self) -> None:
        encoding = TableEncoding.learn(mixed(), "y")
        assert encoding.feature_names == ("size", "flag", "town=a", "town=b", "town=c")
        assert encoding.left_out == (("fixed", "it is constant in the training rows"), ("void", "it is empty"))
        expected = [[1, 1, 0, 1, 0], [2, 0, 1, 0, 0], [3, 1, 0, 0, 1], [10, 1, 1, 0, 0]]
        found = encoding.encode(mixed())
        assert found.dtype == np.float64
        assert np.array_equal(found, expected)
        assert np.array_equal(encoding.target.values(mixed()), Y.to_numpy())

    def test_columns_by_name_in_any_order_and_others_ignored(self) -> None:
        encoding = TableEncoding.learn(mixed(), "y")
        shuffled = mixed().select("town", "y", "flag", "size").with_columns(extra=pl.lit("x"))
        assert np.array_equal(encoding.encode(shuffled), encoding.encode(mixed()))
        assert np.array_equal(encoding.encode(shuffled.drop("y", "extra")), encoding.encode(mixed()))

    def test_lacking_columns(self) -> None:
        encoding = TableEncoding.learn(mixed(), "y")
        assert refusal(lambda: encoding.encode(mixed().drop("size", "town"))) == (
            "2 columns of the training table are not in this one: 'size', 'town'"
        )
        assert np.array_equal(encoding.encode(mixed().drop("size"), absent_is_zero=True)[:, 0], np.zeros(4))

    def test_unseen_category_is_none_of_them_and_says_so(self) -> None:
        encoding = TableEncoding.learn(mixed(), "y")
        new = mixed().with_columns(town=pl.Series(["a", "zz", "b", "z"]))
        with pytest.warns(UserWarning, match=r"^column 'town' has 2 values that training did not see \('zz', 'z'\); "):
            found = encoding.encode(new)
        assert np.array_equal(found[:, 2:], [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]])

    def test_only_training_rows_teach(self) -> None:
        frame = frame_of(size=[1.0, 3.0, 1000.0, None], town=["a", "b", "zz", "a"])
        encoding = TableEncoding.learn(frame, "y", impute=True, rows=np.array([0, 1, 3]))
        assert encoding.columns[0].fill == 2.0
        assert encoding.columns[1].categories == ("a", "b")

    def test_json_round_trip(self) -> None:
        for encoding in (
            TableEncoding.learn(mixed(), "y", impute=True),
            TableEncoding.learn(mixed().with_columns(town=pl.Series(["a", "b", "a", "b"])), "town", drop=["flag"]),
            TableEncoding.learn(mixed(), "flag"),
        ):
            assert TableEncoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding
        with pytest.raises(ValueError, match="the encoding lacks 'target'"):
            TableEncoding.from_dict({"columns": []})

    def test_numbers_written_as_text_later_and_text_read_as_numbers(self) -> None:
        encoding = TableEncoding.learn(
            frame_of(code=["1", "2", "A", "1"], size=[1, 2, 3, 4], on=[True, False, True, True]), "y"
        )
        new = pl.DataFrame({"code": [1, 2], "size": ["1.5", "2"], "on": [1, 0]})
        assert np.array_equal(encoding.encode(new), [[1, 0, 0, 1.5, 1], [0, 1, 0, 2, 0]])
        assert np.array_equal(encoding.encode(new.with_columns(code=pl.Series([1.0, 2.0])))[:, 0], [1, 0])

    def test_text_where_training_saw_numbers(self) -> None:
        encoding = TableEncoding.learn(frame_of(size=[1, 2, 3, 4], on=[True, False, True, True]), "y")
        new = pl.DataFrame({"size": ["1", "two"], "on": [True, False]})
        assert refusal(lambda: encoding.encode(new)) == (
            "column 'size', row 2: 'two' is not a number, as it was in training"
        )
        new = pl.DataFrame({"size": [1, 2], "on": [0, 3]})
        assert refusal(lambda: encoding.encode(new)) == "column 'on', row 2: 3 is not true or false, as in training"

    def test_categories_of_polars_and_blanks(self) -> None:
        frame = frame_of(kind=pl.Series(["a", "b", "a", "c"], dtype=pl.Categorical), unit=[" m", "m ", "km", "m"])
        assert TableEncoding.learn(frame, "y").feature_names == ("kind=a", "kind=b", "kind=c", "unit=km", "unit=m")


# A value of every type that a column can have.
TYPES: dict[str, pl.Series] = {
    "whole numbers": pl.Series([1, 0, 1, 1]),
    "numbers": pl.Series([1.0, 0.0, 1.0, 1.0]),
    "decimals": pl.Series([1, 0, 1, 1]).cast(pl.Decimal(10, 2)),
    "text of numbers": pl.Series(["1", "0", " 1", "1.0"]),
    "words": pl.Series(["x", "y", "x", "x"]),
    "booleans": pl.Series([True, False, True, True]),
    "text of booleans": pl.Series(["True", "false", "TRUE", "true"]),
    "dates": pl.Series([date(2020, 1, day) for day in (1, 2, 3, 4)]),
    "moments": pl.Series([datetime(2020, 1, day) for day in (1, 2, 3, 4)]),
    "times": pl.Series([time(hour) for hour in (1, 2, 3, 4)]),
    "durations": pl.Series([timedelta(days=day) for day in (1, 2, 3, 4)]),
    "lists": pl.Series([[1], [0], [1], [1]]),
    "records": pl.Series([{"a": 1}, {"a": 0}, {"a": 1}, {"a": 1}]),
    "bytes": pl.Series([b"1", b"0", b"1", b"1"]),
    "categorical words": pl.Series(["x", "y", "x", "x"], dtype=pl.Categorical),
    "categorical numbers": pl.Series(["1", "0", "1", "1"], dtype=pl.Categorical),
    "nothing": pl.Series([None, None, None, None]),
    "lists of nothing": pl.Series([None, None, None, None], dtype=pl.List(pl.Int64)),
}
SEEN = {
    "moment": TYPES["dates"],
    "time": TYPES["times"],
    "duration": TYPES["durations"],
    "number": pl.Series([0.5, 1.5, 2.5, 3.5]),
    "boolean": pl.Series([True, False, True, False]),
    "category": pl.Series(["1", "0", "True", "0"]),
}
NUMBERS = {"whole numbers", "numbers", "decimals", "text of numbers", "categorical numbers"}
READ_AS = {
    "moment": {"dates", "moments"},
    "time": {"times"},
    "duration": {"durations"},
    "number": NUMBERS,
    "boolean": NUMBERS | {"booleans", "text of booleans"},
    "category": NUMBERS | {"words", "booleans", "text of booleans", "categorical words"},
}


class TestTypesOfTraining:
    """A column is read as training read it, or refused with its name and row: never as something else in silence."""

    @pytest.mark.parametrize("kind", SEEN)
    @pytest.mark.parametrize("name", TYPES)
    @pytest.mark.filterwarnings("ignore:column 'a' has")
    def test_another_type(self, kind: str, name: str) -> None:
        encoding = TableEncoding.learn(frame_of(a=SEEN[kind]), "y")
        new = pl.DataFrame({"a": TYPES[name]})
        if name in READ_AS[kind]:
            found = encoding.encode(new)
            if kind in ("number", "boolean"):
                assert found.ravel().tolist() == [1, 0, 1, 1]
            return
        message = refusal(lambda: encoding.encode(new))
        assert message.startswith("column 'a' has 4 missing" if "nothing" in name else "column 'a', row 1: ")

    @pytest.mark.parametrize("kind", ["number", "boolean", "category"])
    @pytest.mark.parametrize("name", TYPES)
    def test_another_type_of_target(self, kind: str, name: str) -> None:
        target = learn_target(pl.DataFrame({"a": [*SEEN[kind], *SEEN[kind]]}), "a")
        new = pl.DataFrame({"a": TYPES[name]})
        if name not in READ_AS[kind] or "words" in name:
            assert "'a'" in refusal(lambda: target.values(new))
            return
        if kind == "category":
            # Labels are compared as they are written.
            with suppress(TableError):
                assert set(target.values(new)) <= set(SEEN["category"])
            return
        assert target.values(new).tolist() == [1, 0, 1, 1]

    @given(st.data())
    @settings(max_examples=100)
    @pytest.mark.filterwarnings("ignore:column ")
    def test_any_columns(self, data: st.DataObject) -> None:
        kinds = data.draw(st.lists(st.sampled_from(sorted(SEEN)), min_size=1, max_size=3))
        encoding = TableEncoding.learn(frame_of(**{f"c{i}": SEEN[kind] for i, kind in enumerate(kinds)}), "y")
        names = [data.draw(st.sampled_from(sorted(TYPES))) for _ in kinds]
        new = pl.DataFrame({f"c{i}": TYPES[name] for i, name in enumerate(names)})
        wrong = [i for i, (kind, name) in enumerate(zip(kinds, names, strict=True)) if name not in READ_AS[kind]]
        if not wrong:
            assert np.isfinite(encoding.encode(new)).all()
            return
        message = refusal(lambda: encoding.encode(new))
        assert all(f"column 'c{i}'" in message for i in wrong)

    def test_codes_keep_their_zeros_and_versions_their_digits(self, tmp_path: Path) -> None:
        rows = [("01", "1.50", "True", 0.5), ("02", "2.00", "False", 10.5), ("A1", "x", "maybe", 20.5)] * 4
        (tmp_path / "t.csv").write_text("a,b,c,y\n" + "".join(f"{a},{b},{c},{y}\n" for a, b, c, y in rows))
        (tmp_path / "new.csv").write_text("a,b,c\n02,1.50,False\n01,2.00,True\n")
        encoding = TableEncoding.learn(read_table(tmp_path / "t.csv").frame, "y")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            X = encoding.encode(read_table(tmp_path / "new.csv", encoding.reading(Reading())).frame)
        names = [name for row in X for name, value in zip(encoding.feature_names, row, strict=True) if value]
        assert names == ["a=02", "b=1.50", "c=False", "a=01", "b=2.00", "c=True"]

    def test_dates_in_a_later_table_are_no_numbers(self, tmp_path: Path) -> None:
        encoding = TableEncoding.learn(frame_of(a=[1, 2, 3, 5]), "y")
        (tmp_path / "new.csv").write_text("a\n2020-01-01\n2020-01-02\n")
        frame = read_table(tmp_path / "new.csv", encoding.reading(Reading())).frame
        message = "column 'a', row 1: '2020-01-01' is not a number, as it was in training"
        assert refusal(lambda: encoding.encode(frame)) == message
        frame = pl.DataFrame({"a": [date(2020, 1, 1)]})
        assert refusal(lambda: encoding.encode(frame)) == (
            "column 'a', row 1: 2020-01-01 is not what training saw in it (numbers); the column holds dates"
        )

    def test_labels_that_look_like_numbers_stay_text(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("x,y\n1,01\n2,02\n3,A\n4,01\n5,02\n6,A\n")
        (tmp_path / "new.csv").write_text("x,truth\n1,02\n2,01\n")
        encoding = TableEncoding.learn(read_table(tmp_path / "t.csv").frame, "y")
        new = read_table(tmp_path / "new.csv", encoding.reading(Reading(), truth="truth")).frame
        assert encoding.target.values(new.rename({"truth": "y"})).tolist() == ["02", "01"]

    def test_files_of_version_0_1(self) -> None:
        record = {
            "target": {"name": "y", "task": "classification", "labels": [0, 1], "reason": ""},
            "columns": [
                {"name": "a", "kind": "number", "categories": [], "fill": 1.5},
                {"name": "b", "kind": "category", "categories": ["u", "v"], "fill": "u"},
            ],
            "left_out": [["c", "it is empty"]],
        }
        encoding = TableEncoding.from_dict(record)
        assert encoding.encode(pl.DataFrame({"a": [None, 2], "b": ["v", None]})).tolist() == [[1.5, 0, 1], [2, 1, 0]]

    @pytest.mark.parametrize(
        ("part", "field", "value"),
        [
            ("columns", "kind", "date"),
            ("columns", "name", 3),
            ("columns", "categories", [1]),
            ("columns", "fill", "x"),
            ("columns", "indicator", 1),
            ("target", "task", "guess"),
            ("target", "labels", [0, "a"]),
            ("target", "labels", []),
            ("target", "labels", [0.5]),
            ("target", "name", None),
        ],
    )
    def test_other_records_are_refused(self, part: str, field: str, value: object) -> None:
        record = TableEncoding.learn(mixed(), "flag").to_dict()
        entry = record["target"] if part == "target" else record["columns"][0]
        entry[field] = value
        with pytest.raises(ValueError, match="the encoding"):
            TableEncoding.from_dict(record)


class TestIndicator:
    frame = frame_of(pool=["Gd", None, "Ex", None], size=[1.0, None, 3.0, 5.0], whole=[1, 2, 3, 4])

    def test_a_gap_is_a_category_or_a_column(self) -> None:
        encoding = TableEncoding.learn(self.frame, "y", indicate=True)
        names = ("pool=Ex", "pool=Gd", "pool is missing", "size", "size is missing", "whole")
        assert encoding.feature_names == names
        expected = [[0, 1, 0, 1, 0, 1], [0, 0, 1, 3, 1, 2], [1, 0, 0, 3, 0, 3], [0, 0, 1, 5, 0, 4]]
        assert encoding.encode(self.frame).tolist() == expected
        assert TableEncoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding

    def test_one_category_with_gaps_is_a_feature(self) -> None:
        encoding = TableEncoding.learn(frame_of(pool=["Gd", None, "Gd", None]), "y", indicate=True)
        assert encoding.encode(pl.DataFrame({"pool": [None, "Gd"]})).tolist() == [[0, 1], [1, 0]]


class TestSurvey:
    def test_everything_that_is_wrong_is_said_at_once(self) -> None:
        frame = pl.DataFrame(
            {
                "when": [date(2020, 1, 1)] * 4,
                "tags": [[1]] * 4,
                "size": [1.0, float("inf"), 2.0, 3.0],
                "gap": [1, None, 2, 3],
                "y": [1.0, None, 2.0, 3.0],
            }
        )
        message = refusal(lambda: TableEncoding.learn(frame, "y", drop=["nothing"]))
        for part in (
            "there is no column 'nothing' to drop",
            "the target 'y' is missing in 1 row",
            "--drop tags",
            "column 'size' has 1 infinite value",
            "column 'gap' has 1 missing value (first in row 2); use --impute",
        ):
            assert part in message

    def test_columns_that_number_the_rows(self) -> None:
        n = 30
        y = np.arange(n) / 7
        frame = pl.DataFrame({"Unnamed: 0": range(n), "id": np.arange(n) * 3, "n": [1, 2] * 15, "y": y})
        found = survey(frame, "y")
        assert found.left_out == (("Unnamed: 0", "it numbers the rows"),)
        assert found.numberings == ("id",)
        frame = pl.DataFrame({"Unnamed: 0": np.arange(n)[::-1], "id": np.arange(n) ** 2 % 31, "y": y})
        found = survey(frame, "y")
        assert (found.left_out, found.numberings) == ((), ("Unnamed: 0",))


class TestMissing:
    frame = frame_of(
        size=[1.0, None, float("nan"), 5.0],
        town=["a", "  ", "a", "b"],
        flag=[True, None, True, False],
        whole=[1, 2, 3, 4],
    )

    def test_refused_with_column_count_row_and_remedy(self) -> None:
        assert refusal(lambda: TableEncoding.learn(self.frame, "y")) == (
            "column 'size' has 2 missing values (first in row 2); column 'town' has 1 missing value (first in row 2); "
            "column 'flag' has 1 missing value (first in row 2); use --impute to fill them in, --missing-indicator to "
            "learn from them too, or leave the columns out with --drop"
        )

    def test_imputed(self) -> None:
        encoding = TableEncoding.learn(self.frame, "y", impute=True)
        assert [column.fill for column in encoding.columns] == [3.0, "a", 1.0, 2.5]
        expected = [[1, 1, 0, 1, 1], [3, 1, 0, 1, 2], [3, 1, 0, 1, 3], [5, 0, 1, 0, 4]]
        assert np.array_equal(encoding.encode(self.frame), expected)

    def test_gaps_that_first_show_up_later(self) -> None:
        full = frame_of(size=[1.0, 2.0, 3.0, 6.0])
        new = pl.DataFrame({"size": [None, 1.0]})
        assert refusal(lambda: TableEncoding.learn(full, "y").encode(new)) == (
            "column 'size' has 1 missing value (first in row 1); fill them in, or train with --impute to have the "
            "model do it"
        )
        assert TableEncoding.learn(full, "y", impute=True).encode(new).tolist() == [[2.5], [1.0]]

    def test_many_columns_are_not_all_listed(self) -> None:
        frame = frame_of(**{f"c{index}": [1.0, 2.0, None, 4.0] for index in range(8)})
        assert "so do 3 more columns; use --impute" in refusal(lambda: TableEncoding.learn(frame, "y"))


class TestRefused:
    def test_infinite(self) -> None:
        frame = frame_of(size=[1.0, float("inf"), 2.0, float("-inf")])
        message = "column 'size' has 2 infinite values (first in row 2); correct or remove those rows"
        assert refusal(lambda: TableEncoding.learn(frame, "y", impute=True)) == message

    def test_too_large(self) -> None:
        frame = frame_of(size=[1.0, 2.0, -3e200, 2e200])
        message = "column 'size', row 3: -3e+200 is too large to compute with; rescale the column"
        assert refusal(lambda: TableEncoding.learn(frame, "y")) == message

    def test_a_category_per_row(self) -> None:
        frame = pl.DataFrame({"name": [f"n{index:02}" for index in range(30)], "y": np.arange(30) / 7})
        assert refusal(lambda: TableEncoding.learn(frame, "y")) == (
            "column 'name' has 30 different texts in 30 rows (such as 'n00', 'n01'), too many to be "
            "categories; leave it out with --drop name"
        )

    def test_too_many_categories(self) -> None:
        frame = pl.DataFrame({"zip": [f"z{index % 1001}" for index in range(5000)], "y": np.arange(5000) / 7})
        assert refusal(lambda: TableEncoding.learn(frame, "y")).startswith(
            "column 'zip' has 1,001 different texts in 5,000 rows"
        )

    def test_numbers_with_a_mistake(self) -> None:
        values = [str(index) for index in range(30)]
        values[7] = "seven"
        frame = pl.DataFrame({"size": values, "y": np.arange(30) / 7})
        assert refusal(lambda: TableEncoding.learn(frame, "y")) == (
            "column 'size' holds numbers except for 1 value (first 'seven' in row 8); correct them, or say that they "
            "are missing with --na-value seven"
        )

    def test_nested(self) -> None:
        frame = frame_of(tags=[[1], [2, 3], [], [4]])
        message = (
            "column 'tags' holds List(Int64) values, which are not one number or text; leave it out (in the shell: "
            "--drop tags)"
        )
        assert refusal(lambda: TableEncoding.learn(frame, "y")) == message

    def test_drop(self) -> None:
        learn = TableEncoding.learn
        assert refusal(lambda: learn(mixed(), "y", drop=["sise"])) == (
            "there is no column 'sise' to drop; the columns are 'size', 'flag', 'town', 'fixed', 'void', 'y'"
        )
        assert refusal(lambda: learn(mixed(), "y", drop=["y"])) == "the target 'y' cannot be dropped"

    def test_nothing_left(self) -> None:
        assert refusal(lambda: TableEncoding.learn(frame_of(a=[1, 1, 1, 1], b=[1, 2, 3, 4]), "y", drop=["b"])) == (
            "no feature column is left: 'b': dropped as asked; 'a': it is constant in the training rows"
        )
        assert refusal(lambda: TableEncoding.learn(pl.DataFrame([Y]), "y")) == (
            "no feature column is left: the table has only 'y'"
        )


TASKS = [
    ([0, 1, 0, 1, 1, 0], "classification", (0, 1)),
    ([0.0, 1.0, 0.0, 1.0], "classification", (0, 1)),
    ([-1, 1, -1, 1], "classification", (-1, 1)),
    (["b", "a", "a", "b"], "classification", ("a", "b")),
    ([True, False, True], "classification", (False, True)),
    ([1, 2, 3, 4, 5], "regression", ()),
    (list(range(30)) * 2, "regression", ()),
    (list(range(20)) * 2, "classification", tuple(range(20))),
    ([0.5, 0.5, 1.5, 1.5], "regression", ()),
]


REFUSED = [
    (
        [1.0, None, float("nan")],
        None,
        "the target 'y' is missing in 2 rows (first in row 2); targets are never filled in, remove those rows",
    ),
    ([1.0, float("inf"), 2.0], None, "the target 'y' is infinite in row 2"),
    ([3.5, 3.5, 3.5], None, "the target 'y' has only one value (3.5); there is nothing to learn"),
    (["a", "a"], None, "the target 'y' has only one class ('a'); there is nothing to learn"),
    (["a", "b"], "regression", "the target 'y' holds text ('a'), not numbers; use --task classification"),
    (
        [0.5, 1.0, 0.5],
        "classification",
        "the target 'y' has numbers that are not whole (0.5); they cannot be classes, use --task regression",
    ),
    (
        list("abcd"),
        None,
        "the target 'y' has 4 different classes in 4 rows; classes must repeat. Name another column with --target",
    ),
    (
        [1, 2, 3, 4],
        "classification",
        "the target 'y' has 4 different classes in 4 rows; classes must repeat. "
        "Name another column with --target, or use --task regression",
    ),
    (
        [date(2020, 1, 1), date(2020, 1, 2)],
        None,
        "the target 'y' holds Date values; it must be numbers, booleans or text",
    ),
    (
        [2.0**60, 1.0, 1.0, 2.0**60],
        "classification",
        "the target 'y' has whole numbers beyond 2^53, too large to be told apart; write them as text",
    ),
    ([0.5, -1e200], None, "the target 'y', row 2: -1e+200 is too large to compute with; rescale it"),
    ([1, 2], "guess", "task must be 'regression' or 'classification', got 'guess'"),
]


class TestTarget:
    @pytest.mark.parametrize(("values", "task", "labels"), TASKS)
    def test_task_is_detected(self, values: list, task: str, labels: tuple) -> None:
        frame = pl.DataFrame({"y": values})
        target = learn_target(frame, "y")
        assert (target.task, target.labels) == (task, labels)
        assert target.values(frame).tolist() == values

    def test_task_can_be_forced(self) -> None:
        frame = pl.DataFrame({"y": list(range(30)) * 2})
        assert learn_target(frame, "y", "classification").labels == tuple(range(30))
        frame = pl.DataFrame({"y": [0, 1, 0, 1]})
        assert learn_target(frame, "y", "regression").values(frame).dtype == np.float64

    @pytest.mark.parametrize(("values", "task", "message"), REFUSED)
    def test_refused(self, values: list, task: str | None, message: str) -> None:
        assert refusal(lambda: learn_target(pl.DataFrame({"y": values}), "y", task)) == message

    def test_labels_of_another_table(self) -> None:
        text = learn_target(pl.DataFrame({"y": ["1", "2", "A", "A", "1", "2"]}), "y")
        assert text.values(pl.DataFrame({"y": [1, 2]})).tolist() == ["1", "2"]
        assert text.values(pl.DataFrame({"y": [1.0, 2.0]})).tolist() == ["1", "2"]
        whole = learn_target(pl.DataFrame({"y": [1, 2, 1, 2]}), "y")
        assert whole.values(pl.DataFrame({"y": ["2", "1"]})).tolist() == [2, 1]
        assert refusal(lambda: whole.values(pl.DataFrame({"y": [1, 3]}))) == (
            "column 'y', row 2: label 3 is none of the model's classes (1, 2)"
        )
        for odd in (1e300, float("inf"), 1.5):
            assert "is none of the model's classes (1, 2)" in refusal(
                lambda odd=odd: whole.values(pl.DataFrame({"y": [odd]}))
            )
        assert "label 'x' is none of the model's classes" in refusal(lambda: text.values(pl.DataFrame({"y": ["x"]})))
        flags = learn_target(pl.DataFrame({"y": [True, False]}), "y")
        assert flags.values(pl.DataFrame({"y": [1, 0]})).tolist() == [True, False]
        assert flags.values(pl.DataFrame({"y": ["TRUE", "false"]})).tolist() == [True, False]
        assert "label 2 is none" in refusal(lambda: flags.values(pl.DataFrame({"y": [2]})))

    def test_text_for_a_quantity(self) -> None:
        target = learn_target(pl.DataFrame({"y": [1.5, 2.5]}), "y")
        assert (
            refusal(lambda: target.values(pl.DataFrame({"y": ["1", "x"]}))) == "column 'y', row 2: 'x' is not a number"
        )
        assert refusal(lambda: target.values(pl.DataFrame({"z": [1]}))) == (
            "the target column 'y' is not in the table; its columns are 'z'"
        )

    @given(st.lists(st.sampled_from(["a", "b", "é"]) | st.integers(-3, 3) | st.booleans(), min_size=4, max_size=40))
    def test_json_round_trip(self, values: list) -> None:
        column = pl.Series("y", values, strict=False)
        try:
            target = learn_target(pl.DataFrame([column]), "y")
        except TableError:
            return
        assert Target.from_dict(json.loads(json.dumps(target.to_dict()))) == target

    def test_choice(self) -> None:
        def table(*columns: str, **said: object) -> Table:
            return Table(pl.DataFrame({column: [1] for column in columns}), "t", **said)

        assert choose_target(table("a", "b"), None) == "b"
        assert choose_target(table("a", "b"), "a") == "a"
        assert choose_target(table("a", "Target", "b"), None) == "Target"
        assert choose_target(table("y", "label", "b"), None) == "b"
        assert choose_target(table("a", "b", target="a", declares_target=True), None) == "a"
        assert (
            refusal(lambda: choose_target(table("a", "b"), "c"))
            == "there is no column 'c' in t; its columns are 'a', 'b'"
        )
        assert refusal(lambda: choose_target(table("a", declares_target=True), None)) == (
            "t holds no y; it can be predicted, but not trained on or evaluated"
        )


def test_sparse_files_with_fewer_columns_than_in_training(tmp_path: Path) -> None:
    (tmp_path / "train.svm").write_text("1 1:2 3:4.5\n-1 2:1\n1 1:1\n-1 3:1\n")
    (tmp_path / "new.svm").write_text("1 1:2.5\n-1 2:1 9:3\n")
    table, new = read_table(tmp_path / "train.svm"), read_table(tmp_path / "new.svm")
    encoding = TableEncoding.learn(table.frame, choose_target(table, None))
    assert encoding.target.labels == (-1, 1)
    assert encoding.encode(new.frame, absent_is_zero=new.absent_is_zero).tolist() == [[2.5, 0, 0], [0, 1, 0]]


def test_a_good_table_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TableEncoding.learn(mixed(), "y").encode(mixed())
