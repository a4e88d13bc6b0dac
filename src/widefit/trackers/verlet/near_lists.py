"""Verlet lists of a block: the samples that each neuron can fire on while it has not moved far."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from widefit.kernels.trees.steps import pack_rows
from widefit.kernels.verlet import near_lists as kernels
from widefit.trackers.fire_pattern import Chunk, FirePattern, word_dtype

# A skin is too wide, and its list made anew, where it is the best one of so many times the speed.
_WIDE = 4.0


@dataclass(frozen=True)
class Lists:
    """Lists and skins of a block (see `widefit.kernels.verlet.near_lists`).

    Attributes
    ----------
    start, samples, fires
        The samples that a neuron can fire on while it is within its skin, and whether it does.
    path
        Largest distance of a neuron from where its list was made.
    skin
        Distance from there that its list is good for.
    made
        Step at which it was made.
    """

    start: Int[np.ndarray, " rows_plus_one"]
    samples: Integer[np.ndarray, " listed"]
    fires: Bool[np.ndarray, " listed"]
    path: Float[np.ndarray, " rows"]
    skin: Float[np.ndarray, " rows"]
    made: Float[np.ndarray, " rows"]

    @classmethod
    def none(cls, rows: int, samples: int) -> "Lists":
        """Return empty lists."""
        listed = np.empty(0, word_dtype(samples))
        return cls(np.zeros(rows + 1, np.int64), listed, np.empty(0, np.bool_), *np.zeros((3, rows)))

    @property
    def entries(self) -> kernels.ListedPairs:
        """The lists, for the kernels."""
        return kernels.ListedPairs(self.start, self.samples, self.fires)

    @property
    def skins(self) -> kernels.RowSkins:
        """The skins, for the kernels."""
        return kernels.RowSkins(self.path, self.skin, self.made)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (*self.entries, *self.skins))

    def flips(self, after: "Lists", leaving: Int[np.ndarray, " q"], samples: int) -> int:
        """Count the pairs that change from these lists to later ones, in which those of some neurons were made anew."""
        if leaving.size == 0:
            return int(np.count_nonzero(self.fires != after.fires))
        return int(kernels.count_flips(self.entries, after.entries, leaving, samples))

    def pattern(self, chunk: Chunk, samples: int) -> FirePattern:
        """Return who fires."""
        fired = np.append(0, np.cumsum(self.fires))[self.start]
        rows = np.arange(chunk.last - chunk.first)
        packed = pack_rows(rows, fired, self.samples[self.fires].astype(np.int32), samples, 0, rows.size)
        return FirePattern(chunk, samples, *packed)


@dataclass(frozen=True)
class Skins:
    """Skins of lists, and how lists are made.

    Attributes
    ----------
    inputs
        X.
    norms
        ‖x_i‖, rounded up.
    threshold
        b, in the dtype of X.
    scale
        R_r = √(scale · speed) is the best skin.
    """

    inputs: Float[np.ndarray, "n d"]
    norms: Float[np.ndarray, " n"]
    threshold: np.floating
    scale: float

    @classmethod
    def over(cls, inputs: Float[np.ndarray, "n d"], threshold: np.floating) -> "Skins":
        """Return the narrowest skins over samples."""
        norms = np.linalg.norm(inputs.astype(np.float64), axis=1) * (1 + 1e-6)
        return cls(inputs, norms.astype(inputs.dtype), threshold, 0.0)

    def scaled(self, scale: float) -> "Skins":
        """Return skins of another scale."""
        return replace(self, scale=scale)

    def leaving(
        self,
        lists: Lists,
        weights: Float[np.ndarray, "rows d"],
        moved: Float[np.ndarray, "rows d"],
        reference: Float[np.ndarray, "rows d"],
        step: int,
        reach: Float[np.ndarray, " rows"],
    ) -> tuple[Lists, Int[np.ndarray, " q"]]:
        """Return the lists with the path after a step, and the neurons whose list has to be made anew."""
        path = np.empty(lists.path.size)
        leaving = np.empty(lists.path.size, np.int64)
        count = kernels.leave(weights, moved, reference, lists.skins, step, self.scale, _WIDE, reach, path, leaving)
        return replace(lists, path=path), leaving[:count]

    def best(self, lists: Lists, leaving: Int[np.ndarray, " q"], step: int) -> Float[np.ndarray, " q"]:
        """Return skins for the speed of neurons since their lists were made; 0 where they would not last a step."""
        speed = lists.path[leaving] / (step - lists.made[leaving])
        skin = np.sqrt(self.scale * speed)
        return np.where(skin < speed, 0.0, skin)

    def renewed(
        self,
        lists: Lists,
        leaving: Int[np.ndarray, " q"],
        weights: Float[np.ndarray, "rows d"],
        skin: Float[np.ndarray, " q"],
        step: int,
    ) -> Lists:
        """Return lists in which those of some neurons are made anew, at given weights; who fires is left open."""
        if leaving.size == 0:
            return replace(lists, fires=np.empty_like(lists.fires))
        own = weights[leaving]
        z = own @ self.inputs.T
        unit = float(np.finfo(z.dtype).eps)
        # Beyond the skin: what rounding can do to a product, here and in kernels.
        reach = skin + 2 * unit * self.inputs.shape[1] * np.linalg.norm(own, axis=1)
        floor = self.threshold - 4 * unit * abs(self.threshold)
        lowest = np.empty((leaving.size, 2), z.dtype)
        lowest[:, 0] = floor
        lowest[:, 1] = reach * (1 + 4 * unit)
        counts = np.empty(leaving.size, np.int64)
        kernels.count_near(z, lowest, self.norms, counts)
        size = lists.samples.size - int(np.diff(lists.start)[leaving].sum()) + int(counts.sum())
        start = np.empty_like(lists.start)
        samples = np.empty(size + 1, lists.samples.dtype)
        kernels.relist(lists.start, lists.samples, leaving, z, lowest, self.norms, start, samples)
        path, skins, made = (array.copy() for array in lists.skins)
        path[leaving] = 0.0
        skins[leaving] = skin
        made[leaving] = step
        return Lists(start, samples[:size], np.empty(size, np.bool_), path, skins, made)
