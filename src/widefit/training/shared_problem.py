"""The arguments of a run that several processes share: the same on all, or refused."""

import hashlib
from typing import Any

import numpy as np
import torch

from widefit.nn import Deep, TwoLayer
from widefit.processes import Alone
from widefit.rules import FullBatch, Objective, Rule

# Of two processors that round differently.
_ROUNDING = 1e-4
_HINT = ": every process passes the same network, all rows in the same order, and the same options"


def agreed(
    network: TwoLayer | Deep, inputs: np.ndarray, objective: Objective, settings: tuple[Any, ...], processes: Alone
) -> tuple[np.ndarray, Objective]:
    """The problem as the first process has it, bit by bit.

    Parameters
    ----------
    network
        The whole network.
    inputs, objective
        X and Q; every process passes all rows.
    settings
        The rule, and everything else that the steps depend on: compared by their text.

    Raises
    ------
    ValueError
        The network or the rule is one that processes do not share; a process has other rows, or other settings.
    """
    _refuse_unshared(network, settings[0])
    assert isinstance(network, TwoLayer)
    kinds = (inputs.shape, str(inputs.dtype), objective.targets.shape, objective.kind)
    _compare(kinds, "rows of another number or kind", processes)
    _compare((_identity(network), repr(settings)), "another network or other options", processes)
    arrays = (inputs, objective.targets, objective.sample_weight, np.array([objective.alpha]))
    first = [processes.same(torch.from_numpy(array)).numpy() for array in arrays]
    # Other processors may round otherwise what comes before the training.
    alike = all(
        np.allclose(ours, theirs, rtol=_ROUNDING, atol=_ROUNDING * float(np.abs(theirs).max()))
        for ours, theirs in zip(arrays, first, strict=True)
    )
    told = processes.gathered(alike)
    if not all(told):
        raise ValueError(f"process {told.index(False)} has other rows{_HINT}")
    return first[0], Objective(first[1], first[2], float(first[3][0]), objective.kind)


def _refuse_unshared(network: TwoLayer | Deep, rule: Rule) -> None:
    if isinstance(network, Deep):
        raise ValueError(
            "several processes share one hidden layer: for a deep network start one process, or step it by "
            "widefit.GaussNewton(network, process_group=...), each process with rows of its own"
        )
    if network.store == "array" and network.weight.device.type != "cpu":
        raise ValueError('several processes share the neurons of a network on the CPU: use device="cpu"')
    if not isinstance(rule, FullBatch):
        raise ValueError(
            f'rule="{rule.name}" takes steps too short to share: several processes take "gauss-newton" or '
            '"gradient-descent"; or start one process'
        )


def _identity(network: TwoLayer) -> str:
    """Hash of the first weights, the whole readout and what else decides the outputs."""
    digest = hashlib.sha256(np.ascontiguousarray(network.rows(0, 2)).tobytes())
    digest.update(np.ascontiguousarray(network.readout_rows(0, network.width)).tobytes())
    settings = (network.width, network.in_features, network.threshold, network.activation.convention)
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _compare(own: Any, subject: str, processes: Alone) -> None:
    """Raise a ValueError where a process has another value than the first."""
    told = processes.gathered(own)
    for rank, found in enumerate(told):
        if found != told[0]:
            raise ValueError(f"process {rank} has {subject} than process 0{_HINT}")
