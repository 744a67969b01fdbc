"""Requests are joined into batches and split again, and a bad one harms no other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.serve.backends.joining import (
    Failed,
    Padding,
    Tensor,
    batch_sizes,
    check_tensors,
    free_input,
    next_run,
    run_joined,
    size_for,
)


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


# Batches that are filled up


@pytest.mark.parametrize(
    ("largest", "told", "sizes"),
    [
        (0, None, ()),
        (1, None, (1,)),
        (4, None, (1, 4)),
        (8, None, (1, 4, 8)),
        (64, None, (1, 4, 16, 64)),
        (128, None, (1, 4, 16, 64, 128)),
        (64, "", ()),
        (64, " Any ", ()),
        (0, "any", ()),
        (64, "1,8,64", (1, 8, 64)),
        (64, " 64 ", (64,)),
    ],
)
def test_which_sizes_there_are(largest, told, sizes):
    assert batch_sizes(largest, told) == sizes


@pytest.mark.parametrize(
    ("largest", "told", "says"),
    [
        (64, "1,x,64", "'1,x,64', not whole numbers with commas"),
        (64, "1,,64", "not whole numbers"),
        (64, "-1,64", "not whole numbers"),
        (64, "1.5,64", "not whole numbers"),
        (64, "\u00b2,64", "not whole numbers"),
        (64, "0,64", "not positive and ascending"),
        (64, "8,1,64", "not positive and ascending"),
        (64, "8,8,64", "not positive and ascending"),
        (64, "1,8", "the last of them must be max_batch_size, 64"),
        (64, "1,128", "the last of them must be max_batch_size, 64"),
        (0, "1,8", "the model does not batch"),
    ],
)
def test_wrong_sizes_are_refused(largest, told, says):
    with pytest.raises(ValueError, match=says):
        batch_sizes(largest, told)


def test_the_next_size():
    assert [size_for((1, 4, 16), n) for n in (1, 2, 4, 5, 16)] == [1, 4, 4, 16, 16]
    with pytest.raises(ValueError, match="a batch of 17 is larger than 16"):
        size_for((1, 4, 16), 17)


def test_other_free_sizes_are_found():
    fixed, threshold = Tensor("x", "float32", (None, 3, 8)), Tensor("t", "float32", (1,))
    assert free_input([fixed, threshold], {"t": 1}) == ""
    assert free_input([fixed, Tensor("image", "uint8", (None, None, None, 3))], {}) == "image"
    assert free_input([fixed, Tensor("t", "float32", (None,))], {"t": 1}) == "t"


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=8))
def test_filled_batches_have_few_sizes_and_zeros_behind(turns):
    """Also after larger batches, and batches that hold what is no number."""
    padding = Padding((1, 4, 16))
    numbers = iter(range(100, 10_000))
    seen = []

    def run(feed):
        x = feed["x"]
        seen.append(len(x))
        rows_given = int((x[:, 0] != 0).sum())
        assert not x[rows_given:].any() and x[:rows_given].all()
        return {"y": x * 2}

    for turn in turns:
        feeds = [rows(*(next(numbers) for _ in range(size))) for size in turn]
        feeds[-1]["x"][-1] = np.nan
        answers = run_joined(feeds, run, batches=True, largest=16, padding=padding)
        for feed, answer in zip(feeds, answers, strict=True):
            np.testing.assert_array_equal(answer["y"], feed["x"] * 2)
    assert set(seen) <= {1, 4, 16}


def test_rows_that_fill_a_size_are_not_copied():
    fed = []
    run = lambda feed: fed.append(feed["x"]) or {"y": feed["x"]}  # noqa: E731
    padding = Padding((1, 4))
    given = rows(1, 2, 3, 4)
    run_joined([given], run, batches=True, largest=4, padding=padding)
    assert fed[0] is given["x"]
    for feeds in ([rows(5), rows(6)], [rows(7, 8, 9)]):
        run_joined(feeds, run, batches=True, largest=4, padding=padding)
    assert fed[1].ctypes.data == fed[2].ctypes.data  # memory stays
    assert fed[2][:, 0].tolist() == [7, 8, 9, 0]


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_a_filled_batch_that_fails_is_halved(bad):
    runner = Runner()
    feeds = [rows(i + 1, i + 20) for i in range(7)]
    feeds[bad] = rows(1, 13)
    answers = run_joined(feeds, runner, batches=True, largest=16, padding=Padding((1, 4, 16)))
    assert answers[bad] == Failed("thirteen is refused")
    for place, answer in enumerate(answers):
        if place != bad:
            np.testing.assert_array_equal(answer["y"], feeds[place]["x"] * 2)
    assert set(runner.sizes) <= {4, 16} and runner.sizes[0] == 16


def test_outputs_of_a_filled_batch_have_its_rows():
    """As many rows as were asked for, of a batch that was larger, are not theirs."""
    padding = Padding((4,))
    feeds = [rows(1), rows(2)]
    for answer in run_joined(
        feeds, lambda feed: {"y": feed["x"][:2]}, batches=True, largest=4, padding=padding
    ):
        assert "not one row for each of 4" in answer.message
    alone = run_joined([rows(1, 2, 3, 4, 5)], Runner(), batches=True, largest=4, padding=padding)
    assert alone == [Failed("a batch of 5 is larger than 4")]


def test_a_threshold_without_a_batch_is_not_filled_up():
    run = lambda feed: {"y": feed["x"] + feed["t"]}  # noqa: E731
    feeds = [{**rows(1, 2), "t": np.array([[5], [5]], np.float32)}]
    (answer,) = run_joined(
        feeds, run, batches=True, largest=4, shared={"t": 1}, padding=Padding((4,))
    )
    assert answer["y"][:, 0].tolist() == [6, 7]


def test_rows_of_another_shape_get_memory_of_their_own():
    padding = Padding((4,))
    sums = lambda feed: {"y": feed["x"].sum(axis=1, keepdims=True)}  # noqa: E731
    for shape, kind in (((3, 2), np.float32), ((2, 5), np.float32), ((1, 5), np.float16)):
        feed = {"x": np.ones(shape, kind)}
        (answer,) = run_joined([feed], sums, batches=True, largest=4, padding=padding)
        assert answer["y"].tolist() == [[shape[1]]] * shape[0]


@given(st.integers(1, 300))
def test_the_cheapest_runs_take_every_row_and_never_cost_more_than_one(count):
    """Against every way there is, by brute force over what is left."""
    sizes = (1, 4, 16, 64)
    costs = {0: 0}
    for rows_left in range(1, count + 1):
        costs[rows_left] = min(costs[rows_left - min(size, rows_left)] + size + 6 for size in sizes)
    left, spent = count, 0
    while left:
        taken = next_run(sizes, left)
        spent += size_for(sizes, taken) + 6
        left -= taken
    assert left == 0 and spent == costs[count]


def test_a_turn_is_run_in_the_cheapest_sizes():
    """17 rows are 16 and 1, not 64; a request of many rows keeps them together."""
    runner, padding = Runner(), Padding((1, 4, 16, 64))
    feeds = [rows(n) for n in range(20, 37)]
    answers = run_joined(feeds, runner, batches=True, largest=64, padding=padding)
    assert runner.sizes == [16, 1]
    for feed, answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], feed["x"] * 2)
    runner.sizes.clear()
    feeds = [rows(1), rows(*range(20, 40)), rows(2)]
    answers = run_joined(feeds, runner, batches=True, largest=64, padding=padding)
    assert sum(runner.sizes) <= 96 and set(runner.sizes) <= {1, 4, 16, 64}
    for feed, answer in zip(feeds, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], feed["x"] * 2)
