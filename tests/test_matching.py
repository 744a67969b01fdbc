"""When two sets of detections count as the same."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from boxwright.detector import Detector
from boxwright.matching import MatchRules, match_detections
from boxwright.types import Detections, HeadLayout, ModelSpec, Preprocess, TensorInfo
from boxwright.verify import Candidate, verify

RULES = MatchRules(score_threshold=0.25, nms_iou=0.7, min_iou=0.95, score=0.02)


def found(*rows) -> Detections:
    """Rows of (x1, y1, x2, y2, score, class)."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


A = (0, 0, 100, 100, 0.9, 0)
A_WORSE = (0, 0, 100, 90, 0.895, 0)  # IoU 0.90 with A: another proposal of the object
B = (200, 0, 300, 100, 0.6, 1)
B_SHIFTED = (203, 0, 303, 100, 0.6, 1)  # IoU 0.94
EDGE = (0, 0, 100, 70.5, 0.5, 0)  # IoU 0.705 with A


@pytest.mark.parametrize(
    ("reference", "candidate", "missing", "extra"),
    [
        (found(A, B), found(A, B), 0, 0),
        (found(), found(), 0, 0),
        (found(A), found(), 1, 0),
        (found(), found(A), 0, 1),
        (found(A), found((*A[:5], 1)), 1, 1),
        (found((0, 0, 50, 50, 0.26, 0)), found(), 0, 0),
        (found((0, 0, 50, 50, 0.24, 0)), found((0, 0, 50, 50, 0.255, 0)), 0, 0),
        (found((5, 5, 5, 50, 0.9, 0)), found((5, 5, 5, 50, 0.9, 0)), 0, 0),
    ],
    ids=[
        "equal",
        "empty",
        "lost",
        "made up",
        "other class",
        "may fall below the threshold",
        "may rise above the threshold",
        "box without width",
    ],
)
def test_counts(reference, candidate, missing, extra):
    matches = match_detections(reference, candidate, RULES)
    assert (matches.missing, matches.extra) == (missing, extra)


def test_a_shifted_box_is_measured():
    matches = match_detections(found(A, B), found(A, B_SHIFTED), RULES)
    assert matches.min_iou == pytest.approx(97 / 103, abs=1e-4)


def test_a_changed_score_is_measured():
    matches = match_detections(found(A), found((*A[:4], 0.7, 0)), RULES)
    assert matches.max_score_gap == pytest.approx(0.2, abs=1e-6)


def test_the_other_proposal_of_nearly_equal_score_is_a_tie():
    every = found(A, A_WORSE, B)
    matches = match_detections(found(A, B), found(A_WORSE, B), RULES, lambda: every)
    assert (matches.ties, matches.missing, matches.extra) == (1, 0, 0)
    assert matches.min_iou == 1.0


def test_a_box_that_the_source_never_proposed_is_no_tie():
    matches = match_detections(found(A, B), found(A_WORSE, B), RULES, lambda: found(A, B))
    assert matches.ties == 0 and matches.min_iou == pytest.approx(0.9, abs=1e-3)


def test_a_proposal_of_much_lower_score_is_no_tie():
    worse = (*A_WORSE[:4], 0.5, 0)
    matches = match_detections(found(A), found(worse), RULES, lambda: found(A, worse))
    assert matches.ties == 0 and matches.max_score_gap == pytest.approx(0.4, abs=1e-6)


def test_a_box_at_the_nms_threshold_is_a_tie():
    matches = match_detections(found(A), found(A, EDGE), RULES, lambda: found(A, EDGE))
    assert (matches.ties, matches.extra) == (1, 0)
    matches = match_detections(found(A, EDGE), found(A), RULES, lambda: found(A, EDGE))
    assert (matches.ties, matches.missing) == (1, 0)


def test_nms_free_heads_have_no_edge():
    rules = MatchRules(0.25, None, 0.95, 0.02)
    matches = match_detections(found(A), found(A, EDGE), rules, lambda: found(A, EDGE))
    assert (matches.ties, matches.extra) == (0, 1)


def test_a_stray_pair_at_the_nms_threshold_is_a_tie():
    """The file keeps EDGE, which then suppresses the weak box that the source kept in its place."""
    weak = (0, 0, 100, 62, 0.24, 0)  # below the threshold; IoU 0.88 with EDGE
    matches = match_detections(found(A, weak), found(A, EDGE), RULES, lambda: found(A, EDGE, weak))
    assert (matches.ties, matches.missing, matches.extra) == (1, 0, 0)
    assert matches.min_iou == 1.0 and matches.max_score_gap == 0.0


# Three of a row, each over the next: FIRST suppresses SECOND by a hair, which would suppress THIRD.
FIRST = (0, 0, 100, 100, 0.9, 0)
SECOND = (17.3, 0, 117.3, 100, 0.85, 0)  # IoU 0.705 with FIRST
THIRD = (31.6, 0, 131.6, 100, 0.8, 0)  # IoU 0.75 with SECOND, 0.52 with FIRST
MOVED = (17.7, 0, 117.7, 100, 0.849, 0)  # SECOND as the file has it: IoU 0.699 with FIRST


def test_what_follows_from_a_box_at_the_nms_threshold_is_a_tie():
    every = found(FIRST, SECOND, THIRD)
    chain = match_detections(
        found(FIRST, THIRD), found(FIRST, MOVED), RULES, lambda: every, lambda: every.xyxy
    )
    assert (chain.ties, chain.missing, chain.extra) == (1, 0, 0)
    assert chain.min_iou == 1.0 and chain.max_score_gap == 0.0 and chain.counted == 1


@pytest.mark.parametrize(
    ("candidate", "every"),
    [
        (found(FIRST), found(FIRST, SECOND, THIRD)),
        (found(FIRST, (*MOVED[:4], 0.7, 0)), found(FIRST, SECOND, THIRD)),
        (found(FIRST, MOVED), found(FIRST, THIRD)),
        (found(FIRST, MOVED), found(FIRST, SECOND, THIRD, B)),
        (found(FIRST, SECOND, THIRD), found(FIRST, SECOND, THIRD)),
    ],
    ids=[
        "nothing suppresses the third",
        "another score",
        "never proposed",
        "another object is lost",
        "two that suppress each other",
    ],
)
def test_what_no_nms_could_leave_is_no_tie(candidate, every):
    reference = found(FIRST, THIRD, *([B] if len(every) == 4 else []))
    matches = match_detections(reference, candidate, RULES, lambda: every, lambda: every.xyxy)
    assert matches.missing or matches.extra or matches.max_score_gap > RULES.score


def test_overlaps_are_those_that_nms_saw():
    """Two boxes that leave the picture are alike within it; NMS saw them whole, and kept both."""
    high, low = (300, 0, 400, 100, 0.9, 0), (300, 0, 400, 95, 0.85, 0)
    reference, candidate = found(FIRST, THIRD, high, low), found(FIRST, MOVED, high, low)
    every = found(FIRST, SECOND, THIRD, high, low)
    whole = every.xyxy.copy()
    whole[3, 3] = 200
    cut = match_detections(reference, candidate, RULES, lambda: every, lambda: every.xyxy)
    assert cut.min_iou == pytest.approx(0.755, abs=0.01)
    seen = match_detections(reference, candidate, RULES, lambda: every, lambda: whole)
    assert (seen.missing, seen.extra, seen.ties, seen.min_iou) == (0, 0, 1, 1.0)


# Of two classes, over the next: its best class is a matter of rounding, and so is what it meets.
NEXT = (10, 0, 110, 100, 0.8, 1)  # IoU 0.82 with FIRST, which is of class 0
FAR = (0, 300, 100, 400, 0.8, 1)


def in_class(row, label):
    return (*row[:5], label)


def test_a_box_of_another_class_that_scores_nearly_the_same_is_a_tie():
    near = np.array([[0.9, 0.1], [0.79, 0.8]], np.float32)
    reference, candidate = found(FIRST, FAR), found(FIRST, in_class(FAR, 0))
    for unclipped in (None, lambda: reference.xyxy):  # without: rotated boxes
        same = match_detections(
            reference, candidate, RULES, lambda: reference, unclipped, lambda: near
        )
        assert (same.ties, same.missing, same.extra) == (1, 0, 0)
        assert same.positions == ((0, 0),)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (found(FIRST, NEXT), found(FIRST)),
        (found(FIRST), found(FIRST, NEXT)),
    ],
    ids=["it meets a better one, and goes", "it leaves a better one, and stays"],
)
def test_what_nms_does_in_another_class_of_nearly_equal_score_is_a_tie(reference, candidate):
    label = 1 if len(reference) == 2 else 0  # best of the two as the source has it
    every = found(FIRST, in_class(NEXT, label))
    near = np.array([[0.9, 0.1], [0.79, 0.79]], np.float32)
    near[1, label] = 0.8

    def told(scores):
        return match_detections(
            reference, candidate, RULES, lambda: every, lambda: every.xyxy, lambda: scores
        )

    tie = told(near)
    assert (tie.ties, tie.missing, tie.extra) == (1, 0, 0)
    clear = near.copy()
    clear[1, 1 - label] = 0.75
    assert told(clear).missing + told(clear).extra == 1
    assert told(None).missing + told(None).extra == 1


@pytest.mark.parametrize(
    "candidate",
    [
        found(FIRST),
        found(),
        found(FIRST, (20, 300, 120, 400, 0.8, 1)),
        found(FIRST, (20, 300, 120, 400, 0.8, 0)),
        found(FIRST, in_class(FAR, 2)),
        found(FIRST, in_class(FAR, 7)),
        found(FIRST, in_class(FAR, -1)),
        found(FIRST, FAR, in_class(FAR, 0)),
        found(FIRST, FAR, (2, 300, 102, 400, 0.79, 1)),
        found(FIRST, (*FAR[:4], 0.7, 1)),
        found(FIRST, (*FAR[:4], 0.7, 0)),
    ],
    ids=[
        "dropped",
        "all dropped",
        "shifted",
        "shifted, in the other class",
        "in a class of lower score",
        "in a class that is not there",
        "in a class below all",
        "in both classes",
        "doubled",
        "another score",
        "another score in the other class",
    ],
)
def test_faults_stay_faults_where_two_classes_score_nearly_the_same(candidate):
    reference = found(FIRST, FAR)
    scores = np.array([[0.9, 0.1, 0.1], [0.79, 0.8, 0.75]], np.float32)
    matches = match_detections(
        reference, candidate, RULES, lambda: reference, lambda: reference.xyxy, lambda: scores
    )
    faulty = matches.missing or matches.extra or matches.min_iou < RULES.min_iou
    assert faulty or matches.max_score_gap > RULES.score


def test_classes_are_never_nearer_than_two_hundredths():
    """INT8 lets scores move by 0.1: that is no reason to take one class for another."""
    rules = MatchRules(0.25, 0.7, min_iou=0.85, score=0.1)
    reference, candidate = found(FIRST, FAR), found(FIRST, in_class(FAR, 0))
    scores = np.array([[0.9, 0.1], [0.75, 0.8]], np.float32)
    matches = match_detections(
        reference, candidate, rules, lambda: reference, lambda: reference.xyxy, lambda: scores
    )
    assert (matches.ties, matches.missing, matches.extra) == (0, 1, 1)


def test_verify_knows_what_the_source_scores_in_every_class():
    """Rounding turns the second of two boxes into the class of the first."""
    size = (640, 640)
    spec = ModelSpec(
        "net", "none", "detect", ("a", "b"), size, Preprocess(), HeadLayout(box_format="xyxy")
    )

    def detector(*rows) -> Detector:
        raw = np.array(rows, np.float32).T[None]
        backend = SimpleNamespace(
            inputs=(TensorInfo("images", "float32", (1, 3, *size)),),
            infer=lambda _: {"output0": raw},
            description="rows",
        )
        return Detector(backend, spec)

    first, box = (374, 34, 600, 502, 0.289, 0.1), (380, 6, 605, 434)
    source = detector(first, (*box, 0.279, 0.28))
    turned = detector(first, (*box, 0.281, 0.279))  # where the first suppresses it
    lost = detector((*first[:4], 0.1, 0.1), (*box, 0.279, 0.28))
    named = {"turned": Candidate(turned, "fp16"), "lost": Candidate(lost, "fp16")}
    proofs = verify(source, named, [np.zeros((*size, 3), np.uint8)])
    missing = {n: next(c for c in p.checks if "missing" in c.name) for n, p in proofs.items()}
    assert missing["turned"].passed and "1 near ties" in missing["turned"].note
    assert not missing["lost"].passed
