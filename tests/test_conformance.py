"""Every entry of the catalog, each form of its head, all tasks, precisions and outputs."""

from __future__ import annotations

import importlib.util
import json
import typing
from collections import defaultdict
from pathlib import Path

import pytest
from conformance import CASES, EVIDENCE, OUTPUTS, PRECISIONS, as_dict, measure
from official_graphs import CASES as OFFICIAL
from official_graphs import WORDS

import boxwright
from boxwright import catalog
from boxwright.recipe import recipe_from_mapping
from boxwright.types import JoinKind

ROOT = Path(__file__).resolve().parents[1]


def tool():
    path = ROOT / "tools" / "make_families_table.py"
    spec = importlib.util.spec_from_file_location("make_families_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recorded():
    return json.loads(tool().newest_results().read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("name", CASES)
def test_conformance(name, tmp_path, recorded):
    """What is made of the graph equals the graph, on the host and inside, alone and together."""
    found = [as_dict(result) for result in measure(name, tmp_path)]
    assert [(r["precision"], r["outputs"]) for r in found] == [
        (p, o) for p in PRECISIONS for o in OUTPUTS
    ]
    assert found == [r for r in recorded if r["case"] == name], (
        "run: python tools/make_families_table.py"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_whole_job_at_a_fixed_batch(name, tmp_path):
    """The same through `boxwright run`: planned, made, proven and published, two pictures each."""
    case = CASES[name]
    case.write(tmp_path / "export.onnx")
    (tmp_path / "names.txt").write_text("\n".join(WORDS))
    forms = (("raw", "onnx"), ("end2end", "onnx"), ("end2end", "portable"))
    recipe = {
        "source": str(tmp_path / "export.onnx"),
        "batch": 2,
        "measure": {"latency": False, "accuracy": False},
        "targets": [
            {"precision": p, "outputs": o, "nms": n} for p in ("fp32", "fp16") for o, n in forms
        ],
    }
    if case.asked is not None:
        recipe["family"] = case.asked
    if name in OFFICIAL:
        recipe["labels"] = str(tmp_path / "names.txt")
    outcome = boxwright.run(recipe_from_mapping(recipe, "test"), tmp_path / "runs")
    assert len(outcome.rows) == 6
    for row in outcome.rows:
        assert ".b2." in row.path.name
        assert row.parity is not None and row.parity.passed and row.parity.detections > 3, row


def test_every_family_and_every_join_is_a_case():
    assert {c.family for c in CASES.values()} == {f.name for f in catalog.families()}
    tasks = defaultdict(set)
    for case in CASES.values():
        tasks[case.family].add(case.task)
    every = {"detect", "segment", "pose", "obb", "classify"}
    assert tasks["ultralytics"] == every
    assert tasks["ultralytics-nms-free"] == every - {"classify"}
    source = (ROOT / "src" / "boxwright" / "families").glob("*.py")
    text = "".join(p.read_text(encoding="utf-8") for p in source)
    for kind in typing.get_args(JoinKind):
        assert f'"{kind}"' in text, f"no family joins by {kind}"


def test_the_table_is_current(recorded):
    made = tool().table(recorded, [f.name for f in catalog.families()], EVIDENCE)
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert tool().page_with_table(page, made) == page, "run: python tools/make_families_table.py"
    assert set(EVIDENCE) <= set(CASES)
