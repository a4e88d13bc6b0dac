"""The clock of runs stands still while kernels are compiled."""

import numba
import pytest

from widefit.kernels import clock, compilation  # noqa: F401  (registers with Numba)
from widefit.training.phases import Phases


class Time:
    def __init__(self) -> None:
        self.value = 100.0

    def __call__(self) -> float:
        return self.value


@pytest.fixture
def time(monkeypatch) -> Time:
    time = Time()
    monkeypatch.setattr("widefit.kernels.clock.time.perf_counter", time)
    return time


def test_nested_compilations_count_once(monkeypatch, time: Time) -> None:
    monkeypatch.setattr(clock, "compilation", clock._Compilation())
    phases = Phases()
    with phases("work"):
        time.value += 1
        clock.compilation.start()
        time.value += 2
        clock.compilation.start()
        time.value += 4
        assert clock.seconds_compiling() == 6
        clock.compilation.end()
        clock.compilation.end()
        time.value += 8
    assert clock.seconds_compiling() == 6
    assert phases.seconds == {"work": 9.0}


def test_numba_tells_the_clock(monkeypatch, time: Time) -> None:
    fresh = clock._Compilation()
    monkeypatch.setattr(clock, "compilation", fresh)
    started = []
    start = fresh.start

    def counted() -> None:
        started.append(None)
        start()

    monkeypatch.setattr(fresh, "start", counted)

    @numba.njit
    def twice(x):
        return 2 * x

    assert twice(3) == 6
    assert started
    assert twice(4) == 8
    assert fresh._depth == 0
