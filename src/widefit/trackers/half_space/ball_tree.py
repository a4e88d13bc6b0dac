"""Balanced tree of balls that reports the points in a half-space, exactly."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from widefit.kernels.balls import ball_tree, half_space
from widefit.kernels.balls.ball_tree import Tree

# A leaf that has drifted by this share of its radius gets new keys: below, widening its ball costs less.
REKEY_SHARE = 0.25
# The tree is built anew when re-keyed leaves have grown by this share of all radii: points have left their neighbours.
_REBUILD_SHARE = 0.5


@dataclass(frozen=True)
class Movement:
    """Cost of following moved points.

    Attributes
    ----------
    rekeyed
        Points with new keys.
    rebuilt
        True when that came with a new tree.
    """

    rekeyed: int = 0
    rebuilt: bool = False


class BallTree:
    """Half-space reporting over N points, which may move (arXiv 2307.06565 and 2110.04622; the balls: this project).

    Median cuts along the widest coordinate, O(N d log N) to build; every node has the ball around its points. A query
    drops a node when ⟨q, c⟩ + (ρ + D) ‖q‖ ≤ b, takes it whole when ⟨q, c⟩ − (ρ + D) ‖q‖ > b, and looks at the points of
    the leaves that remain. D bounds how far the points of a node have moved from the keys that the ball was made for. A
    leaf with a large D gets the present points as its keys; when that has stretched the balls too much, the tree is
    built anew.

    Parameters
    ----------
    points
        Shape (N, d), N ≥ 1, float32 or float64.
    leaf_size
        Points of a leaf, at most, unless N has fewer leaves to give.
    moving
        Keep what `move` needs: a copy of the points.

    Attributes
    ----------
    tree
        The arrays, for the kernels.
    slots
        Shape (N,): slot of each point.
    """

    def __init__(self, points: Float[np.ndarray, "N d"], leaf_size: int, *, moving: bool = False):
        self._leaf_size = leaf_size
        self._moving = moving
        self._build(points)

    def _build(self, points: Float[np.ndarray, "N d"]) -> None:
        """Build the tree over points."""
        count, d = points.shape
        levels = min((max(1, -(-count // self._leaf_size)) - 1).bit_length(), count.bit_length() - 1)
        leaves = 1 << levels
        capacity = -(-count // leaves)
        info = np.finfo(points.dtype)
        # Twice and four times the rounding of a sum of d products and of the bounds themselves.
        limits = [2 * (d + 8) * float(info.eps), 4 * (d + 4) * float(info.tiny), float(info.max) / 4]
        self.tree = Tree(
            balls=np.empty((2 * leaves - 1, d + 3)),
            blocks=np.empty((leaves, d, capacity), points.dtype),
            members=np.empty((leaves, capacity), np.int32),
            sizes=np.empty(leaves, np.int32),
            limits=np.array(limits),
        )
        self.slots = np.empty(count, np.int32)
        order = np.arange(count, dtype=np.int32)
        ball_tree.split(points, levels, order)
        ball_tree.place(points, order, self.tree, self.slots)
        ball_tree.fit(self.tree)
        self.keys = self.tree.blocks.copy() if self._moving else np.empty((0, d, 0), points.dtype)
        self._spread = float(self.tree.balls[leaves - 1 :, d].sum())
        self._grown = 0.0

    @property
    def nbytes(self) -> int:
        """Memory of the tree."""
        return sum(array.nbytes for array in self.tree) + self.slots.nbytes + self.keys.nbytes

    @property
    def points(self) -> Float[np.ndarray, "N d"]:
        """A copy of the points where they are."""
        out = np.empty((self.slots.size, self.tree.blocks.shape[1]), self.tree.blocks.dtype)
        ball_tree.points_of(self.tree, out)
        return out

    def move(self, where: Int[np.ndarray, " q"], points: Float[np.ndarray, "q d"], *, keep: bool = True) -> Movement:
        """Move points; the tree must be a `moving` one.

        Parameters
        ----------
        where
            Which points, none twice.
        points
            Where they are now.
        keep
            False for points that will soon move again: no keys are written, bounds are only widened.
        """
        leaves = ball_tree.move(points, where, self.tree, self.slots)
        grown = np.zeros(1)
        rekeyed = ball_tree.settle(self.tree, self.keys, leaves, REKEY_SHARE if keep else np.inf, 0, grown)
        if self.stretched(grown) and keep:
            self.rebuild()
            return Movement(self.slots.size, True)
        return Movement(rekeyed)

    def stretched(self, grown: Float[np.ndarray, " parts"]) -> bool:
        """Add the growth of the radii of re-keyed leaves; return True when the tree should be built anew."""
        self._grown += float(grown.sum())
        # Points that are not finite stretch a ball beyond measure: once they are gone, so must the tree be.
        return self._spread == np.inf or not self._grown <= _REBUILD_SHARE * self._spread

    def rebuild(self) -> None:
        """Build the tree anew over the points where they are."""
        self._build(self.points)

    def report(
        self, queries: Float[np.ndarray, "q d"], threshold: np.floating
    ) -> tuple[Int[np.ndarray, " q_plus_one"], Int[np.ndarray, " answers"], int, int]:
        """Return start, slots, nodes visited and products computed; slots[start[i]:start[i + 1]] answer query i."""
        return half_space.report(queries, threshold, self.tree)

    def named(
        self, start: Int[np.ndarray, " q_plus_one"], slots: Int[np.ndarray, " answers"], first: int = 0
    ) -> list[Int[np.ndarray, " fired"]]:
        """Return the ascending indices of the points of every answer of `report`, plus `first`."""
        names = half_space.ascending(start, slots, self.tree.members, first, self.slots.size)
        return [names[low:high] for low, high in pairwise(start)]

    def query(self, queries: Float[np.ndarray, "q d"], threshold: np.floating) -> list[Int[np.ndarray, " fired"]]:
        """Return the ascending indices of the points with ⟨q, x⟩ > threshold, for every query."""
        start, slots, _, _ = self.report(queries, threshold)
        return self.named(start, slots)
