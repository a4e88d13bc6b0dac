"""Choice of the input map: a few fixed ones, compared by closed-form leave-one-out, and scales learnt from there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from jaxtyping import Float, Int

from widefit.plan.two_layer import Choice
from widefit.tuning.columns import QuantileMap, heavy_tailed, indicators
from widefit.tuning.duplicates import MergedRows, WeightedRows
from widefit.tuning.gradient_outer_product import can_mix, mix_columns
from widefit.tuning.held_out import MANY
from widefit.tuning.leave_one_out import leave_one_out
from widefit.tuning.limit_kernel import limit_gram
from widefit.tuning.principal_components import Components, best_components
from widefit.tuning.relevance import learn_scales, steps_within_budget
from widefit.tuning.rows import draw_rows
from widefit.tuning.sphere import SphereMap
from widefit.tuning.steps import Steps

# Rows on which maps are compared and scales are learnt: n³ work, done some dozens of times.
MAP_ROWS = 400
_CONSTANTS = (0.5, 1.0, 2.0)
# Share of the variance of a column that its steps have in a fixed map, and where scales are learnt from there.
MOSTLY_STEPS = 0.9
_HALF_STEPS = 0.5
_SCALINGS = {
    "columns": "each column to variance 1",
    "common": "columns keep their relative scales",
    "indicators": "each column to variance 1, indicators 0 and 1",
}
# Part of the squared error that a map of more parameters has to leave at most, and the standard errors of the
# difference that it has to gain at least.
_WORTHWHILE = 0.97
_STANDARD_ERRORS = 1.0
# Gradient outer products, one after the other, that are tried.
_ROUNDS = 2
# Ridges at which maps are compared: all but none, and one a hundred times the other.
_RIDGES = (1e-4, 1e-2, 1.0)


@dataclass(frozen=True)
class FixedMap:
    """A map that follows from the columns of a table alone.

    Attributes
    ----------
    sphere
        The map.
    name
        What it does, in words.
    usual
        False where it bends tails, leaves indicators alone or has steps: such a map has to be clearly better.
    beginning
        Where scales are learnt from: the map with steps beside its columns.
    """

    sphere: SphereMap
    name: str
    usual: bool
    beginning: SphereMap

    @classmethod
    def each_constant(cls, sphere: SphereMap, name: str, usual: bool, beginning: SphereMap) -> "list[FixedMap]":
        """Return a map with each of a few constants."""
        return [
            cls(replace(sphere, constant=c), f"{name}, constant {c:g}", usual, replace(beginning, constant=c))
            for c in _CONSTANTS
        ]


def fixed_maps(merged: MergedRows) -> list[FixedMap]:
    """Return the fixed maps of a table; each pass over all its rows is made once."""
    of_two = indicators(merged.rows)
    scalings = [scaling for scaling in _SCALINGS if scaling != "indicators" or 0 < of_two.sum() < of_two.size]
    heavy = heavy_tailed(merged.rows)
    tails = {"": QuantileMap.none()}
    if heavy.any():
        columns = "1 column" if heavy.sum() == 1 else f"{heavy.sum()} columns"
        tails[f"{columns} with heavy tails to normal scores, "] = QuantileMap.fit(
            merged.rows, merged.sample_weight, heavy
        )
    # Of many rows a product with H takes as long as there are entries; of few rows scales of more entries than rows are
    # learnt by heart.
    steps = Steps.none() if len(merged.rows) > MANY else Steps.fit(merged.rows, of_two)
    if steps.columns.size + merged.rows.shape[1] > _rows_to_learn(merged, MAP_ROWS):
        steps = Steps.none()
    found: list[FixedMap] = []
    for (prefix, quantiles), scaling in product(tails.items(), scalings):
        sphere = SphereMap.fit(
            merged.rows, merged.sample_weight, scaling=scaling, constant=_CONSTANTS[0], quantiles=quantiles
        )
        half = sphere.with_steps(merged.rows, merged.sample_weight, steps, _HALF_STEPS)
        usual = not prefix and scaling != "indicators"
        found += FixedMap.each_constant(sphere, f"{prefix}{_SCALINGS[scaling]}", usual, half)
        if steps.columns.size and scaling == "columns" and not prefix:
            most = sphere.with_steps(merged.rows, merged.sample_weight, steps, MOSTLY_STEPS)
            found += FixedMap.each_constant(most, f"{_SCALINGS[scaling]} and steps beside it", False, most)
    return found


def _rows_to_learn(merged: MergedRows, size: int) -> int:
    return min(size, -(-2 * merged.rows.shape[0] // 3))


def choose_map(
    merged: MergedRows,
    fixed_ones: Sequence[FixedMap],
    threshold: float,
    classes: Int[np.ndarray, " n"] | None,
    generator: np.random.Generator,
    size: int = MAP_ROWS,
) -> tuple[SphereMap, Choice]:
    """Choose the best of a few fixed maps, or scales learnt from there if other rows confirm them (this project).

    Parameters
    ----------
    merged
        Distinct rows and centred targets.
    fixed_ones
        The fixed maps of these rows (`fixed_maps`).
    threshold
        b.
    classes
        Class of every row, or None.
    generator
        Draws the rows when there are more than are needed.
    size
        Rows on which maps are compared; n³ work, for scales up to a budget that grows as n².
    """
    everyone, weight = draw_rows(merged, size + size // 2, classes, generator)
    sample = WeightedRows(merged.rows[everyone], merged.targets[everyone], weight)
    # The rows that judge learnt scales are others than those they were learnt on: a third of a small table.
    learning = _rows_to_learn(merged, size)
    learners = sample.part(slice(learning))
    fixed, reason = _best_fixed(fixed_ones, learners, threshold)
    choice = Choice("input map", fixed.name, f"{reason}, {which_rows(everyone[:learning], merged)}")
    if learning == everyone.size:
        return fixed.sphere, choice
    before = _squared_errors(sample, fixed.sphere, threshold)[learning:]
    fewer = _fewer_columns(merged, fixed.sphere, learners, threshold)
    start = fixed.beginning
    steps = steps_within_budget(learning, start.scale.size, budget=(size / MAP_ROWS) ** 2)
    found = fixed.sphere
    if steps > 0:
        learnt = learn_scales(learners.rows, learners.targets, learners.sample_weight, start, threshold, steps)
        after = _squared_errors(sample, learnt, threshold)[learning:]
        if is_confirmed(before, after, weight[learning:]):
            varies = start.scale > 0
            factors = learnt.scale[varies] / start.scale[varies]
            learnt_name = f"then times {factors.min():.2g} to {factors.max():.2g}, constant {learnt.constant:.2g}"
            gain = f"{spreads_of(before, weight[learning:]):.3g} → {spreads_of(after, weight[learning:]):.3g}"
            reason = f"scales learnt on {learning} rows: error on other rows {gain} spreads"
            name = fixed.name.rpartition(",")[0]
            if start.steps.columns.size and fixed.sphere.steps.columns.size == 0:
                name = f"{name} and steps beside it"
            choice = Choice("input map", f"{name}, {learnt_name}", reason)
            found = learnt
            before = after
    found, choice = _mixed(sample, learning, found, threshold, before, choice)
    if fewer is not None:
        components, told = fewer
        errors = [_squared_errors(sample, one, threshold)[learning:] for one in (found, components)]
        earlier, later = (spreads_of(error, weight[learning:]) for error in errors)
        if later <= earlier:
            reason = f"{reason}; error on other rows {earlier:.3g} → {later:.3g} spreads"
            return components, Choice("input map", f"{fixed.name.rpartition(',')[0]}, {told}", reason)
    return found, choice


def _fewer_columns(
    merged: MergedRows, fixed: SphereMap, learners: WeightedRows, threshold: float
) -> tuple[SphereMap, str] | None:
    """Return the map to as many principal components as have the smallest leave-one-out error, and what it does."""
    components = Components.of(fixed, merged.rows, merged.sample_weight)
    if components is None:
        return None

    def error_of(sphere: SphereMap) -> float:
        return spreads_of(_squared_errors(learners, sphere, threshold), learners.sample_weight)

    found = best_components(components.maps(), error_of)
    return None if found is None else found[:2]


def _mixed(
    sample: WeightedRows,
    learning: int,
    start: SphereMap,
    threshold: float,
    before: Float[np.ndarray, " others"],
    choice: Choice,
) -> tuple[SphereMap, Choice]:
    """Mix columns by the average gradient outer product, as long as rows that it was not learnt on confirm it.

    Parameters
    ----------
    sample
        Rows on which the map is learnt, then those that judge it.
    learning
        The count of the former.
    start, choice
        The map so far.
    threshold
        b.
    before
        Squared errors of the latter with it.
    """
    learners = sample.part(slice(learning))
    weight = sample.sample_weight[learning:]
    found = start
    if not can_mix(start):
        return found, choice
    for rounds in range(1, _ROUNDS + 1):
        mixed = mix_columns(learners.rows, learners.targets, learners.sample_weight, found, threshold)
        after = _squared_errors(sample, mixed, threshold)[learning:]
        if not is_confirmed(before, after, weight):
            break
        gain = f"{spreads_of(before, weight):.3g} → {spreads_of(after, weight):.3g}"
        reason = f"{choice.reason}; with {rounds} of gradient outer products {gain}"
        choice = replace(choice, chosen=f"{choice.chosen.removesuffix(', mixed')}, mixed", reason=reason)
        found = mixed
        before = after
    return found, choice


def which_rows(rows: Int[np.ndarray, " r"], merged: MergedRows) -> str:
    """Return "on all rows" or their number, for the reason of a choice."""
    return "on all rows" if rows.size == merged.rows.shape[0] else f"on {rows.size:,} rows"


def _best_fixed(fixed_ones: Sequence[FixedMap], learners: WeightedRows, threshold: float) -> tuple[FixedMap, str]:
    """Return the fixed map with the smallest leave-one-out error, and the reason."""

    def error_of(fixed: FixedMap) -> float:
        error = spreads_of(_squared_errors(learners, fixed.sphere, threshold), learners.sample_weight)
        # The usual maps stay unless it is clearly better to bend tails, to leave indicators alone or to take steps.
        return error if fixed.usual else error / math.sqrt(_WORTHWHILE)

    best = min(fixed_ones, key=error_of)
    return best, f"best leave-one-out error of {len(fixed_ones)} maps"


def _squared_errors(sample: WeightedRows, sphere: SphereMap, threshold: float) -> Float[np.ndarray, " n"]:
    """Return squared leave-one-out residuals, summed over outputs, with the best of a few ridges."""
    residuals = left_out_residuals(sphere(sample.rows), sample.targets, sample.sample_weight, threshold)
    return (residuals**2).sum(axis=1)


def left_out_residuals(
    inputs: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n k"],
    sample_weight: Float[np.ndarray, " n"],
    threshold: float,
) -> Float[np.ndarray, "n k"]:
    """Return leave-one-out residuals of the regression with the limit kernel, with the best of a few ridges."""
    gram = limit_gram(inputs, threshold)
    mean = max(float(sample_weight @ gram.diagonal()) / sample_weight.size, np.finfo(float).tiny)
    fits = [leave_one_out(gram, targets, sample_weight, ridge * mean) for ridge in _RIDGES]
    return min(fits, key=lambda fit: fit.error).residuals


def spreads_of(squared_errors: Float[np.ndarray, " n"], sample_weight: Float[np.ndarray, " n"]) -> float:
    """Return the root of the mean squared error, in units of the spread of the targets."""
    return math.sqrt(float(sample_weight @ squared_errors / sample_weight.sum()))


def is_confirmed(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"], sample_weight: Float[np.ndarray, " n"]
) -> bool:
    """Return True when squared errors have fallen by more than chance explains, and enough to matter."""
    share = sample_weight / sample_weight.sum()
    gain = float(share @ (before - after))
    deviation = math.sqrt(float(share**2 @ (before - after - gain) ** 2))
    return gain > max(_STANDARD_ERRORS * deviation, (1 - _WORTHWHILE) * float(share @ before))
