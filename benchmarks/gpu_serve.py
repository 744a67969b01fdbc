"""Every model of a repository on a real Triton server: right, and how fast under load.

Starts the server on a repository (of `boxwright repo build`), compares the detections of each model
that a client can open with those of a local file, and puts each under load. Writes one JSON file
with every sample; prints a line for each.

    python benchmarks/gpu_serve.py models/ --local a.fp32.onnx --server WHEEL --python PYTHON \\
        --images pictures/ --concurrency 1,16,64 --out serving.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.benchmark.served import ServedSettings, measure_served
from boxwright.boxes import iou_matrix
from boxwright.detector import Detector
from boxwright.errors import BoxwrightError
from boxwright.images import expand_paths
from boxwright.loading import load
from boxwright.serve.server import ServeRequest, start_server

# Models that only ensembles ask.
_PARTS = ("_decode", "_preprocess", "_postprocess", "_gate", "_dali", "_to_source")


def _say(text: str) -> None:
    print(f"gpu_serve: {text}", file=sys.stderr, flush=True)


def _compared(detector: Detector, local: Detector, paths: list[Path]) -> dict[str, Any]:
    """Compare detections above both thresholds, clear of them by 0.02."""
    score = max(detector.nms.score_threshold, local.nms.score_threshold) + 0.02
    worst, counted, missing = 1.0, 0, 0
    for path in paths:
        want, got = local(path), detector(path)
        clear = want.select(want.scores > score)
        counted += len(clear)
        if len(clear):
            best = (
                iou_matrix(clear.xyxy, got.xyxy).max(axis=1) if len(got) else np.zeros(len(clear))
            )
            missing += int((best < 0.5).sum())
            worst = min(worst, float(best.min()))
    return {"detections": counted, "missing": missing, "worst_iou": round(worst, 5)}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--local", type=Path, required=True, help="The raw file to compare with.")
    parser.add_argument("--images", action="append", required=True)
    parser.add_argument("--iou-threshold", type=float, default=0.45, help="Of the repository.")
    parser.add_argument("--server", type=Path)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--protocol", default="triton", choices=["triton", "triton+grpc"])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    paths = expand_paths(options.images)
    counts = tuple(int(c) for c in options.concurrency.split(","))
    settings = ServedSettings(
        counts, tuple(options.images), seconds=options.seconds, processes=options.processes
    )
    request = ServeRequest(
        options.repository,
        models=tuple(options.model),
        server=options.server,
        python=options.python,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        keep_going=True,
    )
    found: dict[str, Any] = {"models": {}}
    with (
        start_server(request, note=_say) as server,
        load(options.local, quiet=True, iou_threshold=options.iou_threshold) as local,
    ):
        found["server"], found["started_s"] = server.description, server.started_s
        for model in server.models:
            if model.name.endswith(_PARTS):
                continue
            if model.state != "READY":
                found["models"][model.name] = {"failed": model.reason}
                continue
            place = server.http if options.protocol == "triton" else server.grpc
            address = f"{options.protocol}://{place}/{model.name}"
            try:
                with load(address) as detector:
                    raw = detector.target.outputs == "raw"
                # the client of a raw model chooses the thresholds
                threshold = options.iou_threshold if raw else None
                with load(address, iou_threshold=threshold) as detector:
                    facts: dict[str, Any] = _compared(detector, local, paths[:32])
                facts |= measure_served(address, settings).as_dict()
            except BoxwrightError as error:
                facts = {"failed": str(error)}
            found["models"][model.name] = facts
            loads = facts.get("loads", ())
            rates = {n["concurrency"]: n["requests_per_s"] for n in loads}
            seen = {k: facts.get(k) for k in ("detections", "missing", "worst_iou", "failed")}
            print(f"{model.name}: {seen} requests/s {rates}", flush=True)
            options.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
