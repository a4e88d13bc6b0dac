"""Random numbers for points, on the device and in the type that they are needed in."""

import torch
from jaxtyping import Float
from torch import Tensor


def uniform(*shape: int, like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1), in the type and on the device of a tensor.

    They are drawn where the generator is, without one on the processor: the same numbers whatever the device.
    """
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=device_of(generator)).to(like.device)


def normal(*shape: int, like: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Numbers of the standard normal distribution, likewise."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device_of(generator)).to(like.device)


def device_of(generator: torch.Generator | None) -> torch.device:
    """The device on which a generator draws; None: torch's own on the processor."""
    return torch.device("cpu") if generator is None else generator.device


def check_count(count: int) -> None:
    """Refuse fewer than one point."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
