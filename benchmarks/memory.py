"""Peak memory of detecting in pictures from files, one at a time: a fresh process each.

Run: `python benchmarks/memory.py yolo11n.pt pictures/`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import (
    environment,
    export_ours,
    export_ultralytics,
    markdown_table,
    median,
    pictures_of,
    verdict,
    write_results,
)
from processes import Worker

_BARE, _BASE = "bare interpreter", "Ultralytics/onnx"
_OURS = ("ours/onnxruntime", "ours/openvino", "ours/auto")
_TARGET = 0.5


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path, help="an Ultralytics detection checkpoint")
    parser.add_argument("images", nargs="+", help="pictures, folders or globs")
    parser.add_argument("--limit", type=int, default=20, help="pictures (default 20)")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/)")
    return parser.parse_args()


def peak_of_detecting(side: str, model: Path, pictures: list[Path], folder: Path) -> int:
    """Return the peak RSS in kB of a process that detects in all pictures."""
    with Worker(side, model, pictures, folder, threads=None, decode=False) as worker:
        for index in range(len(pictures)):
            worker.ask("time", index)
        return int(worker.ask("peak"))


def peak_of_interpreter() -> int:
    """Return the peak RSS in kB of Python doing nothing."""
    code = "print(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[1])


def main() -> None:
    """Export, measure in turn, and report."""
    wishes = arguments()
    pictures = pictures_of(wishes.images, wishes.limit)
    facts: dict[str, Any] = {
        "environment": environment(),
        "checkpoint": wishes.checkpoint.name,
        "pictures": len(pictures),
        "rounds": wishes.rounds,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = export_ours(wishes.checkpoint, folder)
        checkpoint, theirs = export_ultralytics(wishes.checkpoint, folder)
        sides = {
            _OURS[0]: ("onnxruntime", ours),
            _OURS[1]: ("openvino", ours),
            _OURS[2]: ("auto", ours),
            _BASE: ("ultralytics", theirs),
            "Ultralytics/torch": ("ultralytics", checkpoint),
        }
        samples: dict[str, list[int]] = {_BARE: [], **{label: [] for label in sides}}
        for _ in range(wishes.rounds):
            samples[_BARE].append(peak_of_interpreter())
            for label, (side, model) in sides.items():
                samples[label].append(peak_of_detecting(side, model, pictures, folder))
    medians = {label: median(values) for label, values in samples.items()}
    rows = [
        [label, f"{medians[label] / 1e3:.1f}", f"{medians[label] / medians[_BASE]:.2f}"]
        for label in samples
    ]
    print(markdown_table(["process", "median peak RSS, MB", f"ratio to {_BASE}"], rows))
    print()
    for label in _OURS:
        ratio = medians[label] / medians[_BASE]
        print(f"{label}: {ratio:.2f}, target {_TARGET}: {verdict(ratio, _TARGET)}")
    facts |= {"medians_kb": medians, "samples_kb": samples}
    print(f"\nraw samples: {write_results('memory', facts, wishes.out).name}")


if __name__ == "__main__":
    main()
