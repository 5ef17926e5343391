"""How many prompts, and how many images of each: what a comparison of two checkpoints can tell, before anything is drawn.

Both checkpoints draw the same prompts from the same noise, so what counts is the deviation of one image's judgement (1, 1/2 for a tie,
0) or of one image's difference in score, and how alike the images of a prompt are in it: its ICC. Either is assumed, or
measured on score rows that are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from scipy import special

from evals import metrics, stats
from evals import rows as score_rows
from evals.metrics._parity import CLASSIFIERS
from evals.rows import BASE

MetricKind = Literal["win-rate", "score"]
ICC = 0.4
"""Within a category of GenEval's human annotations .16 to .45 were found; this is the high side."""
PROMPTS = (100, 200, 553, 1632, 3200)
"""Of the table: 553 is GenEval, 1,632 PartiPrompts, 3,200 HPSv2's."""
IMAGES = (1, 2, 4, 8, 16)
MOST_IMAGES = 10_000_000
MANY = 30
"""Prompts of which Student's quantile is within a twentieth of the normal's."""
OF_A_SET = (
    "A metric of a set of images (parity, diversity) keeps its number of images a prompt, whatever the split."
)
OF_ONE_RUN = (
    "All of this is the error over prompts and images of two given checkpoints; what differs between training runs comes on top, and only "
    "more training seeds bring it down."
)


@dataclass(frozen=True)
class Assumption:
    """What is taken to be true of one image's judgement or difference."""

    metric: MetricKind
    deviation: float
    """Standard deviation over all images of all prompts."""
    icc: float
    """Correlation of two images of a prompt."""
    notes: tuple[str, ...]
    """Where these come from, a sentence each."""


@dataclass(frozen=True)
class Choice:
    """Which rows of score files are measured; None is the first that there is."""

    model: str | None = None
    experiment: str | None = None
    scorer: str | None = None
    prompt_set: str | None = None
    against: str = BASE
    """The experiment that the run is set beside."""


def assumed(metric: MetricKind, icc: float, deviation: float | None, ties: float) -> Assumption:
    """An assumption from numbers that are given.

    Raises:
        ValueError: naming the option that is out of its range, missing or of no use.
    """
    if not 0 <= icc <= 1:
        raise ValueError(f"--icc must be from 0 to 1, not {icc:g}")
    if not 0 <= ties < 1:
        raise ValueError(f"--ties must be a share from 0 to below 1, not {ties:g}")
    if metric == "win-rate":
        if deviation is not None:
            raise ValueError(
                "--sd belongs to --metric score: the deviation of a win rate follows from --ties"
            )
        note = f"ICC {icc:.2f} (assumed), ties {100 * ties:.0f} % (assumed)."
        return Assumption(metric, stats.win_rate_deviation(ties), icc, (note,))
    if ties:
        raise ValueError("--ties belongs to --metric win-rate: a score has a --sd")
    if deviation is None:
        raise ValueError(
            "--metric score needs --sd, the standard deviation over images of the difference between the two checkpoints at the same "
            "prompt and noise, or --from with score files that show it"
        )
    if not (deviation > 0 and math.isfinite(deviation)):
        raise ValueError(f"--sd must be above 0, not {deviation:g}")
    note = f"ICC {icc:.2f} (assumed), standard deviation of an image's difference {deviation:g} (assumed)."
    return Assumption(metric, deviation, icc, (note,))


def measured(rows: pd.DataFrame, metric: MetricKind, choice: Choice) -> tuple[Assumption, int, int]:
    """An assumption from score rows (as `evals.rows.read` gives them), with how many prompts and images of each they have.

    A run is set beside its base, or what `choice.against` names. Several training seeds are measured one by one and averaged: their prompts are the same ones.

    Raises:
        ValueError: naming the option, where nothing of what is asked for is in the files, or it cannot show an ICC.
    """
    mine, theirs = _run_and_base(rows, choice)
    first = mine.iloc[0]
    of = f"{first['experiment']} ({first['model']}), {first['scorer']} on {first['prompt_set']}"
    pairs = mine.assign(base=theirs["value"]).dropna(subset=["value", "base"])
    if pairs.empty:
        raise ValueError(f"--from: {of} has no picture with a score on both sides: choose another --scorer")
    margin = _tie_margin(str(first["scorer"]))
    difference = pairs["value"] - pairs["base"]
    judged = 0.5 + (difference > margin) / 2 - (difference < -margin) / 2
    pairs = pairs.assign(difference=difference, measure=judged if metric == "win-rate" else difference)
    images = int(mine.groupby(["seed", "prompt_id"]).size().max())
    if images < 2:
        raise ValueError(
            f"--from: {of} has one image of each prompt, which shows no ICC: choose another --prompt-set, or give --icc instead of --from"
        )
    between, within = _components(pairs, "measure")
    if not between + within > 0:
        raise ValueError(
            f"--from: {of} says the same of every image, which shows no ICC: give --icc instead of --from"
        )
    icc = between / (between + within)
    notes = [f"Measured on {of}: ICC {icc:.2f}{', taken as 0' if icc < 0 else ''}."]
    ties = float((difference.abs() <= margin).mean())
    if metric == "win-rate":
        deviation = stats.win_rate_deviation(ties)
        notes.append(f"Ties, differences of at most {margin:g}: {100 * ties:.1f} %.")
    else:
        deviation = math.sqrt(between + within)
        notes.append(f"Standard deviation of an image's difference: {deviation:.3g}.")
    notes += [_pairing(pairs), *_lost(len(mine), len(pairs))]
    return (
        Assumption(metric, deviation, min(max(icc, 0.0), 1.0), tuple(notes)),
        mine["prompt_id"].nunique(),
        images,
    )


def _run_and_base(rows: pd.DataFrame, choice: Choice) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The chosen rows of a run, and beside them the base's, or those of what else it is set beside."""
    rows = _chosen(rows, "model", choice.model)
    against, the = choice.against, "the base" if choice.against == BASE else choice.against
    runs = rows[rows["experiment"] != against]
    base = rows[rows["experiment"] == against]
    if base.empty:
        there = dict.fromkeys(map(str, runs["experiment"]))
        raise ValueError(
            f"--from: the files hold no {against}, and a difference takes two checkpoints: give its file too, or "
            f"--against {' or '.join(there)}"
        )
    if runs.empty:
        raise ValueError(
            f"--from: the files hold only {the}, and a difference takes two checkpoints: give both files"
        )
    runs = _chosen(runs, "experiment", choice.experiment)
    runs = _chosen(runs, "scorer", choice.scorer)
    runs = _chosen(runs, "prompt_set", choice.prompt_set)
    scorer = str(runs["scorer"].iloc[0])
    if scorer in CLASSIFIERS:
        others = [name for name in dict.fromkeys(base["scorer"]) if name not in CLASSIFIERS]
        raise ValueError(
            f"--scorer {scorer} gives classes, and a plan is for a win rate or a mean: choose from {', '.join(others) or 'scorers of other files'}"
        )
    scored = base[base["scorer"] == scorer]
    if scored.empty:
        raise ValueError(
            f"--from: {the} has no {scorer} scores but {runs['experiment'].iloc[0]} has: choose another --scorer"
        )
    return runs, score_rows.same_images(runs, scored)


def _chosen(rows: pd.DataFrame, column: str, wanted: str | None) -> pd.DataFrame:
    """The rows with a value in a column; with its first value where none is asked for."""
    there = list(dict.fromkeys(rows[column]))
    if wanted is not None and wanted not in there:
        option = f"--{column.replace('_', '-')}"
        raise ValueError(f"{option} {wanted} is not in the files; choose from {', '.join(there)}")
    return rows[rows[column] == (there[0] if wanted is None else wanted)]


def _tie_margin(scorer: str) -> float:
    """The margin that the win rate by this scorer has, 0 where there is none."""
    found = [metrics.load(name) for name in metrics.names()]
    margins = [getattr(metric, "tie_margin", None) for metric in found if metric.scorer == scorer]
    return max((margin for margin in margins if margin is not None), default=0.0)


def _components(pairs: pd.DataFrame, column: str) -> tuple[float, float]:
    """Variance between and within prompts, the mean over training seeds."""
    found = [
        stats.variance_components(part[column].to_numpy(), part["prompt_id"].to_numpy())
        for _, part in pairs.groupby("seed")
    ]
    return sum(b for b, _ in found) / len(found), sum(w for _, w in found) / len(found)


def _pairing(pairs: pd.DataFrame) -> str:
    """What the same prompts and noise save on the difference of the two mean scores, with the prompt as the unit."""
    by_prompt = pairs.groupby("prompt_id")[["value", "base", "difference"]].mean()
    variance = by_prompt.var(ddof=1)
    apart, paired = (
        math.sqrt(variance["value"] + variance["base"]),
        math.sqrt(variance["difference"]),
    )
    icc = (
        stats.intraclass_correlation(part["value"].to_numpy(), part["prompt_id"].to_numpy())
        for _, part in pairs.groupby("seed")
    )
    alike = f"ICC of the run's own scores: {sum(icc) / pairs['seed'].nunique():.2f}."
    if paired == 0:
        return f"{alike} Run and base differ by the same everywhere."
    root = math.sqrt(len(by_prompt))
    return (
        f"{alike} Pairing: the standard error of the mean difference is {paired / root:.3g}; of unpaired prompts it would be "
        f"{apart / root:.3g}, {apart / paired:.2f} times as much."
    )


def _lost(images: int, pairs: int) -> list[str]:
    """What was not measured: nothing is dropped in silence."""
    return [f"{images - pairs} of {images} pairs lack a score (NaN) and were left out."] * (pairs < images)


def design(
    assumption: Assumption,
    prompts: int,
    images: int,
    budget: float | None = None,
    prompt_cost: float = 0.0,
    most_prompts: int | None = None,
) -> str:
    """The plan as text: the design itself, a table over the number of prompts, and the splits of the budget.

    Args:
        assumption: of one image.
        prompts: of the design.
        images: of each prompt.
        budget: what may be spent, in images; what the design costs unless given.
        prompt_cost: what a prompt costs beside its images, in images.
        most_prompts: how many prompts there are; without a limit unless given.

    Raises:
        ValueError: naming the option that is out of its range.
    """
    spent = prompts * (images + prompt_cost) if budget is None else budget
    _check(prompts, images, spent, prompt_cost, most_prompts, budget is not None)
    error = _error(assumption, prompts, images)
    alone = prompts * images / stats.design_effect(images, assumption.icc)
    kind = "win rate between equals" if assumption.metric == "win-rate" else "difference of mean scores"
    parts = [
        f"{prompts:,} prompts × {images} images, {kind}",
        *(f"  {note}" for note in assumption.notes),
        "",
        f"  half-width of the 95 % interval    {_number(stats.half_width(error))}",
        f"  smallest detectable effect         {_effect(assumption, error)}   (80 % power, two-sided 5 %)",
        f"  worth as many independent images   {alone:,.0f} of {prompts * images:,}",
        *_of_few(prompts),
        "",
        _over_prompts(assumption, prompts, images),
        "",
        _over_splits(assumption, spent, prompt_cost, most_prompts, images),
        "",
        OF_A_SET,
        OF_ONE_RUN,
    ]
    return "\n".join(parts)


def _of_few(prompts: int) -> list[str]:
    """A line on intervals of few prompts, which the tables make wider than the closed forms here."""
    if prompts >= MANY:
        return []
    wider = special.stdtrit(prompts - 1, (1 + stats.LEVEL) / 2) / special.ndtri((1 + stats.LEVEL) / 2)
    return [
        f"  these are the normal's: of {prompts} prompts the tables have Student's, {wider:.2f} times as wide"
    ]


def _check(
    prompts: int, images: int, budget: float, prompt_cost: float, most_prompts: int | None, is_given: bool
) -> None:
    if prompts < 2:
        raise ValueError(f"--prompts must be at least 2, not {prompts}: one prompt says nothing of any other")
    if images < 1:
        raise ValueError(f"--images must be at least 1, not {images}")
    if not 0 <= prompt_cost < math.inf:
        raise ValueError(f"--prompt-cost must be 0 or more images, not {prompt_cost:g}")
    if not 2 <= budget <= MOST_IMAGES:
        what = "--budget" if is_given else "what --prompts, --images and --prompt-cost come to"
        raise ValueError(f"{what} must be 2 to {MOST_IMAGES:,} images, not {budget:,.12g}")
    if most_prompts is not None and most_prompts < prompts:
        raise ValueError(f"--prompts {prompts} is more than the --most-prompts {most_prompts} that there are")


def _error(assumption: Assumption, prompts: int, images: int) -> float:
    return stats.standard_error(assumption.deviation, prompts, images, assumption.icc)


def _number(value: float) -> str:
    """Three decimals, and more where those would be zeros."""
    return f"{value:.3f}" if value >= 0.01 else f"{value:.2g}"


def _effect(assumption: Assumption, error: float) -> str:
    effect = stats.smallest_detectable(error)
    if assumption.metric == "win-rate" and effect > 0.5:
        return "none"  # a win rate is at most 1/2 away from 1/2
    return _number(effect)


def _over_prompts(assumption: Assumption, prompts: int, images: int) -> str:
    lines = [["prompts", "images in all", "half-width", "smallest effect"]]
    for n in sorted({*PROMPTS, prompts}):
        error = _error(assumption, n, images)
        lines.append(
            [
                f"{n:,}",
                f"{n * images:,}",
                _number(stats.half_width(error)),
                _effect(assumption, error),
            ]
        )
    return f"With {images} images of each prompt:\n{_table(lines)}"


def _over_splits(
    assumption: Assumption, budget: float, prompt_cost: float, most_prompts: int | None, images: int
) -> str:
    best = stats.best_split(budget, assumption.icc, prompt_cost, most_prompts)
    lines = [["prompts", "images of each", "half-width", "smallest effect", ""]]
    for m in sorted({*IMAGES, images, best[1]}):
        n = min(int(stats.affordable(budget, m, prompt_cost)), most_prompts or int(budget))
        if n < 2:
            continue
        error = _error(assumption, n, m)
        lines.append(
            [
                f"{n:,}",
                str(m),
                _number(stats.half_width(error)),
                _effect(assumption, error),
                "best" if m == best[1] else "",
            ]
        )
    costs = f", where a prompt costs {prompt_cost:g} more" if prompt_cost else ""
    limit = f", at most {most_prompts:,} prompts" if most_prompts is not None else ""
    return (
        f"A budget of {budget:,.0f} images{costs}{limit}, best spent on {best[0]:,} prompts × {best[1]}:\n"
        f"{_table(lines)}"
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Columns of numbers, to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def plan(
    metric: MetricKind,
    prompts: int | None,
    images: int | None,
    icc: float | None = None,
    deviation: float | None = None,
    ties: float | None = None,
    files: Sequence[Path] = (),
    choice: Choice | None = None,
    budget: float | None = None,
    prompt_cost: float = 0.0,
    most_prompts: int | None = None,
) -> str:
    """The text of `python -m evals plan`; None is an option that was not given.

    Raises:
        ValueError: as `assumed`, `measured`, `design` and `evals.rows.read`; options that exclude each other or are missing.
    """
    choice = choice or Choice()
    if files:
        for option, given in (("--icc", icc), ("--sd", deviation), ("--ties", ties)):
            if given is not None:
                raise ValueError(f"{option} is measured on the files of --from: give one or the other")
        assumption, there, drawn = measured(score_rows.read(files), metric, choice)
        return design(
            assumption,
            there if prompts is None else prompts,
            drawn if images is None else images,
            budget,
            prompt_cost,
            most_prompts,
        )
    if choice != Choice():
        raise ValueError(
            "--model, --experiment, --scorer, --prompt-set and --against choose among the rows of --from"
        )
    if prompts is None:
        raise ValueError(
            "--prompts says how many prompts are planned; without it, --from takes those of score files"
        )
    assumption = assumed(metric, ICC if icc is None else icc, deviation, ties or 0.0)
    return design(assumption, prompts, 1 if images is None else images, budget, prompt_cost, most_prompts)
