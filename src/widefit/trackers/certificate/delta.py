"""W − W₀ of a network that the certificate tracker has trained, without W."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from widefit.kernels.certificate import slots as kernels
from widefit.kernels.vector import column_blocks
from widefit.nn import Delta, restorable
from widefit.nn.delta import restore
from widefit.records import FileError
from widefit.trackers.certificate.chunk import CertifiedChunk
from widefit.trackers.certificate.saved import packed, unpack
from widefit.trackers.certificate.validation import check_delta
from widefit.trackers.fire_pattern import Chunk

# Slots whose displacement is summed at a time.
_SLOTS = 1024
# Of the names of what the run began with.
_BEFORE = "before."


@restorable
@dataclass(frozen=True)
class CertificateDelta:
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
        What the run began with.
    """

    chunks: tuple[CertifiedChunk, ...]
    collected: Float[np.ndarray, "k n"]
    scale: Float[np.ndarray, " k"]
    inputs: Float[np.ndarray, "n d"]
    before: Delta | None = None

    def add_to(self, first: int, last: int, rows: Float[np.ndarray, "rows d"]) -> None:
        """rows += (W − W₀) of neurons `first` to `last`."""
        if self.before is not None:
            self.before.add_to(first, last, rows)
        blocks = column_blocks(self.inputs, np.float64)
        for chunk in self.chunks:
            origin = chunk.chunk.first
            if chunk.chunk.last <= first or origin >= last:
                continue
            low, high = np.searchsorted(chunk.neurons, np.array([first - origin, last - origin]))
            fire_rows, chains, coefficients = chunk.rows(), chunk.corrections.chains(), chunk.coefficients
            for start in range(int(low), int(high), _SLOTS):
                slots = np.arange(start, min(start + _SLOTS, int(high)), dtype=np.int32)
                moved = np.empty((slots.size, rows.shape[1]))
                output = chunk.chunk.output
                kernels.materialize(
                    slots, chunk.neurons, rows, first - origin, coefficients, *fire_rows, self.collected[output],
                    *chains, float(self.scale[output]), blocks, moved,
                )  # fmt: skip
                rows[chunk.neurons[slots].astype(np.int64) + (origin - first)] = moved

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
        if isinstance(self.before, CertificateDelta):
            self.before.check_fits(width, features, outputs)

    def state(self) -> dict[str, np.ndarray]:
        """Everything it is made of, as arrays."""
        spans = [(own.chunk.first, own.chunk.last, own.chunk.output, own.neurons.size) for own in self.chunks]
        out = {
            "spans": np.array(spans, np.int64).reshape(-1, 4),
            "neurons": np.concatenate([chunk.neurons.astype(np.int32) for chunk in self.chunks]),
            "coefficients": np.concatenate([chunk.coefficients for chunk in self.chunks]),
            "collected": self.collected,
            "scale": self.scale,
            "inputs": self.inputs,
            **packed(self.chunks),
        }
        if self.before is not None:
            prefix = f"{_BEFORE}{type(self.before).__name__}."
            out |= {prefix + name: array for name, array in self.before.state().items()}
        return out

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> "CertificateDelta":
        """The inverse of `state`."""
        check_delta(state)
        chunks, low = [], 0
        for first, last, output, size in state["spans"].tolist():
            own = slice(low, low + size)
            chunks.append(
                CertifiedChunk.silent(
                    Chunk(first, last, output), len(state["inputs"]), state["neurons"][own], state["coefficients"][own]
                )
            )
            low += size
        unpack(state, chunks)
        before = None
        held = [name.removeprefix(_BEFORE) for name in state if name.startswith(_BEFORE)]
        if held:
            kind = held[0].split(".")[0]
            before = restore(kind, {name.removeprefix(f"{kind}."): state[_BEFORE + name] for name in held})
        return cls(tuple(chunks), state["collected"], state["scale"], state["inputs"], before)
