"""Records that come from files: plain values and arrays, checked against the types and shapes declared for them."""

from widefit.records.arrays import array, offsets
from widefit.records.plain import FileError, read

__all__ = ["FileError", "array", "offsets", "read"]
