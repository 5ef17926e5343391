"""What score rows say of diversity and drift: metrics, the alarm for collapse, and the guard against pictures that are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from evals import compare, metrics, stats, variety
from evals.miniature.render import Finish, draw_scene
from evals.miniature.scorers import pairwise_distance, vendi
from evals.scorers._vendi import vendi_score, within_prompts
from prompts import Prompt, load
from prompts.world import Object
from train.miniature.data import place


def rows(
    scorer: str, values: Mapping[str, Sequence[float]], seed: int = 0, prompt_set: str = "s", experiment: str = "x"
) -> pd.DataFrame:  # fmt: skip
    """Of one run on one prompt set: a list of image values for each prompt."""
    records = [(prompt, image, value) for prompt, some in values.items() for image, value in enumerate(some)]
    frame = pd.DataFrame(records, columns=["prompt_id", "image", "value"])
    return frame.assign(
        experiment=experiment, model="m", seed=seed, prompt_set=prompt_set, scorer=scorer, version="0a1b2c3d"
    )


def groups(vendi_P: Sequence[float], n: int = 4) -> dict[str, list[float]]:
    """Each prompt's score, repeated for its images."""
    return {f"p{number:03d}": [value] * n for number, value in enumerate(vendi_P)}


def value(name: str, mine: pd.DataFrame) -> float:
    metric = metrics.load(name)
    return stats.point(metric.statistics(mine, mine).to_numpy()[None], metric.finish)


# ------------------------------------------------------------------------------------------------------------- metrics

DIVERSITY = {"diversity_vendi": "vendi", "diversity_vendi_clip": "vendi_clip", "diversity_lpips": "lpips"}
DRIFT = {"drift": "kid", "drift_cmmd": "cmmd"}


@pytest.mark.parametrize(("name", "scorer"), (DIVERSITY | DRIFT).items())
def test_a_metric_is_the_mean_over_prompts_of_its_scorer(name: str, scorer: str) -> None:
    metric = metrics.load(name)
    assert metric.scorer == scorer
    assert metric.reference == (0.0 if name in DRIFT else None)
    assert metric.higher_is_better is (True if "vendi" in name else None)
    assert value(name, rows(scorer, {"a": [1.0, 2.0], "b": [3.0, 4.0]})) == 2.5


@pytest.mark.parametrize("name", ["diversity_vendi", "diversity_vendi_clip"])
def test_a_collapsed_set_has_diversity_1_and_an_orthogonal_one_n(name: str) -> None:
    asked = [Prompt(prompt, prompt) for prompt in "ab" for _ in range(4)]
    for features, expected in ((torch.ones(8, 3), 1), (torch.eye(8), 4)):
        scores = within_prompts(features, asked).view(2, 4).tolist()
        mine = rows(metrics.load(name).scorer, dict(zip("ab", scores, strict=True)))
        assert value(name, mine) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "title", "scorer"),
    [
        ("diversity_vendi_q2", "diversity (Vendi, order 2)", "vendi_q2"),
        ("diversity_vendi_clip_qinf", "diversity (Vendi, CLIP, order inf)", "vendi_clip_qinf"),
    ],
)
def test_every_order_has_its_metric(name: str, title: str, scorer: str) -> None:
    metric = metrics.load(name)
    assert (metric.title, metric.scorer, metric.higher_is_better) == (title, scorer, True)
    assert name not in metrics.names()
    assert {*metrics.names(["vendi", scorer, "vendi_quick"])} - {*metrics.names()} == {name}
    assert value(name, rows(scorer, {"a": [1.0] * 2, "b": [3.0] * 2})) == 2
    with pytest.raises(ValueError, match="score as many of each"):
        value(name, rows(scorer, {"a": [1.5] * 3, "b": [1.2] * 2}))


@pytest.mark.parametrize("name", [*DIVERSITY, "diversity_distance"])
def test_unequal_numbers_are_refused(name: str) -> None:
    scorer = metrics.load(name).scorer
    told = f"{scorer} is compared at equal numbers of images, and of s prompt b has 2, but prompt a has 3: score as many of each"
    with pytest.raises(ValueError, match=f"^{told}$"):
        value(name, rows(scorer, {"a": [1.5] * 3, "b": [1.2] * 2}))
    with pytest.raises(ValueError, match=told):  # an image that could not be scored
        value(name, rows(scorer, {"a": [1.5] * 3, "b": [1.2] * 2 + [math.nan]}))
    two_seeds = pd.concat([rows(scorer, {"a": [1.5] * 3}), rows(scorer, {"b": [1.2] * 2}, seed=1)])
    with pytest.raises(ValueError, match=told):
        value(name, two_seeds)
    mine = rows(scorer, {"a": [1.5] * 3, "b": [1.2] * 3, "c": [1.0] * 3})
    other = mine.assign(
        value=[1.5, 1.5, math.nan, *[math.nan] * 3, 1.0, 1.0, 1.0]
    )  # b has none, and is left out
    told = f"{scorer} is compared at equal numbers of images, and of s prompt a has 3 with a value, but 2 on the other side: score as many of each"
    with pytest.raises(ValueError, match=f"^{told}$"):
        metrics.load(name).statistics(mine, other)


def test_another_set_may_have_another_number_and_a_prompt_none() -> None:
    mine = rows("vendi", {"a": [1.5] * 3, "b": [1.2] * 3, "c": [math.nan] * 3})
    other = rows("vendi", {"a": [2.0] * 2}, prompt_set="other")
    both = metrics.load("diversity_vendi").statistics(pd.concat([mine, other]), mine)
    assert both["mean"].dropna().to_list() == [2.0, 1.5, 1.2]


def test_noise_does_not_win() -> None:
    """Four pictures of noise are one picture to Vendi on the miniature's judge; a mean pairwise distance takes them for something."""
    scenes = load("miniature-scenes-unseen")[:4]
    varied = []
    for number, prompt in enumerate(scenes):
        rng, objects = np.random.default_rng(number), tuple(Object(**o) for o in prompt.expect["objects"])
        varied.append(draw_scene(place(objects, prompt.expect["relation"], rng, 0.5), Finish(), rng))
    pictures = torch.from_numpy(np.stack(varied)).permute(0, 3, 1, 2).contiguous()
    noise = torch.rand(pictures.shape, generator=torch.Generator().manual_seed(0))
    asked = [Prompt("a", "a prompt")] * 4
    by_vendi, by_distance = (
        [float(scorer(x, asked).mean()) for x in (pictures, noise, pictures[:1].expand(4, -1, -1, -1))]
        for scorer in (vendi.Scorer(), pairwise_distance.Scorer())
    )
    assert by_vendi[0] > 2 > variety.ONE_PICTURE > by_vendi[1]
    assert by_distance[1] > by_distance[0] / 4
    for name in ("diversity_distance", "diversity_lpips"):  # so that more of it is no gain in any table
        assert metrics.load(name).higher_is_better is None
    assert by_distance[2] == pytest.approx(0, abs=1e-4)


# ------------------------------------------------------------------------------------------------------------ collapse


@pytest.mark.parametrize(("n", "cosine"), [(4, 0.991), (16, 0.994)])
def test_one_picture_is_what_it_says(n: int, cosine: float) -> None:
    def score(c: float) -> float:
        return vendi_score((1 - c) * torch.eye(n, dtype=torch.float64) + c)

    assert score(cosine - 5e-4) > variety.ONE_PICTURE > score(cosine + 5e-4)


@pytest.mark.parametrize("q", [0.5, 2.0, math.inf])
@pytest.mark.parametrize("n", [2, 4, 16])
def test_one_picture_of_another_order_is_as_alike_as_of_order_1(q: float, n: int) -> None:
    """The cosine at which the exact score of order 1 is 1.05 is where that of order q is `one_picture`; at a fixed 1.05 order 2 would take pictures of cosine .967 for one, and order .5 tell one from itself."""

    def score(c: float, q: float = 1.0) -> float:
        return vendi_score((1 - c) * torch.eye(n, dtype=torch.float64) + c, q)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) > variety.ONE_PICTURE else (low, middle)
    assert variety.one_picture(q, n) == pytest.approx(score(low, q), abs=1e-9)
    assert (variety.one_picture(q, n) > variety.ONE_PICTURE) == (q < 1)
    assert variety.one_picture(1.0, n) == variety.ONE_PICTURE


def test_which_prompts_have_collapsed() -> None:
    run = np.array([1.0, 1.04, 1.3, 1.3, 2.0, 1.06])
    base = np.array([1.0, 3.00, 1.7, 1.5, 2.0, 1.06])
    assert variety.is_collapsed(run, base).tolist() == [True, True, True, False, False, False]


def one(run: Sequence[float], base: Sequence[float], scorer: str = "vendi") -> variety.Collapse:
    (found,) = variety.collapses(rows(scorer, groups(run)), rows(scorer, groups(base), experiment="base"))
    return found


def test_a_run_that_collapsed_is_told() -> None:
    base = [2.0 + 0.01 * i for i in range(20)]
    found = one([1.1] * 8 + base[8:], base)
    assert found.collapsed == tuple(f"p{i:03d}" for i in range(8))
    assert (found.prompts, found.base_collapsed, found.alarm) == (20, 0, True)
    assert found.p == pytest.approx(binomtest(0, 8, 0.5).pvalue)
    assert found.sentence == (
        "COLLAPSE: x seed 0 on s (vendi): 8 of 20 prompts have lost their variety, the first p000, p001, p002; "
        "0 would have with run and base exchanged (p = 0.0078)"
    )


def test_a_base_that_has_collapsed_is_no_fault_of_the_run() -> None:
    collapsed = one([1.02] * 20, [1.03] * 20)
    assert (len(collapsed.collapsed), collapsed.base_collapsed, collapsed.p, collapsed.alarm) == (
        20,
        20,
        1.0,
        False,
    )
    recovered = one([2.0] * 20, [1.03] * 20)
    assert (len(recovered.collapsed), recovered.base_collapsed, recovered.alarm) == (0, 20, False)
    assert recovered.sentence.startswith(
        "no collapse: x seed 0 on s (vendi): 0 of 20 prompts have lost their variety; 20"
    )


def test_against_itself_nothing_is_lost() -> None:
    found = one([1.2, 1.9, 3.1], [1.2, 1.9, 3.1])
    assert (found.collapsed, found.base_collapsed, found.p) == ((), 0, 1.0)


def test_chance_rarely_sounds_the_alarm_and_a_loss_of_two_thirds_does() -> None:
    """Two draws of one model: prompts differ, and half of a prompt's variety is often lost by chance."""
    generator = np.random.default_rng(0)
    prompts, trials = 60, 300
    excess = generator.gamma(2.0, 0.4, size=(trials, prompts))
    run, base = 1 + excess * np.exp(0.6 * generator.normal(size=(2, trials, prompts)))
    lost = variety.is_collapsed(run, base).mean()
    assert lost > 0.2
    false = [one(r, b).alarm for r, b in zip(run[:100], base[:100], strict=True)]
    assert np.mean(false) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 100)
    true = [one(1 + (r - 1) / 3, b).alarm for r, b in zip(run[100:130], base[100:130], strict=True)]
    assert np.mean(true) > 0.95


def test_many_runs_that_lost_nothing_sound_no_more_alarms_than_one() -> None:
    """Of twenty runs of models like their bases some sound the alarm alone; after Holm's correction tables of twenty seldom do."""
    generator = np.random.default_rng(1)
    runs, prompts, tables = 20, 60, 150
    template = one([2.0], [2.0])

    def of(run: stats.Array, base: stats.Array) -> variety.Collapse:
        mine, other = variety.is_collapsed(run, base), variety.is_collapsed(base, run)
        p = stats.mcnemar_exact(int((mine & ~other).sum()), int((other & ~mine).sum()))
        return replace(template, collapsed=("p",) * int(mine.sum()), base_collapsed=int(other.sum()), p=p)

    alone, together = [], []
    for _ in range(tables):
        excess = generator.gamma(2.0, 0.4, size=(runs, prompts))
        mine, theirs = 1 + excess * np.exp(0.6 * generator.normal(size=(2, runs, prompts)))
        found = [of(run, base) for run, base in zip(mine, theirs, strict=True)]
        alone.append(any(run.alarm for run in found))
        together.append(any(run.alarm for run in variety.corrected(found)))
    assert np.mean(alone) > 0.2
    assert np.mean(together) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / tables)


def test_corrected_alarms_say_over_how_many_tests() -> None:
    base = [2.0 + 0.01 * i for i in range(20)]
    lost, same = one([1.1] * 8 + base[8:], base), one(base, base)
    worst, *others = variety.corrected([lost, same, same])
    assert worst.p == pytest.approx(3 * lost.p)
    assert worst.alarm
    assert worst.sentence.endswith("(p = 0.023 after Holm's correction over 3 such tests)")
    assert not any(other.alarm for other in others)
    assert not variety.corrected([lost] + [same] * 9)[0].alarm  # .078
    assert variety.corrected([]) == []


def test_a_table_corrects_its_alarms_over_all_its_runs() -> None:
    """A run of which seven prompts collapsed rings alone (p .016), and not as one of four seeds."""
    base = groups([2.0 + 0.01 * i for i in range(20)])
    run = base | {prompt: [1.1] * 4 for prompt in list(base)[:7]}

    def told(seeds: int) -> list[str]:
        parts = [rows("vendi", base, experiment="base")]
        parts += [rows("vendi", base if seed else run, seed) for seed in range(seeds)]
        frame = pd.concat(parts, ignore_index=True).assign(suite="s:1", prompts="d", picture="", trained_on=0)
        return [r for r in compare.compare(frame, resamples=20).remarks if "COLLAPSE" in r]

    assert [len(told(seeds)) for seeds in (1, 4)] == [1, 0]


def test_the_alarm_looks_at_the_order_that_was_scored() -> None:
    """A suite that asks for order 2 alone; a run whose prompts have one picture, of a base that had little more."""
    base = groups([1.02 + 0.001 * i for i in range(20)])
    parts = [rows("vendi_q2", base, experiment="base"), rows("vendi_q2", groups([1.0] * 20))]
    frame = pd.concat(parts, ignore_index=True).assign(suite="s:1", prompts="d", picture="", trained_on=0)
    told = [r for r in compare.compare(frame, resamples=20).remarks if "COLLAPSE" in r]
    assert len(told) == 1
    assert told[0].startswith("COLLAPSE: x seed 0 on s (vendi_q2): 20 of 20 prompts have lost their variety")
    both = [part.assign(scorer=scorer) for part in parts for scorer in ("vendi", "vendi_q2")]
    frame = pd.concat(both, ignore_index=True).assign(suite="s:1", prompts="d", picture="", trained_on=0)
    told = [r for r in compare.compare(frame, resamples=20).remarks if "COLLAPSE" in r]
    # of order 1 1.02 to 1.04 is one picture, and nothing is lost
    assert ["(vendi_q2)" in r and "correction over 2 such tests" in r for r in told] == [True]


def test_each_seed_and_set_by_itself_and_what_has_no_score_left_out() -> None:
    run = pd.concat(
        [
            rows("vendi_clip", groups([1.0, math.nan])),
            rows("vendi_clip", groups([2.0, 2.0]), seed=1),
            rows("vendi_clip", groups([3.0], n=16), prompt_set="t"),
        ],
        ignore_index=True,
    )
    found = variety.collapses(run, run.assign(value=2.0, experiment="base"))
    assert [(f.seed, f.prompt_set, f.prompts, f.collapsed) for f in found] == [
        (0, "s", 1, ("p000",)),
        (0, "t", 1, ()),
        (1, "s", 2, ()),
    ]
    assert variety.collapses(run[:0], run[:0]) == []


def test_a_collapse_is_told_of_a_vendi_score_at_equal_numbers_only() -> None:
    distances = rows("lpips", {"a": [0.1] * 4})
    told = r"from a Vendi score \(vendi or vendi_clip, of any order\), not from lpips"
    with pytest.raises(ValueError, match=told):
        variety.collapses(distances, distances)
    unequal = rows("vendi", {"a": [2.0] * 4, "b": [2.0] * 3})
    with pytest.raises(ValueError, match="prompt b has 3, but prompt a has 4"):
        variety.collapses(unequal, unequal)


# ---------------------------------------------------------------------------------------------------- the same picture


def pictures(
    of: Mapping[str, Sequence[str]], scorers: Sequence[str] = ("a", "b"), **of_run: str
) -> pd.DataFrame:
    """Rows of a run: of each prompt the hashes of its images."""
    places = {prompt: [0.0] * len(hashes) for prompt, hashes in of.items()}
    hashes = [picture for some in of.values() for picture in some]
    return pd.concat([rows(scorer, places, **of_run).assign(picture=hashes) for scorer in scorers])


def test_one_seed_for_all_images_of_a_prompt_is_told() -> None:
    (found,) = variety.duplicates(
        pictures({"cat": ["c0", "c1"], "dog": ["d0", "d0"], "owl": ["o", "x", "o", "x"]})
    )
    assert found.within == (("dog", (0, 1)), ("owl", (0, 2)), ("owl", (1, 3)))
    assert found.across == ()
    assert found.sentences == [
        "SAME PICTURE: x seed 0 on s: 2 of 3 prompts have one picture several times, the first dog (images 0, 1): were they drawn from one seed, or blanked?"
    ]


def test_a_picture_of_several_prompts_is_told() -> None:
    (found,) = variety.duplicates(
        pictures({"cat": ["c0", "black"], "dog": ["black", "d1"], "owl": ["o0", "black"]})
    )
    assert found.within == ()
    assert found.across == ((("cat", 1), ("dog", 0), ("owl", 1)),)
    assert found.sentences == [
        "SAME PICTURE: x seed 0 on s: 1 picture is shared by prompts, the first by cat (image 1) and dog (image 0) and owl (image 1): "
        "have they one text, or was the picture blanked?"
    ]


def test_both_at_once_and_the_order_of_rows_does_not_matter() -> None:
    mine = pictures({"cat": ["x", "x"], "dog": ["d", "x"]})
    (found,) = variety.duplicates(mine)
    assert found.within == (("cat", (0, 1)),)
    assert found.across == ((("cat", 0), ("cat", 1), ("dog", 1)),)
    within, across = found.sentences
    assert "the first cat (images 0, 1)" in within
    assert "the first by cat (image 0) and dog (image 1)" in across
    assert variety.duplicates(mine.sample(frac=1, random_state=0)) == [found]


def test_what_is_no_repetition() -> None:
    """Several scorers of one picture, runs and sets that share pictures, and pictures without a hash."""
    apart = pd.concat(
        [
            pictures({"cat": ["c0", "c1"], "dog": ["d0", ""], "owl": ["", ""]}),
            pictures({"cat": ["c0", "c1"]}, experiment="base"),
            pictures({"cat": ["c0", "c1"]}, prompt_set="other"),
        ]
    )
    assert variety.duplicates(apart) == []
    told = "of 10 pictures 3 have no hash, as none was kept or nothing could be decoded: whether such a picture is there twice is not known"
    assert variety.duplicate_notes(apart) == [told]
    assert variety.duplicate_notes(apart.assign(picture=apart["picture"].replace("", None))) == [told]
    assert variety.duplicate_notes(pictures({"cat": ["c0", "c1"]})) == []


def test_a_run_whose_pictures_are_all_the_bases_is_told() -> None:
    base = pictures({"cat": ["c0", "c1"], "dog": ["d0", "d1"]}, experiment="base")
    copy, other = base.assign(experiment="copy"), pictures({"cat": ["c0", "x"], "dog": ["d0", "d1"]})
    assert variety.copies(pd.concat([copy, other]), base) == [
        "SAME PICTURES: copy seed 0 on s: all 4 are those of base, to the pixel: was one checkpoint scored under two names, the same folder given twice, or is nothing of it trained?"
    ]
    # the same pictures of other prompts are not the base's, and nothing is known without hashes
    swapped = pictures({"cat": ["d0", "d1"], "dog": ["c0", "c1"]})
    assert variety.copies(swapped, base) == []
    unknown = base.assign(picture="")
    assert variety.copies(unknown.assign(experiment="copy"), unknown) == []


def test_every_run_and_set_has_its_own_sentence() -> None:
    same = pd.concat([pictures({"cat": ["c", "c"]}, experiment=name) for name in ("a", "b")])
    notes = variety.duplicate_notes(same)
    assert [note.split(":")[1] for note in notes] == [" a seed 0 on s", " b seed 0 on s"]
