"""Search trees over pre-activations (arXiv 2208.04508, 2211.14227)."""
