"""Choice between trees over the neurons and a look at all of them."""

import math
from typing import cast

from widefit.plan.base import Choice, Plan
from widefit.plan.names import STREAM_TRACKERS, TRACKERS, resolve
from widefit.trackers import Tracker
from widefit.trackers.cost import FLOPS, REFERENCE_THREADS, NeuronShape
from widefit.trackers.half_space.cost import opened_part, seconds_of_a_build, seconds_of_a_prediction

# Seconds a neuron of a dense prediction in float64, on one core (AMD Zen 4).
_DENSE_PREDICTION = 1.3e-9
# Part of the time of a dense prediction that trees may take at most: a rough model can be wrong by as much.
_LARGEST_PART = 0.5


def plan_stream(shape: NeuronShape, tracker: str | Tracker) -> tuple[Plan, Tracker]:
    """Choose how a stream finds the neurons that fire.

    Parameters
    ----------
    shape
        Sizes of the network.
    tracker
        "auto", a name, or the object itself.

    Raises
    ------
    ValueError
        An unknown name.
    """
    plan = Plan(flops_per_step=4.0 * shape.width * shape.features)
    if tracker != "auto":
        return plan, cast(Tracker, resolve(tracker, TRACKERS))
    known: list[Tracker] = [resolve(name, TRACKERS) for name in STREAM_TRACKERS]
    ranked = sorted(known, key=lambda one: one.seconds_in_a_stream(shape))
    told = " against ".join(f"{one.seconds_in_a_stream(shape) * 1e6:.2g} µs ({one.name})" for one in ranked)
    reason = (
        f"with {shape.features} features a tree would look at {opened_part(shape):.0%} of the neurons: about {told} a "
        "sample"
    )
    return plan.then(Choice("tracker", ranked[0].name, reason)), ranked[0]


def plan_prediction(shape: NeuronShape) -> tuple[int | None, Choice]:
    """From how many rows on predictions should come from trees over the neurons (None: never), and why."""
    dense = shape.width * (_DENSE_PREDICTION + 4 * shape.features / FLOPS) / REFERENCE_THREADS
    tree = seconds_of_a_prediction(shape)
    said = f"{shape.features} features: a tree looks at {opened_part(shape):.0%} of the neurons"
    if tree > _LARGEST_PART * dense:
        return None, Choice("prediction", "dense", f"{said}, which takes it as long")
    rows = math.ceil(seconds_of_a_build(shape) / (dense - tree))
    return rows, Choice(
        "prediction", "half-space tree", f"{said}; it is built once, for {rows:,} rows or more at a time"
    )
