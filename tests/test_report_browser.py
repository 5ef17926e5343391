"""The page in a real browser: filters, links, rows, keyboard, phone, dark mode. From disk, and without a request."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evals import compare, report, rows
from prompts import Prompt
from tests import browser
from tests.browser import Browser
from tests.synthetic_rows import SETS, study

PREFERENCE, SCENES, PORTRAITS = SETS
TAGS = (("near", "red"), ("right of", "red"), ("near",))
JOINT = f"cell/miniature/{PREFERENCE}/win_rate_gold/joint"
OTHER = "other:543210"
"""Another suite, of the scenes."""
SEEN = "!e.closest('[hidden]')"


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    made = study(prompts=6, images=2, seeds=(0, 1), experiments=("base", "imagereward", "joint"))
    # of pictures that were not hashed any may be shown
    return made.assign(suite=made["suite"].where(made["prompt_set"] != SCENES, OTHER), picture="")


@pytest.fixture(scope="module")
def file(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for experiment, shade in (("base", 90), ("joint", 160)):
        for prompt_set in SETS:
            for prompt in range(6):
                for image in range(2):
                    name = f"{experiment}-miniature-0/{prompt_set}/p{prompt:03d}/{image}.png"
                    path = folder / "images" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    asked = {f"p{i:03d}": Prompt(f"p{i:03d}", f"a <b>text</b> {i}", TAGS[i % 3]) for i in range(6)}
    log = [
        {"iteration": i, "task": "t", "reward_mean": i, "monitors": {"gold": 1 - i}, "images": i}
        for i in range(3)
    ]
    run = folder / "runs" / "joint-miniature-0"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (run / "run.json").write_text(json.dumps({"gates": {"transition": {"holds": True}}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_prompts", lambda *_: asked)
        made = compare.compare(frame, resamples=50)
        page = report.render(frame, made, folder / "runs", folder / "images", "x")
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser.started() as found:
        yield found


@pytest.fixture
def page(started: Browser, file: Path) -> Iterator[Browser]:
    """The page as it is opened for the first time; whatever went wrong in it fails the test."""
    started.viewport(1200, 900)
    started.dark(False)
    started.open("about:blank")
    started.errors.clear()
    started.open(file.as_uri())
    yield started
    assert started.errors == []


def at(file: Path, **state: str) -> str:
    return f"{file.as_uri()}#" + "&".join(f"{name}={value}" for name, value in state.items())


def seen(page: Browser, selector: str, of: str) -> list[Any]:
    """A value of every element that is not hidden by the filter."""
    script = f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => {SEEN}).map(e => {of})"
    found: list[Any] = page.evaluate(script)
    return found


def saved_as(path: Path) -> str:
    """A file that the page was asked to save, once it is there."""
    end = time.monotonic() + browser.SECONDS
    while not path.is_file() or not path.read_text().endswith("\n"):
        assert time.monotonic() < end, f"{path.name} was not saved"
        time.sleep(0.01)
    return path.read_text()


def check(page: Browser, facet: str, value: str) -> None:
    page.evaluate("document.querySelector('#filter').open = true")
    page.click(f"#filter input[name={facet}][value={json.dumps(value)}]")


def test_no_request_leaves_the_page(page: Browser, file: Path) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    page.open(at(file, cell=JOINT))
    page.wait_for("document.querySelector('dialog[open] td') !== null")
    fetched = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in fetched if not name.startswith("data:")] == []
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth === 8)")
    # and none could
    blocked = page.evaluate(
        "fetch('https://example.org/').then(() => 'sent', () => 'blocked')",
    )
    assert blocked == "blocked"
    assert page.errors and all("Content Security Policy" in error for error in page.errors)
    page.errors.clear()


def test_a_filter_shows_what_is_asked_for_and_nothing_else(page: Browser) -> None:
    lines = "main tr[data-cell]"
    whole = seen(page, lines, "e.dataset.cell")
    check(page, "run", "joint")
    check(page, "metric", "win_rate_gold")
    shown = seen(page, lines, "e.dataset.cell")
    assert shown == [cell for cell in whole if cell.endswith("win_rate_gold/joint")]
    assert len(shown) == 3
    assert page.evaluate("document.querySelector('#shown').textContent") == (
        f"3 of {len(whole)} lines of numbers shown"
    )
    assert page.evaluate("document.querySelector('#filter .count').textContent") == " (2)"
    check(page, "set", SCENES)
    assert seen(page, lines, "e.dataset.cell") == [f"cell/miniature/{SCENES}/win_rate_gold/joint"]
    # whatever says of what it is, is of that
    for facet, value in (("run", "joint"), ("metric", "win_rate_gold"), ("set", SCENES)):
        assert set(seen(page, f"main [data-{facet}]", f"e.dataset.{facet}")) == {value}
    # a card without a line goes, heading and all
    assert seen(page, "#goals ~ .cards > .card", "e.dataset.set") == [SCENES]
    page.click("#clear")
    assert seen(page, lines, "e.dataset.cell") == whole


def test_two_choices_of_one_kind_are_one_or_the_other(page: Browser) -> None:
    check(page, "run", "joint")
    check(page, "run", "base")
    assert set(seen(page, "main tr[data-cell]", "e.dataset.run")) == {"joint", "base"}


def test_a_suite_stands_for_its_prompt_sets(page: Browser) -> None:
    check(page, "suite", OTHER)
    assert set(seen(page, "main [data-set]", "e.dataset.set")) == {SCENES}
    check(page, "set", PREFERENCE)  # of another suite
    assert seen(page, "main tr[data-cell]", "1") == []
    assert "" not in seen(page, ".empty", "e.textContent") and len(seen(page, ".empty", "1")) > 3


def test_the_address_holds_the_filter(page: Browser, file: Path) -> None:
    check(page, "run", "imagereward")
    check(page, "tag", "right of")
    address = page.evaluate("location.href")
    shown = seen(page, "main .leaf", "e.outerHTML")
    page.open("about:blank")
    page.open(address)
    assert seen(page, "#filter input", "e.checked ? e.value : ''").count("") < len(
        seen(page, "#filter input", "1")
    )
    assert page.evaluate("[...document.querySelectorAll('#filter input:checked')].map(e => e.value)") == [
        "imagereward",
        "right of",
    ]
    page.wait_for("document.querySelector('td.tagged').textContent !== ''")
    assert len(seen(page, "main .leaf", "1")) == len(shown)
    page.open("about:blank")
    page.open(at(file, run="imagereward", metric="no-such-metric"))  # an unknown choice hides nothing
    assert set(seen(page, "main tr[data-cell]", "e.dataset.run")) == {"imagereward"}


def test_a_section_keeps_the_filter(page: Browser) -> None:
    check(page, "run", "joint")
    page.evaluate("document.querySelector('#filter').open = false")
    page.click("nav a[href='#tax']")
    assert set(seen(page, "main tr[data-cell]", "e.dataset.run")) == {"joint"}
    assert page.evaluate("document.activeElement.id") == "tax"
    assert page.evaluate("location.hash") == "#run=joint&at=tax"
    page.evaluate("history.back()")
    page.wait_for("location.hash === '#run=joint'")


def test_a_tag_narrows_prompts_and_numbers(page: Browser, frame: pd.DataFrame) -> None:
    check(page, "tag", "right of")
    assert {"right of"} == {
        tag for tags in seen(page, "main .line[data-tags]", "JSON.parse(e.dataset.tags)") for tag in tags
    } - {"red"}
    of = (frame["scorer"] == "gold_utility") & (frame["prompt_set"] == PREFERENCE)
    some = frame[of & frame["prompt_id"].isin(["p001", "p004"])]
    by = some.groupby(["experiment", "prompt_id"])["value"].mean()
    gain = by["joint"] - by["base"]
    half = 1.96 * gain.std(ddof=1) / 2**0.5
    cell = f"cell/miniature/{PREFERENCE}/gold_quality/joint"
    line = f"document.getElementById({json.dumps(cell)}).querySelector('.tagged')"
    page.wait_for(f"{line}.textContent !== ''")
    assert page.evaluate(f"{line}.textContent") == (
        f"{by['joint'].mean():.3f}, n 2; {gain.mean():+.3f} ± {half:.3f}"
    )
    page.click("#clear")
    assert page.evaluate(f"{line}.hidden")


def test_a_number_opens_its_rows_and_they_are_saved_as_they_were(
    page: Browser, frame: pd.DataFrame, tmp_path: Path
) -> None:
    page._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate(f"document.querySelector('a.cell[href=\"#{JOINT}\"]').click()")
    page.wait_for("document.querySelector('dialog[open] #raw') !== null")
    assert JOINT in page.evaluate("decodeURIComponent(location.hash)")
    told = page.evaluate("document.querySelector('dialog').innerText")
    headed = "[...document.querySelectorAll('dialog #rows-of tbody > tr')].every(e => e.firstElementChild.scope === 'row')"
    assert page.evaluate(headed)
    (made,) = compare.compare(frame, resamples=50).of(
        experiment="joint", metric="win_rate_gold", prompt_set=PREFERENCE
    )
    assert f"{100 * made.value.value:.1f}" in told and "miniature:012345" in told and "0a1b2c3d" in told
    assert "a <b>text</b> 0" in told  # text, not markup
    gains = page.evaluate(
        "[...document.querySelectorAll('dialog tbody > tr > td:last-child')].map(e => +e.textContent.replace('−', '-'))"
    )
    assert len(gains) == 6 and gains == sorted(gains, reverse=True)
    page.click("dialog .prompt summary")
    page.wait_for(
        "document.querySelectorAll('dialog .raw tbody tr').length === 6"
    )  # 2 images of base and two seeds
    page.click("#raw")
    name = f"joint-win_rate_gold-{PREFERENCE}"
    saved = saved_as(tmp_path / f"{name}.csv")
    of = (frame["scorer"] == "gold_utility") & (frame["prompt_set"] == PREFERENCE)
    rows.write(frame[of & frame["experiment"].isin(["joint", "base"])], tmp_path / "whole.csv")
    assert sorted(saved.splitlines()) == sorted((tmp_path / "whole.csv").read_text().splitlines())
    assert len(rows.read([tmp_path / f"{name}.csv"])) == 6 * 2 * 3
    page.click(".buttons button")
    table = list(csv.DictReader(io.StringIO(saved_as(tmp_path / f"{name}-prompts.csv"))))
    assert np.mean([float(line["run"]) for line in table]) == pytest.approx(made.value.value, rel=1e-5)
    page.press("Escape")
    page.wait_for("!document.querySelector('dialog').open && !location.hash.includes('cell')")


def test_a_link_to_rows_opens_them(page: Browser, file: Path) -> None:
    page.open("about:blank")
    page.open(f"{file.as_uri()}#{JOINT}")
    page.wait_for("document.querySelector('dialog[open] td') !== null")
    page.open(at(file, cell="cell/none"))
    page.wait_for("document.querySelector('dialog').innerText.includes('no such number')")


def test_the_keyboard_reaches_everything(page: Browser) -> None:
    def focused(of: str) -> Any:
        return page.evaluate(f"(e => {of})(document.activeElement)")

    page.press("Tab")
    assert focused("e.className") == "skip"
    page.press("Tab")
    assert focused("e.tagName + e.parentElement.id") == "SUMMARYfilter"
    assert focused("getComputedStyle(e).outlineStyle") == "solid"
    page.press("Enter")
    page.press("Tab")
    assert focused("e.type + e.name") == "checkboxsuite"
    page.press(" ")
    assert page.evaluate("location.hash") == "#suite=miniature%3A012345"
    page.press("Escape")
    assert not page.evaluate("document.querySelector('#filter').open")
    assert focused("e.tagName") == "SUMMARY"
    found = set()
    for _ in range(120):
        page.press("Tab")
        found.add(focused("e.className.includes('scroll') ? 'scroll' : e.tagName"))
        if {"scroll", "A", "SUMMARY"} <= found:
            break
    assert {"scroll", "A", "SUMMARY"} <= found
    page.evaluate("document.querySelector('main details:not([hidden]) summary').focus()")
    was = focused("e.parentElement.open")
    page.press("Enter")
    assert focused("e.parentElement.open") != was


def test_the_filter_does_not_lie_over_what_the_keyboard_has_gone_on_to(page: Browser) -> None:
    page.evaluate("document.querySelector('#filter summary').focus()")
    page.press("Enter")
    box = "document.querySelectorAll('#filter input')"
    page.evaluate(f"{box}[0].focus()")
    page.press("Tab")
    assert page.evaluate("document.querySelector('#filter').open"), "inside it"
    page.evaluate(f"{box}[{box}.length - 1].focus()")
    while page.evaluate("document.activeElement.closest('#filter') !== null"):
        page.press("Tab")
    assert not page.evaluate("document.querySelector('#filter').open")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#goals"


def test_the_skip_link_keeps_the_filter(page: Browser) -> None:
    check(page, "run", "joint")
    page.evaluate("document.querySelector('#filter').open = false")
    page.evaluate("document.querySelector('a.skip').focus()")
    page.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    assert page.evaluate("location.hash") == "#run=joint&at=content"
    assert set(seen(page, "main tr[data-cell]", "e.dataset.run")) == {"joint"}


def test_who_clears_the_filter_by_keyboard_stays_where_they_are(page: Browser) -> None:
    check(page, "run", "joint")
    page.evaluate("document.querySelector('#clear').focus()")
    page.press("Enter")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.evaluate("document.querySelectorAll('#filter input:checked').length") == 0
    assert page.evaluate("document.activeElement.id") == "clear"
    assert page.evaluate("document.querySelector('#clear').getAttribute('aria-disabled')") == "true"


def test_all_is_printed_on_white_and_no_table_is_cut(page: Browser) -> None:
    page.click("label:has(#dark)")
    closed = "document.querySelectorAll('main details:not([open])').length"
    was = page.evaluate(closed)
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.whilePrinting = {closed} }})")
    page._call("Page.printToPDF")
    assert was > 3 and page.evaluate("window.whilePrinting") == 0
    assert page.evaluate(closed) == was, "and afterwards it is as it was"
    page.viewport(700, 900)  # a sheet of A4
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page._call("Emulation.setEmulatedMedia", media="print", features=[])
    try:
        seen_as = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('nav')).display]"
        )
        assert seen_as == ["rgb(251, 250, 248)", "none"]
        assert [told for told in page.evaluate(CONTRAST) if told[0] < 4.5] == []
        cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
        assert page.evaluate(cut) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
    finally:
        page._call("Emulation.setEmulatedMedia", media="", features=[])


@pytest.mark.parametrize("width", [360, 320], ids=["phone", "enlarged four times"])
@pytest.mark.parametrize("opened", [False, True], ids=["closed", "all open"])
def test_nothing_is_wider_than_a_phone(page: Browser, opened: bool, width: int) -> None:
    page.viewport(width, 740, phone=True)
    page.evaluate(f"document.querySelectorAll('details').forEach(d => d.open = {str(opened).lower()})")
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    outside = f"""[...document.querySelectorAll('main *')].filter(e => !e.parentElement.closest('.scroll, svg')
        && e.getBoundingClientRect().width && e.getBoundingClientRect().right > {width + 1}).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside) == []


def test_on_a_phone_what_is_touched_is_large_enough_and_what_is_read_too(page: Browser) -> None:
    page.viewport(360, 740, phone=True)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(f"document.querySelector('a.cell[href=\"#{JOINT}\"]').click()")
    page.wait_for("document.querySelector('dialog[open] .prompt summary') !== null")
    small = """(selector, size) => [...document.querySelectorAll(selector)].filter(e => e.checkVisibility() && size(e)).map(e => e.outerHTML.slice(0, 80))"""
    targets = "'nav a, .theme label, #filter label, button, summary'"
    assert page.evaluate(f"({small})({targets}, e => e.getBoundingClientRect().height < 24)") == []
    assert (
        page.evaluate(f"({small})('body *:not(svg *)', e => parseFloat(getComputedStyle(e).fontSize) < 11)")
        == []
    )


@pytest.mark.parametrize("width", [1200, 360], ids=["desk", "phone"])
def test_a_long_name_breaks_and_pushes_no_number_out(
    page: Browser, frame: pd.DataFrame, tmp_path: Path, width: int
) -> None:
    """As `joint_ratio_norm` with what was set, or whatever --name says."""
    named = frame.replace({"joint": "joint_ratio_norm_lr2e5_kl001_batch2048_steps50_seeds"})
    made = compare.compare(named, resamples=50)
    (tmp_path / "long.html").write_text(report.render(named, made, tmp_path, tmp_path, "x"), encoding="utf-8")
    page.viewport(width, 900, phone=width == 360)
    page.open((tmp_path / "long.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    outside = """[...document.querySelectorAll('.card .num')].filter(e =>
        e.getBoundingClientRect().right > e.closest('.card').getBoundingClientRect().right).map(e => e.textContent)"""
    assert page.evaluate(outside) == []


RATIO = """
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const light = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
      .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0);
  };
  const groundsOf = (element) => {
    const grounds = [];
    for (let e = element; e; e = e.parentElement) grounds.unshift(getComputedStyle(e).backgroundColor);
    return grounds;
  };
  const ratio = (grounds, ink) => {
    const [high, low] = [light(grounds), light([...grounds, ink])].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
"""
"""The contrast of a colour with what lies under it, as WCAG 2 has it."""
CONTRAST = (
    "(() => {"
    + RATIO
    + """
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!texts || !element.checkVisibility() || element.closest("script, svg")) continue;
    const grounds = groundsOf(element);
    const ink = getComputedStyle(element).color;
    const key = [ink, ...grounds].join(" ");
    found[key] ??= [ratio(grounds, ink), element.outerHTML.slice(0, 120)];
  }
  return Object.values(found);
})()"""
)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_legible_in_both_modes(page: Browser, dark: bool) -> None:
    page.dark(dark)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(CONTRAST)
    assert len(found) > 15
    assert [told for told in found if told[0] < 4.5] == []


LINKS = (
    "(() => {"
    + RATIO
    + """
  return [...document.querySelectorAll("main a.cell")].map(link => [ratio(groundsOf(link), getComputedStyle(link).textDecorationColor), link.outerHTML]);
})()"""
)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_number_is_seen_to_be_a_link(page: Browser, dark: bool) -> None:
    """By its underline alone: its colour is that of what stands around it."""
    page.dark(dark)
    found = page.evaluate(LINKS)
    assert len(found) > 100
    assert [told for told in found if told[0] < 3] == []


def test_dark_mode_follows_the_system_and_can_be_chosen(page: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.dark(True)
    dark = page.evaluate(ground)
    assert light != dark
    page.click("label:has(#light)")
    assert page.evaluate(ground) == light
    page.dark(False)
    page.click("label:has(#dark)")
    assert page.evaluate(ground) == dark


def test_without_scripts_everything_is_shown(page: Browser, file: Path) -> None:
    whole = page.evaluate("document.querySelectorAll('main .leaf').length")
    page._call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open("about:blank")
        page.open(at(file, run="joint"))
        document = page._call("DOM.getDocument", depth=0)["root"]["nodeId"]
        leaves = page._call("DOM.querySelectorAll", nodeId=document, selector="main .leaf")["nodeIds"]
        hidden = page._call(
            "DOM.querySelectorAll", nodeId=document, selector="main [hidden]:not(.empty, .tagged)"
        )
        assert len(leaves) == whole and hidden["nodeIds"] == []
        filters = page._call("DOM.querySelectorAll", nodeId=document, selector="#filter[hidden]")
        assert len(filters["nodeIds"]) == 1  # what would do nothing is not there
    finally:
        page._call("Emulation.setScriptExecutionDisabled", value=False)
