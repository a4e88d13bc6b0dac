"""Figures of the columns of the table."""

from html import escape

from widefit.report.figure import Figure
from widefit.report.record import Report
from widefit.report.text import plural, share, shortened

# More bars than this would bury the page.
BARS = 12


def importances(report: Report) -> list[Figure]:
    """Shares of the columns in the predictions, largest first."""
    shares = sorted(report.importances.items(), key=lambda item: -item[1])
    if len(shares) < 2 or not shares[0][1] > 0:
        return []
    rows = "".join(
        f"<li><span>{escape(shortened(name, 28))}</span> <span>{share(part)}</span>"
        f'<i aria-hidden="true" style="width:{100 * part / shares[0][1]:.1f}%"></i></li>'
        for name, part in shares[:BARS]
    )
    rest = sum(part for _, part in shares[BARS:])
    more = f" {plural(len(shares) - BARS, 'further column')}: {share(rest)}." if len(shares) > BARS else ""
    caption = f"How much predictions change with each column, in the units of its spread: squared slopes.{more}"
    return [Figure("Columns that matter", f'<ul class="bars">{rows}</ul>', caption)]
