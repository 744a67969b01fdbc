"""How well the bulk path keeps decoders and a GPU busy, where each of them only sleeps.

    python benchmarks/stream_schedule.py pictures/ --decoders 16

The real `Stream` with `preprocess="gpu"`: a decoder sleeps instead of decoding, a copy into pinned
memory sleeps, and one network runs after the other. Sleeping needs no core, so that a small machine
shows how sixteen decoders and a GPU wait for each other; what the interpreter costs is real. The
ideal is what the slower of decoders and network could do.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import stream_overhead

import boxwright.stream.driver
from boxwright.frame_lane import FrameLane
from boxwright.stream import Stream
from boxwright.stream.decoding import Entry

_PICTURE = np.zeros((480, 640, 3), np.uint8)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images", nargs="+", help="JPEG files: their names are enough")
    parser.add_argument("--count", type=int, default=12_000, help="pictures, with repeats")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--decoders", type=int, default=16)
    parser.add_argument("--decode-ms", type=float, default=1.5, help="of a picture")
    parser.add_argument("--fill-ms", type=float, default=0.1, help="of a picture")
    parser.add_argument("--network-ms", type=float, default=6.5, help="of a batch")
    parser.add_argument("--boxes", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


class _Card:
    """Runs one batch after the other."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._lock, self._free = seconds, threading.Lock(), 0.0

    def start(self) -> float:
        """Return when a batch that starts now is done."""
        with self._lock:
            self._free = max(time.perf_counter(), self._free) + self._seconds
            return self._free


def _pretend(wishes: argparse.Namespace) -> None:
    """Let decoders, copies and the network sleep."""
    card = _Card(wishes.network_ms / 1e3)

    class Context(stream_overhead.FreeContext):
        until = 0.0

        def start_frames(self, *_: Any) -> None:
            self.until = card.start()

        def finish(self, *, patient: bool = False) -> dict[str, Any]:
            time.sleep(max(0.0, self.until - time.perf_counter()))
            return super().finish(patient=patient)

    def decode(entry: Entry) -> Entry:
        time.sleep(wishes.decode_ms / 1e3)
        entry.image = _PICTURE
        return entry

    stream_overhead.FreeContext = Context  # type: ignore[misc]
    boxwright.stream.driver.decode_entry = decode  # type: ignore[attr-defined]
    FrameLane.fill = lambda *_: time.sleep(wishes.fill_ms / 1e3)  # type: ignore[method-assign]


def main() -> None:
    """Run it."""
    wishes = arguments()
    _pretend(wishes)
    detector = stream_overhead.Bench(SimpleNamespace(**vars(wishes))).detector  # type: ignore[arg-type]
    files = [str(Path(wishes.images[0]) / f"{n}.jpg") for n in range(wishes.count)]
    rates = []
    for _ in range(wishes.rounds):
        with Stream(
            detector, batch=wishes.batch, decoders=wishes.decoders, preprocess="gpu"
        ) as stream:
            skip, begin = wishes.count // 6, 0.0
            for number, _ in enumerate(stream.detect(files)):
                if number == skip:
                    begin = time.perf_counter()
            rates.append((wishes.count - 1 - skip) / (time.perf_counter() - begin))
        print(f"{rates[-1]:.0f} pictures/s", flush=True)
    cores = wishes.decoders / (wishes.decode_ms + wishes.fill_ms) * 1e3
    ideal = min(cores, wishes.batch / wishes.network_ms * 1e3)
    print(f"median {np.median(rates):.0f}, ideal {ideal:.0f}: {np.median(rates) / ideal:.2f}")


if __name__ == "__main__":
    main()
