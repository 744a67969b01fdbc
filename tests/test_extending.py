"""docs/extending.md does what it says, and families of other packages that are broken are named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from official_graphs import CLASSES, FLOAT, SIZE, WORDS, Graph, sigmoid

import boxwright
from boxwright import catalog, families
from boxwright.errors import RequestError
from boxwright.graph.io import model_from_file, signature_of
from boxwright.pictures import generated_pictures

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
STRIDES = (8, 16)  # so that no family of Boxwright's fits
ROWS = sum((SIZE // s) ** 2 for s in STRIDES)


def blocks():
    """Return the files of the page by name; each names itself in its first line."""
    found = re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def acme(path, producer="acme exporter"):
    """Write a small graph of the page's family."""
    g = Graph()
    parts = []
    for stride in STRIDES:
        count = (SIZE // stride) ** 2
        box = g.op("Sigmoid", g.rows(4, count, stride))
        low = g.op("Slice", box, g.ints(0), g.ints(2), g.ints(2))
        low = g.op("Mul", low, g.value(np.float32(0.8)))
        side = g.op("Slice", box, g.ints(2), g.ints(4), g.ints(2))
        high = g.op("Add", low, g.op("Mul", side, g.value(np.float32(0.2))))
        parts.append(g.op("Concat", low, high, g.rows(CLASSES, count, stride), axis=2))
    rows = g.op("Transpose", g.op("Concat", *parts, axis=1), perm=[0, 2, 1])
    model = g.model({"preds": (rows, FLOAT, [4 + CLASSES, ROWS])})
    model.producer_name = producer
    onnx.save(model, path)
    return path


def test_the_page_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 60
    assert set(blocks()) == {"acme_yolo.py", "pyproject.toml"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The page's package, installed by pip into a folder of its own."""
    pytest.importorskip("setuptools", reason="pip builds the page's package with setuptools")
    folder = tmp_path_factory.mktemp("acme")
    for name, text in blocks().items():
        (folder / name).write_text(text, encoding="utf-8")
    site = folder / "site"
    words = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--target")
    subprocess.run([sys.executable, "-m", "pip", *words, str(site), str(folder)], check=True)
    return site


def expected(path, picture):
    """Return what the page says of the export: boxes in source pixels and scores of its rows."""
    import onnxruntime

    height, width = picture.shape[:2]
    small = cv2.resize(picture, (SIZE, SIZE)).transpose(2, 0, 1)[None].astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = session.run(None, {"images": small})[0][0].T
    return rows[:, :4] * np.array([width, height] * 2), sigmoid(rows[:, 4:])


def test_a_package_of_ones_own_adds_a_family(package, environment, tmp_path):
    source = acme(tmp_path / "acme.onnx")
    (tmp_path / "names.txt").write_text("\n".join(WORDS))
    picture = generated_pictures((96, 120), count=1)[0]
    cv2.imwrite(str(tmp_path / "picture.png"), picture)
    known = {**environment, "PYTHONPATH": f"{environment['PYTHONPATH']}:{package}"}

    def boxwright_cli(env, *words):
        command = [sys.executable, "-m", "boxwright", *map(str, words)]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    asked = ("export", source, "--labels", "names.txt", "--outputs", "raw,end2end", "--out", "runs")
    refused = boxwright_cli(environment, *asked)
    assert refused.returncode == 2 and "no known family" in refused.stderr
    exported = boxwright_cli(known, *asked)
    assert exported.returncode == 0, exported.stderr
    boxes, scores = expected(source, picture)
    found = {}
    for name in ("acme.fp32.onnx", "acme.fp32.end2end.onnx"):
        # Without the package: what was exported says itself how it is read.
        words = ("predict", tmp_path / "runs" / "acme" / name, "picture.png", "--save-json")
        seen = boxwright_cli(environment, *words, f"{name}.json", "--runtime", "onnxruntime")
        assert seen.returncode == 0, seen.stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())[0]["detections"]
        assert len(found[name]) > 3
        for one in found[name]:
            near = np.abs(boxes - one["xyxy"]).max(1) < 0.05
            best = scores[near, one["class_id"]]
            assert len(best) and np.abs(best - one["score"]).min() < 1e-4
    first, second = found.values()
    assert [d["class_name"] for d in first] == [d["class_name"] for d in second]


@pytest.fixture
def fresh():
    """Forget the families before and after."""
    catalog.families.cache_clear()
    catalog._file_names.cache_clear()
    yield
    catalog.families.cache_clear()
    catalog._file_names.cache_clear()


def test_a_file_in_the_folder_is_an_entry(tmp_path, monkeypatch, fresh):
    """The same file, where Boxwright's own families are."""
    (tmp_path / "acme.py").write_text(blocks()["acme_yolo.py"], encoding="utf-8")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    assert catalog.family("acme").title == "Acme's detector"
    model = model_from_file(acme(tmp_path / "acme.onnx"))
    found, match = catalog.recognise(signature_of(model), None, "acme")
    assert found.name == "acme" and match.class_count == CLASSES
    monkeypatch.delitem(sys.modules, "boxwright.families.acme")


BROKEN = {
    "raises": ("raise OSError('no licence\\nat all')", "OSError: no licence at all"),
    "lacks it": ("OTHER = 1", "AttributeError"),
    "is none": ("FAMILY = 'acme'", "it is of type str, not a Family"),
    "takes a name": (
        "from boxwright.families.yolox import FAMILY as ours\nimport dataclasses\n"
        "FAMILY = dataclasses.replace(ours, name='acme', aliases=('yolov10',))",
        "it is called yolov10, as another family is",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_in_one_line(case, tmp_path, monkeypatch, fresh):
    code, found = BROKEN[case]
    module = f"acme_{case.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(code)
    info = tmp_path / "acme_yolo-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-yolo\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text(f"[boxwright.families]\nacme = {module}:FAMILY\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalog.family_packages() == {"acme-yolo": "3.0"}
    with pytest.raises(RequestError) as caught:
        catalog.families()
    text = str(caught.value)
    assert found in text and "acme-yolo" in text and "uninstall" in text and "\n" not in text
    assert boxwright.load  # the package itself is unharmed
