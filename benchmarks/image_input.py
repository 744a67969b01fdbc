"""How closely a file that takes pictures agrees with the host's preprocessing.

    python benchmarks/image_input.py runs/a/a.fp32.end2end.onnx runs/a/a.fp32.end2end.image.onnx \
        pictures/ --runtimes onnxruntime,openvino

Prints, for each runtime: the largest difference of the network's input in grey levels and the share
of values that differ at all; detections of both paths, those without a partner, and the largest
differences of coordinates (source pixels) and scores between partners. Plans (.plan) are read, too;
their input tensor cannot be looked at.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from boxwright import catalog, load
from boxwright.backends import BackendOptions
from boxwright.detector import Detector
from boxwright.graph.image_input import NETWORK_INPUT, with_network_input
from boxwright.graph.io import bytes_from_model, model_from_file
from boxwright.image_parity import grey_gap
from boxwright.images import expand_paths
from boxwright.matching import MatchRules, match_detections
from boxwright.stamps import stamp_from_metadata


def open_pictures(path: Path, runtime: str) -> Detector:
    """Open the file so that it also returns the network's input, where that can be."""
    if path.suffix != ".onnx":
        return load(path, quiet=True)
    data = bytes_from_model(with_network_input(model_from_file(path)), str(path))
    backend = catalog.backend(runtime).open_bytes(data, BackendOptions())
    stamp = stamp_from_metadata(backend.metadata, str(path))
    assert stamp is not None, "a file of ours"
    return Detector(backend, stamp.spec, stamp.target, stamp.nms)


def compare(host: Detector, graph: Detector, pictures: list[Path]) -> dict[str, Any]:
    """Detect in every picture by both paths."""
    grey, differ, sizes, values = 0.0, 0, set(), 0
    expected = missing = extra = 0
    box = score = 0.0
    for path in pictures:
        image = host.read(path)
        sizes.add(image.shape[:2])
        tensor, places = host.preprocess([image])
        wanted = host.postprocess(host.infer(tensor, host.nms), places)[0]
        batch, _ = graph.preprocess([image])
        outputs = graph.infer(batch, graph.nms)
        found = graph.postprocess(outputs, places)[0]
        if NETWORK_INPUT in outputs:
            made = outputs[NETWORK_INPUT][0]
            grey = max(grey, grey_gap(made, tensor[0], host.spec.preprocess))
            step = host.spec.preprocess.scale / max(host.spec.preprocess.std)
            differ += int((np.abs(made - tensor[0]) > 0.5 * step).sum())
            values += made.size
        expected += len(wanted)
        threshold = host.nms.score_threshold
        matches = match_detections(wanted, found, MatchRules(threshold, None, 0.5, 1.0))
        missing += matches.missing
        extra += matches.extra
        score = max(score, matches.max_score_gap)
        for xyxy, _, label in wanted:
            same = found.xyxy[found.class_ids == label]
            if len(same):
                box = max(box, float(np.abs(same - xyxy).max(axis=1).min()))
    return {
        "runs_on": graph.description,
        "pictures": len(pictures),
        "sizes": len(sizes),
        "grey_levels": grey,
        "share_of_values_that_differ": differ / values if values else None,
        "detections": expected,
        "missing": missing,
        "too_many": extra,
        "box_px": round(box, 4),
        "score": round(score, 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tensor", type=Path, help="the file that takes the network's tensor")
    parser.add_argument("image", type=Path, help="the same with --input image")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--runtimes", default="onnxruntime,openvino")
    options = parser.parse_args()
    pictures = expand_paths(options.pictures)
    for runtime in options.runtimes.split(","):
        with (
            load(options.tensor, runtime, quiet=True) as host,
            open_pictures(options.image, runtime) as graph,
        ):
            print(json.dumps(compare(host, graph, pictures), indent=1))


if __name__ == "__main__":
    main()
