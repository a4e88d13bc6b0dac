"""The look of pictures in the documentation: legible on a white page and on a dark one, the same bytes each time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GREY, BLUE, ORANGE, GREEN, PURPLE = "#7d8590", "#3b82f6", "#e8833a", "#2fa36b", "#a371f7"


@contextmanager
def drawn(path: Path, columns: int = 1, size: tuple[float, float] = (6.4, 3.4), rows: int = 1) -> Iterator[Any]:
    """Give the panels of a figure, shape (rows, columns), or the panel where it is one, and write them when done.

    Parameters
    ----------
    path
        .svg, .png or .pdf.
    columns, rows
        Panels side by side, and below each other.
    size
        Width and height in inches.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    look: dict[str, Any] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, GREY]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "font.family": "sans-serif",
        "legend.frameon": False,
        "savefig.transparent": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "widefit",
    }
    with plt.rc_context(look):
        figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False)
        yield panels[0, 0] if rows == columns == 1 else panels
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
