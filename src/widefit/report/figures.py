"""A figure of the report, and which figures a report has."""

from widefit.report.figure import Figure
from widefit.report.figures_of_classes import calibration, confusion
from widefit.report.figures_of_outputs import per_output
from widefit.report.figures_of_training import flips, loss_per_second, loss_per_step, phases, validation
from widefit.report.record import Report


def of_quality(report: Report) -> list[Figure]:
    """How well the rows of `report.part` are predicted."""
    if report.task == "regression":
        return per_output(report)
    return [confusion(report), *calibration(report)]


def of_training(report: Report) -> list[Figure]:
    """How the run went."""
    history = report.history
    return [
        loss_per_step(history, report.tol),
        loss_per_second(history, report.tol),
        *validation(history, report.metric_name),
        *flips(history),
        *phases(history),
    ]
