"""Cold starts: wall and processor time of whole processes, in turn, files in the disk cache.

Run: `python benchmarks/startup.py yolo11n.pt bus.jpg`
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import (
    HERE,
    environment,
    export_ours,
    export_ultralytics,
    markdown_table,
    median,
    our_variables,
    quartiles,
    ultralytics_variables,
    verdict,
    write_results,
)

_BARE = "bare interpreter"
_IMPORT, _HELP = "import boxwright", "boxwright --help"
_PREDICT = "boxwright predict"
_THEIRS_ONNX, _THEIRS_PT = "Ultralytics predict, .onnx", "Ultralytics predict, .pt"
_IMPORT_TARGET_S, _HELP_TARGET_S, _PREDICT_TARGET = 0.15, 0.3, 0.25
# What a user's script would hold, with the stand-in for torchvision's operators (see worker.py).
_THEIRS = """
import sys
sys.path.insert(0, sys.argv[3])
from ultralytics import YOLO
from worker import stand_in_for_torchvision
stand_in_for_torchvision()
found = YOLO(sys.argv[1], task="detect").predict(sys.argv[2], conf=0.25, iou=0.7, device="cpu")
"""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path, help="an Ultralytics detection checkpoint")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rounds", type=int, default=9, help="starts of each (default 9)")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/)")
    return parser.parse_args()


def commands(
    ours: Path, theirs: Path, checkpoint: Path, picture: Path, folder: Path
) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return what is started, by name, each with its environment."""
    python, mine, other = sys.executable, our_variables(), ultralytics_variables(folder)
    predict = [python, "-m", "boxwright", "predict", str(ours), str(picture)]
    thresholds = ["--score-threshold", "0.25", "--iou-threshold", "0.7"]
    table = {
        _BARE: ([python, "-c", "pass"], mine),
        _IMPORT: ([python, "-c", "import boxwright"], mine),
        _HELP: ([python, "-m", "boxwright", "--help"], mine),
        "import ultralytics": ([python, "-c", "import ultralytics"], other),
        "import ultralytics.YOLO": ([python, "-c", "from ultralytics import YOLO"], other),
    }
    for runtime in ("auto", "onnxruntime", "openvino"):
        table[f"{_PREDICT}, {runtime}"] = ([*predict, *thresholds, "--runtime", runtime], mine)
    for name, model in ((_THEIRS_ONNX, theirs), (_THEIRS_PT, checkpoint)):
        table[name] = ([python, "-c", _THEIRS, str(model), str(picture), str(HERE)], other)
    return table


def start(command: list[str], variables: dict[str, str], folder: Path) -> tuple[float, float]:
    """Run a process to its end and return its wall and its processor time in seconds.

    Raises:
        RuntimeError: It fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = perf_counter()
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)
    wall = perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{command[1:4]} ended with {done.returncode}: {done.stderr[-600:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def print_report(samples: dict[str, list[float]], cpu: dict[str, list[float]]) -> dict[str, float]:
    """Print the table and the targets; return the median wall times in seconds."""
    medians = {name: round(median(values), 4) for name, values in samples.items()}
    bare = medians[_BARE]
    rows = []
    for name, values in samples.items():
        low, middle, high = quartiles(values)
        rows.append([name, f"{middle:.3f}", f"{low:.3f}-{high:.3f}", f"{middle - bare:.3f}",
                     f"{median(cpu[name]):.3f}"])  # fmt: skip
    head = ["process", "median s", "quartiles", "beyond the interpreter", "CPU s"]
    print(markdown_table(head, rows))
    print()
    for name, limit in ((_IMPORT, _IMPORT_TARGET_S), (_HELP, _HELP_TARGET_S)):
        print(f"{name}: {medians[name]:.3f} s, target {limit} s: {verdict(medians[name], limit)}")
    for theirs in (_THEIRS_ONNX, _THEIRS_PT):
        for name in (n for n in samples if n.startswith(_PREDICT)):
            ratio, cpu_ratio = (
                median([a / b for a, b in zip(table[name], table[theirs], strict=True)])
                for table in (samples, cpu)
            )
            print(f"{name} / {theirs}: wall {ratio:.2f} (CPU {cpu_ratio:.2f}), "
                  f"target {_PREDICT_TARGET}: {verdict(ratio, _PREDICT_TARGET)}")  # fmt: skip
    return medians


def main() -> None:
    """Export, start everything in turn, and report."""
    wishes = arguments()
    facts: dict[str, Any] = {
        "environment": environment(),
        "checkpoint": wishes.checkpoint.name,
        "picture": wishes.picture.name,
        "rounds": wishes.rounds,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = export_ours(wishes.checkpoint.resolve(), folder)
        checkpoint, theirs = export_ultralytics(wishes.checkpoint.resolve(), folder)
        table = commands(ours, theirs, checkpoint, wishes.picture.resolve(), folder)
        samples: dict[str, list[float]] = {label: [] for label in table}
        processor: dict[str, list[float]] = {label: [] for label in table}
        names = list(table)
        for turn in range(-1, wishes.rounds):  # the round before the first fills the disk cache
            first = turn % len(names)
            for label in names[first:] + names[:first]:
                wall, cpu = start(*table[label], folder)
                if turn >= 0:
                    samples[label].append(round(wall, 4))
                    processor[label].append(round(cpu, 4))
    medians = print_report(samples, processor)
    facts |= {"medians_s": medians, "samples_s": samples, "cpu_samples_s": processor}
    print(f"\nraw samples: {write_results('startup', facts, wishes.out).name}")


if __name__ == "__main__":
    main()
