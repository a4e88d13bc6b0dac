"""BLAS has one thread as long as somebody relies on it, and what it had before afterwards."""

import random
import threading

import threadpoolctl

from widefit.kernels.threads import serial_blas


def threads_of_blas() -> set[int]:
    return {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"}


def test_blocks_that_overlap_put_back_what_was_there() -> None:
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        before = threads_of_blas()
        first, second = serial_blas(), serial_blas()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads_of_blas() == {1}
        second.__exit__(None, None, None)
        assert threads_of_blas() == before


def test_many_threads_at_once() -> None:
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        before, wrong = threads_of_blas(), []

        def work(seed: int) -> None:
            generator = random.Random(seed)
            for _ in range(20):
                with serial_blas():
                    threading.Event().wait(generator.random() / 2000)
                    if threads_of_blas() != {1}:
                        wrong.append(threadpoolctl.threadpool_info())

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert threads_of_blas() == before


def test_a_block_begun_in_one_thread_and_outlived_in_another() -> None:
    before = threads_of_blas()
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with serial_blas():
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=work)
    with serial_blas():
        thread.start()
        assert entered.wait(20)
    assert threads_of_blas() == {1}
    leave.set()
    thread.join()
    assert threads_of_blas() == before


def test_a_block_that_raises_lets_go() -> None:
    before = threads_of_blas()
    try:
        with serial_blas():
            raise KeyError
    except KeyError:
        pass
    assert threads_of_blas() == before
