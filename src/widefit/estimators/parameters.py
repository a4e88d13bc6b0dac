"""Checks of the parameters of the estimators."""

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from widefit.nn import automatic_threshold
from widefit.nn.shifted_relu import firing_probability
from widefit.plan.base import Choice
from widefit.plan.names import ACTIVATIONS
from widefit.plan.two_layer import seconds_of_a_product
from widefit.rules import GaussNewton
from widefit.tuning.held_out import MANY

# Neurons of "auto" with the threshold below, of which one tells of the kernel what four do that fire on two percent.
_FEW = 1 << 14
# Twice as many where rows are so few that it costs little: pairs of a neuron and a sample.
_FEW_PAIRS = 1 << 24
# Those of many rows and of other rules, and the least; seconds on one core that a product with H may take before they
# are fewer.
_WIDTH = 1 << 16
# Neurons of every output of many rows: H of fewer is too rough an image of its limit.
_WIDTH_OF_OUTPUT = 1 << 13
_LEAST_WIDTH = 1 << 12
_SECONDS_A_PRODUCT = 16.0
# And pairs of a neuron and a sample, which take a bit before a step and after it.
_PAIRS = 1 << 33
# Threshold of "auto" with a width of "auto", or for many rows: what a neuron tells of the kernel grows with the part of
# the rows that it fires on, up to about this one, and what it costs does not, as it is multiplied with all of them.
_THRESHOLD = 1.0
# Share of the rows on which some neuron has to fire for a threshold to be taken.
_FIRING_ROWS = 1e-3


@dataclass(frozen=True)
class Number:
    """A parameter that is a finite number ≥ `least`, or "auto" where that is allowed."""

    name: str
    kind: type = Real
    least: float = -math.inf
    auto: bool = False

    def check(self, value: Any) -> None:
        """Raise a ValueError that names the parameter."""
        if self.auto and isinstance(value, str) and value == "auto":
            return
        known = isinstance(value, self.kind) and not isinstance(value, bool)
        if not known or not self.least <= float(value) < math.inf:
            auto = '"auto" or ' if self.auto else ""
            kind = "an integer" if self.kind is Integral else "a finite number"
            bound = "" if self.least == -math.inf else f" ≥ {self.least:g}"
            raise ValueError(f"{self.name} must be {auto}{kind}{bound}, got {value!r}")


NUMBERS = (
    # Far below, every neuron fires on every row and float32 loses z in z − b.
    Number("threshold", least=-100.0, auto=True),
    Number("alpha", least=0.0, auto=True),
    Number("readout_scale", least=1e-6, auto=True),
    Number("max_iter", Integral, least=1),
    Number("tol", least=0.0, auto=True),
)


@dataclass(frozen=True)
class HiddenLayers:
    """Widths and thresholds of the hidden layers, and the reason for the thresholds."""

    widths: tuple[int, ...]
    thresholds: tuple[float, ...]
    reason: str
    narrowed: Choice | None = None

    @classmethod
    def of(cls, model: Any) -> "HiddenLayers":
        """Read the layers from the parameters of an estimator.

        Raises
        ------
        ValueError
            A width below 2, an unknown activation, a threshold that suits neither activation nor width, or an option
            that several layers do not have.
        """
        chosen = isinstance(model.hidden_layer_sizes, str) and model.hidden_layer_sizes == "auto"
        layers = cls._of_widths((_WIDTH,) if chosen else _widths(model.hidden_layer_sizes), model)
        # Rules of many small steps look for the neurons that fire, the fewer the better.
        newton = model.rule == "gauss-newton" or isinstance(model.rule, GaussNewton)
        if not chosen or not newton or model.activation == "relu" or model.threshold != "auto":
            return layers
        return cls((_FEW,), (_THRESHOLD,), "low, as a step looks at all neurons")

    def for_rows(self, model: Any, samples: int, features: int, outputs: int = 1) -> "HiddenLayers":
        """Return layers for few rows or many where "auto" is to choose: neurons that are quick, a low threshold."""
        if samples <= MANY and self.widths == (_FEW,) and 2 * _FEW * samples <= _FEW_PAIRS:
            chosen = isinstance(model.hidden_layer_sizes, str)
            return replace(self, widths=(2 * _FEW,)) if chosen else self
        if samples <= MANY or len(self.widths) > 1:
            return self
        threshold = isinstance(model.threshold, str) and model.activation != "relu"
        chosen = isinstance(model.hidden_layer_sizes, str)
        level = _THRESHOLD if threshold else self.thresholds[0]
        layers = replace(self, thresholds=(level,), reason="as low as suits many rows") if threshold else self
        usual = max(_WIDTH, _WIDTH_OF_OUTPUT * (1 << (outputs - 1).bit_length()))
        width = affordable_width(samples, features, level, usual) if chosen else _WIDTH
        if width == _WIDTH:
            return replace(layers, widths=(width,)) if chosen else layers
        reason = f"a step on {samples:,} rows would take long with {usual:,}"
        if width > _WIDTH:
            reason = f"each of {outputs} outputs has neurons of its own"
        return replace(layers, widths=(width,), narrowed=Choice("width", f"{width:,}", reason))

    @classmethod
    def _of_widths(cls, widths: tuple[int, ...], model: Any) -> "HiddenLayers":
        if model.activation not in ACTIVATIONS:
            names = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation must be one of {names}, got {model.activation!r}")
        if len(widths) > 1 and model.refit_readout:
            raise ValueError("refit_readout must be False with several hidden layers")
        if len(widths) > 1 and model.activation == "floored_relu":
            raise ValueError('activation must not be "floored_relu" with several hidden layers')
        if model.activation == "relu":
            if model.threshold not in ("auto", 0):
                raise ValueError('threshold belongs to activation="shifted_relu"; with "relu" it is 0')
            return cls(widths, (0.0,) * len(widths), "plain ReLU")
        if model.threshold == "auto":
            return cls(widths, tuple(automatic_threshold(width) for width in widths), "√(0.4 ln width)")
        threshold = float(model.threshold)
        if min(widths) * firing_probability(threshold, 1.0) < _FIRING_ROWS:
            raise ValueError(
                f"threshold must leave neurons that fire, got {threshold:g}: of {min(widths):,} neurons none fires on "
                f"any of {1 / _FIRING_ROWS:,.0f} rows; give a smaller one, such as "
                f"{automatic_threshold(min(widths)):.2g}"
            )
        return cls(widths, (threshold,) * len(widths), "as asked for")

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Choices for the plan."""
        return (self._threshold,) if self.narrowed is None else (self.narrowed, self._threshold)

    @property
    def _threshold(self) -> Choice:
        shares = ", ".join(f"{firing_probability(threshold, 1.0):.1%}" for threshold in self.thresholds)
        chosen = ", ".join(f"{threshold:.3g}" for threshold in self.thresholds)
        return Choice("threshold", chosen, f"{self.reason}: a neuron fires on {shares} of the samples")


def affordable_width(samples: int, features: int, threshold: float, usual: int = _WIDTH) -> int:
    """Return the largest power of two of neurons, up to the usual, with which a product with H takes little time."""
    width = usual
    firing = firing_probability(threshold, 1.0)
    while width > _LEAST_WIDTH:
        # The two neurons of a pair take one walk.
        seconds = seconds_of_a_product(samples, features, width / 2, firing)
        if seconds <= _SECONDS_A_PRODUCT and width * samples <= _PAIRS:
            break
        width //= 2
    return width


def _widths(sizes: Any) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    if not sizes or not all(isinstance(size, Integral) and int(size) >= 2 for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be widths of at least 2 neurons, got {sizes!r}")
    return tuple(int(size) for size in sizes)
