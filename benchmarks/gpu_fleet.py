"""Throughput of `fleet predict` at 1, 2, 4 GPUs and 1, 2, ... processes on each; the efficiency.

On a machine with GPUs (Python 3.10 or newer with the base dependencies, TensorRT and cuda-bindings;
neither Ray nor pyarrow):

    python benchmarks/gpu_fleet.py yolo11n.fp16.end2end.plan pictures/ --counts 1,2 --decode gpu \\
        --out gpu_fleet.json

Pictures are listed over and over, so that they come from the page cache. Each count does the same
list anew, so that the results of all counts must be equal, which is checked row by row. The rate is
that between the first and the last tenth of the rows, without the start of the processes; both
moments of every shard are kept. `bare` is a Stream in one process over the same list. Written after
each step; a step that fails is recorded with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from time import monotonic
from typing import Any

from boxwright.environment import describe_machine, package_versions
from boxwright.errors import BoxwrightError
from boxwright.fleet.engines import Engine
from boxwright.fleet.folder import JOB_FILE
from boxwright.fleet.job import Job, Pace, Settings
from boxwright.fleet.local import HERE, Processes
from boxwright.fleet.predict import FleetListener, fleet_predict
from boxwright.fleet.shard_files import rows_from_file, shard_name
from boxwright.gpus import device_numbers
from boxwright.images import expand_paths
from boxwright.loading import load
from boxwright.store import write_atomic
from boxwright.stream import Stream


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("images", nargs="+", help="pictures, folders or globs")
    parser.add_argument("--counts", default="1,2,4", help="of GPUs, a comma list")
    parser.add_argument("--per-gpu", default="1", help="processes on each GPU, a comma list")
    parser.add_argument("--files", type=int, default=60_000, help="length of the list")
    parser.add_argument("--bare-files", type=int, default=20_000, help="of it for the bare stream")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--decoders", type=int, default=0, help="of a worker; 0: cores / count")
    parser.add_argument("--decode", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--preprocess", choices=["host", "gpu"], default="gpu")
    parser.add_argument("--shard-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=2, help="of every count, in turns")
    parser.add_argument("--runtime", default="tensorrt")
    parser.add_argument("--cpu", action="store_true", help="processes without GPUs: a dry run")
    parser.add_argument("--out", type=Path, default=Path("gpu_fleet.json"))
    return parser.parse_args()


class Clock(FleetListener):
    """Keeps when how many rows were done."""

    def __init__(self) -> None:
        self.start = monotonic()
        self.moments: list[tuple[float, int]] = []

    def note(self, text: str) -> None:
        """Print it."""
        print(text, file=sys.stderr)

    def pictures(self, done: int, total: int, before: int) -> None:
        """Keep the moment."""
        if done:
            self.moments.append((round(monotonic() - self.start, 3), done))

    def rate(self) -> float:
        """Return rows a second between the first and the last tenth."""
        total = self.moments[-1][1]
        inner = [m for m in self.moments if total * 0.1 <= m[1] <= total * 0.9]
        (t0, n0), (t1, n1) = inner[0], inner[-1]
        return (n1 - n0) / (t1 - t0)


class Bench:
    """The list of files and the results."""

    def __init__(self, wishes: argparse.Namespace, place: Path) -> None:
        self.wishes, self.place = wishes, place
        unique = [p.resolve() for p in expand_paths(wishes.images)]
        self.files = list(islice(cycle(unique), wishes.files))
        self.list = place / "list.txt"
        self.list.write_text("".join(f"{p}\n" for p in self.files), encoding="utf-8")
        self.cores = len(os.sched_getaffinity(0))
        self.result: dict[str, Any] = {
            "machine": {**describe_machine(), "load_average": os.getloadavg()},
            "python": platform.python_version(),
            "packages": package_versions(("tensorrt", "cuda-bindings", "numpy", "onnxruntime")),
            "gpus": _nvidia_smi(),
            "plan": wishes.plan.name,
            "settings": {k: str(v) for k, v in vars(wishes).items()},
            "unique_files": len(unique),
            "steps": [],
            "errors": {},
        }

    def settings(self) -> Settings:
        """Return what decides the numbers."""
        w = self.wishes
        return Settings(
            runtime=w.runtime,
            device="cpu" if w.cpu else "cuda",
            batch=w.batch,
            decode=w.decode,
            preprocess=w.preprocess,
        )

    def decoders(self, workers: int) -> int:
        """Return the threads of each of so many workers."""
        return int(self.wishes.decoders or max(1, min(16, self.cores // workers)))

    def bare(self) -> None:
        """Time a Stream alone, the first tenth left out."""
        w = self.wishes
        device = "cpu" if w.cpu else "cuda"
        with (
            load(w.plan, w.runtime, device=device, quiet=True) as detector,
            Stream(
                detector,
                batch=w.batch,
                decoders=self.decoders(1),
                decode=w.decode,
                preprocess=w.preprocess,
            ) as stream,
        ):
            files = self.files[: w.bare_files]
            skip, start = len(files) // 10, 0.0
            for number, _ in enumerate(stream.detect(files)):
                if number == skip:
                    start = monotonic()
            rate = (len(files) - 1 - skip) / (monotonic() - start)
            self.keep({"step": "bare", "gpus": 1, "rate": rate, "runs_on": stream.description})

    def fleet(self, count: int, each: int, repeat: int) -> None:
        """Time the local engine on so many GPUs, with so many processes on each."""
        w, workers = self.wishes, count * each

        def places(job: Job) -> Engine:
            if w.cpu:
                return Processes([HERE] * workers)
            numbers = ",".join(str(n) for n in range(count))
            return Processes([v for _, v in device_numbers(numbers, os.environ)] * each)

        clock, out = Clock(), self.place / f"out-{count}-{each}-{repeat}"
        summary = fleet_predict(
            w.plan.resolve(),
            str(self.list),
            out,
            places,
            settings=self.settings(),
            pace=Pace(None, self.decoders(workers)),
            format="jsonl",
            shard_size=w.shard_size,
            listener=clock,
        )
        step = {
            "step": "fleet",
            "gpus": count,
            "per_gpu": each,
            "repeat": repeat,
            "rate": clock.rate(),
            "rate_with_start": summary.rows / summary.seconds,
            "decoders": self.decoders(workers),
            "moments": clock.moments,
            "load_average": os.getloadavg(),
            "summary": summary.as_dict(),
        }
        first = self.place / f"out-{self.counts()[0]}-{self.each()[0]}-0"
        if out != first and first.is_dir():
            step["rows_unlike_first"] = _unlike(first, out)
        self.keep(step)

    def counts(self) -> list[int]:
        """Return the numbers of GPUs to try."""
        return [int(c) for c in self.wishes.counts.split(",")]

    def each(self) -> list[int]:
        """Return the numbers of processes on a GPU to try."""
        return [int(c) for c in self.wishes.per_gpu.split(",")]

    def keep(self, step: dict[str, Any]) -> None:
        """Record a step, with its efficiency where one GPU's rate is known."""
        steps = self.result["steps"]
        fleets = [s for s in (*steps, step) if s["step"] == "fleet"]
        each = step.get("per_gpu")
        ones = [s["rate"] for s in fleets if s["gpus"] == 1 and s["per_gpu"] == each]
        if ones and step["step"] == "fleet":
            step["efficiency"] = step["rate"] / (step["gpus"] * sum(ones) / len(ones))
        steps.append(step)
        shown = {k: v for k, v in step.items() if k not in ("moments", "summary")}
        print(json.dumps(shown), flush=True)
        self.save()

    def save(self) -> None:
        """Write what is known."""
        write_atomic(self.wishes.out, json.dumps(self.result, indent=1).encode())


def _unlike(first: Path, second: Path) -> int:
    """Return how many rows of two folders of results differ in anything."""
    return sum(a != b for a, b in zip(_digests(first), _digests(second), strict=True))


def _digests(folder: Path) -> Iterator[bytes]:
    job = Job.from_dict(json.loads((folder / JOB_FILE).read_text(encoding="utf-8")))
    for shard in range(job.shards):
        for row in rows_from_file(job, folder / "shards" / shard_name(job, shard)):
            yield row.digest()


def _nvidia_smi() -> str:
    try:
        query = "--query-gpu=index,name,clocks.sm,memory.used,driver_version"
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, check=False
        )
    except OSError:
        return "no nvidia-smi"
    return done.stdout.strip()


def _steps(bench: Bench, repeats: int) -> Iterator[tuple[str, int, int, int]]:
    yield "bare", 1, 1, 0
    for repeat in range(repeats):
        yield from (("fleet", c, e, repeat) for c in bench.counts() for e in bench.each())
    yield "bare", 1, 1, 1


def main() -> None:
    """Run it."""
    wishes = arguments()
    with tempfile.TemporaryDirectory(prefix="gpu-fleet-") as name:
        bench = Bench(wishes, Path(name))
        for what, count, each, repeat in _steps(bench, wishes.repeats):
            try:
                if what == "bare":
                    bench.bare()
                else:
                    bench.fleet(count, each, repeat)
            except (BoxwrightError, OSError, ArithmeticError, IndexError) as error:
                bench.result["errors"][f"{what} {count} {each} {repeat}"] = f"{error!r}"
                print(f"{what} {count} {each} {repeat}: {error!r}", file=sys.stderr)
                bench.save()


if __name__ == "__main__":
    main()
