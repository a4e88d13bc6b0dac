"""A small SVG canvas: scales with ticks, a frame, and marks. Colours are CSS classes, so both themes share a figure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from widefit.report.text import number, power_of_ten

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """The places of values along an axis, 0 at its start and 1 at its end, and which ticks it carries.

    Attributes
    ----------
    low, high
        Values at the start (of the logarithmic part, where there is a level for zero) and at the end.
    logarithmic
        Positions grow with log10 of the value.
    zero
        Logarithmic only: the position 0 belongs to the value 0, and `low` lies at `LIFT`.
    ticks
        (value, label) in rising order.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False
    zero: bool = False

    LIFT = 0.12

    def __call__(self, values: Iterable[float]) -> NDArray[np.float64]:
        """Positions of values; not finite for a value that has none."""
        raw = np.asarray(list(values) if not isinstance(values, np.ndarray) else values, dtype=np.float64)
        if not self.logarithmic:
            return (raw - self.low) / (self.high - self.low)
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (np.log10(raw) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        if self.zero:
            along = np.where(raw == 0, 0.0, self.LIFT + (1 - self.LIFT) * along)
        return along


def linear(low: float, high: float, count: int = 5, whole: bool = False) -> Scale:
    """A linear scale over [low, high] with about `count` ticks at 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(round(step), 1)
    first = math.ceil(low / step - 1e-9)
    values = [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]
    return Scale(low, high, tuple(zip(values, _labels(values), strict=True)))


def _labels(values: Sequence[float]) -> list[str]:
    """Tick labels, all in thousands or millions where the largest is long."""
    largest = max(map(abs, values), default=0.0)
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if 10 * unit <= largest < 1e4 * unit:
            return [number(value / unit, 6) + (suffix if value else "") for value in values]
    return [number(value, 6) for value in values]


def logarithmic(values: Iterable[float]) -> Scale:
    """A logarithmic scale that covers the positive values, with a level of its own for zero where one occurs."""
    raw = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    positive = raw[raw > 0]
    zero = bool((raw == 0).any())
    if zero and not positive.size:
        return Scale(0.1, 1.0, ((0.0, "0"),), logarithmic=True, zero=True)
    powers = np.log10(positive) if positive.size else np.array([-1.0, 0.0])
    first, last = float(powers.min()), float(powers.max())
    margin = 0.04 * (last - first) if last - first > 0.1 else 0.05
    first, last = max(first - margin, -307.0), min(last + margin, 308.0)
    start, end = math.ceil(first - 1e-9), math.floor(last + 1e-9)
    low, high = 10.0**first, 10.0**last
    if end - start >= 2:
        every = -(-(end - start) // 6)
        ticks = [(10.0**k, power_of_ten(k)) for k in range(start, end + 1) if k % every == 0]
    else:
        # The scale of a narrow range reads best with ticks as on a linear one.
        ticks = [(value, label) for value, label in linear(low, high, 4).ticks if value > 0]
        if last - first > 0.9:
            decade = range(start - 1, end + 1)
            ticks = [(f * 10.0**k, number(f * 10.0**k)) for k in decade for f in (1, 2, 5)]
            ticks = [(value, label) for value, label in ticks if low <= value <= high]
    if zero:
        ticks.insert(0, (0.0, "0"))
    return Scale(low, high, tuple(ticks), logarithmic=True, zero=zero)


@dataclass(frozen=True)
class Frame:
    """The rectangle between two scales, in the pixels of the figure."""

    x: Scale
    y: Scale
    width: int = 360
    height: int = 250
    right: int = 12
    top: int = 10
    bottom: int = 44

    @property
    def left(self) -> float:
        """Room for the label of the axis and its longest tick, at about 7 px a letter."""
        return 34 + 7 * max((len(label) for _, label in self.y.ticks), default=0)

    def across(self, values: Iterable[float]) -> NDArray[np.float64]:
        """Horizontal pixel positions of values of x."""
        return self.left + (self.width - self.left - self.right) * self.x(values)

    def down(self, values: Iterable[float]) -> NDArray[np.float64]:
        """Vertical pixel positions of values of y, which grow upwards."""
        return self.height - self.bottom - (self.height - self.top - self.bottom) * self.y(values)

    def points(self, x: Iterable[float], y: Iterable[float]) -> Points:
        """Pixel positions, shape (n, 2)."""
        return np.stack([self.across(x), self.down(y)], axis=1)

    def svg(self, marks: Sequence[str], x_label: str, y_label: str, alt: str) -> str:
        """The figure: grid, ticks, labels, then the marks in order."""
        floor, end = self.height - self.bottom, self.width - self.right
        centre, middle = (self.left + end) / 2, (self.top + floor) / 2
        parts = []
        for value, label in self.y.ticks:
            at = float(self.down([value])[0])
            parts.append(f'<path class="grid-line" d="M{pixel(self.left)} {pixel(at)}H{end}"/>')
            parts.append(words_at(self.left - 8, at + 4, label, "tick", "end"))
        for value, label in self.x.ticks:
            at = float(self.across([value])[0])
            parts.append(f'<path class="axis" d="M{pixel(at)} {floor}v4"/>')
            parts.append(words_at(at, floor + 18, label, "tick", "middle"))
        parts.append(f'<path class="axis" d="M{pixel(self.left)} {floor}H{end}"/>')
        parts.append(words_at(centre, self.height - 6, x_label, "label", "middle"))
        parts.append(words_at(13, middle, y_label, "label", "middle", turned=-90))
        return picture(self.width, self.height, [*parts, *marks], alt)


def picture(width: float, height: float, parts: Sequence[str], alt: str, style: str = "") -> str:
    """An SVG element with a text alternative."""
    box = f'viewBox="0 0 {pixel(width)} {pixel(height)}"' + (f' style="{style}"' if style else "")
    return f'<svg {box} role="img" aria-label="{escape(alt)}">{"".join(parts)}</svg>'


def words_at(
    x: float, y: float, words: str, style: str, anchor: str = "start", turned: int = 0, size: float = 12.5
) -> str:
    """Words whose baseline starts, has its middle or ends at (x, y), turned by so many degrees about that point."""
    at = f'x="{pixel(x)}" y="{pixel(y)}"'
    if turned:
        at = f'transform="translate({pixel(x)} {pixel(y)}) rotate({turned})"'
    return f'<text class="{style}" {at} text-anchor="{anchor}" font-size="{pixel(size)}">{escape(words)}</text>'


def pixel(value: float) -> str:
    """A coordinate with one digit."""
    return f"{value:.1f}".removesuffix(".0")


def visible(points: Points) -> Points:
    """The points whose position exists."""
    return points[np.isfinite(points).all(axis=1)]


def thinned(points: Points) -> Points:
    """The first, lowest, highest and last of the points that share a column of pixels: the line looks the same."""
    if len(points) <= 1000:
        return points
    keep: set[int] = set()
    column = np.floor(points[:, 0])
    edges = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(points)]
    for start, end in pairwise(edges):
        heights = points[start:end, 1]
        keep |= {start, end - 1, start + int(heights.argmin()), start + int(heights.argmax())}
    return points[sorted(keep)]


def line(points: Points, style: str) -> str:
    """A polyline through points (n, 2); it breaks where a position does not exist."""
    commands = []
    pen = "M"
    for x, y in thinned(points) if np.isfinite(points).all() else points:
        if math.isfinite(x) and math.isfinite(y):
            commands.append(f"{pen}{pixel(x)} {pixel(y)}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{style}" d="{"".join(commands)}"/>'


def dots(points: Points, style: str) -> str:
    """Round marks, one path for all: the stroke width of the style is their diameter. Marks that coincide are one."""
    spots = {f"M{pixel(x)} {pixel(y)}h0": None for x, y in visible(points)}
    return f'<path class="dots {style}" d="{"".join(spots)}"/>'


def crosses(points: Points, style: str) -> str:
    """Diagonal crosses, one path for all."""
    spots = [f"M{pixel(x - 3)} {pixel(y - 3)}l6 6m0 -6l-6 6" for x, y in visible(points)]
    return f'<path class="{style}" d="{"".join(spots)}"/>'


def strokes(across: Iterable[float], floor: float, style: str) -> str:
    """Short strokes that stand on the axis, one path for all; those in the same column of pixels are one."""
    spots = {f"M{round(x)} {pixel(floor)}v-7": None for x in across if math.isfinite(x)}
    return f'<path class="{style}" d="{"".join(spots)}"/>'


def hints(points: Points, texts: Sequence[str], radius: float = 7) -> str:
    """Invisible discs over marks, which show a text when the pointer rests on them."""
    return "".join(
        f'<circle class="hint" cx="{pixel(x)}" cy="{pixel(y)}" r="{radius}"><title>{escape(text)}</title></circle>'
        for (x, y), text in zip(points, texts, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    )
