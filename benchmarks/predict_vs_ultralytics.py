"""Detection in decoded pictures: Boxwright against Ultralytics, picture by picture in turn.

Each side exports the same checkpoint with its own exporter (FP32, batch 1) and detects in its own
process with the same threads, thresholds and pictures. The turn goes round per picture, so that a
noisy machine hits all alike. `total` is the wall time of the public call on an array
(`detector(picture)`, `model.predict(picture)`), overhead is total less inference.

    python benchmarks/predict_vs_ultralytics.py yolo11n.pt pictures/ --torch
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from time import sleep
from typing import Any

from measure import (
    environment,
    export_ours,
    export_ultralytics,
    markdown_table,
    median,
    pictures_of,
    quartiles,
    verdict,
    write_results,
)
from processes import Worker

Samples = dict[str, dict[str, list[float]]]
_SPANS = ("preprocess", "infer", "postprocess", "total")
_BASE = "Ultralytics/onnx"
_TORCH = "Ultralytics/torch"
_OVERHEAD_TARGET, _TOTAL_TARGET = 0.5, 0.6
_PAUSE_S = 0.01  # idle threads of the last runtime spin for a while; they must not disturb the next


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path, help="an Ultralytics detection checkpoint")
    parser.add_argument("images", nargs="+", help="pictures, folders or globs")
    parser.add_argument("--limit", type=int, default=64, help="pictures (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over them (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="of every runtime (default 2)")
    parser.add_argument("--torch", action="store_true", help="measure their .pt as well")
    parser.add_argument("--out", type=Path, help="JSON file (default: results/)")
    return parser.parse_args()


def time_in_turn(workers: dict[str, Worker], count: int, rounds: int) -> Samples:
    """Return the spans of every variant in ms, a sample per picture and round."""
    samples: Samples = {name: {span: [] for span in _SPANS} for name in workers}
    names = list(workers)
    for name in names:
        for index in range(min(3, count)):
            workers[name].ask("time", index)
    for turn in range(rounds):
        for index in range(count):
            first = (turn + index) % len(names)
            for name in names[first:] + names[:first]:
                sleep(_PAUSE_S)
                spans: dict[str, float] = workers[name].ask("time", index)
                for span in _SPANS:
                    samples[name][span].append(round(spans[span], 4))
    return samples


def overhead(spans: dict[str, list[float]]) -> list[float]:
    """Return what each call took beyond the network, in ms."""
    return [t - i for t, i in zip(spans["total"], spans["infer"], strict=True)]


def compare_detections(mine: list[list[float]], theirs: list[list[float]]) -> dict[str, float]:
    """Match rows [x1, y1, x2, y2, score, class]: each of theirs to the nearest of its class.

    Returns:
        Counts of rows and of those within 1 px and 0.01 score, and the worst differences of them.
    """
    free = list(mine)
    matched, worst_px, worst_score = 0, 0.0, 0.0
    for row in theirs:
        near = [r for r in free if r[5] == row[5]]
        if not near:
            continue
        best = min(near, key=lambda r: max(abs(a - b) for a, b in zip(r[:5], row[:5], strict=True)))
        far = max(abs(a - b) for a, b in zip(best[:4], row[:4], strict=True))
        if far <= 1.0 and abs(best[4] - row[4]) <= 0.01:
            free.remove(best)
            matched += 1
            worst_px, worst_score = max(worst_px, far), max(worst_score, abs(best[4] - row[4]))
    return {
        "ours": len(mine),
        "theirs": len(theirs),
        "matched": matched,
        "worst_px": worst_px,
        "worst_score": worst_score,
    }


def agreement(workers: dict[str, Worker], count: int) -> dict[str, dict[str, float]]:
    """Compare what every variant finds with what the baseline finds, summed over the pictures."""
    result: dict[str, dict[str, float]] = {}
    wanted = [workers[_BASE].ask("found", i) for i in range(count)]
    for name, worker in workers.items():
        if name == _BASE:
            continue
        rows = [compare_detections(worker.ask("found", i), wanted[i]) for i in range(count)]
        result[name] = {
            key: (max if key.startswith("worst") else sum)(row[key] for row in rows)
            for key in rows[0]
        }
    return result


def print_report(samples: Samples, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Print the tables and the targets; return the medians."""
    medians: dict[str, Any] = {}
    rows = []
    for name, spans in samples.items():
        values = {span: median(spans[span]) for span in _SPANS}
        low, middle, high = quartiles(overhead(spans))
        values["overhead"] = middle
        medians[name] = {k: round(v, 3) for k, v in values.items()}
        rows.append([name, *(f"{values[s]:.2f}" for s in _SPANS), f"{middle:.2f} ({low:.2f}-{high:.2f})"])
    print(markdown_table(["median ms", *_SPANS, "overhead (quartiles)"], rows))
    print()
    base = samples[_BASE]
    rows = []
    for name, spans in samples.items():
        if name == _BASE:
            continue
        # Ratios of neighbours in time: both saw the same picture and nearly the same machine.
        pairs = {
            "overhead": median([a / b for a, b in zip(overhead(spans), overhead(base), strict=True)]),
            "infer": median([a / b for a, b in zip(spans["infer"], base["infer"], strict=True)]),
            "total": median([a / b for a, b in zip(spans["total"], base["total"], strict=True)]),
        }
        medians[name]["ratio_to_ultralytics_onnx"] = {k: round(v, 3) for k, v in pairs.items()}
        rows.append([name, *(f"{v:.2f}" for v in pairs.values())])
    print(markdown_table([f"median ratio to {_BASE}", "overhead", "inference", "total"], rows))
    print()
    rows = [
        [name, f"{f['ours']:.0f}", f"{f['theirs']:.0f}", f"{f['matched']:.0f}",
         f"{f['worst_px']:.3f}", f"{f['worst_score']:.5f}"]
        for name, f in found.items()
    ]  # fmt: skip
    head = [f"detections against {_BASE}", "found", "baseline", "matched", "worst px", "worst score"]
    print(markdown_table(head, rows))
    print()
    for name in ("ours/onnxruntime", "ours/openvino"):
        ratio = medians[name]["ratio_to_ultralytics_onnx"]["overhead"]
        print(f"{name}: overhead ratio {ratio:.2f}, target {_OVERHEAD_TARGET}: "
              f"{verdict(ratio, _OVERHEAD_TARGET)}")  # fmt: skip
    ratio = medians["ours/openvino"]["ratio_to_ultralytics_onnx"]["total"]
    print(f"ours/openvino: total ratio {ratio:.2f}, target {_TOTAL_TARGET}: {verdict(ratio, _TOTAL_TARGET)}")
    return medians


def main() -> None:
    """Export, measure, compare and report."""
    wishes = arguments()
    pictures = pictures_of(wishes.images, wishes.limit)
    facts: dict[str, Any] = {
        "environment": environment(),
        "checkpoint": wishes.checkpoint.name,
        "pictures": len(pictures),
        "rounds": wishes.rounds,
        "threads": wishes.threads,
        "thresholds": {"score": 0.25, "iou": 0.7},
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        ours = export_ours(wishes.checkpoint, folder)
        checkpoint, theirs = export_ultralytics(wishes.checkpoint, folder)
        sides = {
            "ours/onnxruntime": ("onnxruntime", ours),
            "ours/openvino": ("openvino", ours),
            _BASE: ("ultralytics", theirs),
        }
        if wishes.torch:
            sides[_TORCH] = ("ultralytics", checkpoint)
        workers = {
            label: stack.enter_context(
                Worker(side, model, pictures, folder, threads=wishes.threads)
            )
            for label, (side, model) in sides.items()
        }
        found = agreement(workers, len(pictures))
        samples = time_in_turn(workers, len(pictures), wishes.rounds)
    medians = print_report(samples, found)
    facts |= {"medians_ms": medians, "detections": found, "samples_ms": samples}
    print(f"\nraw samples: {write_results('predict_vs_ultralytics', facts, wishes.out).name}")


if __name__ == "__main__":
    main()
