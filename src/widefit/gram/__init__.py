"""H = J Jᵀ as an operator: formed from structure, or applied without being formed."""

from widefit.gram.base import DenseGram, Operator
from widefit.gram.co_firing import CoFiringGram, co_firing
from widefit.gram.coupled import CoupledGram
from widefit.gram.current import CurrentGrams, similarity
from widefit.gram.fire_lists import FireListGram, FireListGrams
from widefit.gram.fired_rows import Samples
from widefit.gram.identical_blocks import IdenticalBlocks
from widefit.gram.implicit import ImplicitGram
from widefit.gram.jacobian import JacobianGram
from widefit.gram.layer_rows import LayerRows
from widefit.gram.masks import MaskGram, MaskGrams
from widefit.gram.summed import SummedCurrentGrams, SummedFireLists
from widefit.gram.weighted import WeightedGram, block_times

__all__ = [
    "CoFiringGram",
    "CoupledGram",
    "CurrentGrams",
    "DenseGram",
    "FireListGram",
    "FireListGrams",
    "IdenticalBlocks",
    "ImplicitGram",
    "JacobianGram",
    "LayerRows",
    "MaskGram",
    "MaskGrams",
    "Operator",
    "Samples",
    "SummedCurrentGrams",
    "SummedFireLists",
    "WeightedGram",
    "block_times",
    "co_firing",
    "similarity",
]
