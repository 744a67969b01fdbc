"""INT8 of one checkpoint: Boxwright's files beside Ultralytics' own, accuracy, size and time.

Both calibrate on the same half of the pictures and are measured on the other. Each accuracy is
given by both projects' own evaluation where it can run the file, so that each drop is against the
FP32 file in the same evaluation. Time goes round picture by picture, each file in its own process;
the baseline is Ultralytics' FP32 ONNX file.

Run: `python benchmarks/int8_vs_ultralytics.py yolo11n.pt images/train2017 labels/train2017`
(Ultralytics' OpenVINO INT8 needs `nncf`; without it that row is missing, and the output says so.)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import (
    environment,
    export_ultralytics,
    markdown_table,
    median,
    our_variables,
    ultralytics_variables,
    write_results,
)
from predict_vs_ultralytics import Samples, median_ratio, time_in_turn
from processes import Worker

_BASE = "Ultralytics FP32 onnx"
_TARGET = 0.35
_THEIRS = """
import sys
sys.path.insert(0, sys.argv[1])
from worker import stand_in_for_torchvision
from ultralytics import YOLO
stand_in_for_torchvision()
model, form, data = sys.argv[2:]
YOLO(model).export(format=form, quantize=8, data=data, batch=1)
"""
_VAL = """
import json, sys
sys.path.insert(0, sys.argv[1])
from worker import stand_in_for_torchvision
from ultralytics import YOLO
stand_in_for_torchvision()
found = {}
for model in sys.argv[3:]:
    box = YOLO(model, task="detect").val(data=sys.argv[2], batch=1, imgsz=640, device="cpu",
        rect=False, plots=False, verbose=False, workers=0).box
    found[model] = [float(box.map), float(box.map50)]
print("RESULT " + json.dumps(found))
"""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path, help="an Ultralytics detection checkpoint")
    parser.add_argument("images", type=Path, help="folder of pictures")
    parser.add_argument("labels", type=Path, help="folder of their YOLO labels")
    parser.add_argument("--limit", type=int, default=32, help="pictures to time (default 32)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over them (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="of every runtime (default 2)")
    parser.add_argument("--max-drop", type=float, default=0.005, help="budget (default 0.005)")
    parser.add_argument("--work", type=Path, help="folder for all files; one of before goes on")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/)")
    return parser.parse_args()


def split_in_halves(wishes: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Link every second picture into `calib` and the others into `held`; return their data.yaml."""
    import yaml

    from boxwright import catalog
    from boxwright.sources import SourceRequest

    source = catalog.source_for(wishes.checkpoint.suffix)
    spec = source.describe(SourceRequest(wishes.checkpoint, "m"))
    found = {}
    for number, name in enumerate(("held", "calib")):
        for part in ("images", "labels"):
            (folder / name / part).mkdir(parents=True, exist_ok=True)
        for picture in sorted(wishes.images.glob("*.jpg"))[number::2]:
            link = folder / name / "images" / picture.name
            if link.is_symlink():
                continue
            link.symlink_to(picture.resolve())
            label = wishes.labels / f"{picture.stem}.txt"
            if label.is_file():
                (folder / name / "labels" / label.name).symlink_to(label.resolve())
        found[name] = folder / f"{name}.yaml"
        text = {"path": str(folder / name), "train": "images", "val": "images"}
        names = dict(enumerate(spec.class_names))
        found[name].write_text(yaml.safe_dump({**text, "names": names}), encoding="utf-8")
    return found


def make_theirs(folder: Path, data: Path) -> dict[str, Path]:
    """Return Ultralytics' INT8 files of the copied checkpoint, by name."""
    forms = {"onnx": "theirs_int8.onnx"}
    if importlib.util.find_spec("nncf"):
        forms["openvino"] = "theirs_int8_openvino_model"
    else:
        print("nncf is not installed: Ultralytics' OpenVINO INT8 is not measured")
    found = {}
    here = str(Path(__file__).parent)
    for form, name in forms.items():
        found[f"Ultralytics INT8 {form}"] = folder / name
        if (folder / name).exists():
            continue
        copy, plain = folder / "theirs.pt", folder / "theirs.onnx"
        kept = plain.read_bytes()
        subprocess.run(
            [sys.executable, "-c", _THEIRS, here, str(copy), form, str(data)],
            env=ultralytics_variables(folder),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        plain.write_bytes(kept)  # their INT8 export removes the FP32 file
    return found


def make_ours(wishes: argparse.Namespace, folder: Path, data: dict[str, Path]) -> dict[str, Any]:
    """Run the main job with the accuracy budget, and return its report."""
    words = [
        "run", wishes.checkpoint, "--name", "ours", "--precision", "fp32,int8",
        "--deploy", "cpu,openvino", "--outputs", "raw,end2end", "--calib-method", "auto",
        "--calib-images", folder / "calib" / "images", "--data", data["held"],
        "--max-drop", wishes.max_drop, "--threads", wishes.threads, "--skip-benchmark",
        "--out", folder / "runs",
    ]  # fmt: skip
    command = [sys.executable, "-m", "boxwright", *map(str, words)]
    subprocess.run(command, env=our_variables(), check=True, stdout=subprocess.DEVNULL)
    report = (folder / "runs" / "ours" / "report.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(report)
    return found


def their_accuracy(folder: Path, data: Path, files: list[Path]) -> dict[str, list[float]]:
    """Return mAP50-95 and mAP50 by Ultralytics' own evaluation, by path."""
    ran = subprocess.run(
        [sys.executable, "-c", _VAL, str(Path(__file__).parent), str(data), *map(str, files)],
        env=ultralytics_variables(folder),
        check=True,
        capture_output=True,
        text=True,
    )
    line = next(x for x in ran.stdout.splitlines() if x.startswith("RESULT "))
    found: dict[str, list[float]] = json.loads(line.removeprefix("RESULT "))
    return found


def our_accuracy(files: list[Path], data: Path, threads: int) -> dict[str, float]:
    """Return mAP50-95 of ONNX files by `boxwright evaluate` in ONNX Runtime, by path."""
    words = ["evaluate", *files, "--data", data, "--runtime", "onnxruntime", "--resamples", "0"]
    command = [sys.executable, "-m", "boxwright", *map(str, words), "--threads", str(threads)]
    ran = subprocess.run(
        [*command, "--json"], env=our_variables(), check=True, capture_output=True, text=True
    )
    return {row["candidate"]: row["map50_95"] for row in json.loads(ran.stdout)}


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size


def print_times(samples: Samples) -> dict[str, float]:
    """Print medians, and return the median ratio of totals to the baseline."""
    base = samples[_BASE]["total"]
    ratios = {name: round(median_ratio(s["total"], base), 3) for name, s in samples.items()}
    rows = [
        [name, f"{median(s['infer']):.1f}", f"{median(s['total']):.1f}", f"{median(s['cpu']):.1f}",
         f"{ratios[name]:.2f}"]
        for name, s in samples.items()
    ]  # fmt: skip
    print(markdown_table(["median ms", "infer", "total", "cpu", "ratio of totals"], rows))
    return ratios


def main() -> None:
    """Make, measure, compare and report."""
    wishes = arguments()
    facts: dict[str, Any] = {"environment": environment(), "checkpoint": wishes.checkpoint.name}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = (wishes.work or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        data = split_in_halves(wishes, folder)
        fp32 = folder / "theirs.onnx"
        if not fp32.is_file():
            export_ultralytics(wishes.checkpoint, folder)
        theirs = {_BASE: fp32, **make_theirs(folder, data["calib"])}
        report = make_ours(wishes, folder, data)
        runs = folder / "runs" / "ours"
        by_them = their_accuracy(folder, data["held"], list(theirs.values()))
        plain = [p for p in theirs.values() if p.suffix == ".onnx"]
        by_us = our_accuracy(plain, data["held"], wishes.threads)
        rows = []
        reference = size_of(fp32)
        for label, path in theirs.items():
            own = by_us.get(path.name)
            rows.append([label, f"{size_of(path) / reference:.3f}",
                         f"{own:.4f}" if own is not None else "-",
                         f"{by_them[str(path)][0]:.4f}"])  # fmt: skip
        for row in report["accuracy"]:
            if row["file"] == "source" or ".end2end" in row["file"]:
                continue
            size = (runs / row["file"]).stat().st_size / reference
            mapped = f"{row['accuracy']['map50_95']:.4f}"
            rows.append([f"{row['file']} in {row['runtime']}", f"{size:.3f}", mapped, "-"])
        head = ["file", "size to their FP32", "mAP50-95, our evaluation", "theirs"]
        print(markdown_table(head, rows))
        pictures = sorted((folder / "held" / "images").glob("*.jpg"))[: wishes.limit]
        sides = {label: ("ultralytics", path) for label, path in theirs.items()}
        for file in ("fp32", "int8", "int8.end2end"):
            for runtime in ("onnxruntime", "openvino"):
                sides[f"ours.{file} {runtime}"] = (runtime, runs / f"ours.{file}.onnx")
        for file in ("int8.openvino", "int8.openvino.end2end"):
            sides[f"ours.{file}"] = ("openvino", runs / f"ours.{file}.onnx")
        workers = {
            label: stack.enter_context(Worker(side, path, pictures, folder, threads=wishes.threads))
            for label, (side, path) in sides.items()
        }
        samples = time_in_turn(workers, len(pictures), wishes.rounds)
    print()
    ratios = print_times(samples)
    best = min((n for n in ratios if n.startswith("ours")), key=lambda n: ratios[n])
    said = "met" if ratios[best] <= _TARGET else "missed"
    print(f"\nbest of ours: {best}, {ratios[best]:.2f} (target {_TARGET}: {said})")
    kept = ("accuracy", "artifacts", "notes")
    facts |= {
        "accuracy_rows": rows,
        "their_evaluation": {Path(k).name: v for k, v in by_them.items()},
        "our_evaluation_of_theirs": by_us,
        "our_report": {
            key: [
                {k: v for k, v in row.items() if k not in ("inputs", "outputs", "spec")}
                if isinstance(row, dict)
                else row
                for row in report[key]
            ]
            for key in kept
        },
        "ratios_of_totals": ratios,
        "threads": wishes.threads,
        "samples_ms": samples,
    }
    print(f"raw samples: {write_results('int8_vs_ultralytics', facts, wishes.out).name}")


if __name__ == "__main__":
    main()
