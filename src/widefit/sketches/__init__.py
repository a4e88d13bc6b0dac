"""Random subspace embeddings S: the geometry of P numbers in s. A sketch is one file here and one line below."""

from widefit.sketches.base import Sketch
from widefit.sketches.count_sketch import CountSketch
from widefit.sketches.gaussian import Gaussian
from widefit.sketches.srht import SRHT
from widefit.sketches.tensor import TensorSketch, TensorSRHT

__all__ = ["SRHT", "CountSketch", "Gaussian", "Sketch", "TensorSRHT", "TensorSketch"]
