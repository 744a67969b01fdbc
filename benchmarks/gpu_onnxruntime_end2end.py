"""The forms of NMS in end-to-end files on ONNX Runtime: what each costs, and where it goes.

    python benchmarks/gpu_onnxruntime_end2end.py yolo11n.fp32.onnx yolo11n.fp16.onnx \
        --images coco128/images --batch 1,8,32,64 --out results.json

Of each raw file the end-to-end forms are made here (no torch), for each number of candidates
(`--pre-topk`), and compared on the pictures: boxes of each form against those that the host makes
of the raw file's outputs on the same device. Then the network alone is timed on real pictures, raw
and end-to-end, with and without a CUDA graph, all rows of a batch in turns of a block: by CUDA
events on a GPU (the row says by what), with `--cpu` by the host's clock around a run. `profile` is
ONNX Runtime's own, of runs without a CUDA graph from host memory: nodes by provider, milliseconds a
run by operator as the host sees them (what a kernel of the GPU takes after its launch shows in the
next node that waits), and the nodes that copy between the two. Results are written after each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.backends import BackendOptions
from boxwright.backends.onnxruntime import OnnxRuntimeBackend
from boxwright.detector import Detector
from boxwright.devices import device_from_text
from boxwright.environment import describe_machine, package_versions
from boxwright.errors import BoxwrightError
from boxwright.graph.end2end import add_end2end
from boxwright.graph.io import bytes_from_model, model_from_file, write_stamp
from boxwright.images import expand_paths, read_image
from boxwright.loading import load
from boxwright.ort_binding import preload_libraries
from boxwright.ort_providers import CUDA, facts_of_graph, gpu_providers
from boxwright.stamps import Stamp
from boxwright.store import sha256_of_file, write_atomic
from boxwright.types import Detections, Latency, NmsForm, NmsSettings, Target

Array = npt.NDArray[Any]
Forms = dict[tuple[NmsForm, int], Path]
_FORMS: tuple[NmsForm, ...] = ("onnx", "portable")
_PATHS = ("files", "images", "out")  # not told: they name a machine
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
_FAILURES = (BoxwrightError, RuntimeError, ValueError, OSError, LookupError)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="raw ONNX files of `boxwright export`")
    parser.add_argument("--images", nargs="+", required=True, help="files, folders or globs")
    parser.add_argument("--max-images", type=int, default=32, help="compared (default 32)")
    parser.add_argument("--batch", default="1,8,32,64")
    parser.add_argument("--pre-topk", default="1000", help="candidates; a comma list")
    parser.add_argument("--keep-topk", type=int, default=100)
    parser.add_argument("--score-threshold", type=float, default=0.25)
    parser.add_argument("--iou-threshold", type=float, default=0.45)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--block", type=int, default=25, help="runs of one turn (default 25)")
    parser.add_argument("--profiled", type=int, default=10, help="runs of a profile (default 10)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cpu", action="store_true", help="all of it on the CPU")
    parser.add_argument("--threads", type=int, help="of the CPU; see boxwright.load")
    parser.add_argument("--limit-s", type=float, default=1e9, help="begin no batch after this")
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    wishes = parser.parse_args()
    if wishes.cpu:
        wishes.device = "cpu"
    return wishes


@dataclass
class Row:
    """A file at a batch, with or without a CUDA graph.

    Attributes:
        raw, form, pre_topk, batch, graph: Of which raw file, `raw` or the form of NMS; candidates.
        path: Of the file that runs.
    """

    raw: str
    form: str
    pre_topk: int
    batch: int
    graph: bool
    path: Path
    backend: OnnxRuntimeBackend | None = None
    feed: dict[str, Array] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        data: dict[str, Any] = {
            "file": self.raw, "form": self.form, "pre_topk": self.pre_topk, "batch": self.batch,
            "cuda_graph": self.graph, **self.facts,
        }  # fmt: skip
        if self.error:
            data["error"] = self.error
        if self.samples:
            data["network"] = Latency("infer", self.batch, tuple(self.samples)).as_dict()
        return data

    def attempt(self, work: Callable[[], None]) -> None:
        """Do something, and keep the error of what fails."""
        if self.error:
            return
        try:
            work()
        except _FAILURES as error:
            self.error = "".join(traceback.format_exception_only(error)).strip()
            print(f"{self.raw} {self.form} b{self.batch}: {self.error}", file=sys.stderr)
            self.close()

    def time(self, count: int) -> list[float]:
        """Return ms of the network alone."""
        assert self.backend is not None
        if self.backend.launch_clock:
            return self.backend.launch_times(self.feed, count)
        times = []
        for _ in range(count):
            begin = perf_counter()
            self.backend.infer(self.feed)
            times.append((perf_counter() - begin) * 1e3)
        return times

    def close(self) -> None:
        """Free the session."""
        if self.backend is not None:
            self.backend.close()
        self.backend = None


def made_forms(raw: Path, wishes: argparse.Namespace, folder: Path) -> tuple[Stamp, Forms]:
    """Write the end-to-end forms of a raw file; return its stamp and their paths."""
    with load(raw, "onnxruntime", device="cpu", quiet=True) as detector:
        spec, target = detector.spec, detector.target
    files: Forms = {}
    for candidates in (int(n) for n in wishes.pre_topk.split(",")):
        settings = settings_of(wishes, candidates)
        for form in _FORMS:
            asked = dataclasses.replace(target, outputs="end2end", nms=form)
            model = add_end2end(model_from_file(raw), spec, settings, asked)
            write_stamp(model, Stamp(spec, asked, settings, sha256_of_file(raw)))
            path = folder / f"{raw.stem}.{form}.{candidates}.onnx"
            path.write_bytes(bytes_from_model(model, path.name))
            files[form, candidates] = path
    return Stamp(spec, target), files


def settings_of(wishes: argparse.Namespace, candidates: int) -> NmsSettings:
    """Return what is baked in."""
    return NmsSettings(
        score_threshold=wishes.score_threshold,
        iou_threshold=wishes.iou_threshold,
        pre_topk=candidates,
        keep_topk=wishes.keep_topk,
    )


def opened(path: Path, graph: bool, wishes: argparse.Namespace) -> OnnxRuntimeBackend:
    """Open a file on the device."""
    options = BackendOptions(
        threads=wishes.threads,
        device=wishes.device,
        spin=not wishes.cpu,  # rows take turns, and would poll for each other
        cuda_graph=graph,
    )
    return OnnxRuntimeBackend(path, options)


def compared(
    raw: Path, stamp: Stamp, forms: Forms, images: list[Any],
    wishes: argparse.Namespace,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return how the boxes of each form differ from those that the host makes of the raw file."""
    host = Detector(opened(raw, False, wishes), stamp.spec, stamp.target)
    found = []
    prepared = [(batch.copy(), places) for batch, places in (host.preprocess([i]) for i in images)]
    outputs = [
        {name: value.copy() for name, value in host.infer(batch).items()} for batch, _ in prepared
    ]
    for (form, candidates), path in forms.items():
        settings = settings_of(wishes, candidates)
        target = dataclasses.replace(stamp.target or Target(), outputs="end2end", nms=form)
        graph = Detector(opened(path, False, wishes), stamp.spec, target, settings)
        pairs, unsettled = [], 0
        for (batch, places), output in zip(prepared, outputs, strict=True):
            expected = host.postprocess(output, places, settings)[0]
            own = graph.infer(batch)
            unsettled += int("nms_converged" in own and not own["nms_converged"][0, 0])
            pairs.append((expected, graph.postprocess(own, places)[0]))
        graph.close()
        found.append({"file": raw.name, "form": form, "pre_topk": candidates,
                      "unsettled": unsettled, **difference(pairs)})  # fmt: skip
    host.close()
    return found


def difference(pairs: list[tuple[Detections, Detections]]) -> dict[str, Any]:
    """Return counts, and the largest differences of pictures with the same boxes in order."""
    alike = [
        (a, b)
        for a, b in pairs
        if len(a.scores) == len(b.scores) and np.array_equal(a.class_ids, b.class_ids)
    ]
    boxes = [np.abs(a.xyxy - b.xyxy).max() for a, b in alike if len(a.scores)]
    scores = [np.abs(a.scores - b.scores).max() for a, b in alike if len(a.scores)]
    return {
        "pictures": len(pairs),
        "detections_of_the_host": sum(len(a.scores) for a, _ in pairs),
        "detections": sum(len(b.scores) for _, b in pairs),
        "pictures_with_other_rows": len(pairs) - len(alike),
        "largest_box_difference_px": float(max(boxes, default=0.0)),
        "largest_score_difference": float(max(scores, default=0.0)),
    }


def profile(row: Row, wishes: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what ONNX Runtime's profile says of some runs."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / f"{row.path.stem}.b{row.batch}")
    providers: list[Any] = ["CPUExecutionProvider"]
    if wishes.cpu:
        settings.intra_op_num_threads = wishes.threads or 0
    else:
        preload_libraries(ort)
        settings.intra_op_num_threads = 1
        providers = list(gpu_providers(
            device_from_text(wishes.device), CUDA, facts_of_graph(row.path, row.path.name),
            options={}, capture=False, stream=None, engine_cache=None, profile_batch=None,
            what=row.path.name,
        ))  # fmt: skip
    session = ort.InferenceSession(str(row.path), settings, providers=providers, enable_fallback=0)
    for _ in range(wishes.profiled + 1):
        session.run(None, row.feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return profile_of(events, wishes.profiled)


def profile_of(events: list[dict[str, Any]], runs: int) -> dict[str, Any]:
    """Return nodes by provider, ms a run by operator (the ten largest), and nodes that copy.

    The first run is left out, in which convolutions are planned.
    """
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    per_run = len(nodes) // (runs + 1)
    kept = sorted(nodes, key=lambda e: e["ts"])[-per_run * runs :] if per_run else []
    one = kept[-per_run:]
    spent: defaultdict[str, float] = defaultdict(float)
    for event in kept:
        spent[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
    largest = sorted(spent.items(), key=lambda item: -item[1])[:10]
    return {
        "runs": runs,
        "nodes_by_provider": dict(Counter(e["args"]["provider"] for e in one)),
        "copy_nodes": sum(e["args"]["op_name"] in _COPIES for e in one),
        "cpu_nodes": dict(
            Counter(e["args"]["op_name"] for e in one if e["args"]["provider"].startswith("CPU"))
        ),
        "ms_a_run_by_operator": {name: round(ms, 4) for name, ms in largest},
        "ms_a_run": round(sum(spent.values()), 4),
    }


def begin(row: Row, batch: Array, wishes: argparse.Namespace, folder: Path) -> None:
    """Open a row, warm it up, and profile its file where this is the first row of it."""
    row.backend = opened(row.path, row.graph, wishes)
    info = row.backend.inputs[0]
    row.feed = {info.name: batch.astype(info.dtype, copy=False)}
    row.time(wishes.warmup)
    clock = row.backend.launch_clock or "the host's clock around a run"
    row.facts = {"runs_on": row.backend.description, "network_by": clock}
    if not row.graph:
        row.facts["profile"] = profile(row, wishes, folder)


def measure(rows: list[Row], wishes: argparse.Namespace, keep: Callable[[], None]) -> None:
    """Time rows that are open, in turns of a block."""
    done = 0
    while done < wishes.iterations:
        count = min(wishes.block, wishes.iterations - done)
        for row in rows:

            def turn(row: Row = row, count: int = count) -> None:
                row.samples += [round(s, 5) for s in row.time(count)]

            row.attempt(turn)
        keep()
        done += count
    for row in rows:
        row.close()


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    cells = [row["file"], row["form"], str(row["pre_topk"] or "-"), str(row["batch"])]
    cells.append("yes" if row["cuda_graph"] else "no")
    if "error" in row:
        return "| " + " | ".join([*cells, row["error"].replace("|", "/")[:100]]) + " |"
    network = row.get("network")
    cells += [f"{network[k]:.3f}" for k in ("p50_ms", "p95_ms")] if network else ["-", "-"]
    told = row.get("profile")
    if told:
        cells += [json.dumps(told["nodes_by_provider"]), str(told["copy_nodes"])]
        cells.append(", ".join(f"{n} {ms:.2f}" for n, ms in
                               list(told["ms_a_run_by_operator"].items())[:4]))  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Compare and measure; return 1 when a row failed or a form's boxes are others."""
    wishes = arguments()
    begun = perf_counter()
    with suppress(ImportError):  # first, so that ONNX Runtime finds the CUDA libraries it loads
        import torch  # noqa: F401
    paths = expand_paths(wishes.images)
    images = [read_image(path) for path in paths[: max(wishes.max_images, 1)]]
    names = ("onnxruntime-gpu", "onnxruntime", "torch", "cuda-bindings", "numpy")
    result: dict[str, Any] = {
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": describe_machine(),
        "packages": package_versions(names),
        "files": {path.name: sha256_of_file(path) for path in wishes.files},
        "settings": {k: str(v) for k, v in vars(wishes).items() if k not in _PATHS},
        "compared": [],
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = {raw: made_forms(raw, wishes, folder) for raw in wishes.files}
        for raw, (stamp, forms) in made.items():
            result["compared"] += compared(raw, stamp, forms, images, wishes)
            print("\n".join(json.dumps(c) for c in result["compared"]), flush=True)
        for size in (int(n) for n in wishes.batch.split(",")):
            for raw, (stamp, forms) in made.items():
                if perf_counter() - begun > wishes.limit_s:
                    print(f"{raw.name}, batch {size}: not begun, the time is up", flush=True)
                    continue
                batch_rows(raw, stamp, forms, size, images, result, wishes, folder)
    other = [c for c in result["compared"] if c["pictures_with_other_rows"]]
    return 1 if other or any("error" in row for row in result["rows"]) else 0


def batch_rows(
    raw: Path, stamp: Stamp, forms: Forms, size: int, images: list[Any],
    result: dict[str, Any], wishes: argparse.Namespace, folder: Path,
) -> None:  # fmt: skip
    """Measure all rows of a raw file at a batch, and keep them in the result."""
    with Detector(opened(raw, False, wishes), stamp.spec, stamp.target) as host:
        batch = host.preprocess([images[i % len(images)] for i in range(size)])[0].copy()
    graphs = (False,) if wishes.cpu else (False, True)
    kinds: list[tuple[str, int, Path]] = [
        ("raw", 0, raw),
        *((form, n, path) for (form, n), path in forms.items()),
    ]
    rows = [Row(raw.name, form, n, size, graph, path) for form, n, path in kinds for graph in graphs
            if not (graph and form == "onnx")]  # fmt: skip
    before = list(result["rows"])

    def keep() -> None:
        result["rows"] = [*before, *(row.as_dict() for row in rows)]
        write_atomic(wishes.out, json.dumps(result).encode())

    for row in rows:

        def start(row: Row = row) -> None:
            begin(row, batch, wishes, folder)

        row.attempt(start)
        keep()
    measure(rows, wishes, keep)
    keep()
    print("\n".join(line_of(row.as_dict()) for row in rows), flush=True)


if __name__ == "__main__":
    sys.exit(main())
