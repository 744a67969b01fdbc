"""A client process of a load test: threads that send requests to a served model, all the time.

Run as `python -m boxwright.benchmark.load_process REQUEST.json`. It says `ready` when every thread
has had its answers to warm up with, waits for a line, and prints what it measured as JSON. Clients
have processes of their own, so that one interpreter's lock does not bound them all.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.errors import BackendError

__all__: list[str] = []

_MOST_KINDS = 20  # of errors that are told apart


def _feeds(path: Path) -> list[dict[str, npt.NDArray[Any]]]:
    """Return the requests of a file: arrays named `NUMBER/INPUT`."""
    found: dict[int, dict[str, npt.NDArray[Any]]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[n] for n in sorted(found)]


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Send requests for as long as asked, and return what came of them."""
    feeds = _feeds(Path(request["feeds"]))
    opener = catalog.backend("triton").open_address
    assert opener is not None
    count = int(request["threads"])
    backends: list[Any] = [opener(request["address"], BackendOptions()) for _ in range(count)]
    errors: Counter[str] = Counter()
    lock = Lock()

    def ask(backend: Any, number: int) -> tuple[float, float] | None:
        begin = perf_counter()
        try:
            backend.infer(feeds[number % len(feeds)])
        except BackendError as error:
            with lock:
                text = error.found if len(errors) < _MOST_KINDS else "others"
                errors[text] += 1
            return None
        return begin, perf_counter()

    def warm(place: int) -> None:
        for number in range(int(request["warmup"])):
            ask(backends[place], place + number)

    def work(place: int) -> list[tuple[float, float]]:
        times, number = [], int(request["first"]) + place * 7
        while perf_counter() < until:
            answer = ask(backends[place], number)
            if answer is not None:
                times.append(answer)
            number += 1
        return times

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(warm, range(count)))
        if errors:
            return {"times": [], "errors": dict(errors), "retries": 0}
        print("ready", flush=True)
        sys.stdin.readline()
        retried = sum(b.retries for b in backends)
        until = perf_counter() + float(request["seconds"])
        times = [t for one in pool.map(work, range(count)) for t in one]
    retries = sum(b.retries for b in backends) - retried
    for backend in backends:
        backend.close()
    return {"times": times, "errors": dict(errors), "retries": retries}


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
