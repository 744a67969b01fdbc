"""The report: its records, its page without a browser, and the verb that makes it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import report_of_a_run, report_of_records

from boxwright.measurement.statistics import median_interval
from boxwright.report import SOURCE, Choice, Report
from boxwright.report.html import html_from_report
from boxwright.report.plot_data import data_for_scripts, tradeoff
from boxwright.report.reading import report_from_file
from boxwright.report.subjects import file_of, front, labels, lineage, size_ratios, subjects
from boxwright.types import Target

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>window.hacked = 1</script>",
    "\"><img src=x onerror='window.hacked = 1'>",
    "<b>bold</b>",
    "<a href='javascript:window.hacked = 1'>link</a>",
    "&lt;amp&gt; & co",
    "{{ 7 * 7 }}{% raw %}",
    "$latex$ \\frac{1}{2}",
    "'single' \"double\" `back`",
    "%{x} ${window.hacked = 1}",
    "__proto__",
    "2026-01-01",
    "12",
    "日本語 שלום 😀",
    "line\u2028separator\u2029end",
    "<!-- comment",
    "x" * 300,
)


class Page(HTMLParser):
    """The page as a parser sees it: elements, attributes, and the text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = "data" if dict(attrs).get("id") == "data" else tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "data":
            self.data += data
        elif not self._inside:
            self.text += data
        if self._inside in ("data", "script"):
            self.scripts[-1] += data

    @property
    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements}

    def section(self, html: str, name: str) -> str:
        """Return the text of one section."""
        return Page(re.search(rf'<section id="{name}".*?</section>', html, re.S).group()).text


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of_records()


@pytest.fixture(scope="module")
def html(report) -> str:
    return html_from_report(report)


def test_a_report_survives_json(report):
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_another_schema_is_refused(report):
    with pytest.raises(ValueError, match="schema 99"):
        Report.from_dict({**report.as_dict(), "schema": 99})


def test_every_section_is_there(html, report):
    page = Page(html)
    wanted = {
        "summary", "files", "lineage", "parity", "accuracy", "latency", "tradeoff", "layers",
        "pictures", "environment",
    }  # fmt: skip
    assert wanted <= page.ids
    links = {a["href"][1:] for tag, a in page.elements if tag == "a" and a["href"][0] == "#"}
    assert wanted <= links <= page.ids
    assert page.text.count("Ship ") == 1 and report.choice.reason in page.text
    for made in report.artifacts:
        assert made.artifact.path.name in page.text and made.artifact.sha256 in page.text
    for text in (*report.choice.cautions, *report.notes, report.command):
        assert text in page.text
    for _, line in report.commands:
        assert line in page.text


def test_figures_are_in_the_tables_without_scripts(html, report):
    page = Page(html)
    for row in report.accuracy:
        assert f"{row.accuracy.map50_95:.4f}" in page.section(html, "accuracy")
    for measured in report.benchmark.measured:
        assert f"{measured.main.p50:.2f}" in page.section(html, "latency")
        assert f"{measured.latencies['infer'].p50:.2f}" in page.section(html, "latency")
    for parity in report.parity.values():
        for check in parity.checks:
            assert check.name in page.section(html, "parity")
    layers = page.section(html, "layers")
    budget = next(a.budget for a in report.artifacts if a.budget)
    assert all(layer in layers for layer, _ in budget["sensitivities"])
    assert "the last third of the rounds was 14 % slower" in page.section(html, "latency")
    assert "let the machine cool down" in page.section(html, "latency")


def test_the_page_names_no_place_that_it_loads_from(html):
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not [a for a in attributes if a.startswith("on")], tag
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "connect-src" not in policy
    assert "unsafe" not in policy.split("script-src")[1]


def test_the_same_report_gives_the_same_page(report, html):
    assert html_from_report(Report.from_dict(json.loads(json.dumps(report.as_dict())))) == html


def test_data_without_plots_is_small(report, html):
    """Plots need 4.8 MB of plotly.js; a report that has none goes without it."""
    bare = dataclasses.replace(report, accuracy=(), benchmark=None, artifacts=(), parity={})
    assert len(html_from_report(bare)) < 200_000
    assert len(Page(html).data) < 200_000


# What is missing


def test_artifacts_and_parity_alone(report):
    small = dataclasses.replace(
        report,
        artifacts=tuple(dataclasses.replace(a, budget=None) for a in report.artifacts),
        accuracy=(),
        benchmark=None,
        pictures=(),
        choice=None,
        notes=("Accuracy was not measured: --data is not given.", "Latency: --no-benchmark."),
        commands=(),
        command="",
    )
    html = html_from_report(small)
    page = Page(html)
    assert "This report recommends no file" in page.text
    assert "--data is not given" in page.section(html, "accuracy")
    assert "--no-benchmark" in page.section(html, "latency")
    assert "nothing to weigh" in page.section(html, "tradeoff")
    assert "No INT8 file" in page.section(html, "layers")
    assert "No pictures" in page.section(html, "pictures")
    assert "No commands" in page.section(html, "environment")
    assert "None" not in page.text and "undefined" not in page.text.lower()


def test_only_rejected_files(report):
    names = [a.artifact.path.name for a in report.artifacts]
    bad = dataclasses.replace(report_of_records(rejected=names), choice=None)
    html = html_from_report(bad)
    page = Page(html)
    assert "Nothing can be shipped" in page.text and "6 of 6 files were rejected" in page.text
    assert not [p for p in tradeoff(subjects(bad)) if p["front"]]
    opened = [a for t, a in page.elements if t == "details" and "open" in a]
    assert len(opened) == 6, "what failed lies open"


def test_no_file_can_be_recommended(report):
    html = html_from_report(dataclasses.replace(report, choice=Choice("", "", "All are worse.")))
    assert "No file can be recommended" in html and "All are worse." in html


def test_an_empty_report(report):
    empty = dataclasses.replace(
        report, artifacts=(), parity={}, accuracy=(), benchmark=None, pictures=(), choice=None,
        environment={}, source={}, request={}, notes=(), commands=(), command="",
    )  # fmt: skip
    assert "There is no file in this report" in html_from_report(empty)


@pytest.mark.parametrize(
    "budget",
    [
        {"kept_float": [], "layers": 3, "reference": 0.5, "measured": 0.5, "tried": [[0, 0.5]]},
        {"sensitivities": [["a", 0.1]]},
        {"tried": [[0, 0.4], [1, 0.5]], "max_drop": 0.1},
        {"kept_float": ["a"], "reference": None, "measured": math.nan, "within": False},
    ],
    ids=["nothing was sensitive", "sensitivities alone", "tried alone", "hardly anything"],
)
def test_budgets_in_part(report, budget):
    made = dataclasses.replace(report.artifacts[0], budget=budget)
    html = html_from_report(dataclasses.replace(report, artifacts=(made,)))
    assert "layers stay in float" in " ".join(Page(html).section(html, "layers").split())


def test_figures_that_are_no_numbers(report):
    accuracy = dataclasses.replace(
        report.accuracy[0].accuracy, map50_95=None, map50=math.nan, f1=None, interval=None
    )
    row = dataclasses.replace(report.accuracy[0], accuracy=accuracy)
    html = html_from_report(dataclasses.replace(report, accuracy=(row,)))
    assert "nan" not in Page(html).section(html, "accuracy").lower()
    json.loads(Page(html).data, parse_constant=lambda text: pytest.fail(text))


@pytest.mark.parametrize("measure", [
    "box mAP50-95", "mask mAP50-95", "OKS mAP50-95", "rotated mAP50-95", "top-1",
])  # fmt: skip
def test_figures_of_the_tasks_have_their_own_name(report, measure):
    """No figure is taken for the boxes', in tables, facts, plots and the recommendation."""
    top, beside = measure == "top-1", {"other figure": 0.4321}
    changes = {"measure": measure, "beside": beside, "top1": 0.625 if top else None}
    if top:
        changes |= {"map50_95": None, "per_class": {}, "pr_curve": {}, "precision": None}
    rows = tuple(
        dataclasses.replace(r, accuracy=dataclasses.replace(r.accuracy, **changes))
        for r in report.accuracy
    )
    made = tuple(
        dataclasses.replace(a, budget={**a.budget, "measure": measure}) if a.budget else a
        for a in report.artifacts
    )
    whole = dataclasses.replace(report, accuracy=rows, artifacts=made, choice=None)
    assert Report.from_dict(json.loads(json.dumps(whole.as_dict()))) == whole
    html = html_from_report(whole)
    page = Page(html)
    for name in ("accuracy", "files", "tradeoff", "layers"):
        text = re.sub(r"(box|mask|OKS|rotated) mAP50-95", "", page.section(html, name))
        assert "mAP50-95" not in text, name
    section = page.section(html, "accuracy")
    assert measure in section and "other figure" in section and "0.4321" in section
    assert ("0.6250" in section) == top and ("Recall" in section) != top
    data = json.loads(page.data)
    assert {p["measure"] for p in data["tradeoff"]} == {measure}
    assert {b["measure"] for b in data["budgets"]} == {measure}


# What is hostile


@pytest.fixture(scope="module")
def hostile() -> Report:
    return hostile_report()


def hostile_report() -> Report:
    """Return a report all of whose names want out."""
    evil = HOSTILE[1]
    report = report_of_records(name=HOSTILE[2], class_names=HOSTILE, picture=evil)
    return dataclasses.replace(
        report,
        command=f"boxwright run {evil}",
        notes=tuple(HOSTILE),
        commands=((evil, evil),),
        environment={evil: evil},
        request={evil: list(HOSTILE)},
        source={**report.source, "asked": evil, "kind": evil},
        choice=dataclasses.replace(report.choice, reason=evil, cautions=tuple(HOSTILE)),
    )


def test_hostile_names_are_text(hostile):
    html = html_from_report(hostile)
    page, plain = Page(html), Page(html_from_report(report_of_records()))
    assert len(page.scripts) == len(plain.scripts), "no script came in"
    allowed = {tag for tag, _ in plain.elements}
    assert {tag for tag, _ in page.elements} <= allowed, "no element came in"
    assert not [t for t, a in page.elements for name in a if name.startswith("on")]
    for name in HOSTILE:
        assert name in page.text, "it is shown as it is"
    data = json.loads(page.data)
    assert data["accuracy"]["classes"] == list(HOSTILE)
    assert not set("<>&\u2028\u2029") & set(page.data)


def test_half_letters_do_not_break_the_page(report):
    html = html_from_report(dataclasses.replace(report, notes=("half \ud83d a letter",)))
    assert "half ? a letter" in html.encode().decode()


# What goes with what


def test_measurements_find_their_files(report):
    known = subjects(report)
    titles = [(s.file, s.runtime) for s in known]
    assert titles[0] == (SOURCE, "pytorch") and len(titles) == len(set(titles)) == 13
    assert all(s.measured for s in known)
    assert [s.evaluated is not None for s in known].count(True) == len(report.accuracy)
    assert [s.label for s in known if s.chosen] == ["int8.end2end"]
    measured = report.benchmark.measured[1]
    for path, file in (
        ("runs/a b/yolo11n.fp32.onnx", "yolo11n.fp32.onnx"),
        ("C:\\runs\\yolo11n.fp32.onnx", "yolo11n.fp32.onnx"),
        ("models/yolo11n.pt", SOURCE),
    ):
        assert file_of(dataclasses.replace(measured, file=path), report) == file


def test_labels_tell_files_apart():
    assert labels(report_of_records())["yolo11n.fp16.end2end.onnx"] == "fp16.end2end"
    report = report_of_records(targets=(Target("fp32"), Target("fp16")))
    first, second = report.artifacts
    twin = dataclasses.replace(first.artifact, path=Path("yolo11n.fp16"))
    alike = dataclasses.replace(
        report, artifacts=(dataclasses.replace(first, artifact=twin), second)
    )
    assert set(labels(alike).values()) == {SOURCE, "yolo11n.fp16", "yolo11n.fp16.onnx"}


def test_sizes_are_compared_with_fp32_of_the_same_outputs(report):
    ratios = size_ratios(report)
    assert ratios["yolo11n.fp32.end2end.onnx"] == 1.0
    assert ratios["yolo11n.int8.onnx"] == pytest.approx(2.99 / 10.69)


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 0.5), (2, 0.4)], [0]),
        ([(2, 0.7), (1, 0.5), (3, 0.7)], [1, 0]),
        ([(1, 0.5), (1, 0.6)], [1]),
        ([(1, 0.5), (1, 0.5)], [0, 1]),
    ],
    ids=["none", "one", "slower and worse", "same worth but slower", "same cost", "equal"],
)
def test_the_front(points, wanted):
    assert front(points) == wanted


def test_the_trade_off_has_intervals_and_leaves_out_what_cannot_be_shipped(report):
    known = subjects(report)
    points = tradeoff(known)
    assert len(points) == len(report.accuracy)
    assert all(p["y_interval"][0] < p["y"] < p["y_interval"][1] for p in points)
    assert all(p["x_interval"][0] <= p["x"] <= p["x_interval"][1] for p in points)
    on_front = [known[p["series"]].file for p in points if p["front"]]
    assert on_front and SOURCE not in on_front
    rejected = report_of_records(rejected=on_front)
    assert not {known[p["series"]].file for p in tradeoff(subjects(rejected)) if p["front"]} & set(
        on_front
    )


def test_the_interval_of_a_median_holds_it_and_needs_rounds():
    rounds = [[1.0, 2.0], [2.0, 3.0], [1.5, 2.5], [2.0, 2.0], [1.0, 9.0]]
    low, high = median_interval(rounds)
    assert 1.0 <= low <= 2.0 <= high <= 9.0 and low < high
    assert median_interval(rounds[:4]) is None


def test_lineage_is_a_tree_from_the_source(report):
    (tree,) = lineage(report)
    assert tree.name == "models/yolo11n.pt" and [c.name for c in tree.children] == [
        "yolo11n.fp32.onnx"
    ]
    below = {c.name: [g.name for g in c.children] for c in tree.children[0].children}
    assert below == {
        "yolo11n.fp32.end2end.onnx": [],
        "yolo11n.fp16.onnx": ["yolo11n.fp16.end2end.onnx"],
        "yolo11n.int8.onnx": ["yolo11n.int8.end2end.onnx"],
    }


def test_lineage_shows_every_file_once_whatever_the_hashes_say(report):
    """Parents that are not there, and hashes that point in a circle."""
    a, b, *rest = report.artifacts

    def child(made, sha256, parent):
        artifact = dataclasses.replace(made.artifact, sha256=sha256, parent=parent)
        return dataclasses.replace(made, artifact=artifact)

    odd = dataclasses.replace(report, artifacts=(child(a, "1", "2"), child(b, "2", "1"), *rest))
    seen: list[str] = []

    def walk(nodes):
        for node in nodes:
            seen.extend([node.name] if node.made else [])
            walk(node.children)

    walk(lineage(odd))
    assert sorted(seen) == sorted(m.artifact.path.name for m in odd.artifacts)
    assert "not in this report" in [n.name for n in lineage(odd)]


def test_equal_curves_are_kept_once_and_samples_are_rounded(report):
    data = data_for_scripts(report)
    rows = data["accuracy"]["rows"]
    assert len(data["accuracy"]["curves"]) < sum(len(r["curves"]) + 1 for r in rows)
    samples = [v for r in data["latency"]["rows"] for v in r["samples"]["total"]]
    assert samples and all(len(str(v)) <= 6 for v in samples)
    assert data["latency"]["rows"][0]["samples"]["copy_in"] == []


# The verb


@pytest.fixture
def run_folder(tmp_path, report) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report.as_dict()), encoding="utf-8")
    return folder


def test_the_verb_writes_the_page_beside_the_report(cli, run_folder, html):
    done = cli("report", run_folder)
    page = run_folder / "report.html"
    assert done.code == 0 and done.out.strip() == str(page)
    assert page.read_text(encoding="utf-8") == html
    assert sorted(p.name for p in run_folder.iterdir()) == ["report.html", "report.json"]
    again = cli("report", run_folder / "report.json")
    assert again.code == 2 and "it is there already; use --force" in again.error
    assert cli("report", run_folder / "report.json", "--force").code == 0
    other = run_folder.parent / "elsewhere" / "page.html"
    assert cli("report", run_folder, "--out", other).code == 0 and other.is_file()


def test_the_verb_never_writes_over_the_report(cli, run_folder, snapshot):
    before = snapshot(run_folder)
    done = cli("report", run_folder, "--out", run_folder / "report.json", "--force")
    assert done.code == 2 and "it is the report itself" in done.error
    assert snapshot(run_folder) == before


def _changed(data, path, value):
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "there is no such file"),
        (b"", "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[1]", "it is no report of Boxwright"),
        (b'{"schema": 1, "measured": []}', "it is no report of Boxwright"),
        (b'{"schema": 1, "artifacts": []}', "it is of schema 1, and this version knows 2"),
        (b'{"schema": 2, "artifacts": []}', "it is damaged (choice is missing)"),
    ],
    ids=[
        "missing", "empty", "no text", "too deep", "a list", "a benchmark", "older", "cut short",
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(cli, tmp_path, content, found):
    file = tmp_path / "report.json"
    if content is not None:
        file.write_bytes(content)
    done = cli("report", file)
    assert done.code == 2 and found in done.error
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_report_is_refused(cli, tmp_path):
    done = cli("report", tmp_path)
    assert done.code == 2 and "it holds no report.json" in done.error


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("accuracy", 0, "accuracy", "map50_95"), "high"),
        (("benchmark", "measured", 0, "images_per_s"), "fast"),
        (("parity",), []),
        (("pictures", 0, "found", SOURCE, 0, "xyxy"), [1, 2]),
        (("pictures", 0, "truth", 0, "class_name"), 7),
        (("artifacts", 0, "state"), "wonderful"),
        (("notes",), [1]),
    ],
    ids=lambda v: ".".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_wrong_types_are_refused(run_folder, cli, path, value):
    file = run_folder / "report.json"
    data = json.loads(file.read_text())
    _changed(data, path, value)
    file.write_text(json.dumps(data))
    done = cli("report", file)
    assert done.code == 2 and "it is damaged" in done.error
    assert not (run_folder / "report.html").exists()


def test_a_full_disk_leaves_no_page(cli, run_folder, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    done = cli("report", run_folder)
    assert done.code == 2 and "the disk is full" in done.error
    assert [p.name for p in run_folder.iterdir()] == ["report.json"]


# The documentation

# Keys below these are names of files, classes, libraries and the like.
_FREE = {
    ("environment",), ("request",), ("parity",), ("artifacts", "made_with"), ("source", "files"),
    ("accuracy", "accuracy", "per_class"), ("accuracy", "accuracy", "pr_curve"),
    ("accuracy", "accuracy", "problems"), ("accuracy", "accuracy", "environment"),
    ("parity", "*", "environment"), ("benchmark", "environment"), ("benchmark", "settings"),
    ("benchmark", "measured", "latencies"), ("pictures", "found"),
}  # fmt: skip


def _keys(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            if path not in _FREE:
                yield key
            yield from _keys(inner, (*path, "*" if path in _FREE else key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _keys(inner, path)


def test_every_key_is_documented(report):
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    known = set(re.findall(r"`([a-z0-9_]+)`", text))
    keys = set(_keys(report.as_dict()))
    assert len(keys) > 120
    assert not sorted(keys - known)


@pytest.mark.slow
def test_a_real_run_becomes_a_page(tmp_path):
    report = report_of_a_run(tmp_path / "runs", pages=3, iterations=5, shown=1)
    folder = next((tmp_path / "runs").iterdir())
    (folder / "report.json").write_text(json.dumps(report.as_dict()), encoding="utf-8")
    assert report_from_file(folder / "report.json") == report
    page = Page(html_from_report(report))
    known = subjects(report)
    assert [s.file for s in known] == [SOURCE, *(a.artifact.path.name for a in _ordered(report))]
    assert all(s.evaluated and s.measured for s in known)
    assert len(tradeoff(known)) == 5
    assert len(lineage(report)) == 1 and "text_block" in page.text


def _ordered(report):
    from boxwright.report.subjects import in_order

    return in_order(report.artifacts)
