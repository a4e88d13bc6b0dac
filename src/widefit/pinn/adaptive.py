"""Points where the residual of a network is large."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from widefit.pinn.drawing import uniform


def adaptive(
    function: Callable[..., Tensor],
    network: nn.Module,
    candidates: Float[Tensor, "N d"],
    count: int,
    power: float = 1.0,
    share: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n d"]:
    """Draw some of the candidates, the more likely the larger the residual is there.

    Probabilities are proportional to |r|ᵏ / mean |r|ᵏ + c (Wu, Zhu, Tan, Kartha and Lu, Comput. Methods Appl. Mech.
    Eng. 403, 2023). Draw anew every so many steps; a third or more of the points drawn evenly keeps the rest covered.

    Parameters
    ----------
    function
        `function(network, point)` for ONE point, as for `widefit.Residual`.
    network
        The network as it is now.
    candidates
        Many points, from `box` or a shape, shape (N, d).
    count
        n, at most N; no candidate is drawn twice.
    power
        k, larger: closer to where the residual is largest.
    share
        c, larger: closer to even.
    generator
        Draws them; None: torch's own.

    Raises
    ------
    ValueError
        More points than candidates, a negative power or share, a residual that is not finite.
    """
    if not 1 <= count <= len(candidates):
        raise ValueError(f"count must be 1 … {len(candidates)}, the number of candidates, got {count}")
    if not (power >= 0 and share >= 0):
        raise ValueError(f"power and share must be at least 0, got {power} and {share}")
    with torch.no_grad():
        residuals = vmap(lambda point: function(network, point).reshape(-1))(candidates)
    sizes = torch.linalg.vector_norm(residuals.double(), dim=1)
    if not bool(torch.isfinite(sizes).all()):
        raise ValueError(f"the residual is not finite at {int((~torch.isfinite(sizes)).sum())} of the candidates")
    # Scaled by the largest, so that no power overflows.
    weights = (sizes / sizes.max().clamp(min=torch.finfo(sizes.dtype).tiny)) ** power
    weights = weights / weights.mean().clamp(min=torch.finfo(sizes.dtype).tiny) + share
    # Drawing without replacement: the largest of log w + Gumbel noise.
    noise = uniform(len(weights), like=weights, generator=generator).log().neg().log().neg()
    return candidates[(weights.log() + noise).topk(count).indices]
