"""Threads that decode and fill, with the urgent work first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, TypeVar

__all__ = ["Crew"]

T = TypeVar("T")


class Crew:
    """A fixed number of threads; what fills a batch comes before what decodes for later ones."""

    def __init__(self, count: int, name: str = "boxwright-decoder") -> None:
        self._urgent: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._later: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = Condition()
        self._closed = False
        self.size = count
        self._threads = [
            Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, job: Callable[[], T], *, urgent: bool = False) -> Future[T]:
        """Have a job done by the next free thread."""
        future: Future[T] = Future()
        with self._changed:
            (self._urgent if urgent else self._later).append((future, job))
            self._changed.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._urgent or self._later or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                future, job = (self._urgent or self._later).popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 - it is the asker's, not this thread's
                future.set_exception(error)
            del future, job  # no picture outlives its turn here

    def close(self) -> None:
        """Drop what was not begun and wait for the threads; a second call does nothing."""
        with self._changed:
            self._closed = True
            dropped = [*self._urgent, *self._later]
            self._urgent.clear()
            self._later.clear()
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
