"""Preprocessing inside the graph: the host's rules, to the grey level, for any picture."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from functools import cache
from math import gcd

import numpy as np
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from boxwright.errors import GraphError, RequestError
from boxwright.graph.builder import GraphBuilder
from boxwright.graph.image_input import add_image_input, with_network_input
from boxwright.graph.io import bytes_from_model, check_model
from boxwright.graph.placement import add_placement, tie_noise, tie_thresholds
from boxwright.image_parity import grey_gap
from boxwright.preprocess import place, prepare
from boxwright.types import LONGEST_SIDE_PX, HeadLayout, ModelSpec, Preprocess, Target

RULES = {
    "letterbox": Preprocess(),
    "top left, floor, BGR 0..255": Preprocess(
        resize="letterbox_top_left", rounding="floor", color="bgr", scale=1.0
    ),
    "stretch with mean and std": Preprocess(
        resize="stretch", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}
FORMS = {
    "nhwc, bgr": {},
    "nchw, rgb": {"image_layout": "nchw", "image_color": "rgb"},
}
SIZES = [(96, 160), (640, 640)]
# Height and width that float64 rounds away from the true value, or that lie on a tie.
BAD_SIZES = [(49, 98), (98, 49), (573, 768), (768, 573), (721, 1280), (161, 107), (1, 1), (3, 7000)]


def identity(size: tuple[int, int], opset: int = 17):
    """A network that returns its input."""
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3, *size])
        for n in ("images", "out")
    ]
    node = helper.make_node("Identity", ["images"], ["out"], "only")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def spec_of(size: tuple[int, int], rules: Preprocess) -> ModelSpec:
    return ModelSpec("net", "yolox", "detect", ("ant",), size, rules, HeadLayout())


def graph_of(size, rules, opset=17, **target):
    model = add_image_input(
        identity(size, opset), spec_of(size, rules), Target(input="image", **target)
    )
    check_model(model, "image input")
    return bytes_from_model(model, "image input")


@cache
def session(size, rules, source_size=None, **form) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = graph_of(size, rules, source_size=source_size, **form)
    opened = onnxruntime.InferenceSession(data, options)
    return lambda batch: opened.run(None, {"image": batch})[0]


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng([*size, seed]).integers(0, 256, (*size, 3), np.uint8)


def fed(image: np.ndarray, image_layout: str = "nhwc", image_color: str = "bgr") -> np.ndarray:
    if image_color == "rgb":
        image = image[..., ::-1]
    if image_layout == "nchw":
        image = image.transpose(2, 0, 1)
    return np.ascontiguousarray(image)[None]


def on_host(image: np.ndarray, size, rules) -> np.ndarray:
    out = np.empty((3, *size), np.float32)
    prepare(image, size, rules, out)
    return out


SIDES = st.one_of(st.integers(1, 64), st.integers(1, 1300), st.integers(900, 4000))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@settings(max_examples=8, deadline=None)
@given(height=SIDES, width=SIDES, large=st.booleans())
@example(1, 1, True)
@example(1, 4000, True)
@example(4000, 1, False)
@example(1280, 1280, True)
@example(640, 640, True)
@example(573, 768, True)
def test_the_tensor_is_the_hosts_to_one_grey_level(rules, form, height, width, large):
    if height * width > 2_000_000:
        width = max(1, 2_000_000 // height)
    size, image = SIZES[large], picture((height, width))
    got = session(size, rules, **form)(fed(image, **form))
    assert got.shape == (1, 3, *size) and got.dtype == np.float32
    assert grey_gap(got[0], on_host(image, size, rules), rules) <= 1.0


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("size", [(333, 501), (64, 48), (48, 1000)])
def test_few_values_differ_at_all(rules, size):
    """OpenCV's own arithmetic is followed: plain rounding would differ in every tenth value."""
    image = picture(size)
    got = session(SIZES[1], rules)(fed(image))[0]
    step = np.array([rules.scale / s for s in rules.std], np.float32).reshape(3, 1, 1)
    levels = np.rint(np.abs(got - on_host(image, SIZES[1], rules)) / step)
    assert levels.max() <= 1 and (levels > 0).mean() < 0.02


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("size", [(37, 51), (90, 200), (96, 160), (720, 405)])
def test_a_fixed_size_computes_what_the_free_one_does(rules, form, size):
    image = fed(picture(size), **form)
    fixed = session((96, 160), rules, source_size=size, **form)(image)
    assert np.array_equal(fixed, session((96, 160), rules, **form)(image))


def test_a_batch_is_its_pictures_one_by_one():
    run = session((96, 160), Preprocess())
    images = [fed(picture((77, 123), seed)) for seed in range(3)]
    alone = np.concatenate([run(i) for i in images])
    assert np.array_equal(run(np.concatenate(images)), alone)


@pytest.mark.parametrize("opset", [11, 13, 22])
def test_every_opset_says_the_same(opset):
    image = fed(picture((77, 123)))
    for source_size in (None, (77, 123)):
        data = graph_of((96, 160), Preprocess(), opset, source_size=source_size)
        got = onnxruntime.InferenceSession(data).run(None, {"image": image})[0]
        assert np.array_equal(got, session((96, 160), Preprocess())(image))


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="NOT TESTED: OpenVINO is not installed"
)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_openvino_computes_free_sizes_alike(rules):
    """Compiled once, with free sides, which its integer arithmetic must get right."""
    import openvino

    graph = openvino.Core().read_model(graph_of((96, 160), rules))
    graph.reshape({graph.inputs[0]: [1, -1, -1, 3]})
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(1)
    sizes = [*BAD_SIZES, *(tuple(int(s) for s in rng.integers(1, 900, 2)) for _ in range(12))]
    for size in sizes:
        image = picture(size)
        got = compiled([fed(image)])[0]
        assert grey_gap(got[0], on_host(image, (96, 160), rules), rules) <= 1.0, size


# -- where a picture lands


@cache
def placement(size: tuple[int, int], rules: Preprocess):
    """The nodes alone: height and width in, the six numbers of a placement out."""
    model = identity((1, 1))
    del model.graph.node[:], model.graph.input[:], model.graph.output[:]
    b = GraphBuilder(model, "p")
    placed = add_placement(b, ("height", "width"), size, rules)
    for name in ("height", "width"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, [1]))
    for name in ("height", "width", "top", "left"):
        b.name_output(getattr(placed, name), f"out_{name}")
        value = helper.make_tensor_value_info(f"out_{name}", TensorProto.INT32, [1])
        model.graph.output.append(value)
    opened = onnxruntime.InferenceSession(model.SerializeToString())

    def run(height: int, width: int) -> tuple[int, ...]:
        feed = {"height": np.array([height], np.int32), "width": np.array([width], np.int32)}
        return tuple(int(v[0]) for v in opened.run(None, feed))

    return run


LETTERBOXES = [r for r in RULES.values() if r.resize != "stretch"]


@pytest.mark.parametrize("rules", LETTERBOXES, ids=["round", "floor"])
@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, LONGEST_SIDE_PX),
    width=st.integers(1, LONGEST_SIDE_PX),
    size=st.sampled_from([(640, 640), (416, 416), (384, 640)]),
)
@example(573, 768, (640, 640))
@example(49, 49, (416, 416))
@example(1, LONGEST_SIDE_PX, (640, 640))
@example(LONGEST_SIDE_PX, LONGEST_SIDE_PX, (384, 640))
def test_pictures_land_where_the_host_puts_them(rules, height, width, size):
    where = place((height, width), size, rules)
    wanted = (*where.resized_size, where.top, where.left)
    assert placement(size, rules)(height, width) == wanted


@pytest.mark.parametrize("rules", LETTERBOXES, ids=["round", "floor"])
def test_sizes_on_a_tie_land_there_too(rules):
    """Ties are rare among sizes taken at random: these are all that 768 and 1792 columns have."""
    for width in (768, 1792, 49, 107):
        for height in range(3, width + 1, 6 if width > 200 else 1):
            where = place((height, width), (640, 640), rules)
            wanted = (*where.resized_size, where.top, where.left)
            assert placement((640, 640), rules)(height, width) == wanted


@pytest.mark.parametrize("target", [640, 416])
@pytest.mark.parametrize("floor", [False, True])
def test_the_table_decides_every_tie_as_float64_does(target, floor):
    noise, bounds = tie_noise(target), tie_thresholds(target, floor)
    count = moved = 0
    for longest in range(1, LONGEST_SIDE_PX + 1, 3):
        step = longest // gcd(longest, target if floor else 2 * target)
        side = np.arange(step, longest + 1, step)
        if not floor:
            side = side[2 * side * target // longest % 2 == 1]
        whole = side * target // longest
        product = side * (target / longest)
        if floor:
            wanted, got = np.floor(product), whole - (noise[longest] < bounds[whole])
            moved += int((wanted != whole).sum())
        else:
            wanted, got = np.rint(product), whole + (noise[longest] > bounds[whole])
            moved += int((wanted != np.rint(whole + 0.5)).sum())
        count += len(side)
        assert np.array_equal(got, wanted), longest
    assert count > 3000 and moved > 100  # the table is needed


# -- what is refused


def test_another_filter_is_refused():
    rules = Preprocess(interpolation="cubic")
    with pytest.raises(RequestError, match=r"cubic filter, the graph has bilinear only; use --inp"):
        graph_of((96, 160), rules)


def test_a_graph_of_another_input_is_refused():
    model = identity((96, 160))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(GraphError, match="not one float32 tensor"):
        add_image_input(model, spec_of((96, 160), Preprocess()), Target(input="image"))


def test_only_a_graph_that_preprocesses_shows_its_tensor():
    with pytest.raises(GraphError, match="computes no such tensor"):
        with_network_input(identity((96, 160)))


def test_targets_come_back_and_have_names_of_their_own():
    every = [
        Target(),
        Target(input="image"),
        Target(input="image", source_size=(1080, 1920)),
        Target(input="image", image_layout="nchw"),
        Target(input="image", image_color="rgb"),
        Target("fp16", "end2end", "portable", batch=8, input="image", source_size=(1, 2)),
    ]
    assert len({t.suffix for t in every}) == len(every)
    assert every[-1].suffix == "fp16.end2end.portable.b8.image1x2"
    for target in every:
        assert Target.from_dict(target.as_dict()) == target
        assert target.of_tensor.input == "tensor" and "image" not in target.of_tensor.suffix
    old = {k: v for k, v in Target().as_dict().items() if not k.startswith(("image", "source"))}
    del old["input"]  # as files of before say it
    assert Target.from_dict(old) == Target()
    assert dataclasses.replace(every[2], source_size=None) == every[1]
