"""Reference solutions of periodic equations u_t = L u + N(u) by Fourier series in space and Runge-Kutta in time.

The linear part is integrated exactly, by its integrating factor; the nonlinear one by the classical fourth-order
method, with the highest third of the modes set to 0 against aliasing.
"""

from collections.abc import Callable

import numpy as np

Field = np.ndarray


class Reference:
    """A solution on a grid of x ∈ [−1, 1) and of evenly spaced times in [0, 1].

    Parameters
    ----------
    start
        u(x, 0).
    linear
        Symbol of L at the wave numbers k.
    nonlinear
        Transform of N(u) from the transform of u and k.
    modes
        Points in space.
    steps
        Steps in time, a multiple of `times`.
    times
        Intervals between times that are kept.
    """

    def __init__(
        self,
        start: Callable[[Field], Field],
        linear: Callable[[Field], Field],
        nonlinear: Callable[[Field, Field], Field],
        modes: int = 512,
        steps: int = 4000,
        times: int = 100,
    ):
        self.x = -1 + 2 * np.arange(modes) / modes
        self.t = np.linspace(0, 1, times + 1)
        k = np.pi * np.fft.rfftfreq(modes, 1 / modes)
        kept = k < np.pi * modes / 3
        step = 1 / steps
        whole, half = np.exp(step * linear(k)), np.exp(0.5 * step * linear(k))

        def rate(u: Field) -> Field:
            return kept * nonlinear(u, k)

        u = np.fft.rfft(start(self.x))
        found = [u]
        for number in range(1, steps + 1):
            a = rate(u)
            b = rate(half * (u + 0.5 * step * a))
            c = rate(half * u + 0.5 * step * b)
            d = rate(whole * u + step * half * c)
            u = whole * u + step / 6 * (whole * a + 2 * half * (b + c) + d)
            if number % (steps // times) == 0:
                found.append(u)
        self.values = np.fft.irfft(np.array(found), modes, axis=1)  # (times + 1, modes)


def burgers(viscosity: float = 0.01, modes: int = 1024, steps: int = 8000) -> Reference:
    """u_t + u u_x = ν u_xx, u₀ = −sin πx."""
    return Reference(
        lambda x: -np.sin(np.pi * x),
        lambda k: -viscosity * k**2,
        lambda u, k: -0.5j * k * np.fft.rfft(np.fft.irfft(u) ** 2),
        modes,
        steps,
    )


def korteweg_de_vries(dispersion: float = 0.0025, modes: int = 256, steps: int = 10000) -> Reference:
    """u_t + u u_x + δ u_xxx = 0, u₀ = cos πx."""
    return Reference(
        lambda x: np.cos(np.pi * x),
        lambda k: 1j * dispersion * k**3,
        lambda u, k: -0.5j * k * np.fft.rfft(np.fft.irfft(u) ** 2),
        modes,
        steps,
    )


def allen_cahn(diffusion: float = 1e-4, rate: float = 5.0, modes: int = 2048, steps: int = 4000) -> Reference:
    """u_t = ε u_xx + k (u − u³), u₀ = x² cos πx."""

    def reaction(u: Field, _: Field) -> Field:
        values = np.fft.irfft(u)
        return np.fft.rfft(rate * (values - values**3))

    return Reference(lambda x: x**2 * np.cos(np.pi * x), lambda k: -diffusion * k**2, reaction, modes, steps)
