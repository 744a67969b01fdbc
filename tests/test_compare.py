"""Two runs compared: what is the same stays unsaid, and noise is no news."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from past_reports import (
    FILE,
    MACHINE,
    accuracy,
    by_file,
    evaluated,
    made,
    parity,
    report,
    timed,
    timings,
)
from simulated import detected, scenes

from boxwright.comparison import Comparison, compare
from boxwright.comparison.tables import markdown_from_comparison, note_lines
from boxwright.datasets import open_dataset
from boxwright.evaluate import evaluate
from boxwright.loading import load
from boxwright.matches_file import MATCHES_FILE, read_matches, write_matches
from boxwright.measurement.records import Noise, Round
from boxwright.measurement.statistics import independent_ratio_interval
from boxwright.report import Report
from boxwright.significance import Matches, interval, map_of, matches_from_pictures
from boxwright.types import ClassAccuracy


def detections(noise_px: float, seed: int = 0) -> tuple[list, Matches]:
    """The same 80 pictures, with boxes that are so far beside their objects."""
    truth = scenes(np.random.default_rng(1), 80)
    pictures = detected(truth, np.random.default_rng(seed), noise_px=noise_px)
    return pictures, matches_from_pictures(pictures, 1, 300, "f" * 64)


GOOD, SAME, BAD = detections(5.0), detections(5.0, seed=1), detections(25.0)


def with_accuracy(found: tuple[list, Matches], **changed: object) -> Report:
    return report(accuracy=(evaluated(accuracy(*found, **changed)),))


def of_accuracy(first: tuple, second: tuple, **changed: object) -> Comparison:
    return compare(
        with_accuracy(first),
        with_accuracy(second, **changed),
        before_matches=by_file(first[1]),
        after_matches=by_file(second[1]),
        resamples=300,
    )


def of_latency(before, after, **changed: object) -> Comparison:
    return compare(report(benchmark=timings(before)), report(benchmark=timings(after, **changed)))


def test_a_run_has_not_changed_against_itself():
    one = report(accuracy=(evaluated(accuracy(*GOOD)),), benchmark=timings(timed()))
    same = compare(one, one, before_matches=by_file(GOOD[1]), after_matches=by_file(GOOD[1]))
    assert same.request == same.source == same.environment == same.flips == ()
    assert [f.change for f in same.files] == ["same"]
    [a], [m] = same.accuracy, same.latency
    assert (a.verdict, a.difference, a.low, a.high, a.classes, a.note) == (
        "no significant change", 0, 0, 0, (), "",
    )  # fmt: skip
    assert (m.verdict, m.ratio, m.reasons) == ("no significant change", 1, ())
    assert note_lines(same) == []
    for respect in ("accuracy", "latency", "parity"):
        assert same.failures(respect) == [] and same.unjudged(respect) == ""


# Accuracy


def test_a_damaged_model_is_worse_and_a_mended_one_better():
    worse = of_accuracy(GOOD, BAD)
    [row] = worse.accuracy
    assert row.verdict == "worse" and row.low < row.difference < row.high < 0
    assert row.difference == pytest.approx(map_of(BAD[1]) - map_of(GOOD[1]))
    [lost] = row.classes
    assert lost.name == "ant" and lost.after < lost.before and lost.objects > 80
    [text] = worse.failures("accuracy")
    assert text.startswith(f"{FILE} in onnxruntime (-0.") and not worse.failures("latency")
    assert worse.failures("accuracy", max_drop=-row.difference + 0.001) == []
    better = of_accuracy(BAD, GOOD)
    assert better.accuracy[0].verdict == "better" and not better.failures("accuracy")


def test_another_draw_of_the_same_skill_is_no_change():
    [row] = of_accuracy(GOOD, SAME).accuracy
    assert row.difference != 0 and row.verdict == "no significant change"
    assert row.low < 0 < row.high


# name: (what is passed or changed, words of the note)
NO_SIGNIFICANCE = {
    "no sidecars": ({}, "run A kept no matches of it"),
    "one sidecar": ({"before_matches": by_file(GOOD[1])}, "run B kept no matches of it"),
    "of another file": (
        {"before_matches": by_file(GOOD[1]), "after_matches": {("x", "y"): BAD[1]}},
        "run B kept no matches of it",
    ),
    "of another run": (
        {"before_matches": by_file(GOOD[1]), "after_matches": by_file(SAME[1])},
        "the matches of run B are not of its report",
    ),
}


@pytest.mark.parametrize("name", NO_SIGNIFICANCE)
def test_without_matches_significance_is_unknown(name):
    matches, text = NO_SIGNIFICANCE[name]
    found = compare(with_accuracy(GOOD), with_accuracy(BAD), **matches)
    [row] = found.accuracy
    assert row.verdict == "unknown" and row.low is None and row.note.endswith(text)
    assert text in found.unjudged("accuracy") and found.failures("accuracy") == []


def test_other_data_are_not_compared():
    other = dataclasses.replace(BAD[1], fingerprint="0" * 64)
    found = of_accuracy(GOOD, (BAD[0], other), dataset="other data")
    assert found.accuracy == ()
    [note] = found.notes["accuracy"]
    assert "run A measured on some data, run B on other data, which are different data" in note
    assert found.unjudged("accuracy") == note


def test_pictures_that_one_run_could_not_read_leave_no_interval():
    short = matches_from_pictures(GOOD[0][:-1], 1, 300, "f" * 64)
    [row] = of_accuracy(GOOD, (GOOD[0][:-1], short)).accuracy
    assert row.verdict == "unknown"
    assert "run A measured 80 pictures, run B 79" in row.note


def test_other_settings_are_said():
    [row] = of_accuracy(GOOD, BAD, evaluation=accuracy(*BAD).operating).accuracy
    assert row.note == "the curves were measured at other settings" and row.verdict == "worse"


def test_classes_that_changed_most_come_first():
    def classes(*values: float) -> dict[str, ClassAccuracy]:
        return {f"c{i}": ClassAccuracy(v, v, 9) for i, v in enumerate(values)}

    first = with_accuracy(GOOD, per_class=classes(*[0.5] * 9))
    second = with_accuracy(GOOD, per_class=classes(0.5, 0.4, 0.9, 0.5, 0.2, 0.501, 0.6, 0.7, 0.45))
    [row] = compare(first, second).accuracy
    assert [c.name for c in row.classes] == ["c2", "c4", "c7", "c1", "c6"]


def test_what_one_run_alone_measured_is_said():
    one, both = evaluated(accuracy(*GOOD)), evaluated(accuracy(*GOOD), "n.onnx")
    found = compare(report(accuracy=(one,)), report(accuracy=(one, both)))
    assert found.notes["accuracy"] == ("only run B measured accuracy of n.onnx in onnxruntime",)
    assert compare(report(), report(accuracy=(one,))).notes["accuracy"] == (
        "accuracy is not compared: run A has none",
    )


# Latency

NOISY = Noise("noisy", ("spread: the samples vary by 31.0 %",), "wait")
ELSEWHERE = {**MACHINE, "processor": "Another"}

# name: (run A, run B, changed in run B's benchmark, verdict, words of the reason)
LATENCY = {
    "20 % slower": (timed(10), timed(12, 1), {}, "slower", ""),
    "20 % faster": (timed(12), timed(10, 1), {}, "faster", ""),
    "the same": (timed(10), timed(10, 1), {}, "no significant change", ""),
    "within what a quiet run drifts": (timed(10), timed(10.4), {}, "no significant change", ""),
    "noise unknown": (timed(10), timed(12, noise=Noise("unknown")), {}, "slower", ""),
    "noisy A": (timed(10, noise=NOISY), timed(12), {}, "undecided", "run A was noisy: spread"),
    "noisy B": (timed(10), timed(12, noise=NOISY), {}, "undecided", "run B was noisy: spread"),
    "processor": (
        timed(10), timed(12), {"environment": ELSEWHERE}, "undecided",
        "other processor: A processor and Another",
    ),
    "cores": (
        timed(10), timed(12), {"environment": {**MACHINE, "cores": "8"}}, "undecided",
        "other cores: 4 and 8",
    ),
    "GPU": (
        timed(10), timed(12), {"environment": {**MACHINE, "gpu0": "H, 1, 2"}}, "undecided",
        "other GPU: none and H, 1",
    ),
    "runtime": (
        timed(10), timed(12, description="onnxruntime 2.0 (CPU, 2 threads)"), {}, "undecided",
        "other runtime: onnxruntime 1.0 (CPU, 2 threads) and onnxruntime 2.0",
    ),
    "threads": (timed(10), timed(12, threads=None), {}, "undecided", "threads: 2 and default"),
    "pictures": (timed(10), timed(12), {"pictures": "4 others"}, "undecided", "other pictures: 8"),
    "few rounds": (timed(10, rounds=4), timed(12), {}, "undecided", "too few rounds"),
}  # fmt: skip


@pytest.mark.parametrize("name", LATENCY)
def test_latency_verdicts(name):
    before, after, changed, verdict, reason = LATENCY[name]
    found = of_latency(before, after, **changed)
    [row] = found.latency
    assert row.verdict == verdict
    assert row.ratio == pytest.approx(row.after_ms / row.before_ms)
    assert [r for r in row.reasons if reason in r] == ([*row.reasons] if reason else [])
    assert bool(row.reasons) == (verdict == "undecided")
    assert bool(found.failures("latency")) == (verdict == "slower")


def test_a_slowdown_must_exceed_the_tolerance():
    found = of_latency(timed(10), timed(12, 1))
    [row] = found.latency
    assert row.low > 1.1 and row.ratio == pytest.approx(1.2, abs=0.02)
    assert found.failures("latency", max_slowdown=0.1) == [
        f"{FILE} in onnxruntime, batch 1 ({row.ratio:.2f} times as long)"
    ]
    assert found.failures("latency", max_slowdown=0.3) == []


def test_throughput_is_compared_by_the_time_of_a_picture():
    def load_of(per_s: float, seed: int) -> object:
        rng = np.random.default_rng(seed)
        rounds = tuple(Round(i, 0.0, per_s * (1 + 0.01 * rng.standard_normal())) for i in range(8))
        return dataclasses.replace(timed(), mode="throughput", concurrency=4, rounds=rounds)

    [row] = of_latency(load_of(100, 0), load_of(50, 1)).latency
    assert row.verdict == "slower" and row.ratio == pytest.approx(2, abs=0.05)
    assert row.before_ms == pytest.approx(10, abs=0.2) and row.concurrency == 4


def test_files_meet_by_name_whatever_the_folder():
    before = timed(10, name=f"runs/a/{FILE}")
    after = timed(10, name=f"{FILE} (onnxruntime)")
    other = timed(10, name="n.onnx", batch=8)
    found = compare(report(benchmark=timings(before)), report(benchmark=timings(after, other)))
    assert [row.file for row in found.latency] == [FILE]
    [note] = found.notes["latency"]
    assert note == "only run B timed n.onnx in onnxruntime (threads 2, batch 8)"
    assert compare(report(), report(benchmark=timings(before))).notes["latency"] == (
        "latency is not compared: run A has none",
    )


def test_rounds_are_drawn_whole_and_independently():
    """Rounds that differ make the interval wide, however many calls each has."""
    rng = np.random.default_rng(5)
    trials, inside = 60, 0
    for _ in range(trials):
        sides = [
            [(10 + r + rng.normal(0, 0.05, 20)).tolist() for r in rng.normal(0, 0.5, n)]
            for n in (12, 16)
        ]
        ratio, low, high = independent_ratio_interval(*sides, resamples=300)
        assert low <= ratio <= high
        inside += low <= 1 <= high
    assert inside >= 0.85 * trials
    assert independent_ratio_interval([[1.0]] * 4, [[1.0]] * 9) is None


# Everything else


def test_settings_files_and_parity():
    before = report(
        artifacts=(made(), made("old.onnx"), made("int8.onnx", "b" * 64)),
        parity={FILE: parity(0.01), "int8.onnx": parity(1.0, limit=8.0)},
    )
    after = report(
        boxwright="0.2.0",
        request={"source": "m.onnx", "nms": {"iou": 0.6}, "seed": 1},
        source={"asked": "m.onnx", "sha256": "t" * 64},
        environment={**MACHINE, "python": "3.12"},
        artifacts=(made(), made("int8.onnx", "c" * 64, 900, state="rejected"), made("new.onnx")),
        parity={FILE: parity(0.02), "int8.onnx": parity(9.0, limit=8.0)},
    )
    found = compare(before, after)
    assert [(d.name, d.before, d.after) for d in found.request] == [
        ("nms.iou", 0.7, 0.6),
        ("seed", None, 1),
    ]
    assert [d.name for d in found.source] == ["sha256"]
    assert [d.name for d in found.environment] == ["boxwright", "python"]
    assert {f.file: f.change for f in found.files} == {
        FILE: "same", "int8.onnx": "changed", "new.onnx": "added", "old.onnx": "removed",
    }  # fmt: skip
    boxes = found.parity[0]
    assert (boxes.before.file, boxes.before.measured) == (FILE, 0.01), "0.2 of its limit"
    assert (boxes.after.file, boxes.after.measured) == ("int8.onnx", 9.0)
    assert [p.check for p in found.parity] == ["raw boxes, px", "detections missing"]
    assert found.failures("parity") == ["int8.onnx (raw boxes, px)"]
    assert compare(after, before).failures("parity") == []
    text = markdown_from_comparison(found)
    assert "| request: nms.iou | 0.7 | 0.6 |" in text and "9 (limit 8) FAILED" in text
    assert "parity: int8.onnx FAILS now: raw boxes, px" in text
    assert "| int8.onnx | changed | 0.00 MB | 0.00 MB | 0.900 |" in text


def test_a_parity_check_without_a_limit_is_worst_when_it_is_not_zero():
    def missing(count: float) -> object:
        checks = parity().checks
        return dataclasses.replace(
            parity(), checks=(dataclasses.replace(checks[1], measured=count, passed=not count),)
        )

    one = report(parity={"a": missing(0), "b": missing(3)})
    assert compare(one, one).parity[0].after.file == "b"


# Command line


def stored(folder: Path, found: Report, matches: Matches | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(found.as_dict()))
    if matches is not None:
        write_matches(folder / MATCHES_FILE, by_file(matches))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two run directories: the second is slower and worse."""
    before = report(accuracy=(evaluated(accuracy(*GOOD)),), benchmark=timings(timed(10)))
    after = report(accuracy=(evaluated(accuracy(*BAD)),), benchmark=timings(timed(12, 1)))
    return (
        stored(tmp_path / "a", before, GOOD[1]),
        stored(tmp_path / "b", after, BAD[1]),
    )


def test_the_command(runs, cli):
    a, b = runs
    ran = cli("compare", a, b, "--resamples", 200)
    assert ran.code == 0 and not ran.err
    assert "WORSE" in ran.out and "SLOWER" in ran.out
    assert ran.out.splitlines()[-2:] == ["accuracy: 1 worse", "latency: 1 slower"]
    same = cli("compare", a / "report.json", a)
    assert same.out.splitlines()[-1] == "latency: 1 no significant change"
    data = json.loads(cli("compare", a, b, "--json").out)
    assert data["schema"] == 1 and data["before"]["name"] == str(a)
    assert data["accuracy"][0]["verdict"] == "worse" and data["accuracy"][0]["difference"] < 0
    text = cli("compare", a, b, "--markdown").out
    assert text.startswith("- A: ") and "| WORSE |" in text


# name: (order of the runs, options, exit status, words of the error)
FAIL_ON = {
    "accuracy": ("ab", ["accuracy"], 1, f"worse in accuracy: {FILE} in onnxruntime (-0."),
    "latency": ("ab", ["latency"], 1, f"latency: {FILE} in onnxruntime, batch 1 (1.2"),
    "all": ("ab", ["accuracy,latency,parity"], 1, "accuracy: "),
    "parity": ("ab", ["parity"], 0, ""),
    "better": ("ba", ["accuracy,latency"], 0, ""),
    "tolerated": ("ab", ["accuracy,latency", "--max-drop", 0.9, "--max-slowdown", 0.5], 0, ""),
    "exceeded": ("ab", ["latency", "--max-slowdown", 0.1], 1, "latency: "),
}


@pytest.mark.parametrize("name", FAIL_ON)
def test_fail_on(runs, cli, name):
    order, options, code, text = FAIL_ON[name]
    folders = [runs["ab".index(side)] for side in order]
    ran = cli("compare", *folders, "--resamples", 200, "--fail-on", *options)
    assert ran.code == code and "files: 1 same" in ran.out
    if code:
        assert text in ran.error and ran.error.startswith("--fail-on ")
    else:
        assert not ran.err


def test_noise_does_not_fail_but_is_said(tmp_path, cli):
    a = stored(tmp_path / "a", report(benchmark=timings(timed(10))))
    b = stored(tmp_path / "b", report(benchmark=timings(timed(20, noise=NOISY))))
    ran = cli("compare", a, b, "--fail-on", "latency")
    assert ran.code == 0 and "1 of 1 rows could not be judged and did not count" in ran.err
    assert f"latency undecided: run B was noisy ({FILE} in onnxruntime): spread: " in ran.out


def test_what_nothing_is_known_of_cannot_be_failed_on(tmp_path, cli, runs):
    bare = stored(tmp_path / "bare", report(parity={}))
    ran = cli("compare", runs[0], bare, "--fail-on", "accuracy")
    assert ran.code == 2
    assert ran.error.startswith("--fail-on accuracy: accuracy is not compared: run B has none; ")
    assert cli("compare", bare, bare, "--fail-on", "latency").code == 2
    assert cli("compare", bare, bare, "--fail-on", "parity").code == 2
    (runs[1] / MATCHES_FILE).unlink()
    ran = cli("compare", *runs, "--fail-on", "accuracy")
    assert ran.code == 2 and "significance unknown: run B kept no matches" in ran.error
    ran = cli("compare", *runs, "--fail-on", "accuracy,latency")
    assert ran.code == 1 and "worse in latency" in ran.error, "what is known comes first"


# name: (what lies there in place of run B, words of the error)
WRONG = {
    "missing": (lambda p: None, "b: there is no such file; name a run directory"),
    "no report": (lambda p: p.mkdir(), "b: there is no report.json in it"),
    "text": (lambda p: p.write_text("hello"), "it is no report that this version reads"),
    "binary": (lambda p: p.write_bytes(bytes(range(256))), "it is no report"),
    "foreign": (lambda p: p.write_text('{"schema": 2, "name": "x"}'), "KeyError"),
    "a list": (lambda p: p.write_text("[1]"), "it is no report"),
    "nested": (lambda p: p.write_text("[" * 100_000), "RecursionError"),
    "schema": (
        lambda p: p.write_text(json.dumps({**report().as_dict(), "schema": 1})),
        "schema 1, this version knows 2",
    ),
    "sidecar": (
        lambda p: (stored(p, report()) / MATCHES_FILE).write_bytes(b"PK"),
        "matches.npz: it holds no matches of ours",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_runs_are_one_line(tmp_path, cli, name):
    make, text = WRONG[name]
    make(tmp_path / "b")
    a = stored(tmp_path / "a", report())
    for folders in ((a, tmp_path / "b"), (tmp_path / "b", a)):
        ran = cli("compare", *folders)
        assert ran.code == 2 and text in ran.error and not ran.out


def test_wrong_requests(runs, cli):
    assert "did you mean accuracy?" in cli("compare", *runs, "--fail-on", "acuracy").error
    assert "it is empty" in cli("compare", *runs, "--fail-on", "").error
    assert "two forms" in cli("compare", *runs, "--json", "--markdown").error
    assert cli("compare", *runs, "--max-drop", 2).code == 2


# Real detections


def damaged(source: Path, target: Path) -> Path:
    """Shake the weights of a network's first layers."""
    model = onnx.load(source)
    rng = np.random.default_rng(0)
    kernels = [i for i in model.graph.initializer if len(i.dims) == 4][:6]
    for kernel in kernels:
        values = numpy_helper.to_array(kernel)
        noise = rng.normal(0, 0.25 * values.std(), values.shape)
        shaken = (values + noise).astype(values.dtype)
        kernel.CopyFrom(numpy_helper.from_array(shaken, kernel.name))
    onnx.save(model, target)
    return target


@pytest.mark.slow
def test_a_damaged_sample_is_found_out(tmp_path, cli):
    from boxwright.sample import onnx_file

    files = {"whole": onnx_file(), "damaged": damaged(onnx_file(), tmp_path / "damaged.onnx")}
    detectors = {n: load(f, "onnxruntime", threads=1, quiet=True) for n, f in files.items()}
    names = detectors["whole"].spec.class_names
    dataset = open_dataset("sample", class_names=names, pages=20)
    matches: dict[str, Matches] = {}
    found = evaluate(detectors, dataset, matches=matches, resamples=200)
    for name, own in found.items():
        detectors[name].close()
        assert map_of(matches[name]) == pytest.approx(own.map50_95, abs=1e-12)
        assert own.interval == interval(matches[name], resamples=200)
        stored(tmp_path / name, report(accuracy=(evaluated(own),)), matches[name])
    assert 0.1 < found["damaged"].map50_95 < found["whole"].map50_95 - 0.02
    [back] = read_matches(tmp_path / "whole" / MATCHES_FILE).values()
    assert map_of(back) == map_of(matches["whole"])
    ran = cli("compare", tmp_path / "whole", tmp_path / "damaged", "--fail-on", "accuracy")
    assert ran.code == 1 and "worse in accuracy" in ran.error
    ran = cli("compare", tmp_path / "damaged", tmp_path / "whole", "--fail-on", "accuracy")
    assert ran.code == 0 and ran.out.splitlines()[-1] == "accuracy: 1 better"
