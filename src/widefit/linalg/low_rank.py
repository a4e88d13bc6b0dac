"""Linear layer that changes by low rank: W = W₀ + U Vᵀ, with W₀ left alone until touching it pays."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from widefit.linalg import dense_blocks
from widefit.linalg.gaussian_rows import gaussian_rows
from widefit.linalg.low_rank_factors import PASS, DenseFactors, SparseFactors
from widefit.linalg.packed import Packed
from widefit.linalg.sparse_rows import SparseRows


class LowRankLinear(nn.Module):
    """Layer z = (W₀ + U Vᵀ) h with the lazy low-rank maintenance of arXiv 2112.07628.

    A step of training appends columns to U and V; W₀ is touched when folding them in costs less than what queries have
    paid for carrying them: whatever is still to come, that is at most twice the cheapest course. `fold_rank` forces a
    threshold instead.

    Products with sparse inputs read W₀ from a packed layout, made at the first of them, unless more than an eighth of
    the inputs is active: then dense products are faster. Sparse factors with few active inputs a column go into that
    layout at once, which costs less than carrying them, while `weight` waits for the fold: so the last append can
    always be taken back to the bit, and `weight` is written once for many appends.

    Parameters
    ----------
    in_features, out_features
        Sizes of W₀, out_features × in_features.
    seed
        W₀ has independent standard normal entries that belong to it.
    dtype
        torch.float32 or torch.float64.
    fold_rank
        Fold as soon as the rank reaches this; None: when it pays.
    density
        Part of the inputs assumed to be active, which decides between dense and packed products; None: as observed.

    Attributes
    ----------
    weight
        W₀.
    rank
        Columns of U and V that are not folded in.

    Raises
    ------
    ValueError
        A size or a fold_rank below 1, another dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        fold_rank: int | None = None,
        density: float | None = None,
    ):
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        rows = torch.from_numpy(gaussian_rows(seed, 0, out_features, in_features)).to(dtype)
        self._start(rows, fold_rank, density)

    def _start(self, weight: Float[Tensor, "outputs inputs"], fold_rank: int | None, density: float | None) -> None:
        if fold_rank is not None and fold_rank < 1:
            raise ValueError(f"fold_rank must be at least 1 or None, got {fold_rank}")
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.fold_rank = fold_rank
        self.density = density
        self.weight = nn.Parameter(weight)
        self._pending: list[DenseFactors | SparseFactors] = []
        self._spent = 0.0
        self._packed: Packed | None = None
        # W₀ before the last append, where that went into it at once.
        self._before: Tensor | None = None
        # Number of pending factors that the packed layout holds already.
        self._ahead = 0

    @classmethod
    def from_weight(
        cls, weight: Float[Tensor, "outputs inputs"], fold_rank: int | None = None, density: float | None = None
    ) -> "LowRankLinear":
        """Return the layer with a given W₀, which it takes over."""
        layer = cls.__new__(cls)
        layer._start(weight.detach().contiguous(), fold_rank, density)
        return layer

    @property
    def rank(self) -> int:
        return sum(factor.rank for factor in self._pending)

    def append(
        self,
        U: Float[Tensor, "outputs r"] | SparseRows,
        V: Float[Tensor, "inputs r"] | SparseRows,
        threads: int = 1,
        *,
        at_once: bool = False,
    ) -> None:
        """Add U Vᵀ to W.

        Parameters
        ----------
        U, V
            Dense, shapes (out_features, r) and (in_features, r); or both sparse with r rows, a column of U or V each.
        threads
            Cores to use; no result depends on it.
        at_once
            Carry no sparse factors, whatever it costs: products are those of the folded layer, to the bit.

        Raises
        ------
        ValueError
            Shapes that do not fit the layer, or one factor sparse and the other dense.
        """
        factor = self._factor(U, V)
        if isinstance(factor, SparseFactors) and (self._prefers_dense(factor.V) or (at_once and self._packed is None)):
            self.fold(threads)
            self._before = self.weight.detach().clone()
            dense_blocks.add(self.weight.detach().numpy(), factor.U.dense().T, factor.V.dense().T, threads)
            return
        if self._fold_is_due(factor.rank):
            self.fold(threads)
        self._before = None
        self._pending.append(factor)
        follows = self._packed is not None and self._ahead == len(self._pending) - 1
        if follows and isinstance(factor, SparseFactors):
            assert self._packed is not None
            if at_once or factor.fold_cost() <= factor.query_cost(factor.rank, factor.V.density):
                self._packed.add(factor.U, factor.V, threads)
                self._ahead += 1

    def _fold_is_due(self, more: int) -> bool:
        """Return True where folding now pays, before so many columns more."""
        if not self._pending:
            return False
        if self.fold_rank is not None:
            return self.rank + more > self.fold_rank
        carried = self._pending[self._ahead :]
        if carried:
            return self._spent >= sum(factor.fold_cost() for factor in carried)
        # What the packed layout holds costs memory alone.
        return sum(factor.nbytes for factor in self._pending) > self.weight.nbytes

    def _factor(self, U: Tensor | SparseRows, V: Tensor | SparseRows) -> DenseFactors | SparseFactors:
        """Return U Vᵀ, checked against the sizes of the layer."""
        if isinstance(U, SparseRows) and isinstance(V, SparseRows):
            same = U.rows == V.rows and (U.columns, V.columns) == (self.out_features, self.in_features)
            factor = SparseFactors(U, V)
        elif isinstance(U, Tensor) and isinstance(V, Tensor):
            U = U.detach().to(self.weight.dtype)
            V = V.detach().to(self.weight.dtype)
            same = U.ndim == V.ndim == 2 and U.shape[1] == V.shape[1]
            same = same and (len(U), len(V)) == (self.out_features, self.in_features)
            factor = DenseFactors(U, V)
        else:
            raise ValueError("U and V must both be tensors or both be sparse rows")
        if not same:
            raise ValueError(
                f"U and V must be {self.out_features} × r and {self.in_features} × r with the same r for this layer"
            )
        return factor

    def undo(self, threads: int = 1) -> None:
        """Undo the last append, to the bit.

        Raises
        ------
        ValueError
            Nothing was appended since the last fold.
        """
        if self._before is not None:
            self.weight.detach().copy_(self._before)
            if self._packed is not None:
                self._packed.pack(self.weight.detach().numpy(), threads)
            self._before = None
            return
        if not self._pending:
            raise ValueError("nothing to undo: no factors were appended since the last fold")
        self._pending.pop()
        if self._ahead > len(self._pending):
            assert self._packed is not None
            weight = self.weight.detach()
            for factor in self._pending:
                factor.add_to(weight, threads)
            self._packed.pack(weight.numpy(), threads)
            self._forget_pending()

    def fold(self, threads: int = 1) -> None:
        """Add U Vᵀ to W₀; U and V become empty."""
        weight = self.weight.detach()
        packed = self._packed
        whole = sum(factor.fold_cost() for factor in self._pending) > PASS * weight.numel()
        if packed is not None and self._ahead == len(self._pending) and whole:
            packed.unpack(weight.numpy(), threads)
            self._forget_pending()
        stale = False
        for number, factor in enumerate(self._pending):
            factor.add_to(weight, threads)
            if packed is not None and number >= self._ahead:
                if isinstance(factor, SparseFactors) and not stale:
                    packed.add(factor.U, factor.V, threads)
                else:
                    stale = True
        if packed is not None and stale:
            packed.pack(weight.numpy(), threads)
        self._forget_pending()
        self._spent = 0.0
        self._before = None

    def _forget_pending(self) -> None:
        """Drop factors that the weights hold."""
        self._pending = []
        self._ahead = 0

    def materialize(self) -> Float[Tensor, "outputs inputs"]:
        """Return W = W₀ + U Vᵀ, a fresh tensor."""
        weight = self.weight.detach().clone()
        for factor in self._pending:
            factor.add_to(weight, 1)
        return weight

    def forward(self, h: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        """Return h Wᵀ, computed in the dtype of h."""
        z = h @ self.weight.to(h.dtype).T
        for factor in self._pending:
            z = z + factor.apply(h)
        self._spent += sum(factor.query_cost(len(h), 1.0) for factor in self._pending)
        return z

    def query(self, rows: SparseRows, threads: int = 1) -> Float[np.ndarray, "n outputs"]:
        """Return A Wᵀ for sparse rows A (n × in_features), in the dtype of W₀, from columns of active inputs alone."""
        if rows.columns != self.in_features:
            raise ValueError(f"rows must have {self.in_features} columns, got {rows.columns}")
        if self._prefers_dense(rows):
            self._spent += sum(factor.query_cost(rows.rows, rows.density) for factor in self._pending)
            factors = [
                (factor.U.numpy(), factor.V.numpy()) for factor in self._pending if isinstance(factor, DenseFactors)
            ]
            return dense_blocks.products(rows, self.weight.detach().numpy(), factors, threads)
        packed = self._packed_layout(threads)
        z = np.zeros((rows.rows, self.out_features), packed.tiles.dtype)
        packed.add_products(rows, z, threads)
        for factor in self._pending[self._ahead :]:
            factor.add_query(rows, z, threads)
            self._spent += factor.query_cost(rows.rows, rows.density)
        return z

    def pull_back(
        self, above: SparseRows, signals: Float[np.ndarray, "active k"], below: SparseRows, threads: int = 1
    ) -> Float[np.ndarray, "entries k"]:
        """Return D_c W for k matrices D_c of signals, where `below` (n × in_features) has entries.

        Only active outputs and active inputs are touched: k Σ_i |above_i| |below_i| products. Folds in what the packed
        layout does not hold.

        Parameters
        ----------
        above
            Pattern of all D_c, n × out_features.
        signals
            D_c at the entries of `above`, column by column.
        below
            Pattern of the entries to compute.
        threads
            Cores to use; no result depends on it.
        """
        if (above.rows, above.columns, below.columns) != (below.rows, self.out_features, self.in_features):
            raise ValueError(
                f"above and below must be n × {self.out_features} and n × {self.in_features} with the same n"
            )
        if self._prefers_dense(below):
            self.fold(threads)
            return dense_blocks.pull_back(above, signals, below, self.weight.detach().numpy(), threads)
        packed = self._packed_layout(threads)
        if self._ahead < len(self._pending):
            self.fold(threads)
        return packed.pull_back(above, signals, below, threads)

    def _prefers_dense(self, rows: SparseRows) -> bool:
        """Return True where dense blocks multiply faster; once there is a packed layout, it is kept to."""
        carried = all(isinstance(factor, DenseFactors) for factor in self._pending)
        density = rows.density if self.density is None else self.density
        return self._packed is None and carried and density > dense_blocks.DENSE

    def _packed_layout(self, threads: int) -> Packed:
        if self._packed is None:
            # Of W₀: what is pending goes on being carried, and can be taken back.
            self._packed = Packed(self.weight.detach().numpy(), threads)
        return self._packed

    @property
    def held_bytes(self) -> int:
        """Memory beside W₀."""
        return 0 if self._packed is None else self._packed.nbytes

    def release(self, threads: int = 1) -> None:
        """Fold, and give up the packed layout; the next sparse query makes it again."""
        self.fold(threads)
        self._packed = None

    def _apply(self, fn, recurse=True):
        # What is pending or packed would stay where it is.
        self.release()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        # A state dict holds W, so that it loads into any layer of this shape.
        self.fold()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments, **options):
        self._forget_pending()
        self._spent = 0.0
        self._packed = None
        self._before = None
        super()._load_from_state_dict(*arguments, **options)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"
