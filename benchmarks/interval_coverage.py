"""Shows how often the intervals of accuracy hold what they should, on simulated detectors.

    python benchmarks/interval_coverage.py --out benchmarks/results/interval_coverage-DATE.json

Draws data sets of 60 pictures from one distribution and two detectors of equal skill with
independent noise. Three things are counted: how often the paired interval of their difference holds
0, how often the interval of one figure holds the mean figure of such data sets, and how often it
holds the figure of 4,000 pictures. The third is not to be expected: COCO's mAP of few objects a
class is too high.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from boxwright.scoring import Labelled
from boxwright.significance import Matches, change, interval, map_of, matches_from_pictures

PICTURES, POPULATION, RESAMPLES = 60, 4000, 300
Scene = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]  # xyxy (N, 4), class ids (N,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [measured(classes, options.trials) for classes in (1, 5, 20)]
    text = json.dumps({"pictures": PICTURES, "resamples": RESAMPLES, "rows": rows}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def measured(classes: int, trials: int) -> dict[str, float]:
    """Return the shares of the trials in which each interval holds what it should."""
    rng = np.random.default_rng(1)
    population = map_of(detected(scenes(rng, POPULATION, classes), rng, classes))
    figures, ends, zero = [], [], 0
    for _ in range(trials):
        truth = scenes(rng, PICTURES, classes)
        one, other = detected(truth, rng, classes), detected(truth, rng, classes)
        zero += change(one, other, "other", 0, RESAMPLES).within_noise
        figures.append(map_of(one))
        found = interval(one, 0, RESAMPLES)
        assert found is not None, "every picture shows an object"
        ends.append(found)
    mean = float(np.mean(figures))
    return {
        "classes": classes,
        "trials": trials,
        "map_of_4000_pictures": round(population, 4),
        "mean_map": round(mean, 4),
        "mean_of_middles": round(float(np.mean(ends)), 4),
        "change_holds_0": zero / trials,
        "interval_holds_mean_map": sum(low <= mean <= high for low, high in ends) / trials,
        "interval_holds_4000": sum(low <= population <= high for low, high in ends) / trials,
    }


def boxes(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    corner, size = rng.random((count, 2)) * 400, rng.random((count, 2)) * 150 + 40
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def scenes(rng: np.random.Generator, count: int, classes: int) -> list[Scene]:
    sizes = rng.integers(1, 6, count)
    return [(boxes(rng, int(n)), rng.integers(0, classes, int(n))) for n in sizes]


def detected(truth: list[Scene], rng: np.random.Generator, classes: int) -> Matches:
    """Find 85 % of the objects, each coordinate 8 px off, and up to three that are not there."""
    pictures = []
    for objects, ids in truth:
        hit = rng.random(len(ids)) < 0.85
        near = objects[hit] + rng.normal(0, 8, (int(hit.sum()), 4)).astype(np.float32)
        extra = int(rng.integers(0, 4))
        scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(2, 4, extra)])
        order = np.argsort(-scores, kind="stable")
        xyxy = np.concatenate([near, boxes(rng, extra)])[order]
        class_ids = np.concatenate([ids[hit], rng.integers(0, classes, extra)])[order]
        crowd, areas = np.zeros(len(ids), bool), np.ones(len(ids))
        found = scores[order].astype(np.float32)
        pictures.append(Labelled(objects, ids, crowd, areas, xyxy, found, class_ids))
    return matches_from_pictures(pictures, classes, 300, "simulated")


if __name__ == "__main__":
    main()
