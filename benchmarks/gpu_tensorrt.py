"""Builds plans on a GPU machine that has little else, checks their detections and times them.

On a machine with the base package (pictures become tensors, ONNX Runtime on the CPU the reference):

    python benchmarks/gpu_tensorrt.py prepare yolo11n.fp32.onnx pictures/ --out reference.npz

On the GPU machine (Python 3.10 or newer with NumPy, onnx, TensorRT and cuda-bindings):

    python benchmarks/gpu_tensorrt.py run FOLDER reference.npz --plans plans --out results.json \
        --timing-cache gpu.cache --level 1 --limit-s 380

FOLDER holds the typed ONNX files of one model. What was built is kept in --plans and not built
again; no build is begun after --limit-s seconds, and the results are written after every file, so
that a call that was cut off goes on with the next. Plans are measured in the order of their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import traceback
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright import boxes
from boxwright.backends import BackendOptions
from boxwright.backends.tensorrt import TensorRtBackend
from boxwright.engine_record import read_record, record_bytes, sidecar_path
from boxwright.engines import BuildSettings, build_prepared, prepare
from boxwright.environment import package_versions
from boxwright.errors import BoxwrightError
from boxwright.matching import MatchRules, match_detections
from boxwright.stamps import Stamp, stamp_from_metadata
from boxwright.store import sha256_of_file, write_atomic
from boxwright.types import Detections, Latency, ModelSpec, NmsSettings

_LOOSE = 0.1  # the reference reaches so far below the threshold, for INT8's changed scores
# Least IoU and largest change of score of a pair. FP32 plans compute in TF32, whose mantissa has 10
# bits as FP16's, so that FP16's limits hold for them.
_LIMITS = {"fp32": (0.95, 0.02), "fp16": (0.95, 0.02), "int8": (0.85, 0.1)}
_SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")

Arrays = dict[str, npt.NDArray[Any]]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prepare", help="store inputs and reference detections")
    first.add_argument("model", type=Path, help="the raw FP32 ONNX file")
    first.add_argument("images", nargs="+", help="pictures, folders or globs")
    first.add_argument("--limit", type=int, default=16, help="pictures (default 16)")
    first.add_argument("--out", type=Path, default=Path("reference.npz"))
    second = verbs.add_parser("run", help="build, check and time on the GPU")
    second.add_argument("folder", type=Path, help="typed ONNX files of one model")
    second.add_argument("reference", type=Path, help="what prepare wrote")
    second.add_argument("--plans", type=Path, default=Path("plans"), help="where plans are kept")
    second.add_argument("--out", type=Path, default=Path("results.json"))
    second.add_argument("--timing-cache", type=Path)
    second.add_argument("--level", type=int, default=1, help="optimisation level, 0 to 5")
    second.add_argument("--workspace-gib", type=float)
    second.add_argument("--batch", default="1,1,1", help="smallest,best,largest (default 1,1,1)")
    second.add_argument("--measure", default="1", help="batch sizes to time, a comma list")
    second.add_argument("--only", default="", help="words of which a file's name must hold one")
    second.add_argument("--limit-s", type=float, default=380.0, help="begin no build after this")
    second.add_argument("--build-only", action="store_true", help="check and time nothing yet")
    second.add_argument("--warmup", type=int, default=100)
    second.add_argument("--iterations", type=int, default=1000)
    second.add_argument("--all-tactics", action="store_true", help="cuBLAS and cuDNN, too")
    return parser.parse_args()


# -- the reference


def write_reference(wishes: argparse.Namespace) -> None:
    """Store each picture's tensor and what ONNX Runtime in FP32 finds in it, in input pixels."""
    from boxwright.images import expand_paths, read_image
    from boxwright.loading import load

    paths = expand_paths(wishes.images)[: wishes.limit]
    stored: Arrays = {}
    with load(wishes.model, "onnxruntime", device="cpu", quiet=True) as detector:
        spec, nms = detector.spec, detector.nms
        loose = dataclasses.replace(nms, score_threshold=max(nms.score_threshold - _LOOSE, 0.01))
        for index, path in enumerate(paths):
            batch, _ = detector.preprocess([read_image(path)])
            levels = np.rint(batch / np.float32(spec.preprocess.scale)).astype(np.uint8)
            exact = np.array_equal(levels * np.float32(spec.preprocess.scale), batch)
            stored[f"input{index}"] = levels if exact else batch.copy()
            raw = next(iter(detector.infer(batch).values()))[0]
            proposed = boxes.select_candidates(raw, spec.layout, spec.input_size, loose)
            stored[f"xyxy{index}"], stored[f"scores{index}"], stored[f"labels{index}"] = proposed
            stored[f"keep{index}"] = np.asarray(
                np.arange(len(proposed[1]))
                if spec.layout.nms_free
                else boxes.batched_nms(*proposed, loose)
            )
        facts = {
            "pictures": [p.name for p in paths],
            "model": wishes.model.name,
            "sha256": sha256_of_file(wishes.model),
            "runs_on": detector.description,
            "spec": spec.as_dict(),
            "nms": nms.as_dict(),
        }
    stored["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    with wishes.out.open("wb") as stream:
        np.savez_compressed(stream, **stored)  # type: ignore[arg-type]
    found = sum(len(stored[f"keep{i}"]) for i in range(len(paths)))
    print(f"{wishes.out}: {len(paths)} pictures, {found} detections, {wishes.out.stat().st_size} B")


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """What `prepare` stored.

    Attributes:
        facts: Names and settings.
        inputs: (1, 3, H, W) float32 each.
        proposals: Before NMS, in input pixels.
        detections: After it; both down to a lower score than the threshold.
    """

    facts: dict[str, Any]
    inputs: list[npt.NDArray[np.float32]]
    proposals: list[Detections]
    detections: list[Detections]


def read_reference(path: Path) -> Reference:
    """Read what `prepare` stored."""
    with np.load(path) as stored:
        facts = json.loads(stored["facts"].tobytes().decode())
        scale = np.float32(ModelSpec.from_dict(facts["spec"]).preprocess.scale)
        inputs, proposals, detections = [], [], []
        for index in range(len(facts["pictures"])):
            tensor = stored[f"input{index}"]
            inputs.append(tensor * scale if tensor.dtype == np.uint8 else tensor)
            found = Detections(
                stored[f"xyxy{index}"], stored[f"scores{index}"], stored[f"labels{index}"]
            )
            proposals.append(found)
            detections.append(found.select(stored[f"keep{index}"]))
    return Reference(facts, inputs, proposals, detections)


# -- one plan


def detections_from(outputs: Arrays, index: int, stamp: Stamp, nms: NmsSettings) -> Detections:
    """Read one picture of a batch: decode and NMS of a raw head, or the end-to-end outputs."""
    if stamp.target is not None and stamp.target.outputs == "end2end":
        count = int(outputs["num_dets"][index, 0])
        return Detections(
            outputs["det_boxes"][index, :count].astype(np.float32),
            outputs["det_scores"][index, :count].astype(np.float32),
            outputs["det_classes"][index, :count].astype(np.int64),
        )
    raw = next(iter(outputs.values()))[index].astype(np.float32, copy=False)
    found = boxes.select_candidates(raw, stamp.spec.layout, stamp.spec.input_size, nms)
    if stamp.spec.layout.nms_free:
        return Detections(*found).select(np.arange(len(found[1]))[: nms.keep_topk])
    return Detections(*found).select(np.asarray(boxes.batched_nms(*found, nms)))


def compare(backend: TensorRtBackend, reference: Reference, stamp: Stamp) -> dict[str, Any]:
    """Match the plan's detections with the reference's, picture by picture."""
    nms = stamp.nms or NmsSettings.from_dict(reference.facts["nms"])
    precision = stamp.target.precision if stamp.target else "fp32"
    min_iou, score = _LIMITS[precision]
    nms_iou = None if stamp.spec.layout.nms_free else nms.iou_threshold
    rules = MatchRules(nms.score_threshold, nms_iou, min_iou, score)
    loose = np.float32(max(nms.score_threshold - score, 0.0))
    total = dict.fromkeys(("pairs", "missing", "extra", "ties"), 0)
    worst_iou, worst_score, iou_sum, score_sum, counted = 1.0, 0.0, 0.0, 0.0, 0
    for tensor, proposed, expected in zip(
        reference.inputs, reference.proposals, reference.detections, strict=True
    ):
        found = detections_from(infer(backend, tensor), 0, stamp, nms)
        found = found.select(found.scores > np.float32(nms.score_threshold))
        expected = expected.select(expected.scores > loose)
        matches = match_detections(expected, found, rules, lambda kept=proposed: kept)  # type: ignore[misc]
        for name in total:
            total[name] += getattr(matches, name)
        worst_iou = min(worst_iou, matches.min_iou)
        worst_score = max(worst_score, matches.max_score_gap)
        iou_sum, score_sum = iou_sum + matches.iou_sum, score_sum + matches.score_gap_sum
        counted += matches.counted
    on_average = precision == "int8"
    mean_iou, mean_gap = iou_sum / max(counted, 1), score_sum / max(counted, 1)
    overlap, gap = (mean_iou, mean_gap) if on_average else (worst_iou, worst_score)
    allowed = int(0.15 * total["pairs"]) if on_average else 0
    passed = (
        total["pairs"] > 0
        and total["missing"] <= allowed
        and total["extra"] <= allowed
        and overlap >= min_iou
        and gap <= score
    )
    return {
        **total,
        "min_iou": worst_iou,
        "max_score_gap": worst_score,
        "mean_iou": mean_iou,
        "mean_score_gap": mean_gap,
        "limits": {"iou": min_iou, "score": score, "on_average": on_average, "share": allowed},
        "passed": passed,
    }


def feed_for(backend: TensorRtBackend, tensor: npt.NDArray[Any]) -> Arrays:
    """Return the feed in the plan's type."""
    info = backend.inputs[0]
    return {info.name: np.ascontiguousarray(tensor.astype(info.dtype, copy=False))}


def infer(backend: TensorRtBackend, tensor: npt.NDArray[Any]) -> Arrays:
    """Run one batch."""
    return backend.infer(feed_for(backend, tensor))


def summary(batch: int, samples: list[float], span: str = "infer") -> dict[str, Any]:
    """Return samples and what is derived from them."""
    latency = Latency(span, batch, tuple(samples))  # type: ignore[arg-type]
    rate = round(1e3 * batch / latency.mean, 1) if latency.mean > 0 else None
    return {**latency.as_dict(), "images_per_s": rate}


def time_plan(
    plan: Path, reference: Reference, stamp: Stamp, batch: int, wishes: argparse.Namespace
) -> dict[str, Any]:
    """Time the network alone with and without a CUDA graph, the copies, and the whole path.

    `network` is timed by CUDA events around the network, its input on the GPU already; `steps` are
    copy in, network and copy out of one call; `total` is the host's time from a float32 tensor in
    host memory to detections in input pixels.
    """
    times: dict[str, Any] = {"batch": batch}
    count = len(reference.inputs)
    tensor = np.concatenate([reference.inputs[i % count] for i in range(batch)])
    nms = stamp.nms or NmsSettings.from_dict(reference.facts["nms"])
    for label, graph in (("cuda_graph", True), ("launches", False)):
        backend = TensorRtBackend(plan, BackendOptions(cuda_graph=graph))
        try:
            feed = feed_for(backend, tensor)
            backend.launch_times(feed, wishes.warmup)
            network = backend.launch_times(feed, wishes.iterations)
            steps = [backend.infer_in_steps(feed)[1] for _ in range(wishes.iterations)]
            whole = []
            for _ in range(wishes.iterations):
                begin = perf_counter()
                outputs = infer(backend, tensor)
                for index in range(batch):
                    detections_from(outputs, index, stamp, nms)
                whole.append((perf_counter() - begin) * 1e3)
            times[label] = {
                "runs_on": backend.description,
                "network": summary(batch, network),
                "copy_in": summary(batch, [s.copy_in_ms for s in steps], "copy_in"),
                "infer": summary(batch, [s.infer_ms for s in steps]),
                "copy_out": summary(batch, [s.copy_out_ms for s in steps], "copy_out"),
                "total": summary(batch, whole, "total"),
            }
        finally:
            backend.close()
    return times


# -- all plans


class _Voice:
    """Prints what a build tells."""

    def note(self, text: str) -> None:
        print(text, flush=True)

    def count(self, label: str, done: int, total: int) -> None:
        pass


def plan_for(onnx: Path, wishes: argparse.Namespace, begun: float) -> Path | None:
    """Build the plan of a file, or find it there; None when the time is up."""
    low, best, high = (int(n) for n in wishes.batch.split(","))
    settings = BuildSettings(
        batch=(low, best, high),
        workspace_gib=wishes.workspace_gib,
        optimization_level=wishes.level,
        timing_cache=wishes.timing_cache,
        tactic_sources=None if wishes.all_tactics else _SOURCES,
    )
    request = prepare(onnx, settings, "tensorrt")
    plan: Path = wishes.plans / f"level{wishes.level}.{request.name_for(onnx)}"
    record = read_record(plan) if plan.exists() else None
    if record is not None and record.source_sha256 == sha256_of_file(onnx):
        print(f"{plan.name}: there already, built in {record.build_seconds:.0f} s", flush=True)
        return plan
    if perf_counter() - begun > wishes.limit_s:
        print(f"{onnx.name}: not begun, the time is up", flush=True)
        return None
    print(f"{onnx.name}: building", flush=True)
    made = build_prepared(request, _Voice())
    write_atomic(sidecar_path(plan), record_bytes(made.record))
    write_atomic(plan, made.data)
    print(f"{plan.name}: {len(made.data)} B in {made.record.build_seconds:.1f} s", flush=True)
    return plan


def measure(plan: Path, reference: Reference, wishes: argparse.Namespace) -> dict[str, Any]:
    """Check and time one plan."""
    record = read_record(plan)
    assert record is not None
    stamp = stamp_from_metadata(record.metadata, plan.name)
    if stamp is None:
        raise SystemExit(f"{plan.name}: its ONNX file has no stamp; export it with boxwright")
    backend = TensorRtBackend(plan, BackendOptions())
    try:
        parity = compare(backend, reference, stamp)
        tensors = [dataclasses.asdict(i) for i in (*backend.inputs, *backend.outputs)]
    finally:
        backend.close()
    sizes = [int(n) for n in wishes.measure.split(",")]
    return {
        "plan": plan.name,
        "record": record.as_dict(),
        "tensors": tensors,
        "parity": parity,
        "times": [time_plan(plan, reference, stamp, n, wishes) for n in sizes],
    }


def machine() -> dict[str, Any]:
    """Return what it ran on."""
    fields = "name,driver_version,compute_cap,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        gpu = "nvidia-smi is missing"
    return {
        "gpu": gpu,
        "python": platform.python_version(),
        "system": platform.platform(),
        **package_versions(("numpy", "onnx", "tensorrt", "cuda-bindings")),
    }


def run(wishes: argparse.Namespace) -> int:
    """Build, check and time every file; the results are written after each."""
    begun = perf_counter()
    reference = read_reference(wishes.reference)
    wishes.plans.mkdir(parents=True, exist_ok=True)
    words = [w for w in wishes.only.split(",") if w]
    files = sorted(wishes.folder.glob("*.onnx"))
    result: dict[str, Any] = {
        "machine": machine(),
        "reference": {k: v for k, v in reference.facts.items() if k != "spec"},
        "settings": {k: str(v) for k, v in vars(wishes).items()},
        "plans": [],
        "errors": {},
    }
    for onnx in files:
        if words and not any(w in onnx.name for w in words):
            continue
        try:
            plan = plan_for(onnx, wishes, begun)
            if plan is None or wishes.build_only:
                continue
            result["plans"].append(measure(plan, reference, wishes))
            print(line_of(result["plans"][-1]), flush=True)
        except BoxwrightError as error:
            result["errors"][onnx.name] = str(error)
            print(f"{onnx.name}: {error}", flush=True)
        except (RuntimeError, TypeError, ValueError):  # of one plan: the others are still measured
            result["errors"][onnx.name] = traceback.format_exc()
            traceback.print_exc()
        write_atomic(wishes.out, json.dumps(result).encode())
    print("\n".join(line_of(p) for p in result["plans"]))
    failed = [p for p in result["plans"] if not p["parity"]["passed"]]
    return 1 if failed or result["errors"] else 0


def line_of(plan: dict[str, Any]) -> str:
    """Return the results of a plan on one line."""
    parity = plan["parity"]
    words = [
        plan["plan"],
        f"{plan['record']['size_bytes'] / 1e6:.1f} MB",
        f"built {plan['record']['build_seconds']:.0f} s",
        f"pairs {parity['pairs']} missing {parity['missing']} extra {parity['extra']} "
        f"ties {parity['ties']} IoU >= {parity['min_iou']:.4f} score <= "
        f"{parity['max_score_gap']:.4f} {'ok' if parity['passed'] else 'FAILED'}",
    ]
    for times in plan["times"]:
        for label in ("cuda_graph", "launches"):
            network, whole = times[label]["network"], times[label]["total"]
            words.append(
                f"b{times['batch']} {label}: p50 {network['p50_ms']:.3f} p99 "
                f"{network['p99_ms']:.3f} cv {network['cv_percent']:.1f} % "
                f"{network['images_per_s']:.0f} im/s, total p50 {whole['p50_ms']:.3f} ms"
            )
    return " | ".join(words)


if __name__ == "__main__":
    chosen = arguments()
    if chosen.verb == "prepare":
        write_reference(chosen)
    else:
        sys.exit(run(chosen))
