"""The report of a run: one self-contained HTML page, written without matplotlib and readable without a network."""

from widefit.report.html import render, write
from widefit.report.machine import this_machine
from widefit.report.record import Report, Source

__all__ = ["Report", "Source", "render", "this_machine", "write"]
