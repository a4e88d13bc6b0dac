"""Rows of the training table that a model keeps, for questions about its predictions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from widefit.tuning.duplicates import MergedRows
from widefit.tuning.sphere import SphereMap

# Rows of the table that are kept: n³ work when intervals are first asked for.
_ROWS = 1000


@dataclass(frozen=True)
class TrainingSample:
    """Some rows of the training table, and the distinct rows that they are equal to.

    Attributes
    ----------
    inputs
        Distinct rows on the sphere, shape (r, d + 1).
    targets
        Encoded mean targets of equal rows, shape (r, k).
    sample_weight
        Total weight of equal rows, shape (r,).
    member
        Which of the distinct rows each row of the table is, shape (s,).
    place
        Which row of the table that is, shape (s,).
    single, single_weight
        Encoded targets and weights of the rows of the table, shapes (s, k) and (s,).
    within
        Variance of the targets of equal rows around their mean, of each output, shape (k,).
    samples
        n, the number of distinct rows in training.
    rows
        The distinct rows before they are put on the sphere, shape (r, columns), where they are fewer numbers than
        `inputs`; None elsewhere.
    """

    inputs: Float[np.ndarray, "r d"]
    targets: Float[np.ndarray, "r k"]
    sample_weight: Float[np.ndarray, " r"]
    member: Int[np.ndarray, " s"]
    place: Int[np.ndarray, " s"]
    single: Float[np.ndarray, "s k"]
    single_weight: Float[np.ndarray, " s"]
    within: Float[np.ndarray, " k"]
    samples: int
    rows: Float[np.ndarray, "r columns"] | None = None

    @classmethod
    def draw(
        cls,
        merged: MergedRows,
        encoded: Float[np.ndarray, "N k"],
        sample_weight: Float[np.ndarray, " N"],
        places: Int[np.ndarray, " N"],
        sphere: SphereMap,
        seed: int,
    ) -> "TrainingSample":
        """Draw rows of the table.

        Parameters
        ----------
        merged
            All distinct rows.
        encoded, sample_weight
            Targets and weights of the rows of the table, of those of positive weight.
        places
            Where these are in the table.
        sphere
            The input map.
        seed
            Of the draws.
        """
        drawn = np.random.default_rng(seed).permutation(len(encoded))[:_ROWS]
        distinct, member = np.unique(merged.group[drawn], return_inverse=True)
        samples = len(merged.rows)
        deviations = sample_weight @ (encoded - merged.targets[merged.group]) ** 2 / sample_weight.sum()
        # Unbiased: each mean has followed one of its observations.
        within = deviations * len(encoded) / max(len(encoded) - samples, 1)
        rows = merged.rows[distinct]
        return cls(
            sphere(rows),
            merged.targets[distinct],
            merged.sample_weight[distinct],
            member.reshape(-1),
            places[drawn],
            encoded[drawn],
            sample_weight[drawn],
            within,
            samples,
            rows if rows.shape[1] < sphere.out_features else None,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name; `from_arrays` is the inverse. Where there are rows, inputs follow from them."""
        left_out = ("samples", "rows" if self.rows is None else "inputs")
        return {name: value for name, value in vars(self).items() if name not in left_out}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], samples: int, sphere: SphereMap) -> "TrainingSample":
        """Build the sample from its arrays, and the input map.

        Raises
        ------
        ValueError
            Arrays that do not belong together, or numbers that are not finite.
        """
        rows = arrays.get("rows")
        if rows is not None:
            columns = sphere.center.size - sphere.steps.columns.size
            if rows.ndim != 2 or rows.dtype != np.float64 or rows.shape[1] != columns or not np.isfinite(rows).all():
                raise ValueError(
                    f"the training rows must be finite numbers, float64, in {columns} columns, got {rows.shape}"
                )
            arrays = {**arrays, "inputs": sphere(rows)}
        names = [name for name in cls.__annotations__ if name not in ("samples", "rows")]
        made = cls(**{name: arrays[name] for name in names}, samples=samples, rows=rows)
        for name in ("inputs", "targets"):
            if getattr(made, name).ndim != 2:
                raise ValueError(f"{name} of the training rows must be a matrix, got shape {getattr(made, name).shape}")
        rows, outputs = made.targets.shape
        shapes = {
            "inputs": (rows, made.inputs.shape[1]),
            "sample_weight": (rows,),
            "place": (made.member.size,),
            "single": (made.member.size, outputs),
            "single_weight": (made.member.size,),
            "within": (outputs,),
        }
        for name, shape in shapes.items():
            array = getattr(made, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(
                    f"{name} of the training rows must be finite and have shape {shape}, got {array.shape}"
                )
        if made.place.size and made.place.min() < 0:
            raise ValueError("place of the training rows must be ≥ 0")
        if np.any((made.member < 0) | (made.member >= rows)) or samples < rows:
            raise ValueError(f"the training rows must be among {rows} distinct ones, those among {samples}")
        return made
