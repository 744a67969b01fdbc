"""The tracks of a repository side by side on one machine: requests/s, latency, and batches.

Builds a repository of tracks A, C, D, E and F from one source, starts the server on it, and puts
each model under load with the same picture files. Then the same once more without ragged batching,
which is taken out of a copy of the repository. Prints tables; writes every sample to a JSON file.

    python benchmarks/serve_tracks.py yolo11n.pt pictures/ --server WHEEL --python PYTHON \\
        --out results/serve_tracks.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from boxwright.benchmark.served import ServedSettings, measure_served
from boxwright.benchmark.served_records import ServedResult, tables_of_served
from boxwright.serve.server import RunningServer, ServeRequest, start_server

_RAGGED = "allow_ragged_batch: true"
# Track A is also asked with the network's tensor, as its users do; their part is not in its time.
_FRONTS = {
    "A, tensor": "",
    "A": "_jpeg",
    "C": "_end2end_jpeg",
    "D": "_ensemble",
    "E": "_image_jpeg",
    "F": "_fused",
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="checkpoint or raw ONNX")
    parser.add_argument("images", help="folder of pictures of different sizes")
    parser.add_argument("--server", type=Path)
    parser.add_argument("--python", type=Path)
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--ragged", type=int, default=16, help="clients of the second part")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--build", action="append", default=[], help="option of repo build")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _build(options: argparse.Namespace, place: Path) -> Path:
    """Build the repository by Boxwright's own command."""
    words = ["repo", "build", str(options.source), "--tracks", "a,c,d,e,f", "--allow-missing"]
    words += ["--out", str(place / "models"), "--runs", str(place / "runs"), "--skip-verify"]
    subprocess.run([sys.executable, "-m", "boxwright", *words, *options.build], check=True)
    return place / "models"


def _without_ragged(repository: Path, place: Path) -> Path:
    """Return a copy of the repository in which files of different length share no batch."""
    copy = Path(shutil.copytree(repository, place / "models_not_ragged"))
    changed = 0
    for path in copy.rglob("*.pbtxt"):
        text = path.read_text(encoding="utf-8")
        changed += _RAGGED in text
        path.write_text(text.replace(_RAGGED, ""), encoding="utf-8")
    assert changed, f"no configuration has {_RAGGED}"
    return copy


@contextmanager
def _serving(
    repository: Path, models: Sequence[str], options: argparse.Namespace
) -> Iterator[RunningServer]:
    request = ServeRequest(
        repository,
        tuple(models),
        options.server,
        options.python,
        http_port=0,
        grpc_port=0,
        metrics=False,
    )
    with start_server(request, note=lambda text: print(text, file=sys.stderr)) as server:
        print(f"{server.description}: ready after {server.started_s:.1f} s", file=sys.stderr)
        yield server


def _measure(
    repository: Path, front: str, options: argparse.Namespace, counts: tuple[int, ...]
) -> ServedResult:
    """Put one model under load, alone on a server of its own."""
    settings = ServedSettings(counts, (options.images,), seconds=options.seconds, warmup=1)
    with _serving(repository, (front,), options) as server:
        result = measure_served(f"triton://{server.http}/{front}", settings)
    for table in tables_of_served([result]):
        print("\t".join(table.head))
        for row in table.rows:
            print("\t".join(row), flush=True)
    return result


def _shown(result: ServedResult) -> dict[str, Any]:
    values = result.as_dict()
    for load in values["loads"]:
        load["samples_ms"] = [round(s, 2) for s in load["samples_ms"]]
    return values


def main() -> None:
    """Run it."""
    options = _arguments()
    counts = tuple(int(c) for c in options.concurrency.split(","))
    found: dict[str, Any] = {"source": options.source.name, "tracks": {}, "not_ragged": {}}
    with tempfile.TemporaryDirectory(prefix="serve-tracks-") as name:
        place = Path(name)
        repository = _build(options, place)
        ensembles = [p.name for p in repository.glob("*_ensemble")]
        stem = ensembles[0].removesuffix("_ensemble")
        for track, suffix in _FRONTS.items():
            found["tracks"][track] = _shown(_measure(repository, stem + suffix, options, counts))
            options.out.write_text(json.dumps(found), encoding="utf-8")
        copy = _without_ragged(repository, place)
        for track in ("A", "C", "D", "E"):
            result = _measure(copy, stem + _FRONTS[track], options, (options.ragged,))
            found["not_ragged"][track] = _shown(result)
            options.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
