"""Fewer columns for tables of very many: the principal components of their rows, as mixings of an input map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from widefit.tuning.sphere import SphereMap

# Columns from which components are worth their cost: those of pictures and spectra.
_MANY_COLUMNS = 100
_COMPONENTS = (20, 30, 40, 50, 65, 90, 130, 200)
# Rows that components are found in, evenly from the whole table, and of more columns than the latter as many: no larger
# matrix than this is decomposed.
_ROWS, _SIDE = 4000, 1000
# What more components may add to the smallest error of a few rows: the more rows, the more components are worth having
# (of pictures 30 for 2,500, 50 for 12,000). Beyond, errors are clearly worse.
NEARLY_AS_GOOD = 1.015


@dataclass(frozen=True)
class Components:
    """Principal components of columns as an input map scales them.

    Attributes
    ----------
    sphere
        The map, which mixes nothing.
    directions
        Orthonormal, by falling variance, shape (d, q).
    shares
        Their parts of the variance of all columns.
    """

    sphere: SphereMap
    directions: Float[np.ndarray, "d q"]
    shares: Float[np.ndarray, " q"]

    @classmethod
    def of(
        cls, sphere: SphereMap, rows: Float[np.ndarray, "n d"], sample_weight: Float[np.ndarray, " n"]
    ) -> "Components | None":
        """Find them in weighted rows; None where there are too few columns, or where they have steps or are mixed."""
        if sphere.center.size <= _MANY_COLUMNS or sphere.mixing is not None or sphere.steps.columns.size:
            return None
        step = -(-len(rows) // (_ROWS if sphere.center.size <= _SIDE else _SIDE))
        scaled = sphere.scaled(rows[::step])
        share = sample_weight[::step] / sample_weight[::step].sum()
        scaled = (scaled - share @ scaled) * np.sqrt(share)[:, None]
        # Of many more columns than rows the components lie in the span of the rows.
        wide = scaled.shape[1] > len(scaled)
        values, vectors = np.linalg.eigh(scaled @ scaled.T if wide else scaled.T @ scaled)
        total = max(float(values.sum()), np.finfo(float).tiny)
        count = min(_COMPONENTS[-1], int((values > np.finfo(float).eps * len(values) * values[-1]).sum()))
        directions = vectors[:, ::-1][:, :count]
        if wide:
            directions = scaled.T @ (directions / np.sqrt(values[::-1][:count]))
        # Rounded, and with a fixed sign, so that the last bits of the data do not reach the model.
        largest = directions[np.abs(directions).argmax(axis=0), np.arange(count)]
        return cls(sphere, np.round(directions * np.sign(largest), 6), values[::-1][:count] / total)

    def maps(self) -> list[tuple[SphereMap, str]]:
        """Return maps to the first so many components, the fewest first, and what they do in words."""
        columns, found = self.directions.shape
        return [
            (replace(self.sphere, mixing=self.directions[:, :count]), self._told(count))
            for count in _COMPONENTS
            if count <= found and 2 * count <= columns
        ]

    def _told(self, count: int) -> str:
        share = self.shares[:count].sum()
        return f"{count} principal components with {share:.0%} of the variance, constant {self.sphere.constant:.2g}"


def best_components(
    maps: Sequence[tuple[SphereMap, str]], error_of: Callable[[SphereMap], float], more: bool = False
) -> tuple[SphereMap, str, float] | None:
    """Return the map to as many components as have the smallest error, and this error.

    Parameters
    ----------
    maps
        From few to many components.
    error_of
        The error with a map.
    more
        True to return the most components whose error is nearly the smallest.
    """
    errors: list[float] = []
    for sphere, _ in maps:
        errors.append(error_of(sphere))
        # Errors fall, and rise again: from two in a row that are clearly worse on, more components only cost.
        if len(errors) > 2 and min(errors[-2:]) > NEARLY_AS_GOOD * min(errors):
            break
    if not errors:
        return None
    tolerated = (NEARLY_AS_GOOD if more else 1.0) * min(errors)
    best = [place for place, error in enumerate(errors) if error <= tolerated][-1 if more else 0]
    return *maps[best], errors[best]
