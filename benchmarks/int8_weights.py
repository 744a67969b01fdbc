"""Shows why INT8 weights are limited by pairs: accuracy with and without, on this processor.

    python benchmarks/int8_weights.py --out benchmarks/results/int8_weights-DATE.json

Quantises the embedded detector with full 8-bit weights, with weights limited by pairs, and for
TensorRT, and measures each in ONNX Runtime and OpenVINO on generated pages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.calibrate import calibrate
from boxwright.datasets import open_dataset
from boxwright.detector import Detector
from boxwright.environment import describe_machine
from boxwright.evaluate import evaluate
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import int8_from_fp32
from boxwright.sample import generate_page, onnx_file
from boxwright.sources import SourceRequest

CALIBRATION_SEEDS = range(30_000, 30_040)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    raw = catalog.source_for(".onnx").export(SourceRequest(onnx_file(), "text_block"))
    pages = [generate_page(s).image for s in CALIBRATION_SEEDS]
    cpu = calibrate(raw.model, raw.spec, pages, "cpu").ranges
    trt = calibrate(raw.model, raw.spec, pages, "tensorrt").ranges
    graphs = {
        "fp32": raw.model,
        "int8 cpu, 8 bits": int8_from_fp32(raw.model, cpu, "cpu", any_processor=False),
        "int8 cpu, limited by pairs": int8_from_fp32(raw.model, cpu, "cpu"),
        "int8 tensorrt": int8_from_fp32(raw.model, trt, "tensorrt"),
    }
    detectors = {}
    for name, graph in graphs.items():
        for runtime in ("onnxruntime", "openvino"):
            data = bytes_from_model(graph, name)
            backend = catalog.backend(runtime).open_bytes(data, BackendOptions(device="cpu"))
            detectors[f"{name}, {runtime}"] = Detector(backend, raw.spec)
    dataset = open_dataset("sample", class_names=raw.spec.class_names, pages=options.pages)
    measured = evaluate(detectors, dataset)
    result = {
        "pages": dataset.name,
        "calibration": f"seeds {CALIBRATION_SEEDS.start} to {CALIBRATION_SEEDS.stop - 1}, minmax",
        "mAP50-95": {name: accuracy.map50_95 for name, accuracy in measured.items()},
        "mAP50": {name: accuracy.map50 for name, accuracy in measured.items()},
        "environment": describe_machine(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
