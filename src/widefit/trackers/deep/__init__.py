"""Sparse activations of deep networks, layer by layer (arXiv 2112.07628)."""
