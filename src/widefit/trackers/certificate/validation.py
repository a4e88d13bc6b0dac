"""States of the certificate tracker that come from a file: their numbers are places in memory to its kernels."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from widefit.records import FileError, array
from widefit.trackers.validation import check_sums


def check_state(state: Mapping[str, np.ndarray], slots: int, samples: int, outputs: int) -> None:
    """Check what a run is resumed from.

    Parameters
    ----------
    state
        From `CertificateTracking.state`.
    slots
        Of all chunks.
    samples, outputs
        n and k.

    Raises
    ------
    FileError
        An array is absent, of another dtype or shape, or holds what is no sample or no count of them.
    """
    check_sums(state, samples, outputs, displaced=True)
    _check_collected(state, samples, outputs)
    _check_rows(state, slots, samples)


def check_delta(state: Mapping[str, np.ndarray]) -> None:
    """Check what `CertificateDelta.from_state` is made from, as far as it says itself what it belongs to.

    Raises
    ------
    FileError
        As `check_state`; spans of neurons that descend, or overlap; neurons outside their span.
    """
    inputs = array(state, "inputs", np.float64, (None, None))
    outputs = array(state, "scale", np.float64, (None,)).size
    spans = array(state, "spans", np.int64, (None, 4), least=0)
    sizes = spans[:, 3]
    slots = sum(sizes.tolist())
    if np.any(spans[:, 0] >= spans[:, 1]) or np.any(spans[1:, 0] < spans[:-1, 1]):
        raise FileError("'spans' must ascend without overlaps")
    if np.any(spans[:, 2] >= outputs) or np.any(sizes > spans[:, 1] - spans[:, 0]):
        raise FileError("'spans' has outputs or neurons that are not there")
    neurons = array(state, "neurons", np.int32, (slots,), least=0)
    array(state, "coefficients", np.float64, (slots,))
    edges = np.append(0, np.cumsum(sizes))
    for (low, high), length in zip(pairwise(edges.tolist()), spans[:, 1] - spans[:, 0], strict=True):
        own = neurons[low:high]
        if np.any(own[1:] <= own[:-1]) or np.any(own >= length):
            raise FileError("'neurons' must ascend within their span")
    _check_collected(state, len(inputs), outputs)
    _check_rows(state, slots, len(inputs))


def _check_collected(state: Mapping[str, np.ndarray], samples: int, outputs: int) -> None:
    array(state, "collected", np.float64, (outputs, samples))
    array(state, "scale", np.float64, (outputs,))


def _check_rows(state: Mapping[str, np.ndarray], slots: int, samples: int) -> None:
    """Fire rows and corrections, slot after slot."""
    counts = array(state, "counts", np.int32, (slots,), least=0, below=samples + 1)
    fired = array(state, "fired", np.int32, (int(counts.sum(dtype=np.int64)),), least=0, below=samples)
    begins = np.zeros(fired.size, np.bool_)
    edges = np.cumsum(counts, dtype=np.int64)[:-1]
    begins[edges[edges < fired.size]] = True
    if np.any((fired[1:] <= fired[:-1]) & ~begins[1:]):
        raise FileError("'fired' must ascend within every row")
    used = array(state, "corrections", np.int64, (slots,), least=0, below=samples + 1)
    entries = int(used.sum())
    array(state, "entry_sample", np.int32, (entries,), least=0, below=samples)
    array(state, "entry_value", np.float64, (entries,))
