"""Data frames and models that travel between the shell and Python: columns are found by their names."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from command_line import call

import widefit


@pytest.fixture
def houses() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "area": generator.uniform(40, 200, 120),
            "rooms": generator.integers(1, 7, 120),
            "town": generator.choice(["Ulm", "Bonn", "Jena"], 120),
            "garden": generator.random(120) < 0.5,
        }
    )
    frame["price"] = (
        2000 * frame["area"] + 1e4 * frame["rooms"] + 3e4 * (frame["town"] == "Ulm") + 2e4 * frame["garden"]
    )
    return frame


@pytest.fixture
def of_the_shell(houses: pd.DataFrame, tmp_path: Path) -> Path:
    houses.to_csv(tmp_path / "houses.csv", index=False)
    ran = call("train", "houses.csv", "--target", "price", "--width", "256", "--no-report", folder=tmp_path)
    assert ran.code == 0, ran.stderr
    return tmp_path / "houses.widefit"


def test_a_model_of_the_shell_takes_data_frames(of_the_shell: Path, houses: pd.DataFrame) -> None:
    model = widefit.load(of_the_shell)
    folder = of_the_shell.parent
    assert call("predict", "houses.widefit", "houses.csv", "-o", "out.csv", folder=folder).code == 0
    expected = pl.read_csv(folder / "out.csv")["prediction"].to_numpy()
    np.testing.assert_allclose(model.predict(houses), expected, rtol=1e-12)
    turned = houses[["garden", "price", "town", "rooms", "area"]]
    np.testing.assert_allclose(model.predict(turned), expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict(pl.read_csv(folder / "houses.csv")), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="1 column of the training table is not in this one: 'town'"):
        model.predict(houses.drop(columns="town"))
    low, high = model.predict_interval(turned)
    assert np.all(low < high)


def test_it_is_saved_with_its_columns_and_forgets_them_in_another_fit(of_the_shell: Path, houses, tmp_path) -> None:
    model = widefit.load(of_the_shell)
    assert "predicts 'price' from the columns 'area', 'rooms', 'town', 'garden'" in str(model)
    widefit.save(model, tmp_path / "again.widefit")
    np.testing.assert_array_equal(widefit.load(tmp_path / "again.widefit").predict(houses), model.predict(houses))
    model.fit(houses[["area", "rooms"]], houses["price"])
    assert model.encoding_ is None
    assert model.predict(houses[["area", "rooms"]]).shape == (120,)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_model_fitted_to_a_data_frame_predicts_in_the_shell(library: str, houses, tmp_path: Path) -> None:
    features = houses[["rooms", "area"]]
    rows = features if library == "pandas" else pl.DataFrame(dict(features.items()))
    model = widefit.WideClassifier((256,)).fit(rows, np.where(houses["price"] > 2.5e5, "dear", "cheap"))
    widefit.save(model, tmp_path / "m.widefit")
    houses.assign(target=model.predict(rows)).to_csv(tmp_path / "houses.csv", index=False)
    ran = call("predict", "m.widefit", "houses.csv", "-o", "out.csv", folder=tmp_path)
    assert ran.code == 0, ran.stderr
    assert "warning" not in ran.stderr
    assert pl.read_csv(tmp_path / "out.csv")["prediction"].to_list() == model.predict(rows).tolist()
    scored = call("evaluate", "m.widefit", "houses.csv", folder=tmp_path)
    assert "1.0000" in scored.stdout


def test_a_model_fitted_to_an_array_says_what_it_lacks(houses, tmp_path: Path) -> None:
    widefit.save(
        widefit.WideRegressor((64,)).fit(houses[["area", "rooms"]].to_numpy(), houses["price"]), tmp_path / "m"
    )
    houses.to_csv(tmp_path / "houses.csv", index=False)
    ran = call("predict", "m", "houses.csv", folder=tmp_path)
    assert ran.code == 2
    assert "was fitted to an array, whose columns have no names; fit the model to a data frame" in ran.stderr


def test_notebooks_show_the_fit(of_the_shell: Path) -> None:
    model = widefit.load(of_the_shell)
    shown = model._repr_mimebundle_()["text/html"]
    assert "training loss" in shown
    assert "<summary>plan_</summary>" in shown
    assert "plan_" not in widefit.WideRegressor()._repr_mimebundle_()["text/html"]
    assert str(widefit.WideRegressor()) == "WideRegressor()"
