"""H = J Jᵀ as an operator: formed from structure, or applied without being formed."""

from widefit.gram.base import DenseGram, GramOperator
from widefit.gram.co_firing import CoFiringGram, co_firing
from widefit.gram.current import CurrentGrams
from widefit.gram.sparse_layers import sparse_khatri_rao

__all__ = ["CoFiringGram", "CurrentGrams", "DenseGram", "GramOperator", "co_firing", "sparse_khatri_rao"]
