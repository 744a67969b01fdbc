"""Detection in decoded pictures: Boxwright against Ultralytics, picture by picture in turn.

Each side exports the same checkpoint with its own exporter (FP32, batch 1) and detects in its own
process with the same threads, thresholds and pictures. The turn goes round per picture, so that a
noisy machine hits all alike. `total` is the wall time of the public call on an array
(`detector(picture)`, `model.predict(picture)`), overhead is total less inference, `cpu` the
processor time of all threads during the call (spinning included).

Run: `python benchmarks/predict_vs_ultralytics.py yolo11n.pt pictures/ --torch`
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
_SPANS = ("preprocess", "infer", "postprocess", "total", "cpu")
_BASE = "Ultralytics/onnx"
_TORCH = "Ultralytics/torch"
_OVERHEAD_TARGET, _TOTAL_TARGET = 0.5, 0.6
_PAUSE_S = 0.1  # ONNX Runtime's idle threads spin for 50 ms; they must not disturb the next turn


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
                    samples[name][span].append(round(spans[span], 3))
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


def median_ratio(mine: list[float], theirs: list[float]) -> float:
    """Return the median ratio of neighbours in time: the same picture, nearly the same machine."""
    return median([a / b for a, b in zip(mine, theirs, strict=True)])


def print_spans(samples: Samples) -> dict[str, dict[str, float]]:
    """Print the medians and the overhead's quartiles; return the medians in ms."""
    medians = {}
    rows = []
    for name, spans in samples.items():
        values = {span: median(spans[span]) for span in _SPANS}
        low, middle, high = quartiles(overhead(spans))
        medians[name] = {k: round(v, 3) for k, v in {**values, "overhead": middle}.items()}
        cells = [f"{value:.2f}" for value in values.values()]
        rows.append([name, *cells, f"{middle:.2f} ({low:.2f}-{high:.2f})"])
    print(markdown_table(["median ms", *_SPANS, "overhead (quartiles)"], rows))
    return medians


def print_ratios(samples: Samples) -> dict[str, dict[str, float]]:
    """Print and return the median ratios to the baseline."""
    base = samples[_BASE]
    ratios = {}
    for name, spans in samples.items():
        if name != _BASE:
            ratios[name] = {
                "overhead": round(median_ratio(overhead(spans), overhead(base)), 3),
                **{s: round(median_ratio(spans[s], base[s]), 3) for s in ("infer", "total", "cpu")},
            }
    rows = [[name, *(f"{v:.2f}" for v in row.values())] for name, row in ratios.items()]
    print(markdown_table([f"median ratio to {_BASE}", "overhead", "infer", "total", "cpu"], rows))
    return ratios


def print_agreement(found: dict[str, dict[str, float]]) -> None:
    """Print whether all variants find the same objects."""
    rows = [
        [name, f"{f['ours']:.0f}", f"{f['theirs']:.0f}", f"{f['matched']:.0f}",
         f"{f['worst_px']:.3f}", f"{f['worst_score']:.5f}"]
        for name, f in found.items()
    ]  # fmt: skip
    columns = ["found", "baseline", "matched", "worst px", "worst score"]
    print(markdown_table([f"detections against {_BASE}", *columns], rows))
    for name in ("ours/onnxruntime", "ours/openvino"):
        counts = found[name]
        same = counts["ours"] == counts["theirs"] == counts["matched"]
        print(f"{name}: {'the same detections' if same else 'OTHER DETECTIONS: no comparison'}")


def print_targets(ratios: dict[str, dict[str, float]]) -> None:
    """Print what was aimed at and reached."""
    for name, span, limit in (
        ("ours/onnxruntime", "overhead", _OVERHEAD_TARGET),
        ("ours/openvino", "overhead", _OVERHEAD_TARGET),
        ("ours/openvino", "total", _TOTAL_TARGET),
    ):
        ratio = ratios[name][span]
        print(f"{name}: {span} ratio {ratio:.2f}, target {limit}: {verdict(ratio, limit)}")


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
    facts["medians_ms"] = print_spans(samples)
    print()
    facts["ratios"] = ratios = print_ratios(samples)
    print()
    print_agreement(found)
    print_targets(ratios)
    facts |= {"detections": found, "samples_ms": samples}
    print(f"\nraw samples: {write_results('predict_vs_ultralytics', facts, wishes.out).name}")


if __name__ == "__main__":
    main()
