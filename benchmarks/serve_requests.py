"""Many requests of many clients on a served model: each answer is compared, none may be missing.

Builds track A of one source, starts the server, and has clients send picture files, half of them
over HTTP and half over gRPC, without retries. An answer is right when it has the detections of the
local Detector: as many, the same classes, boxes within 0.1 px, scores within 0.001. Pictures with a
score within 0.002 of the threshold are left out, since a batch of another size rounds differently.

    python benchmarks/serve_requests.py a.onnx pictures/ --server WHEEL --python PYTHON \\
        --requests 10000 --clients 32 --out results/serve_requests.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.backends import BackendOptions
from boxwright.backends.triton import TritonBackend
from boxwright.environment import describe_machine
from boxwright.errors import BackendError
from boxwright.images import expand_paths
from boxwright.loading import load
from boxwright.serve.server import ServeRequest, start_server
from boxwright.triton_address import address_from_text
from boxwright.types import Detections

_SCORE, _IOU = 0.25, 0.45


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("images")
    parser.add_argument("--server", type=Path)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _expected(source: Path, paths: list[Path]) -> dict[Path, Detections]:
    """Return what the local Detector finds in pictures that are clear of the threshold."""
    found = {}
    with load(source, "onnxruntime", score_threshold=0.2, iou_threshold=_IOU, quiet=True) as near:
        clear = [p for p in paths if not (np.abs(near(p).scores - _SCORE) < 0.002).any()]
    with load(
        source, "onnxruntime", score_threshold=_SCORE, iou_threshold=_IOU, quiet=True
    ) as local:
        for path in clear:
            found[path] = local(path)
    return found


def _is_right(answer: dict[str, Any], wanted: Detections) -> bool:
    count = int(answer["num_dets"].ravel()[0])
    if count != len(wanted):
        return False
    boxes, scores = answer["det_boxes"][0, :count], answer["det_scores"][0, :count]
    return bool(
        (np.abs(boxes - wanted.xyxy) <= 0.1).all()
        and (np.abs(scores - wanted.scores) <= 0.001).all()
        and (answer["det_classes"][0, :count] == wanted.class_ids).all()
    )


def main() -> None:
    """Run it."""
    options = _arguments()
    expected = _expected(options.source, expand_paths([options.images]))
    jobs = [(np.frombuffer(p.read_bytes(), np.uint8)[None], d) for p, d in expected.items()]
    with tempfile.TemporaryDirectory(prefix="serve-requests-") as name:
        words = ["repo", "build", str(options.source), "--tracks", "a", "--skip-verify"]
        words += ["--out", f"{name}/models", "--runs", f"{name}/runs"]
        subprocess.run([sys.executable, "-m", "boxwright", *words], check=True)
        repository = Path(name, "models")
        (front,) = (p.name for p in repository.glob("*_jpeg"))
        request = ServeRequest(
            repository, (front,), options.server, options.python, http_port=0, grpc_port=0,
            metrics=False,
        )  # fmt: skip
        outcomes: Counter[str] = Counter()
        times: list[float] = []

        def work(place: int) -> list[tuple[str, float]]:
            way = f"triton://{server.http}" if place % 2 else f"triton+grpc://{server.grpc}"
            backend = TritonBackend(address_from_text(f"{way}/{front}"), BackendOptions())
            mine = []
            for number in range(place, options.requests, options.clients):
                data, wanted = jobs[number % len(jobs)]
                begin = time.perf_counter()
                try:
                    answer = backend.infer({"encoded_image": data})
                    word = "right" if _is_right(answer, wanted) else "wrong"
                except BackendError as error:
                    word = f"failed: {error.found[:200]}"
                mine.append((word, (time.perf_counter() - begin) * 1e3))
            backend.close()
            return mine

        with start_server(request) as server, ThreadPoolExecutor(options.clients) as pool:
            begin = time.perf_counter()
            for one in pool.map(work, range(options.clients)):
                outcomes.update(word for word, _ in one)
                times += [ms for _, ms in one]
            seconds = time.perf_counter() - begin
            statistics = {m.name: server.control.statistics(m.name) for m in server.control.index()}
    told = {
        "source": options.source.name,
        "pictures": len(jobs),
        "detections_of_a_round": sum(len(d) for _, d in jobs),
        "requests": options.requests,
        "clients": options.clients,
        "seconds": round(seconds, 2),
        "outcomes": dict(outcomes),
        "machine": describe_machine(),
        "statistics": statistics,
        "latency_ms": [round(t, 1) for t in times],
    }
    options.out.write_text(json.dumps(told), encoding="utf-8")
    p50, p99 = np.percentile(times, [50, 99])
    print(f"{dict(outcomes)} in {seconds:.1f} s: {len(times) / seconds:.1f}/s, "
          f"p50 {p50:.1f} ms, p99 {p99:.1f} ms")  # fmt: skip
    if set(outcomes) != {"right"} or len(times) != options.requests:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
