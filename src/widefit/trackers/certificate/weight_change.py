"""W − W₀ of a network that the certificate tracker has trained, without W."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from widefit.kernels.certificate import slots as kernels
from widefit.kernels.vector import column_blocks
from widefit.nn import WeightChange, restorable
from widefit.nn.weight_change import name_in_files, restore
from widefit.records import FileError
from widefit.trackers.certificate.checkpoint import restore_chunks, save_chunks
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.validation import check_delta
from widefit.trackers.fire_pattern import Chunk

# Slots whose change is summed at a time.
_SLOTS = 1024
# Prefix of the arrays of the change before the run.
_BEFORE = "before."


@restorable
@dataclass(frozen=True)
class CertifiedChange:
    """W − W₀ = −diag(c) (S ∘ G + P ê) X, summed up whenever rows are asked for: k_r d operations a neuron.

    Attributes
    ----------
    chunks
        Fire rows and corrections, which must not change any more.
    collected, scale
        G and P.
    inputs
        X, float64.
    before
        Change before the run.
    """

    chunks: tuple[CertifiedChunk, ...]
    collected: Float[np.ndarray, "k n"]
    scale: Float[np.ndarray, " k"]
    inputs: Float[np.ndarray, "n d"]
    before: WeightChange | None = None
    # The name of the class in version 0.1.
    file_name: ClassVar[str] = "CertificateDelta"

    def add_to(self, first: int, last: int, rows: Float[np.ndarray, "rows d"]) -> None:
        """Add W − W₀ of neurons `first` to `last` to `rows`."""
        if self.before is not None:
            self.before.add_to(first, last, rows)
        blocks = column_blocks(self.inputs, np.float64)
        for chunk in self.chunks:
            if first < chunk.chunk.last and chunk.chunk.first < last:
                self._add_chunk(chunk, first, last, rows, blocks)

    def _add_chunk(
        self,
        chunk: CertifiedChunk,
        first: int,
        last: int,
        rows: Float[np.ndarray, "rows d"],
        blocks: Float[np.ndarray, "blocks n lanes"],
    ) -> None:
        """Add W − W₀ of the neurons of a chunk among `first` to `last`."""
        start = chunk.chunk.first
        output = chunk.chunk.output
        origin = kernels.SlotOrigin(chunk.neurons, rows, first - start, chunk.coefficients, blocks)
        collected = chunk.collected(self.collected[output], float(self.scale[output]))
        edges = np.searchsorted(chunk.neurons, np.array([first - start, last - start]))
        low, high = edges.tolist()
        for slot in range(low, high, _SLOTS):
            slots = np.arange(slot, min(slot + _SLOTS, high), dtype=np.int32)
            moved = np.empty((slots.size, rows.shape[1]))
            kernels.materialize(slots, origin, collected, moved)
            rows[chunk.neurons[slots].astype(np.int64) + (start - first)] = moved

    def check_fits(self, width: int, features: int, outputs: int) -> None:
        """Check that it belongs to a network of that size.

        Raises
        ------
        FileError
            It has neurons, features or outputs that the network has not.
        """
        last = max((own.chunk.last for own in self.chunks), default=0)
        if last > width or self.inputs.shape[1] != features or self.scale.size != outputs:
            found = f"{last:,} neurons, {self.inputs.shape[1]:,} features and {self.scale.size:,} outputs"
            raise FileError(f"the displacement belongs to a network with {found}")
        if isinstance(self.before, CertifiedChange):
            self.before.check_fits(width, features, outputs)

    def state(self) -> dict[str, np.ndarray]:
        """Return everything it is made of, as arrays."""
        spans = [(own.chunk.first, own.chunk.last, own.chunk.output, own.neurons.size) for own in self.chunks]
        out = {
            "spans": np.array(spans, np.int64).reshape(-1, 4),
            "neurons": np.concatenate([chunk.neurons.astype(np.int32) for chunk in self.chunks]),
            "coefficients": np.concatenate([chunk.coefficients for chunk in self.chunks]),
            "collected": self.collected,
            "scale": self.scale,
            "inputs": self.inputs,
            **save_chunks(self.chunks),
        }
        if self.before is not None:
            prefix = f"{_BEFORE}{name_in_files(type(self.before))}."
            out |= {prefix + name: array for name, array in self.before.state().items()}
        return out

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> "CertifiedChange":
        """Rebuild it from the arrays of `state`."""
        check_delta(state)
        samples = len(state["inputs"])
        chunks = []
        low = 0
        for first, last, output, size in state["spans"].tolist():
            own = slice(low, low + size)
            chunk = Chunk(first, last, output)
            chunks.append(CertifiedChunk.silent(chunk, samples, state["neurons"][own], state["coefficients"][own]))
            low += size
        restore_chunks(state, chunks)
        return cls(tuple(chunks), state["collected"], state["scale"], state["inputs"], _change_before(state))


def _change_before(state: dict[str, np.ndarray]) -> WeightChange | None:
    """Rebuild the change before the run; None where there was none."""
    held = [name.removeprefix(_BEFORE) for name in state if name.startswith(_BEFORE)]
    if not held:
        return None
    kind = held[0].split(".")[0]
    return restore(kind, {name.removeprefix(f"{kind}."): state[_BEFORE + name] for name in held})
