"""The engines against a bare loop over the same pictures, in turns.

    python benchmarks/fleet_overhead.py --rounds 3 --out fleet_overhead.json

`bare` is `for batch in pictures: detector(batch)` in one process with the runtime's own threads;
`bare_1` the same with one thread; `local_1` the local engine in this process with one thread, to be
held against `bare_1`; `local` the engine as it comes, a process of one thread a core; `ray` a
cluster of this machine. Two models: a tiny one (64 px), where everything but the network counts,
and the embedded sample (640 px). Rates are those from the first tenth of the rows to the last;
`whole` is with the start; `cpu_ms` is the processor time of a picture between the same two moments,
of this process alone, which other work on the machine disturbs least. The load average is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from boxwright.environment import describe_machine, package_versions
from boxwright.errors import ImageError
from boxwright.fleet.engines import Engine
from boxwright.fleet.inputs import FleetPicture, addresses
from boxwright.fleet.job import Job, Pace, Settings
from boxwright.fleet.local import HERE, InProcess, Processes
from boxwright.fleet.on_ray import OnRay
from boxwright.fleet.predict import fleet_predict
from boxwright.loading import load
from boxwright.sample import onnx_file
from boxwright.store import write_atomic
from boxwright.stream.decoding import image_from_picture

sys.path.insert(0, str(Path(__file__).parent))
from fleet_scale import tiny_detector
from gpu_fleet import Clock

WAYS = ("bare", "bare_1", "local_1", "local", "ray")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", type=int, default=20_000, help="pictures for the tiny model")
    parser.add_argument("--sample", type=int, default=200, help="pictures for the sample")
    parser.add_argument("--out", type=Path, default=Path("fleet_overhead.json"))
    return parser.parse_args()


class CpuClock(Clock):
    """Keeps the processor time of this process, too."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: list[tuple[int, float]] = []

    def pictures(self, done: int, total: int, before: int) -> None:
        """Keep the moment."""
        super().pictures(done, total, before)
        self.cpu.append((done, time.process_time()))

    def cpu_ms(self) -> float:
        """Return the processor time of a row, between the first and the last tenth."""
        total = self.cpu[-1][0]
        inner = [c for c in self.cpu if total * 0.1 <= c[0] <= total * 0.9]
        return 1e3 * (inner[-1][1] - inner[0][1]) / (inner[-1][0] - inner[0][0])


def bare(model: Path, text: str, batch: int, threads: int | None) -> dict[str, Any]:
    """Run the plain loop."""
    start = time.monotonic()
    marks: list[tuple[float, int, float]] = []
    done = 0
    with load(model, "onnxruntime", threads=threads, quiet=True) as detector:
        pictures = (FleetPicture(i, a, False) for i, a in enumerate(addresses(text)))
        while chunk := list(islice(pictures, batch)):
            images = []
            for picture in chunk:
                try:
                    images.append(image_from_picture(picture))
                except ImageError:
                    continue
            detector(images)
            done += len(chunk)
            marks.append((time.monotonic() - start, done, time.process_time()))
    inner = [m for m in marks if done * 0.1 <= m[1] <= done * 0.9]
    rate = (inner[-1][1] - inner[0][1]) / (inner[-1][0] - inner[0][0])
    cpu = (inner[-1][2] - inner[0][2]) / (inner[-1][1] - inner[0][1])
    return {"rate": rate, "whole": done / (time.monotonic() - start), "cpu_ms": 1e3 * cpu}


def fleet(
    way: str, model: Path, text: str, batch: int, shard_size: int, place: Path
) -> dict[str, Any]:
    """Run one engine."""
    cores = len(os.sched_getaffinity(0))

    def places(job: Job) -> Engine:
        if way == "local_1":
            return InProcess()
        return Processes([HERE] * cores) if way == "local" else OnRay(actors=(cores, cores))

    clock = CpuClock()
    summary = fleet_predict(
        model,
        text,
        place,
        places,
        settings=Settings(batch=batch),
        pace=Pace(1),
        shard_size=shard_size,
        listener=clock,
    )
    whole = summary.rows / (time.monotonic() - clock.start)
    found = {"rate": clock.rate(), "whole": whole, "results_sha256": summary.results_sha256}
    return {**found, "cpu_ms": clock.cpu_ms()} if way == "local_1" else found


def _cpu(runs: dict[str, list[dict[str, Any]]], way: str) -> float:
    return float(statistics.median(r["cpu_ms"] for r in runs[way]))


def main() -> None:
    """Run it."""
    wishes = arguments()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "packages": package_versions(("ray", "pyarrow", "onnxruntime")),
        "models": {},
    }
    with tempfile.TemporaryDirectory(prefix="fleet-overhead-") as name:
        place = Path(name)
        corrupt = "corrupt=0.01"
        cases = {
            "tiny": (tiny_detector(place), f"synthetic://{wishes.tiny}?{corrupt}", 8, 500),
            "sample": (
                onnx_file(),
                f"synthetic://{wishes.sample}?size=480x640&jpeg=1&{corrupt}",
                1,
                10,
            ),
        }
        for case, (model, text, batch, shard_size) in cases.items():
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for turn in range(wishes.rounds):
                for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
                    load_before = os.getloadavg()[0]
                    if way.startswith("bare"):
                        one = bare(model, text, batch, 1 if way == "bare_1" else None)
                    else:
                        out = place / f"{case}-{way}-{turn}"
                        one = fleet(way, model, text, batch, shard_size, out)
                    runs[way].append({**one, "load": [load_before, os.getloadavg()[0]]})
                    print(case, turn, way, runs[way][-1], flush=True)
            medians = {way: statistics.median(r["rate"] for r in runs[way]) for way in WAYS}
            result["models"][case] = {
                "input": text,
                "batch": batch,
                "runs": runs,
                "median_rate": medians,
                "of_bare": {way: medians[way] / medians["bare"] for way in WAYS},
                "of_bare_1": {way: medians[way] / medians["bare_1"] for way in WAYS},
                "cpu_bare_1_of_local_1": _cpu(runs, "bare_1") / _cpu(runs, "local_1"),
            }
            shown = {k: v for k, v in result["models"][case].items() if k != "runs"}
            print(case, json.dumps(shown), flush=True)
            write_atomic(wishes.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
