"""Compare checkpoints: from score rows to numbers of which every cell and every difference has an interval.

`compare` makes them from nothing but the rows; `evals.tables` prints them, `evals.panel` has what several judges say of one pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from evals import metrics, order, panel, stats, variety
from evals import rows as score_rows
from evals.metrics import Metric, _equal
from evals.metrics._wins import half_tie_rate, ties_dropped_rate
from evals.panel import Panel
from evals.rows import BASE, IMAGE, PROMPT, Voices, without_copies
from evals.stats import Array, Interval, Resampled, Resampler

if TYPE_CHECKING:
    from evals.suites import Part

Mark = Literal["better", "worse", "changed", "not distinguished", ""]
Test = Literal["McNemar", "sign", "Wilcoxon", "bootstrap", ""]
NOTHING = Interval(math.nan, math.nan, math.nan)
ROUNDING = 1e-12
"""Relative to a score: what differs by less, of scores that files keep with six digits, differs by the order of a sum."""


@dataclass(frozen=True)
class Estimate:
    """One cell: an experiment (all its seeds) under one metric on one prompt set, and its difference to what all are compared with."""

    model: str
    prompt_set: str
    metric: str
    experiment: str
    value: Interval
    difference: Interval
    """Run less base on the same prompts and noise; NaN for the base itself. "Base" here and below is what all are compared with."""
    ratio: Interval
    """Run over base, where the metric has a meaningful zero; without ends where no resample varies."""
    base_sd: float
    """Standard deviation over prompts of the base's score, the unit of a change; NaN for shares and where a prompt has no score of its own."""
    p: float
    """Of no difference, from the resamples of the interval."""
    test: Test
    p_test: float
    """Of no difference, by the test named: between these checkpoints, with the prompts as units, or "bootstrap", from the resamples of the interval."""
    p_holm: float
    """`p_test` after Holm's correction over all differences of the comparison."""
    mark: Mark
    """By the interval of the difference; none where it has no ends."""
    trained_on: bool
    """The metric's scorer was a reward of this experiment."""
    headline: bool
    """The prompt set is there for this metric, whoever was trained on it: `evals.tables.left_out` says where that is no headline."""
    seeds: int
    prompts: int
    images: int
    missing: int
    """Images, of all seeds, to which the scorer does not apply (NaN)."""
    unpaired: int
    """Prompts, of all seeds, left out of the difference because run or base has nothing applicable there."""
    conflict: str = ""
    """Where a comparison was forced: in what the scores of run and base differ, with both hashes."""

    @property
    def missing_share(self) -> float:
        """Of the images, of all seeds."""
        return self.missing / (self.seeds * self.images)

    @property
    def refused(self) -> bool:
        """Whether the scorer applies to so few images that the metric has no number of them."""
        return bool(refuses(self.metric, self.missing_share))

    @property
    def survives(self) -> bool:
        """Whether the difference is still there after Holm's correction."""
        return self.p_holm <= 1 - stats.LEVEL


@dataclass(frozen=True)
class Outcome:
    """Win, tie and loss of one win-rate cell."""

    model: str
    prompt_set: str
    metric: str
    experiment: str
    win: float
    tie: float
    loss: float
    half_tie: float
    ties_dropped: float
    prompts_won: int
    prompts_lost: int
    sign_p: float
    """Exact sign test over prompts (all seeds and images of a prompt together)."""
    trained_on: bool


@dataclass(frozen=True)
class Retention:
    """What a run trained on several rewards keeps of a specialist's gain (paper, Table 5)."""

    model: str
    prompt_set: str
    metric: str
    experiment: str
    specialist: str
    raw: Interval
    """Ratio of the scores (specialist over joint where lower is better): the paper's "over 80 %". Without ends where no resample varies."""
    gain: Interval
    """Ratio of the gains over the base; NaN where the specialist's own gain is not distinguished from none, without ends where no resample varies."""


def most_missing(metric: str) -> float:
    """Share of images without a value above which a metric is refused: 1, never, for all but parity gaps."""
    return float(getattr(metrics.load(metric), "most_missing", 1.0))


def refuses(metric: str, shares: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether a metric has no number where those shares of its images have no value."""
    return np.asarray(shares) > most_missing(metric)


OriginKey = tuple[str, str, str, str]
"""Model, experiment, prompt set, scorer."""


class Origin(NamedTuple):
    """What the rows behind a cell say of themselves; several, where a comparison was forced or an experiment has several files."""

    version: tuple[str, ...]
    suite: tuple[str, ...]
    prompts: tuple[str, ...]
    file: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything a table or a report needs."""

    estimates: tuple[Estimate, ...]
    outcomes: tuple[Outcome, ...]
    retentions: tuple[Retention, ...]
    panel: Panel
    versions: dict[str, str]
    tie_margins: dict[str, float]
    resamples: int
    seed: int
    against: str
    """The experiment that everything is compared with."""
    origins: dict[OriginKey, Origin]
    strata: dict[str, tuple[str, ...]]
    """The strata of every prompt set that is resampled inside them."""
    remarks: tuple[str, ...]
    """Sentences on the rows themselves, for the foot of a table."""
    left_out: tuple[OriginKey, ...] = ()
    """What runs were scored by and `against` was not on that prompt set: in no number, and told of by `evals.unscored`."""
    unequal: Mapping[OriginKey, str] = field(default_factory=dict)
    """Of scores of variety on unequal numbers of images: why they are in no number."""

    @property
    def family(self) -> int:
        """How many differences Holm's correction is over: all that the comparison tests."""
        return sum(not math.isnan(e.p_test) for e in self.estimates)

    def models(self) -> list[str]:
        """In the order of the files."""
        return list(dict.fromkeys(e.model for e in self.estimates))

    def compared(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of the rows that the comparison is of: without what is left out, and what numbers of images are unequal of."""
        return _without(rows, [*self.left_out, *self.unequal])

    def of(self, **wanted: object) -> list[Estimate]:
        """The estimates whose fields have the given values."""
        return [e for e in self.estimates if all(getattr(e, name) == value for name, value in wanted.items())]


@dataclass(frozen=True)
class _Cell:
    """An estimate with what it was made of: the run and the base on the prompts that both have."""

    estimate: Estimate
    run: Resampled
    base: Resampled
    stream: str
    """That resamples the training seeds."""


class _Statistics(NamedTuple):
    """A metric's statistics on one prompt set."""

    values_RPS: Array
    prompts: tuple[str, ...]
    """Ids, in order: fewer than the set's where the metric is of some of them."""


class _Sides(NamedTuple):
    """The rows of one experiment and scorer: its own, and those of run and base as they are set beside each other, row by row."""

    own: pd.DataFrame
    own_seeds: str
    """The stream that resamples its training seeds."""
    run: pd.DataFrame
    base: pd.DataFrame
    seeds: str
    """The stream that resamples the pairs of training seeds."""
    raters: int = 0
    """How many raters run and base have in the place of each training seed (`evals.rows.by_rater`); 0 where scores are no votes, or nothing says whose."""


class Strata(NamedTuple):
    """What divides the prompt sets of some score rows."""

    of: Mapping[str, Mapping[str, str]]
    """Prompt set to prompt id to stratum; a set without strata is not in it."""
    remarks: tuple[str, ...]
    """A sentence for each set whose strata could not be had."""

    def names(self) -> dict[str, tuple[str, ...]]:
        """The strata of every set, each once."""
        return {prompt_set: tuple(dict.fromkeys(of.values())) for prompt_set, of in self.of.items()}


def compare(
    rows: pd.DataFrame,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
    against: str = BASE,
    force: bool = False,
) -> Comparison:
    """Every experiment x metric x prompt set of the rows (as `evals.rows.read` gives them), each model by itself.

    What `against` has no scores of, by a scorer and on a prompt set, is left out (`Comparison.left_out`), as long as something of the model can be compared; so are
    scores of variety that are of unequal numbers of images (`Comparison.unequal`).

    Args:
        rows: score rows.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        against: the experiment that everything is compared with.
        force: compare scores of different scorer versions, and say so in every cell concerned.

    Raises:
        ValueError: a model without rows of `against`, or none of whose scores `against` has; images that are missing on a side of a scorer and prompt set that
            both have; training seeds that cannot be set beside each other; scorer versions that differ, unless forced.
    """
    every, origins = rows, _origins(rows)
    left_out = _left_out(origins, against)
    for model, part in every.groupby("model", sort=False):
        _refuse_alone(str(model), part, against)
        _refuse_nothing_left(str(model), origins, left_out, against)
    rows = _without(rows, left_out)
    unequal = _unequal(rows, against)
    rows = _without(rows, list(unequal))
    for model in every["model"].unique():
        _refuse_only_unequal(str(model), rows, unequal, against)
    versions = score_rows.versions(rows, refuse=not force)
    strata = strata_of(rows)
    resampler = Resampler(resamples, seed, strata.of)
    cells: list[_Cell] = []
    outcomes: list[Outcome] = []
    retentions: list[Retention] = []
    panels: list[Panel] = []
    voices = {str(model): score_rows.by_rater(part) for model, part in rows.groupby("model", sort=False)}
    for model, part in rows.groupby("model", sort=False):
        found, won = _compare_model(part, against, voices[str(model)], resampler)
        found = _with_conflicts(_with_headlines(_with_refusals(found, against), origins), origins, against)
        cells += found
        outcomes += won
        retentions += _retentions(found, every[every["model"] == model])
        panels.append(panel.of_model(str(model), part, against, voices[str(model)], resampler))
    cells = _with_holm(cells)
    margins = {name: getattr(metrics.load(name), "tie_margin", None) for name in metrics.names()}
    return Comparison(
        estimates=tuple(cell.estimate for cell in cells),
        outcomes=tuple(outcomes),
        retentions=tuple(retentions),
        panel=panel.together(panels),
        versions=versions,
        tie_margins={name: margin for name, margin in margins.items() if margin is not None},
        resamples=resamples,
        seed=seed,
        against=against,
        origins=origins,
        strata=strata.names(),
        remarks=(*strata.remarks, *_remarks(rows, against, voices, origins)),
        left_out=left_out,
        unequal=unequal,
    )


def _left_out(origins: Mapping[OriginKey, Origin], against: str) -> tuple[OriginKey, ...]:
    """What a run was scored by, and what all are compared with was not on the same prompt set; not where a metric needs no scores of the base."""
    by_definition = {
        scorer: against == BASE and all(metrics.load(name).reference is not None for name in names)
        for scorer, names in _by_scorer(scorer for *_, scorer in origins).items()
    }
    return tuple(
        (model, experiment, prompt_set, scorer)
        for model, experiment, prompt_set, scorer in origins
        if not by_definition.get(scorer, True) and (model, against, prompt_set, scorer) not in origins
    )


def _by_scorer(scorers: Iterable[str]) -> dict[str, list[str]]:
    """The metrics that read each scorer; one that none reads is not in it."""
    found: dict[str, list[str]] = {}
    for name in metrics.names(scorers):
        found.setdefault(metrics.load(name).scorer, []).append(name)
    return found


def _without(rows: pd.DataFrame, left_out: Sequence[OriginKey]) -> pd.DataFrame:
    if not left_out:
        return rows
    keys = pd.MultiIndex.from_frame(rows[["model", "experiment", "prompt_set", "scorer"]])
    return rows[~keys.isin(left_out)]


def _unequal(rows: pd.DataFrame, against: str) -> dict[OriginKey, str]:
    """Scores of variety that are not of equal numbers of images, with the sentence that says so; where those of `against` are not, so is every run's."""
    scorers = [
        scorer
        for scorer, names in _by_scorer(map(str, rows["scorer"].unique())).items()
        if any(_equal.needs_equal(metrics.load(name)) for name in names)
    ]
    found: dict[OriginKey, str] = {}
    of_variety = rows[rows["scorer"].isin(scorers)]
    for (model, prompt_set, scorer), part in of_variety.groupby(
        ["model", "prompt_set", "scorer"], sort=False
    ):
        sides = {str(experiment): side for experiment, side in part.groupby("experiment", sort=False)}
        base = sides[against]
        of_base = _equal.why_unequal(base)
        for experiment, side in sides.items():
            why = _equal.why_unequal(side) or of_base or _equal.why_unlike(*_one_seed(side, base))
            if why:
                found[str(model), experiment, str(prompt_set), str(scorer)] = why
    return found


def _one_seed(*sides: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of the lowest training seed of each, as the same seed: all have as many images of a prompt."""
    return [side[side["seed"] == side["seed"].min()].assign(seed=0) for side in sides]


def _refuse_only_unequal(
    model: str, rows: pd.DataFrame, unequal: Mapping[OriginKey, str], against: str
) -> None:
    """Refuse a model of which nothing is left without what is unequal."""
    why = [sentence for (of, *_), sentence in unequal.items() if of == model]
    if why and not ((rows["model"] == model) & (rows["experiment"] != against)).any():
        raise ValueError(f"nothing of {model} can be compared: {why[0]}")


def _remarks(
    rows: pd.DataFrame,
    against: str,
    voices: Mapping[str, Voices | None],
    origins: dict[OriginKey, Origin],
) -> list[str]:
    """What is to be said of the rows themselves: what cannot be compared, pictures that are there twice, variety that is gone."""
    return [
        *_who_voted(rows, against, voices),
        *variety.duplicate_notes(rows),
        *(
            note
            for _, of_model in rows.groupby("model", sort=False)
            for note in variety.copies(
                of_model[of_model["experiment"] != against], of_model[of_model["experiment"] == against]
            )
        ),
        *_collapses(rows, against, origins),
    ]


def _who_voted(rows: pd.DataFrame, against: str, voices: Mapping[str, Voices | None]) -> list[str]:
    """A sentence for every experiment that people voted on: whether its interval is for other raters too."""
    votes = rows[(rows["scorer"] == score_rows.HUMAN) & (rows["experiment"] != against)]
    return [
        f"Human votes on {experiment} ({model}): {_whose_votes(voices[str(model)])}"
        for model, experiment in votes[["model", "experiment"]].drop_duplicates().to_numpy()
    ]


def _whose_votes(voices: Voices | None) -> str:
    """Whether the interval of votes is for other raters too."""
    if voices is None:
        return (
            "raters are no cluster, as some rows do not say who voted, are of several comparisons, or of training seeds of which it is not known which met. A pair "
            "counts by its majority, and the interval, over prompts, speaks of these raters only: that over raters and prompts is `python -m evals tally`'s."
        )
    several = voices.raters > 1
    which = f"{voices.raters} raters" if several else "one rater, of whom alone the interval speaks"
    seeds = f", on {voices.seeds} training seeds" if voices.seeds > 1 else ""
    above = "training seeds, " if voices.seeds > 1 else ""
    return f"the rate is of the votes of {which}{seeds}, a tie counted half, and {above}raters and prompts are resampled."


def _collapses(rows: pd.DataFrame, against: str, origins: dict[OriginKey, Origin]) -> list[str]:
    """A sentence for every run that has lost the variety of significantly more prompts than chance would, over all runs together."""
    found: list[variety.Collapse] = []
    scorers = [name for name in map(str, rows["scorer"].unique()) if order.is_vendi(name)]
    for (model, scorer), part in rows[rows["scorer"].isin(scorers)].groupby(["model", "scorer"], sort=False):
        base = without_copies(part[part["experiment"] == against])
        others = part[part["experiment"] != against]
        for _, mine in others.groupby("experiment", sort=False) if len(base) else ():
            sides = _sides(mine, base, against)
            found += [
                replace(
                    one,
                    conflict=_differ(
                        str(model), one.experiment, one.prompt_set, str(scorer), origins, against
                    ),
                )
                for one in variety.collapses(sides.run, sides.base)
            ]
    return [one.sentence for one in variety.corrected(found) if one.alarm]


def _refuse_alone(model: str, rows: pd.DataFrame, against: str) -> None:
    """Refuse a model that has no rows of what it is to be compared with."""
    names = sorted(rows["experiment"].unique())
    if against in names:
        return
    if against == BASE:
        raise ValueError(
            f"there are no base scores for the model {model} (only {', '.join(names)}): every number is a difference to the base, "
            f"so score the base of {model} on the same prompts and give its file too, or say what else to compare with: "
            f"--against {' or '.join(map(quote, names))}"
        )
    raise ValueError(
        f"there are no scores of {against} for the model {model}: --against must be one of {', '.join(names)}; checkpoints of "
        "different models do not draw from the same noise and are not compared"
    )


def _refuse_nothing_left(
    model: str, origins: Mapping[OriginKey, Origin], left_out: Sequence[OriginKey], against: str
) -> None:
    """Refuse a model of which nothing that a metric reads can be compared."""
    read = _by_scorer(scorer for *_, scorer in origins)
    scorers = dict.fromkeys(scorer for of, *_, scorer in origins if of == model)
    if not {*scorers} & {*read}:
        raise ValueError(
            f"nothing of {model} can be compared: no metric reads the scores of {', '.join(scorers)}; a metric is one file, evals/metrics/<name>.py"
        )
    of_runs = [key for key in origins if key[0] == model and key[1] != against and key[3] in read]
    if not of_runs or not {*of_runs} <= {*left_out}:
        return
    scored = [key for key in of_runs if key[3] != score_rows.HUMAN]
    if not scored:
        names = list(dict.fromkeys(experiment for _, experiment, _, _ in of_runs))
        raise ValueError(
            f"nothing of {model} can be compared: people voted on {' and '.join(names)} and not on {against}, so give --against {' or '.join(map(quote, names))}"
        )
    _, experiment, prompt_set, scorer = scored[0]
    raise ValueError(
        f"nothing of {model} can be compared: {against} has no {scorer} scores on {prompt_set} but {experiment} has: score {_the(against)} again with the same scorers"
    )


def _origins(rows: pd.DataFrame) -> dict[OriginKey, Origin]:
    """What the rows of each model, experiment, prompt set and scorer say of themselves."""
    key = ["model", "experiment", "prompt_set", "scorer"]
    told = [name for name in Origin._fields if name in rows.columns]
    found: dict[OriginKey, dict[str, dict[str, None]]] = {}
    for line in rows[[*key, *told]].drop_duplicates().to_dict("records"):
        kept = found.setdefault(
            (line["model"], line["experiment"], line["prompt_set"], line["scorer"]),
            {name: {} for name in Origin._fields},
        )
        for name in told:
            kept[name][str(line[name])] = None
    return {place: Origin(**{name: tuple(seen) for name, seen in of.items()}) for place, of in found.items()}


def _compare_model(
    rows: pd.DataFrame, against: str, voices: Voices | None, resampler: Resampler
) -> tuple[list[_Cell], list[Outcome]]:
    base = without_copies(rows[rows["experiment"] == against])
    experiments = sorted(
        rows["experiment"].unique(), key=lambda name: (name != against, _first_row(rows, name))
    )
    by_scorer = _by_scorer(map(str, rows["scorer"].unique()))
    base_of = {str(scorer): part for scorer, part in base.groupby("scorer", sort=False)}
    made: list[tuple[_Cell, Outcome | None]] = []
    for experiment in experiments:
        of_experiment = base if experiment == against else rows[rows["experiment"] == experiment]
        parts = {str(scorer): part for scorer, part in of_experiment.groupby("scorer", sort=False)}
        for scorer, names in by_scorer.items():
            if scorer in parts:
                votes = voices if scorer == score_rows.HUMAN else None
                made += _scorer_cells(names, parts[scorer], base_of.get(scorer), against, votes, resampler)
    return [cell for cell, _ in made], [outcome for _, outcome in made if outcome is not None]


def _first_row(rows: pd.DataFrame, experiment: str) -> int:
    return int((rows["experiment"] == experiment).to_numpy().argmax())


def _scorer_cells(
    names: list[str],
    rows: pd.DataFrame,
    base: pd.DataFrame | None,
    against: str,
    voices: Voices | None,
    resampler: Resampler,
) -> list[tuple[_Cell, Outcome | None]]:
    """The cells of one experiment under the metrics that read one scorer; `voices` where it is people, and known who of them."""
    experiment = str(rows["experiment"].iloc[0])
    by_definition = against == BASE and all(metrics.load(name).reference is not None for name in names)
    stream = f"seeds of {experiment}"
    sides = _Sides(rows, stream, rows, rows, stream)
    if experiment != against and not by_definition:
        assert base is not None, "what the base has no scores of is left out"
        sides = _sides(rows, base, against) if voices is None else _voted(voices, rows, against)
    made = [
        _metric_cells(name, metrics.load(name), sides, by_definition, against, resampler) for name in names
    ]
    return [pair for pairs in made for pair in pairs]


def _the(against: str) -> str:
    return "the base" if against == BASE else against


def _sides(rows: pd.DataFrame, base: pd.DataFrame, against: str) -> _Sides:
    """Run and base beside each other.

    Which training seeds are: see `evals.rows.seed_pairs`.

    Raises:
        ValueError: seeds that cannot be.
    """
    experiment = str(rows["experiment"].iloc[0])
    mine, theirs = score_rows.seeds_of(rows), score_rows.seeds_of(base)
    paired = score_rows.seed_pairs(experiment, mine, against, theirs)
    if paired is None:
        raise ValueError(
            f"{experiment} has the training seeds {', '.join(map(str, mine))} but {against} {', '.join(map(str, theirs))}: where both "
            "have several they are set beside each other, so give the files of the same seeds"
        )
    run = rows
    if len(paired.pairs) > len(mine):
        run = pd.concat([rows.assign(seed=seed) for _, seed in paired.pairs], ignore_index=True)
    return _Sides(rows, f"seeds of {experiment}", run, _partners(run, base), paired.stream)


def _voted(voices: Voices, rows: pd.DataFrame, against: str) -> _Sides:
    """Run and base beside each other in the eyes of each rater; their training seeds are as many on both sides."""
    experiment, votes = str(rows["experiment"].iloc[0]), voices.rows
    run, base = (votes[votes["experiment"] == name] for name in (experiment, against))
    return _sides(run, base, against)._replace(own=rows, raters=voices.raters)


def _partners(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """`evals.rows.same_images`; at once where both files list the same pictures in the same order, as suites do."""
    used = base[base["prompt_set"].isin(rows["prompt_set"].unique())]
    times, rest = divmod(len(rows), max(len(used), 1))
    if base["seed"].nunique() == 1 and times and not rest:
        key = list(IMAGE)
        mine, theirs = rows[key].to_numpy(), np.tile(used[key].to_numpy(), (times, 1))
        if times == rows["seed"].nunique() and (mine == theirs).all():
            return rows.assign(value=np.tile(used["value"].to_numpy(), times))
    return score_rows.same_images(rows, base)


def _metric_cells(
    name: str, metric: Metric, sides: _Sides, by_definition: bool, against: str, resampler: Resampler
) -> list[tuple[_Cell, Outcome | None]]:
    """The cells of one experiment under one metric, one for each prompt set; also where neither side has a value, which is a finding (nobody has a face)."""
    run, base, own = sides.run, sides.base, sides.own
    sets = sorted(map(str, run["prompt_set"].unique()))
    mine = metric.statistics(run, base)
    is_win_rate = list(mine.columns) == ["win", "tie", "loss"]
    pair_of = arrays(mine)
    is_alone = sides.run is sides.own or metric.needs_base
    own_of = pair_of if is_alone else arrays(metric.statistics(own, own))
    base_of = {} if by_definition else arrays(metric.statistics(base, base))
    by_set = {str(prompt_set): part for prompt_set, part in own.groupby("prompt_set", sort=False)}
    if metric.unit == "share":
        for prompt_set, found in own_of.items():
            _refuse_no_share(metric, by_set[prompt_set], found)
    made: list[tuple[_Cell, Outcome | None]] = []
    for prompt_set in (prompt_set for prompt_set in sets if prompt_set in pair_of):
        pair, part = pair_of[prompt_set], by_set[prompt_set]
        if len(pair.prompts) < part["prompt_id"].nunique():
            part = part[part["prompt_id"].isin(pair.prompts)]
        sides_of = (own_of[prompt_set], pair, base_of.get(prompt_set))
        cell = _cell(name, metric, part, sides, sides_of, against, resampler)
        is_run = cell.estimate.experiment != against and math.isfinite(cell.estimate.value.value)
        made.append((cell, _outcome(cell.estimate, pair.values_RPS) if is_run and is_win_rate else None))
    return made


def _refuse_no_share(metric: Metric, rows: pd.DataFrame, found: _Statistics) -> None:
    """Refuse scores of which no share can be made, as those in per cent.

    Raises:
        ValueError: naming the scorer, a score, its place and its file.
    """
    if not (np.abs(found.values_RPS - 0.5) > 0.5 + ROUNDING).any():
        return
    bad = rows[(rows["value"] < 0) | (rows["value"] > 1)].iloc[0]
    file = f" in {bad['file']}" if "file" in rows.columns else ""
    raise ValueError(
        f"{metric.scorer} must be from 0 to 1, as {metric.title} is a share, not {bad['value']:g} ({bad['experiment']}, {bad['prompt_set']}, prompt {bad['prompt_id']}, image {bad['image']}{file})"
    )


def arrays(statistics: pd.DataFrame) -> dict[str, _Statistics]:
    """Statistics of every prompt set; every seed has every prompt, in the same order.

    Raises:
        ValueError: naming the prompt set, where seeds have different prompts.
    """
    index = statistics.index
    assert isinstance(index, pd.MultiIndex)
    seed, prompt_set, prompt = (np.asarray(index.codes[index.names.index(name)]) for name in PROMPT)
    values = statistics.to_numpy(dtype=np.float64)
    found = {}
    for code, name in enumerate(index.levels[index.names.index(PROMPT[1])]):
        of_set = prompt_set == code
        if not of_set.any():
            continue
        seeds, prompts = len(np.unique(seed[of_set])), len(np.unique(prompt[of_set]))
        if of_set.sum() != seeds * prompts:
            raise ValueError(
                f"{name}: the training seeds were not scored on the same prompts; score them again"
            )
        order_RP = prompt[of_set].reshape(seeds, prompts)
        assert (order_RP == order_RP[0]).all(), "a metric's statistics are sorted by seed and prompt"
        ids = index.levels[index.names.index(PROMPT[2])][order_RP[0]]
        found[str(name)] = _Statistics(values[of_set].reshape(seeds, prompts, -1), tuple(map(str, ids)))
    return found


def _cell(
    name: str,
    metric: Metric,
    rows: pd.DataFrame,
    sides: _Sides,
    arrays: tuple[_Statistics, _Statistics, _Statistics | None],
    against: str,
    resampler: Resampler,
) -> _Cell:
    """One cell, of the statistics of the experiment by itself, beside the base, and of the base."""
    experiment, prompt_set = str(rows["experiment"].iloc[0]), str(rows["prompt_set"].iloc[0])
    (own_RPS, _), (pair_RPS, ids), (base_RPS, _) = arrays[0], arrays[1], arrays[2] or (None, ())
    is_base = experiment == against
    runs, prompts, _ = pair_RPS.shape
    sample = resampler.prompts(prompt_set, ids)

    def resample(array_RPS: Array, seeds: str) -> Resampled:
        units = len(array_RPS)
        weight_NR = (
            resampler.raters(seeds, units // sides.raters, sides.raters)
            if sides.raters
            else resampler.seeds(seeds, units)
        )
        return replace(stats.resampled(array_RPS, metric.finish, weight_NR, sample), raters=sides.raters)

    run = resample(own_RPS, sides.seeds if own_RPS is pair_RPS else sides.own_seeds)
    lost_RP = np.zeros((runs, prompts), dtype=np.bool_)
    if base_RPS is None or metric.needs_base:
        reference = metric.reference if base_RPS is None else stats.point(base_RPS, metric.finish)
        assert reference is not None, "a base that needs no rows has a value by definition"
        base = Resampled(
            reference, np.full_like(run.draws_N, reference), np.zeros_like(run.influence_RP), run.strata
        )
        own, net = stats.relative(run, reference, metric.unit == "share")
    else:
        own = stats.interval(run, metric.unit == "share")
        lost_RP = np.asarray((np.isnan(pair_RPS) | np.isnan(base_RPS)).any(axis=2))
        if lost_RP.any() or own_RPS is not pair_RPS:
            run = resample(_without_lost(pair_RPS, lost_RP), sides.seeds)
        base = resample(_without_lost(base_RPS, lost_RP), sides.seeds)
        net = stats.interval(run.less(base))
    images = rows["image"].nunique()
    lowest, _ = metrics.bounds_of(metric, images)
    own, net = bounded(metric, images, own, net)
    less = run.less(base)
    difference = NOTHING if is_base else net
    nothing: tuple[Test, float] = ("", math.nan)
    # what is no difference is not tested, and makes nobody else's correction larger
    test, p_test = nothing if math.isnan(difference.value) else _test(metric, pair_RPS, base_RPS, less)
    if sides.raters and (p_resampled := stats.resampled_p(less)) > p_test:
        test, p_test = "bootstrap", p_resampled  # the exact test takes raters as they are
    estimate = Estimate(
        model=str(rows["model"].iloc[0]),
        prompt_set=prompt_set,
        metric=name,
        experiment=experiment,
        value=own,
        difference=difference,
        ratio=NOTHING if is_base or not metric.ratio_to_base else _ratio(run, base, lowest, same_seeds=True),
        base_sd=math.nan if is_base else _spread(metric, base_RPS),
        p=math.nan if math.isnan(difference.value) else less.p,
        test=test,
        p_test=p_test,
        p_holm=p_test,
        mark=_mark(metric, difference),
        trained_on=bool(rows["trained_on"].any()),
        headline=False,
        seeds=len(rows["seed"].unique()),
        prompts=prompts,
        images=len(rows) // len(rows["seed"].unique()),
        missing=int(rows["value"].isna().sum()),
        unpaired=int(lost_RP.sum()),
    )
    return _Cell(estimate, run, base, sides.seeds)


def _spread(metric: Metric, base_RPS: Array | None) -> float:
    """Standard deviation over prompts of the base's mean score; NaN for a share, for a metric that a single prompt has no value of, and where prompts differ by rounding at most."""
    if base_RPS is None or metric.needs_base or base_RPS.shape[2] != 1 or metric.unit == "share":
        return math.nan
    mean_P = _over_seeds(base_RPS)
    mean_P = mean_P[~np.isnan(mean_P)]
    spread = float(mean_P.std(ddof=1)) if len(mean_P) > 1 else 0.0
    return spread if spread > ROUNDING * (1 + float(np.abs(mean_P).max(initial=0.0))) else math.nan


def _over_seeds(array_RPS: Array) -> Array:
    """Mean over seeds [P] of the first statistic; NaN where no seed has one."""
    value_RP = array_RPS[:, :, 0]
    valid_RP = ~np.isnan(value_RP)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(valid_RP, value_RP, 0.0).sum(axis=0) / valid_RP.sum(axis=0))


def _test(
    metric: Metric,
    pair_RPS: Array,
    base_RPS: Array | None,
    less: Resampled,
) -> tuple[Test, float]:
    """The test of no difference between run and base, and its p. Units are the prompts, with all their seeds and images together.

    Pass or fail: prompts on which the run passes more often than the base against those on which it passes less often, which with one
    image a prompt is McNemar's exact test; a win rate: prompts won and lost; a score: Wilcoxon's signed ranks. Where a prompt has no
    value of its own (tones of all images together) or the base is a constant by definition: the resamples of the interval, so that p and
    interval say the same; training seeds are in it too, which the other tests take as they are.
    """
    if metric.needs_base and pair_RPS.shape[2] == 3:
        return "sign", stats.mcnemar_exact(*_won_and_lost(pair_RPS))
    if base_RPS is None or metric.needs_base or pair_RPS.shape[2] != 1:
        return "bootstrap", stats.resampled_p(less)
    gain_P = stats.prompt_differences(pair_RPS[:, :, 0], base_RPS[:, :, 0])
    gain_P = gain_P.round(12)  # equal means of equal scores may differ in the last bit
    if metric.unit == "share":
        return "McNemar", stats.mcnemar_exact(int((gain_P > 0).sum()), int((gain_P < 0).sum()))
    return "Wilcoxon", stats.wilcoxon(gain_P)


def _won_and_lost(values_RPS: Array) -> tuple[int, int]:
    """Prompts of which more images are won than lost, and less, of statistics win, tie and loss."""
    net_P = np.nansum(values_RPS[:, :, 0] - values_RPS[:, :, 2], axis=0).round(12)
    return int((net_P > 0).sum()), int((net_P < 0).sum())


def _without_lost(array_RPS: Array, lost_RP: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
    return np.where(lost_RP[:, :, None], np.nan, array_RPS)


def bounded(metric: Metric, images: int, value: Interval, difference: Interval) -> tuple[Interval, Interval]:
    """A metric's value and its difference to the base's, of so many images of a prompt, without what neither can be."""
    lowest, highest = metrics.bounds_of(metric, images)
    return stats.within(value, lowest, highest), stats.within(difference, lowest - highest, highest - lowest)


def _ratio(top: Resampled, bottom: Resampled, lowest: float, same_seeds: bool) -> Interval:
    """Interval of a ratio, from 0 on where no value is below; nothing where what it is to may be 0, since a ratio has no meaning there."""
    if not (bottom.value > 0 and bool(np.all(bottom.draws_N > 0))):
        return NOTHING
    found = stats.interval(top.over(bottom, same_seeds))
    return _varied(stats.within(found, 0.0 if lowest >= 0 else -math.inf, math.inf))


def _varied(ratio: Interval) -> Interval:
    """A ratio without ends where no resample varies: that every prompt says the same, of both or of each, is not certainty."""
    same = math.isclose(ratio.low, ratio.high, rel_tol=1e-9)
    return Interval(ratio.value, math.nan, math.nan) if same else ratio


def _mark(metric: Metric, difference: Interval) -> Mark:
    if math.isnan(difference.low):
        return ""
    if difference.low <= 0 <= difference.high:
        return "not distinguished"
    if metric.higher_is_better is None:
        return "changed"
    return "better" if (difference.value > 0) == metric.higher_is_better else "worse"


def _with_headlines(cells: list[_Cell], origins: dict[OriginKey, Origin]) -> list[_Cell]:
    """Mark the cells of the metrics that the suite says a prompt set is there for, and of what people said.

    Where this version does not know the suite, or the prompt set in it: those of the metrics that some experiment exists to improve.
    """
    marked = []
    for cell in cells:
        e = cell.estimate
        metric = metrics.load(e.metric)
        suite = origins[e.model, e.experiment, e.prompt_set, metric.scorer].suite[0]
        listed = headlines_of(suite.partition(":")[0]).get(e.prompt_set)
        headline = metric.specialist is not None if listed is None else e.metric in listed
        headline |= metric.scorer == score_rows.HUMAN  # no suite asks people, whoever did wants to know
        marked.append(_changed(cell, headline=headline))
    return marked


@cache
def parts_of(suite: str) -> dict[str, Part]:
    """The parts of a suite by prompt set; nothing for one that is not known."""
    from evals import suites  # here: it says how to draw, which takes a deep learning stack

    if suite not in suites.names():
        return {}
    return {part.prompt_set: part for part in suites.load(suite).parts}


def headlines_of(suite: str) -> dict[str, tuple[str, ...]]:
    """The headlines of every prompt set of a suite; nothing for one that is not known, or that names none."""
    found = {prompt_set: part.headlines for prompt_set, part in parts_of(suite).items()}
    return found if any(found.values()) else {}


def strata_of(rows: pd.DataFrame) -> Strata:
    """The strata inside which prompts are resampled: of the prompt sets for which their suite names some.

    A set whose strata cannot be had (they are tags of prompts that are not on this machine) is resampled as a whole, which gives wider
    intervals where strata differ, and is told of.
    """
    found: dict[str, Mapping[str, str]] = {}
    remarks: dict[str, str] = {}
    for prompt_set, suite in rows[["prompt_set", "suite"]].drop_duplicates().itertuples(index=False):
        part = parts_of(str(suite).partition(":")[0]).get(str(prompt_set))
        if part is None or part.stratum is None or prompt_set in found:
            continue
        ids = sorted(map(str, rows.loc[rows["prompt_set"] == prompt_set, "prompt_id"].unique()))
        try:
            found[str(prompt_set)] = {prompt: part.stratum(str(prompt_set), prompt) for prompt in ids}
        except ValueError as error:
            remarks[str(prompt_set)] = f"{prompt_set} is resampled as a whole, not inside its strata: {error}"
    return Strata(found, tuple(remarks.values()))


def _with_refusals(cells: list[_Cell], against: str) -> list[_Cell]:
    """Take the numbers out of the cells that are refused, and the differences out of those whose base is."""
    no_base = {
        (e.metric, e.prompt_set) for e in (c.estimate for c in cells) if e.experiment == against and e.refused
    }
    told = []
    for cell in cells:
        e = cell.estimate
        if e.refused or (e.metric, e.prompt_set) in no_base:
            value = NOTHING if e.refused else e.value
            cell = _changed(
                cell,
                value=value,
                difference=NOTHING,
                ratio=NOTHING,
                p=math.nan,
                test="",
                p_test=math.nan,
                p_holm=math.nan,
                mark="",
            )
        told.append(cell)
    return told


def _with_conflicts(cells: list[_Cell], origins: dict[OriginKey, Origin], against: str) -> list[_Cell]:
    """Say in each cell in what its scores and those of the base differ."""
    return [_changed(cell, conflict=_conflict(cell.estimate, origins, against)) for cell in cells]


def _conflict(e: Estimate, origins: dict[OriginKey, Origin], against: str) -> str:
    return _differ(e.model, e.experiment, e.prompt_set, metrics.load(e.metric).scorer, origins, against)


def _differ(
    model: str,
    experiment: str,
    prompt_set: str,
    scorer: str,
    origins: dict[OriginKey, Origin],
    against: str,
) -> str:
    """In what the scores of a run and of what it is compared with differ; "" where in nothing."""
    mine = origins[model, experiment, prompt_set, scorer]
    theirs = origins.get((model, against, prompt_set, scorer), mine)
    told = []
    for what, ours, other in (
        (f"scorer {scorer}", mine.version, theirs.version),
        ("suite", mine.suite, theirs.suite),
        (f"prompts {prompt_set}", mine.prompts, theirs.prompts),
    ):
        if len({*ours, *other}) > 1:
            sides = f"{' and '.join(ours)} in {experiment}"
            told.append(
                f"{what} {sides}" + ("" if experiment == against else f", {' and '.join(other)} in {against}")
            )
    return "; ".join(told)


def _with_holm(cells: list[_Cell]) -> list[_Cell]:
    """Holm's correction over all differences of the comparison: every model, experiment, prompt set and metric is one family."""
    tested = [index for index, cell in enumerate(cells) if not math.isnan(cell.estimate.p_test)]
    corrected = list(cells)
    for index, p in zip(tested, stats.holm([cells[i].estimate.p_test for i in tested]), strict=True):
        corrected[index] = _changed(cells[index], p_holm=p)
    return corrected


def _changed(cell: _Cell, **changes: Any) -> _Cell:
    return replace(cell, estimate=replace(cell.estimate, **changes))


def _outcome(estimate: Estimate, values_RPS: Array) -> Outcome:
    def whole(finish: Any) -> float:
        return stats.point(values_RPS, finish)

    won, lost = _won_and_lost(values_RPS)
    return Outcome(
        model=estimate.model,
        prompt_set=estimate.prompt_set,
        metric=estimate.metric,
        experiment=estimate.experiment,
        win=whole(lambda mean_S: mean_S[..., 0]),
        tie=whole(lambda mean_S: mean_S[..., 1]),
        loss=whole(lambda mean_S: mean_S[..., 2]),
        half_tie=whole(half_tie_rate),
        ties_dropped=whole(ties_dropped_rate),
        prompts_won=won,
        prompts_lost=lost,
        sign_p=stats.mcnemar_exact(won, lost),
        trained_on=estimate.trained_on,
    )


def _retentions(cells: Sequence[_Cell], rows: pd.DataFrame) -> list[Retention]:
    """For every experiment trained on several scorers, its share of each specialist's gain, on the headline cells."""
    trained = rows[rows["trained_on"] == 1].groupby("experiment")["scorer"].nunique()
    joints = {str(name) for name, scorers in trained.items() if scorers > 1}
    by_key = {(c.estimate.experiment, c.estimate.metric, c.estimate.prompt_set): c for c in cells}
    found = []
    for joint in cells:
        specialist = metrics.load(joint.estimate.metric).specialist
        single = by_key.get((specialist or "", joint.estimate.metric, joint.estimate.prompt_set))
        if joint.estimate.headline and joint.estimate.experiment in joints and single and single is not joint:
            found.append(_retention(joint, single))
    return found


def _retention(joint: _Cell, single: _Cell) -> Retention:
    metric = metrics.load(joint.estimate.metric)
    top, bottom = (joint, single) if metric.higher_is_better else (single, joint)
    same_seeds = joint.stream == single.stream  # where only the base has several
    raw = gain = NOTHING
    if not (joint.estimate.refused or single.estimate.refused):
        lowest, _ = metrics.bounds_of(metric, joint.estimate.images)
        raw = _ratio(top.run, bottom.run, lowest, same_seeds)
        if single.estimate.mark == "better" and not math.isnan(joint.estimate.difference.value):
            share = joint.run.less(joint.base).over(single.run.less(single.base), same_seeds)
            gain = _varied(stats.interval(share))
    return Retention(
        model=joint.estimate.model,
        prompt_set=joint.estimate.prompt_set,
        metric=joint.estimate.metric,
        experiment=joint.estimate.experiment,
        specialist=single.estimate.experiment,
        raw=raw,
        gain=gain,
    )
