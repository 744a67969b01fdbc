"""The script that trains the embedded detector: assignment, metric, augmentation, crops, a run."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: training is not tested")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tools" / "train_sample"
sys.path.insert(0, str(FOLDER))  # its modules import each other by name, as a script's do

import augment  # noqa: E402
import curves  # noqa: E402
import data  # noqa: E402
import feed  # noqa: E402
import loss  # noqa: E402
import metrics  # noqa: E402
import options as options_  # noqa: E402
import weights  # noqa: E402

CPU = torch.device("cpu")
SIDE = 128


# -- SimOTA against loops ------------------------------------------------------------------


def _iou(a, b) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(w, 0) * max(h, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return overlap / max(areas - overlap, 1e-6)


def _slow_simota(predicted, objectness, classes, boxes, flags, centres, strides):
    """One image, one pair at a time, straight from the paper's description."""
    rows = [i for i, flag in enumerate(flags) if flag == loss.VALID]
    near_or_in, strict = {}, {}
    for i in rows:
        x1, y1, x2, y2 = boxes[i]
        for a, (x, y) in enumerate(centres):
            inside = x1 < x < x2 and y1 < y < y2
            reach = 2.5 * strides[a]
            near = abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach
            near_or_in[i, a] = inside or near
            strict[i, a] = inside and near
    candidates = [a for a in range(len(centres)) if any(near_or_in[i, a] for i in rows)]
    taken: dict[int, list[tuple[float, int]]] = {}
    for i in rows:
        ious = {a: _iou(boxes[i], predicted[a]) for a in candidates}
        cost = {}
        for a in candidates:
            score = math.sqrt(1 / (1 + math.exp(-objectness[a])) / (1 + math.exp(-classes[a])))
            cost[a] = -math.log(score) - 3 * math.log(ious[a] + 1e-8)
            cost[a] += 0 if strict[i, a] else 1e5
        k = max(1, int(sum(sorted(ious.values(), reverse=True)[:10])))
        for a in sorted(candidates, key=cost.__getitem__)[:k]:
            taken.setdefault(a, []).append((cost[a], i))
    return {a: min(pairs)[1] for a, pairs in taken.items()}


def _simota_case(seed: int):
    rng = np.random.default_rng(seed)
    anchors = loss.make_anchors((SIDE, SIDE), CPU)
    count, images, rows = len(anchors.cells), 3, 8
    corner = rng.uniform(0, 90, (images, rows, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 60, (images, rows, 2))], -1)
    boxes[0, 1] = boxes[0, 0] + np.array([1, 1, 2, 1])  # two boxes that want the same anchors
    flags = rng.choice([0, 1, 1, 2], (images, rows)).astype(np.uint8)
    flags[0, :2] = loss.VALID
    flags[2] = 0  # an image without boxes
    centres = anchors.centres.numpy()
    predicted = np.empty((images, count, 4))
    for b in range(images):  # predictions near some box, so that k is above one
        near = boxes[b, rng.integers(0, rows, count)]
        middle = np.where(rng.random((count, 1)) < 0.7, (near[:, :2] + near[:, 2:]) / 2, centres)
        half = (near[:, 2:] - near[:, :2]) / 2 * rng.uniform(0.7, 1.3, (count, 2))
        predicted[b] = np.concatenate([middle - half, middle + half], -1)
    scores = rng.normal(-2, 2, (2, images, count))
    arrays = (predicted, scores[0], scores[1], boxes)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in arrays]
    return anchors, [t.numpy().astype(float) for t in tensors], tensors, flags


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", [1, 2, 32])
def test_assignment_equals_slow_loops(seed: int, part: int):
    anchors, arrays, tensors, flags = _simota_case(seed)
    found = loss.assign_in_parts(*tensors, torch.from_numpy(flags), anchors, part)
    most = 0
    for b in range(len(flags)):
        wanted = _slow_simota(
            *(a[b] for a in arrays),
            flags[b],
            anchors.centres.numpy(),
            anchors.strides.numpy()[:, 0],
        )
        positive = found.positive[b].numpy()
        assert {int(a): int(found.box_index[b, a]) for a in np.flatnonzero(positive)} == wanted
        for a, i in wanted.items():
            assert found.iou[b, a].item() == pytest.approx(
                _iou(arrays[0][b, a], arrays[3][b, i]), abs=1e-5
            )
        most = max(most, len(wanted))
        for a, (x, y) in enumerate(anchors.centres.tolist()):
            hidden = any(
                flag == loss.IGNORE and x1 < x < x2 and y1 < y < y2
                for (x1, y1, x2, y2), flag in zip(arrays[3][b], flags[b], strict=True)
            )
            assert found.ignored[b, a].item() == (hidden and not positive[a])
    assert most > 8  # the case does exercise k above one


def _encoded(boxes, anchors):
    """Head values that decode to the given xyxy boxes (A, 4)."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 / anchors.strides - anchors.cells
    return torch.cat([middle, ((boxes[:, 2:] - boxes[:, :2]) / anchors.strides).log()], dim=1)


def test_loss_of_a_perfect_head_is_nothing_and_of_no_boxes_is_finite():
    anchors = loss.make_anchors((SIDE, SIDE), CPU)
    count = len(anchors.cells)
    box = torch.tensor([[20.0, 30.0, 90.0, 70.0]])
    values = _encoded(box.expand(count, 4), anchors)[None]
    flags = torch.ones((1, 1), dtype=torch.uint8)
    level = torch.zeros(1, count)
    found = loss.assign(loss.decode_boxes(values, anchors), level, level, box[None], flags, anchors)
    assert found.positive.sum() == 10  # ten perfect IoUs
    sure = torch.where(found.positive, 30.0, -30.0)
    perfect = loss.detection_loss(
        (values, sure, sure[..., None]), box[None], flags, anchors, with_l1=True
    )
    assert perfect.positives == 10
    assert perfect.total < 1e-3
    outputs = [values.clone(), level.clone(), level[..., None].clone()]
    for output in outputs:
        output.requires_grad_()
    nothing = loss.detection_loss(
        tuple(outputs), box[None], torch.zeros_like(flags), anchors, with_l1=True
    )
    nothing.total.backward()
    assert nothing.positives == 0
    assert nothing.objectness == pytest.approx(count * math.log(2), rel=1e-4)
    assert all(torch.isfinite(output.grad).all() for output in outputs)


def test_objectness_is_not_taught_inside_ignored_boxes():
    anchors = loss.make_anchors((SIDE, SIDE), CPU)
    count = len(anchors.cells)
    values, level = torch.zeros(1, count, 4), torch.zeros(1, count, requires_grad=True)
    boxes = torch.tensor([[[0.0, 0.0, 64.0, 128.0]]])
    flags = torch.full((1, 1), loss.IGNORE, dtype=torch.uint8)
    found = loss.detection_loss((values, level, level[..., None]), boxes, flags, anchors, False)
    found.total.backward()
    left = anchors.centres[:, 0] < 64
    assert (level.grad[0, left] == 0).all()
    assert (level.grad[0, ~left] > 0).all()


def test_loss_drives_a_head_to_the_boxes():
    anchors = loss.make_anchors((SIDE, SIDE), CPU)
    torch.manual_seed(0)
    values = torch.zeros(1, len(anchors.cells), 4, requires_grad=True)
    scores = torch.full((2, 1, len(anchors.cells)), -4.0, requires_grad=True)
    boxes = torch.tensor([[[10.0, 10.0, 50.0, 30.0], [60.0, 40.0, 120.0, 120.0]]])
    flags = torch.ones((1, 2), dtype=torch.uint8)
    optimiser = torch.optim.Adam([values, scores], lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        loss.detection_loss(
            (values, scores[0], scores[1][..., None]), boxes, flags, anchors, step > 75
        ).total.backward()
        optimiser.step()
    with torch.no_grad():
        decoded = loss.decode_boxes(values, anchors)[0].numpy()
        product = scores.sigmoid().prod(dim=0)[0].numpy()
    detected = metrics.detections_from_raw(decoded, product)
    found = metrics.evaluate([detected], [boxes[0].numpy()], [flags[0].numpy()])
    assert found.ap50_95 > 0.99


# -- average precision ---------------------------------------------------------------------


def _page(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


A, B = (0, 0, 10, 10), (20, 20, 40, 40)
FAR = (100, 100, 110, 110)
HALF = (0, 0, 10, 6)  # IoU 0.6 with A: counts at 0.5, 0.55 and 0.6

AP_CASES = {
    "both found": (_page(A, B), [0.9, 0.8], _page(A, B), [1, 1], 1.0, 1.0),
    "one of two found": (_page(A), [0.9], _page(A, B), [1, 1], 51 / 101, 51 / 101),
    "a better-scored miss": (_page(FAR, A), [0.9, 0.8], _page(A), [1], 0.5, 0.5),
    "a worse-scored miss": (_page(A, FAR), [0.9, 0.8], _page(A), [1], 1.0, 1.0),
    "a duplicate after both": (_page(A, B, A), [0.9, 0.8, 0.7], _page(A, B), [1, 1], 1.0, 1.0),
    "a duplicate between": (
        _page(A, A, B), [0.9, 0.8, 0.7], _page(A, B), [1, 1],
        (51 + 50 * 2 / 3) / 101, (51 + 50 * 2 / 3) / 101,
    ),
    "three of ten thresholds": (_page(HALF), [0.9], _page(A), [1], 1.0, 0.3),
    "an ignored box found is neutral": (
        _page(B, A), [0.9, 0.8], _page(A, B), [1, 2], 1.0, 1.0,
    ),
    "an ignored box need not be found": (_page(A), [0.9], _page(A, B), [1, 2], 1.0, 1.0),
    "nothing detected": (_page(), [], _page(A), [1], 0.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("case", AP_CASES.values(), ids=AP_CASES)
def test_average_precision(case):
    detected, scores, boxes, flags, ap50, ap50_95 = case
    found = metrics.evaluate(
        [(detected, np.array(scores, np.float32))], [boxes], [np.array(flags, np.uint8)]
    )
    assert found.ap50 == pytest.approx(ap50)
    assert found.ap50_95 == pytest.approx(ap50_95)


def test_average_precision_over_pages_sorts_all_scores_together():
    pages = [
        (_page(A), np.array([0.5], np.float32)),
        (_page(FAR), np.array([0.7], np.float32)),
    ]
    found = metrics.evaluate(
        pages, [_page(A), _page()], [np.ones(1, np.uint8), np.zeros(0, np.uint8)]
    )
    assert found.ap50 == pytest.approx(0.5)
    assert (found.pages, found.boxes) == (2, 1)


def test_a_detection_takes_the_best_free_box():
    first, second = (0, 0, 10, 10), (0, 1, 10, 11)
    hit, neutral = metrics.match_page(
        _page(second, second), _page(first, second), np.array([True, True])
    )
    assert hit[0].tolist() == [True, True]
    assert hit[-1].tolist() == [True, False]  # IoU 0.82 with the one that is left
    assert not neutral.any()


def test_nothing_to_find_is_no_number():
    found = metrics.evaluate(
        [(_page(), np.zeros(0, np.float32))], [_page()], [np.zeros(0, np.uint8)]
    )
    assert math.isnan(found.ap50)


# -- augmentation --------------------------------------------------------------------------

STILL = augment.Settings(moved=1.0, colour_moved=0.0, colour_still=0.0)


def _bright_extent(plane):
    """Sub-pixel xyxy of a white rectangle on grey: where its profiles cross half."""
    rows, columns = plane.max(axis=1), plane.max(axis=0)
    found = []
    for profile in (columns, rows):
        bright = np.flatnonzero(profile > (255 + 114) / 2)
        found.append((bright[0], bright[-1] + 1))
    return np.array([found[0][0], found[1][0], found[0][1], found[1][1]], float)


@pytest.mark.parametrize("turn", [-1, 0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_follow_the_pixels(seed: int, turn: int):
    rng = np.random.default_rng(seed)
    side, extent = 320, (240, 320)
    x, y = rng.integers(20, 120, 2)
    w, h = rng.integers(30, 100, 2)
    image = np.full((1, side, side, 3), 114, np.uint8)
    image[0, y : y + h, x : x + w] = 255
    boxes = torch.tensor([[[x, y, x + w, y + h]]], dtype=torch.float32)
    flags = torch.ones((1, 1), dtype=torch.uint8)
    geometry = np.array([[rng.uniform(0.5, 1.25), turn, *rng.random(2)]], np.float32)
    drawn = augment.Draw(1, geometry, np.zeros(0, np.int64), np.zeros((0, 10), np.float32))
    pixels, moved, moved_flags = augment.apply(
        torch.from_numpy(image),
        boxes,
        flags,
        torch.tensor([extent], dtype=torch.int32),
        drawn,
        STILL,
    )
    assert pixels.shape == (1, 3, side, side)
    seen = _bright_extent(pixels[0, 0].numpy())
    assert np.abs(seen - moved[0, 0].numpy()).max() <= 1.5
    whole = (w * h) * geometry[0, 0] ** 2
    remaining = (moved[0, 0, 2] - moved[0, 0, 0]) * (moved[0, 0, 3] - moved[0, 0, 1])
    assert (moved_flags[0, 0] == data.VALID) == bool(remaining >= 0.85 * whole - 1e-2)


def test_a_picture_that_fits_stays_inside():
    rng = np.random.default_rng(0)
    geometry = augment.draw(rng, 64, augment.Settings(moved=1.0, turn=0.5)).geometry
    extents = torch.tensor([[400, 640]] * 64, dtype=torch.int32)
    matrices = augment.make_matrices(torch.from_numpy(geometry), extents, 640)
    box = torch.tensor([[[0.0, 0.0, 400.0, 640.0]]]).expand(64, 1, 4)
    flags = torch.ones((64, 1), dtype=torch.uint8)
    moved, _ = augment.move_boxes(box, flags, matrices, 640, STILL)
    sides = (moved[:, 0, 2:] - moved[:, 0, :2]).numpy()
    turned = geometry[:, 1] != 0
    wanted = np.where(turned[:, None], [640, 400], [400, 640]) * geometry[:, :1]
    np.testing.assert_allclose(sides, np.minimum(wanted, 640), rtol=1e-4)


BOX_RULES = {
    "whole": ((10, 10, 50, 50), 1.0, data.VALID, (10, 10, 50, 50)),
    "a tenth cut": ((604, 10, 644, 50), 1.0, data.VALID, (604, 10, 640, 50)),
    "half cut": ((620, 10, 660, 50), 1.0, data.IGNORE, (620, 10, 640, 50)),
    "outside": ((650, 10, 690, 50), 1.0, data.NONE, None),
    "too small": ((10, 10, 50, 17), 0.5, data.IGNORE, (5, 5, 25, 8.5)),
}


@pytest.mark.parametrize("case", BOX_RULES.values(), ids=BOX_RULES)
def test_moved_boxes_keep_the_rules(case):
    box, zoom, flag, wanted = case
    matrix = torch.tensor([[[zoom, 0.0, 0.0], [0.0, zoom, 0.0]]])
    moved, flags = augment.move_boxes(
        torch.tensor([[box]], dtype=torch.float32),
        torch.ones((1, 1), dtype=torch.uint8),
        matrix,
        640,
        STILL,
    )
    assert flags.item() == flag
    if wanted is not None:
        assert moved[0, 0].tolist() == pytest.approx(wanted)


def test_still_and_uncoloured_canvases_are_untouched_and_padding_stays_grey():
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8))
    images[:, 40:] = 114
    images[:, :, 50:] = 114
    boxes, flags = torch.zeros(12, 2, 4), torch.zeros((12, 2), dtype=torch.uint8)
    extents = torch.tensor([[50, 40]] * 12, dtype=torch.int32)
    settings = augment.Settings(moved=0.0, colour_still=0.6, invert=0.5)
    drawn = augment.draw(rng, 12, settings)
    assert 0 < len(drawn.colour_rows) < 12
    pixels, _, _ = augment.apply(images, boxes, flags, extents, drawn, settings)
    untouched = np.setdiff1d(np.arange(12), drawn.colour_rows)
    assert torch.equal(pixels[untouched], images[untouched].permute(0, 3, 1, 2).float())
    assert (pixels[:, :, 40:] == 114).all()
    assert (pixels[:, :, :, 50:] == 114).all()
    assert (pixels >= 0).all()
    assert (pixels <= 255).all()
    changed = pixels[drawn.colour_rows] != images[drawn.colour_rows].permute(0, 3, 1, 2)
    assert changed.flatten(1).any(dim=1).all()


# -- pages to canvases ---------------------------------------------------------------------

WINDOW_RULES = {
    "inside": ((110, 120, 150, 160), data.VALID, (20, 40, 100, 120)),
    "86 percent visible": ((93, 120, 143, 160), data.VALID, (0, 40, 86, 120)),
    "84 percent visible": ((92, 120, 142, 160), data.IGNORE, (0, 40, 84, 120)),
    "under 4 px": ((110, 120, 150, 121.9), data.IGNORE, (20, 40, 100, 43.8)),
    "outside": ((10, 10, 90, 90), data.NONE, None),
    "touching": ((50, 120, 100, 160), data.NONE, None),
}


@pytest.mark.parametrize("case", WINDOW_RULES.values(), ids=WINDOW_RULES)
def test_cut_boxes(case):
    box, flag, wanted = case
    boxes, flags = data.visible_boxes(_page(box), (100, 100, 420, 420), (2.0, 2.0))
    if flag == data.NONE:
        assert len(boxes) == len(flags) == 0
    else:
        assert flags.tolist() == [flag]
        assert boxes[0].tolist() == pytest.approx(wanted, abs=1e-4)


def test_no_boxes_is_fine():
    boxes, flags = data.visible_boxes(_page(), (0, 0, 10, 10), (1.0, 1.0))
    assert boxes.shape == (0, 4)
    assert flags.shape == (0,)


def test_a_window_is_what_the_product_would_see():
    from boxwright.families.yolox import FAMILY
    from boxwright.preprocess import prepare

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1103, 801, 3), dtype=np.uint8)
    canvas = data.canvas_from_window(image, _page(), (0, 0, 801, 1103))
    wanted = np.empty((3, 640, 640), np.float32)
    where = prepare(image, (640, 640), FAMILY.preprocess, wanted)
    assert np.array_equal(canvas.image.transpose(2, 0, 1).astype(np.float32), wanted)
    assert canvas.extent == where.resized_size[::-1]
    for seed in range(50):
        left, top, right, bottom = data.random_window((1103, 801), np.random.default_rng(seed))
        assert 0 <= left < right <= 801
        assert 0 <= top < bottom <= 1103
        assert right - left >= 0.35 * 801 - 1
        assert bottom - top >= 0.35 * 1103 - 1


def test_seeds_are_kept_apart():
    import train_sample_pages

    with pytest.raises(ValueError, match="held out"):
        data.training_canvases(train_sample_pages.generate_page, 99_999, 1)
    with pytest.raises(ValueError, match="not held out"):
        data.page_canvas(train_sample_pages.generate_page, 100_000)
    with pytest.raises(ValueError, match="training seeds start"):
        feed.Feed(feed.Plan("train_sample_pages:generate_page", 1, 4, 5, 1, 1))
    plan = feed.Plan("", 3, 8, 1_000_000, 1, 2)
    seen: list[int] = []
    for worker in range(3):
        stream = feed._seeds(plan, worker)
        for held_out, seeds in (next(stream) for _ in range(6)):
            assert all((seed < 100_000) == held_out for seed in seeds)
            seen += seeds
    assert len(seen) == len(set(seen))
    assert set(range(8)) <= set(seen)


def test_the_ring_wraps():
    ring = feed.Ring(5, CPU)
    for start in (0, 3, 6):
        seeds = np.arange(start, start + 3)
        images = torch.tensor(seeds, dtype=torch.uint8)[:, None, None, None].expand(3, 640, 640, 3)
        boxes = np.zeros((3, data.MAX_BOXES, 4), np.float32)
        boxes[:, 0, 0] = seeds
        flags = np.zeros((3, data.MAX_BOXES), np.uint8)
        flags[:, 0] = data.VALID
        ring.add(
            images,
            feed.Chunk(
                False, 0, 0, boxes, flags, np.full((3, 2), 640, np.int32), seeds, 9, (), 0, 3
            ),
        )
    assert ring.filled == 5
    assert ring.images[:, 0, 0, 0].tolist() == [5, 6, 7, 8, 4]
    images, boxes, flags, _ = ring.sample(16, np.random.default_rng(0))
    assert boxes.shape == (16, 8, 4)
    assert flags.sum() == 16
    assert (images[:, 0, 0, 0] == boxes[:, 0, 0]).all()


# -- weights and schedule ------------------------------------------------------------------


def _network():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))


def test_a_state_comes_back(tmp_path: Path):
    torch.manual_seed(0)
    model = _network()
    average = weights.Average(model, 0.9, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for step in range(1, 6):
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimiser.step()
        average.update(step)
    state = weights.pack_state(model, average, optimiser, {"step": 5})
    weights.save_state(tmp_path / "state.pt", state)
    loaded = weights.load_state(tmp_path / "state.pt")
    other = _network()
    other_average = weights.Average(other, 0.9, 2)
    other_optimiser = torch.optim.AdamW(other.parameters(), lr=0.1, fused=True)
    weights.unpack_state(loaded, other, other_average, other_optimiser)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    before, after = average.state_dict(), other_average.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-2, atol=1e-3)
    assert after["1.num_batches_tracked"] == 5
    moments = next(iter(other_optimiser.state.values()))
    assert moments["exp_avg"].dtype == torch.float32
    assert moments["step"] == 5
    # And the average follows the restored model, not an old copy of it.
    with torch.no_grad():
        other[0].weight.fill_(100.0)
    other_average.update(1)
    assert other_average.state_dict()["0.weight"].mean() > 10


def test_safetensors_file_is_readable(tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = _network()
    path = tmp_path / "a.safetensors"
    path.write_bytes(weights.safetensors_bytes(model.state_dict(), {"network": "yes"}))
    loaded = safetensors.load_file(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_requests_that_make_no_sense(capsys: pytest.CaptureFixture[str]):
    for words in (
        ["--first-seed", "5"],
        ["--batch", "0"],
        ["--schedule-from", "0.5", "--schedule-to", "0.4"],
        ["--minimum", "10", "--buffer", "5"],
        ["--resume", "nowhere.pt"],
    ):
        with pytest.raises(SystemExit) as ended:
            options_.parse_options(["--out", "x", *words])
        assert ended.value.code == 2, words
    capsys.readouterr()


# -- a whole run ---------------------------------------------------------------------------


def _command(out: Path, *words: str) -> list[str]:
    small = "--device cpu --width 0.125 --batch 2 --buffer 24 --minimum 6 --workers 2 --crops 1"
    small += " --pages-per-chunk 2 --held-out 4 --eval-pages 2 --log-every-s 1 --bf16-until 0"
    small += " --generator train_sample_pages:generate_page"
    return [sys.executable, str(FOLDER / "train.py"), "--out", str(out), *small.split(), *words]


def _environment(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k != "OUT"}


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="workers are forked")
def test_a_run_and_its_continuation(tmp_path: Path, environment: dict[str, str]):
    first, second = tmp_path / "first", tmp_path / "second"
    words = ["--minutes", "0.35", "--schedule-to", "0.5", "--save-every-s", "3"]
    ran = subprocess.run(
        _command(first, *words, "--eval-every-s", "4"),
        env=_environment(environment), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    names = {"log.jsonl", "state.pt", "ema.safetensors", "summary.json", "curves.svg"}
    assert {p.name for p in first.iterdir()} == names
    summary = json.loads((first / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["evaluations"][-1]["final"]
    assert summary["evaluations"][-1]["pages"] == 4
    progress = weights.load_state(first / "state.pt")["progress"]
    assert progress["schedule"] == 0.5
    assert progress["next_seed"] >= summary["training_seeds"][1]

    process = subprocess.Popen(
        _command(second, "--minutes", "5", "--resume", str(first / "state.pt")),
        env=_environment(environment), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if '"kind": "train"' in line:
            break
    assert process.poll() is None, "".join(seen)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 143, rest
    assert time.monotonic() - began < 60
    summary = json.loads((second / "summary.json").read_text())
    assert summary["status"] == "terminated"
    assert summary["training_seeds"][0] == progress["next_seed"]
    ended = weights.load_state(second / "state.pt")["progress"]
    assert ended["step"] > progress["step"]
    assert 0.5 < ended["schedule"] < 0.9
    ElementTree.fromstring((second / "curves.svg").read_text())


def test_curves_are_well_formed(tmp_path: Path):
    records = [
        {"kind": "train", "elapsed_s": 60.0 * i, "iou": 4.0 / (i + 1), "objectness": 9.0 / (i + 1),
         "classes": 1.0, "l1": 0.0, "learning_rate": 1e-3 * i, "images_per_s": None}
        for i in range(9)
    ]  # fmt: skip
    records += [{"kind": "eval", "elapsed_s": 200.0, "ap50": 0.5, "ap50_95": "nan"}]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, records)) + '\n{"kind": "tr')
    tree = ElementTree.fromstring(curves.svg_from_log(curves.read_log(log)))
    texts = {element.text for element in tree.iter() if element.text}
    assert "elapsed, minutes" in texts
    assert "no data yet" in texts  # no throughput in this log
    assert ElementTree.fromstring(curves.svg_from_log([])) is not None
