"""H = Σ over layers of (Δ Δᵀ) ∘ (A Aᵀ) from sparse factors: what fires decides what is multiplied."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from widefit.gram.base import DenseGram
from widefit.linalg.sparse_rows import SparseRows


def sparse_khatri_rao(
    signals: Sequence[SparseRows], similarities: Sequence[Float[np.ndarray, "n n"]], threads: int = 1
) -> DenseGram:
    """H of layers whose rows of J are δ ⊗ h (arXiv 2112.07628), exactly, in float64; J is never formed.

    Parameters
    ----------
    signals
        Δ of every layer, n k rows: that of sample i and output c is row i k + c.
    similarities
        A Aᵀ of every layer, the inner products of its inputs, float64.
    threads
        Cores to use; the result does not depend on it.

    Returns
    -------
    H, (n k) × (n k): about p² m (n k)² / 2 additions a layer of m neurons that fire with probability p, and (n k)²
    products.

    Raises
    ------
    ValueError
        No layer, layers that do not belong together, or rows that are not a multiple of the samples.
    """
    if not signals or len(signals) != len(similarities):
        raise ValueError(f"there must be one similarity a layer, got {len(similarities)} for {len(signals)} layers")
    rows, samples = signals[0].rows, similarities[0].shape[0]
    if any(layer.rows != rows for layer in signals) or samples == 0 or rows % samples:
        raise ValueError(f"every layer must have n k signals for the {samples} samples of its similarity")
    total = np.zeros((rows, rows))
    outputs = rows // samples
    for layer, similarity in zip(signals, similarities, strict=True):
        products = layer.gram(threads)
        by_output = products.reshape(samples, outputs, samples, outputs)
        by_output *= similarity[:, None, :, None]
        total += products
    return DenseGram(torch.from_numpy(total))
