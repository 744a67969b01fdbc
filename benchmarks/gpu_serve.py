"""Every model of a repository on a real Triton server: right, and how fast under load.

Starts the server on a repository (of `boxwright repo build`), compares the detections of each model
that a client can open with those of a local file, and puts each under load. Writes one JSON file
with every sample, anew after each number of requests in flight; prints a line for each. A model
that fails is written down, and the others go on; the exit status is then 1.

    python benchmarks/gpu_serve.py models/ --local a.fp32.onnx --server WHEEL --python PYTHON \\
        --images pictures/ --concurrency 1,16,64 --out serving.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.benchmark.served import ServedSettings, measure_served
from boxwright.boxes import iou_matrix
from boxwright.detector import Detector
from boxwright.errors import BackendError, BoxwrightError
from boxwright.images import expand_paths
from boxwright.loading import load
from boxwright.serve.server import ServeRequest, start_server

_FEWEST = 20  # answers that a rate is made of
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


def _load(address: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Put one model under one load: again, and longer, where too few answers were counted.

    The first answers and the last ones are not counted, so that a short time leaves nothing of a
    slow model. What is too few to the end is marked, and has no rate.
    """
    seconds = options.seconds
    while True:
        settings = ServedSettings(
            (count,), tuple(options.images), seconds=seconds, processes=options.processes
        )
        facts = measure_served(address, settings).as_dict()
        found: dict[str, Any] = facts["loads"][0]
        found["seconds"] = seconds
        found["environment"], found["settings"] = facts["environment"], facts["settings"]
        if found["requests"] >= max(_FEWEST, 2 * count):
            return found
        if seconds >= options.most_seconds:
            _say(f"{address}: {found['requests']} answers in {seconds:g} s are too few for a rate")
            return {**found, "too_few": True, "requests_per_s": None}
        seconds = min(4 * seconds, options.most_seconds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--local", type=Path, required=True, help="The raw file to compare with.")
    parser.add_argument("--images", action="append", required=True)
    parser.add_argument("--iou-threshold", type=float, default=0.45, help="Of the repository.")
    parser.add_argument("--server", type=Path)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--seconds", type=float, default=10.0, help="Of each load.")
    parser.add_argument("--most-seconds", type=float, default=20.0, help="Where those are too few.")
    parser.add_argument("--compare", type=int, default=32, help="Pictures; 0 compares nothing.")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--model", action="append", default=[], help="These only.")
    parser.add_argument("--skip", action="append", default=[], help="Names that end so.")
    parser.add_argument("--protocol", default="triton", choices=["triton", "triton+grpc"])
    parser.add_argument("--log", type=Path, help="For the server's log.")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _measured(
    address: str, local: Detector, paths: list[Path], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Measure one model; yield what is known after each step."""
    with load(address) as detector:
        raw = detector.target.outputs == "raw"
    # the client of a raw model chooses the thresholds
    with load(address, iou_threshold=options.iou_threshold if raw else None) as detector:
        facts: dict[str, Any] = {"description": detector.description}
        if options.compare:
            facts |= _compared(detector, local, paths[: options.compare])
    facts["loads"] = []
    yield facts
    for count in (int(c) for c in options.concurrency.split(",")):
        facts["loads"].append(_load(address, count, options))
        yield facts


def main() -> None:
    """Run it."""
    options = _arguments()
    paths = expand_paths(options.images)
    skipped = (*_PARTS, *options.skip)
    names = options.model or [
        p.parent.name for p in sorted(options.repository.glob("*/config.pbtxt"))
    ]
    request = ServeRequest(
        options.repository,
        models=tuple(n for n in names if n in options.model or not n.endswith(skipped)),
        server=options.server,
        python=options.python,
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        keep_going=True,
        log=options.log,
    )
    found: dict[str, Any] = {"models": {}}

    def write() -> None:
        options.out.write_text(json.dumps(found), encoding="utf-8")

    try:
        with (
            start_server(request, note=_say) as server,
            load(options.local, quiet=True, iou_threshold=options.iou_threshold) as local,
        ):
            found["server"], found["started_s"] = server.description, server.started_s
            for model in server.models:
                facts: dict[str, Any] = {}
                place = server.http if options.protocol == "triton" else server.grpc
                address = f"{options.protocol}://{place}/{model.name}"
                try:
                    if model.state != "READY":
                        raise BackendError(model.name, f"it did not load ({model.reason})", "")
                    for facts in _measured(address, local, paths, options):
                        found["models"][model.name] = facts
                        write()
                except BoxwrightError as error:
                    found["models"][model.name] = {**facts, "failed": str(error)}
                    write()
                facts = found["models"][model.name]
                rates = {n["concurrency"]: n["requests_per_s"] for n in facts.get("loads", ())}
                seen = {k: facts.get(k) for k in ("detections", "missing", "worst_iou", "failed")}
                print(f"{model.name}: {seen} requests/s {rates}", flush=True)
    except BoxwrightError as error:  # nothing loads, or the local file is wrong
        found["failed"] = str(error)
        write()
        sys.exit(f"gpu_serve: {error}")
    sys.exit(1 if any("failed" in facts for facts in found["models"].values()) else 0)


if __name__ == "__main__":
    main()
