"""Data frames with text, categories, dates and gaps in the estimators."""

import warnings
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import widefit
from widefit import WideClassifier, WideRegressor
from widefit.files import FileError

SMALL = (512,)
TRAINING = slice(0, 220)
TEST = slice(220, 300)


def columns(samples: int = 300) -> tuple[dict[str, list], np.ndarray]:
    """Columns of every kind as Python values, and what follows from them."""
    generator = np.random.default_rng(0)
    size = generator.standard_normal(samples)
    town = generator.choice(["here", "there", "away"], samples).tolist()
    code = generator.integers(0, 50, samples)
    day = generator.integers(0, 900, samples)
    hours = generator.integers(0, 50, samples)
    old = generator.random(samples) < 0.5
    y = size + 2 * (np.array(town) == "here") + np.sin(code) + np.sin(day / 58) + hours / 25 + old
    found = {
        "size": [None if i % 7 == 0 else float(value) for i, value in enumerate(size)],
        "town": [None if i % 11 == 0 else name for i, name in enumerate(town)],
        "code": [f"c{place}" for place in code],
        "day": [None if i % 13 == 0 else datetime(2020, 1, 1) + timedelta(days=int(d)) for i, d in enumerate(day)],
        "hours": [timedelta(hours=int(h)) for h in hours],
        "old": old.tolist(),
    }
    return found, y


def pandas_frame() -> pd.DataFrame:
    return pd.DataFrame(columns()[0]).astype({"town": "category"})


def polars_frame() -> pl.DataFrame:
    return pl.DataFrame(columns()[0]).with_columns(pl.col("town").cast(pl.Categorical))


@pytest.mark.parametrize("make", [pandas_frame, polars_frame])
def test_columns_of_every_kind(make, tmp_path):
    frame, y = make(), columns()[1]
    training = frame[TRAINING]
    test = frame[TEST]
    model = WideRegressor((2048,)).fit(training, y[TRAINING])
    predicted = model.predict(test)
    error = np.sqrt(np.mean((predicted - y[TEST]) ** 2)) / y[TEST].std()
    assert error < 0.75
    assert list(model.feature_names_in_) == list(frame.columns)
    assert model.n_features_in_ == model.feature_importances_.size == 6
    assert model.feature_importances_.sum() == pytest.approx(1)
    backwards = test[list(frame.columns)[::-1]]
    np.testing.assert_array_equal(model.predict(backwards), predicted)
    widefit.save(model, tmp_path / "model.widefit")
    again = widefit.load(tmp_path / "model.widefit")
    np.testing.assert_array_equal(again.predict(backwards), predicted)
    np.testing.assert_array_equal(again.predict_interval(test)[0], model.predict_interval(test)[0])
    with pytest.raises(ValueError, match="now missing:\n- day"):
        model.predict(test[["size", "town", "code", "hours", "old"]])
    renamed = test.rename(columns={"old": "new"}) if hasattr(test, "iloc") else test.rename({"old": "new"})
    with pytest.raises(ValueError, match="unseen at fit time:\n- new"):
        model.predict(renamed)


def test_both_kinds_of_frames_are_the_same_table():
    y = columns()[1]
    model = WideRegressor(SMALL).fit(pandas_frame()[TRAINING], y[TRAINING])
    other = WideRegressor(SMALL).fit(polars_frame()[TRAINING], y[TRAINING])
    np.testing.assert_array_equal(model.predict(pandas_frame()), other.predict(polars_frame()))
    np.testing.assert_array_equal(model.predict(pandas_frame()), model.predict(polars_frame()))


def test_gaps_are_information_and_may_come_later():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((200, 3))
    X[generator.random(200) < 0.3, 1] = np.nan
    y = X[:, 0] + 2.0 * np.isnan(X[:, 1])
    model = WideRegressor(SMALL).fit(X[:150], y[:150])
    assert model.score(X[150:], y[150:]) > 0.95
    gap = X[:5].copy()
    gap[2, 0] = np.nan
    assert np.isfinite(model.predict(gap)).all()
    plain = WideRegressor(SMALL).fit(X[:, :1], y)
    with pytest.raises(ValueError, match="NaN"):
        plain.predict([[np.nan]])
    with pytest.raises(ValueError, match="infinite value"):
        model.predict(np.where(np.isnan(gap), np.inf, gap))


def test_categories_of_arrays():
    generator = np.random.default_rng(0)
    X = np.column_stack([generator.integers(0, 6, 300), generator.standard_normal(300)])
    y = np.array([0.0, 5.0, 1.0, 4.0, 2.0, 3.0])[X[:, 0].astype(int)] + 0.1 * X[:, 1]
    for wanted in ([0], [-2], [True, False], np.array([0])):
        model = WideRegressor(SMALL, categorical_features=wanted).fit(X[:200], y[:200])
        assert model._encoding.feature_names[:2] == ("x0=0", "x0=1")
        assert model.score(X[200:], y[200:]) > 0.97
    frame = pd.DataFrame(X, columns=["level", "z"])
    named = WideRegressor(SMALL, categorical_features=["level"]).fit(frame[:200], y[:200])
    np.testing.assert_array_equal(named.predict(frame), model.predict(X))
    for wanted in ("all", ["colour"], [2], [True], [0.5], [[0]]):
        with pytest.raises(ValueError, match="categorical_features must be"):
            WideRegressor(SMALL, categorical_features=wanted).fit(frame, y)


def test_columns_of_arrays_keep_their_places_whatever_the_names():
    generator = np.random.default_rng(0)
    X = np.column_stack([generator.integers(0, 3, 200), generator.standard_normal(200)])
    frame = pd.DataFrame({"x1": X[:, 0].astype(int).astype(str), "x0": X[:, 1]})
    y = X[:, 0] + X[:, 1]
    model = WideRegressor(SMALL).fit(frame, y)
    np.testing.assert_array_equal(model.predict(frame.to_numpy(dtype=object)), model.predict(frame))
    np.testing.assert_array_equal(model.predict(frame[["x0", "x1"]]), model.predict(frame))


def test_effects_of_categories_are_those_on_the_targets_that_are_fitted():
    generator = np.random.default_rng(0)
    X = generator.uniform(-1, 1, (400, 5))
    place = generator.integers(0, 33, 400)
    frame = pd.DataFrame(X, columns=list("abcde")).assign(place=[f"p{value}" for value in place])
    y = np.exp(np.sin(2 * X).sum(axis=1) + 0.15 * generator.standard_normal(400))
    model = WideRegressor(SMALL, target_transform="log").fit(frame, y)
    chosen = WideRegressor(SMALL).fit(frame, y)
    assert chosen.smearing_ is not None
    effects = [fitted._encoding.columns[-1].effects for fitted in (chosen, model)]
    np.testing.assert_allclose(*effects, rtol=1e-9, atol=1e-12)


def test_sparse_matrices_have_no_categories():
    X = sparse.csr_matrix(np.arange(40.0).reshape(20, 2) % 4)
    with pytest.raises(ValueError, match="categorical_features takes a dense X"):
        WideRegressor(SMALL, categorical_features=[0]).fit(X, np.arange(20.0))
    assert WideRegressor(SMALL, categorical_features=[]).fit(X, np.arange(20.0))._encoding is None


def test_long_numbers_are_names_of_their_own():
    long = [2**60 + place % 3 for place in range(60)]
    for column in (pd.array([*long[:-1], None], dtype="Int64"), long, pd.Series([*long[:-1], None], dtype=object)):
        frame = pd.DataFrame({"code": column, "z": np.arange(60.0)})
        model = WideRegressor(SMALL, categorical_features=["code"]).fit(frame, np.arange(60.0) % 3)
        assert len(model._encoding.columns[0].categories) == 3
    huge = pd.DataFrame({"a": pd.Series([10**25 + place for place in range(40)], dtype=object), "b": ["u", "v"] * 20})
    assert np.isfinite(WideRegressor(SMALL).fit(huge, np.arange(40.0)).predict(huge)).all()


def test_gaps_of_pandas_in_arrays_of_objects():
    X = np.array([[1.0, pd.NA], [2.0, 3.0]] * 10, dtype=object)
    assert np.isfinite(WideRegressor(SMALL).fit(X, np.arange(20.0) % 2).predict(X)).all()
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        WideRegressor(SMALL).fit(pd.DataFrame(index=range(20)), np.arange(20.0))


def test_text_beside_numbers_and_unseen_categories():
    rows = [["a", 1.0], ["b", 2.0], ["a", 3.0], ["b", None]] * 10
    labels = [0, 1, 0, 1] * 10
    for table in (rows, np.array(rows, dtype=object)):
        model = WideClassifier(SMALL).fit(table, labels)
        assert model.score(table, labels) == 1
        with pytest.warns(UserWarning, match="column 'x0' has 1 value that training did not see"):
            assert model.predict([["c", 2.0]]).shape == (1,)
    text = np.array([["a", "1"], ["b", "2.5"]] * 10)
    assert WideClassifier(SMALL).fit(text, labels[:20])._encoding.feature_names == ("x0=a", "x0=b", "x1")
    numbers = text[:, 1:]
    assert WideClassifier(SMALL).fit(numbers, labels[:20])._encoding is None


def test_what_cannot_be_used_is_refused():
    y = [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="column 'a' holds text, and categorical_features does not name it"):
        WideRegressor(SMALL, categorical_features=None).fit(pd.DataFrame({"a": list("xyz")}), y)
    with pytest.raises(ValueError, match=r"column 'a' holds (List|objects)"):
        WideRegressor(SMALL).fit(pd.DataFrame({"a": [[1], [2], [3]]}), y)
    with pytest.raises(ValueError, match=r"unique column names|names of their own"):
        WideRegressor(SMALL).fit(pd.DataFrame([[1, 2]] * 3, columns=["a", "a"]), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        WideRegressor(SMALL).fit(pd.DataFrame({"a": ["x", "y"]}), y)
    frame = pd.DataFrame({"a": ["x", "y", "x"], "b": [1.0, np.nan, 3.0]})
    with pytest.raises(ValueError, match="column 'b', row 1: 'much' is not a number"):
        WideRegressor(SMALL).fit(frame, y).predict(frame.assign(b="much"))
    with pytest.raises(ValueError, match="y contains NaN"):
        WideRegressor(SMALL).fit(frame, [0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match=r"X must have shape \(n, d\), got \(2,\)"):
        WideRegressor(SMALL).fit(frame, y).predict(np.array(["x", 1.0], dtype=object))
    with pytest.raises(ValueError, match="0 rows"):
        WideRegressor(SMALL).fit(frame, y).predict(frame[:0])
    with pytest.raises(NotFittedError):
        WideRegressor(SMALL).predict(frame)


def test_many_categories_do_not_leak():
    found, without = 0.0, 0.0
    for seed in range(3):
        generator = np.random.default_rng(seed)
        names = [f"n{place}" for place in range(200)]
        frame = pd.DataFrame({"name": names, "z": generator.standard_normal(200)})
        y = frame.z.to_numpy() + generator.standard_normal(200)
        model = WideRegressor(SMALL).fit(frame[:150], y[:150])
        other = WideRegressor(SMALL).fit(frame[["z"]][:150], y[:150])
        found += np.mean((model.predict(frame[150:]) - y[150:]) ** 2)
        without += np.mean((other.predict(frame[["z"]][150:]) - y[150:]) ** 2)
    assert found < 1.15 * without
    labels = generator.choice(["u", "v", "w"], 150)
    assert WideClassifier(SMALL).fit(frame[:150], labels)._encoding.feature_names[:3] == (
        "name by its mean target 0",
        "name by its mean target 1",
        "name by its mean target 2",
    )


def test_in_pipelines_streams_and_later_fits():
    frame, y = pandas_frame(), columns()[1]
    pipeline = make_pipeline(FunctionTransformer(), WideRegressor(SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cross_val_score(pipeline, frame, y, cv=2).min() > 0
    stream = WideRegressor(SMALL, rule="sgd")
    for first in range(0, 300, 100):
        stream.partial_fit(frame[first : first + 100], y[first : first + 100])
    assert np.isfinite(stream.predict(frame)).all()
    model = WideRegressor(SMALL, warm_start=True).fit(frame, y)
    encoding = model._encoding
    assert model.fit(frame, y).score(frame, y) > 0.8
    assert model._encoding is encoding
    model.set_params(warm_start=False).fit(frame[["old"]].to_numpy(dtype=float), y)
    assert model._encoding is None


def test_pandas_types_of_their_own():
    frame = pd.DataFrame(
        {
            "count": pd.array([1, None, 3, 4] * 10, dtype="Int64"),
            "yes": pd.array([True, None, False, True] * 10, dtype="boolean"),
            "word": pd.array(["u", None, "v", "u"] * 10, dtype="string"),
            "level": pd.Categorical([1, 2, None, 1] * 10),
            "month": pd.PeriodIndex(["2020-01", "2020-02", "2020-03", "2021-04"] * 10, freq="M"),
            "when": pd.to_datetime(["2020-01-01", "2020-01-02", None, "2020-01-04"] * 10).tz_localize("CET"),
            "mixed": [1, "one", None, 2.5] * 10,
        }
    )
    model = WideRegressor(SMALL).fit(frame, np.arange(40.0) % 4)
    kinds = {column.name: column.kind for column in model._encoding.columns}
    assert list(kinds.values()) == ["number", "boolean", "category", "category", "moment", "moment", "category"]
    assert model.score(frame, np.arange(40.0) % 4) > 0.95
    unnamed = pd.DataFrame({0: [1.0, 2.0, 3.0], 1: ["a", "b", "a"]})
    model = WideRegressor(SMALL).fit(unnamed, [1.0, 2.0, 3.0])
    assert not hasattr(model, "feature_names_in_")
    assert model.predict(unnamed).shape == (3,)


def test_altered_files_are_refused(tmp_path):
    frame, y = pandas_frame(), columns()[1]
    tensors, document = WideRegressor(SMALL, max_iter=1).fit(frame, y).to_parts()
    for bad in ({"columns": []}, {"columns": document["encoding"]["columns"][::-1]}, {"rows": 3}):
        with pytest.raises(FileError):
            WideRegressor.from_parts(tensors, document | {"encoding": bad})
