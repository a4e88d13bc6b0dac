"""What each parameter is measured in: damping that does not depend on the units of parameters and data."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# A scalar that moves the outputs by less than this part of the residual, when it changes by its own size, is measured
# by its own size.
_OWN_SIZE = 0.1


@dataclass(frozen=True)
class Scaling:
    """The diagonal matrix D of Levenberg-Marquardt steps: λ multiplies D².

    Marquardt (SIAM J. Appl. Math. 11, 1963) takes the norms of the columns of J, so that steps do not depend on units;
    Moré (The Levenberg-Marquardt algorithm: implementation and theory, 1978) the largest norms so far, so that a
    parameter that has lost its influence for a moment is not set free. On differential equations with tanh networks
    that halves the number of steps and more; forgetting old norms, even slowly, gives most of that away.

    A parameter that is one number has a size of its own as well. While it could change by all of that and hardly be
    felt, its column says nothing about how far to go: D is then at least a tenth of ‖r‖/|θ|, which keeps exponents
    from being thrown to where nothing depends on them (this project). Weights of layers have no such size.

    Attributes
    ----------
    largest
        The largest norms of the columns of J so far, shape (P,); None before the first step.
    scalars
        |θ| of parameters that are one number, 0 of all others, shape (P,).
    residual
        ‖r‖.
    metric
        √(rate / largest rate) of every parameter, shape (P,); None where the rates are one.
    plain
        Whether D is to be the identity, but for the rates.
    """

    largest: Float[Tensor, " P"] | None
    scalars: Float[Tensor, " P"]
    residual: float
    metric: Float[Tensor, " P"] | None = None
    plain: bool = False

    def norms(self, norms: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The largest norms of the columns so far, those at the present point among them."""
        return norms if self.largest is None else torch.maximum(norms, self.largest.to(norms))

    def sizes(self, norms: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """1/D for such norms: what each parameter is measured in."""
        sizes = torch.ones_like(norms)
        if not self.plain:
            scalars = self.scalars.to(norms)
            own = torch.where(scalars > 0, _OWN_SIZE * self.residual / scalars, 0.0)
            weights = torch.maximum(norms, own)
            # What has never moved an output is measured like what moves it most: a step leaves it alone.
            sizes = 1 / torch.where(weights > 0, weights, weights.max())
            sizes = torch.where(torch.isfinite(sizes), sizes, 1.0)
        return sizes if self.metric is None else sizes * self.metric
