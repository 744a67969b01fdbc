"""The demo and the embedded detector, with what the base install has."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from test_light import run_blocked

import boxwright
from boxwright.demo import Found, _counted, run_demo
from boxwright.errors import StoreError
from boxwright.sample import checkpoint_file, generate_page, onnx_file
from boxwright.sample.pages_on_disk import coco_from_pages, sample_pages
from boxwright.stamps import stamp_from_metadata


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One demo of two pages."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    return run_demo(folder, pages=2, seed=0)


def test_the_demo_proves_every_file_and_finds_the_text(made):
    names = {r.path.name for r in made.outcome.rows}
    assert names == {
        f"text_block.{p}{e}.onnx" for p in ("fp32", "fp16", "int8") for e in ("", ".end2end")
    }  # fmt: skip
    assert all(r.parity is not None and r.parity.passed for r in made.outcome.rows)
    assert all(r.parity.detections > 10 for r in made.outcome.rows)
    assert [f.true for f in made.found] == [len(generate_page(s).blocks) for s in (0, 1)]
    assert sum(f.found for f in made.found) >= 0.9 * sum(f.true for f in made.found)
    assert sum(f.wrong for f in made.found) <= 2


def test_the_demo_leaves_pictures_truth_and_a_summary(made):
    for seed, drawing in enumerate(made.drawings):
        page = generate_page(seed)
        stored = cv2.imread(str(made.folder / "pages" / f"page_{seed:06d}.png"))
        np.testing.assert_array_equal(stored, page.image)
        drawn = cv2.imread(str(drawing))
        assert drawn.shape == page.image.shape
        assert np.abs(drawn.astype(int) - page.image).max() > 100, "boxes are drawn on it"
    truth = json.loads((made.folder / "pages" / "truth.json").read_text())
    assert len(truth["annotations"]) == sum(f.true for f in made.found)
    assert truth["categories"] == [{"id": 1, "name": "text_block"}]
    text = (made.folder / "summary.md").read_text()
    assert "6 of 6 files proven" in text and "boxwright run yours.pt" in text
    page = made.folder / "text_block" / "report.html"
    assert str(page) in text
    shown = page.read_text(encoding="utf-8")
    assert "text_block.int8.end2end.onnx" in shown and made.outcome.report.choice.file in shown
    rows = made.outcome.report.accuracy
    assert {r.runtime for r in rows} == {"onnxruntime"} and len(rows) == 7
    assert all(r.accuracy.map50_95 > 0.85 for r in rows)
    assert len(made.outcome.report.benchmark.measured) == 7


def test_the_demo_again_skips_and_replaces_its_own(made):
    stray = made.folder / "pages" / "page_000009.png"
    stray.write_bytes(b"of an earlier demo")
    again = run_demo(made.folder, pages=2, seed=0)
    assert {r.action for r in again.outcome.rows} == {"skipped"}
    assert not stray.exists()


def test_the_demo_touches_no_strangers_folder(cli, place, snapshot):
    (place / "mine").mkdir()
    (place / "mine" / "precious.txt").write_text("mine")
    before = snapshot(place)
    done = cli("demo", "--out", "mine")
    assert done.code == 2 and "it is not empty" in done.error
    assert snapshot(place) == before
    (place / "file").write_text("mine")
    done = cli("demo", "--out", "file")
    assert done.code == 2 and "cannot be written" in done.error


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--pages", "0"], "it is not a positive number"),
        (["--seed", "-1"], "never trained on"),
        (["--seed", "99999"], "never trained on"),
        (["--seed", "30010"], "what calibrates is not measured"),
        (["--seed", "29998"], "what calibrates is not measured"),
        (["--pages", "many"], "--pages many"),
    ],
)
def test_bad_requests_make_nothing(cli, place, words, found):
    done = cli("demo", "--out", "d", *words)
    assert done.code == 2 and found in done.error
    assert not (place / "d").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        run_demo(blocked / "below", pages=1)


def test_the_demo_runs_without_network_torch_or_ultralytics(tmp_path):
    done = run_blocked(
        f"""
        import os, socket, sys
        def refuse(*args, **kwargs):
            raise OSError("the network is not to be used")
        socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
        os.chdir({str(tmp_path)!r})
        from boxwright.cli import main
        code = main(["demo", "--pages", "1", "--json"], )
        sys.exit(code)
        """
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert len(data["files"]) == 6 and all(f["parity"]["passed"] for f in data["files"])
    assert data["found"][0]["true"] > 5


def test_from_torch_names_the_missing_extra(tmp_path):
    done = run_blocked(
        f"""
        import sys
        from boxwright.cli import main
        sys.exit(main(["demo", "--pages", "1", "--from-torch", "--out", {str(tmp_path / "d")!r}]))
        """
    )
    assert done.returncode == 2
    assert 'pip install "boxwright[export]"' in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "d").exists(), "refused before any work"


def test_counting_is_one_to_one():
    truth = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    record = {
        "detections": [
            {"xyxy": [0, 0, 10, 10]},
            {"xyxy": [0, 0, 10, 9]},  # a second box on the first block
            {"xyxy": [50, 50, 60, 60]},
        ]
    }
    assert _counted("p", truth, record) == Found("p", 2, 1, 2)
    assert _counted("p", truth[:0], {"detections": []}) == Found("p", 0, 0, 0)
    assert _counted("p", truth[:0], record) == Found("p", 0, 0, 3)
    assert _counted("p", truth, {"detections": []}) == Found("p", 2, 0, 0)


def test_the_detector_explains_itself_and_is_small():
    assert onnx_file().stat().st_size <= 6_000_000
    assert checkpoint_file().stat().st_size <= 6_000_000
    model = onnx.load(onnx_file())
    stamp = stamp_from_metadata({p.key: p.value for p in model.metadata_props}, "sample")
    assert stamp is not None
    spec = stamp.spec
    assert (spec.class_names, spec.input_size, spec.family) == (
        ("text_block",),
        (640, 640),
        "yolox",
    )
    assert 0.3 < spec.score_threshold < 0.7
    quantised = {n.op_type for n in model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert not quantised


def test_the_detector_finds_text_and_leaves_bare_pages_alone():
    detector = boxwright.load(onnx_file(), quiet=True, pictures=1)
    bare = next(s for s in range(200, 300) if not generate_page(s).blocks)
    assert len(detector(generate_page(bare).image)) <= 1
    page = generate_page(4000)
    assert abs(len(detector(page.image)) - len(page.blocks)) <= 2
    blank = np.full((900, 640, 3), 255, np.uint8)
    assert len(detector(blank)) == 0


def test_the_graph_is_the_torch_network(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the export extra")
    pytest.importorskip("safetensors", reason="needs the export extra")
    del torch
    ours = boxwright.load(onnx_file(), "onnxruntime", quiet=True)
    theirs = boxwright.load(checkpoint_file(), "pytorch", quiet=True)
    assert ours.spec == theirs.spec
    picture = generate_page(7).image
    batch, _ = ours.preprocess([picture])
    (a,), (b,) = ours.infer(batch).values(), theirs.infer(batch).values()
    np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4)
    found, expected = ours(picture), theirs(picture)
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.05)


def test_truth_is_a_coco_data_set():
    pages = sample_pages([0, 209])
    truth = coco_from_pages(pages)
    assert [i["id"] for i in truth["images"]] == [1, 2]
    assert [i["file_name"] for i in truth["images"]] == ["page_000000.png", "page_000209.png"]
    assert len({a["id"] for a in truth["annotations"]}) == len(truth["annotations"])
    first = truth["annotations"][0]
    x1, y1, x2, y2 = pages[0].page.blocks[0].xyxy
    assert first["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    assert all(Path(i["file_name"]).suffix == ".png" for i in truth["images"])
