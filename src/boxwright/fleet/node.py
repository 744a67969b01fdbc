"""One node of a graph, done in a process of its own: make a file, prove a run, or measure parts.

What a node makes it leaves as a file; only the process that owns the graph writes into stores, so
that a node that dies, or is done twice, disturbs nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from boxwright.errors import BoxwrightError, CheckFailedError
from boxwright.fleet.evaluate_node import measure_parts
from boxwright.outcome import Listener
from boxwright.pipeline import prepare, run
from boxwright.recipe import recipe_from_mapping
from boxwright.store import Store, write_atomic

__all__ = ["do_node", "main"]


class _Aloud(Listener):
    """Tells notes on stderr, with whose they are."""

    def __init__(self, label: str) -> None:
        self._label = label

    def note(self, text: str) -> None:
        print(f"boxwright: {self._label}: {text}", file=sys.stderr, flush=True)


def do_node(message: Mapping[str, Any]) -> dict[str, Any]:
    """Do a node; what goes wrong is told, not raised.

    Args:
        message: `kind`, `label`, `cwd`; of a step and a proof `recipe`, `out`, `models`, and of a
            step `file` and `result`, the stem of what it leaves; of parts see `measure_parts`.

    Returns:
        `{}`, with `files` of a proof; or `error`, three texts, and `failed`, names of files.
    """
    os.chdir(message["cwd"])
    try:
        return _KINDS[message["kind"]](message)
    except BoxwrightError as error:
        return {"error": [error.asked, error.found, error.do]}
    except (MemoryError, RecursionError, RuntimeError, ArithmeticError, LookupError) as error:
        # A fault of a library or of ours ends this branch alone; the others go on.
        reason = f"{type(error).__name__}: {error}"[:300]
        return {"error": [message["label"], f"it broke ({reason})", "please report it"]}


def _step(message: Mapping[str, Any]) -> dict[str, Any]:
    recipe = recipe_from_mapping(message["recipe"], "recipe")
    ready = prepare(recipe, Path(message["out"]), models=Path(message["models"]))
    job = ready.job(ready.plan, Store.peek(ready.plan.folder), _Aloud(message["label"]))
    try:
        step = next(s for s in ready.plan.steps if s.file == message["file"])
        data, entry = job.built(step)
    finally:
        job.close()
    stem = Path(message["result"])
    record = {"source": job.source_record(), "entry": dataclasses.asdict(entry)}
    write_atomic(stem.with_suffix(".bin"), data)
    write_atomic(stem.with_suffix(".json"), json.dumps(record, default=str).encode())
    return {}


def _prove(message: Mapping[str, Any]) -> dict[str, Any]:
    recipe = recipe_from_mapping(message["recipe"], "recipe")
    failed: list[str] = []
    error: list[str] = []
    folder = Path(message["out"]) / message["folder"]
    try:
        run(
            recipe,
            Path(message["out"]),
            models=Path(message["models"]),
            command=message["command"],
            listener=_Aloud(message["label"]),
        )
    except CheckFailedError as refusal:
        failed = [name.strip() for name in refusal.asked.split(",")]
        error = [refusal.asked, refusal.found, refusal.do]
    entries = Store.peek(folder).entries
    files = {n: e.sha256 for n, e in sorted(entries.items()) if e.state == "published"}
    return {"files": files, **({"failed": failed, "error": error} if error else {})}


_KINDS = {"step": _step, "prove": _prove, "evaluate": measure_parts}


def _end_with_parent() -> None:
    """End at once when the process that started this one does, however that ends."""
    while os.read(0, 4096):
        pass
    os._exit(3)


def main() -> None:
    """Do the node that is told on stdin."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    message = json.loads(sys.stdin.buffer.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    out.write(json.dumps(do_node(message)).encode() + b"\n")
    out.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread waits for the other process's end


if __name__ == "__main__":
    main()
