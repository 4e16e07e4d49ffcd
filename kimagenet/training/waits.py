"""For what does a run wait when it waits for data: for the storage, or for decoding? Sampled a few times a second."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipelines.system.threads import ThreadStates, thread_states

PERIOD = 0.1  # seconds between two samples: one takes about a millisecond


@dataclass(frozen=True)
class Samples:
    """Counts of samples.

    Attributes:
        taken: all of them.
        in_storage: those in which the run waited for data because of the storage.
    """

    taken: int = 0
    in_storage: int = 0


def waits_for_storage(states: ThreadStates, decoders: int) -> bool:
    """Whether a wait for data is one for the storage: a thread waits for a disk, and decoders have nothing to do.

    Args:
        states: of the threads, with the one that samples.
        decoders: the number of decoding threads.
    """
    return states.in_storage > 0 and states.running - 1 < decoders


class WaitSampler:
    """Samples the threads of this process while a block runs.

    Args:
        decoders: the number of decoding threads.
        look: gives the states of the threads.
        period: seconds between two samples.
    """

    def __init__(self, decoders: int, look: Callable[[], ThreadStates] = thread_states, period: float = PERIOD) -> None:
        self._decoders = decoders
        self._look = look
        self._period = period
        self._is_waiting = False
        self._lock = threading.Lock()
        self._samples = Samples()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Within it, samples are taken by a thread, which ends with it."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(self._period):
                self.sample()

        thread = threading.Thread(target=work, name="kimagenet-waits", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Marks the time in which the run waits for a batch."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def sample(self) -> None:
        """Takes one sample."""
        in_storage = self._is_waiting and waits_for_storage(self._look(), self._decoders)
        with self._lock:
            self._samples = Samples(self._samples.taken + 1, self._samples.in_storage + in_storage)

    def take(self) -> Samples:
        """The samples since the last call."""
        with self._lock:
            taken, self._samples = self._samples, Samples()
        return taken
