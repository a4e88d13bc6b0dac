"""H = J Jᵀ as an operator: formed from structure, or applied without being formed."""

from widefit.gram.base import DenseGram, GramOperator

__all__ = ["DenseGram", "GramOperator"]
