"""Dates, times of day and durations as numbers."""

import math
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float64

Part = Literal["days", "year", "week", "day"]

DAY = 86_400.0
# Seconds of a period, and of a point in time at which one begins: 1970 began at the epoch, and its 5th was a Monday.
_PERIODS: dict[str, tuple[float, float]] = {
    "year": (365.2425 * DAY, 0.0),
    "week": (7 * DAY, 4 * DAY),
    "day": (DAY, 0.0),
}


def seconds_of(values: pl.Series) -> Float64[np.ndarray, " n"]:
    """Return seconds since 1970 of dates, since midnight of times of day, or of durations; NaN where missing."""
    if values.dtype == pl.Time:
        scaled = values.cast(pl.Int64).cast(pl.Float64) / 1e9
    elif values.dtype == pl.Duration:
        scaled = values.dt.total_microseconds().cast(pl.Float64) / 1e6
    else:
        scaled = values.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
    return scaled.fill_null(np.nan).to_numpy().copy()


def varying_parts(seconds: Float64[np.ndarray, " n"]) -> tuple[Part, ...]:
    """Return the parts in which some moments differ; that of the year, where they span more than one."""
    span = float(np.ptp(seconds))
    parts: list[Part] = ["days"]
    if span > _PERIODS["year"][0]:
        parts.append("year")
    if np.unique(seconds // DAY % 7).size > 1:
        parts.append("week")
    if np.unique(seconds % DAY).size > 1:
        parts.append("day")
    return tuple(parts)


def width_of(parts: tuple[Part, ...]) -> int:
    """Return the count of numbers that a moment becomes: days since 1970, a point on the circle for every period."""
    return sum(1 if part == "days" else 2 for part in parts)


def names_of(name: str, parts: tuple[Part, ...]) -> tuple[str, ...]:
    """Return a name for each of those numbers."""
    found: list[str] = []
    for part in parts:
        found += [f"{name} in days"] if part == "days" else [f"{name}: {f} of the {part}" for f in ("sine", "cosine")]
    return tuple(found)


def write_parts(
    seconds: Float64[np.ndarray, " n"], parts: tuple[Part, ...], out: Float64[np.ndarray, "n width"]
) -> None:
    """Write the numbers of some moments into `out`."""
    place = 0
    for part in parts:
        if part == "days":
            out[:, place] = seconds / DAY
            place += 1
            continue
        period, begin = _PERIODS[part]
        angle = 2 * math.pi / period * ((seconds - begin) % period)
        out[:, place] = np.sin(angle)
        out[:, place + 1] = np.cos(angle)
        place += 2
