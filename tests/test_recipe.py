"""Recipes: what is wrong is named with its key, what is right comes out as records."""

from __future__ import annotations

import pytest

from boxwright.errors import RequestError
from boxwright.recipe import Recipe, recipe_from_file, recipe_from_mapping

# case: (YAML, what the error must hold)
WRONG = {
    "unknown key": ("source: a.onnx\nunknwn: 3", "unknwn: unknown key; known: source, name"),
    "misspelt key": ("source: a.onnx\nopsett: 17", "opsett: unknown key; did you mean opset?"),
    "misspelt source": ("sorce: a.onnx", "sorce: unknown key; did you mean source?"),
    "misspelt nms key": ("source: a\nnms: {keep_top: 3}", "nms.keep_top: unknown key; did you"),
    "misspelt target key": (
        "source: a\ntargets: [{precison: fp16}]",
        "targets.0.precison: unknown key; did you mean precision?",
    ),
    "misspelt precision": (
        "source: a\ntargets: [{}, {precision: fp61}]",
        "targets.1.precision fp61: known are fp32, fp16, int8; did you mean fp16?",
    ),
    "misspelt head": ("source: a\nhead: one2man", "head one2man: known are auto, one2many"),
    "no source": ("opset: 17", "source: it is missing; add source:"),
    "empty source": ("source: ' '", "source: it is empty"),
    "source is a list": ("source: [a]", "source: it should be text"),
    "source is a number": ("source: 5", "source 5: it should be text"),
    "opset is a switch": ("source: a\nopset: yes", "opset True: it should be a whole number"),
    "opset is quoted": ("source: a\nopset: '17'", "opset '17': it should be a whole number"),
    "opset is broken": ("source: a\nopset: 17.5", "opset 17.5: it should be a whole number"),
    "opset is unknown": ("source: a\nopset: 23", "opset 23: supported are 11 to 22"),
    "batch is a switch": ("source: a\nbatch: true", "batch True: it should be a whole number"),
    "batch is a word": ("source: a\nbatch: many", "batch 'many': it should be a whole number"),
    "batch is zero": ("source: a\nbatch: 0", "batch 0: it must be between 1 and 4096"),
    "threshold is a switch": (
        "source: a\nnms: {score_threshold: yes}",
        "nms.score_threshold True: it should be a number",
    ),
    "threshold is no number": ("source: a\nnms: {iou_threshold: .nan}", "iou_threshold nan"),
    "threshold is endless": ("source: a\nnms: {iou_threshold: .inf}", "iou_threshold inf"),
    "threshold is negative": ("source: a\nnms: {iou_threshold: -1}", "greater than or equal to 0"),
    "top-k is zero": ("source: a\nnms: {pre_topk: 0}", "pre_topk 0"),
    "nms is a number": ("source: a\nnms: 5", "nms 5: it should be a mapping"),
    "targets is a word": ("source: a\ntargets: fp16", "targets 'fp16': it should be a list"),
    "no target": ("source: a\ntargets: []", "targets: there is none"),
    "image size of one": ("source: a\nimage_size: [64]", "image_size: it holds too few values"),
    "image size of three": ("source: a\nimage_size: [64, 64, 64]", "image_size"),
    "image size is a word": ("source: a\nimage_size: big", "image_size 'big'"),
    "image size too small": ("source: a\nimage_size: 16", "between 32 and 8192"),
    "name with a slash": ("source: a\nname: b/c", "name b/c: it is not a file name"),
    "name with a line break": ('source: a\nname: "b\\nc"', "it is not a file name"),
    "name too long": (f"source: a\nname: {'n' * 200}", "longer than 180 bytes"),
    "switch is a number": ("source: a\nsimplify: 1", "simplify 1: it should be true or false"),
    "threads is zero": ("source: a\nthreads: 0", "threads 0"),
    "given twice": ("source: a\nsource: b", "source is given twice, line 2"),
    "given twice inside": ("source: a\nnms: {pre_topk: 1, pre_topk: 2}", "pre_topk is given twice"),
    "key is a number": ("source: a\n1: 2", "1"),
    "key is a list": ("source: a\n? [b]\n: c", "cannot be read as YAML"),
    "not a mapping": ("- a", "it is not a mapping; begin with `source:`"),
    "empty": ("", "it is not a mapping"),
    "not YAML": ("{{{", "cannot be read as YAML"),
    "a Python object": ("source: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    "nested too deeply": ("[" * 1500, "nested too deeply"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes(case, tmp_path):
    text, expected = WRONG[case]
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        recipe_from_file(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert expected in message
    assert "\n" not in message
    assert caught.value.do


def test_not_text(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot be read as YAML"):
        recipe_from_file(file)


def test_missing_and_folder(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        recipe_from_file(tmp_path / "r.yaml")
    with pytest.raises(RequestError, match="cannot be read"):
        recipe_from_file(tmp_path)


def test_everything_that_a_recipe_may_say(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "source: a.onnx\nname: größe 1\ntargets:\n"
        "  - {precision: fp16}\n  - {outputs: end2end, nms: portable}\n"
        "  - {precision: fp16, nms: portable}\n"  # raw: its nms means nothing
        "nms: {score_threshold: 0, iou_threshold: 1, pre_topk: 5, iterations: 8}\n"
        "image_size: [64, 96]\nbatch: 4\nopset: 13\nsimplify: false\nimages: pics\n"
        "max_images: 5\nverify: false\nthreads: 2\nseed: 3\n",
        encoding="utf-8",
    )
    recipe = recipe_from_file(file)
    assert recipe.name == "größe 1"
    assert recipe.image_size == (64, 96)
    assert recipe.images == ("pics",)
    targets = recipe.target_records()
    assert [t.suffix for t in targets] == ["fp16.b4", "fp32.end2end.portable.b4"]
    assert {(t.batch, t.opset, t.nms_iterations) for t in targets} == {(4, 13, 8)}
    settings = recipe.nms_settings(0.25, 0.7)
    assert (settings.score_threshold, settings.iou_threshold, settings.pre_topk) == (0, 1, 5)


def test_defaults_take_the_thresholds_of_the_model():
    recipe = Recipe(source="a.onnx")
    settings = recipe.nms_settings(0.3, 0.45)
    assert (settings.score_threshold, settings.iou_threshold) == (0.3, 0.45)
    assert recipe_from_mapping({"source": "a", "batch": "dynamic"}, "x").batch is None
    assert recipe_from_mapping({"source": "a", "image_size": 64}, "x").image_size == (64, 64)


def test_options_are_named_as_options():
    with pytest.raises(RequestError, match=r"^--max-images 0: "):
        recipe_from_mapping({"source": "a", "max_images": 0}, "request", options=True)


def test_run_takes_a_recipe(place, cli, snapshot):
    (place / "r.yaml").write_text("source: tiny.onnx\nimages: pics\n", encoding="utf-8")
    assert cli("run", "r.yaml", "--out", "out").code == 0
    assert (place / "out/tiny/tiny.fp32.onnx").is_file()
    before = snapshot(place)
    ran = cli("run", "r.yaml", "--opset", "13")
    assert ran.code == 2
    assert "--opset: the recipe r.yaml decides that; put it there" in ran.error
    (place / "bad.yaml").write_text("source: missing.onnx\n", encoding="utf-8")
    ran = cli("run", "bad.yaml", "--out", "other")
    assert ran.code == 2
    assert ran.error == "missing.onnx: there is no such file; check the path"
    (place / "bad.yaml").unlink()
    assert snapshot(place) == before
