"""The sizes that decide what it takes to follow a training, and what a tracker makes of them."""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float

from widefit.nn import TwoLayer
from widefit.nn.shifted_relu import firing_probability

# Measured on one core (AMD Zen 4): products a second, and seconds to scan a pre-activation.
FLOPS = 1e11
SCAN = 2.3e-9
# Trackers agree but for rounding, and rounding grows over a run. What is chosen may therefore depend on the problem
# alone: seconds are those of so many threads, whatever the machine has.
REFERENCE_THREADS = 2


class Steps(Enum):
    """The steps of a rule, as far as they decide what it costs to follow them; the value says what seconds are of."""

    LONG = "a run"
    # Gauss-Newton steps that are expected to be one or two: a ridge that tables have leaves little to do after them.
    FEW = "a run of few steps"
    SHORT = "a hundred steps"
    # Minibatches that move the first layer alone, along their samples, and none of which is kept.
    MINIBATCHES = "an epoch"
    # Minibatches that do more: a ridge, a second layer, an average.
    GENERAL_MINIBATCHES = "an epoch of general minibatches"
    PERTURBED_MINIBATCHES = "an epoch at points that differ from the samples"

    @property
    def sees_few(self) -> bool:
        """True where a step looks at a few of the samples."""
        return self not in (Steps.LONG, Steps.FEW, Steps.SHORT)


@dataclass(frozen=True)
class Workload:
    """Sizes that decide what it costs to train a two-layer network.

    Attributes
    ----------
    samples, features, width, outputs
        n, d, m, k.
    firing
        p, the expected part of the pairs that fire.
    itemsize
        Bytes a weight.
    steps
        Those of the rule.
    anchored
        True when the initial weights are kept (α > 0).
    stored
        False when the weights are drawn again whenever they are needed.
    alive
        Part of the neurons that fire on some sample.
    readout_scale
        |a_r| / √k.
    arrays
        True where K, N and H are held as n × n arrays, False where H is applied from fire lists.
    device
        Type of the device that the weights are on.
    processes
        Those that share the neurons out; m is the width of one of them.
    """

    samples: int
    features: int
    width: int
    outputs: int
    firing: float
    itemsize: int
    steps: Steps = Steps.LONG
    anchored: bool = False
    stored: bool = True
    alive: float = 1.0
    readout_scale: float = 1.0
    arrays: bool = True
    device: str = "cpu"
    processes: int = 1

    @property
    def pairs(self) -> int:
        """m n."""
        return self.width * self.samples

    @property
    def weight_bytes(self) -> int:
        """Memory of W."""
        return self.width * self.features * self.itemsize

    @property
    def pattern_bytes(self) -> int:
        """Fire patterns before and after a step, and W₀ where it is kept."""
        row = min(self.samples / 8, 4 * self.firing * self.samples) + 12
        return int(2 * self.width * row) + self.weight_bytes * int(self.anchored)

    @property
    def seconds_of_a_pass(self) -> float:
        """Products W Xᵀ and a scan of what comes out."""
        return self.pairs * (2 * self.features / FLOPS + SCAN) / REFERENCE_THREADS


@dataclass(frozen=True)
class Cost:
    """Cost of a tracker for a workload.

    Attributes
    ----------
    bytes
        Peak memory beside the network, the Gram matrices and the blocks of a pass.
    seconds
        Of a run of long steps, many or few, a hundred short ones, or an epoch; infinity where the tracker is known to
        lose, or where nobody has measured it: then "auto" does not take it.
    bytes_a_thread
        More for each thread.
    """

    bytes: int
    seconds: float
    bytes_a_thread: int = 0


@dataclass(frozen=True)
class NeuronShape:
    """Sizes that decide what it costs to find the neurons that fire on an input.

    Attributes
    ----------
    features, width, outputs
        d, m, k.
    firing
        p, the expected part of the neurons that fire.
    """

    features: int
    width: int
    outputs: int
    firing: float

    @classmethod
    def of(cls, network: TwoLayer, inputs: Float[np.ndarray, "n d"]) -> "NeuronShape":
        """The shape of a network on inputs like these."""
        firing = expected_firing(network.threshold, inputs)
        return cls(network.in_features, network.width, network.out_features, firing)


def expected_firing(threshold: float, inputs: Float[np.ndarray, "n d"]) -> float:
    """Return p of standard normal neurons on inputs whose norms are all the root of their mean square."""
    norm = math.sqrt(float(np.mean(np.einsum("ij,ij->i", inputs, inputs, dtype=np.float64))))
    return firing_probability(threshold, norm)
