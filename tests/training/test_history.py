"""A history as a frame, a picture and a table for notebooks."""

import matplotlib as mpl
import polars as pl
import pytest

from widefit.training.history import History, StepInfo


@pytest.fixture
def history() -> History:
    steps = [
        StepInfo(0, 1.0, metric=0.1),
        StepInfo(1, 1.0, metric=0.1, accepted=False, damping=1e-3, solver="cholesky"),
        StepInfo(2, 1e-5, metric=0.9, flips=1234, seconds=0.5),
    ]
    return History(steps, stop_reason="max_iter")


def test_a_frame_has_a_row_a_step_and_the_types_of_step_info(history: History) -> None:
    frame = history.to_frame()
    assert frame["loss"].to_list() == history.losses
    assert frame["flips"].to_list() == [None, None, 1234]
    assert frame.schema["samples"] == pl.Int64
    assert frame.schema["solver"] == pl.String
    assert frame.columns == list(history.to_dict()["steps"][0])
    assert History().to_frame().schema == frame.schema
    assert frame["accepted"].to_list() == [True, False, True]


def test_a_plot_shows_losses_and_the_steps_taken_back(history: History) -> None:
    mpl.use("Agg")
    axes = history.plot()
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["training loss"].get_ydata().tolist() == history.losses
    assert list(lines["taken back"].get_xdata()) == [1]
    assert axes.get_yscale() == "log"
    assert history.plot(ax=mpl.pyplot.figure().add_subplot()) is not axes
    assert History([StepInfo(0, 0.0)]).plot().get_yscale() == "linear"
    mpl.pyplot.close("all")


def test_a_notebook_shows_a_table(history: History) -> None:
    head, *rows, note = str(history).splitlines()
    assert head.split() == ["step", "loss", "metric", "damping", "flips", "kept", "seconds"]
    assert len(rows) == len(history)
    assert note == f"ended because {history.why}"
    shown = history._repr_html_()
    assert "<td>1,234</td>" in shown
    assert "ended because the largest number of steps was reached" in shown
    long = History([StepInfo(step, 1.0) for step in range(1000)])
    assert long._repr_html_().count("<tr>") == 41
    assert "of 1,000 steps" in long._repr_html_()
