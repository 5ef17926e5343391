"""The page: self-contained, escaped, generated from the numbers, and plain about what is missing."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from evals import compare, report, rows, svg
from evals.__main__ import main
from tests.synthetic_rows import SETS, study

PREFERENCE, SCENES, PORTRAITS = SETS
VOID = {"meta", "img", "input", "line", "circle", "rect", "polyline"}


class Tags(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images_without_alt = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag != "script"
        self.fetched += [value for name in ("src", "data", "srcset") if (value := given.get(name))]
        self.links += [value for name, value in attrs if name == "href" and value]
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


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return study(prompts=7, images=4, seeds=(0, 1))


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
    assert all(source.startswith("data:image/") for source in tags.fetched)
    assert all(link.startswith("#") for link in tags.links)
    assert {link[1:] for link in tags.links} <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))
    assert "url(" not in page
    assert tags.images_without_alt == 0
    assert "image-rendering: pixelated" in page


def test_the_same_numbers_make_the_same_page(frame: pd.DataFrame, tmp_path: Path) -> None:
    made = compare.compare(frame, resamples=50)
    first, second = (report.render(frame, made, tmp_path, tmp_path, "x") for _ in range(2))
    assert first == second


def test_the_headline_is_generated_from_the_numbers(frame: pd.DataFrame) -> None:
    made = compare.compare(frame, resamples=200)
    told = report.headline(made, "miniature")
    assert told["experiment"] == "joint"  # the run with the most rewards
    (gold,) = made.of(experiment="joint", metric="win_rate_gold", prompt_set=PREFERENCE)
    assert f"win rate (gold) to {100 * gold.value.value:.1f} %" in told["gain"]
    assert "detection" not in told["gain"]  # the run was trained on it, and a held-out measure is there
    assert re.search(
        r"parity gap over its floor from 0\.\d+ to [−\d.]+†", told["gain"]
    )  # no held-out measure: marked
    assert "diversity" in told["cost"]


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


def test_a_page_without_any_run_or_picture_is_a_page(frame: pd.DataFrame, tmp_path: Path) -> None:
    made = compare.compare(frame, resamples=50)
    bare = report.render(frame, made, tmp_path / "runs", tmp_path / "images", "x")
    parsed(bare)
    assert "No training logs were found" in bare
    assert "<img" not in bare


def test_prompts_and_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "<script>alert(1)</script>\"'&"
    frame = study(prompts=3, images=2, seeds=(0,), experiments=("base", "joint"))
    frame = frame.replace({"p000": evil, SCENES: f"scenes{evil}", "joint": f"joint{evil}"})
    monkeypatch.setattr(report, "_texts", lambda _: {f"p{i:03d}": f"text {i} {evil}" for i in range(3)})
    made = compare.compare(frame, resamples=20)
    page = report.render(frame, made, tmp_path, tmp_path, f"x {evil}")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    parsed(page)


def test_a_prompt_id_cannot_reach_out_of_the_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret" / "0.png")
    pictures = report.Pictures(tmp_path / "images")
    assert pictures.get("..", "..", "secret", 0, "x").data is None
    assert pictures.missing == {"..": 1}


def test_small_pictures_are_kept_as_they_are_and_large_ones_are_shrunk(tmp_path: Path) -> None:
    picture(tmp_path / "run" / "set" / "a" / "0.png", size=64)
    picture(tmp_path / "run" / "set" / "a" / "1.png", size=512)
    pictures = report.Pictures(tmp_path)
    small, large = (pictures.get("run", "set", "a", index, "x").data for index in (0, 1))
    assert small is not None
    assert large is not None
    assert base64.b64decode(small.split(",")[1]) == (tmp_path / "run" / "set" / "a" / "0.png").read_bytes()
    assert large.startswith("data:image/webp")


def test_wins_and_losses_are_the_extremes_and_the_sample_is_not_chosen(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    texts: dict[str, dict[str, str]] = {prompt_set: {} for prompt_set in SETS}
    shown = report._extremes(frame, "joint", report.Pictures(tmp_path), texts)
    wins, losses = shown["groups"][:2]
    assert wins["scorer"] == "gold_utility"
    mine = frame[
        (frame["experiment"] == "joint") & (frame["seed"] == 0) & (frame["scorer"] == "gold_utility")
    ]
    mine = mine[mine["prompt_set"] == wins["prompt_set"]].set_index(["prompt_id", "image"])["value"]
    base = frame[(frame["experiment"] == "base") & (frame["scorer"] == "gold_utility")]
    base = base[base["prompt_set"] == wins["prompt_set"]].set_index(["prompt_id", "image"])["value"]
    gains = (mine - base).sort_values()
    assert [pair["gain"] for pair in wins["pairs"]] == [f"{gain:+.2f}" for gain in gains.tail(3)[::-1]]
    assert [pair["gain"] for pair in losses["pairs"]] == [
        f"{g:+.2f}".replace("-", "−") for g in gains.head(3)
    ]
    changed = frame.assign(value=0.0)
    pictures = report.Pictures(tmp_path)
    samples = [report._samples(f, ["base", "joint"], pictures, texts) for f in (frame, changed)]
    assert [line["text"] for line in samples[0][0]["lines"]] == [
        line["text"] for line in samples[1][0]["lines"]
    ]
    assert len({line["text"] for line in samples[0][0]["lines"]}) == report.SAMPLE


def test_tones_of_a_base_that_every_seed_repeats_are_counted_once(frame: pd.DataFrame) -> None:
    base = frame[frame["experiment"] == "base"]
    repeated = pd.concat([frame, base.assign(seed=7)], ignore_index=True)
    assert report._tones(repeated, ["base", "joint"]) == report._tones(frame, ["base", "joint"])


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
    return lambda units, _, seed, stream: plain(units, 50, seed, stream)


@pytest.mark.parametrize(("command", "out"), [("compare", "table.md"), ("report", "report.html")])
def test_a_mistake_is_one_sentence_and_exit_code_2(command: str, out: str, tmp_path: Path) -> None:
    made = CliRunner().invoke(main, [command, str(tmp_path / "absent.csv"), "--out", str(tmp_path / out)])
    assert made.exit_code == 2
    assert made.output.startswith("error: ")
    assert "absent.csv" in made.output
    assert made.output.count("\n") == 1
