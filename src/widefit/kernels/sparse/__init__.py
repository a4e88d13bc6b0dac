"""Kernels of sparse rows and of weights laid out for products with them."""
