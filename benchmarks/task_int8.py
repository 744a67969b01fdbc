"""What INT8 costs a task, and which part of the network it costs it in.

    python benchmarks/task_int8.py yolov8n-pose.fp32.onnx poses.json images/ calibration/ cpu minmax

Measures the task's figure of the FP32 file, of INT8, and of INT8 with parts in float: the branch of
what the task adds to boxes, and the whole head.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx
from measure import environment, write_results

import boxwright
from boxwright import catalog
from boxwright.backends import BackendOptions
from boxwright.calibrate import calibrate
from boxwright.datasets import open_dataset, wanted_of
from boxwright.detector import Detector
from boxwright.evaluate import evaluate
from boxwright.graph.branches import layers_of_extras
from boxwright.graph.io import bytes_from_model
from boxwright.graph.quantize import int8_from_fp32, quantisable_layers
from boxwright.images import expand_paths
from boxwright.quantization import runtime_of


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="raw FP32 ONNX file")
    parser.add_argument("labels", help="COCO file with masks or keypoints")
    parser.add_argument("images", type=Path, help="folder of its pictures")
    parser.add_argument("calibration", help="folder of other pictures")
    parser.add_argument("deployment", choices=("cpu", "openvino", "tensorrt"))
    parser.add_argument("method", choices=("minmax", "percentile", "entropy"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, help="at most so many pictures")
    parser.add_argument("--out", type=Path, help="result file")
    return parser.parse_args()


def main() -> None:
    """Calibrate once, measure each variant, print and write."""
    given = arguments()
    model = onnx.load(given.model)
    with boxwright.load(given.model, "onnxruntime") as detector:
        spec = detector.spec
    dataset = open_dataset(
        given.labels, class_names=spec.class_names, images=given.images, wanted=wanted_of(spec)
    )
    if given.count:
        dataset = dataset.limited(given.count)
    files = expand_paths((given.calibration,))
    found = calibrate(
        model, spec, files, given.deployment, method=given.method, threads=given.threads
    )
    layers, extras = quantisable_layers(model), set(layers_of_extras(model))
    branch = [name for name in layers if name in extras]
    last = layers[-1].strip("/").split("/")[0]  # the head is the last module
    head = [name for name in layers if name.strip("/").split("/")[0] == last]
    variants: dict[str, list[str]] = {"int8": [], "branch in float": branch, "head in float": head}
    graphs = {"fp32": model} | {
        name: int8_from_fp32(model, found.ranges, given.deployment, keep_float=kept)
        for name, kept in variants.items()
    }
    options = BackendOptions(given.threads, "cpu", spin=False)
    runtime = catalog.backend(runtime_of(given.deployment))
    rows: list[dict[str, Any]] = []
    for name, graph in graphs.items():
        with Detector(runtime.open_bytes(bytes_from_model(graph, "m"), options), spec) as detector:
            accuracy = evaluate({name: detector}, dataset)[name]
        kept = len(variants.get(name, ()))
        rows.append(
            {
                "variant": name,
                "in_float": kept,
                "layers": len(layers),
                "measure": accuracy.measure,
                "figure": accuracy.figure,
                **accuracy.beside,
            }
        )
        print(rows[-1], flush=True)
    facts = {"environment": environment(), "deployment": given.deployment, "method": given.method}
    facts |= {"model": Path(given.model).name, "pictures": len(dataset.items), "rows": rows}
    print(write_results(Path(__file__).stem, facts, given.out))


if __name__ == "__main__":
    main()
