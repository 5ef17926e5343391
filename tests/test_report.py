"""The page: self-contained, escaped, generated from the numbers, and plain about what is missing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import prompts
from evals import (
    asides,
    bases,
    checkpoints,
    compare,
    panel,
    report,
    report_data,
    report_runs,
    rows,
    svg,
    tables,
)
from evals.__main__ import main
from evals.compare import Comparison
from evals.stats import Interval
from prompts import Prompt
from tests.synthetic_rows import SETS, study

PREFERENCE, SCENES, PORTRAITS = SETS
VOID = {"meta", "img", "input", "link", "line", "circle", "rect", "polyline", "polygon"}


class Tags(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images_without_alt = 0
        self.scripts: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "script":
            self.scripts.append(given)
        self.fetched += [value for name in ("src", "data", "srcset") if (value := given.get(name))]
        links = [value for name, value in attrs if name == "href" and value]
        if tag == "link":
            self.fetched += links
        else:
            self.links += links
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.images_without_alt += tag == "img" and not given.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


GREY = rows.picture_hash((8, 8), np.full((8, 8, 3), 120, np.uint8).tobytes())
"""Of what `picture` draws."""


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    made = study(prompts=7, images=4, seeds=(0, 1))
    drawn = made["experiment"].isin(["base", "joint"]) & (made["seed"] == 0)
    return made.assign(picture=made["picture"].mask(drawn, GREY))


@pytest.fixture(scope="module")
def made(frame: pd.DataFrame) -> Comparison:
    return compare.compare(frame, resamples=50)


def picture(path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), 120, np.uint8)).save(path)


def record(iteration: int, task: str, gold: float) -> str:
    monitors = {"gold_utility": gold}
    images = 96 * (iteration + 1)
    return json.dumps(
        {
            "iteration": iteration,
            "task": task,
            "reward_mean": iteration / 10,
            "monitors": monitors,
            "images": images,
        }
    )


def run_directory(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    card = {
        "commit": "0123456789abcdef",
        "dirty": True,
        "hardware": {"cpu": "two cores", "gpu": None},
        "cost": {"images": 9600, "denoiser_evaluations": 480000, "seconds": 1260.0, "gpu_hours": 0.25},
        "gates": {"ratio": {"max_deviation": 3.1e-7, "passed": True}, "kl_passed": False},
    }
    (folder / name / "run.json").write_text(json.dumps(card))
    lines = [record(i, task, 0.1 * i) for i in range(3) for task in ("preference", "scenes")]
    (folder / name / "metrics.jsonl").write_text("\n".join(lines) + '\n{"iteration": 3, "ta')


@pytest.fixture(scope="module")
def page(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("results")
    for experiment in ("base", "joint"):
        for prompt_set in SETS:
            for prompt in range(7):
                for image in range(4):
                    picture(
                        folder
                        / "images"
                        / f"{experiment}-miniature-0"
                        / prompt_set
                        / f"p{prompt:03d}"
                        / f"{image}.png"
                    )
    run_directory(folder / "runs", "joint-miniature-0")
    run_directory(folder / "runs", "joint-miniature-1")
    made = compare.compare(frame, resamples=200)
    return report.render(frame, made, folder / "runs", folder / "images", "python -m evals report x.csv")


def test_the_page_is_self_contained_and_well_formed(page: str) -> None:
    tags = parsed(page)
    assert tags.fetched
    assert all(source.startswith(("data:image/", "data:,")) for source in tags.fetched)
    assert tags.scripts == [{"type": "text/plain", "id": "data"}, {}]
    assert all(link.startswith("#") for link in tags.links)
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))
    assert "url(" not in page
    assert tags.images_without_alt == 0
    assert "image-rendering: pixelated" in page


def test_the_same_numbers_make_the_same_page(frame: pd.DataFrame, tmp_path: Path, made: Comparison) -> None:
    first, second = (report.render(frame, made, tmp_path, tmp_path, "x") for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def enough() -> Comparison:
    """Of so many prompts that differences survive Holm's correction."""
    frame = study(prompts=14, images=3, seeds=(0, 1), experiments=("base", "imagereward", "joint"))
    return compare.compare(frame, resamples=200)


def plain(sentence: str) -> str:
    return re.sub("<[^>]*>", "", sentence)


def test_the_headline_is_generated_from_the_numbers(enough: Comparison) -> None:
    made = enough
    told = {k: plain(v) for k, v in report.headline(made, "miniature").items()}
    assert told["experiment"] == "joint"  # the run with the most rewards
    (gold,) = made.of(experiment="joint", metric="win_rate_gold", prompt_set=PREFERENCE)
    assert f"win rate (gold) to {100 * gold.value.value:.1f} % ▲ on {PREFERENCE}" in told["gain"]
    assert "detection" not in told["gain"]  # the run was trained on it, and a held-out measure is there
    assert re.search(
        r"parity gap over its floor from 0\.\d+ to [−\d.]+ ▲†", told["gain"]
    )  # no held-out measure: marked
    assert "diversity" in told["cost"]


def test_a_headline_survives_holm_and_a_cost_that_does_not_is_hollow(made: Comparison) -> None:
    (gold,) = made.of(experiment="joint", metric="win_rate_gold", prompt_set=PREFERENCE)
    assert gold.mark == "better" and not gold.survives  # seven prompts are too few
    assert plain(report.gain(made, "miniature", "joint")) == (
        "improves no goal distinguishably by a judge that it was not trained on, after Holm&#39;s correction."
    )
    assert re.search(
        r"diversity \(Vendi\) from [\d.]+ to [\d.]+ ▽ on", plain(report.cost(made, "miniature", "joint"))
    )


def test_a_judge_that_a_run_was_trained_on_has_no_number_at_a_glance(
    frame: pd.DataFrame, enough: Comparison
) -> None:
    figure, below = (
        report._figure(
            enough,
            "miniature",
            "win_rate_reward",
            PREFERENCE,
            dict.fromkeys(("base", "imagereward", "joint"), ""),
            glance,
        )
        for glance in (True, False)
    )
    base, *runs = figure["lines"]
    assert base["value"] == "50.0" and [line["experiment"] for line in runs] == ["imagereward", "joint"]
    for line in runs:
        assert (line["value"], line["bar"], line["ends"], line["sign"], line["dagger"]) == (
            "†",
            "",
            "",
            "",
            "",
        )
        assert line["id"]
    assert all(line["bar"] and line["dagger"] == "†" and line["value"] != "†" for line in below["lines"][1:])
    assert (figure["low"], figure["high"]) == ("50.0", "50.0")  # no end of theirs is on the scale

    some = frame[(frame["scorer"] == "imagereward") & frame["experiment"].isin(["base", "imagereward"])]
    made = compare.compare(some, resamples=50)
    told = "improves no goal distinguishably by a judge that it was not trained on."
    assert plain(report.gain(made, "miniature", "imagereward")) == told


def test_pictures_are_counted_where_all_of_them_were_scored(made: Comparison) -> None:
    """A metric of some of the prompts comes last."""
    some = [replace(e, images=4, prompts=1) for e in made.estimates if e.metric == "win_rate_gold"]
    facts = {
        what: value
        for value, what in report._facts(replace(made, estimates=(*made.estimates, *some)), "miniature")
    }
    assert facts["pictures scored"] == f"{3 * 7 * 4 * (1 + 4 * 2):,}"


def test_what_is_kept_names_its_set_and_has_the_marks_of_the_table(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    other = (frame["experiment"] == "joint") & (frame["scorer"] == "objects")
    changed = frame.assign(version=frame["version"].where(~other, "ffffffff"))
    made = compare.compare(changed, resamples=50, force=True)
    page = report.render(changed, made, tmp_path, tmp_path, "x")
    (table,) = re.findall('aria-label="Retention"><table>(.*?)</table>', page, re.DOTALL)
    found = [[plain(cell) for cell in re.findall("<td>(.*?)</td>", line)] for line in table.split("<tr")[2:]]
    marks = {
        (metric, prompt_set): re.findall("[†‡].*", raw) + re.findall("[†‡].*", gain)
        for _, metric, prompt_set, raw, gain in found
    }
    assert len(marks) == len(made.retentions)
    assert marks["detection score", SCENES] == ["†‡1"] * 2
    assert marks["reward model score", PREFERENCE] == ["†"] * 2
    assert marks["win rate (gold)", PREFERENCE] == []
    assert page.count('‡ forced, <a href="#counted">') >= 6 and '<h3 id="counted">' in page


def test_nothing_gained_and_nothing_lost_is_said(frame: pd.DataFrame) -> None:
    base = frame[frame["experiment"] == "base"]
    made = compare.compare(pd.concat([base, base.assign(experiment="twin")]), resamples=50)
    assert report.headline(made, "miniature") == {
        "experiment": "twin",
        "gain": "improves no goal distinguishably.",
        "cost": "Nothing that was measured got distinguishably worse.",
    }
    alone = compare.compare(base, resamples=50)
    assert "nothing to compare" in report.headline(alone, "miniature")["gain"]


def test_missing_pictures_and_runs_are_said(page: str) -> None:
    assert re.search(r"imagereward-miniature-0: \d+ of the pictures wanted for this page are not there", page)
    assert "no picture" in page
    assert re.search(r"fairness-miniature-1/run.json: not there", page)
    assert "metrics.jsonl: 1 lines are not records of an iteration" in page


def test_cost_gates_and_curves_come_from_the_run(page: str) -> None:
    assert "480,000" in page
    assert "21.0" in page
    assert "0123456789 + changes" in page
    assert "cpu two cores" in page
    assert "ratio · max deviation" in page
    assert '<td class="fail"' in page
    assert page.count("<polyline") == 2 * 2 * 3  # tasks x (reward, gold) x (two seeds and their mean)


def test_a_page_without_any_run_or_picture_is_a_page(
    frame: pd.DataFrame, tmp_path: Path, made: Comparison
) -> None:
    bare = report.render(frame, made, tmp_path / "runs", tmp_path / "images", "x")
    parsed(bare)
    assert "No training logs were found" in bare
    assert "<img" not in bare


def test_prompts_and_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<script>alert(1)</script>\"'&"
    frame = study(prompts=3, images=2, seeds=(0,), experiments=("base", "joint"))
    frame = frame.replace({"p000": evil, SCENES: f"scenes{evil}", "joint": f"joint{evil}"})
    asked = {f"p{i:03d}": Prompt(f"p{i:03d}", f"text {i} {evil}", (evil, "plain")) for i in range(3)}
    monkeypatch.setattr(report, "_prompts", lambda *_: asked)
    made = compare.compare(frame, resamples=20)
    page = report.render(frame, made, tmp_path, tmp_path, f"x {evil}")
    assert page.count("<script") == 2 and "<script>alert" not in page
    assert "&lt;script&gt;" in page
    parsed(page)


def test_texts_are_those_that_were_scored_and_else_it_is_said(tmp_path: Path) -> None:
    asked = prompts.load(SCENES)[:7]
    ids = {f"p{number:03d}": prompt.id for number, prompt in enumerate(asked)}
    frame = study(prompts=7, images=1, seeds=(0,), experiments=("base", "joint")).replace(ids)
    frame = frame.assign(prompt_set=frame["prompt_set"].replace(PREFERENCE, "elsewhere"))
    text = re.escape(asked[0].text)

    def render(digest: str) -> str:
        scored = frame.assign(prompts=frame["prompts"].where(frame["prompt_set"] != SCENES, digest))
        return report.render(scored, compare.compare(scored, resamples=20), tmp_path, tmp_path, "x")

    same, other = render(prompts.digest(prompts.load(SCENES))), render("0123456789ab")
    assert re.search(text, same) and not re.search(text, other)
    told = f'<p class="warn" data-set="{SCENES}">{SCENES}: ids stand for the texts of its prompts, and none has a tag: the set is '
    assert told not in same and told in other and "those scored were 0123456789ab." in other
    for page in (same, other):
        assert (
            "elsewhere: ids stand for the texts of its prompts, and none has a tag: unknown prompt set"
            in page
        )


def test_pictures_that_were_given_are_shown_from_their_folder(tmp_path: Path) -> None:
    told = {
        "model": {"experiment": "b", "model": "external", "seed": 0, "pictures": str(tmp_path / "theirs")}
    }
    (tmp_path / "b.json").write_text(json.dumps(told))
    picture(tmp_path / "theirs" / "p0" / "0.png")
    picture(tmp_path / "outside" / "0.png")
    picture(tmp_path / "theirs" / "p1" / "01.webp")

    def shown() -> report.Pictures:
        return report.Pictures(
            tmp_path / "images", given=asides.folders([tmp_path / "b.csv", tmp_path / "x.csv.xz"])
        )

    theirs = shown()
    assert theirs.get("b-external-0", SCENES, "p0", 0, "x").data is not None
    assert theirs.get("b-external-0", SCENES, "p1", 1, "x").data is not None
    assert theirs.get("b-external-0", SCENES, "../outside", 0, "x").data is None
    assert theirs.get("c-external-0", SCENES, "p0", 0, "x").data is None
    # as GenEval has them
    first = prompts.load(SCENES)[0]
    picture(tmp_path / "theirs" / SCENES / "00000" / "samples" / "0000.png")
    said = tmp_path / "theirs" / SCENES / "00000" / "metadata.jsonl"
    said.write_text(json.dumps({"prompt": first.text}))
    assert shown().get("b-external-0", SCENES, first.id, 0, "x").data is not None
    assert shown().get("b-external-0", SCENES, "../../outside", 0, "x").data is None
    said.write_text("[")
    assert shown().get("b-external-0", SCENES, first.id, 0, "x").data is None


def test_a_picture_that_was_not_scored_is_not_shown(tmp_path: Path) -> None:
    """As after the same run was trained and drawn again, with an earlier score file."""
    frame = study(prompts=2, images=1, seeds=(0,), experiments=("base", "joint"))
    frame = frame.assign(picture=frame["picture"].where(frame["experiment"] == "base", GREY))
    for name in ("base", "joint"):
        for prompt in ("p000", "p001"):
            picture(tmp_path / f"{name}-miniature-0" / SCENES / prompt / "0.png")
    transparent = np.zeros((8, 8, 4), np.uint8)
    Image.fromarray(transparent).save(tmp_path / "joint-miniature-0" / SCENES / "p001" / "0.png")
    white = rows.picture_hash((8, 8), np.full((8, 8, 3), 255, np.uint8).tobytes())
    of = (frame["experiment"] == "joint") & (frame["prompt_id"] == "p001")
    frame = frame.assign(picture=frame["picture"].mask(of, white))  # as it is scored: laid over white
    page = report.render(frame, compare.compare(frame, resamples=20), tmp_path, tmp_path, "x")
    tags = set(re.findall(r'(?:alt|aria-label)="(\w+-miniature-0: p\d+, image 0[^"]*)"', page))
    assert {tag for tag in tags if "no file" not in tag} == {
        "joint-miniature-0: p000, image 0",
        "joint-miniature-0: p001, image 0",
        "base-miniature-0: p000, image 0 (another picture than the one scored)",
        "base-miniature-0: p001, image 0 (another picture than the one scored)",
    }
    assert re.search(r"base-miniature-0: \d+ of the pictures wanted .* are not those that were scored", page)


def test_a_prompt_id_cannot_reach_out_of_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret" / "0.png")
    pictures = report.Pictures(tmp_path / "images")
    assert pictures.get("..", "..", "secret", 0, "x").data is None
    assert pictures.missing == {"..": 1}


@pytest.mark.parametrize(
    ("mode", "seen"), [("LA", 255), ("I;16", 100)], ids=["transparent", "grey of 16 bits"]
)
def test_a_small_picture_is_shown_as_it_is_read(tmp_path: Path, mode: str, seen: int) -> None:
    file = tmp_path / "run" / "set" / "a" / "0.png"
    file.parent.mkdir(parents=True)
    Image.new(mode, (8, 8), 0 if mode == "LA" else 100 << 8).save(file)
    data = report.Pictures(tmp_path).get("run", "set", "a", 0, "x").data
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as shown:
        assert shown.mode == "RGB"
        assert shown.getpixel((0, 0)) == (seen, seen, seen)


def test_a_small_photograph_is_not_turned_as_its_file_says(tmp_path: Path) -> None:
    """Scorers and raters see its pixels as they lie, and a browser would turn it."""
    file = tmp_path / "run" / "set" / "a" / "0.jpg"
    file.parent.mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter
    Image.new("RGB", (16, 8), "red").save(file, exif=turned)
    data = report.Pictures(tmp_path).get("run", "set", "a", 0, "x").data
    assert data is not None and data.startswith("data:image/png;")
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as shown:
        assert (shown.format, shown.size, dict(shown.getexif())) == ("PNG", (16, 8), {})


def test_pictures_may_lie_on_another_disk(tmp_path: Path) -> None:
    """The folder of a run, of a set or of a prompt is a link there."""
    picture(tmp_path / "disk" / "set" / "a" / "0.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "run").symlink_to(tmp_path / "disk")
    assert report.Pictures(tmp_path / "images").get("run", "set", "a", 0, "x").data is not None


def test_small_pictures_are_kept_as_they_are_and_large_ones_are_shrunk(tmp_path: Path) -> None:
    picture(tmp_path / "run" / "set" / "a" / "0.png", size=64)
    picture(tmp_path / "run" / "set" / "a" / "1.png", size=512)
    pictures = report.Pictures(tmp_path)
    small, large = (pictures.get("run", "set", "a", index, "x").data for index in (0, 1))
    assert small is not None
    assert large is not None
    assert base64.b64decode(small.split(",")[1]) == (tmp_path / "run" / "set" / "a" / "0.png").read_bytes()
    assert large.startswith("data:image/webp")
    assert sides(large) == (report.SHRUNK, report.SHRUNK)
    few = report.Pictures(tmp_path, report.SMALL).get("run", "set", "a", 1, "x").data
    assert few is not None
    assert sides(few) == (report.SMALL, report.SMALL)


def sides(address: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as picture:
        return picture.size


def test_wins_and_losses_are_the_extremes_and_the_sample_is_not_chosen(
    frame: pd.DataFrame, tmp_path: Path, made: Comparison
) -> None:
    asked: dict[str, dict[str, Prompt]] = {prompt_set: {} for prompt_set in SETS}
    pictures = report.Pictures(tmp_path)
    (group, *_) = report._extremes(frame, "joint", pictures, asked, made)["groups"]
    assert group["scorer"] == "gold_utility"
    of = (frame["scorer"] == "gold_utility") & (frame["prompt_set"] == group["prompt_set"])
    mine, base = (
        frame[of & (frame["experiment"] == name) & (frame["seed"] == 0)].set_index(["prompt_id", "image"])[
            "value"
        ]
        for name in ("joint", "base")
    )
    gains = (mine - base).sort_values()
    wins, losses, drawn = group["parts"]
    told = [f"{gain:+.2f}".replace("-", "−") for gain in gains]
    lost = [text for text, gain in zip(told, gains, strict=True) if gain < 0]
    assert [pair["gain"] for pair in wins["pairs"]] == told[: -report.EXTREMES - 1 : -1]
    assert [pair["gain"] for pair in losses["pairs"]] == lost[: report.EXTREMES]
    assert group["counts"].startswith(f"{(gains > 0).sum()} of 28 pictures won, {len(lost)} lost, 0 tied")
    assert len(drawn["pairs"]) == report.EXTREMES

    changed = frame.assign(value=frame["value"] * -1)
    (other, *_) = report._extremes(changed, "joint", pictures, asked, made)["groups"]
    assert [p["text"] for p in other["parts"][2]["pairs"]] == [p["text"] for p in drawn["pairs"]]
    samples = [report._samples(f, ["base", "joint"], pictures, asked) for f in (frame, changed)]
    assert [line["text"] for line in samples[0][0]["lines"]] == [
        line["text"] for line in samples[1][0]["lines"]
    ]
    assert len({line["text"] for line in samples[0][0]["lines"]}) == report.SAMPLE


def test_a_picture_stands_beside_that_of_the_seed_whose_score_it_has(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    """Of a run of seed 1 beside one of seeds 0 and 1: score and picture are of seed 1 on both sides."""
    asked: dict[str, dict[str, Prompt]] = {prompt_set: {} for prompt_set in SETS}
    joint_0 = (frame["experiment"] == "joint") & (frame["seed"] == 0)
    some = frame[frame["experiment"].isin(["fairness", "joint"]) & ~joint_0]
    made = compare.compare(some, resamples=20, against="fairness")
    (group, *_) = report._extremes(some, "joint", report.Pictures(tmp_path), asked, made)["groups"]
    of = (
        (some["scorer"] == group["scorer"])
        & (some["prompt_set"] == group["prompt_set"])
        & (some["seed"] == 1)
    )
    theirs = some[of & (some["experiment"] == "fairness")].set_index(["prompt_id", "image"])["value"]
    for pair in group["parts"][2]["pairs"]:
        found = re.fullmatch(r"fairness-miniature-1: (\w+), image (\d+) .*", pair["base"].alt)
        assert found, pair["base"].alt
        value = theirs[found[1], int(found[2])]
        assert pair["scores"].startswith(f"{tables.decimals(value, 2)} → ")


def test_wins_are_decided_by_a_judge_that_the_run_was_not_trained_on(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    asked: dict[str, dict[str, Prompt]] = {prompt_set: {} for prompt_set in SETS}
    some = frame[frame["scorer"].isin(["imagereward", "objects"])]
    made = compare.compare(some, resamples=20)
    for experiment, decided in (
        ("fairness", "imagereward"),
        ("imagereward", "objects"),
        ("joint", "imagereward†"),
    ):
        groups = report._extremes(some, experiment, report.Pictures(tmp_path), asked, made)["groups"]
        assert {g["prompt_set"]: g["scorer"] for g in groups}[SCENES] == decided


def test_tones_of_a_base_that_every_seed_repeats_are_counted_once(
    frame: pd.DataFrame, made: Comparison
) -> None:
    asked: dict[str, dict[str, Prompt]] = {prompt_set: {} for prompt_set in SETS}
    base = frame[frame["experiment"] == "base"]
    repeated = pd.concat([frame, base.assign(seed=7)], ignore_index=True)
    assert report._tones(repeated, made, asked) == report._tones(frame, made, asked)
    (found,) = report._tones(frame, made, asked)
    assert [c["experiment"] for c in found["columns"]] == list(dict.fromkeys(frame["experiment"]))
    gaps = [float(p["gap"]) - float(p["floor"]) for p in found["columns"][0]["ranked"]]
    assert gaps == sorted(gaps, reverse=True)
    assert "Monk tones 1 to 10" in found["columns"][0]["tones"]


def test_a_run_in_which_nobody_has_a_face_stands_there_as_refused(frame: pd.DataFrame) -> None:
    asked: dict[str, dict[str, Prompt]] = {prompt_set: {} for prompt_set in SETS}
    gone = (frame["experiment"] == "joint") & frame["scorer"].isin(["skin_tone", "monk_tone"])
    rows = frame.assign(value=frame["value"].where(~gone))
    (found,) = report._tones(rows, compare.compare(rows, resamples=50), asked)
    (column,) = [c for c in found["columns"] if c["experiment"] == "joint"]
    assert column["refused"]
    assert column["unusable"][0] == "100.0"
    assert column["histogram"] == ""
    assert "nan" not in str({name: value for name, value in column.items() if name != "tones"})
    nobody = frame.assign(value=frame["value"].where(~frame["scorer"].isin(["skin_tone", "monk_tone"])))
    assert report._portrait_sets(nobody) == report._portrait_sets(frame)


# --------------------------------------------------------------------------------------------------- the rows


def unpacked(page: str) -> dict[str, Any]:
    (text,) = re.findall('<script type="text/plain" id="data">([^<]*)</script>', page)
    told: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)))
    return told


def test_the_only_script_that_may_run_is_that_of_the_page(page: str) -> None:
    (script,) = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    assert script == (Path(report.__file__).parent / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert "connect-src" not in policy and "unsafe-eval" not in policy


def test_every_row_is_in_the_page_as_it_is_in_the_file(
    page: str, frame: pd.DataFrame, tmp_path: Path
) -> None:
    data = unpacked(page)
    found = []
    for scoring in data["scorings"]:
        place = data["sets"][f"{scoring['model']}/{scoring['prompt_set']}"]
        shown = data["pictures"][scoring["pictures"]].split(",")
        for (prompt, image), value, picture in zip(
            place["slots"], scoring["values"].split(","), shown, strict=True
        ):
            if value != "-":
                at = {"prompt_id": place["ids"][prompt], "image": image, "picture": picture}
                found.append({**scoring, **at, "value": float(value) if value else math.nan})
    made = pd.DataFrame(found)[list(rows.COLUMNS)]
    rows.write(frame, tmp_path / "frame.csv")
    assert data["whole"]
    assert sorted(made.to_csv(index=False, float_format="%.6g").splitlines()) == sorted(
        (tmp_path / "frame.csv").read_text().splitlines()
    )


def test_a_row_that_is_not_there_is_not_one_without_a_score(frame: pd.DataFrame, made: Comparison) -> None:
    """The base is not scored on drift, and some faces cannot be read."""
    scorings = report_data.content(frame, made, {})["scorings"]
    assert not any(s["experiment"] == "base" and s["scorer"] == "kid" for s in scorings)
    tones = [s for s in scorings if s["scorer"] == "skin_tone"]
    empty = sum(s["values"].split(",").count("") for s in tones)
    assert empty == frame.loc[frame["scorer"] == "skin_tone", "value"].isna().sum() > 0


def test_the_prompts_of_a_cell_are_what_its_number_was_made_of(
    page: str, frame: pd.DataFrame, made: Comparison
) -> None:
    cells = unpacked(page)["cells"]
    assert set(cells) == {report_data.cell_id(e) for e in made.estimates}
    for e in made.estimates:
        cell = cells[report_data.cell_id(e)]
        values, base = (np.array(cell[name], dtype=float) for name in ("values", "base"))
        if e.metric == "parity_pooled":
            assert not cell["mean"]
            continue
        assert cell["mean"], e.metric
        np.testing.assert_allclose(np.nanmean(values), e.value.value, rtol=1e-5, atol=1e-6)
        if e.experiment != "base" and not e.unpaired:
            np.testing.assert_allclose(np.nanmean(values - base), e.difference.value, rtol=1e-4, atol=1e-6)


def test_above_so_many_rows_only_prompts_are_in_the_page(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, made: Comparison
) -> None:
    monkeypatch.setattr(report_data, "ROWS", len(frame) - 1)
    content = report_data.content(frame, made, {})
    assert not content["whole"] and not content["scorings"]
    assert all(len(cell["values"]) == 7 for cell in content["cells"].values())


def test_every_number_leads_to_its_rows(page: str, frame: pd.DataFrame) -> None:
    tags = parsed(page)
    cells = unpacked(page)["cells"]
    assert {link[1:] for link in tags.links if link.startswith("#cell/")} == set(cells)
    assert set(cells) <= set(tags.ids)  # where scripts are off the link leads to the line of the number


def test_what_can_be_filtered_by(frame: pd.DataFrame, made: Comparison) -> None:
    asked = {name: {"p000": Prompt("p000", "x", ("near", "a b"))} for name in SETS}
    found = {
        facet.name: [value for value, _, _ in facet.choices] for facet in report._facets(frame, made, asked)
    }
    assert found["set"] == list(SETS)
    assert found["run"] == list(dict.fromkeys(frame["experiment"]))
    assert found["tag"] == ["a b", "near"]
    assert set(found["metric"]) == {e.metric for e in made.estimates}
    assert "suite" not in found and "model" not in found  # one of each is nothing to choose from
    two = frame.assign(suite=frame["suite"].where(frame["prompt_set"] == SCENES, "other:543210"))
    (suites,) = (facet for facet in report._facets(two, made, asked) if facet.name == "suite")
    assert [sets for _, _, sets in suites.choices] == [[PREFERENCE, PORTRAITS], [SCENES]]


def test_shares_of_wins_and_judges_that_order_two_lead_to_their_rows(
    frame: pd.DataFrame, made: Comparison, tmp_path: Path
) -> None:
    verdicts = [
        panel.Verdict(name, Interval(0.8, 0.7, 0.9), False) for name in ("win_rate_gold", "win_rate_judge")
    ]
    flip = panel.Flip("miniature", SCENES, "joint", "fairness", (verdicts[0],), (verdicts[1],))
    made = replace(made, panel=replace(made.panel, flips=(flip,)))
    page = report.render(frame, made, tmp_path, tmp_path, "x")
    (table,) = re.findall('aria-label="Win, tie and loss"><table>(.*?)</table>', page, re.DOTALL)
    for line in re.findall('<tr class="leaf".*?</tr>', table):
        links = re.findall('href="#([^"]*)">[^<]', line)
        assert len(links) == 7 and len(set(links)) == 1  # shares, prompts, p
    (table,) = re.findall(
        'aria-label="Checkpoints that judges order differently"><table>(.*?)</table>', page, re.DOTALL
    )
    assert re.findall('href="#([^"]*)">([^<]*)</a>', table) == [
        (f"cell/miniature/{SCENES}/win_rate_gold/joint", "gold_utility 80.0 [70.0, 90.0]"),
        (f"cell/miniature/{SCENES}/win_rate_judge/fairness", "clip_judge 20.0 [10.0, 30.0]"),
    ]
    parsed(page)
    # the base's own cell is one half by definition: a judge that is for it speaks in the other's
    flip = panel.Flip("miniature", SCENES, "joint", "base", (verdicts[0],), (verdicts[1],))
    made = replace(made, panel=replace(made.panel, flips=(flip,)))
    page = report.render(frame, made, tmp_path, tmp_path, "x")
    (table,) = re.findall(
        'aria-label="Checkpoints that judges order differently"><table>(.*?)</table>', page, re.DOTALL
    )
    assert re.findall('href="#([^"]*)">', table) == [
        f"cell/miniature/{SCENES}/{metric}/joint" for metric in ("win_rate_gold", "win_rate_judge")
    ]


def test_floors_and_ranked_prompts_lead_to_the_rows_of_their_gap(page: str) -> None:
    for table in re.findall(
        r'aria-label="(?:Gaps on|Prompts of)[^"]*"><table>(.*?)</table>', page, re.DOTALL
    ):
        for line in re.findall(r"<tr.*?</tr>", table.partition("<tbody>")[2], re.DOTALL):
            told = re.findall(r"<td>(?:<[^>]*>)*(\d\.\d{3}[^<]*)", line)
            assert len(told) >= 2
            assert len(told) == len(re.findall(r'<td><a class="cell"[^>]*>\d\.\d{3}', line))


# ----------------------------------------------------------------------------------------- over-optimisation


def curve_table(folder: Path, **changes: object) -> Path:
    lines = []
    for role, metric, gains in (
        ("proxy", "reward_mean", (0, 1, 2)),
        ("judge", "win_rate_judge", (0, 0.2, 0.1)),
    ):
        for place, gain in enumerate(gains):
            line = {
                "iteration": 10 * place,
                "experiment": ["base", "joint@10", "joint"][place],
                "kl": 5.0 * place,
                "question": "imagereward",
                "role": role,
                "metric": metric,
                "prompt_set": PREFERENCE,
                "gain": gain,
                "gain_low": gain - 0.05 * place,
                "gain_high": gain + 0.05 * place,
                "kept": int(place == 1),
                "apart": int(place == 2 and role == "judge"),
            }
            lines.append({**line, **changes})
    pd.DataFrame(lines).to_csv(folder / "curve.csv", index=False)
    return folder / "curve.csv"


def test_two_models_are_two_parts_of_a_page(frame: pd.DataFrame, tmp_path: Path) -> None:
    some = frame[frame["experiment"].isin(["base", "joint"]) & (frame["seed"] == 0)]
    both = pd.concat([some, some.assign(model="other")], ignore_index=True)
    page = report.render(both, compare.compare(both, resamples=20), tmp_path, tmp_path, "x")
    tags = parsed(page)
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert page.count('<div class="group" data-model=') == 2 and 'name="model" value="other"' in page


def test_curves_of_checkpoints_are_drawn_with_the_one_to_keep(
    frame: pd.DataFrame, tmp_path: Path, made: Comparison
) -> None:
    curve_table(tmp_path)
    found, problems, others = report_runs.over_optimisation(tmp_path / "runs", runs_of("base", "joint"), {})
    assert problems == others == []
    (one,) = found
    assert (one["experiment"], one["kept"], one["apart"]) == ("joint", "10", "a judge at iteration 20")
    proxy, judge = one["series"]
    assert proxy["title"].startswith("proxy") and judge["title"].endswith("points")
    assert "nats of KL: begins with" in proxy["charts"][1]
    for drawing in (*proxy["charts"], *judge["charts"]):
        assert drawing.count('class="kept"') == 1 and ">keep<" in drawing
    assert [chart.count('class="ring"') for chart in (*proxy["charts"], *judge["charts"])] == [0, 0, 1, 1]
    page = report.render(frame, made, tmp_path / "runs", tmp_path / "images", "x")
    parsed(page)
    assert "keep iteration 10" in page
    assert "the proxy has risen and another has fallen: a judge at iteration 20." in page
    assert report_runs.over_optimisation(tmp_path / "runs", runs_of("base"), {}) == ([], [], [])


def test_where_gold_alone_has_fallen_no_judge_is_said_to_have(tmp_path: Path) -> None:
    path = curve_table(tmp_path)
    table = pd.read_csv(path)
    gold = table[table["role"] == "judge"].assign(role="gold", metric="win_rate_gold")
    pd.concat([table.assign(apart=0), gold]).to_csv(path, index=False)
    ((one,), _, _) = report_runs.over_optimisation(tmp_path / "runs", runs_of("joint"), {})
    assert one["apart"] == "a judge nowhere, gold at iteration 20"


def test_a_broken_table_of_curves_is_said(tmp_path: Path) -> None:
    path = curve_table(tmp_path)
    path.write_text(path.read_text().replace(",kept,", ",keept,"))
    assert report_runs.over_optimisation(tmp_path / "runs", runs_of("joint"), {}) == (
        [],
        [f"{path}: lacks the column kept, so its curves are not shown"],
        [],
    )
    curve_table(tmp_path, metric="charm")
    found, (problem,), _ = report_runs.over_optimisation(tmp_path / "runs", runs_of("joint"), {})
    assert found == [] and "there is no metric 'charm'" in problem


def runs_of(*experiments: str) -> list[report_runs.Run]:
    return [report_runs.Run(f"{name}-miniature-0", name, {}, [], []) for name in experiments]


def scored_by(file: Path, run: str, weights: str) -> None:
    """Write beside a score file which weights drew the pictures of a run."""
    experiment, model, seed = run.split("-")
    told = {"experiment": experiment, "model": model, "seed": int(seed), "weights": weights}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    asides.beside(file).write_text(json.dumps({"model": told, "rows_sha256": digest}))


@pytest.mark.parametrize(
    ("run", "made_by", "why"),
    [
        ("joint-miniature-0", "0123456789ab", ""),
        ("joint-miniature-0", "ba9876543210", "is of joint-miniature-0 with the weights ba9876543210, and those that were scored are 0123456789ab"),
        ("joint-miniature-3", "0123456789ab", "is of joint-miniature-3, and what was scored of joint is another run"),
    ],
    ids=["the same", "other weights", "another seed"],
)  # fmt: skip
def test_curves_of_checkpoints_of_another_run_are_left_out_and_it_is_said(
    tmp_path: Path, run: str, made_by: str, why: str
) -> None:
    path = curve_table(tmp_path)
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / f"{run}.csv").write_text("rows")
    scored_by(tmp_path / "curves" / f"{run}.csv", run, made_by)
    weights = {"joint-miniature-0": {"0123456789ab"}}
    found = report_runs.over_optimisation(tmp_path / "runs", runs_of("base", "joint"), weights)
    assert found.problems == []
    assert len(found.curves) == (not why)
    assert found.others == ([("joint", f"{path} {why}, so its curves are not shown")] if why else [])


# ------------------------------------------------------------------------------------------------ whose runs they are


def own_run(folder: Path, weights: bytes, **card: object) -> Path:
    """A finished run with weights, that says of itself what it is."""
    run = folder / "joint-miniature-0"
    run_directory(folder, run.name)
    told = json.loads((run / "run.json").read_text())
    told |= {"name": run.name, "model": "miniature", "seed": 0, "base": None}
    told |= {"rewards": ["imagereward", "objects", "skin_tone"], **card}
    (run / "run.json").write_text(json.dumps(told))
    (run / "unet").mkdir()
    (run / "model_index.json").write_text("{}")
    (run / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    return run


def page_of(scores: Path, runs: Path) -> str:
    report.write([scores], runs, scores.parent / "images", scores.parent / "page.html", "x", 20)
    return (scores.parent / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def scores(frame: pd.DataFrame, tmp_path: Path) -> Path:
    """Of the base and of a run of one seed."""
    some = frame["experiment"].isin(["base", "joint"]) & (frame["seed"] == 0)
    rows.write(frame[some], tmp_path / "scores.csv")
    return tmp_path / "scores.csv"


def test_a_run_of_other_weights_than_those_scored_is_left_out_and_it_is_said(
    scores: Path, tmp_path: Path
) -> None:
    """As one of the same name in another folder, or one that was trained again."""
    mine, again = (own_run(tmp_path / name, name.encode()) for name in ("runs", "again"))
    digests = [checkpoints.resolve(str(run)).digest() for run in (mine, again)]
    scored_by(scores, mine.name, digests[0])
    page = page_of(scores, tmp_path / "runs")
    assert page.count("<polyline") == 2 * 2 * 2 and "480,000" in page and "1 of 2 do not hold" in page
    assert "is another run" not in page and "is not known of" not in page
    page = page_of(scores, tmp_path / "again")
    parsed(page)
    told = f"{again} is another run than the joint-miniature-0 that was scored, so nothing of it is shown: "
    told += f"its weights are {digests[1]}, and those that were scored {digests[0]}; --runs names the folder of the right one."
    assert (
        page.count(f'<p class="warn" data-run="joint">{told}</p>') == 2
    )  # above the curves, and above the cost
    assert "<polyline" not in page and "480,000" not in page and "1 of 2 do not hold" not in page


def test_where_weights_are_not_told_it_is_said_that_the_run_is_not_proven(
    scores: Path, tmp_path: Path
) -> None:
    run = own_run(tmp_path / "runs", b"weights")
    told = "Whether these are the weights that were scored is not known of joint-miniature-0: "
    page = page_of(scores, tmp_path / "runs")
    assert told in page and "<polyline" in page
    scored_by(scores, run.name, checkpoints.resolve(str(run)).digest())
    assert told not in page_of(scores, tmp_path / "runs")
    (run / "model_index.json").unlink()  # its record was copied, and no weights
    page = page_of(scores, tmp_path / "runs")
    assert told in page and "<polyline" in page


def test_a_lora_whose_base_is_named_from_another_folder_is_not_known_and_no_other_run(
    scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`models/sd` is a folder where it was trained; from elsewhere it reads as a hub's id. Once that is among the downloads it is one."""
    run = own_run(tmp_path / "runs", b"weights", base="models/sd")
    shutil.rmtree(run / "unet")
    (run / "model_index.json").unlink()
    (run / checkpoints.LORA_FILE).write_bytes(b"adapters")
    base = tmp_path / "models" / "sd"
    (base / "unet").mkdir(parents=True)
    (base / "model_index.json").write_text("{}")
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"base")
    monkeypatch.chdir(tmp_path)
    scored_by(scores, run.name, checkpoints.resolve(str(run)).digest())
    unknown, another = "is not known of joint-miniature-0", "is another run than the joint-miniature-0"
    page = page_of(scores, tmp_path / "runs")
    assert unknown not in page and another not in page and "<polyline" in page
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    page = page_of(scores, tmp_path / "runs")
    assert unknown in page and another not in page and "<polyline" in page
    scored_by(scores, run.name, checkpoints.resolve(str(run)).digest())  # by the id
    assert unknown not in page_of(scores, tmp_path / "runs")
    scored_by(scores, run.name, "0" * 12)
    monkeypatch.setattr(bases, "is_kept", lambda *of: of == ("models/sd", "model_index.json", None))
    assert another in page_of(scores, tmp_path / "runs")


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({"name": "joint-miniature-1"}, "its run.json is that of joint-miniature-1"),
        ({"rewards": ["objects", "mine.py"]}, "by its run.json it was trained on objects, and by its rows the one that was scored on imagereward, objects, skin_tone"),
        ({"rewards": []}, "by its run.json it was trained on none of the scorers, and by its rows"),
    ],
    ids=["name", "rewards", "no reward"],
)  # fmt: skip
def test_a_run_whose_record_is_not_that_of_the_rows_is_left_out(
    scores: Path, tmp_path: Path, card: dict[str, object], why: str
) -> None:
    own_run(tmp_path / "runs", b"weights", **card)
    page = page_of(scores, tmp_path / "runs")
    assert f"so nothing of it is shown: {why}" in page and "<polyline" not in page


def test_a_run_that_is_being_trained_is_not_the_one_that_was_scored(scores: Path, tmp_path: Path) -> None:
    run = own_run(tmp_path / "runs", b"weights")
    (run / "run.json").unlink()
    (run / "state").mkdir()
    page = page_of(scores, tmp_path / "runs")
    assert "it has not finished, and what is scored has" in page and "<polyline" not in page


# ------------------------------------------------------------------------------------------------------ looks


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_is_legible(page: str, mode: int) -> None:
    colours = {
        name: pair[mode] for name, *pair in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\);", page)
    }
    texts = {"ink", "soft", "good", "bad", "moved", *(f"c{i}" for i in range(8))}
    assert texts <= set(colours)
    for text in texts:
        for ground in ("page", "card"):
            high, low = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_the_page_says_its_language_and_has_landmarks(page: str) -> None:
    assert '<html lang="en">' in page and re.search("<title>[^<]+</title>", page)
    assert page.count("<main") == 1 and page.count("<nav") == 1
    assert '<a class="skip" href="#content">' in page and '<main id="content">' in page
    for table in re.findall(r'<div class="[^"]*scroll[^"]*"[^>]*>', page):
        assert 'tabindex="0"' in table and 'role="region"' in table and "aria-label=" in table


def test_every_table_has_headings_of_columns_and_of_lines(page: str) -> None:
    """So that a screen reader says with a number of which run and what it is; of what is in per cent the head says so."""
    assert re.findall(r"<th\b(?![^>]* scope=)[^>]*>", page) == []
    found = re.findall("<table.*?</table>", page, re.DOTALL)
    assert len(found) > 8
    for table in found:
        lines = re.findall("<tr(?! class=.(?:first|about|set))[^>]*>(.*?)</tr>", table, re.DOTALL)
        assert all('<th scope="row"' in line or 'scope="col"' in line for line in lines), table[:200]
    (wins,) = re.findall('aria-label="Win, tie and loss"><table>(.*?)</thead>', page, re.DOTALL)
    assert [f">{share}, %<" in wins for share in ("won", "tied", "lost", "half-tie", "ties dropped")] == [
        True
    ] * 5


SAID = {
    **{"▲": "better", "▼": "worse", "◆": "changed", "≈": "not distinguished"},
    **{"△": "better, not after Holm's correction", "▽": "worse, not after Holm's correction", "◇": "changed, not after Holm's correction"},
}  # fmt: skip


def test_every_sign_is_said_in_words_to_who_hears_the_page(page: str) -> None:
    said = re.findall('<span aria-hidden="true">(.)([^<]*)</span><span class="aloud">([^<]*)</span>', page)
    assert len(said) == page.count('<span aria-hidden="true">')
    assert {sign for sign, _, _ in said} >= {"≈", "△", "▽"}
    assert all(words.replace("&#39;", "'") == SAID[sign] for sign, _, words in said)
    (numbers,) = re.findall('<h2 id="numbers">.*?</section>', page, re.DOTALL)
    (tax,) = re.findall('<h2 id="tax">.*?</section>', page, re.DOTALL)
    for section in (numbers, tax):
        shown = section.split("</p>", 2)[2]  # beneath what explains them
        assert re.findall("[▲▼◆≈△▽◇]", shown)
        assert not re.findall("[▲▼◆≈△▽◇]", re.sub('<span aria-hidden="true">[^<]*</span>', "", shown))


def test_what_explains_a_number_is_there_for_who_cannot_point_at_it(page: str, made: Comparison) -> None:
    """What a metric is and by which test its p was found: in sight, where they were in titles that a mouse alone shows."""
    for e in made.estimates:
        if not math.isnan(e.p_holm):
            assert f" <small>{e.test}</small></td>" in page
    gold = [e for e in made.estimates if e.metric == "win_rate_gold" and e.experiment == "base"]
    about = '<tr class="about"><td colspan="9"><span>Share of images with a higher gold utility than the base'
    assert page.count(about) == len(gold) > 0


def test_a_chart_says_in_words_where_it_begins_and_ends(page: str) -> None:
    told = "reward over images: begins with 0.00 at 96, is highest with 0.20 at 288, ends with 0.20 at 288 images"
    assert page.count(f'aria-label="{told}"') == 2
    assert report_runs._in_words([0, 1, 2], [math.nan] * 3, "x") == ""
    drawn = report_runs._in_words([0.5, 1.25, 2.0], [0.0, 3.0, -1.0], "nats of KL")
    assert (
        drawn == ": begins with 0.00 at 0.50, is highest with 3.00 at 1.25, ends with -1.00 at 2 nats of KL"
    )


def test_drawings_hold_what_they_are_given() -> None:
    scale = svg.scale_of([0.0, 1.0, math.nan])
    assert scale == (0.0, 1.0)
    bar = svg.interval_bar(0.5, 0.25, 0.75, 0.0, scale, "c1", 'a "label" <b>')
    assert 'cx="50.00%"' in bar
    assert 'x1="26.00%"' in bar
    assert "<b>" not in bar
    assert svg.interval_bar(math.nan, 0, 0, 0, scale, "c1", "x") == ""
    assert svg.chart([svg.Line([0], [math.nan], "mean")], "t", "x") == ""
    assert svg.chart([svg.Line([0, 1], [2.0, 2.0], "mean")], "flat", "x").count("<polyline") == 1
    bar = svg.win_bar(0.5, 0.125, 0.375, "<x>")
    assert "50 % won, 12 % tied, 38 % lost" in bar and "<x>" not in bar
    assert re.findall('class="(won|tied|lost)" x="([^"]*)%" width="([^"]*)%"', bar) == [
        ("won", "0.00", "50.00"),
        ("tied", "50.00", "12.50"),
        ("lost", "62.50", "37.50"),
    ]
    assert svg.win_bar(math.nan, 0, 1, "x") == svg.monk_histogram([0] * 10, 1.0, "x") == ""
    assert svg.monk_histogram([1] * 10, 0.2, "x").count("<rect") == 10
    none = svg.Marks(None, ())
    assert svg.banded([0], [math.nan], [0], [0], none, "t", "x", "") == ""
    flat = svg.banded([0, 1], [0, 0], [0, 0], [0, 0], none, "t", "x", "")
    assert "nan" not in flat and "keep" not in flat
    strip = svg.tone_strip([1, 0, 0, 3], 0, "x")
    assert 'width="75.00%"' in strip
    assert svg.tone_strip([0, 0, 0, 0], 0, "x") == ""


def test_command_line(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("evals.stats.weights", _few_weights())
    rows.write(frame, Path("all.csv"))
    made = CliRunner().invoke(main, ["compare", "all.csv", "--out", "results/table.md"])
    assert made.exit_code == 0, made.output
    assert "win rate (gold)" in made.output
    assert "python -m evals compare all.csv --out results/table.md" in Path("results/table.md").read_text()
    made = CliRunner().invoke(main, ["report", "all.csv", "--out", "results/report.html"])
    assert made.exit_code == 0, made.output
    parsed(Path("results/report.html").read_text())


def _few_weights() -> object:
    from evals import stats

    plain = stats.weights
    return lambda units, _, seed, stream, strata: plain(units, 50, seed, stream, strata)


def test_a_page_speaks_of_what_is_compared_with(frame: pd.DataFrame, tmp_path: Path) -> None:
    two = frame[frame["experiment"].isin(["fairness", "joint"])]
    old = two["scorer"].isin(["objects", "clip_judge", "gold_utility"]) & (two["experiment"] == "fairness")
    rows.write(two.assign(version=two["version"].mask(old, "11111111")), tmp_path / "all.csv")
    options = ["report", str(tmp_path / "all.csv"), "--out", str(tmp_path / "page.html")]
    refused = CliRunner().invoke(main, [*options, "--force"])
    assert "say what else to compare with: --against fairness or joint" in refused.output
    refused = CliRunner().invoke(main, [*options, "--against", "fairness"])
    assert "scores of different versions cannot be compared" in refused.output
    made = CliRunner().invoke(main, [*options, "--against", "fairness", "--force"])
    assert made.exit_code == 0, made.output
    page = (tmp_path / "page.html").read_text()
    parsed(page)
    assert '<span class="name c1">joint</span> is better than fairness in ' in page
    assert "training seeds per experiment</dt><dd>2</dd>" in page
    assert "paired difference to fairness, each" in page
    assert not re.search(r"[Dd]ifferences? (to|from) the base|dashed line is the base|Base on the left", page)
    assert "‡1 Forced, what cannot be compared: " in page
    assert len(re.findall("‡1", page)) > 2
    assert re.search(r"<td>clip_judge‡\d</td>", page), "among the judges"
    assert re.search(r"by gold_utility‡\d", page), "above the pictures that it chose"
    assert "--against fairness --force</code>" in page


@pytest.mark.parametrize(("command", "out"), [("compare", "table.md"), ("report", "report.html")])
def test_a_mistake_is_one_sentence_and_exit_code_2(command: str, out: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(main, [command, str(tmp_path / "absent.csv"), "--out", str(tmp_path / out)])
    assert made.exit_code == 2
    assert made.output.startswith("error: ")
    assert "absent.csv" in made.output
    assert made.output.count("\n") == 1


def test_damaged_pictures_and_cards_leave_the_rest_of_the_page(frame: pd.DataFrame, tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    rows.write(frame, scores)
    whole, bomb = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (300, 300), "red").save(whole, format="PNG")
    Image.new("1", (20_000, 10_000)).save(bomb, format="PNG")
    contents = [b"", whole.getvalue()[:60], bomb.getvalue(), whole.getvalue()[:45] + bytes(8)]
    for number, content in enumerate(contents):
        path = tmp_path / "images" / "joint-miniature-0" / SETS[1] / f"p{number:03d}" / "0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    (tmp_path / "runs" / "joint-miniature-0").mkdir(parents=True)
    (tmp_path / "runs" / "joint-miniature-0" / "run.json").write_text('{"cost": "much", "gates": [1]}')
    report.write([scores], tmp_path / "runs", tmp_path / "images", tmp_path / "page.html", "report", 100)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "(cannot be opened)" in page
    assert "data:image" not in page
