"""`fleet run` over six models and four targets, killed half-way and resumed: the same hashes.

    python benchmarks/fleet_run_kill.py --out fleet_run_kill.json

Six tiny networks with random weights, FP32 and FP16, raw and end-to-end. One run goes undisturbed;
another is killed (SIGKILL) when half of its files are made, and taken up with --resume; a third is
started twice at the same time on one folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from boxwright.environment import describe_machine
from boxwright.store import sha256_of_file, write_atomic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
MODELS, TARGETS = 6, 4
_OPTIONS = ("--family", "ultralytics", "--precision", "fp32,fp16", "--outputs", "raw,end2end")


def start(place: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start the command in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "boxwright", "fleet", "run", *words, "--jobs", "2"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.DEVNULL,
    )


def hashes(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every published file."""
    return {f"{p.parent.name}/{p.name}": sha256_of_file(p) for p in sorted(out.glob("m*/m*.onnx"))}


def made(out: Path) -> int:
    """Return how many files are made, published or not."""
    return len({p.name for p in (*out.glob("m*/m*.onnx"), *out.glob("m*/.work/m*.onnx"))})


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("fleet_run_kill.json"))
    wishes = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine()}
    tiny = importlib.import_module("tiny_models")
    with tempfile.TemporaryDirectory(prefix="fleet-run-") as name:
        place = Path(name)
        sources = [f"m{i}.onnx" for i in range(MODELS)]
        for seed, source in enumerate(sources):
            tiny.ultralytics_onnx(place / source, seed=seed)
        begun = time.monotonic()
        result["undisturbed_exit"] = start(place, *sources, *_OPTIONS, "--out", "whole").wait()
        result["undisturbed_seconds"] = time.monotonic() - begun
        result["hashes"] = hashes(place / "whole")
        run = start(place, *sources, *_OPTIONS, "--out", "killed")
        while made(place / "killed") < MODELS * TARGETS // 2:
            time.sleep(0.02)
        run.kill()
        run.wait()
        result["made_when_killed"] = made(place / "killed")
        result["published_when_killed"] = len(hashes(place / "killed"))
        time.sleep(1.0)
        result["resumed_exit"] = start(place, "--resume", "--out", "killed").wait()
        result["resumed_equal"] = hashes(place / "killed") == result["hashes"]
        both = [start(place, *sources[:2], *_OPTIONS, "--out", "both") for _ in range(2)]
        result["concurrent_exits"] = [b.wait() for b in both]
        first = {n: h for n, h in result["hashes"].items() if n[:2] in ("m0", "m1")}
        result["concurrent_equal"] = hashes(place / "both") == first
        result["load_average"] = os.getloadavg()
    assert len(result["hashes"]) == MODELS * TARGETS
    write_atomic(wishes.out, json.dumps(result, indent=1).encode())
    print(json.dumps({k: v for k, v in result.items() if k not in ("hashes", "machine")}, indent=1))


if __name__ == "__main__":
    main()
