"""What every entry of the catalog must do: each form of its head, in every precision and output.

A case is a small graph in the shape of a project's export. `measure` makes all that Boxwright can
make of it, compares each file with the source by the same `verify` that `boxwright run` uses, three
pictures alone and together, and says what was proven, what was refused and why. Recorded results
are in benchmarks/results; the table of docs/families.md is made from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from official_graphs import CASES as OFFICIAL
from official_graphs import WORDS, ultralytics_task
from tiny_models import nms_free_onnx, ultralytics_onnx, yolov5_onnx, yolox_onnx

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.calibrate import calibrate
from boxwright.detector import Detector
from boxwright.errors import BoxwrightError, GraphError, RequestError
from boxwright.graph.end2end import add_end2end, check_nms_request, runnable_anywhere
from boxwright.graph.io import bytes_from_model, check_model, write_stamp
from boxwright.graph.precision import fp16_from_fp32
from boxwright.graph.quantize import int8_from_fp32
from boxwright.pictures import generated_pictures
from boxwright.sources import SourceRequest
from boxwright.stamps import Stamp
from boxwright.types import ModelSpec, NmsSettings, Target
from boxwright.verify import Candidate, verify

__all__ = ["CASES", "EVIDENCE", "OUTPUTS", "PRECISIONS", "Case", "Result", "as_dict", "measure"]

PRECISIONS = ("fp32", "fp16", "int8")
OUTPUTS = ("raw", "onnx", "portable", "efficient_nms")  # raw, or the NMS of an end-to-end file
PROVEN = "proven"


@dataclass(frozen=True, slots=True)
class Case:
    """One form of one family's head.

    Attributes:
        title: The form, for people.
        family: Of the catalog.
        write: Writes the export.
        asked: `--family`, or None where the file is recognised.
        task: What the head does.
    """

    title: str
    family: str
    write: Callable[[Path], object]
    asked: str | None = None
    task: str = "detect"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file.

    Attributes:
        case, family, task: Of it.
        recognised: Whether the file needs no `--family`.
        precision, outputs: What was asked for.
        status: `proven`, or `refused: ` and why.
    """

    case: str
    family: str
    task: str
    recognised: bool
    precision: str
    outputs: str
    status: str


def _saved(build: Callable[[], onnx.ModelProto]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        onnx.save(build(), path)

    return write


def _cases() -> dict[str, Case]:
    tiny = {
        "v8 raw": ("ultralytics", ultralytics_onnx),
        "NMS-free": ("ultralytics-nms-free", nms_free_onnx),
        "undecoded": ("yolox", yolox_onnx),
        "decoded": ("yolov5", yolov5_onnx),
    }
    found = {
        f"{family} {title}": Case(title, family, write) for title, (family, write) in tiny.items()
    }
    for name, (build, asked, family, _) in OFFICIAL.items():
        found[name] = Case(name, family, _saved(build), asked)
    for task in ("segment", "pose", "obb", "classify"):
        for free in (False, True):
            if task == "classify" and free:
                continue
            family = "ultralytics-nms-free" if free else "ultralytics"
            build = _saved(lambda task=task, free=free: ultralytics_task(task, free))
            title = f"{task} NMS-free" if free else task
            found[f"ultralytics {title}"] = Case(title, family, build, task=task)
    return found


CASES = _cases()

# Besides its built graph: `real` weights, `golden` outputs of the project's own code on random
# weights, or `random` weights beside the project's own post-processing.
EVIDENCE: dict[str, tuple[str, str]] = {
    "ultralytics v8 raw": ("real", "v8n, v9t, 11n"),
    "ultralytics-nms-free NMS-free": ("real", "v10n, 26n"),
    "ultralytics segment": ("real", "v8n-seg"),
    "ultralytics pose": ("real", "v8n-pose"),
    "ultralytics obb": ("random", "8, 26"),
    "ultralytics classify": ("random", "8"),
    "ultralytics segment NMS-free": ("random", "26"),
    "ultralytics pose NMS-free": ("random", "26"),
    "ultralytics obb NMS-free": ("random", "26"),
    "yolox undecoded": ("real", "nano; golden checkpoints of Megvii and MMYOLO"),
    "yolov5 decoded": ("real", "v5n; golden checkpoints of v7.0 and MMYOLO"),
    "rtmdet deployed": ("real", "nano (person)"),
    "rtmdet split": ("golden", "MMDetection's maps"),
    "yolov6": ("golden", "checkpoints N, M"),
    "yolov7 raw": ("golden", "maps of yolov7, MMYOLO's L and tiny"),
    "yolov7-tiny raw": ("golden", "maps of yolov7-tiny"),
    "rtmdet levels": ("golden", "MMYOLO's maps"),
    "yolov6 levels": ("golden", "MMYOLO's maps"),
    "yolov8 levels": ("golden", "MMYOLO's maps"),
    "yolox levels": ("golden", "MMYOLO's maps"),
    "ppyoloe levels": ("golden", "MMYOLO's maps"),
    "easydeploy": ("golden", "outputs for all MMYOLO networks"),
    "yolov6 counted": ("golden", "outputs for N, M"),
    "yolov7 rows": ("golden", "outputs for yolov7, yolov7-tiny"),
    "rtdetr": ("golden", "decode of RT-DETRv2"),
    "d-fine": ("golden", "decode of D-FINE"),
}


def measure(name: str, folder: Path) -> list[Result]:
    """Make everything of one case and compare it with its source.

    Raises:
        AssertionError: A file is neither proven nor refused in words.
    """
    case = CASES[name]
    path = folder / "export.onnx"
    case.write(path)
    source = catalog.source_of(path)
    labels = tuple(WORDS) if name in OFFICIAL else None
    request = SourceRequest(path, "export", family=case.asked, labels=labels)
    raw = source.export(request)
    assert (raw.spec.family, raw.spec.task) == (case.family, case.task)
    options = BackendOptions(threads=1, device="cpu", spin=False)
    reference = Detector(source.reference(request, options), raw.spec)
    pictures = generated_pictures(raw.spec.input_size, count=3, seed=5)
    settings = NmsSettings(0.25, raw.spec.iou_threshold)
    if case.task == "classify":
        settings = NmsSettings(0.0, 0.7)
    recognised = case.asked is None
    results = []
    for precision in PRECISIONS:
        try:
            body = _body(raw.model, raw.spec, precision, pictures)
        except (GraphError, RequestError) as error:
            for outputs in OUTPUTS:
                results.append(_refused(case, name, precision, outputs, error))
            continue
        # Integers move boxes; what decode and NMS make of them must still be the same.
        own = _open(body, raw.spec, Target(precision), settings, options)
        compared = {"raw": Candidate(own, precision)}
        exact = {}
        for outputs in OUTPUTS[1:]:
            target = Target(precision, "end2end", outputs)
            try:
                check_nms_request(raw.spec.layout.nms_free, target, settings, raw.spec.task)
                model = add_end2end(body, raw.spec, settings, target)
                write_stamp(model, Stamp(raw.spec, target, settings))
                check_model(model, f"{name} {outputs}")
            except (GraphError, RequestError) as error:
                results.append(_refused(case, name, precision, outputs, error))
                continue
            made = _open(runnable_anywhere(model), raw.spec, target, settings, options)
            exact[outputs] = Candidate(made, "fp32")
            compared[outputs] = Candidate(made, precision)
        proofs = [verify(reference, compared, pictures), verify(own, exact, pictures)]
        for outputs in compared:
            for proof in proofs:
                parity = proof.get(outputs)
                assert parity is None or parity.passed, (name, precision, outputs, parity)
                assert parity is None or parity.detections > 3, (name, precision, outputs)
            results.append(
                Result(name, case.family, case.task, recognised, precision, outputs, PROVEN)
            )
        for candidate in compared.values():
            candidate.detector.close()
    reference.close()
    order = {key: i for i, key in enumerate((p, o) for p in PRECISIONS for o in OUTPUTS)}
    return sorted(results, key=lambda r: order[r.precision, r.outputs])


def _body(
    model: onnx.ModelProto, spec: ModelSpec, precision: str, pictures: list[np.ndarray]
) -> onnx.ModelProto:
    if precision == "fp32":
        return model
    if precision == "fp16":
        return fp16_from_fp32(model)
    seen = generated_pictures(spec.input_size, count=8, seed=9)
    ranges = calibrate(model, spec, [*seen, *pictures], "cpu", threads=1).ranges
    return int8_from_fp32(model, ranges, "cpu")


def _open(
    model: onnx.ModelProto,
    spec: ModelSpec,
    target: Target,
    settings: NmsSettings,
    options: BackendOptions,
) -> Detector:
    data = bytes_from_model(model, "conformance")
    backend = catalog.backend("onnxruntime").open_bytes(data, options)
    return Detector(backend, spec, target, settings)


def _refused(case: Case, name: str, precision: str, outputs: str, error: BoxwrightError) -> Result:
    text = f"refused: {error.found}"
    return Result(name, case.family, case.task, case.asked is None, precision, outputs, text)


def as_dict(result: Result) -> dict[str, object]:
    """Return plain JSON types."""
    return dataclasses.asdict(result)
