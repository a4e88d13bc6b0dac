"""Dates and effects of categories: what they become, against the same written plainly."""

import json
import math
from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from widefit.data.effects import FOLDS, Outcomes, effects, out_of_fold
from widefit.data.encoding import TableEncoding
from widefit.data.features import Feature, FeatureEncoding
from widefit.data.readers import read_table
from widefit.data.reading import Reading
from widefit.data.survey import survey
from widefit.data.words import TableError
from widefit.records import FileError


def learn(values: pl.Series) -> FeatureEncoding:
    frame = pl.DataFrame([values.alias("a"), pl.Series("y", np.arange(len(values)) / 3)])
    return TableEncoding.learn(frame, "y", impute=True)


class TestMoments:
    def test_parts_that_vary(self) -> None:
        days = [date(2020, 1, 6) + timedelta(days=7 * week) for week in range(70)]
        assert learn(pl.Series(days)).feature_names == (
            "a in days",
            "a: sine of the year",
            "a: cosine of the year",
        )
        assert len(learn(pl.Series(days[:10])).feature_names) == 1
        hours = [datetime(2020, 1, 6, hour) for hour in range(10)]
        assert learn(pl.Series(hours)).feature_names == ("a in days", "a: sine of the day", "a: cosine of the day")

    def test_numbers_of_a_moment(self) -> None:
        moments = [datetime(2021, 3, 1), datetime(2021, 3, 2, 6), datetime(2021, 3, 4, 12)]
        found = learn(pl.Series(moments)).encode(pl.DataFrame({"a": moments}))
        # The first is a Monday at midnight.
        days = (date(2021, 3, 1) - date(1970, 1, 1)).days + np.array([0, 1.25, 3.5])
        week = 2 * math.pi / 7 * np.array([0, 1.25, 3.5])
        day = 2 * math.pi * np.array([0, 0.25, 0.5])
        expected = np.stack([days, np.sin(week), np.cos(week), np.sin(day), np.cos(day)], axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_times_durations_and_zones(self) -> None:
        times = pl.Series([time(0), time(12), None])
        encoding = learn(times)
        assert encoding.columns[0].kind == "time"
        np.testing.assert_allclose(encoding.encode(pl.DataFrame({"a": times}))[:, 0], [0, 0.5, 0.25])
        durations = pl.Series([timedelta(days=2), timedelta(hours=-12)])
        assert learn(durations).encode(pl.DataFrame({"a": durations})).ravel().tolist() == [2.0, -0.5]
        plain = pl.Series([datetime(2021, 3, 1, 12), datetime(2021, 9, 2, 6)])
        zoned = plain.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
        encoding = learn(plain)
        np.testing.assert_array_equal(
            encoding.encode(pl.DataFrame({"a": zoned})), encoding.encode(pl.DataFrame({"a": plain}))
        )
        assert FeatureEncoding.from_dict(json.loads(json.dumps({"columns": encoding.to_dict()["columns"]})))


class TestEffects:
    def test_against_means_written_plainly(self) -> None:
        generator = np.random.default_rng(0)
        codes = generator.integers(-1, 7, 400)
        truth = generator.standard_normal((8, 2))
        outcomes = Outcomes(truth[codes] + generator.standard_normal((400, 2)), np.ones(400))
        found = effects(codes, outcomes, 7)
        overall = outcomes.values.mean(0)
        np.testing.assert_allclose(found[7], overall)
        groups = [outcomes.values[codes == code] for code in range(7)]
        sizes = np.array([len(group) for group in groups])
        for output in range(2):
            means = np.array([group[:, output].mean() for group in groups])
            within = sum(((group[:, output] - mean) ** 2).sum() for group, mean in zip(groups, means, strict=True))
            within /= sizes.sum() - 7
            between = sizes @ (means - sizes @ means / sizes.sum()) ** 2 - 6 * within
            between /= sizes.sum() - sizes @ sizes / sizes.sum()
            prior = max(within / between, 1)
            expected = (sizes * means + prior * overall[output]) / (sizes + prior)
            np.testing.assert_allclose(found[:7, output], expected)

    def test_a_category_without_effect_is_drawn_to_the_mean(self) -> None:
        generator = np.random.default_rng(0)
        codes = np.arange(600) % 60
        noise = Outcomes(generator.standard_normal((600, 1)), np.ones(600))
        assert effects(codes, noise, 60)[:60].std() < 0.15
        signal = Outcomes(noise.values * 0.1 + (codes % 5)[:, None], np.ones(600))
        assert np.abs(effects(codes, signal, 60)[:60, 0] - np.arange(60) % 5).max() < 0.3

    def test_no_row_sees_its_own_target(self) -> None:
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 40, 200)
        values = generator.standard_normal((200, 1))
        found = out_of_fold(codes, Outcomes(values, np.ones(200)), 40)
        for row in range(0, 200, 17):
            changed = values.copy()
            changed[row] = 1e6
            assert out_of_fold(codes, Outcomes(changed, np.ones(200)), 40)[row] == found[row]
        # Categories that tell nothing seem to tell nothing.
        assert abs(np.corrcoef(found[:, 0], values[:, 0])[0, 1]) < 0.25

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_degenerate_columns(self, scale: float) -> None:
        ones = np.ones(20)
        every_row_its_own = effects(np.arange(20), Outcomes(scale * np.arange(20.0)[:, None], ones), 20)
        assert np.isfinite(every_row_its_own).all()
        assert np.isfinite(out_of_fold(np.arange(20), Outcomes(scale * np.arange(20.0)[:, None], ones), 20)).all()
        nothing = effects(np.full(5, -1), Outcomes(scale * np.ones((5, 1)), ones[:5]), 3)
        np.testing.assert_allclose(nothing, scale)
        constant = effects(np.zeros(5, int), Outcomes(scale * np.ones((5, 1)), ones[:5]), 1)
        np.testing.assert_allclose(constant, scale)
        assert np.isfinite(effects(np.arange(5), Outcomes(ones[:5, None], np.zeros(5)), 5)).all()

    def test_the_unit_of_weights_has_no_influence(self) -> None:
        generator = np.random.default_rng(0)
        codes = generator.integers(0, 10, 100)
        values = generator.standard_normal((100, 1)) + codes[:, None] % 3
        weight = generator.random(100)
        expected = effects(codes, Outcomes(values, weight), 10)
        np.testing.assert_allclose(effects(codes, Outcomes(values, 1e6 * weight), 10), expected)

    def test_of_a_table(self) -> None:
        codes = np.random.default_rng(0).integers(0, 50, 400)
        town = pl.Series([f"t{code}" for code in codes])
        frame = pl.DataFrame({"town": town, "y": (codes % 3).astype(float) + 0.5})
        found = survey(frame, "y", many_allowed=True)
        y = found.target.values(frame)
        rows = np.arange(300)
        outcomes = found.target.outcomes(y[rows])
        encoding = TableEncoding.of(found, rows=rows, outcomes=outcomes)
        assert encoding.feature_names == ("town by its mean target",)
        X = encoding.encode_survey(found, rows, outcomes)
        np.testing.assert_array_equal(X[300:], encoding.encode(frame)[300:])
        assert (X[:300] != encoding.encode(frame)[:300]).any()
        assert np.corrcoef(X[300:, 0], y[300:])[0, 1] > 0.95
        assert encoding.encode(pl.DataFrame({"town": ["elsewhere"]}))[0, 0] == pytest.approx(y[rows].mean())
        assert TableEncoding.from_dict(json.loads(json.dumps(encoding.to_dict()))) == encoding
        classes = survey(frame.with_columns(y=pl.Series([f"c{code % 3}" for code in codes])), "y").target
        assert classes.outcomes(np.array(["c0", "c2"])).values.tolist() == [[1, 0, 0], [0, 0, 1]]

    def test_folds(self) -> None:
        codes = np.zeros(FOLDS, int)
        found = out_of_fold(codes, Outcomes(np.arange(float(FOLDS))[:, None], np.ones(FOLDS)), 1)
        np.testing.assert_allclose(found[:, 0], (np.arange(FOLDS).sum() - np.arange(FOLDS)) / (FOLDS - 1))


def test_dates_of_a_text_are_read_in_later_texts_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("when,y\n" + "".join(f"2020-01-{day:02},{day / 7}\n" for day in range(1, 31)))
    encoding = TableEncoding.learn(read_table(tmp_path / "t.csv").frame, "y")
    assert encoding.columns[0].kind == "moment"
    (tmp_path / "new.csv").write_text("when\n2020-01-03\n\n2020-02-01\n")
    frame = read_table(tmp_path / "new.csv", encoding.reading(Reading())).frame
    assert encoding.encode(frame)[:, 0].tolist() == [18264.0, 18293.0]
    (tmp_path / "bad.csv").write_text("when\nsoon\n")
    frame = read_table(tmp_path / "bad.csv", encoding.reading(Reading())).frame
    with pytest.raises(TableError, match=r"column 'when', row 1: 'soon' is not what training saw in it \(dates\)"):
        encoding.encode(frame)


BAD = [
    {"kind": "moment"},
    {"parts": ["days"]},
    {"kind": "time", "parts": ["day", "day"]},
    {"kind": "time", "parts": ["month"]},
    {"kind": "category", "categories": ["a", "b"], "effects": [[1.0], [2.0]]},
    {"kind": "category", "categories": ["a"], "effects": [[1.0], [2.0, 3.0]]},
    {"kind": "category", "categories": ["a"], "effects": [[], []]},
    {"kind": "category", "categories": ["a"], "effects": [[1.0], [math.inf]]},
    {"kind": "category", "categories": ["a", "a"]},
    {"categories": ["a"]},
    {"fill": math.nan},
]


@pytest.mark.parametrize("bad", BAD)
def test_files_are_checked(bad: dict) -> None:
    good = {"name": "a", "kind": "number", "categories": [], "fill": 0.0}
    FeatureEncoding.from_dict({"columns": [good]})
    with pytest.raises(FileError, match="the encoding"):
        FeatureEncoding.from_dict({"columns": [good | {"fill": None} | bad]})
    with pytest.raises(FileError, match="several columns of one name"):
        FeatureEncoding.from_dict({"columns": [good, good]})


def test_a_feature_of_gaps_alone() -> None:
    gaps = pl.Series([True] * 3)
    for kind, values in (("number", np.full(3, np.nan)), ("moment", np.full(3, np.nan))):
        column = Feature("a", kind, values, gaps).learn(impute=True, indicate=True)
        assert FeatureEncoding((column,)).encode(pl.DataFrame({"a": [None, None]})).tolist() == [[0, 1]] * 2
