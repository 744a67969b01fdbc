"""Parity: what files compute against what their source computes.

The tolerances below are the ones that docs/verification.md prints; a test keeps the two equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from boxwright.detector import Detector
from boxwright.errors import ImageError
from boxwright.heads import (
    candidates_from_raw,
    class_scores_from_raw,
    decoded_raw,
    detections_from_rows,
)
from boxwright.image_parity import box_gap, fitted, grey_gap
from boxwright.matching import Matches, MatchRules, match_detections
from boxwright.preprocess import Placement, source_from_input
from boxwright.task_parity import task_checks, task_gaps
from boxwright.types import Check, Detections, FloatArray, Image, NmsSettings, Parity, Precision

__all__ = [
    "GREY_LEVELS",
    "PICTURE_BOX_PX",
    "TOLERANCES",
    "Candidate",
    "Tolerance",
    "choose_threshold",
    "verify",
]

_ENOUGH_DETECTIONS = 50  # what a lowered threshold should yield, when nothing else does
_LEAST_SPREAD = 0.01  # of the scores of those
# An FP16 file rounds at each of some sixty layers, its shaken source only at the input; independent
# errors add up as the square root of their number.
_OWN_NOISE_FACTOR = 8.0
_LARGEST_ALLOWANCE = 0.15  # no sensitivity excuses more than this

# Of files that take pictures, against the host's path; boxes in pixels of the picture or, where it
# is larger, of the network's input.
GREY_LEVELS = 1.0
PICTURE_BOX_PX = 0.5

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a file of some precision may be from its source.

    Attributes:
        raw_box_px: Limit on the difference of decoded raw box coordinates, in input pixels.
        raw_score: Limit on the difference of raw scores.
        raw_floor: Only anchors whose best score in the source is at least this are compared.
        raw_quantile: Which quantile of the differences must keep the limit; 1 is the largest.
        min_iou: Smallest IoU of a matched pair of detections.
        score: Largest difference of scores in a pair.
        share: Share of the detections that may be missing, or too many.
        on_average: `min_iou` and `score` hold for the mean of the pairs, not for each.
    """

    raw_box_px: float
    raw_score: float
    raw_floor: float
    raw_quantile: float
    min_iou: float
    score: float
    share: float = 0.0
    on_average: bool = False


TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(0.05, 1e-4, raw_floor=0.0, raw_quantile=1.0, min_iou=0.99, score=1e-3),
    "fp16": Tolerance(2.0, 0.02, raw_floor=0.25, raw_quantile=0.99, min_iou=0.95, score=0.02),
    # 8 bits move every box a little and drop the doubtful ones; mAP says how much that costs. These
    # limits are there to catch a file that is broken.
    "int8": Tolerance(
        8.0,
        0.15,
        raw_floor=0.25,
        raw_quantile=0.5,
        min_iou=0.85,
        score=0.1,
        share=0.15,
        on_average=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file to prove.

    Attributes:
        detector: It, open.
        precision: Whose tolerances hold.
        network_input: Name of the extra output that holds what its graph made of a picture; empty
            where it has none.
    """

    detector: Detector
    precision: Precision
    network_input: str = ""

    @property
    def takes_pictures(self) -> bool:
        """Whether its graph preprocesses."""
        return self.detector.target.input == "image"


@dataclass(slots=True)
class _Tally:
    """What was met so far for one candidate."""

    box_gaps: list[FloatArray] = field(default_factory=list)
    score_gaps: list[FloatArray] = field(default_factory=list)
    box_relative: float = 0.0
    score_relative: float = 0.0
    anchors: int = 0
    background: int = 0
    wrong_values: int = 0
    pairs: int = 0
    missing: int = 0
    extra: int = 0
    ties: int = 0
    found: int = 0
    min_iou: float = 1.0
    score_gap: float = 0.0
    iou_sum: float = 0.0
    score_gap_sum: float = 0.0
    counted: int = 0
    own_noise: float = 0.0
    batch_differences: int = 0
    batches: int = 0
    task_gaps: list[float] = field(default_factory=list)
    grey_gap: float | None = None  # of files that take pictures
    box_gap: float | None = None

    def forget_background(self) -> None:
        """Drop what was compared before any anchor stood out."""
        self.background = 0
        self.box_gaps.clear()
        self.score_gaps.clear()
        self.box_relative = self.score_relative = 0.0

    def add(self, matches: Matches, found: int) -> None:
        self.pairs += matches.pairs
        self.missing += matches.missing
        self.extra += matches.extra
        self.ties += matches.ties
        self.found += found
        self.min_iou = min(self.min_iou, matches.min_iou)
        self.score_gap = max(self.score_gap, matches.max_score_gap)
        self.iou_sum += matches.iou_sum
        self.score_gap_sum += matches.score_gap_sum
        self.counted += matches.counted


class _Reference:
    """The source on one picture; everything it computes is computed once."""

    def __init__(self, detector: Detector, image: Image, tensor: FloatArray | None = None) -> None:
        """Run the source; on `tensor` in the place of what the host makes of the picture."""
        self.detector = detector
        self.image = image
        batch, self.places = detector.preprocess([image])
        self.batch: FloatArray = batch.copy() if tensor is None else tensor
        self.outputs = {n: v.copy() for n, v in detector.infer(self.batch).items()}
        self._found: dict[NmsSettings, Detections] = {}

    def detections(self, settings: NmsSettings) -> Detections:
        if settings not in self._found:
            found = self.detector.postprocess(self.outputs, self.places, settings)[0]
            self._found[settings] = found
        return self._found[settings]

    def proposals(self, settings: NmsSettings) -> Detections:
        """Return what the source proposes before NMS."""
        spec = self.detector.spec
        rows = candidates_from_raw(self.outputs, 0, spec, settings)
        where = self.places[0]
        if spec.task in ("obb", "classify"):
            return detections_from_rows(rows, spec, where)
        xyxy = source_from_input(rows.xyxy, where)
        return Detections(xyxy, rows.scores, rows.class_ids, image_size=where.source_size)

    def unclipped(self, settings: NmsSettings) -> FloatArray:
        """Return the boxes of its proposals as NMS sees them: input pixels, not cut at edges."""
        return candidates_from_raw(self.outputs, 0, self.detector.spec, settings).xyxy

    def class_scores(self, settings: NmsSettings) -> FloatArray | None:
        """Return what its proposals score in every class, where NMS sees only the best."""
        return class_scores_from_raw(self.outputs, 0, self.detector.spec, settings)

    def own_noise(self, settings: NmsSettings, rules: MatchRules) -> float:
        """Return how far its own scores move when its input is rounded to float16.

        No half-precision engine can be expected to stay closer to the source than that.
        """
        rounded = self.batch.astype(np.float16).astype(np.float32)
        outputs = self.detector.infer(rounded)
        shaken = self.detector.postprocess(outputs, self.places, settings)[0]
        return match_detections(self.detections(settings), shaken, rules).max_score_gap


def verify(
    reference: Detector,
    candidates: Mapping[str, Candidate],
    pictures: Sequence[Path | Image],
    *,
    environment: Mapping[str, str] | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Parity]:
    """Compare files with their source on pictures, tensor by tensor and box by box.

    All see the very same input tensor: a file that takes pictures makes its own, which may differ
    from the host's by a grey level, and the source is run on that. Raw outputs are compared where
    a file has them; detections always, at the file's operating settings. Then a batch of three
    pictures is compared with the same pictures one by one, where the file's batch is free.

    Args:
        reference: The source, with a raw head.
        candidates: The files to prove, by name.
        pictures: Paths or (H, W, 3) uint8 BGR arrays.
        environment: Recorded in the results.
        advance: Called with the number of pictures done.

    Returns:
        By name, what was measured.

    Raises:
        ImageError: A picture cannot be read, or there is none.
    """
    tallies = {name: _Tally() for name in candidates}
    first: list[Image] = []
    for count, image in enumerate(_images(pictures)):
        sources: dict[tuple[int, ...], list[_Reference]] = {}
        for name, candidate in candidates.items():
            if candidate.takes_pictures:
                _compare_pictures(reference, image, candidate, tallies[name], sources)
            else:
                _compare(_host(reference, image, sources)[0], candidate, tallies[name])
        if count < 3:
            first.append(image)
        advance(1)
    if not first:
        raise ImageError("verification", "there are no pictures to compare on", "give --images")
    results = {}
    for name, candidate in candidates.items():
        if len(first) == 3 and candidate.detector.batch_is_free:
            _compare_batch(candidate, first, tallies[name])
        results[name] = Parity(
            reference=reference.description,
            candidate=candidate.detector.description,
            checks=tuple(_checks(tallies[name], candidate)),
            pictures=len(pictures),
            detections=tallies[name].found,
            environment=dict(environment or {}),
        )
    return results


def _images(pictures: Sequence[Path | Image]) -> Iterator[Image]:
    for picture in pictures:
        yield Detector.read(picture)


def _rules(candidate: Candidate) -> MatchRules:
    limits, nms = TOLERANCES[candidate.precision], candidate.detector.nms
    nms_iou = None if candidate.detector.spec.layout.nms_free else nms.iou_threshold
    return MatchRules(nms.score_threshold, nms_iou, limits.min_iou, limits.score)


def _host(
    reference: Detector, image: Image, sources: dict[tuple[int, ...], list[_Reference]]
) -> list[_Reference]:
    """Return what the source was run on for a picture of this size, the host's path first."""
    if image.shape not in sources:
        sources[image.shape] = [_Reference(reference, image)]
    return sources[image.shape]


def _compare_pictures(
    reference: Detector,
    image: Image,
    candidate: Candidate,
    tally: _Tally,
    sources: dict[tuple[int, ...], list[_Reference]],
) -> None:
    """Add one picture to the tally of a file that takes pictures."""
    detector = candidate.detector
    image = fitted(image, detector.target.source_size)
    batch, _ = detector.preprocess([image] * (detector.fixed_batch or 1))
    got = detector.infer(batch, detector.nms)
    known = _host(reference, image, sources)
    source = known[0]
    if candidate.network_input:
        tensor = got.pop(candidate.network_input)[:1].copy()
        gap = grey_gap(tensor[0], source.batch[0], detector.spec.preprocess)
        tally.grey_gap = max(tally.grey_gap or 0.0, gap)
        same = [s for s in known if np.array_equal(s.batch, tensor)]
        if not same:
            known.append(_Reference(reference, image, tensor))
        source = same[0] if same else known[-1]
    _compare(source, candidate, tally, got)
    if candidate.precision == "fp32":
        found = detector.postprocess(got, source.places, detector.nms)[0]
        gap = box_gap(known[0].detections(detector.nms), found) * min(1.0, *source.places[0].scale)
        tally.box_gap = max(tally.box_gap or 0.0, gap)


def _compare(
    source: _Reference, candidate: Candidate, tally: _Tally, got: Outputs | None = None
) -> None:
    """Add one picture to a tally; `got` is what the file made of it, where that is known."""
    detector, limits = candidate.detector, TOLERANCES[candidate.precision]
    settings, rules = detector.nms, _rules(candidate)
    loose = max(0.0, settings.score_threshold - limits.score)
    strict = dataclasses.replace(settings, score_threshold=loose)
    if got is None:
        got = detector.infer(_padded(detector, source.batch), settings)
    tally.wrong_values += sum(_count_not_finite(v) for v in got.values())
    if not detector.end2end:
        _compare_raw(source, got, limits, tally)
    found = detector.postprocess(got, source.places[:1], settings)[0]
    expected = source.detections(strict)
    rules = dataclasses.replace(rules, cut=_cut(source, strict, found, settings))
    matches = match_detections(
        expected,
        found,
        rules,
        lambda: source.proposals(strict),
        None if source.detector.spec.task == "obb" else lambda: source.unclipped(strict),
        lambda: source.class_scores(strict),
    )
    tally.add(matches, int((expected.scores > rules.certain).sum()))
    tally.task_gaps += task_gaps(expected, found, matches.positions)
    if matches.max_score_gap > limits.score and candidate.precision == "fp16":
        tally.own_noise = max(tally.own_noise, source.own_noise(strict, rules))


def _cut(
    source: _Reference, strict: NmsSettings, found: Detections, settings: NmsSettings
) -> float:
    """Return the score below which a full list of candidates or detections leaves things open.

    Which of two detections of nearly equal score is the last to fit is a matter of rounding.
    """
    cut = 0.0
    if source.detector.spec.layout.nms_free:
        full = len(next(iter(source.outputs.values()))[0])  # the head's own TopK
    else:
        full = settings.pre_topk
    proposals, expected = source.proposals(strict), source.detections(strict)
    for scores, limit in (
        (proposals.scores, full),
        (expected.scores, settings.keep_topk),
        (found.scores, settings.keep_topk),
    ):
        if len(scores) >= limit:
            cut = max(cut, float(scores[limit - 1]))
    return cut


def _padded(detector: Detector, batch: FloatArray) -> FloatArray:
    """Return the first picture of a batch, repeated up to the file's own fixed batch."""
    return np.repeat(batch[:1], detector.fixed_batch or 1, axis=0)


def _count_not_finite(values: npt.NDArray[Any]) -> int:
    if values.dtype.kind != "f":
        return 0
    return int(values.size - np.isfinite(values).sum())


def _compare_raw(source: _Reference, got: Outputs, limits: Tolerance, tally: _Tally) -> None:
    """Compare decoded boxes and scores of the raw heads."""
    spec = source.detector.spec
    layout = spec.layout
    first, second = (decoded_raw(o, spec) for o in (source.outputs, got))
    if first[0].shape != second[0].shape or first[1].shape != second[1].shape:
        tally.wrong_values += 1  # another head altogether
        return
    if layout.nms_free:
        first, second = _aligned_rows(first, second)
    best = first[1].max(axis=-1)
    chosen = best >= limits.raw_floor
    if tally.anchors == 0 and not chosen.any():  # so far nothing stands out: compare what there is
        chosen = np.ones_like(chosen)
        tally.background += int(chosen.sum())
    elif tally.background and chosen.any():
        tally.forget_background()
    if not chosen.any():
        return
    wanted_boxes, wanted_scores = first[0][chosen], first[1][chosen]
    box_gap = np.abs(wanted_boxes - second[0][chosen])
    score_gap = np.abs(wanted_scores - second[1][chosen])
    if not tally.background:
        tally.anchors += int(chosen.sum())
    tally.box_gaps.append(box_gap.max(axis=-1).ravel())
    tally.score_gaps.append(score_gap.max(axis=-1).ravel())
    relative = box_gap / np.maximum(np.abs(wanted_boxes), 1.0)
    tally.box_relative = max(tally.box_relative, float(relative.max()))
    relative = score_gap / np.maximum(wanted_scores, 1e-3)
    tally.score_relative = max(tally.score_relative, float(relative.max()))


def _aligned_rows(
    first: tuple[FloatArray, FloatArray], second: tuple[FloatArray, FloatArray]
) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    """Bring the rows of two NMS-free heads into one order, and drop the ambiguous tail.

    Rows are sorted by score, so two rows of nearly equal score may change places, and the last
    rows may be others of nearly equal score altogether. Rows that stand alike stay; each other
    row of the first is paired with the nearest unused row of its class; rows within a hair of the
    last score are left out when they have no near partner.
    """
    boxes_a, rest_a = first[0][0], first[1][0]
    boxes_b, rest_b = second[0][0], second[1][0]
    alike = (np.abs(boxes_a - boxes_b).max(axis=1) <= 1.0) & (rest_a[:, 1] == rest_b[:, 1])
    order = np.where(alike, np.arange(len(boxes_a)), -1)
    free = ~alike
    edge = max(float(rest_a[-1, 0]), float(rest_b[-1, 0])) + 2e-3
    for i in np.flatnonzero(~alike):
        gap = np.abs(boxes_b - boxes_a[i]).max(axis=1) + 1e4 * np.abs(rest_b[:, 1] - rest_a[i, 1])
        gap[~free] = np.inf
        j = int(gap.argmin())
        if gap[j] <= 1.0 or rest_a[i, 0] > edge:
            free[j] = False
            order[i] = j
    kept = np.flatnonzero(order >= 0)
    partner = order[kept]
    return (
        (boxes_a[kept][None], rest_a[kept, :1][None]),
        (boxes_b[partner][None], rest_b[partner, :1][None]),
    )


def _compare_batch(candidate: Candidate, images: list[Image], tally: _Tally) -> None:
    """Count pictures whose detections differ between a batch of three and one by one."""
    detector = candidate.detector
    if candidate.takes_pictures:
        size = detector.target.source_size or images[0].shape[:2]
        images = [fitted(image, (size[0], size[1])) for image in images]
    alone = [_detect(detector, [image])[0] for image in images]
    together = _detect(detector, images)
    rules = _rules(candidate)
    tally.batches += 1
    for single, joint in zip(alone, together, strict=True):
        matches = match_detections(single, joint, rules)
        close = matches.min_iou >= rules.min_iou and matches.max_score_gap <= rules.score
        same = close and not matches.missing and not matches.extra
        tally.batch_differences += int(not same)


def _detect(detector: Detector, images: list[Image]) -> list[Detections]:
    batch, places = detector.preprocess(images)
    places_copy: list[Placement] = list(places)
    return detector.postprocess(detector.infer(batch, detector.nms), places_copy, detector.nms)


def _at_most(name: str, measured: float, limit: float, note: str = "") -> Check:
    return Check(name, measured, limit, bool(measured <= limit), note)


def _checks(tally: _Tally, candidate: Candidate) -> Iterator[Check]:
    limits = TOLERANCES[candidate.precision]
    yield _at_most("values that are not finite", tally.wrong_values, 0)
    if tally.grey_gap is not None:
        yield _at_most("input tensor, grey levels", tally.grey_gap, GREY_LEVELS)
    if not candidate.detector.end2end:
        yield from _raw_checks(tally, limits)
    if tally.found == 0 and tally.extra == 0 and tally.missing == 0:
        note = "the source detects nothing on these pictures that stands out"
        yield Check("detections missing", 0, 0, None, note)
        return
    yield from task_checks(tally.task_gaps, candidate.detector.spec.task, candidate.precision)
    silent = tally.found > 0 and tally.pairs == 0
    note = "it detects nothing that the source detects" if silent else f"of {tally.found}"
    if tally.ties:
        note += f", {tally.ties} near ties of NMS set apart"
    allowed = int(limits.share * tally.found)
    yield _at_most("detections missing", tally.missing, allowed, note)
    yield _at_most("detections too many", tally.extra, allowed)
    if limits.on_average:
        count = max(tally.counted, 1)
        overlap = tally.iou_sum / count
        worst = f"mean; the worst pair {1 - tally.min_iou:.3f}"
        yield _at_most("1 - IoU of matched boxes", 1 - overlap, 1 - limits.min_iou, worst)
        worst = f"mean; the worst pair {tally.score_gap:.3f}"
        yield _at_most("scores of matched boxes", tally.score_gap_sum / count, limits.score, worst)
        if tally.batches:
            yield _at_most("pictures that differ in a batch of 3", tally.batch_differences, 0)
        return
    if tally.box_gap is not None:
        note = "against the source behind the host's preprocessing"
        yield _at_most("boxes in the picture, px", tally.box_gap, PICTURE_BOX_PX, note)
    yield _at_most("1 - IoU of matched boxes", 1 - tally.min_iou, 1 - limits.min_iou)
    score_limit, note = _score_limit(tally, limits.score)
    yield _at_most("scores of matched boxes", tally.score_gap, score_limit, note)
    if tally.batches:
        yield _at_most("pictures that differ in a batch of 3", tally.batch_differences, 0)


def _score_limit(tally: _Tally, limit: float) -> tuple[float, str]:
    """Return the limit on score differences and, where the source's own noise raises it, why."""
    allowed = min(tally.own_noise * _OWN_NOISE_FACTOR, _LARGEST_ALLOWANCE)
    if allowed <= limit:
        return limit, ""
    return allowed, (
        f"limit raised from {limit}: the source's own scores move by {tally.own_noise:.3f} when "
        "only its input is rounded to float16"
    )


def _raw_checks(tally: _Tally, limits: Tolerance) -> Iterator[Check]:
    if not tally.box_gaps:  # heads of different shapes; reported as wrong values
        return
    for name, gaps, limit, relative in (
        ("raw boxes, px", tally.box_gaps, limits.raw_box_px, tally.box_relative),
        ("raw scores", tally.score_gaps, limits.raw_score, tally.score_relative),
    ):
        joined = np.concatenate(gaps)
        measured = float(np.quantile(joined, limits.raw_quantile))
        if name == "raw scores":
            limit, _ = _score_limit(tally, limit)
        count = f"{tally.anchors} anchors" if tally.anchors else "background anchors alone"
        note = f"{count}, relative {relative:.1e}"
        if limits.raw_quantile < 1:
            note = f"{limits.raw_quantile:.0%} quantile, largest {joined.max():.2g}, {note}"
        yield _at_most(name, measured, limit, note)


def choose_threshold(
    reference: Detector, pictures: Sequence[Path | Image], settings: NmsSettings
) -> float:
    """Return a score threshold at which the pictures yield detections to compare.

    The operating threshold wherever the source detects something; otherwise (random weights,
    generated pictures) a lower one that yields a few dozen, unless all scores are alike.
    """
    sources: list[_Reference] = []
    for image in _images(pictures[:4]):
        sources.append(_Reference(reference, image))
        if len(sources[-1].detections(settings)):
            return settings.score_threshold
    every = dataclasses.replace(settings, score_threshold=0.0)
    scores = [source.detections(every).scores for source in sources]
    ranked = np.sort(np.concatenate(scores))[::-1] if scores else np.zeros(0, np.float32)
    if not len(ranked):
        return settings.score_threshold
    position = min(_ENOUGH_DETECTIONS, len(ranked) - 1)
    if ranked[0] - ranked[position] < _LEAST_SPREAD:
        return settings.score_threshold  # all alike: rounding alone decides what NMS keeps
    return float(max(ranked[position] - 1e-6, 0.0))
