"""Hot loops in Numba: arrays in, arrays out, no classes. Importing a kernel compiles nothing."""
