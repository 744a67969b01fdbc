"""Many synthetic pictures through `fleet predict`: rows, hash, rate and memory over time.

    python benchmarks/fleet_scale.py --pictures 100000 --engines local,ray --out fleet_scale.json

A tiny detector (64 px, random weights that detect) over pictures that are generated on the fly, one
in a hundred of them damaged. The command runs as a user starts it; every half second the resident
memory of it and of all its descendants is sampled, and the load average of the machine. Ray starts
a cluster of its own on this machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from boxwright.environment import describe_machine, package_versions
from boxwright.fleet.synthetic import synthetic_from_text
from boxwright.store import write_atomic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--corrupt", type=float, default=0.01)
    parser.add_argument("--engines", default="local,ray")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("fleet_scale.json"))
    return parser.parse_args()


def tiny_detector(folder: Path) -> Path:
    """Write a detector of 64 px that finds a few things in a picture."""
    models = importlib.import_module("tiny_models")
    return Path(models.ultralytics_onnx(folder / "tiny.onnx", offset=-6.0))


class Memory:
    """Samples what a process and its descendants hold, in a thread."""

    def __init__(self, process: int) -> None:
        self.process, self.samples = process, list[tuple[float, int, int, float]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._start = time.monotonic()
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            own = _resident(self.process)
            family = own + sum(_resident(p) for p in _descendants(self.process))
            moment = round(time.monotonic() - self._start, 1)
            self.samples.append((moment, own >> 20, family >> 20, os.getloadavg()[0]))

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()


def _resident(process: int) -> int:
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")  # without shared pages


def _descendants(process: int) -> list[int]:
    found = []
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                found += [int(child), *_descendants(int(child))]
    except OSError:
        return found
    return found


def measure(engine: str, model: Path, place: Path, wishes: argparse.Namespace) -> dict[str, Any]:
    """Run one engine over all pictures."""
    text = f"synthetic://{wishes.pictures}?seed=8&corrupt={wishes.corrupt}"
    words = ["fleet", "predict", str(model), text, "--out", str(place / engine), "--json"]
    words += ["--runtime", "onnxruntime", "--batch", str(wishes.batch), "--engine", engine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    start = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "boxwright", *words], env=environment, stdout=subprocess.PIPE
    )
    memory = Memory(run.pid)
    said, _ = run.communicate()
    whole = time.monotonic() - start
    memory.close()
    summary = json.loads(said)
    fresh = synthetic_from_text(text)
    expected = sum(fresh.is_corrupt(i) for i in range(fresh.count))
    middle = memory.samples[len(memory.samples) // 5 :]
    half = len(middle) // 2
    result = {
        "engine": engine,
        "command": " ".join(["boxwright", *words]).replace(str(place), "."),
        "exit": run.returncode,
        "summary": summary,
        "rows_equal_inputs": summary["rows"] == wishes.pictures,
        "corrupt_expected": expected,
        "rate": summary["rows"] / summary["seconds"],
        "seconds_whole_command": whole,
        "memory_mib_first_half": sum(m[2] for m in middle[:half]) / max(half, 1),
        "memory_mib_second_half": sum(m[2] for m in middle[half:]) / max(len(middle) - half, 1),
        "driver_mib_first_half": sum(m[1] for m in middle[:half]) / max(half, 1),
        "driver_mib_second_half": sum(m[1] for m in middle[half:]) / max(len(middle) - half, 1),
        "samples_s_driver_all_mib_load": memory.samples,
    }
    shown = {k: v for k, v in result.items() if not k.startswith("samples")}
    print(json.dumps(shown, indent=1), flush=True)
    return result


def main() -> None:
    """Run it."""
    wishes = arguments()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "packages": package_versions(("ray", "pyarrow", "onnxruntime", "numpy")),
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="fleet-scale-") as name:
        model = tiny_detector(Path(name))
        for engine in wishes.engines.split(","):
            result["runs"].append(measure(engine, model, Path(name), wishes))
            write_atomic(wishes.out, json.dumps(result, indent=1).encode())
    hashes = {r["summary"]["results_sha256"] for r in result["runs"]}
    result["one_hash"] = len(hashes) == 1
    write_atomic(wishes.out, json.dumps(result, indent=1).encode())
    print("one hash" if len(hashes) == 1 else f"DIFFERENT: {hashes}")


if __name__ == "__main__":
    main()
