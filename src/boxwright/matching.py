"""Matches the detections of two detectors on one picture. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boxwright.boxes import iou_matrix
from boxwright.types import Detections, FloatArray

__all__ = ["MatchRules", "Matches", "match_detections"]

_PAIR_IOU = 0.5  # below this overlap two boxes are not of one object
_IOU_EDGE = 0.02  # so near the NMS threshold, rounding decides whether a box is suppressed
_CLASS_EDGE = 0.02  # at most, whatever the precision: so near its best, another class may win


@dataclass(frozen=True, slots=True)
class MatchRules:
    """When two detections count as the same.

    Attributes:
        score_threshold: Of the candidate, 0..1.
        nms_iou: IoU threshold of the NMS, or None for NMS-free heads.
        min_iou: Least IoU of a pair.
        score: Largest difference of scores in a pair, 0..1.
        cut: Score of the last that fitted into a full list, or 0; near it all is open.
    """

    score_threshold: float
    nms_iou: float | None
    min_iou: float
    score: float
    cut: float = 0.0

    @property
    def certain(self) -> float:
        """The score from which on a detection of the reference must be found."""
        return max(self.score_threshold, self.cut + self.score if self.cut else 0.0)


@dataclass(frozen=True, slots=True)
class Matches:
    """How the detections of a candidate fit those of its reference.

    Attributes:
        pairs: Number of reference detections that found their like.
        missing: Reference detections, clear of the threshold, without one.
        extra: Candidate detections without one.
        ties: Detections that differ because NMS stood between two proposals of nearly equal
            score, or at its very IoU threshold: each side holds a box that the other proposed;
            or because two classes of a proposal score nearly the same.
        min_iou: Smallest IoU of a pair, ties left out; 1.0 without pairs.
        max_score_gap: Largest difference of scores in a pair, ties left out; 0.0 without pairs.
        iou_sum, score_gap_sum, counted: Over the pairs that are no ties, for their means.
        positions: Of those pairs, where each stands in the reference and in the candidate.
    """

    pairs: int
    missing: int
    extra: int
    ties: int
    min_iou: float
    max_score_gap: float
    iou_sum: float = 0.0
    score_gap_sum: float = 0.0
    counted: int = 0
    positions: tuple[tuple[int, int], ...] = ()


def match_detections(
    reference: Detections,
    candidate: Detections,
    rules: MatchRules,
    proposals: Callable[[], Detections] | None = None,
    unclipped: Callable[[], FloatArray] | None = None,
    class_scores: Callable[[], FloatArray | None] | None = None,
) -> Matches:
    """Pair detections of the same class by IoU, best overlap first, one to one.

    A score near the threshold may fall on either side of it. So the reference is given down to
    `score_threshold - score`; of it, only what scores at least `score_threshold + score` must be
    found; and each candidate detection must have its like somewhere in it.

    Args:
        reference: Detections above `score_threshold - score`.
        candidate: Detections above `score_threshold`.
        rules: When two detections count as the same.
        proposals: Returns what the reference proposed before NMS; asked only when a pair does not
            fit. Without it nothing counts as a tie.
        unclipped: Returns the boxes of the proposals, float32 xyxy, as NMS saw them, not cut at the
            edges of the picture. Without it nothing counts as what follows from a tie.
        class_scores: Returns what each proposal scores in every class, float32 (proposals,
            classes), or None. Without it no other class than a proposal's best is a tie.
    """
    overlap = _overlaps(reference, candidate)
    overlap[reference.class_ids[:, None] != candidate.class_ids[None, :]] = -1.0
    partner = _partners(overlap, _PAIR_IOU)
    paired = np.flatnonzero(partner >= 0)
    ious = overlap[paired, partner[paired]]
    gaps = np.abs(reference.scores[paired] - candidate.scores[partner[paired]])
    unlike = (ious < rules.min_iou) | (gaps > rules.score)
    required = reference.scores >= np.float32(rules.certain + rules.score)
    missing = np.flatnonzero(required & (partner < 0))
    extra = np.setdiff1d(np.arange(len(candidate)), partner)
    if rules.cut:
        extra = extra[candidate.scores[extra] >= np.float32(rules.certain + rules.score)]
        clear = required[paired]
        paired, ious, gaps, unlike = paired[clear], ious[clear], gaps[clear], unlike[clear]
    ties, plain = 0, paired
    if proposals is not None and (unlike.any() or len(missing) or len(extra)):
        known = _Proposals(proposals(), class_scores() if class_scores else None)
        mates = candidate.select(partner[paired])
        own = reference.select(paired)
        proposed = unlike & _proposed(known, mates, rules)
        near = np.abs(own.scores - mates.scores) <= rules.score
        # Or two strangers met: the mate stood at the NMS threshold, the other lost to it thereby.
        stray = _at_nms_edge(mates, reference, rules)
        stray &= ~required[paired] | _at_nms_edge(own, candidate, rules)
        tied = proposed & (near | stray)
        ious, gaps, plain = ious[~tied], gaps[~tied], paired[~tied]
        turned, into = _of_other_class(known, reference, partner < 0, candidate, extra, rules)
        ties = len(into)
        missing, extra = np.setdiff1d(missing, turned), np.setdiff1d(extra, into)
        lost = _at_nms_edge(reference.select(missing), candidate, rules)
        spare = candidate.select(extra)
        won = _proposed(known, spare, rules) & _at_nms_edge(spare, reference, rules)
        won &= _alone(spare, candidate, rules)
        ties += int(tied.sum() + lost.sum() + won.sum())
        missing, extra = missing[~lost], extra[~won]
        left = int((unlike & ~tied).sum()) + len(missing) + len(extra)
        if left and unclipped and _is_result_of_nms(known, unclipped(), candidate, rules):
            fits = ~unlike[~tied]
            ious, gaps, plain = ious[fits], gaps[fits], plain[fits]
            ties += left
            missing, extra = missing[:0], extra[:0]
    return Matches(
        pairs=len(paired),
        missing=len(missing),
        extra=len(extra),
        ties=ties,
        min_iou=float(ious.min(initial=1.0)),
        max_score_gap=float(gaps.max(initial=0.0)),
        iou_sum=float(ious.sum()),
        score_gap_sum=float(gaps.sum()),
        counted=len(ious),
        positions=tuple((int(i), int(partner[i])) for i in plain),
    )


def _overlaps(first: Detections, second: Detections) -> FloatArray:
    """IoU of every pair, where a box counts as at least one pixel wide and high.

    Clipping to the picture can leave a box without area, which would overlap not even itself.
    """
    solid = []
    for boxes in (first.xyxy, second.xyxy):
        high = np.maximum(boxes[:, 2:], boxes[:, :2] + np.float32(1))
        solid.append(np.concatenate([boxes[:, :2], high], axis=1))
    return iou_matrix(solid[0], solid[1])


@dataclass(frozen=True, slots=True)
class _Proposals:
    """What the reference proposed before NMS, and its scores in every class where known."""

    best: Detections
    class_scores: FloatArray | None

    def scores_as(self, found: Detections, rules: MatchRules) -> FloatArray:
        """Return what each proposal scores in the class of each detection: (proposals, found).

        -1 in a class that is not its best one, nor nearly so.
        """
        best, labels = self.best.scores[:, None], found.class_ids
        own = np.where(self.best.class_ids[:, None] == labels, best, np.float32(-1))
        if self.class_scores is None:
            return own
        real = (labels >= 0) & (labels < self.class_scores.shape[1])
        given = self.class_scores[:, np.where(real, labels, 0)]
        return np.where(real & (given >= best - min(rules.score, _CLASS_EDGE)), given, own)


def _partners(overlap: FloatArray, least: float) -> npt.NDArray[np.intp]:
    """Return the column of each row, best overlap first, one to one; -1 for none."""
    partner = np.full(overlap.shape[0], -1, np.intp)
    taken = np.zeros(overlap.shape[1], bool)
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        i, j = np.unravel_index(flat, overlap.shape)
        if overlap[i, j] < least:
            break
        if partner[i] < 0 and not taken[j]:
            partner[i] = j
            taken[j] = True
    return partner


def _proposed(known: _Proposals, found: Detections, rules: MatchRules) -> npt.NDArray[np.bool_]:
    """Whether each found detection is among the proposals, within the rules."""
    same: npt.NDArray[np.bool_] = np.greater_equal(_overlaps(known.best, found), rules.min_iou)
    same &= np.abs(known.scores_as(found, rules) - found.scores) <= rules.score
    return np.asarray(same.any(axis=0))


def _of_other_class(
    known: _Proposals,
    reference: Detections,
    alone: npt.NDArray[np.bool_],
    candidate: Detections,
    extra: npt.NDArray[np.intp],
    rules: MatchRules,
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return which lone detections of the reference are there in another class, and as which.

    Only in a class that the reference scores nearly as its best.
    """
    lone, spare = np.flatnonzero(alone), candidate.select(extra)
    own = reference.select(lone)
    overlap = _overlaps(own, spare)
    overlap[own.class_ids[:, None] == spare.class_ids] = -1.0
    overlap[np.abs(own.scores[:, None] - spare.scores) > rules.score] = -1.0
    overlap[:, ~(_proposed(known, spare, rules) & _alone(spare, candidate, rules))] = -1.0
    partner = _partners(overlap, rules.min_iou)
    return lone[partner >= 0], extra[partner[partner >= 0]]


def _is_result_of_nms(
    known: _Proposals, boxes: FloatArray, found: Detections, rules: MatchRules
) -> bool:
    """Whether NMS of these proposals can end in these detections, within the rules.

    One proposal at the very threshold decides over a chain of others: what it suppresses, that
    would have suppressed; and so does one whose two best classes score nearly the same. So the
    whole is judged: each detection is a proposal of its own, no two of them overlap too much, and
    each proposal that is not there is suppressed by one that is.
    """
    if rules.nms_iou is None or rules.cut:
        return False
    scores = known.scores_as(found, rules)
    near = _overlaps(known.best, found)
    near[np.abs(scores - found.scores) > rules.score] = -1.0
    chosen = _partners(near.T, rules.min_iou)
    if (chosen < 0).any():
        return False
    overlap = iou_matrix(boxes, boxes[chosen])
    kept = overlap[chosen]
    kept[found.class_ids[:, None] != found.class_ids] = 0.0
    np.fill_diagonal(kept, 0.0)
    overlap[scores < 0] = 0.0
    higher = found.scores >= scores - rules.score
    suppressed = np.asarray(((overlap >= rules.nms_iou - _IOU_EDGE) & higher).any(axis=1))
    suppressed[chosen] = True  # a box without an area overlaps not even itself
    certain = known.best.scores >= rules.certain + rules.score
    return bool((kept <= rules.nms_iou + _IOU_EDGE).all() and suppressed[certain].all())


def _alone(single: Detections, kept: Detections, rules: MatchRules) -> npt.NDArray[np.bool_]:
    """Whether each detection, itself kept, overlaps no other kept one that NMS would suppress."""
    if rules.nms_iou is None:
        return np.ones(len(single), bool)
    overlap = _overlaps(single, kept)
    overlap[single.class_ids[:, None] != kept.class_ids[None, :]] = 0.0
    over: npt.NDArray[np.bool_] = np.greater(overlap, rules.nms_iou + _IOU_EDGE)
    return np.asarray(over.sum(axis=1) <= 1)


def _at_nms_edge(single: Detections, kept: Detections, rules: MatchRules) -> npt.NDArray[np.bool_]:
    """Whether each detection overlaps a kept one by nearly the NMS threshold."""
    if rules.nms_iou is None:
        return np.zeros(len(single), bool)
    overlap = _overlaps(single, kept)
    overlap[single.class_ids[:, None] != kept.class_ids[None, :]] = 0.0
    near: npt.NDArray[np.bool_] = np.less_equal(np.abs(overlap - rules.nms_iou), _IOU_EDGE)
    return np.asarray(near.any(axis=1))
