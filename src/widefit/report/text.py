"""Numbers and names as a reader wants them, escaped for HTML."""

import math
from html import escape
from typing import Any

from widefit.data.words import plural as plural

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """10⁻⁶ for −6."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits: 0.0213, 65,536, 1.2×10⁻⁹, and a dash for None or NaN."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    exponent = math.floor(math.log10(abs(value)))
    if -4 < exponent < 6:
        text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = power_of_ten(int(power)) if mantissa == "1" else f"{mantissa}×{power_of_ten(int(power))}"
    return text.replace("-", "−")


def duration(seconds: float) -> str:
    """0.31 s, 12.4 s, 3 min 20 s, 2 h 5 min."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{number(seconds, 2 if seconds < 1 else 3)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def share(fraction: float) -> str:
    """A fraction as a percentage with one digit."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}%"


def safe(value: Any) -> str:
    """Any value as text without markup; numbers are formatted."""
    if isinstance(value, bool) or value is None:
        return escape(str(value))
    if isinstance(value, int | float):
        return number(value)
    return escape(str(value))


def shortened(name: Any, length: int) -> str:
    """The beginning of a name, with an ellipsis where something was cut; not escaped."""
    text = str(name)
    return text if len(text) <= length else text[: length - 1] + "…"
