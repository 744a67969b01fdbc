"""The documentation says what the program does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import boxwright
from boxwright import catalog
from boxwright.recipe import (
    CalibrationOptions,
    MeasureOptions,
    NmsOptions,
    Recipe,
    recipe_from_mapping,
)
from boxwright.verify import TOLERANCES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cli_reference_is_current():
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == _tool(
        "make_cli_reference"
    ).reference(), "run: python tools/make_cli_reference.py"


def test_every_option_has_a_help_text():
    import click

    from boxwright.cli import cli

    context = click.Context(cli)
    bare = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        for verb in (command, *inner):
            assert verb.help, f"{name} {verb.name}"
            for option in verb.params:
                if isinstance(option, click.Option) and not option.help:
                    bare.append(f"{name} {verb.name} {option.opts[0]}")
    assert not bare


def test_tolerances_are_those_of_the_page():
    text = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(): (cells[2], cells[3], cells[4])
        for line in text.splitlines()
        if (cells := line.split("|")) and len(cells) == 6
    }
    for column, precision in enumerate(("fp32", "fp16", "int8")):
        limits = TOLERANCES[precision]

        def number(row: str, column: int = column) -> float:
            return float(re.search(r"\d+(\.\d+)?", rows[row][column]).group())

        assert number("raw boxes") == limits.raw_box_px
        assert number("raw scores") == limits.raw_score
        assert number("IoU of matched boxes") == limits.min_iou
        assert number("scores of matched boxes") == limits.score


def test_every_family_is_on_its_page():
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    for family in catalog.families():
        assert f"`{family.name}`" in text


def test_the_recipe_page_names_every_key_and_is_valid():
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    import yaml

    data = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert set(data) == set(Recipe.model_fields)
    assert set(data["nms"]) == set(NmsOptions.model_fields)
    assert set(data["measure"]) == set(MeasureOptions.model_fields)
    assert set(data["calibration"]) == set(CalibrationOptions.model_fields)
    assert recipe_from_mapping(data, "docs").source == "models/yolo11n.pt"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_python_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"boxwright\.(\w+)\(", text):
        assert hasattr(boxwright, name), name
