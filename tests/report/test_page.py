"""The page as a whole: valid, self-contained, small, safe from the text it shows, and written whole or not at all."""

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import HISTORIES, Page, classification, drawings, regression

from widefit.report import Report, Source, render, this_machine, write

NASTY = "<script>alert('1')</script><b>&\"x\" ∑"


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("make", [regression, classification])
def test_any_history_gives_a_valid_page(name: str, make) -> None:
    report = dataclasses.replace(make(), history=HISTORIES[name](), tol=1e-6)
    source = render(report)
    page = Page(source)
    assert not {"nan", "inf", "None"} & set(page.text.split())
    for drawing in drawings(source):
        for element in drawing.iter():
            for value in element.attrib.values():
                assert not {"nan", "inf", "-inf"} & set(re.split(r"[ MLHVlhv]", value))
    assert len(page.named("h1")) == 1
    assert len(source.encode()) < 1_000_000


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 17, 30, 45])
def test_any_number_of_classes_gives_a_valid_page(classes: int) -> None:
    source = render(classification(classes, rows=900))
    assert drawings(source)
    assert len(Page(source).named("table")) >= 1
    assert len(source.encode()) < 1_000_000


@pytest.mark.parametrize("outputs", [1, 2, 6, 9])
def test_each_output_has_its_panel_up_to_six(outputs: int) -> None:
    page = Page(render(regression(outputs=outputs)))
    assert page.text.count("RMSE") == min(outputs, 6)
    assert ("further output" in page.text) == (outputs > 6)


@pytest.mark.parametrize("outputs", [1, 6])
def test_ten_thousand_predictions_stay_small(outputs: int) -> None:
    source = render(regression(rows=10_000, outputs=outputs))
    assert len(source.encode()) < 1_000_000
    assert "Each hexagon counts rows" in source


def test_nothing_is_loaded_from_elsewhere() -> None:
    source = render(classification())
    page = Page(source)
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "data"} & attributes.keys()
    assert "url(" not in source
    assert "@import" not in source
    assert "://" not in source
    policies = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]


def _nasty(report: Report, **labels) -> Report:
    named = {field.name for field in dataclasses.fields(report)}
    assert {"title", "notes", "settings"} <= named
    return dataclasses.replace(
        report,
        title=NASTY,
        data=Source(NASTY, 1, 1, NASTY),
        part=NASTY,
        metric_name=NASTY,
        metrics={NASTY: {NASTY: 0.5}, "train": {NASTY: 0.25}},
        plan=[(NASTY, NASTY, NASTY)],
        settings={NASTY: NASTY},
        machine={NASTY: NASTY},
        notes=[NASTY],
        importances={NASTY: 1.0},
        created=NASTY,
        **labels,
    )


def _nasty_history():
    run = HISTORIES["a metric"]()
    run.steps[1] = dataclasses.replace(run.steps[1], solver=NASTY)
    run.phases[NASTY] = 1.0
    run.stop_reason = NASTY
    return run


@pytest.mark.parametrize("task", ["regression", "several outputs", "classification"])
def test_text_never_becomes_markup(task: str) -> None:
    if task == "regression":
        report = _nasty(regression(_nasty_history()))
    elif task == "several outputs":
        report = _nasty(regression(_nasty_history(), outputs=2), outputs=[NASTY, NASTY])
    else:
        labels = [NASTY, "<i>other</i>"]
        report = _nasty(
            classification(2),
            history=_nasty_history(),
            classes=labels,
            truth=[labels[0], labels[1], labels[0]],
            prediction=[labels[0], labels[1], labels[1]],
            probabilities=np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]),
        )
    source = render(report)
    page = Page(source)
    assert len(page.named("script")) == 1
    assert NASTY not in source
    assert NASTY in "".join(page.texts)
    assert all(not attributes for attributes in page.named("b"))
    assert len(page.named("b")) == 2  # the target and the name of the data in the first sentence
    assert drawings(source)


def test_every_figure_has_a_text_alternative() -> None:
    for drawing in drawings(render(classification()))[1:]:  # the first is the button's icon
        assert drawing.attrib["role"] == "img"
        assert len(drawing.attrib["aria-label"]) > 10


def test_headline_shows_the_part_and_its_rivals() -> None:
    metrics = {"train": {"R²": 0.99}, "held out": {"R²": 0.8125, "RMSE": 2.5}, "mean": {"R²": 0.0}}
    text = Page(render(regression(metrics=metrics))).text
    assert "held out R² 0.8125 train 0.99 · mean 0" in text


def test_the_error_is_told_against_the_baseline() -> None:
    metrics = {"held out": {"RMSE": 0.5}, "baseline (always the mean)": {"RMSE": 2.0}}
    assert "error against baseline 25.0%" in Page(render(regression(metrics=metrics))).text
    metrics = {"held out": {"accuracy": 0.9}, "baseline (always a)": {"accuracy": 0.6}}
    assert "error against baseline 25.0%" in Page(render(classification(metrics=metrics))).text
    perfect = {"held out": {"RMSE": 0.0}, "baseline": {"RMSE": 0.0}}
    assert "error against baseline" not in Page(render(regression(metrics=perfect))).text


def test_columns_and_rows_that_matter_are_shown_and_the_rest_is_folded() -> None:
    report = regression(importances={f"column {k}": 2.0**-k for k in range(1, 15)})
    report = dataclasses.replace(report, rows=range(501, 701))
    text = Page(render(report)).text
    assert "column 1 50.0%" in text
    assert "column 13" not in text
    assert "2 further columns: " in text
    worst = int(np.abs(np.asarray(report.truth) - np.asarray(report.prediction)).argmax())
    assert re.search(rf"row true predicted error {501 + worst} ", text)
    assert [entry for entry, _ in Page(render(report)).elements].count("details") == 2
    with pytest.raises(ValueError, match="rows names 3 rows, and there are 200"):
        dataclasses.replace(report, rows=[1, 2, 3])


def test_rows_that_are_wrong_and_sure_come_first() -> None:
    report = classification()
    text = Page(render(report)).text
    truth, prediction = report.codes()
    sure = np.asarray(report.probabilities).max(axis=1)
    row = max(np.flatnonzero(truth != prediction), key=lambda place: sure[place])
    assert f"probability {row + 1} class {truth[row]} class {prediction[row]} {100 * sure[row]:.1f}%" in text
    right = dataclasses.replace(report, prediction=report.truth)
    assert "wrong and sure" not in Page(render(right)).text


def test_intervals_are_held_to_the_rows() -> None:
    report = regression()
    truth = np.asarray(report.truth)
    half = np.where(np.arange(200) < 150, 1.0, -1.0)
    text = Page(render(dataclasses.replace(report, interval=(truth - half, truth + half)))).text
    assert "Intervals for 90.0% of new rows hold 75.0% of the held out ones; half of them are wider than ± 1." in text
    with pytest.raises(ValueError, match=r"shape of truth, \(200,\)"):
        dataclasses.replace(report, interval=(truth[:3], truth))


def test_step_table_is_complete_or_says_what_it_leaves_out() -> None:
    short = Page(render(regression(HISTORIES["constant"]())))
    assert "of 5 steps" not in short.text
    long = render(regression(HISTORIES["ten thousand steps"]()))
    assert "The first and the last 200 of 10,000 steps" in Page(long).text
    assert long.count('<tr class="rejected">') == sum(step % 7 == 3 for step in [*range(200), *range(9800, 10_000)])


def test_columns_appear_when_there_is_something_in_them() -> None:
    plain = Page(render(regression(HISTORIES["constant"]()))).text
    assert "jitter" not in plain
    assert "validation metric" not in plain
    run = HISTORIES["a metric"]()
    run.steps[1] = dataclasses.replace(run.steps[1], jitter=1e-12)
    text = Page(render(regression(run, metric_name="held out R²"))).text
    assert "residual jitter flips" in text
    assert "loss held out R² damping" in text


def test_rejected_steps_and_tolerance_are_marked() -> None:
    source = render(regression(HISTORIES["all rejected"](), tol=0.01))
    assert "rejected step (2)" in source
    assert "tol 0.01" in source
    assert "tol" not in Page(render(regression(HISTORIES["all rejected"](), tol=1e-4))).text.split()
    assert "rejected step" not in render(regression(HISTORIES["constant"]()))


def test_not_finite_predictions_are_counted() -> None:
    report = regression()
    prediction = np.asarray(report.prediction).copy()
    prediction[:3] = math.nan
    assert (
        "Not drawn: 3 rows that are not finite."
        in Page(render(dataclasses.replace(report, prediction=prediction))).text
    )


def test_tensors_are_welcome() -> None:
    report = regression()
    same = dataclasses.replace(
        report, truth=torch.tensor(np.asarray(report.truth)), prediction=torch.tensor(np.asarray(report.prediction))
    )
    assert render(same) == render(report)


def test_write_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report = regression()
    write(path, report)
    assert path.read_text(encoding="utf-8") == render(report)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    taken = tmp_path / "report.html"
    taken.mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write(taken, regression())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "report.html", regression())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "ranking"}, "task must be 'regression' or 'classification'"),
        ({"prediction": np.zeros(3)}, "truth has shape"),
        ({"truth": np.zeros((2, 2, 2)), "prediction": np.zeros((2, 2, 2))}, r"shape \(n,\) or \(n, k\)"),
        ({"outputs": ["a", "b"]}, "2 names in outputs for 1 columns"),
    ],
)
def test_bad_regression_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(regression(), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "classes must list the labels"),
        ({"classes": ["class 0", "class 1"], "probabilities": None}, "truth has the label 'class 2'"),
        ({"probabilities": np.zeros((300, 2))}, r"probabilities must have shape \(300, 3\), got \(300, 2\)"),
        ({"truth": np.zeros((3, 2)), "prediction": np.zeros((3, 2))}, r"shape \(n,\) for classification"),
    ],
)
def test_bad_classification_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(classification(), **change)


def test_machine_is_described() -> None:
    machine = this_machine()
    assert machine["torch"] == torch.__version__
    assert int(machine["cores"]) >= 1
    assert all(isinstance(value, str) and value for value in machine.values())


def test_plotting_library_is_never_imported() -> None:
    code = (
        "import sys; from widefit.training.history import History; from widefit.report import Report, Source, render;"
        "render(Report('t', 'regression', Source('d', 1, 1, 'y'), History(), [1.0], [1.0]));"
        "print([name for name in ('matplotlib', 'sklearn', 'polars') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
