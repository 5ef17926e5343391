"""What votes say: win, tie and loss with intervals over prompts and raters, agreement, attention checks, and score rows.

Raters and prompts are crossed, every rater sees every prompt, so both are resampled, independently, with product weights, as
training seeds and prompts are elsewhere (`evals.stats`): the interval is for other people and other prompts. Rates are of votes.
The paper's number (80.3 %, from Fig 2 and App. C) is the share of positive votes; its raters could not say "equal", so it is printed
beside the rate that counts a tie half. Nobody's vote is left out, whatever the attention checks say: they are printed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from evals import ballots, stats
from evals import rows as score_rows
from evals.ballots import Comparison, Votes
from evals.files import EXTERNAL, write_text
from evals.metrics._wins import half_tie_rate, ties_dropped_rate
from evals.stats import Array, Interval

OUTCOMES = ("A", "tie", "B")
_RUN = re.compile(r"(?P<experiment>[A-Za-z0-9_.]+(@[0-9]+)?)-(?P<model>[A-Za-z0-9_.]+)-(?P<seed>[0-9]{1,18})")
"""What folders of pictures are called; those of a snapshot have its iteration: joint@40-miniature-0."""


@dataclass(frozen=True)
class Result:
    """A against B on one prompt set, or on all."""

    prompt_set: str
    prompts: int
    pairs: int
    raters: int
    votes: int
    counts: tuple[int, int, int]
    """Votes for A, for neither, for B."""
    half_tie: Interval
    ties_dropped: Interval
    positive: Interval
    """Votes for A among all votes: the paper's reading."""
    p: float
    """Two-sided bootstrap p of a half-tie rate of one half, from the resamples of its interval."""
    sign_p: float
    """Exact sign test over prompts, with all votes on a prompt together."""
    kappa: float
    agreement: float
    """Share of pairs of raters that chose alike on a pair of pictures."""


@dataclass(frozen=True)
class RaterRecord:
    """One rater: how much, how, and how attentive."""

    rater: str
    votes: int
    counts: tuple[int, int, int]
    left: int
    """Votes for the left picture, whoever drew it."""
    checks: int
    failed: int


@dataclass(frozen=True)
class Tally:
    """Everything that is printed."""

    comparison: Comparison
    results: tuple[Result, ...]
    """Of each prompt set, and of all where there are several."""
    raters: tuple[RaterRecord, ...]
    histogram: Mapping[tuple[int, int], int]
    """Pairs by (votes for A, votes)."""
    unvoted: int
    """Pairs on which nobody has voted."""
    same: int
    """Pairs whose two pictures are the same, pixel by pixel."""


# ------------------------------------------------------------------------------------------------- measures


def rating_counts(choices: pd.DataFrame) -> Array:
    """How many raters chose each of `OUTCOMES`, for each pair of pictures that has a vote [pairs, 3]."""
    table = pd.crosstab(choices["pair"], choices["prefers"])
    return table.reindex(columns=list(OUTCOMES), fill_value=0).to_numpy(dtype=np.float64)


def pair_agreement(counts_NK: Array) -> float:
    """Mean over subjects of the share of pairs of raters that chose the same category; subjects with one rating have none.

    Args:
        counts_NK: ratings of each of N subjects in each of K categories.
    """
    ratings_N = counts_NK.sum(axis=1)
    counts_NK, ratings_N = counts_NK[ratings_N > 1], ratings_N[ratings_N > 1]
    if not len(counts_NK):
        return math.nan
    alike_N = (counts_NK * (counts_NK - 1)).sum(axis=1) / (ratings_N * (ratings_N - 1))
    return float(alike_N.mean())


def positive_rate(mean_S: Array) -> Array:
    """`W / (W + T + L)`: a tie is no positive vote."""
    rate: Array = mean_S[..., 0] / mean_S.sum(axis=-1)
    return rate


def counts_RPS(choices: pd.DataFrame) -> Array:
    """Votes for each of `OUTCOMES` of each rater on each prompt [R, P, 3]; NaN where a rater has not voted on a prompt.

    Ratios of the means of such counts are shares of votes, also where raters or prompts have unequal numbers of them.
    """
    index = {name: pd.Categorical(choices[name]) for name in ("rater", "prompt")}
    columns = {name: (choices["prefers"] == name).to_numpy(dtype=np.float64) for name in OUTCOMES}
    # by the names of columns: a list of two categoricals, of two votes, pandas takes for one key
    summed = pd.DataFrame({**columns, **index}).groupby([*index], observed=False).sum(min_count=1)
    return summed.to_numpy().reshape(*(len(key.categories) for key in index.values()), len(OUTCOMES))


def prompt_weights(prompt_sets: Sequence[str], resamples: int, seed: int) -> Array:
    """Weights [N, P] of prompts resampled inside their prompt set; a prompt set keeps its share of the prompts.

    Args:
        prompt_sets: that of each prompt, none of a single one beside others (`evals.stats.merged_strata`).
        resamples: N.
        seed: of the resampling.
    """
    sets_P = np.asarray(prompt_sets)
    weight_NP = np.empty((resamples, len(sets_P)))
    for name, size in Counter(prompt_sets).items():
        drawn_NP = stats.weights(size, resamples, seed, f"prompts of {name}")
        weight_NP[:, sets_P == name] = size / len(sets_P) * drawn_NP
    return weight_NP


def _sign_p(values_RPS: Array) -> float:
    """Exact sign test: prompts on which A has more votes than B against those on which it has fewer."""
    lead_P = np.nansum(values_RPS[:, :, 0] - values_RPS[:, :, 2], axis=0)
    return stats.mcnemar_exact(int((lead_P > 0).sum()), int((lead_P < 0).sum()))


def result(prompt_set: str, choices: pd.DataFrame, resamples: int = stats.RESAMPLES, seed: int = 0) -> Result:
    """A against B on the votes given."""
    values_RPS = counts_RPS(choices)
    raters, prompts, _ = values_RPS.shape
    weight_NR = stats.weights(raters, resamples, seed, stats.RATERS)
    sets = stats.merged_strata([str(name) for name, _ in sorted(set(choices["prompt"]))])
    sample = stats.Sample(prompt_weights(sets, resamples, seed), sets)

    def tailed(rate: Callable[[Array], Array]) -> tuple[float, Array]:
        found = stats.resampled(values_RPS, rate, weight_NR, sample)
        return found.value, stats.with_tails(
            found.value, found.draws_N, stats.precision_of_raters(found.influence_RP, sets)
        )

    def interval(rate: Callable[[Array], Array]) -> Interval:
        value, tailed_N = tailed(rate)
        # those of which there is a rate: without ties, where all is tied there is none
        counted = int(np.isfinite(rate(np.nansum(values_RPS, axis=0))).sum())
        if counted < 2:  # nothing is known of another prompt
            return Interval(value, math.nan, math.nan)
        if value in (0.0, 1.0):  # no resample can vary
            return stats.wilson(value * counted, counted)
        ends = stats.percentile_interval(value, tailed_N)
        return Interval(*(min(max(end, 0.0), 1.0) for end in ends))

    half, tailed_N = tailed(half_tie_rate)
    sign_p = _sign_p(values_RPS)
    ratings_NK = rating_counts(choices)
    won, tied, lost = (int(count) for count in ratings_NK.sum(axis=0))
    return Result(
        prompt_set=prompt_set,
        prompts=prompts,
        pairs=len(ratings_NK),
        raters=raters,
        votes=len(choices),
        counts=(won, tied, lost),
        half_tie=interval(half_tie_rate),
        ties_dropped=interval(ties_dropped_rate),
        positive=interval(positive_rate),
        p=sign_p if half in (0.0, 1.0) else stats.p_value(tailed_N - 0.5),
        sign_p=sign_p,
        kappa=stats.fleiss_kappa(ratings_NK),
        agreement=pair_agreement(ratings_NK),
    )


# ---------------------------------------------------------------------------------------------------- votes


def read(paths: Sequence[Path]) -> Votes:
    """The votes of all logs of one comparison.

    Raises:
        ValueError: a log cannot be read, is another comparison's, or has a rater that another has too.
    """
    first, *others = ((path, ballots.read(path)) for path in paths)
    comparison, choices = first[1].comparison, dict(first[1].choices)
    where = dict.fromkeys(choices, first[0])
    for path, votes in others:
        if votes.comparison != comparison:
            raise ValueError(f"{first[0]} and {path} are logs of two comparisons: tally them one by one")
        for rater, chosen in votes.choices.items():
            if rater in choices:
                raise ValueError(
                    f"the rater {rater} is in {where[rater]} and in {path}: a rater sees each pair once"
                )
            choices[rater], where[rater] = chosen, path
    return Votes(comparison, choices)


def table(votes: Votes) -> pd.DataFrame:
    """One row for each vote: rater, number of the pair, prompt (set and id), choice, what it prefers, and whether it is on a pair, or right or wrong on a check."""
    records = []
    for rater, shown, choice in votes.each():
        pair = votes.comparison.pairs[shown.pair]
        check = "" if shown.answer is None else "passed" if choice == shown.answer else "failed"
        prompt = (pair.prompt_set, pair.prompt_id)
        records.append((rater, shown.pair, prompt, choice, shown.prefers(choice), check))
    return pd.DataFrame(records, columns=["rater", "pair", "prompt", "choice", "prefers", "check"])


def tally(votes: Votes, resamples: int = stats.RESAMPLES) -> Tally:
    """Count.

    Raises:
        ValueError: there is no vote on a pair yet.
    """
    every = table(votes)
    choices = every[every["check"] == ""]
    if choices.empty:
        raise ValueError("nobody has voted on a pair of pictures yet")
    of_set = choices["prompt"].str[0]
    results = [result(str(name), part, resamples) for name, part in choices.groupby(of_set)]
    if len(results) > 1:
        results.append(result("all", choices, resamples))
    ratings_NK = rating_counts(choices).astype(int)
    pairs = votes.comparison.pairs
    return Tally(
        comparison=votes.comparison,
        results=tuple(results),
        raters=tuple(_record(str(rater), part) for rater, part in every.groupby("rater", sort=True)),
        histogram=Counter((int(n[0]), int(n.sum())) for n in ratings_NK),
        unvoted=len(pairs) - len(ratings_NK),
        same=sum(pair.a == pair.b for pair in pairs),
    )


def _record(rater: str, every: pd.DataFrame) -> RaterRecord:
    choices = every[every["check"] == ""]
    won, tied, lost = (int((choices["prefers"] == name).sum()) for name in OUTCOMES)
    return RaterRecord(
        rater=rater,
        votes=len(choices),
        counts=(won, tied, lost),
        left=int((choices["choice"] == "left").sum()),
        checks=int((every["check"] != "").sum()),
        failed=int((every["check"] == "failed").sum()),
    )


# ----------------------------------------------------------------------------------------------------- rows


def shares(votes: Votes) -> list[float]:
    """For each pair, the share of its raters who prefer A's picture, a tie counted half; NaN where nobody voted."""
    choices = table(votes)
    choices = choices[choices["check"] == ""]
    value = choices["prefers"].map({"A": 1.0, "tie": 0.5, "B": 0.0}).astype(np.float64)
    mean = value.groupby(choices["pair"]).mean()
    return [float(mean.get(i, math.nan)) for i in range(len(votes.comparison.pairs))]


def rows_of(votes: Votes) -> pd.DataFrame:
    """Two score rows for each pair: the share that prefers A's picture to B's, and what is left to one for B's.

    A value speaks of two pictures, so the version holds both experiments: rows against another opponent are another scorer's. Beside the columns of all rows
    they have `evals.rows.RATERS`, raters in the order of their names and each by a hash of the name: who votes in several comparisons is known again, and not named.
    """
    comparison = votes.comparison
    names = (comparison.a, comparison.b)
    runs = [_run(name, suite != "") for name, suite in zip(names, comparison.suites, strict=True)]
    version = _version(runs[0][0], runs[1][0])
    cast = cast_votes(votes)
    records = []
    for side, (experiment, model, seed) in enumerate(runs):
        for pair, share in zip(comparison.pairs, shares(votes), strict=True):
            records.append(
                score_rows.Row(
                    experiment=experiment,
                    model=model,
                    seed=seed,
                    suite=comparison.suite,
                    prompt_set=pair.prompt_set,
                    prompts=comparison.prompts[pair.prompt_set],
                    prompt_id=pair.prompt_id,
                    image=pair.image,
                    picture=pair.b if side else pair.a,
                    scorer=score_rows.HUMAN,
                    version=version,
                    trained_on=0,
                    value=1 - share if side else share,
                )
            )
    return score_rows.table(records).assign(
        **{score_rows.RATERS: cast + [one.translate(score_rows.OTHER_SIDE) for one in cast]}
    )


def cast_votes(votes: Votes) -> list[str]:
    """For each pair, what each rater says of A's picture, as `evals.rows.VOTES` has it."""
    said = {
        (rater, shown.pair): shown.prefers(choice)
        for rater, shown, choice in votes.each()
        if shown.answer is None
    }
    letter = {"A": "w", "tie": "t", "B": "l", "": "."}
    raters = {
        rater: hashlib.sha256(rater.encode()).hexdigest()[:8] for rater in sorted({one for one, _ in said})
    }
    return [
        ";".join(f"{code}={letter[said.get((rater, pair), '')]}" for rater, code in raters.items())
        for pair in range(len(votes.comparison.pairs))
    ]


def _run(name: str, is_drawn: bool) -> tuple[str, str, int]:
    """Experiment, model and seed of a folder of pictures; one that nothing says to have been drawn for a suite is an experiment of that name, as `score --pictures` has it."""
    found = _RUN.fullmatch(name) if is_drawn else None
    return (found["experiment"], found["model"], int(found["seed"])) if found else (name, EXTERNAL, 0)


def _version(first: str, second: str) -> str:
    """8 hex characters: the protocol, and which two experiments met."""
    text = json.dumps([ballots.KIND, *sorted((first, second))])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ------------------------------------------------------------------------------------------------- printing


def write(votes: Votes, out: Path, command: str) -> str:
    """Write the rows (.csv) and, beside them, the tables (.md), which are returned.

    Raises:
        ValueError: there is no vote on a pair yet.
    """
    counted = markdown(tally(votes), command)
    score_rows.write(rows_of(votes), out)
    write_text(counted, out.with_suffix(".md"))
    return counted


def markdown(tally: Tally, command: str) -> str:
    """The tables, and what has to be known to read them."""
    return "\n".join(
        [
            f"{ballots.TITLE}{tally.comparison.a} (A) against {tally.comparison.b} (B)",
            "",
            verdict(tally),
            "",
            "| prompt set | prompts | pairs | votes | A / equal / B, % | A, ties half, % | A, ties dropped, % | votes for A of all, % | p | raters agree, % | Fleiss kappa |",
            "|" + "---|" * 11,
            *(_result_line(r) for r in tally.results),
            "",
            "| rater | votes | A / equal / B, % | left of decided, % | attention checks failed |",
            "|" + "---|" * 5,
            *(_rater_line(r) for r in tally.raters),
            "",
            "Pairs by votes for A: "
            + ", ".join(_bin(*item) for item in sorted(tally.histogram.items()))
            + ".",
            "",
            *(f"- {note}" for note in _notes(tally)),
            "",
            f"Made by `{command}`.",
            "",
        ]
    )


def verdict(tally: Tally) -> str:
    """One sentence: who is preferred, by the interval and by the exact sign test over prompts, or that it is not distinguished."""
    overall = tally.results[-1]
    a, b = tally.comparison.a, tally.comparison.b
    said = f"{_percent(overall.half_tie)} % of {overall.votes} votes by {_count(overall.raters, 'rater')} on {_count(overall.prompts, 'prompt')}"
    apart = overall.half_tie.low > 0.5 or overall.half_tie.high < 0.5
    if apart and overall.sign_p <= 1 - stats.LEVEL:
        better, other = (a, b) if overall.half_tie.value > 0.5 else (b, a)
        return f"**{better} is preferred to {other}**: A wins {said}, ties counted half."
    return f"**{a} and {b} are not distinguished**: A wins {said}, ties counted half."


def _notes(tally: Tally) -> list[str]:
    overall, comparison = tally.results[-1], tally.comparison
    failed, checks = sum(r.failed for r in tally.raters), sum(r.checks for r in tally.raters)
    shown = len(comparison.pairs) + comparison.checks
    unfinished = [r.rater for r in tally.raters if r.votes + r.checks < shown]
    notes = [
        f"Brackets: 95 % intervals, percentile bootstrap ({stats.RESAMPLES:,}) with raters and prompts as crossed clusters, stretched to Student's tails for few of either, of fewer than five prompts Student's itself; p: of no difference, ties half, from the same resamples.",
        f"One is said to be preferred where the interval leaves out one half and the exact sign test over prompts has p of at most .05 too; here {overall.sign_p:.2g}.",
        "Votes for A of all is the reading of arXiv 2401.12244 (80.3 % for its ImageReward model against SDv2, from 400 prompts and 5 raters, who could not say equal).",
        "The rates here are shares of votes. `python -m evals compare` reads the rows of these votes and resamples raters and prompts too, and training seeds above them where it is given the votes on several.",
        f"Attention checks: {failed} of {checks} failed; nobody's votes are left out for it.",
        f"{tally.unvoted} of {len(comparison.pairs)} pairs have no vote, {tally.same} are the same picture twice.",
    ]
    if unfinished:
        notes.append(f"Not done with all {shown}: {', '.join(unfinished)}.")
    if overall.raters == 1:
        notes.append("One rater: the intervals are over prompts, and speak of this rater only.")
    if overall.prompts == 1:
        notes.append("One prompt: it cannot be resampled, so there is no interval.")
    return notes


def _result_line(r: Result) -> str:
    cells = [
        r.prompt_set,
        r.prompts,
        r.pairs,
        r.votes,
        _split(r.counts),
        _percent(r.half_tie),
        _percent(r.ties_dropped),
        _percent(r.positive),
        _number(r.p, 4),
        _number(100 * r.agreement, 1),
        _number(r.kappa, 3),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _rater_line(r: RaterRecord) -> str:
    decided = r.counts[0] + r.counts[2]
    left = _number(100 * r.left / decided if decided else math.nan, 1)
    return f"| {r.rater} | {r.votes} | {_split(r.counts)} | {left} | {r.failed} of {r.checks} |"


def _split(counts: tuple[int, int, int]) -> str:
    total = sum(counts)
    return " / ".join(_number(100 * count / total if total else math.nan, 1) for count in counts)


def _percent(interval: Interval) -> str:
    value, low, high = (_number(100 * end, 1) for end in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _bin(votes: tuple[int, int], pairs: int) -> str:
    return f"{votes[0]}/{votes[1]}: {pairs}"
