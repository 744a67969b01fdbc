"""Requests are joined into batches and split again, and a bad one harms no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.serve.backends.joining import Failed, Tensor, check_tensors, run_joined


class Runner:
    """Doubles its input; a row of 13s fails."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, feed):
        x = feed["x"]
        self.sizes.append(len(x))
        if (x == 13).any():
            raise ValueError("thirteen is refused")
        return {"y": x * 2}


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)[:, None]}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(5, 16))
def test_every_request_gets_its_own_rows(sizes, largest):
    runner = Runner()
    numbers = iter(range(100, 1000))
    feeds = [rows(*(next(numbers) for _ in range(size))) for size in sizes]
    answers = run_joined(feeds, runner, batches=True, largest=largest)
    for feed, answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], feed["x"] * 2)
    assert max(runner.sizes) <= largest
    assert sum(runner.sizes) == sum(sizes)
    assert len(runner.sizes) == 1 or sum(sizes) > largest


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_a_request_that_fails_harms_no_other(bad):
    runner = Runner()
    feeds = [rows(i, i + 20) for i in range(7)]
    feeds[bad] = rows(1, 13)
    answers = run_joined(feeds, runner, batches=True, largest=100)
    assert answers[bad] == Failed("thirteen is refused")
    for place, answer in enumerate(answers):
        if place != bad:
            np.testing.assert_array_equal(answer["y"], feeds[place]["x"] * 2)
    assert runner.sizes[0] == 14
    assert len(runner.sizes) <= 7  # halves, and no run for each of the neighbours


def test_requests_of_different_shapes_run_apart():
    runner = Runner()
    feeds = [{"x": np.ones((1, n), np.float32)} for n in (2, 3, 2)]
    answers = run_joined(feeds, runner, batches=True, largest=8)
    assert [a["y"].shape for a in answers] == [(1, 2), (1, 3), (1, 2)]
    assert runner.sizes == [2, 1]


def test_a_threshold_without_a_batch_parts_requests():
    seen = []

    def run(feed):
        seen.append((len(feed["x"]), feed["t"].tolist()))
        return {"y": feed["x"] + feed["t"]}

    feeds = [{**rows(1), "t": np.array([[t]], np.float32)} for t in (1, 2, 1)]
    answers = run_joined(feeds, run, batches=True, largest=8, shared={"t": 1})
    assert [float(a["y"][0, 0]) for a in answers] == [2, 3, 2]
    assert seen == [(2, [1.0]), (1, [2.0])]


def test_outputs_that_are_not_rows_are_refused():
    feeds = [rows(1), rows(2)]
    answers = run_joined(feeds, lambda f: {"y": np.zeros(5)}, batches=True, largest=8)
    assert all(isinstance(a, Failed) and "not one row for each" in a.message for a in answers)


def test_without_batches_each_request_runs_as_it_is():
    runner = Runner()
    answers = run_joined([rows(1, 2), rows(13)], runner, batches=False, largest=0)
    np.testing.assert_array_equal(answers[0]["y"], [[2], [4]])
    assert answers[1] == Failed("thirteen is refused")


def config(name="x", kind="TYPE_FP32", dims=("3", "640"), batch=4):
    return {"max_batch_size": batch, "input": [{"name": name, "data_type": kind, "dims": dims}]}


FILE = [Tensor("x", "float32", (None, 3, 640))]


@pytest.mark.parametrize(
    ("told", "file", "says"),
    [
        (config(), FILE, None),
        (config(dims=("-1", "-1")), FILE, None),
        (config(batch=0, dims=("2", "3", "640")), FILE, None),
        (config(dims=("3",)), [Tensor("x", "float32", (3,))], None),
        (config(name="z"), FILE, "config.pbtxt has the input z, the file has x"),
        (config(kind="TYPE_FP16"), FILE, "input x is float16 in config.pbtxt, float32 in the file"),
        (config(dims=("3", "320")), FILE, "the shape [-1, 3, 320] in config.pbtxt"),
        (config(), [Tensor("x", "float32", (2, 3, 640))], "the file takes 2 at once"),
        (config(kind="TYPE_STRING"), FILE, "not a number"),
    ],
    ids=["same", "free", "no batch", "threshold", "name", "type", "shape", "fixed", "text"],
)
def test_a_configuration_is_compared_with_the_file(told, file, says):
    if says is None:
        check_tensors(told, "input", file)
        return
    with pytest.raises(ValueError) as refused:
        check_tensors(told, "input", file)
    assert says in str(refused.value)
