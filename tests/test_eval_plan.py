"""What a design can tell: the published tables, the best split by brute force, and what is measured on rows whose ICC is known."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from evals import plan, rows, stats
from evals.__main__ import main
from tests.synthetic_rows import study

SET = "miniature-preference-unseen"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *(str(argument) for argument in arguments)])


def line(text: str, beginning: str) -> list[str]:
    """The words of the first line that begins so, after it."""
    found = next(each.strip() for each in text.splitlines() if each.strip().startswith(beginning))
    return found.removeprefix(beginning).split()


# closed forms


@pytest.mark.parametrize(
    ("prompts", "half", "effect"),
    [
        (100, 0.098, 0.140),
        (200, 0.069, 0.099),
        (553, 0.042, 0.060),
        (1632, 0.024, 0.035),
        (3200, 0.017, 0.025),
    ],
)
def test_a_win_rate_with_one_image_a_prompt(prompts: int, half: float, effect: float) -> None:
    error = stats.standard_error(stats.win_rate_deviation(), prompts, 1, 0.4)
    assert round(stats.half_width(error), 3) == half
    assert round(stats.smallest_detectable(error), 3) == effect
    shown = run("--prompts", prompts).output
    assert line(shown, "half-width of the 95 % interval") == [f"{half:.3f}"]
    assert line(shown, "smallest detectable effect")[0] == f"{effect:.3f}"
    table = shown.split("of each prompt:")[1]
    assert line(table, f"{prompts:,} ")[-2:] == [f"{half:.3f}", f"{effect:.3f}"]


@pytest.mark.parametrize(("prompts", "images", "half"), [(2212, 1, 0.021), (553, 4, 0.030), (221, 10, 0.042)])
def test_more_prompts_beat_more_images(prompts: int, images: int, half: float) -> None:
    assert round(stats.half_width(stats.standard_error(0.5, prompts, images, 0.35)), 3) == half
    shown = run("--prompts", prompts, "--images", images, "--icc", 0.35).output
    assert line(shown, "half-width of the 95 % interval") == [f"{half:.3f}"]


def test_few_prompts_are_told_to_have_wider_intervals() -> None:
    """By hand: Student's .975 quantile of 9 degrees is 2.262, the normal's 1.960."""
    told = "  these are the normal's: of 10 prompts the tables have Student's, 1.15 times as wide"
    assert told in run("--prompts", 10).output.splitlines()
    assert "Student" not in run("--prompts", 30).output


def test_the_smallest_detectable_effect_is_found_in_80_of_100_and_none_in_5() -> None:
    generator = np.random.default_rng(0)
    prompts, images, icc = 80, 4, 0.4
    error = stats.standard_error(1.0, prompts, images, icc)
    for effect, expected in ((stats.smallest_detectable(error), 0.8), (0.0, 0.05)):
        between = math.sqrt(icc) * generator.normal(size=(4000, prompts, 1))
        drawn = between + math.sqrt(1 - icc) * generator.normal(size=(4000, prompts, images))
        means = drawn.mean(axis=2).mean(axis=1) + effect
        assert float(np.mean(np.abs(means) > stats.half_width(error))) == pytest.approx(expected, abs=0.02)


def test_ties_make_a_win_rate_vary_less() -> None:
    judged = np.repeat([1.0, 0.5, 0.0], [30, 40, 30])
    assert stats.win_rate_deviation(0.4) == pytest.approx(judged.std())
    assert line(run("--prompts", 100, "--ties", 0.75).output, "half-width of the 95 % interval") == ["0.049"]


@pytest.mark.parametrize("icc", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("prompt_cost", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("most", [None, 10])
def test_the_best_split_is_the_best_of_all(icc: float, prompt_cost: float, most: int | None) -> None:
    budget = 100
    splits = [
        (n, m)
        for m in range(1, budget + 1)
        for n in range(2, (most or budget) + 1)
        if n * (m + prompt_cost) <= budget
    ]
    least = min(stats.standard_error(1, n, m, icc) for n, m in splits)
    best = stats.best_split(budget, icc, prompt_cost, most)
    assert best in splits
    assert stats.standard_error(1, *best, icc) == pytest.approx(least, rel=1e-9)


def test_the_best_split_is_cochrans_where_a_prompt_costs_much() -> None:
    """`sqrt(c (1 - ICC) / ICC)`: at c = 24 and ICC .4, 6 images."""
    assert stats.best_split(30_000, 0.4, prompt_cost=24) == (1000, 6)
    assert stats.best_split(2212, 0.35) == (2212, 1)
    with pytest.raises(ValueError, match="a budget of 8 images does not reach for two prompts"):
        stats.best_split(8, 0.4, prompt_cost=5)


def test_components_of_variance_are_those_of_the_textbook_and_unbiased() -> None:
    values = np.array([1.0, 3.0, 5.0, 6.0, 7.0, 11.0])
    between, within = stats.variance_components(values, ["a", "a", "b", "b", "c", "c"])
    assert within == pytest.approx((2 + 0.5 + 8) / 3)  # sums of squares 2, 0.5, 8 with one degree each
    assert between == pytest.approx((2 * np.var([2, 5.5, 9], ddof=1) - within) / 2)
    generator = np.random.default_rng(1)
    prompts = np.repeat(np.arange(3000), generator.integers(1, 6, size=3000))
    drawn = math.sqrt(0.4) * generator.normal(size=3000)[prompts]
    drawn += math.sqrt(0.6) * generator.normal(size=len(prompts))
    assert stats.intraclass_correlation(drawn, prompts) == pytest.approx(0.4, abs=0.03)
    with pytest.raises(ValueError, match="a prompt with two images"):
        stats.variance_components(values, np.arange(6))
    assert math.isnan(stats.intraclass_correlation(np.ones(4), ["a", "a", "b", "b"]))


# the command


def test_the_budget_is_split_and_the_best_marked() -> None:
    shown = run("--prompts", 200, "--images", 4, "--budget", 2212, "--icc", 0.35).output
    assert "A budget of 2,212 images, best spent on 2,212 prompts × 1:" in shown
    splits = shown.split("A budget of")[1]
    assert line(splits, "2,212  ") == ["1", "0.021", "0.030", "best"]
    assert line(splits, "553  ") == ["4", "0.030", "0.043"]
    shown = run(
        "--prompts", 200, "--images", 4, "--budget", 2212, "--most-prompts", 553, "--icc", 0.35
    ).output
    assert "at most 553 prompts, best spent on 553 prompts × 4:" in shown
    shown = run("--prompts", 200, "--budget", 30_000, "--prompt-cost", 24).output
    assert "where a prompt costs 24 more, best spent on 1,000 prompts × 6:" in shown


@pytest.mark.parametrize(("prompts", "images", "prompt_cost"), [(7, 4, 0.7), (2, 3, 0.1), (30, 12, 1.1)])
def test_a_design_is_among_the_splits_of_what_it_costs(prompts: int, images: int, prompt_cost: float) -> None:
    """Rounding of the costs took a prompt away: of 7 prompts with 4 images at .7 there were 6."""
    shown = run("--prompts", prompts, "--images", images, "--prompt-cost", prompt_cost).output
    splits = shown.split("A budget of")[1].splitlines()[2:]
    assert [str(prompts), str(images)] in [one.split()[:2] for one in splits]
    for number in range(2, 200):
        budget = number * (images + prompt_cost)
        assert stats.affordable(budget, images, prompt_cost) == number
        assert stats.affordable(budget - 1e-6, images, prompt_cost) == number - 1


def test_an_effect_that_no_win_rate_can_have_is_not_printed() -> None:
    assert line(run("--prompts", 4).output, "smallest detectable effect")[0] == "none"


def test_a_score_is_planned_in_its_own_unit() -> None:
    shown = run("--metric", "score", "--sd", 2, "--prompts", 100, "--images", 4, "--icc", 1).output
    assert line(shown, "half-width of the 95 % interval") == ["0.392"]
    assert "worth as many independent images   100 of 400" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--images 4", "--prompts says how many prompts are planned"),
        ("--prompts 1", "--prompts must be at least 2, not 1"),
        ("--prompts 9 --images 0", "--images must be at least 1, not 0"),
        ("--prompts 9 --icc 1.2", "--icc must be from 0 to 1, not 1.2"),
        ("--prompts 9 --icc nan", "--icc must be from 0 to 1, not nan"),
        ("--prompts 9 --ties 1", "--ties must be a share from 0 to below 1, not 1"),
        ("--prompts 9 --sd 1", "--sd belongs to --metric score"),
        ("--prompts 9 --metric score", "--metric score needs --sd"),
        ("--prompts 9 --metric score --sd 0", "--sd must be above 0, not 0"),
        ("--prompts 9 --metric score --sd 1 --ties .1", "--ties belongs to --metric win-rate"),
        ("--prompts 9 --budget 1", "--budget must be 2 to 10,000,000 images, not 1"),
        (
            "--prompts 999999999",
            "what --prompts, --images and --prompt-cost come to must be 2 to 10,000,000 images, not 999,999,999",
        ),
        ("--prompts 9 --budget 2 --prompt-cost 5", "a budget of 2 images does not reach for two prompts"),
        ("--prompts 9 --prompt-cost -1", "--prompt-cost must be 0 or more images, not -1"),
        ("--prompts 9 --most-prompts 3", "--prompts 9 is more than the --most-prompts 3"),
        ("--prompts 9 --scorer clip", "choose among the rows of --from"),
        ("--prompts 9 --from none.csv", "none.csv: the score file cannot be read"),
    ],
)
def test_a_mistake_ends_in_one_sentence(options: str, message: str) -> None:
    result = run(*options.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


# from rows that are there


@cache
def _made(prompts: int, images: int = 4, icc: float = 0.4) -> pd.DataFrame:
    """Rows of a base and a run of two seeds whose paired differences have deviation 2, mean 0 and the given ICC."""
    table = study(prompts=prompts, images=images, experiments=("base", "imagereward"))
    table = table[(table["scorer"] == "imagereward") & (table["prompt_set"] == SET)].reset_index(drop=True)
    generator = np.random.default_rng(2)
    shape = (prompts, images)
    base = 3 * generator.normal(size=(prompts, 1)) + generator.normal(size=shape)
    table.loc[table["experiment"] == "base", "value"] = base.ravel()
    for seed in (0, 1):
        own = math.sqrt(icc) * generator.normal(size=(prompts, 1))
        own = own + math.sqrt(1 - icc) * generator.normal(size=shape)
        mine = (table["experiment"] == "imagereward") & (table["seed"] == seed)
        table.loc[mine, "value"] = (base + 2 * own).ravel()
    return table


def made(prompts: int = 300) -> pd.DataFrame:
    return _made(prompts).copy()


def test_icc_deviation_and_pairing_are_measured(tmp_path: Path) -> None:
    rows.write(made(), tmp_path / "scores.csv")
    assumption, prompts, images = plan.measured(rows.read([tmp_path / "scores.csv"]), "score", plan.Choice())
    assert (prompts, images) == (300, 4)
    assert assumption.icc == pytest.approx(0.4, abs=0.05)
    assert assumption.deviation == pytest.approx(2, abs=0.1)
    shown = run("--from", tmp_path / "scores.csv", "--metric", "score").output
    assert f"300 prompts × 4 images, difference of mean scores\n  {assumption.notes[0]}" in shown
    error = stats.standard_error(assumption.deviation, 300, 4, assumption.icc)
    assert line(shown, "half-width of the 95 % interval") == [f"{stats.half_width(error):.3f}"]


def test_pairing_saves_what_the_definition_says() -> None:
    table = made()
    by_prompt = table.groupby(["experiment", "prompt_id"])["value"].mean().unstack(0)
    unpaired = math.sqrt(by_prompt.var(ddof=1).sum() / 300)
    paired = (by_prompt["imagereward"] - by_prompt["base"]).std(ddof=1) / math.sqrt(300)
    [note] = [n for n in plan.measured(table, "score", plan.Choice())[0].notes if "Pairing" in n]
    assert (
        f"is {paired:.3g}; of unpaired prompts it would be {unpaired:.3g}, {unpaired / paired:.2f} times"
        in note
    )


def test_a_win_rate_is_measured_with_the_metrics_tie_margin() -> None:
    table = made()
    base = table.loc[table["experiment"] == "base", "value"].to_numpy()
    ties = np.mean(
        [
            np.abs(part["value"].to_numpy() - base) <= 0.1
            for _, part in table[table["experiment"] != "base"].groupby("seed")
        ]
    )
    assumption, _, _ = plan.measured(table, "win-rate", plan.Choice())
    assert assumption.deviation == pytest.approx(stats.win_rate_deviation(ties))
    assert 0.15 < assumption.icc < 0.4  # the sign keeps part of the correlation: (2 / pi) arcsin(.4) = .26
    assert f"Ties, differences of at most 0.1: {100 * ties:.1f} %." in assumption.notes


def test_what_has_no_score_is_counted() -> None:
    table = made()
    table.loc[table.index[-3:], "value"] = math.nan
    notes = plan.measured(table, "score", plan.Choice())[0].notes
    assert "3 of 2400 pairs lack a score (NaN) and were left out." in notes


def test_a_choice_is_made_and_named(tmp_path: Path) -> None:
    rows.write(
        study(prompts=6, images=4, experiments=("base", "imagereward", "joint")), tmp_path / "scores.csv"
    )
    options = {"--experiment": "joint", "--scorer": "objects", "--prompt-set": "miniature-scenes-unseen"}
    chosen = [word for option in (options | {"--model": "miniature"}).items() for word in option]
    shown = run(
        "--from", tmp_path / "scores.csv", "--metric", "score", *chosen, "--prompts", 50, "--images", 2
    )
    assert "50 prompts × 2 images" in shown.output
    assert "Measured on joint (miniature), objects on miniature-scenes-unseen: ICC " in shown.output
    for option in ("--experiment", "--scorer", "--prompt-set", "--model"):
        refused = run("--from", tmp_path / "scores.csv", option, "nothing")
        assert refused.exit_code == 2
        assert f"{option} nothing is not in the files; choose from" in refused.stderr


def test_rows_that_show_nothing_are_refused() -> None:
    table = made(prompts=5)
    of_base = table["experiment"] == "base"
    choice = plan.Choice()
    with pytest.raises(ValueError, match="hold only the base"):
        plan.measured(table[of_base], "score", choice)
    with pytest.raises(ValueError, match="hold no base"):
        plan.measured(table[~of_base], "score", choice)
    with pytest.raises(ValueError, match=r"hold no base, .* or --against imagereward$"):
        plan.measured(table[~of_base], "score", choice)
    with pytest.raises(ValueError, match=r"hold no other, .* or --against imagereward or base$"):
        plan.measured(table.iloc[::-1], "score", plan.Choice(against="other"))
    named = table.replace({"experiment": {"base": "other"}})
    told = plan.measured(named, "score", plan.Choice(against="other"))
    assert told == plan.measured(table, "score", choice)
    with pytest.raises(ValueError, match="one image of each prompt, which shows no ICC"):
        plan.measured(table[table["image"] == 0], "score", choice)
    with pytest.raises(ValueError, match="the same of every image"):
        plan.measured(table.assign(value=1.0), "win-rate", choice)
    with pytest.raises(ValueError, match="the base has no imagereward scores but imagereward has"):
        plan.measured(table.assign(scorer=table["scorer"].mask(of_base, "objects")), "score", choice)
    with pytest.raises(
        ValueError, match=r"^--scorer skin_tone gives classes, .*: choose from scorers of other"
    ):
        plan.measured(table.assign(scorer="skin_tone"), "win-rate", choice)


@pytest.mark.parametrize("option", [("--icc", 0.3), ("--sd", 1), ("--ties", 0.1)])
def test_what_is_measured_is_not_given_too(option: tuple[str, float], tmp_path: Path) -> None:
    rows.write(made(prompts=5), tmp_path / "scores.csv")
    result = run("--from", tmp_path / "scores.csv", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is measured on the files of --from" in result.stderr


def test_files_without_a_pair_of_scores_show_nothing(tmp_path: Path) -> None:
    made = study(prompts=4, images=2, seeds=(0,), experiments=("base", "joint"))
    rows.write(made.assign(value=float("nan")), tmp_path / "scores.csv")
    result = run("--from", str(tmp_path / "scores.csv"))
    assert result.exit_code == 2
    assert (
        "imagereward on miniature-preference-unseen has no picture with a score on both sides"
        in result.stderr
    )
    assert result.stderr.count("\n") == 1


def test_a_reader_that_has_had_enough_ends_it_quietly() -> None:
    """As `head` does."""
    command = [sys.executable, "-m", "evals", "plan", "--prompts", "10"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1]
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
