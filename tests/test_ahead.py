"""Reading ahead: several items at once, results in order, a bound on memory, and no thread that stays."""

import threading
import time
from contextlib import closing

import pytest

from pipelines.system.ahead import read_ahead

SECONDS = 60  # after which a test that waits for other threads fails


def wait_for_threads() -> None:
    """Waits until no thread reads ahead any more."""
    deadline = time.monotonic() + SECONDS
    while any(thread.name == "kimagenet-ahead" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_items_are_read_at_once_and_come_in_order() -> None:
    together = threading.Barrier(8)

    def read(item: int) -> int:
        together.wait(SECONDS)  # nobody passes before eight are here
        return item * item

    assert list(read_ahead(read, range(24), threads=8)) == [item * item for item in range(24)]
    wait_for_threads()


def test_a_late_result_does_not_change_the_order() -> None:
    others = threading.Semaphore(0)

    def read(item: int) -> int:
        if item:
            others.release()
        else:
            for _ in range(9):
                assert others.acquire(timeout=SECONDS)
        return item

    assert list(read_ahead(read, range(10), threads=4)) == list(range(10))


def test_nothing_is_read_of_an_empty_list() -> None:
    assert list(read_ahead(str, [], threads=4)) == []


def test_an_error_comes_in_the_place_of_its_result() -> None:
    """The first one in the order of the items, also if a later one is found earlier."""
    later = threading.Event()

    def read(item: int) -> int:
        if item == 5:
            later.set()
            raise OSError("the second")
        if item == 3:
            assert later.wait(SECONDS)
            raise ValueError("the first")
        return item

    results = read_ahead(read, range(10), threads=6)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the first"):
        next(results)
    wait_for_threads()


def test_results_that_wait_are_bounded_in_bytes() -> None:
    begun = []

    def read(item: int) -> bytes:
        begun.append(item)
        return bytes(10)

    with closing(read_ahead(read, range(1000), 2, len, most_bytes=45)) as results:
        for number, _ in enumerate(results):
            if number in (0, 7, 100):
                time.sleep(0.05)  # so that threads without a bound would read all of them
            # Five results wait for the caller at most, and each thread has one more.
            assert len(begun) <= number + 1 + 5 + 2
            if number == 100:
                break
    wait_for_threads()
    assert len(begun) < 120


def test_a_result_larger_than_the_bound_is_read_alone() -> None:
    assert [len(data) for data in read_ahead(bytes, [100, 200, 300], 3, len, most_bytes=10)] == [100, 200, 300]


def test_a_read_that_does_not_return_keeps_nobody_waiting() -> None:
    answer = threading.Event()
    results = read_ahead(lambda item: item and answer.wait(), [0, 1, 2], threads=2)
    assert next(results) == 0
    results.close()
    answer.set()
    wait_for_threads()
