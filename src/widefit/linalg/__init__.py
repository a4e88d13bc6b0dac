"""Linear algebra that PyTorch lacks: sparse rows, packed tiles, low rank, Gaussian rows drawn anywhere."""
