"""Reports to render: one made of records, one of a real run on the embedded sample."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from boxwright.measurement.records import BenchmarkResult, Measured, Noise, Round, SpeedUp
from boxwright.report import SOURCE, Choice, Evaluated, Made, Report, Shown
from boxwright.types import (
    SPANS,
    Accuracy,
    Artifact,
    Change,
    Check,
    ClassAccuracy,
    HeadLayout,
    Latency,
    ModelSpec,
    NmsSettings,
    Parity,
    Preprocess,
    Target,
    TensorInfo,
)

ROOT = Path(__file__).resolve().parents[1]
BUDGET = ROOT / "benchmarks" / "results" / "int8-budget-yolox_nano-2026-11-21.json"
STREET = (
    "person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "suitcase",
    "tennis racket", "wine glass", "dining table", "potted plant", "sports ball", "baseball glove",
)  # fmt: skip
_TARGETS = (
    Target("fp32"),
    Target("fp32", "end2end"),
    Target("fp16"),
    Target("fp16", "end2end"),
    Target("int8"),
    Target("int8", "end2end"),
)
_LOSS = {"fp32": 0.0, "fp16": 0.0002, "int8": 0.0061}
_SPEED = {"fp32": 1.0, "fp16": 0.98, "int8": 1.9}


def report_of_records(
    *,
    name: str = "yolo11n",
    class_names: Sequence[str] = STREET,
    picture: str = "crossing.jpg",
    rejected: Sequence[str] = (),
    targets: Sequence[Target] = _TARGETS,
) -> Report:
    """Return a report with every part, whose figures are drawn from a seed."""
    rng = np.random.default_rng(7)
    spec = ModelSpec(
        name, "ultralytics_anchor_free", "detect", tuple(class_names), (640, 640),
        Preprocess(), HeadLayout(),
    )  # fmt: skip
    files = {f"{name}.{t.suffix}.onnx": t for t in targets}
    source_hash = hashlib.sha256(b"source").hexdigest()
    return Report(
        created_at="2026-11-21T18:04:11+00:00",
        boxwright="0.1.0",
        name=name,
        command=f"boxwright run models/{name}.pt --precision fp32,fp16,int8 --outputs raw,end2end "
        "--calib-images calibration/ --data street/data.yaml --max-drop 0.005",
        request={
            "source": f"models/{name}.pt",
            "targets": [t.as_dict() for t in targets],
            "data": "street/data.yaml",
            "max_drop": 0.005,
        },
        source={
            "asked": f"models/{name}.pt",
            "kind": "ultralytics",
            "sha256": source_hash,
            "files": {f"{name}.pt": source_hash},
        },
        environment={
            "system": "Linux-6.8.0-x86_64-with-glibc2.36",
            "processor": "A processor of 16 cores",
            "cores": "16",
            "memory": "64.0 GB",
            "python": "3.11.9",
            "onnxruntime": "1.31.1",
            "openvino": "2026.4.1",
        },
        artifacts=tuple(_made(file, t, spec, source_hash, rejected) for file, t in files.items()),
        parity={file: _parity(file, t, file in rejected) for file, t in files.items()},
        accuracy=tuple(_accuracies(files, class_names, rng)),
        benchmark=_benchmark(name, files, rng),
        pictures=(_shown(picture, files, class_names, rng, True),
                  _shown(f"second {picture}", files, class_names, rng, False)),
        choice=Choice(
            next(reversed(files)),
            "openvino",
            "It is 1.9 times as fast as FP32 and loses 0.0061 mAP50-95, within the budget of 0.01.",
            ("INT8 was calibrated on 256 pictures.", "The machine was noisy for one file."),
        ),
        notes=("Throughput was not measured: the run asked for latency alone.",),
        commands=(
            ("make the files again", f"boxwright run models/{name}.pt --precision fp32,fp16,int8"),
            ("measure accuracy", f"boxwright evaluate runs/{name}/*.onnx --data street/data.yaml"),
            ("measure latency", f"boxwright benchmark runs/{name}/*.onnx --runtime onnxruntime"),
        ),
    )  # fmt: skip


def _hash(file: str) -> str:
    return hashlib.sha256(file.encode()).hexdigest()


def _made(file: str, target: Target, spec: ModelSpec, source: str, rejected: Sequence[str]) -> Made:
    name = spec.name
    if target.outputs == "end2end":
        parent = _hash(f"{name}.{dataclasses.replace(target, outputs='raw').suffix}.onnx")
    else:
        parent = source if target.precision == "fp32" else _hash(f"{name}.fp32.onnx")
    size = {"fp32": 10_690_000, "fp16": 5_420_000, "int8": 2_990_000}[target.precision]
    classes = len(spec.class_names)
    artifact = Artifact(
        path=Path(file),
        sha256=_hash(file),
        spec=spec,
        target=target,
        inputs=(TensorInfo("images", "float32", ("N", 3, 640, 640)),),
        outputs=(TensorInfo("output0", "float32", ("N", 4 + classes, 8400)),),
        parent=parent,
        made_with={"boxwright": "0.1.0", "onnx": "1.23.2", "torch": "2.13.0"},
    )
    budget = None
    if target.precision == "int8" and target.outputs == "raw":
        budget = json.loads(BUDGET.read_text(encoding="utf-8"))["budget"]
    nms = NmsSettings() if target.outputs == "end2end" else None
    state = "rejected" if file in rejected else "published"
    return Made(artifact, state, size + (nms is not None) * 21_000, nms, budget)


def _parity(file: str, target: Target, fails: bool) -> Parity:
    scale = {"fp32": 1e-5, "fp16": 0.21, "int8": 3.1}[target.precision]
    checks = [Check("values that are not finite", 0, 0, True)]
    if target.outputs == "raw":
        checks.append(Check("raw boxes, px", scale * (40 if fails else 1), 4.0, not fails))
        checks.append(Check("raw scores", scale / 40, 0.2, True))
    checks += [
        Check("detections missing", 0, 2, True, "of 312"),
        Check("detections too many", 1, 2, True),
        Check("1 - IoU of matched boxes", scale / 80, 0.1, True, "mean; the worst pair 0.113"),
    ]
    if fails and target.outputs != "raw":
        checks.append(Check("scores of matched boxes", 0.31, 0.05, False))
    return Parity("source", file, tuple(checks), 64, 312, {"onnxruntime": "1.31.1"})


def _accuracies(
    files: dict[str, Target], class_names: Sequence[str], rng: np.random.Generator
) -> list[Evaluated]:
    difficulty = rng.uniform(0.25, 0.75, len(class_names))
    objects = np.maximum(rng.geometric(0.02, len(class_names)), 1)
    rows = [_evaluated(SOURCE, "pytorch", "fp32", class_names, difficulty, objects, rng)]
    for file, target in files.items():
        runtimes = ("onnxruntime", "openvino") if target.outputs == "raw" else ("onnxruntime",)
        for runtime in runtimes:
            rows.append(
                _evaluated(file, runtime, target.precision, class_names, difficulty, objects, rng)
            )
    return rows


def _evaluated(
    file: str,
    runtime: str,
    precision: str,
    class_names: Sequence[str],
    difficulty: np.ndarray,
    objects: np.ndarray,
    rng: np.random.Generator,
) -> Evaluated:
    loss = _LOSS[precision]
    aps = np.clip(difficulty - loss + rng.normal(0, loss, len(difficulty)), 0, 1)
    recall = np.linspace(0, 1, 101)
    per_class = {
        n: ClassAccuracy(round(float(a), 6), round(float(min(a * 1.35, 1)), 6), int(o))
        for n, a, o in zip(class_names, aps, objects, strict=True)
    }

    def curve(ap: float) -> tuple[float, ...]:
        return tuple(float(v) for v in np.clip(1 - recall ** (1 + 6 * ap), 0, 1) * 0.97)

    curves = {"all": curve(float(np.mean(aps)))}
    curves |= {n: curve(float(a)) for n, a in zip(class_names, aps, strict=True)}
    mean = float(np.mean(aps))
    warned = precision == "int8"
    accuracy = Accuracy(
        candidate=file,
        runs_on=f"{runtime} on the CPU, 16 threads",
        dataset="street, val",
        fingerprint=_hash("street"),
        pictures=500,
        objects=int(objects.sum()),
        map50_95=mean,
        map50=min(mean * 1.35, 1),
        map75=mean * 1.08,
        map_small=mean * 0.55,
        map_medium=mean * 1.02,
        map_large=None if warned else min(mean * 1.3, 1),
        per_class=per_class,
        precision=0.71 - loss,
        recall=0.58 - loss,
        f1=0.638 - loss,
        operating=NmsSettings(),
        evaluation=NmsSettings(0.001, 0.7, 30_000),
        pr_curve=curves,
        warnings=("300 detections a picture are baked in; crowded ones are cut",) if warned else (),
        problems={"boxes outside the picture, clipped": 3},
        environment={"faster-coco-eval": "1.8.0"},
        interval=(mean - 0.012, mean + 0.011),
    )
    change = None if file == SOURCE else Change(SOURCE, -loss, -loss - 0.0021, -loss + 0.0019)
    return Evaluated(file, runtime, _hash(file + runtime), accuracy, change)


def _benchmark(name: str, files: dict[str, Target], rng: np.random.Generator) -> BenchmarkResult:
    rows = [_measured(f"{name}.pt", f"models/{name}.pt", "pytorch", Target(), 46.0, rng, None)]
    for file, target in files.items():
        for runtime, base in (("onnxruntime", 31.0), ("openvino", 24.0)):
            middle = base / _SPEED[target.precision] + (target.outputs == "end2end") * 0.4
            title = f"{file} ({runtime})"
            row = _measured(
                title, f"runs/{name}/{file}", runtime, target, middle, rng, f"{name}.pt"
            )
            rows.append(row)
    return BenchmarkResult(
        started_at="2026-11-21T18:01:02+00:00",
        environment={"processor": "A processor of 16 cores", "load average": "0.31", "clock": "-"},
        settings={"iterations": 50, "warmup": 5},
        pictures="64 pictures of 640x480 to 1280x960",
        measured=tuple(rows),
    )


def _measured(
    title: str,
    file: str,
    runtime: str,
    target: Target,
    middle: float,
    rng: np.random.Generator,
    baseline: str | None,
) -> Measured:
    count = 50
    spans = {
        "read": rng.gamma(40, 0.09, count),
        "preprocess": rng.gamma(60, 0.02, count),
        "copy_in": np.zeros(count),
        "infer": middle + rng.gamma(2, middle * 0.012, count),
        "copy_out": np.zeros(count),
        "postprocess": rng.gamma(30, 0.01 if target.outputs == "end2end" else 0.05, count),
    }
    spans["total"] = np.sum(list(spans.values()), axis=0)
    noisy = target.precision == "fp16" and runtime == "openvino" and target.outputs == "raw"
    noise = Noise("quiet", cv_percent=2.1, drift_percent=0.4, steal_percent=0.0, other_percent=1.2)
    if noisy:
        noise = Noise(
            "noisy",
            ("the last third of the rounds was 14 % slower",),
            "let the machine cool down and measure again",
            14.0, 9.3, 2.5, 21.0,
        )  # fmt: skip
    ratio = 52.0 / (middle + 6)
    return Measured(
        name=title,
        file=file,
        size_bytes=1_000_000,
        runtime=runtime,
        description=f"{runtime} on the CPU",
        precision=target.precision,
        outputs=target.outputs,
        threads=None,
        batch=1,
        mode="latency",
        concurrency=1,
        warmup=5,
        latencies={s: Latency(s, 1, tuple(float(v) for v in spans[s])) for s in SPANS},
        sample_rounds=tuple(i // 5 for i in range(count)),
        rounds=tuple(Round(i, i * 0.9) for i in range(count // 5)),
        images_per_s=1000 / float(np.mean(spans["total"])),
        noise=noise,
        peak_memory_mb=210.0,
        speed_up=SpeedUp(baseline, ratio, ratio * 0.97, ratio * 1.02) if baseline else None,
    )


def _shown(
    picture: str,
    files: dict[str, Target],
    class_names: Sequence[str],
    rng: np.random.Generator,
    labelled: bool,
) -> Shown:
    """Return a picture of coloured rectangles, found a little differently by each file."""
    height, width = 480, 720
    image = np.full((height, width, 3), (226, 222, 214), np.uint8)
    truth = []
    for index in range(9):
        x, y = int(rng.integers(10, 560)), int(rng.integers(10, 340))
        w, h = int(rng.integers(50, 150)), int(rng.integers(50, 130))
        color = tuple(int(v) for v in rng.integers(60, 220, 3))
        cv2.rectangle(image, (x, y), (x + w, y + h), color, -1)
        name = class_names[index % len(class_names)]
        truth.append(((x, y, x + w, y + h), index % len(class_names), name))
    found = {}
    for file in (SOURCE, *files):
        rows = []
        jitter = 1.5 if "int8" in file else 0.2
        for number, (box, class_id, name) in enumerate(truth):
            if "int8" in file and number == 3:
                continue
            moved = [round(float(v + rng.normal(0, jitter)), 3) for v in box]
            score = round(0.93 - 0.07 * number, 6)
            rows.append({"xyxy": moved, "score": score, "class_id": class_id, "class_name": name})
        found[file] = tuple(rows)
    small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return Shown(
        name=picture,
        image_size=(height, width),
        jpeg=jpeg_base64(small),
        scale=0.5,
        truth=tuple({"xyxy": list(b), "class_name": n} for b, _, n in truth) if labelled else None,
        found=found,
    )


def jpeg_base64(image: np.ndarray, quality: int = 80) -> str:
    """Return a picture as base64 of a JPEG."""
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return base64.b64encode(data.tobytes()).decode()


def report_of_a_run(
    folder: Path, *, pages: int = 6, iterations: int = 5, shown: int = 2, openvino: bool = False
) -> Report:
    """Run the main job on the embedded detector, then measure accuracy and latency of its files."""
    from boxwright.benchmark import BenchmarkSettings, Entry, benchmark
    from boxwright.datasets import open_dataset
    from boxwright.evaluate import evaluate
    from boxwright.loading import load
    from boxwright.pipeline import run
    from boxwright.recipe import recipe_from_mapping
    from boxwright.sample import onnx_file

    asked = {
        "source": str(onnx_file()),
        "name": "text_block",
        "targets": [
            {"precision": p, "outputs": o} for p in ("fp32", "fp16") for o in ("raw", "end2end")
        ],
        "threads": 2,
        "measure": {"latency": False, "accuracy": False},
    }
    outcome = run(recipe_from_mapping(asked, "the sample"), folder)
    assert outcome.folder is not None
    known = Report.from_dict(json.loads((outcome.folder / "report.json").read_text("utf-8")))
    paths = {SOURCE: onnx_file()}
    paths |= {a.artifact.path.name: outcome.folder / a.artifact.path for a in known.artifacts}
    opened = {n: load(p, "onnxruntime", threads=2, quiet=True) for n, p in paths.items()}
    names = opened[SOURCE].spec.class_names
    dataset = open_dataset("sample", class_names=names, pages=pages)
    measured = evaluate(opened, dataset)
    base = measured[SOURCE].map50_95
    rows = []
    for name, accuracy in measured.items():
        change = None
        if name != SOURCE:
            change = Change(SOURCE, (accuracy.map50_95 or 0) - (base or 0))
        rows.append(Evaluated(name, "onnxruntime", "", accuracy, change))
    runtimes = ("onnxruntime", "openvino") if openvino else ("onnxruntime",)
    entries = [Entry(p, r) for p in paths.values() for r in runtimes]
    settings = BenchmarkSettings(threads=(2,), iterations=iterations, warmup=1, memory=False)
    pictures = []
    for item in dataset.items[:shown]:
        image = item.read()
        found = {n: tuple(d(image).as_dicts()) for n, d in opened.items()}
        scale = 640 / max(image.shape[:2])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        labels = item.truth((image.shape[0], image.shape[1]))
        truth = tuple(
            {"xyxy": [float(v) for v in box], "class_name": names[int(c)]}
            for box, c in zip(labels.xyxy, labels.class_ids, strict=True)
        )
        size = (image.shape[0], image.shape[1])
        pictures.append(Shown(item.name, size, jpeg_base64(small), scale, truth, found))
    for detector in opened.values():
        detector.close()
    return dataclasses.replace(
        known,
        command="boxwright run text_block.onnx --precision fp32,fp16 --outputs raw,end2end",
        accuracy=tuple(rows),
        benchmark=benchmark(entries, settings=settings),
        pictures=tuple(pictures),
        choice=Choice("text_block.fp32.end2end.onnx", "onnxruntime", "Nothing else is faster."),
        commands=(("do it again", "boxwright run text_block.onnx"),),
    )
