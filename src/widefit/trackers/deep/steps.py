"""Displacement W − W₀ of a deep network as a sum of sparse factors: nothing of the size of W is kept."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from widefit.linalg.sparse_rows import SparseRows
from widefit.nn.deep import Deep
from widefit.records import array

# Arrays of sparse rows.
_PARTS = ("start", "index", "value")


@dataclass(frozen=True)
class DeepStep:
    """Term of W − W₀: scale · U_lᵀ V_l in every layer.

    Attributes
    ----------
    scale
        Part of it that later pulls towards W₀ have left.
    U
        Sparse n × m_l, layer by layer, without the factors of `Deep.input_factor` and `Deep.hidden_factor`.
    V
        h_1, …, h_{L−1} when the step was taken; beside them every layer sees X.
    """

    scale: float
    U: tuple[SparseRows, ...]
    V: tuple[SparseRows, ...]


@dataclass(frozen=True)
class StepSum:
    """Displacement W − W₀: the steps taken, of which one is left whenever an update goes all the way back to W₀.

    Attributes
    ----------
    steps
        The terms.
    squared_norm
        ‖W − W₀‖².
    """

    steps: tuple[DeepStep, ...] = ()
    squared_norm: float = 0.0

    def after(
        self,
        new: DeepStep,
        shrink: float,
        g: Float[np.ndarray, " nk"],
        response: Float[np.ndarray, " nk"],
        image: Float[np.ndarray, " nk"],
    ) -> "StepSum":
        """Return W − W₀ after the step W ← W − shrink (W − W₀) − Jᵀ g.

        Parameters
        ----------
        new
            −Jᵀ g.
        shrink, g
            The step.
        response
            J (W − W₀).
        image
            H g.
        """
        left = [replace(step, scale=(1 - shrink) * step.scale) for step in self.steps if shrink != 1]
        # ‖(1 − shrink) (W − W₀) − Jᵀ g‖², expanded in sample space.
        squared_norm = (1 - shrink) ** 2 * self.squared_norm - 2 * (1 - shrink) * float(g @ response)
        return StepSum((*left, new), max(0.0, squared_norm + float(g @ image)))

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for step in self.steps for rows in (*step.U, *step.V))

    def state(self) -> dict[str, np.ndarray]:
        """Return it as arrays; `restored` is the inverse."""
        found = {"squared_norm": np.array(self.squared_norm), "scales": np.array([step.scale for step in self.steps])}
        for number, step in enumerate(self.steps):
            for side, layers in (("U", step.U), ("V", step.V)):
                for layer, rows in enumerate(layers):
                    for name in _PARTS:
                        found[f"{number}.{side}.{layer}.{name}"] = getattr(rows, name)
        return found

    @classmethod
    def restored(cls, network: Deep, samples: int, state: dict[str, np.ndarray]) -> "StepSum":
        """Return what `state` gave in an earlier run over so many samples.

        Raises
        ------
        FileError
            A state that is not one of such a run.
        """
        if not state:
            return cls()
        sizes = network.hidden_layer_sizes
        scales = array(state, "scales", np.float64, (None,))
        squared_norm = array(state, "squared_norm", np.float64, ())

        def rows(number: int, side: str, layer: int) -> SparseRows:
            return SparseRows.read(state, f"{number}.{side}.{layer}.", samples, sizes[layer])

        steps = tuple(
            DeepStep(
                float(scale),
                tuple(rows(number, "U", layer) for layer in range(len(sizes))),
                tuple(rows(number, "V", layer) for layer in range(len(sizes) - 1)),
            )
            for number, scale in enumerate(scales)
        )
        return cls(steps, float(squared_norm))
