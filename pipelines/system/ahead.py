"""Reads a list of things in several threads, ahead of the code that uses them and in the same order."""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result],
    items: Sequence[Item],
    threads: int,
    size: Callable[[Result], int] = lambda _: 0,
    most_bytes: int = 0,
) -> Generator[Result, None, None]:
    """Calls `read` for each item. While the caller uses one result, threads read the next ones.

    The threads are daemons and nobody waits for their end, so an interrupt ends also a read that does not return.

    Args:
        read: the function; it may be called in any thread.
        items: its arguments.
        threads: how many items may be read at once.
        size: the bytes of a result.
        most_bytes: no item is begun while more than this many bytes wait for the caller.

    Yields:
        The results, in the order of the items.

    Raises:
        Exception: what `read` raised, in the place of the first result that it concerns.
    """
    readers = _Readers(read, items, size, most_bytes)
    try:
        for _ in range(min(threads, len(items))):
            threading.Thread(target=readers.serve, name="kimagenet-ahead", daemon=True).start()
        for number in range(len(items)):
            yield readers.take(number)
    finally:
        readers.close()


class _Readers(Generic[Item, Result]):
    """What the threads and the caller share.

    Items are begun in order, so the next result for the caller is on its way before later ones use up the room.
    """

    def __init__(
        self, read: Callable[[Item], Result], items: Sequence[Item], size: Callable[[Result], int], most_bytes: int
    ) -> None:
        self._read, self._items, self._size, self._most_bytes = read, items, size, most_bytes
        lock = threading.Lock()
        self._has_arrived = threading.Condition(lock)
        self._has_room = threading.Condition(lock)
        self._begun = 0
        self._waiting_bytes = 0
        self._is_closed = False
        self._results: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}

    def serve(self) -> None:
        """Reads items until all are begun."""
        while (number := self._next()) is not None:
            try:
                result = self._read(self._items[number])
            except BaseException as error:  # raised in the caller's thread
                with self._has_arrived:
                    self._errors[number] = error
                    self._has_arrived.notify()
                return
            with self._has_arrived:
                self._results[number] = result
                self._waiting_bytes += self._size(result)
                self._has_arrived.notify()
            del result

    def _next(self) -> int | None:
        """The number of the next item, as soon as there is room for its result; None at the end."""
        with self._has_room:
            while self._waiting_bytes > self._most_bytes and not self._is_closed:
                self._has_room.wait()
            if self._is_closed or self._errors or self._begun == len(self._items):
                return None
            self._begun += 1
            return self._begun - 1

    def take(self, number: int) -> Result:
        """Waits for a result; raises the error that came in its place."""
        with self._has_arrived:
            while number not in self._results and number not in self._errors:
                self._has_arrived.wait()
            if number in self._errors:
                raise self._errors.pop(number)
            result = self._results.pop(number)
            self._waiting_bytes -= self._size(result)
            self._has_room.notify()
            return result

    def close(self) -> None:
        """Lets the threads end after the items that they read now."""
        with self._has_room:
            self._is_closed = True
            self._results.clear()
            self._has_room.notify_all()
