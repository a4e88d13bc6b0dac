"""Passes of the small problems of these tests multiply in integers, where the processor can, as those of large ones."""

import pytest

from widefit.trackers.certificate import products


@pytest.fixture(autouse=True)
def integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_WORTH_INTEGERS", 0)
