"""The page in a real browser: plots are drawn, controls work, and no name runs as a script."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from browser import Browser, chromium
from report_samples import STREET, report_of_records
from test_report import HOSTILE, hostile_report

from boxwright.report.html import html_from_report

PLOTS = {
    "curves-plot", "classes-plot", "latency-plot", "spans-plot", "tradeoff-plot", "layers-plot-0",
    "tried-plot-0",
}  # fmt: skip
_CONTRAST = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const back = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const details of document.querySelectorAll('details')) details.open = true;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim()) continue;
    if (e.closest('script, style, noscript, svg')) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(style.color)), light(back(e))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24;
    seen += 1;
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) bad.push(e.className + ': ' + e.textContent);
  }
  for (const text of document.querySelectorAll('.canvas svg text')) {
    if (text.closest('.modebar, .legend') || !text.textContent.trim()) continue;
    const [a, b] = [light(parse(getComputedStyle(text).fill)), light(back(text.closest('.canvas')))]
      .sort((x, y) => y - x);
    seen += 1;
    if ((a + 0.05) / (b + 0.05) < 3) bad.push('plot: ' + text.textContent);
  }
  return [seen, bad];
})()"""


@pytest.fixture(scope="module")
def browser():
    program = chromium()
    if program is None:
        pytest.skip(
            "there is no Chromium on PATH, and BOXWRIGHT_CHROMIUM names none: the report page's "
            "scripts are NOT tested"
        )
    with Browser(program) as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    full = report_of_records()
    many = tuple(f"class number {i}" for i in range(80))
    alone = dataclasses.replace(
        full, artifacts=tuple(dataclasses.replace(a, budget=None) for a in full.artifacts),
        accuracy=(), benchmark=None, pictures=(), choice=None,
    )  # fmt: skip
    slow = [
        dataclasses.replace(m, batch=8, images_per_s=m.images_per_s / 2)
        for m in full.benchmark.measured
    ]
    both = (*full.benchmark.measured, *slow)
    settings = dataclasses.replace(full.benchmark, measured=both)
    reports = {
        "full": full,
        "many": report_of_records(class_names=many),
        "alone": alone,
        "rejected": report_of_records(rejected=[a.artifact.path.name for a in full.artifacts]),
        "settings": dataclasses.replace(full, benchmark=settings),
        "hostile": hostile_report(),
    }
    for name, report in reports.items():
        (folder / f"{name}.html").write_bytes(html_from_report(report).encode())
    return {name: folder / f"{name}.html" for name in reports}


@pytest.fixture
def opened(browser, pages):
    """Open a page at a usual size; at the end nothing may have been complained of or asked for."""
    browser.prefer("light")
    browser.size(1280, 900)
    last: list[Path] = []

    def open_page(name: str) -> Browser:
        last.append(pages[name])
        browser.open(pages[name])
        assert browser.run("document.documentElement.dataset.ready") == "true"
        return browser

    yield open_page
    browser.run("localStorage.clear()")
    assert browser.complaints == []
    assert browser.requests == [p.absolute().as_uri() for p in last[-1:]]


def _drawn(browser: Browser) -> dict[str, int]:
    return browser.run(
        "Object.fromEntries([...document.querySelectorAll('.canvas')].map((e) =>"
        "[e.id, e.querySelector('.main-svg') ? Number(e.dataset.drawn) : 0]))"
    )


def _choose(browser: Browser, selector: str, value: str) -> None:
    """Choose as a reader does: the value changes and the page is told."""
    browser.run(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
        f"e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('input', {bubbles: true}));"
        "e.dispatchEvent(new Event('change', {bubbles: true})); return e.value; })()"
    )


def _count(browser: Browser, selector: str) -> int:
    return browser.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def test_every_plot_is_drawn_with_its_data(opened):
    page = opened("full")
    assert _drawn(page) == dict.fromkeys(PLOTS, 1)
    assert _count(page, "#curves-plot .scatterlayer .trace") == 10
    assert _count(page, "#latency-plot .boxlayer .trace") == 13
    assert _count(page, "#latency-plot .boxlayer .point") == 13 * 50
    assert _count(page, "#spans-plot .barlayer .trace") == 4, "copies took no time"
    assert _count(page, "#tradeoff-plot .scatterlayer .trace") == 11, "ten points and the front"
    assert _count(page, "#tradeoff-plot .errorbar") == 20 // 2
    bars = page.run(
        "[...document.querySelectorAll('#layers-plot-0 .barlayer .trace')].map((t) =>"
        "[...t.querySelectorAll('.point path')].filter((e) => e.getBBox().width > 0).length)"
    )
    assert bars == [6, 19], "in float, and not"
    assert _count(page, "#tried-plot-0 .scatterlayer .trace") == 4


@pytest.mark.parametrize("name", ["alone", "rejected"])
def test_reports_with_little_to_show(opened, name):
    page = opened(name)
    drawn = _drawn(page)
    assert drawn == ({} if name == "alone" else dict.fromkeys(PLOTS, 1))
    if name == "rejected":
        assert page.run("document.querySelector('#tradeoff-plot').data[0].x.length") == 0
        assert _count(page, "details.parity.failed[open]") == 6


def test_the_theme_follows_the_system_and_the_button(opened):
    page = opened("full")
    ink = (
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('#curves-plot .xtick text')).fill]"
    )
    light = page.run(ink)
    page.prefer("dark")
    dark = page.run(ink)
    assert dark[0] != light[0] and dark[1] != light[1], "page and plots change"
    page.click("#theme")
    assert page.run(ink) == light
    assert page.run("document.querySelector('#theme').textContent") == "Dark"
    assert set(_drawn(page).values()) == {3}
    page.prefer("light")
    page.click("#theme")
    assert page.run(ink) == dark


def test_a_class_is_chosen(opened):
    page = opened("full")
    before = page.run("document.querySelector('#curves-plot').data[0].y")
    assert _count(page, "#curve-class option") == len(STREET) + 1
    _choose(page, "#curve-class", str(STREET.index("cat")))
    after = page.run("document.querySelector('#curves-plot').data[0].y")
    assert len(after) == 101 and after != before


def test_many_classes_are_cut_and_ordered(opened):
    page = opened("many")
    ticks = "[...document.querySelectorAll('#classes-plot .ytick text')].map((e) => e.textContent)"
    assert len(page.run(ticks)) == 20
    page.click("#class-all")
    assert len(page.run(ticks)) == 80
    _choose(page, "#class-order", "name")
    assert page.run(ticks)[:3] == ["class number 0", "class number 1", "class number 2"]
    _choose(page, "#class-order", "lowest")
    values = page.run("document.querySelector('#classes-plot').data[0].x")
    assert values[0] < 0.3 < values[-1]


def test_a_bar_that_the_reader_added_stays(opened):
    page = opened("many")
    page.run("Plotly.restyle('classes-plot', {visible: true}, [1]).then(() => 0)")
    _choose(page, "#class-order", "name")
    assert page.run("document.querySelector('#classes-plot').data[1].visible") is True
    assert page.run("document.querySelector('#classes-plot').data[2].visible") == "legendonly"


def test_tables_sort_by_mouse_and_key(opened):
    page = opened("full")
    column = page.run(
        "[...document.querySelectorAll('#files-table thead th')]"
        ".findIndex((e) => e.textContent === 'p50 ms')"
    )
    values = (
        f"[...document.querySelectorAll('#files-table tbody tr')]"
        f".map((r) => Number(r.cells[{column}].dataset.sort))"
    )
    head = f"#files-table thead th:nth-child({column + 1})"
    before = page.run(values)
    page.click(f"{head} button")
    assert page.run(values) == sorted(before, reverse=True) != before
    assert page.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == "descending"
    page.run(f"document.querySelector('{head} button').focus()")
    page.key("Enter")
    assert page.run(values) == sorted(before)
    page.click("#files-table thead th:nth-child(1) button")
    names = page.run(
        "[...document.querySelectorAll('#files-table tbody tr .name')].map((e) => e.textContent)"
    )
    assert names == sorted(names) and _count(page, "#files-table [aria-sort]") == 1


def test_what_was_not_measured_stays_at_the_end(opened):
    page = opened("full")
    page.click("#files-table thead th:nth-child(6) button")
    last = "document.querySelector('#files-table tbody tr:last-child').cells[5].textContent"
    assert page.run(last) == "–"
    page.click("#files-table thead th:nth-child(6) button")
    assert page.run(last) == "–"


def test_spans_and_settings_are_chosen(opened):
    page = opened("settings")
    assert _count(page, "#setting option") == 2
    before = page.run("document.querySelector('#latency-plot').data[0].x")
    _choose(page, "#span", "read")
    assert page.run("document.querySelector('#latency-plot').data[0].x") != before
    _choose(page, "#setting", "1")
    assert page.run("document.querySelector('#latency-plot').data.length") == 13
    assert len(page.run("document.querySelector('#tradeoff-plot').data")) == 11, "one setting"


def test_pictures(opened):
    page = opened("full")
    assert page.run("document.querySelector('#picture-file').selectedOptions[0].textContent") == (
        "int8.end2end"
    )
    text = "document.querySelector('#picture-count').textContent"
    assert page.run(text) == (
        "8 boxes have a partner; 1 only in source, 0 only in int8.end2end. 9 objects are labelled."
    )
    assert _count(page, "#pane-0 .box") == 9 and _count(page, "#pane-1 .box") == 8
    assert _count(page, "#pane-0 .box.alone") == 1 and _count(page, "#pane-1 .box.alone") == 0
    dashes = "getComputedStyle(document.querySelector('#pane-0 .box.alone')).strokeDasharray"
    assert page.run(dashes) != "none"
    _choose(page, "#picture-score", "0.6")
    assert _count(page, "#pane-0 .box") == 5
    assert page.run("document.querySelector('#picture-score-text').textContent") == "0.60"
    _choose(page, "#picture-score", "0")
    page.click("#picture-truth")
    assert _count(page, "#pane-0 .box.truth") == 9 and _count(page, "#pane-1 .box.truth") == 9
    page.click("#picture-names")
    assert _count(page, "#pane-0 text") == 0
    _choose(page, "#picture-file", "1")
    assert _count(page, "#pane-0 .box.alone") == 0
    page.click("#picture-on")
    assert page.run("document.querySelector('#pane-0 img').alt") == "second crossing.jpg"
    assert _count(page, ".box.truth") == 1, "only the legend's: nothing is labelled here"
    page.run("document.querySelector('#pane-0 img').decode()")
    assert page.run("document.querySelector('#pane-0 img').naturalWidth") == 360


def test_copies_say_what_they_did(opened, browser):
    page = opened("full")
    browser.send(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    page.click("#summary .copy")
    said = (
        "new Promise((done) => { const wait = () => { const t = document.querySelector('#said')"
        ".textContent; if (t) done(t); else setTimeout(wait, 20); }; wait(); })"
    )
    assert page.run(said) == "Copied"


@pytest.mark.parametrize("name", ["full", "hostile", "alone"])
def test_a_phone_does_not_scroll_sideways(opened, name):
    page = opened(name)
    page.size(360, 740, mobile=True)
    assert page.run("innerWidth") == 360
    assert page.run("document.documentElement.scrollWidth") == 360
    page.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.run("document.documentElement.scrollWidth") == 360
    wide = page.run(
        "[...document.querySelectorAll('.canvas .main-svg')]"
        ".filter((e) => e.getBoundingClientRect().right > 361).length"
    )
    assert wide == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened, scheme):
    page = opened("rejected")
    page.prefer(scheme)
    seen, bad = page.run(_CONTRAST)
    assert seen > 500
    assert bad == []


def test_everything_is_reached_and_named_by_keyboard(opened):
    page = opened("full")
    page.key("Tab")
    assert page.run("document.activeElement.className") == "skip"
    unnamed = page.run(
        "[...document.querySelectorAll('button, select, input, summary, a')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim()"
        " || (e.labels && [...e.labels].some((l) => l.textContent.trim()))))"
        ".filter((e) => !e.closest('.js-plotly-plot')).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert _count(page, ".scroll:not([tabindex='0'])") == 0
    assert _count(page, "[tabindex]:not([tabindex='0']):not([tabindex='-1'])") == 0
    doubled = page.run(
        "[...document.querySelectorAll('[id]')].map((e) => e.id)"
        ".filter((id, i, all) => all.indexOf(id) !== i && !/-/.test(id))"
    )
    assert doubled == []


def test_paper_is_light_and_unfolded_and_then_as_before(opened):
    page = opened("full")
    page.prefer("dark")
    closed = _count(page, "details:not([open])")
    assert closed > 5
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert _count(page, "details:not([open])") == 0
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("document.querySelector('#curves-plot .main-svg').clientWidth") <= 680
    page.run("dispatchEvent(new Event('afterprint'))")
    assert _count(page, "details:not([open])") == closed
    assert page.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_hostile_names_do_not_run(opened):
    page = opened("hostile")
    assert _drawn(page) == dict.fromkeys(PLOTS, 1)
    page.click("#class-all") if page.run(
        "!document.querySelector('#class-all-label').hidden"
    ) else None
    _choose(page, "#curve-class", "1")
    page.click("#picture-on")
    assert page.run("typeof window.hacked") == "undefined"
    ticks = page.run(
        "[...document.querySelectorAll('#classes-plot .ytick text')].map((e) => e.textContent)"
    )
    for name in ("<b>bold</b>", "&lt;amp&gt; & co", "{{ 7 * 7 }}{% raw %}", "2026-01-01", "12"):
        assert name in ticks, "a tick shows the name as it is"
    assert _count(page, ".js-plotly-plot svg a") == 0, "no name became a link"
    options = page.run("[...document.querySelectorAll('#curve-class option')].map((e) => e.text)")
    assert [o for o in options if "bold" in o] == ["<b>bold</b>"] and len(options) == len(
        HOSTILE
    ) + 1
    assert page.run("document.querySelector('#pane-0 img').alt") == f"second {HOSTILE[1]}"
    tags = page.run("[...document.querySelectorAll('#pane-0 title')].map((e) => e.textContent)")
    assert any(t.startswith("<script>alert(1)</script>, score") for t in tags)


def test_the_policy_stops_what_would_come_in(opened, browser, pages, tmp_path):
    """Even if a name were not escaped, the browser refuses to run it."""
    opened("full")
    broken = tmp_path / "broken.html"
    text = pages["full"].read_text(encoding="utf-8")
    evil = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    broken.write_text(text.replace("<h1>", f"<h1>{evil}", 1), encoding="utf-8")
    browser.open(broken)
    assert browser.run("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in c for c in browser.complaints)
    assert not [r for r in browser.requests if r.startswith("http")]
    browser.open(pages["full"])


def test_without_scripts_the_tables_are_there(opened, browser, pages):
    page = opened("full")
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["full"])
        shown = browser.run(
            "[...document.querySelectorAll('.js-only')].filter((e) => e.getClientRects().length)"
            ".length"
        )
        assert shown == 0, "nothing that would not work is shown"
        text = browser.run("document.body.innerText")
        assert "need JavaScript" in text and "0.5060" in text and "nearest to its limit" in text
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    browser.open(pages["full"])
    assert page.run("document.documentElement.dataset.ready") == "true"
