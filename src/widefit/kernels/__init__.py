"""The hot loops: arrays in, arrays out, no classes. `cpu` is Numba; importing it compiles nothing."""
