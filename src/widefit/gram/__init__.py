"""H = J Jᵀ as an operator: formed from structure, or applied without being formed."""

from widefit.gram.base import DenseGram, GramOperator
from widefit.gram.co_firing import CoFiringGram, co_firing
from widefit.gram.coupled import CoupledGram
from widefit.gram.current import CurrentGrams, similarity
from widefit.gram.outer import OuterGram, OuterLayer
from widefit.gram.sparse_layers import sparse_khatri_rao
from widefit.gram.weighted import WeightedGram, block_times

__all__ = [
    "CoFiringGram",
    "CoupledGram",
    "CurrentGrams",
    "DenseGram",
    "GramOperator",
    "OuterGram",
    "OuterLayer",
    "WeightedGram",
    "block_times",
    "co_firing",
    "similarity",
    "sparse_khatri_rao",
]
