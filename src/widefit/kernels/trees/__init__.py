"""Kernels of max-trees over pre-activations."""
