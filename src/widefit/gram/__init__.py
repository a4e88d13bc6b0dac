"""H = J Jᵀ as an operator: formed from structure, or applied without being formed."""

from widefit.gram.base import DenseGram, GramOperator
from widefit.gram.co_firing import co_firing

__all__ = ["DenseGram", "GramOperator", "co_firing"]
