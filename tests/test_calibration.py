"""The miniature's scorers against its truth: what is drawn is what is said, the measures are their definitions, and a scorer that is wrong is seen to be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy import stats as scipy_stats

import prompts
from evals import scorers, stats
from evals.__main__ import main
from evals.miniature import calibration, measure
from evals.miniature.calibration import CLEAR, FAULTLESS, PORTRAITS_AS, SCENES, Drawn
from evals.miniature.scorers import fully_right, gold_utility, imagereward, vendi
from prompts import Prompt, world
from prompts.world import OBJECTS, RELATIONS, scene_caption, stable_fraction
from train.miniature import data, preference


def test_no_scorer_was_taught_the_captions_that_it_is_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The captions of all pictures and votes that the reward model and the judge learnt from, drawn again, but for the pictures."""
    blank = np.zeros((64, 64, 3), np.float32)
    monkeypatch.setattr(data, "draw_scene", lambda *_: blank)
    monkeypatch.setattr(data, "draw_portrait", lambda *_: blank)
    seeds = (preference.REWARD_SEED, preference.JUDGE_SEED)
    taught = {one.caption for seed in seeds for one in data._drawn(preference.CHOICES, seed, data.MATCHED)}
    for pairs in (*preference.REWARD_PAIRS, preference.JUDGE_PAIRS):
        rng = np.random.default_rng([pairs.seed, 5])  # as `draw_votes` draws them
        taught |= {preference.random_prompt(rng).text for _ in range(pairs.count)}
    every = [scene_caption(pair, relation) for pair in permutations(OBJECTS, 2) for relation in RELATIONS]
    left = sorted({*every} - taught, key=lambda text: stable_fraction("held out " + text))
    held_out = prompts.load(calibration.HELD_OUT)
    assert [prompt.text for prompt in held_out] == left[:100]
    for prompt in held_out:
        (first, second), relation = world.read_scene(prompt.text)  # type: ignore[misc]
        assert prompt.expect == world.scene_prompt(first, second, relation, ())["expect"]


def asked(count: int) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    return prompts.load(calibration.HELD_OUT)[:count], prompts.load(calibration.PORTRAITS)[:count]


def test_the_renderer_draws_what_is_said_of_it() -> None:
    scenes, portraits = calibration.rendered(*asked(8))
    assert {one.version for one in scenes} == {*SCENES}
    for one in scenes:
        found = measure.find_objects(one.picture)
        if one.version in (FAULTLESS, "wrong side"):
            assert len(found) == 2
            assert one.objects == 1
            assert measure.fully_right(one.prompt.expect, found) == (one.version == FAULTLESS), (
                one.prompt.text
            )
        if one.version in ("one missing", "wrong colour", "wrong shape"):
            assert one.objects == 0.5
            assert not measure.fully_right(one.prompt.expect, found)
            assert len(found) == (1 if one.version == "one missing" else 2)
        assert (one.picture * 255 == (one.picture * 255).round()).all()
    sharp = pd.Series([measure.crispness(one.picture) for one in scenes])
    mean = sharp.groupby([one.version for one in scenes]).mean()
    dim = ["dull", "blurred"]
    assert mean[dim].max() < mean.drop(dim).min() - 0.2
    assert {one.version for one in portraits} == {*PORTRAITS_AS}
    for one in portraits:
        dressed = measure.dress_score(one.prompt.expect["occupation"], one.picture)
        if one.version in (FAULTLESS, "wrong dress"):
            assert (dressed > 0.5) == (one.version == FAULTLESS)
            assert measure.face_tone(one.picture) == pytest.approx(one.tone, abs=1)
    again, _ = calibration.rendered(*asked(1))
    assert (again[0].picture == scenes[0].picture).all()


def test_measures_are_their_definitions() -> None:
    rng = np.random.default_rng(0)
    truth, score = rng.integers(0, 5, 30).astype(float), rng.integers(0, 4, 30).astype(float)
    pairs = [(i, j) for i, j in combinations(range(30), 2) if abs(truth[i] - truth[j]) > CLEAR]
    right = [
        0.5 if score[i] == score[j] else float((score[i] > score[j]) == (truth[i] > truth[j]))
        for i, j in pairs
    ]
    assert calibration.in_order(score, truth, CLEAR) == (sum(right), len(pairs))
    tau = calibration.from_products(np.array(calibration.signs(score, truth)))
    assert tau == pytest.approx(scipy_stats.kendalltau(score, truth).statistic)
    r = calibration.from_products(np.array(calibration.products(score, truth)))
    assert r == pytest.approx(np.corrcoef(score, truth)[0, 1])
    assert calibration.estimate([(3.0, 3.0)] * 8, calibration.ratio) == stats.wilson(8, 8)
    values = [(float(right), 10.0) for right in rng.integers(0, 11, 40)]
    found = calibration.estimate(values, calibration.ratio)
    error = np.std([a / 10 for a, _ in values]) / np.sqrt(40)
    assert found.value == pytest.approx(sum(a for a, _ in values) / 400)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def held_to_utility(score: Any) -> dict[str, float]:
    scenes, _ = calibration.rendered(asked(4)[0], ())
    gold = np.array([gold_utility.Scorer().value(one.prompt, one.picture) for one in scenes])
    lines = calibration.by_utility("x", "rendered scenes", scenes, score(gold), gold)
    return {one.measure: one.value.value for one in lines}


def test_the_utility_itself_agrees_in_all_and_its_opposite_in_none() -> None:
    assert [*held_to_utility(lambda gold: 2 * gold + 1).values()] == pytest.approx([1, 1, 1, 1])
    opposite = held_to_utility(lambda gold: -gold)
    assert sorted(opposite.values()) == pytest.approx([-1, -1, 0, 0])
    nothing = held_to_utility(lambda gold: 0 * gold)
    assert nothing[calibration.PAIRS.name] == 0.5


def test_what_is_misread_is_wrong_and_what_is_not_said_is_counted() -> None:
    _, portraits = calibration.rendered((), asked(3)[1])
    tone = np.array([float(one.tone) for one in portraits if one.tone is not None])
    read = np.where(np.arange(len(tone)) % 4 == 0, np.nan, np.where(tone == 9, 6.0, tone))
    lines = list(calibration.by_drawing("monk_tone", portraits, read, tone, "tone", range(10)))
    for kind, dim in (("crisp", False), ("dull or blurred", True)):
        here = np.array([(one.version in ("dull", "blurred")) == dim for one in portraits])
        known = here & ~np.isnan(read)
        wrong, far = (one for one in lines if one.pictures == f"rendered portraits, {kind}")
        assert wrong.value.value == far.value.value == pytest.approx((tone[known] == 9).mean())
        assert wrong.unscored == pytest.approx(1 - known.sum() / here.sum())
        assert wrong.count == known.sum()


def test_the_command_holds_every_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, portraits = asked(3)
    few = {calibration.HELD_OUT: scenes, calibration.PORTRAITS: portraits[:1]}
    monkeypatch.setattr(calibration.prompts, "load", few.__getitem__)
    # a judge of no use, and one that turns things round: both show
    monkeypatch.setattr(imagereward.Scorer, "__call__", lambda _, images, asked: images.mean((1, 2, 3)))
    right = fully_right.Scorer.__call__
    monkeypatch.setattr(fully_right.Scorer, "__call__", lambda *given: 1 - right(*given))
    monkeypatch.setattr(vendi.Scorer, "__call__", lambda _, images, asked: torch.ones(len(images)))
    out = tmp_path / "miniature-scorers.md"
    done = CliRunner().invoke(main, ["calibrate", "miniature", "--out", str(out)])
    assert done.exit_code == 0, done.output
    told = out.read_text(encoding="utf-8")
    assert f"Made by `python -m evals calibrate miniature --out {out}`" in told
    frame = pd.read_csv(out.with_suffix(".csv"))
    assert {*frame["scorer"]} == {*scorers.names("miniature")} == {*calibration.HEADLINES}

    def value(scorer: str, measure_: calibration.Measure, pictures: str) -> float:
        is_it = (
            (frame["scorer"] == scorer)
            & (frame["measure"] == measure_.name)
            & (frame["pictures"] == pictures)
        )
        return float(frame[is_it & ~frame["truth"].str.startswith(calibration.WITHOUT)]["value"].iloc[0])

    assert value("fully_right", calibration.WRONG, "rendered scenes, crisp") > 0.9
    assert value("vendi", calibration.PAIRS, "scenes by the base") == 0.5
    assert np.isnan(value("vendi", calibration.TAU, "scenes by the base"))
    assert value("pairwise_distance", calibration.PAIRS, "scenes by the base") == 1
    assert value("objects", calibration.WRONG, "rendered scenes, crisp") < 0.1
    assert value("monk_tone", calibration.FAR, "rendered portraits, crisp") == 0
    assert value("kid", calibration.TAU, "scenes by the base") > 0
    assert abs(value("imagereward", calibration.CORRELATION, "rendered scenes")) < 0.6
    missing = frame[frame["truth"] == calibration.WITHOUT + "one missing"].set_index("scorer")["value"]
    assert missing["gold_utility"] == 1
    assert missing["clip_judge"] > 0.5


def test_options_of_other_calibrations_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["calibrate", "miniature", "--images", "fetched", "--out", str(tmp_path / "x.md")]
    )
    assert done.exit_code == 2
    assert "--images has no meaning for calibrate miniature: leave it out" in done.output


def test_copies_and_tones_are_of_the_number_that_is_said() -> None:
    scenes, portraits = asked(2)
    picture = np.zeros((64, 64, 3), np.float32)
    drawn = [Drawn(prompt, picture + i) for prompt in scenes for i in range(calibration.BASE_IMAGES)]
    for (_, kinds), some in calibration.copies(drawn).items():
        assert (len(some), len({float(one.picture.max()) for one in some})) == (4, kinds)
    for (_, kinds), some in calibration.tones(portraits).items():
        assert (len(some), len({one.tone for one in some})) == (10, kinds)
        assert len({one.picture.tobytes() for one in some}) == 10
