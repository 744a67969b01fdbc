"""Takes raw FP32 ONNX files of many models to plans on a GPU machine, and proves and times each.

    python benchmarks/gpu_models.py FOLDER --work work --stage export,build,verify,evaluate,time \
        --images pictures/ --calib-images calibration/ --data data.yaml --jobs 6

Every step is a command of Boxwright in a process of its own; what it said, its exit status and its
seconds are kept in WORK/steps/NAME.json. A step that ended well is not run again, so that a call
that was cut off goes on with the next. Plans that share precision and batch share a timing cache:
the end-to-end one is built after the raw one. Builds beside each other disturb each other's timing
of kernels: give --jobs 1 for plans whose speed or build time is to be quoted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

_SOURCES = "edge_mask_convolutions,jit_convolutions"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="NAME.fp32.onnx of each model, or typed files")
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--stage", default="export,build,verify,evaluate,time")
    parser.add_argument("--only", default="", help="words of which a model's name must be one")
    parser.add_argument("--precision", default="fp32,fp16,int8")
    parser.add_argument("--outputs", default="raw,end2end")
    parser.add_argument("--batch", default="1,1,1", help="profile of the plans")
    parser.add_argument("--measure", default="1", help="batch sizes to time")
    parser.add_argument("--level", type=int, default=1, help="optimisation level, 0 to 5")
    parser.add_argument("--jobs", type=int, default=1, help="builds beside each other")
    parser.add_argument("--again", action="store_true", help="build anew with the timing cache")
    parser.add_argument("--images", default="", help="pictures to compare detections on")
    parser.add_argument("--calib-images", default="", help="pictures to calibrate on")
    parser.add_argument("--data", default="", help="labelled pictures")
    parser.add_argument("--max-drop", default="", help="accuracy budget of FP16 and INT8")
    parser.add_argument("--all-tactics", action="store_true", help="cuBLAS and cuDNN, too")
    parser.add_argument("--iterations", type=int, default=1000)
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan that is wanted.

    Attributes:
        model: Name of the model.
        source: Its raw FP32 file, with which it is compared.
        onnx: The typed file that it is built from.
        precision, outputs: What that is.
        folder: Where the plan goes.
    """

    model: str
    source: Path
    onnx: Path
    precision: str
    outputs: str
    folder: Path

    @property
    def name(self) -> str:
        """What tells it from the others, in file names."""
        return f"{self.folder.name}.{self.onnx.stem}"

    def path(self) -> Path | None:
        """Return the plan, or None where it was not built."""
        found = sorted(self.folder.glob(f"{self.onnx.stem}.trt*.plan"))
        return found[0] if found else None


class Steps:
    """Runs commands of Boxwright, and keeps what they said."""

    def __init__(self, folder: Path) -> None:
        """Keep the steps in a folder."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> dict[str, Any] | None:
        """Return a step that ended well, or None."""
        path = self.folder / f"{name}.json"
        step: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"exit": None}
        return step if step["exit"] in (0, 1) else None

    def run(self, name: str, words: list[str]) -> dict[str, Any]:
        """Run `boxwright WORDS` unless that was done."""
        earlier = self.done(name)
        if earlier is not None:
            return earlier
        begin = perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "boxwright", *words], capture_output=True, text=True, check=False
        )
        step = {
            "command": "boxwright " + " ".join(words),
            "exit": done.returncode,
            "seconds": round(perf_counter() - begin, 2),
            "out": _json_or_text(done.stdout),
            "err": done.stderr[-3000:],
        }
        (self.folder / f"{name}.json").write_text(json.dumps(step))
        last = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        print(f"{name}: exit {done.returncode} in {step['seconds']} s {' '.join(last)}", flush=True)
        return step


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def export(steps: Steps, model: str, source: Path, wishes: argparse.Namespace) -> None:
    """Make the typed files of a model."""
    words = [
        "run" if wishes.max_drop else "export", str(source), "--precision", wishes.precision,
        "--outputs", wishes.outputs, "--nms", "efficient_nms",
        "--out", str(wishes.work / "onnx"), "--name", model,
    ]  # fmt: skip
    if "int8" in wishes.precision:
        words += ["--deploy", "tensorrt", "--calib-images", wishes.calib_images]
    if wishes.max_drop:
        words += ["--data", wishes.data, "--max-drop", wishes.max_drop, "--skip-benchmark"]
    steps.run(f"export.{model}", words)


def plans_of(model: str, source: Path, wishes: argparse.Namespace) -> list[Plan]:
    """Return the plans of a model whose typed files are there."""
    folder = wishes.work / f"plans.l{wishes.level}.b{wishes.batch.replace(',', '-')}"
    found = []
    for precision in wishes.precision.split(","):
        for outputs in wishes.outputs.split(","):
            middle = f"{precision}.tensorrt" if precision == "int8" else precision
            tail = ".end2end.efficient_nms" if outputs == "end2end" else ""
            onnx = wishes.work / "onnx" / model / f"{model}.{middle}{tail}.onnx"
            if not onnx.exists():
                print(f"{onnx.name} is not there", flush=True)
                continue
            found.append(Plan(model, source, onnx, precision, outputs, folder))
    return found


def build(steps: Steps, plans: list[Plan], wishes: argparse.Namespace) -> None:
    """Build plans that share a timing cache, one after the other."""
    for plan in plans:
        plan.folder.mkdir(parents=True, exist_ok=True)
        cache = plan.folder / f"{plan.model}.{plan.precision}.cache"
        out = plan.folder.with_name(f"{plan.folder.name}.again") if wishes.again else plan.folder
        words = [
            "build", str(plan.onnx), "--batch", wishes.batch, "--optimization-level",
            str(wishes.level), "--timing-cache", str(cache), "--out", str(out), "--json",
        ]  # fmt: skip
        words += [] if wishes.all_tactics else ["--tactic-sources", _SOURCES]
        steps.run(f"build{'.again' * wishes.again}.{plan.name}", words)


def check(steps: Steps, stage: str, plans: list[Plan], wishes: argparse.Namespace) -> None:
    """Verify, evaluate or time what was built."""
    for plan in plans:
        path = plan.path()
        if path is None:
            print(f"{plan.name} was not built", flush=True)
            continue
        if stage == "verify":
            # An FP32 plan computes in TF32, so that FP16's limits are the right ones.
            words = ["verify", str(plan.source), str(path), "--json"]
            words += [] if plan.precision == "int8" else ["--precision", "fp16"]
            words += ["--images", wishes.images] if wishes.images else []
        elif stage == "evaluate":
            words = ["evaluate", str(path), "--data", wishes.data, "--json"]
        else:
            words = [
                "benchmark", str(path), "--batch", wishes.measure, "--warmup", "100",
                "--iterations", str(wishes.iterations), "--no-memory", "--json",
            ]  # fmt: skip
        steps.run(f"{stage}.{plan.name}", words)


def main() -> None:
    """Run the stages that were asked for."""
    wishes = arguments()
    steps = Steps(wishes.work / "steps")
    sources = {p.name.removesuffix(".fp32.onnx"): p for p in wishes.folder.glob("*.fp32.onnx")}
    words = [w for w in wishes.only.split(",") if w]
    sources = {n: p for n, p in sorted(sources.items()) if not words or n in words}
    for stage in wishes.stage.split(","):
        with ThreadPoolExecutor(wishes.jobs) as pool:
            if stage == "export":
                waiting = [pool.submit(export, steps, n, p, wishes) for n, p in sources.items()]
            else:
                every = [plans_of(n, p, wishes) for n, p in sources.items()]
                groups = [
                    [plan for plan in plans if plan.precision == precision]
                    for precision in wishes.precision.split(",")
                    for plans in every
                ]
                waiting = [
                    pool.submit(build, steps, group, wishes)
                    if stage == "build"
                    else pool.submit(check, steps, stage, group, wishes)
                    for group in groups
                ]
            for future in waiting:
                future.result()


if __name__ == "__main__":
    main()
