"""Every entry of the catalog, each form of its head, all tasks, precisions and outputs."""

from __future__ import annotations

import importlib.util
import json
import typing
from collections import defaultdict
from pathlib import Path

import pytest
from conformance import CASES, EVIDENCE, OUTPUTS, PRECISIONS, as_dict, measure

from boxwright import catalog
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
