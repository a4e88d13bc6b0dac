"""The data of the step before: whether the next step sees other ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from widefit.records.contents import digest as digest_of


class LatestData:
    """The tensors of a step, or after a run was loaded their digest.

    Parameters
    ----------
    digest
        From the property of that name; None: there is nothing to compare with.
    """

    def __init__(self, digest: str | None = None):
        self._tensors: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()
        self._digest = digest

    def replace(self, tensors: Sequence[Tensor]) -> bool | None:
        """Take the data of the next step; return whether they differ, None where there was nothing to compare with."""
        given = tuple(tensors)
        differ = self._differ(given)
        self._tensors, self._versions, self._digest = given, tuple(map(_version, given)), None
        return differ

    @property
    def digest(self) -> str | None:
        """Hexadecimal digest of types, shapes and contents, and empty where the tensors were changed since the step."""
        if not self._tensors:
            return self._digest
        unchanged = self._versions == tuple(map(_version, self._tensors))
        return digest_of(self._tensors) if unchanged else ""

    def _differ(self, given: tuple[Tensor, ...]) -> bool | None:
        if self._tensors:
            return len(given) != len(self._tensors) or not self._same(given)
        return None if self._digest is None else digest_of(given) != self._digest

    def _same(self, given: tuple[Tensor, ...]) -> bool:
        pairs = []
        for new, old, version in zip(given, self._tensors, self._versions, strict=True):
            if new is old and _version(new) != version:
                return False
            if new is not old:
                pairs.append((new, old))
        if not all(a.shape == b.shape and a.dtype == b.dtype and a.device == b.device for a, b in pairs):
            return False
        if any(a.device.type == "cpu" for a, _ in pairs):
            return all(torch.equal(a, b) for a, b in pairs)
        # One transfer from the device.
        return not pairs or bool(torch.stack([(a == b).all() for a, b in pairs]).all())


def _version(tensor: Tensor) -> int:
    """Number of changes in place; tensors of inference mode count none."""
    return 0 if tensor.is_inference() else tensor._version
