"""Suites ask what they say they ask: the paper's numbers of prompts and images, and scores that can be had of every part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import prompts
from evals import rows as score_rows
from evals import suites
from evals.suites import Suite, geneval
from tests.synthetic_rows import study

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
PHOTO = [name for name in suites.names() if suites.load(name).domain == "photo"]


def images(suite: Suite) -> dict[str, int]:
    return {part.prompt_set: part.images_per_prompt for part in suite.parts}


def test_the_papers_numbers(monkeypatch: pytest.MonkeyPatch):
    asked = images(suites.load("paper"))
    sizes = {"composition-seen": 300, "composition-unseen": 300, "occupations": 100, "person-objects": 200}
    assert {name: len(prompts.load(name)) for name in sizes} == sizes
    assert [asked[name] for name in sizes] == [1, 1, 16, 16]
    from prompts.sets import diffusiondb

    assert diffusiondb.TEST == 2_000
    if not (SHARED / "parti").is_dir():
        pytest.skip(f"PartiPrompts are not in {SHARED}")
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(SHARED))
    assert len(prompts.load("parti")) == 1_632


@pytest.mark.parametrize("name", PHOTO)
def test_every_suite_draws_as_checkpoints_are_trained_and_from_a_seed_of_its_own(name: str):
    suite = suites.load(name)
    assert (suite.sampling.steps, suite.sampling.guidance, suite.sampling.eta) == (50, 7.0, 1.0)
    assert [suites.load(other).seed for other in suites.names()].count(suite.seed) == 1


@pytest.mark.parametrize("name", PHOTO)
def test_what_is_said_of_the_pictures_of_one_prompt_has_several(name: str):
    """Variety and parity are of a group of pictures."""
    of_groups = {"vendi", "vendi_clip", "lpips", "skin_tone", "monk_tone"}
    for part in suites.load(name).parts:
        assert part.images_per_prompt >= 4 or not of_groups & {*part.scorers}


@pytest.mark.parametrize("name", PHOTO)
def test_every_part_has_a_headline_that_reads_one_of_its_scorers(name: str):
    from evals import metrics

    for part in suites.load(name).parts:
        assert part.headlines
        for headline in part.headlines:
            assert metrics.load(headline).scorer in part.scorers


def test_a_headline_that_is_no_metric_is_named(monkeypatch: pytest.MonkeyPatch):
    """A table without it would say nothing."""
    part = replace(geneval.SUITE.parts[0], headlines=("geneval_prompt",))
    monkeypatch.setattr(geneval, "SUITE", replace(geneval.SUITE, parts=(part,)))
    with pytest.raises(
        ValueError, match=r"suite geneval, geneval: the headline 'geneval_prompt' is no metric; choose from "
    ):
        suites.load("geneval")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([{}, {"scorers": ("clip_score",)}], "suite geneval, geneval: the prompt set is in two parts"),
        ([{"prompt_set": "mine/geneval.jsonl"}], "suite geneval, mine/geneval.jsonl: that is a path"),
        ([{"images_per_prompt": 0}], "suite geneval, geneval: images_per_prompt is 0"),
        ([{"scorers": ("geneval", "geneval")}], "suite geneval, geneval: the scorer geneval is there twice"),
        ([], "suite geneval has no part"),
    ],
    ids=["set twice", "path", "no image", "scorer twice", "no part"],
)
def test_a_suite_that_cannot_be_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, changes: list[dict[str, Any]], told: str
):
    """One of one's own: pictures and kept answers go by the name of the prompt set."""
    (part,) = geneval.SUITE.parts
    parts = tuple(replace(part, headlines=(), **change) for change in changes)
    monkeypatch.setattr(geneval, "SUITE", replace(geneval.SUITE, parts=parts))
    with pytest.raises(ValueError, match=told):
        suites.load("geneval")


def test_a_file_without_a_suite_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(geneval, "SUITE")
    with pytest.raises(ValueError, match=r"evals/suites/geneval\.py has no SUITE that is an evals\.suites"):
        suites.load("geneval")


def test_a_suite_may_name_an_order_of_the_vendi_score(monkeypatch: pytest.MonkeyPatch):
    part = replace(geneval.SUITE.parts[0], scorers=("vendi_q2",), headlines=("diversity_vendi_q2",))
    monkeypatch.setattr(geneval, "SUITE", replace(geneval.SUITE, parts=(part,)))
    assert suites.load("geneval").parts == (part,)
    part = replace(part, headlines=("diversity_vendi_q3",))  # of which it has no score
    monkeypatch.setattr(geneval, "SUITE", replace(geneval.SUITE, parts=(part,)))
    with pytest.raises(ValueError, match=r"the headline 'diversity_vendi_q3' is no metric; choose from "):
        suites.load("geneval")


DRAWN = {
    "steps": 20,
    "eta": 0.0,
    "guidance": 5.0,
    "precision": "fp32",
    "micro_batch": 3,
    "decoder_precision": "tf32",
}


@pytest.mark.parametrize("change", DRAWN)
def test_two_forms_of_a_suite_are_told_apart(change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of one name: rows of pictures that were drawn in another way are not compared, and no picture of the other form is taken."""
    before = suites.load("drift")
    assert getattr(before.sampling, change) != DRAWN[change]
    sampling: Any = replace(before.sampling, **{change: DRAWN[change]})
    after = replace(before, sampling=sampling)
    assert before.drawn.partition(":")[0] == after.drawn.partition(":")[0] == "drift"
    assert before.drawn != after.drawn
    frame = study(prompts=2, images=2, seeds=(0,), experiments=("base", "joint"))
    is_base = frame["experiment"] == "base"
    paths = [tmp_path / "base.csv", tmp_path / "joint.csv"]
    for path, part, suite in zip(paths, (frame[is_base], frame[~is_base]), (before, after), strict=True):
        score_rows.write(part.assign(suite=suite.drawn), path)
    with pytest.raises(
        ValueError, match=f"{before.drawn} in .* but on {after.drawn} in .*: they draw differently"
    ):
        score_rows.read(paths)


def test_another_seed_is_another_form_and_another_headline_is_not():
    suite = suites.load("drift")
    assert replace(suite, seed=suite.seed + 1).drawn != suite.drawn
    assert replace(suite, parts=(replace(suite.parts[0], headlines=()),)).drawn == suite.drawn


def test_drift_is_of_prompts_on_which_nobody_is_trained():
    for prompt_set in images(suites.load("drift")):
        assert "train" not in prompt_set
