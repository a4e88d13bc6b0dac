"""Tracker of Verlet lists: a neuron that has not moved far fires on no sample but those near it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.nn import TwoLayer
from widefit.trackers.base import Tracker
from widefit.trackers.cost import Cost, Workload
from widefit.trackers.verlet import cost as verlet_cost
from widefit.trackers.verlet.tracking import VerletListTracking


@dataclass(frozen=True)
class VerletList(Tracker):
    """Lists of near pairs with a skin (of atoms: Verlet, Phys. Rev. 159, 98, 1967; of pairs: this project).

    A neuron within its skin R_r of where its list was made, ‖w_r − w̃_r‖ ≤ R_r, fires on no samples but those with
    ⟨w̃_r, x_i⟩ > b − R_r ‖x_i‖, which are listed. A step moves the weights and evaluates the listed pairs; a neuron
    that has left its skin is evaluated as a whole, 2 n d operations. So a step costs 2 d (firing + listed) operations
    a neuron, and reads the weights, where a dense one costs 2 n d.

    Short steps that resemble each other, as those of gradient descent, are taken in sample space, many between two
    looks at the weights (of molecules: Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1990, 1992): a look lists the
    pairs that the next ones can take to the threshold, and those alone are evaluated, with k_r operations each; f
    follows from H, n² operations. Weights are float64 for that, and are written to the network in the end.

    A wide skin lasts long, and its list is long. With a speed v_r, and ρ pairs a unit of distance next to the
    threshold, R_r = √(price n v_r / ρ) takes the least time. Skins change what a run costs, never a bit of what it
    finds. Memory: the weights three times in float64, the lists, and n² numbers; with a ridge, which has no such steps,
    the weights twice more, and the lists. Minibatches go by the lists as well (`widefit.trackers.verlet.epochs`), in
    the dtype of the network: which neurons have left their skins shows in the rounding of those steps.

    Parameters
    ----------
    price
        Cost of a pair of a neuron that has left its skin, in evaluations of a listed pair. The default is below the
        measured cost, half of one: speeds fall.
    """

    price: float = 0.1
    name: str = "verlet-list"

    @property
    def accepts_new_points(self) -> bool:
        return True

    @property
    def trains_readout(self) -> bool:
        return True

    def cost(self, work: Workload) -> Cost:
        return verlet_cost.cost(work)

    def start(
        self,
        network: TwoLayer,
        inputs: Float[np.ndarray, "n d"],
        *,
        anchor: Float[np.ndarray, "m d"] | None = None,
        threads: int = 1,
        state: dict[str, np.ndarray] | None = None,
        expected: Float[np.ndarray, "n k"] | None = None,
    ) -> "VerletListTracking":
        return VerletListTracking(network, inputs, anchor, threads, self.price, state)
