"""Bytes of tensors, to write or to compare."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def contents(tensor: Tensor) -> memoryview:
    """Return the numbers of a tensor as bytes, in the order of its indices; a copy where they do not lie so."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() <= 1:  # a single number may have any stride
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a hexadecimal hash of types, shapes and contents, the same in every process."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(contents(tensor))
    return found.hexdigest()
