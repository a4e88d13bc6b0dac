"""Numbers that the host has to know: one transfer for all of them, as a device is waited for once."""

import torch
from jaxtyping import Shaped
from torch import Tensor

# Iterations on a device between two looks at how far they are: looks that wait cost more than iterations too many.
_AHEAD = 8


def numbers(*scalars: Shaped[Tensor, ""]) -> list[float]:
    """Return single numbers of one device, exactly as far as float64 holds them; flags are 0 and 1."""
    return torch.stack([scalar.detach().to(torch.float64) for scalar in scalars]).tolist()


def iterations_ahead(device: torch.device, done: int = 0) -> int:
    """Return the iterations after which a loop that has done so many looks at how far it is: each on the host."""
    return 1 if device.type == "cpu" else max(_AHEAD, done // 4)
