"""The background thread: jobs in order, errors for the caller, an end that waits for no blocked job."""

import gc
import threading
import weakref

import pytest

from pipelines.system.worker import Worker
from tests.helpers.programs import run_program


def test_jobs_are_done_in_order_by_one_thread() -> None:
    worker, done = Worker("kimagenet-test"), []
    for number in range(20):
        worker.submit(lambda number=number: done.append((number, threading.get_ident())))
    worker.close()
    assert [number for number, _ in done] == list(range(20))
    assert len({thread for _, thread in done}) == 1
    assert done[0][1] != threading.get_ident()


def test_an_error_is_the_callers() -> None:
    worker = Worker("kimagenet-test")
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 // 0).result(timeout=60)
    assert worker.submit(int, "7").result(timeout=60) == 7
    worker.close()


def test_a_closed_worker_does_a_job_at_once() -> None:
    worker = Worker("kimagenet-test")
    worker.close()
    assert worker.submit(threading.get_ident).result(timeout=0) == threading.get_ident()


def test_a_worker_is_closed_without_waiting_for_a_job_that_does_not_end() -> None:
    worker, gate = Worker("kimagenet-test"), threading.Event()
    worker.submit(gate.wait)
    assert not worker.close(0.01)
    gate.set()
    assert worker.close()


def test_a_cancelled_job_is_not_done() -> None:
    worker, gate, done = Worker("kimagenet-test"), threading.Event(), []
    worker.submit(gate.wait)
    cancelled = worker.submit(done.append, 1)
    assert cancelled.cancel()
    gate.set()
    worker.close()
    assert done == []


def test_a_worker_that_nobody_holds_ends() -> None:
    worker = Worker("kimagenet-test")
    worker.submit(int).result(timeout=60)
    thread, there = worker._thread, weakref.ref(worker)
    del worker
    gc.collect()
    assert there() is None
    thread.join(timeout=60)
    assert not thread.is_alive()


@pytest.mark.parametrize(("job", "ended"), [("slow", "the job has ended"), ("blocked", "")])
def test_the_interpreter_ends_whatever_a_job_does(job: str, ended: str) -> None:
    done = run_program("unclosed_worker", job, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ended
