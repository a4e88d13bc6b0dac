"""Choice of input map, ridge and readout scale before training, by closed-form leave-one-out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.threads import serial_blas
from widefit.plan.base import Choice
from widefit.tuning.duplicates import MergedRows
from widefit.tuning.gradient_outer_product import can_mix
from widefit.tuning.held_out import MANY, SAMPLE, Halves, HeldOut
from widefit.tuning.input_map import MAP_ROWS, FixedMap, choose_map, fixed_maps, which_rows
from widefit.tuning.leave_one_out import RIDGES, LeaveOneOut, leave_one_out
from widefit.tuning.limit_kernel import limit_gram
from widefit.tuning.network_kernel import drawn_bytes, network_gram
from widefit.tuning.principal_components import NEARLY_AS_GOOD, Components, best_components
from widefit.tuning.rows import draw_rows
from widefit.tuning.sphere import SphereMap
from widefit.tuning.steps import most_entries

# Rows on which the ridge is chosen: n³ work for each of ten ridges.
_RIDGE_ROWS = 512
# Neurons from which a network is judged by its own H. Fewer, of which a handful fire, are nearer to a linear model than
# to the limit, by which importances and intervals are found afterwards.
_MANY_NEURONS = 8192
# Bytes of the tables behind the limit kernel, and of all that does not grow.
_SMALL = 2_000_000
# Part of the firing pairs that may flip in the first step: few enough for its linear model to be right. A ridge has to
# be balanced against the fit, which flips disturb more than an exact fit.
_FLIPPED_PART = 0.04
_FLIPPED_PART_WITH_RIDGE = 0.01
# Flips a firing pair, at readouts of ±1, up to which interpolation is reached in a few steps.
_EASILY_FLIPPED = 0.9
# Error in spreads that the linear model of the first step has where such a part flips; it falls as the root of the part
# (measured on tables). Where less is to be reached, fewer may flip.
_ERROR_OF_FLIPS = 0.14
# Neurons of which it is looked at how many flip.
_LOOKED_AT = 1024
# What a ridge may add to the smallest leave-one-out error, for the shorter way to its solution: with the limit kernel,
# and with that of a network, whose noise asks for a ridge by itself. What interpolation may add, for the features that
# steps beyond the linear model learn.
_TOLERATED = (1.02, 1.02)
_TOLERATED_WITH_NOISE = (1.005, 1.01)
# Error over the smallest so far, of two ridges in a row, from which on smaller ones are not tried.
_CLEARLY_WORSE = 1.03
_LARGEST_SCALE = 1e4
# Of a table of many rows: the part of those flips that is aimed at, and rows on which other input maps are chosen.
_FEWER_FLIPS = 0.1
_MAP_ROWS_OF_MANY = (MAP_ROWS, 1000)
# Gradient outer products on more rows, one after the other, that are tried, and the part of the error before that one
# has to leave at most.
_ROUNDS_OF_MANY = 4
_BETTER = 0.99


@dataclass(frozen=True)
class Tuning:
    """Decisions, with their reasons.

    Attributes
    ----------
    sphere
        The map of rows to the unit sphere.
    alpha
        α for readouts of ±1: the ridge of kernel regression with K ∘ N / m.
    readout_scale
        Factor of the readouts; the ridge in training is α times its square.
    held_out
        Predictions of the kernel regression, shape (r, k), for the rows `held_out_rows`, each of which it has not seen:
        one left out in turn or, of many rows, all of them.
    held_out_rows
        Indices of merged rows, shape (r,).
    held_out_targets, held_out_weight
        Targets and weights of these rows, shapes (r, k) and (r,).
    choices
        For the plan.
    """

    sphere: SphereMap
    alpha: float
    readout_scale: float
    held_out: Float[np.ndarray, "r k"]
    held_out_rows: np.ndarray
    held_out_targets: Float[np.ndarray, "r k"]
    held_out_weight: Float[np.ndarray, " r"]
    choices: tuple[Choice, ...]

    @property
    def error(self) -> float:
        """Weighted mean squared leave-one-out residual, summed over outputs."""
        squares = ((self.held_out_targets - self.held_out) ** 2).sum(1)
        return float(self.held_out_weight @ squares / self.held_out_weight.sum())


def bytes_needed(samples: int, features: int, width: int) -> int:
    """Return the peak memory of merging equal rows of a table and of tuning on them, beyond the table itself.

    Parameters
    ----------
    samples, features
        n, d.
    width
        m where the network is two-layer with one output, else 0.
    """
    rows = SAMPLE if samples > MANY else min(samples, max(2 * MAP_ROWS, _RIDGE_ROWS))
    entries = features if samples > MANY else most_entries(features)
    # Copies of the table that are sorted; matrices that a leave-one-out error holds at once (counted).
    merging = 5 * samples * features
    squares = 12 if samples > MANY else 8
    looked_at = 7 * _LOOKED_AT * min(rows, _RIDGE_ROWS)
    tuning = samples * features + max(squares * rows**2, looked_at) + 6 * rows * entries
    drawn = drawn_bytes(width, entries, rows) if width >= _MANY_NEURONS else 0
    return 8 * max(merging, tuning) + drawn + _SMALL


# Matrices of a few hundred rows: handing them to several threads costs more than it brings.
@serial_blas()
def tune(
    merged: MergedRows,
    *,
    threshold: float,
    width: int | Callable[[int], int],
    alpha: float | str,
    readout_scale: float | str,
    seed: int,
    kernel: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n n"]] | None = None,
    classes: Int[np.ndarray, " n"] | None = None,
    by_network: bool = True,
) -> Tuning:
    """Decide by the kernel that the network has, at its width for one output and at infinite width (this project).

    Parameters
    ----------
    merged
        Distinct rows and their targets; targets are centred.
    threshold, width
        b and m of the network to be trained; m may follow from the features that the map makes.
    alpha, readout_scale
        Numbers, or "auto".
    seed
        Chooses the rows when there are more than are needed.
    kernel
        H at infinite width of a network that is not two-layer, from inputs on the sphere; the input map is chosen as
        for a two-layer one.
    classes
        Class of every row where the targets are indicators: rare ones are not left out.
    by_network
        False where steps are too short for the noise of a network to move it far: then the limit decides.
    """
    generator = np.random.default_rng(seed)
    fixed = fixed_maps(merged)
    sphere, map_choice = choose_map(merged, fixed, threshold, classes, generator)
    rows, weight = draw_rows(merged, _RIDGE_ROWS, classes, generator)
    judged = kernel is None
    neurons = width(sphere.out_features) if callable(width) else width
    # Of several outputs each has neurons of its own, and the noise of one says little (measured: no gain).
    noisy = judged and by_network and merged.targets.shape[1] == 1 and neurons >= _MANY_NEURONS
    if noisy:
        kernel = partial(network_gram, width=neurons, threshold=threshold, seed=seed)
    kernel = kernel or partial(limit_gram, threshold=threshold)

    def probe(sphere: SphereMap) -> _Probe:
        inputs = sphere(merged.rows[rows])
        gram = kernel(inputs)
        mean = max(float(weight @ gram.diagonal()) / rows.size, np.finfo(float).tiny)
        share = rows.size / merged.rows.shape[0]
        return _Probe(inputs, gram, merged.targets[rows], weight, mean, threshold, neurons * share)

    problem = probe(sphere)
    choices = [map_choice]
    corrects = alpha == "auto"
    if alpha == "auto":
        alpha, reason = _choose_ridge(problem, *(_TOLERATED_WITH_NOISE if noisy else _TOLERATED))
        choices.append(Choice("alpha", f"{alpha:.3g}", f"{reason}, {which_rows(rows, merged)}"))
    assert not isinstance(alpha, str)
    held_out = None
    if judged and len(merged.rows) > MANY:
        sphere, held_out, choices = _judge(
            merged, fixed, (sphere, map_choice), threshold, alpha, corrects, classes, generator
        )
        alpha = held_out.alpha if corrects else alpha
        neurons = width(sphere.out_features) if callable(width) else width
        problem = probe(sphere)
    fit = problem.fit(alpha)
    if readout_scale == "auto":
        scales = problem.flipping(alpha)
        flipped = _flipped(scales)
        part = _FLIPPED_PART_WITH_RIDGE if alpha > 0 else _FLIPPED_PART
        if noisy:
            part = min(part, _FLIPPED_PART * fit.error / _ERROR_OF_FLIPS**2)
        # A step on many rows takes longer than rounding at a larger scale costs.
        part *= 1 if held_out is None else _FEWER_FLIPS
        place = max(scales.size - 1 - int(part * scales.size), 0)
        least = float(np.partition(scales, place)[place]) if scales.size else 1.0
        readout_scale = float(f"{min(max(1.0, least), _LARGEST_SCALE):.2g}")
        reason = f"at scale 1 about {min(flipped, 1):.0%} of the firing pairs would flip in the first step"
        choices.append(Choice("readout scale", f"{readout_scale:.3g}", reason))
    assert not isinstance(readout_scale, str)
    if held_out is None:
        held_out = HeldOut(alpha, math.sqrt(fit.error), problem.targets - fit.residuals, rows, weight)
    return Tuning(
        sphere,
        alpha,
        readout_scale,
        held_out.predictions,
        held_out.rows,
        merged.targets[held_out.rows],
        held_out.sample_weight,
        tuple(choices),
    )


def _judge(
    merged: MergedRows,
    fixed: Sequence[FixedMap],
    first: tuple[SphereMap, Choice],
    threshold: float,
    alpha: float,
    corrects: bool,
    classes: Int[np.ndarray, " n"] | None,
    generator: np.random.Generator,
) -> tuple[SphereMap, HeldOut, list[Choice]]:
    """Return the best of the map from few rows and of others from other rows, its fit to a larger sample, and why."""
    halves = Halves.draw(merged, classes, generator)
    maps = [first, *(choose_map(merged, fixed, threshold, classes, generator, size) for size in _MAP_ROWS_OF_MANY)]
    fits = [halves.judge(sphere, threshold, alpha, corrects) for sphere, _ in maps]
    best = min(range(len(fits)), key=lambda one: fits[one].error)
    (sphere, choice), found = maps[best], fits[best]
    others = " and ".join(f"{fit.error:.3g}" for fit in fits if fit is not found)
    told = f"error {found.error:.3g} spreads on {len(found.rows):,} held-out rows"
    choices = [replace(choice, reason=f"{choice.reason}; {told}, against {others} of maps chosen on other rows")]
    for _ in range(_ROUNDS_OF_MANY if can_mix(sphere) else 0):
        mixed = halves.mixed(sphere, threshold)
        fit = halves.judge(mixed, threshold, alpha, corrects)
        if not fit.error < _BETTER * found.error:
            break
        sphere = mixed
        found = fit
        told = f"error {found.error:.3g} spreads on {len(found.rows):,} held-out rows"
        mixing = f"columns mixed by gradients of a fit to {len(halves.learnt.rows):,} rows"
        choices[0] = replace(choices[0], reason=f"{choices[0].reason}; {mixing}: {found.error:.3g}")
    components = Components.of(replace(sphere, mixing=None), merged.rows, merged.sample_weight)
    fewer = None
    if components is not None:
        fewer = best_components(
            components.maps(), lambda mixed: halves.judge(mixed, threshold, alpha, corrects).error, more=True
        )
    # Fewer columns are quicker, too: all of them have to be clearly better to stay.
    if fewer is not None and fewer[2] <= NEARLY_AS_GOOD * found.error:
        sphere, name, error = fewer
        found = halves.judge(sphere, threshold, alpha, corrects)
        scaling = choices[0].chosen.partition(", ")[0]
        told = f"error {error:.3g} spreads on {len(found.rows):,} held-out rows"
        choices[0] = Choice("input map", f"{scaling}, {name}", f"{choices[0].reason}; with components {error:.3g}")
    if corrects:
        choices.append(Choice("alpha", f"{found.alpha:.3g}", f"the largest ridge that is nearly the best: {told}"))
    return sphere, found, choices


@dataclass(frozen=True)
class _Probe:
    """Kernel regression with H of the network, or its limit, on a subset of the rows.

    Attributes
    ----------
    inputs, gram, targets, sample_weight
        The rows on the sphere, their H, y and ω.
    mean
        Mean of diag H.
    threshold
        b.
    width
        m, less the share of rows that were left out: fewer rows move the neurons less.
    fits, scales
        What was found before, by ridge.
    """

    inputs: Float[np.ndarray, "n d"]
    gram: Float[np.ndarray, "n n"]
    targets: Float[np.ndarray, "n k"]
    sample_weight: Float[np.ndarray, " n"]
    mean: float
    threshold: float
    width: float
    fits: dict[float, LeaveOneOut] = field(default_factory=dict)
    scales: dict[float, Float[np.ndarray, " pairs"]] = field(default_factory=dict)

    def fit(self, alpha: float) -> LeaveOneOut:
        """Return the regression with ridge α; the smallest of the ridges stands for none."""
        ridge = max(alpha, float(RIDGES[0]) * self.mean)
        if ridge not in self.fits:
            self.fits[ridge] = leave_one_out(self.gram, self.targets, self.sample_weight, ridge)
        return self.fits[ridge]

    def flipping(self, alpha: float) -> Float[np.ndarray, " pairs"]:
        """Return the readout scales below which pairs flip in a first step: the largest, as many as pairs that fire.

        A neuron that fires on all rows hardly moves, as targets are centred, and one whose edge lies between them moves
        far: so neurons are drawn, and z and its first step are looked at for each pair. Of the two of a pair, whose
        signs differ, one flips where the step is longer than the way to the threshold.
        """
        if alpha not in self.scales:
            self.scales[alpha] = self._flipping(self.fit(alpha).coefficients)
        return self.scales[alpha]

    def _flipping(self, v: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " pairs"]:
        generator = np.random.default_rng(0)
        weight = generator.standard_normal((_LOOKED_AT, self.inputs.shape[1]))
        z = weight @ self.inputs.T
        fires = z > self.threshold
        # The readouts of k outputs are √k times larger, and each has a share 1/k of the neurons.
        own = np.arange(_LOOKED_AT) % v.shape[1]
        step = (fires * v.T[own]) @ (self.inputs @ self.inputs.T) / math.sqrt(self.width / v.shape[1])
        scales = (np.abs(step) / np.maximum(np.abs(z - self.threshold), 1e-12)).ravel()
        rest = max(scales.size - 2 * np.count_nonzero(fires), 0)
        return np.partition(scales, rest)[rest:] if rest < scales.size else scales[:0]


def _flipped(scales: Float[np.ndarray, " pairs"]) -> float:
    """Return the part of the firing pairs that flip with readouts of ±1."""
    return float(np.mean(scales > 1)) if scales.size else 0.0


def _choose_ridge(problem: _Probe, tolerated: float, tolerated_of_none: float) -> tuple[float, str]:
    """Return α and the reason.

    Leave-one-out errors are flat over many decades of small ridges. None at all is chosen when that is as good as the
    best and the network need not move far to interpolate; otherwise the largest ridge that is nearly as good as the
    best.
    """
    found: dict[int, float] = {}
    for place in reversed(range(1, len(RIDGES))):
        found[place] = math.sqrt(problem.fit(float(RIDGES[place] * problem.mean)).error)
        # From the largest ridge on errors fall, and rise again or stay.
        if min(found[place], found.get(place + 1, 0.0)) > _CLEARLY_WORSE * min(found.values()):
            break
    found[0] = math.sqrt(problem.fit(0.0).error)
    smallest = min(found.values())
    if found[0] <= tolerated_of_none * smallest and _flipped(problem.flipping(0.0)) <= _EASILY_FLIPPED:
        return 0.0, f"interpolation has the leave-one-out error {found[0]:.3g} in units of the target's spread"
    index = max(place for place, error in found.items() if error <= tolerated * smallest)
    reason = f"the largest ridge within {tolerated - 1:.1%} of the best leave-one-out error, {smallest:.3g} spreads"
    return float(RIDGES[index] * problem.mean), reason
