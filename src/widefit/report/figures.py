"""A figure of the report, and which figures a report has."""

from dataclasses import replace

from widefit.report.figure import Figure
from widefit.report.figures_of_classes import calibration, confusion
from widefit.report.figures_of_columns import importances
from widefit.report.figures_of_outputs import per_output
from widefit.report.figures_of_training import flips, loss_per_second, loss_per_step, phases, validation
from widefit.report.record import Report


def of_quality(report: Report) -> list[Figure]:
    """Figures of the quality of prediction on the rows of `report.part`."""
    if report.task == "regression":
        return [*per_output(report), *importances(report)]
    return [confusion(report), *calibration(report), *importances(report)]


def of_training(report: Report) -> list[Figure]:
    """Figures of the course of the run."""
    history = report.history
    figures = [
        loss_per_step(history, report.tol, report.loss_name),
        loss_per_second(history, report.tol, report.loss_name),
        *validation(history, report.metric_name),
        *flips(history),
        *phases(history),
    ]
    # The page has three columns: bars, which may be of any length, fill the last row.
    spare = -len(figures) % 3
    return [*figures[:-1], replace(figures[-1], span=1 + spare)] if history.phases else figures
