"""Hot loops in Numba: arrays in, arrays out, no classes. Importing a kernel compiles nothing."""

from widefit.kernels.cache_folder import ensure as _ensure_cache_folder

_ensure_cache_folder()
