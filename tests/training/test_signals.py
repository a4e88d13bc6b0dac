"""Signals set a flag, as often as there are runs, and leave everything as it was."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from widefit.training.interruption import interrupt_flag

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", ALL)
def test_the_first_sets_the_flag_and_the_second_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ALL]
    with interrupt_flag() as flag:
        assert not flag.is_set()
        os.kill(os.getpid(), number)
        assert flag.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert [signal.getsignal(each) for each in ALL] == before


@pytest.mark.parametrize("number", ALL)
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interrupt_flag() as flag:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) == signal.SIG_IGN
            assert not flag.is_set()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_handler_of_ones_own_stays_in_force() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with interrupt_flag() as flag:
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
            assert not flag.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_runs_within_runs_and_in_other_threads_end_together() -> None:
    found = []
    entered, ended = threading.Event(), threading.Event()

    def other() -> None:
        with interrupt_flag() as flag:
            entered.set()
            found.append(flag.wait(20))
        ended.set()

    with interrupt_flag() as outer:
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(20)
        with interrupt_flag() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            assert inner.is_set()
        assert outer.is_set()
        assert ended.wait(20)
        thread.join()
    assert found == [True]
    with interrupt_flag() as later:
        assert not later.is_set()


def test_a_thread_alone_takes_no_signals() -> None:
    code = (
        "import os, signal, threading; from widefit.training.interruption import interrupt_flag\n"
        "def run():\n    with interrupt_flag(): print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "True\n"
