"""Over-optimisation: what a run's reward, held-out judges and, on the miniature, gold say of its snapshots, and how far each is from the base.

A reward that is trained on (the proxy) goes on rising when pictures no longer get better. What tells is a judge that no training has seen.
All is fixed here before anything is scored:

- A *question* is what an experiment exists to improve (`specialist` of a metric). It is looked at where the run was trained on a scorer of it.
  Metrics of scorers that were rewards of the run are its proxies, of scorers that know the miniature's truth its gold, all others its judges. Of
  a scorer the first metric counts that is no win rate, which ends at 100 %, or else the win rate.
- A *gain* is the metric less that of the base, turned such that more is better, on the same prompts and noise. Prompts are resampled inside the strata that the
  suite names, and the intervals are made as those of `evals.compare`.
- Proxy and judge *part* at the first checkpoint after the judge's best at which the judge is below its best and the proxy above where it
  was then, both with their whole intervals.
- The checkpoint to *keep* is the one that the judge puts first, the base and the end of the run among them; of several judges, the one whose
  largest shortfall from any judge's best, in standard errors, is smallest. Neither proxy nor gold has a say.

The best of several checkpoints is partly the luckiest, so differences between checkpoints have simultaneous intervals: a bootstrap's
standard errors times the 95 % quantile, over resamples, of the largest studentised difference among all pairs (as Tukey's range, for
correlated estimates of any scale). They hold for all pairs at once, whichever is looked at. Resamples take the standard errors for known: of 20 prompts
that held in 89 of 100 samples, of 8 in 74. So the quantile is Student's of as many prompts, far out as it is (95 and 93).

Several runs that differ in their training seed alone are one curve: seeds are resampled above the prompts, and what few of them leave unknown widens the
simultaneous intervals by Student's quantile over the normal's.

Shape suffixes: T checkpoints, the base first; R training seeds; N resamples; P prompts; S sufficient statistics of a metric.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import special
from tqdm import tqdm

import prompts
from evals import metrics, stats
from evals import rows as score_rows
from evals.compare import NOTHING, bounded, headlines_of, most_missing, refuses, strata_of
from evals.files import write_text
from evals.metrics import Metric
from evals.rows import BASE
from evals.stats import Array, Interval, Resampled, Resampler
from evals.tables import heading, interval, markdown_table, strata_notes
from prompts import Prompt

if TYPE_CHECKING:
    from evals.checkpoints import Checkpoint
    from evals.diffusion import Painter
    from evals.suites import Suite

Role = Literal["proxy", "judge", "gold"]
ROLES: tuple[Role, ...] = ("proxy", "judge", "gold")
GOLD = ("gold_utility", "fully_right")
"""Scorers of the miniature that know what its people value and what its pictures show: to check the method with, never to choose by."""
FOLDER = "curves"
"""Folder of score files beside the table, apart from those that `compare` takes all of."""


# ------------------------------------------------------------------------------------------------------------ what is found


@dataclass(frozen=True)
class Point:
    """A checkpoint of the run."""

    iteration: int
    experiment: str
    """As in its score rows: `joint@40`; the base first, the finished run last."""
    images: int
    """Drawn in training so far."""
    denoiser_evaluations: int
    kl: Interval
    """To the base: nats, mean over prompts (see `evals.divergence`)."""


@dataclass(frozen=True)
class Series:
    """A metric over the checkpoints, on one prompt set."""

    question: str
    role: Role
    metric: str
    prompt_set: str
    value_T: tuple[Interval, ...]
    gain_T: tuple[Interval, ...]
    """Over the base, more is better; of each checkpoint by itself."""
    error_TT: Array
    """Standard error of the difference between any two gains."""
    critical: float
    """Standard errors on each side of a simultaneous interval."""
    left_out: int
    """Prompts that some checkpoint has nothing applicable of: in no number."""
    missing_T: tuple[float, ...]
    """Share of the images that the scorer does not apply to, of the training seed that has most of them."""
    unfit: frozenset[int] = frozenset()
    """Checkpoints that this or another series of the run refuses: none of them is the best of anything, or where two part."""

    def is_refused(self, t: int) -> bool:
        """Whether so few images have a value that the checkpoint has no number: a run whose portraits lose their faces is not a fair one."""
        return bool(refuses(self.metric, self.missing_T[t]))

    @property
    def best(self) -> int:
        """The checkpoint with the largest gain, of equal ones the earliest; of those that can be kept."""
        return max(
            (t for t in range(len(self.gain_T)) if t not in self.unfit), key=lambda t: self.gain_T[t].value
        )

    def difference(self, one: int, other: int) -> Interval:
        """Gain of one checkpoint less that of another, with its simultaneous interval."""
        value = self.gain_T[one].value - self.gain_T[other].value
        half = self.critical * float(self.error_TT[one, other])
        return Interval(value, value - half, value + half)


@dataclass(frozen=True)
class Parting:
    """A proxy held against a judge, or against gold."""

    proxy: Series
    against: Series
    fallen: tuple[int, ...]
    """Checkpoints after its best at which the judge is below its best."""
    apart: tuple[int, ...]
    """Those of them at which the proxy has risen since: the first is where they part."""


@dataclass(frozen=True)
class Choice:
    """The checkpoint to keep."""

    kept: int
    alike: tuple[int, ...]
    """Others that no judge distinguishes from its best."""


@dataclass(frozen=True)
class Curve:
    """Everything that the table says."""

    points: tuple[Point, ...]
    series: tuple[Series, ...]
    partings: tuple[Parting, ...]
    choice: Choice | None
    """None where no judge is held out."""
    strata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of every prompt set that is looked at and resampled inside them."""
    remarks: tuple[str, ...] = ()
    """A sentence for each set whose strata could not be had."""

    @property
    def unfit(self) -> tuple[int, ...]:
        """Checkpoints that some series refuses."""
        return tuple(sorted(self.series[0].unfit))

    def of(self, question: str, *roles: Role) -> list[Series]:
        """The series of a question, in order of their roles."""
        return [s for role in roles for s in self.series if s.question == question and s.role == role]

    def questions(self) -> list[str]:
        """In order of the metrics."""
        return list(dict.fromkeys(s.question for s in self.series))


Chosen = tuple[str, Role, str, str]
"""Question, role, metric and prompt set of a series."""


def curve(
    rows: pd.DataFrame,
    points: Sequence[Point],
    resamples: int = stats.RESAMPLES,
    chosen: Sequence[Chosen] | None = None,
) -> Curve:
    """Find where proxies and judges part, and what to keep.

    Args:
        rows: of all checkpoints of `points`, as `evals.rows.read` gives them; of one training seed, or of several that have the same.
        points: the base first.
        resamples: of the bootstrap.
        chosen: what is looked at; `chosen_metrics` unless given.

    Raises:
        ValueError: where no reward of the run is scored, rows are missing on a side, or the base's images have no value in all that is looked at.
    """
    order = [point.experiment for point in points]
    strata = strata_of(rows)
    resampler = Resampler(resamples, 0, strata.of)
    found, remarks = [], list[str]()
    for question, role, name, prompt_set in chosen or chosen_metrics(rows):
        one = _series(question, role, name, prompt_set, rows, order, resampler)
        if one.is_refused(0):
            remarks.append(
                f"{_title(one)} on {prompt_set} is left out: {lacking(name, one.missing_T[0], 'the images of the base')}."
            )
        else:
            found.append(one)
    if not found:
        raise ValueError(remarks[0].rstrip("."))
    unfit = frozenset(t for one in found for t in range(len(points)) if one.is_refused(t))
    found = [replace(one, unfit=unfit) for one in found]
    partings = [
        parting(proxy, against)
        for proxy in found
        for against in found
        if proxy.role == "proxy" and against.role != "proxy" and proxy.question == against.question
    ]
    judges = [s for s in found if s.role == "judge"]
    looked_at = dict.fromkeys(s.prompt_set for s in found)
    return Curve(
        points=tuple(points),
        series=tuple(found),
        partings=tuple(partings),
        choice=choose(judges) if judges else None,
        strata={name: of for name, of in strata.names().items() if name in looked_at},
        remarks=(*remarks, *strata.remarks),  # the divergence is of all sets
    )


def chosen_metrics(rows: pd.DataFrame) -> list[Chosen]:
    """Everything that is looked at.

    Raises:
        ValueError: where no reward of the run is scored.
    """
    headlines = headlines_of(str(rows["suite"].iloc[0]).partition(":")[0])
    trained = set(rows.loc[rows["trained_on"] == 1, "scorer"])
    sets = rows.groupby("scorer")["prompt_set"].unique()
    first: dict[tuple[str, str], tuple[str, Metric]] = {}
    for name in sorted(metrics.names(), key=lambda name: (metrics.load(name).needs_base, name)):
        metric = metrics.load(name)
        if metric.specialist is not None and metric.scorer in sets.index:
            first.setdefault((metric.specialist, metric.scorer), (name, metric))
    asked = {question for question, scorer in first if scorer in trained}
    if not asked:
        experiments = ", ".join(sorted({name.split("@")[0] for name in rows["experiment"]} - {BASE}))
        raise ValueError(
            f"no metric of the suite reads a reward that {experiments} was trained on, so there is no proxy to follow: choose another --suite"
        )
    found: list[Chosen] = []
    for (question, scorer), (name, _) in sorted(first.items()):
        role: Role = "proxy" if scorer in trained else "gold" if scorer in GOLD else "judge"
        scored = sorted(map(str, sets[scorer]))
        home = [prompt_set for prompt_set in scored if name in headlines.get(prompt_set, ())] or scored
        found += [(question, role, name, prompt_set) for prompt_set in home if question in asked]
    return found


def _series(
    question: str,
    role: Role,
    name: str,
    prompt_set: str,
    rows: pd.DataFrame,
    order: Sequence[str],
    resampler: Resampler,
) -> Series:
    metric = metrics.load(name)
    mine = rows[(rows["scorer"] == metric.scorer) & (rows["prompt_set"] == prompt_set)]
    ids, values_TRPS = per_prompt(metric, mine, order)
    missing_T = missing_shares(mine, order)
    refused_T = refuses(name, missing_T)
    # stands there as the base, so that no other loses a prompt by it; its numbers are taken out below
    values_TRPS = np.where(refused_T[:, None, None, None], values_TRPS[:1], values_TRPS)
    lost_P = np.asarray(np.isnan(values_TRPS).any(axis=(0, 1, 3)))
    kept_TRPS = values_TRPS[:, :, ~lost_P]
    seeds, number = kept_TRPS.shape[1:3]
    if number < 2:
        raise ValueError(
            f"{prompt_set}: only {number} prompts have a {metric.scorer} score of every checkpoint, and differences need at least 2"
        )
    sample = resampler.prompts(prompt_set, [one for one, lost in zip(ids, lost_P, strict=True) if not lost])
    weight_NR = resampler.seeds("training seeds", seeds)
    seen_T = [stats.resampled(values_RPS, metric.finish, weight_NR, sample) for values_RPS in kept_TRPS]
    sign = 1.0 if metric.higher_is_better else -1.0
    error_TT, critical = simultaneous(np.stack([seen.draws_N for seen in seen_T]))
    if number < stats.FEW:
        critical = _bonferroni(len(order))
    if seeds > 1:
        critical *= _widening(np.stack([seen.influence_RP for seen in seen_T]), sample.strata)
    else:
        critical = _students(critical, number - (1 if sample.strata is None else len(set(sample.strata))))
    both_T = [
        (NOTHING, NOTHING) if refused else _beside_base(metric, seen, seen_T[0], mine["image"].nunique())
        for seen, refused in zip(seen_T, refused_T, strict=True)
    ]
    return Series(
        question=question,
        role=role,
        metric=name,
        prompt_set=prompt_set,
        value_T=tuple(value for value, _ in both_T),
        gain_T=tuple(difference if sign > 0 else _negated(difference) for _, difference in both_T),
        error_TT=error_TT,
        critical=critical,
        left_out=int(lost_P.sum()),
        missing_T=missing_T,
    )


def missing_shares(rows: pd.DataFrame, order: Sequence[str]) -> tuple[float, ...]:
    """Share of each checkpoint's images that have no value, of the training seed that has most of them.

    Args:
        rows: of one scorer, on one prompt set.
        order: experiments of the checkpoints.
    """
    missing = rows["value"].isna().groupby([rows["experiment"], rows["seed"]]).mean().groupby(level=0).max()
    return tuple(float(missing[one]) for one in order)


def _bonferroni(checkpoints: int, level: float = stats.LEVEL) -> float:
    """The normal's quantile for all pairs of checkpoints: the few different resamples of few prompts have no shape that could tell it."""
    return float(-special.ndtri((1 - level) / (checkpoints * (checkpoints - 1))))


def _students(critical: float, degrees: int) -> float:
    """What Student's t exceeds as seldom as the normal exceeds that."""
    return float(-special.stdtrit(max(degrees, 1), special.ndtr(-critical)))


def _widening(influence_TRP: Array, strata: stats.Labels | None, level: float = stats.LEVEL) -> float:
    """The largest of Student's quantiles of the gains over the base (the first), divided by the normal's."""
    tail = (1 - level) / 2
    normal = float(-special.ndtri(tail))
    gains = (stats.precision(influence_RP - influence_TRP[0], strata) for influence_RP in influence_TRP[1:])
    return max(float(known.deviations(tail)) / normal for known in gains)


class PerPrompt(NamedTuple):
    """What a metric reads of every prompt."""

    prompt_ids: tuple[str, ...]
    statistics_TRPS: Array


def per_prompt(metric: Metric, rows: pd.DataFrame, order: Sequence[str]) -> PerPrompt:
    """Sufficient statistics of every checkpoint, beside those of the base at the same images.

    Args:
        metric: of them.
        rows: of its scorer, on one prompt set.
        order: experiments of the checkpoints, the base first; a base of one seed stands beside every other's.

    Raises:
        ValueError: a checkpoint without rows, or seeds with other prompts or checkpoints.
    """
    base = rows[rows["experiment"] == order[0]]
    stacked, ids = [], list[str]()
    for experiment in order:
        part = rows[rows["experiment"] == experiment]
        if part.empty:
            raise ValueError(f"{experiment} has no {metric.scorer} scores: score it again")
        found = metric.statistics(part, score_rows.same_images(part, base))
        seeds = part["seed"].nunique()
        # of the base: `same_images` has refused other prompts than its own
        ids = ids or [str(one) for one in found.index.get_level_values("prompt_id")[: len(found) // seeds]]
        stacked.append(found.to_numpy(dtype=np.float64).reshape(seeds, len(found) // seeds, -1))
    most = max(stacked, key=len).shape
    if odd := [
        name for name, of in zip(order, stacked, strict=True) if of.shape not in (most, (1, *most[1:]))
    ]:
        raise ValueError(f"{odd[0]} was not scored for the training seeds of the others: score them again")
    return PerPrompt(tuple(ids), np.stack([np.broadcast_to(values_RPS, most) for values_RPS in stacked]))


def _beside_base(metric: Metric, seen: Resampled, base: Resampled, images: int) -> tuple[Interval, Interval]:
    """The value and the difference to the base, with the intervals that `evals.compare` gives them."""
    share = metric.unit == "share"
    if metric.needs_base:  # beside itself the base is known exactly
        return stats.relative(seen, base.value, share)
    return bounded(metric, images, stats.interval(seen, share), stats.interval(seen.less(base)))


def _negated(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)


def simultaneous(draws_TN: Array, level: float = stats.LEVEL) -> tuple[Array, float]:
    """Standard errors of all differences between rows, and how many of them hold all differences at once.

    Args:
        draws_TN: resampled estimates, each column of one resample.
        level: at which all intervals hold together.

    Returns:
        error_TT, and the quantile over resamples of the largest |difference less its mean| / error among all pairs.
    """
    whole_TN = draws_TN[:, np.isfinite(draws_TN).all(axis=0)]
    centred_TN = whole_TN - whole_TN.mean(axis=1, keepdims=True)
    error_TT = np.zeros((len(draws_TN), len(draws_TN)))
    largest_N = np.zeros(whole_TN.shape[1])
    for one, other in combinations(range(len(draws_TN)), 2):
        difference_N = centred_TN[one] - centred_TN[other]
        error = float(difference_N.std(ddof=1))
        error_TT[one, other] = error_TT[other, one] = error
        if error > 0:
            largest_N = np.maximum(largest_N, np.abs(difference_N) / error)
    return error_TT, float(np.quantile(largest_N, level))


def parting(proxy: Series, against: Series) -> Parting:
    """Hold a proxy against a judge: see the head of this file."""
    best = against.best
    later = [t for t in range(best + 1, len(against.gain_T)) if t not in against.unfit]
    fallen = tuple(t for t in later if against.difference(t, best).high < 0)
    return Parting(proxy, against, fallen, tuple(t for t in fallen if proxy.difference(t, best).low > 0))


def choose(judges: Sequence[Series]) -> Choice:
    """The checkpoint that judges put first, and those not distinguished from it; none that is unfit."""
    shortfall_T = np.max([_shortfall(judge) for judge in judges], axis=0)
    fit = [t for t in range(len(shortfall_T)) if t not in judges[0].unfit]
    kept = min(fit, key=lambda t: float(shortfall_T[t]))
    alike = [t for t in fit if all(j.difference(t, j.best).high >= 0 for j in judges)]
    return Choice(kept, tuple(t for t in alike if t != kept))


def _shortfall(judge: Series) -> Array:
    """How far each checkpoint is from the judge's best, in standard errors."""
    gap_T = np.array([-judge.difference(t, judge.best).value for t in range(len(judge.gain_T))])
    with np.errstate(divide="ignore", invalid="ignore"):
        in_errors_T = gap_T / judge.error_TT[judge.best]
    return np.where(gap_T > 0, in_errors_T, 0.0)


# ----------------------------------------------------------------------------------------------------------------- printing


def markdown(found: Curve, name: str, command: str) -> str:
    """The table as a Markdown page."""
    parts = [f"# Over-optimisation of {name}\n\nMade by `{command}`.\n"]
    parts += [f"- {sentence}" for sentence in verdicts(found)]
    parts += [f"\n{_table_of(found, question)}" for question in found.questions()]
    return "\n".join([*parts, "\n## How to read it\n", *(f"- {note}" for note in notes(found)), ""])


def verdicts(found: Curve) -> list[str]:
    """What to keep, and where proxies part from judges; then the same by gold."""
    sentences = [_kept(found)]
    for against in ("judge", "gold"):
        sentences += [_parted(found, p) for p in found.partings if p.against.role == against]
    for question in found.questions():
        if not found.of(question, "judge"):
            proxies = ", ".join(_title(s) for s in found.of(question, "proxy"))
            sentences.append(f"{question}: no judge is held out, so nothing says whether {proxies} misleads.")
    return sentences + [_by_gold(found, s) for s in found.series if s.role == "gold" and found.choice]


def _kept(found: Curve) -> str:
    choice = found.choice
    if choice is None:
        return "No judge is held out from this run's rewards, so no checkpoint can be named."
    alike = ", ".join(str(found.points[t].iteration) for t in choice.alike)
    last = len(found.points) - 1
    which = {0: ", the base: no checkpoint is better", last: ", the end of the run"}.get(choice.kept, "")
    others = (
        f"Not distinguished from the judges' best: {alike}."
        if alike
        else "All others are distinguished from it."
    )
    unfit = ", ".join(str(found.points[t].iteration) for t in found.unfit)
    refused = f" Not to be kept, as a metric is refused there: {unfit}." if unfit else ""
    return f"**Keep iteration {found.points[choice.kept].iteration}**{which}. {others}{refused}"


def _parted(found: Curve, p: Parting) -> str:
    at = [point.iteration for point in found.points]
    best, about = p.against.best, f"{p.proxy.question}, {p.proxy.prompt_set}"
    elsewhere = "" if p.against.prompt_set == p.proxy.prompt_set else f" on {p.against.prompt_set}"
    pair = f"{_title(p.proxy)} and {_title(p.against)}{elsewhere}"
    if not p.apart:
        fallen = ", ".join(str(at[t]) for t in p.fallen)
        more = f", though the {p.against.role} is below its best at {fallen}, where the proxy has not risen"
        return f"{about}: {pair} are not seen to part{more if fallen else ''} (best of the {p.against.role}: iteration {at[best]})."
    first = p.apart[0]
    rise = interval(metrics.load(p.proxy.metric), p.proxy.difference(first, best), signed=True)
    fall = interval(metrics.load(p.against.metric), p.against.difference(first, best), signed=True)
    return (
        f"{about}: **{pair} part after iteration {at[best]}** (KL {_nats(found.points[best].kl.value)}), seen at "
        f"{', '.join(str(at[t]) for t in p.apart)}: from {at[best]} to {at[first]} the proxy gains {rise}, the {p.against.role} {fall}."
    )


def _by_gold(found: Curve, gold: Series) -> str:
    assert found.choice is not None
    at = [point.iteration for point in found.points]
    kept, last = found.choice.kept, len(at) - 1
    beside = {gold.best: "that", last: "the end of the run"}
    held = " and ".join(
        f"{interval(metrics.load(gold.metric), gold.difference(kept, t), signed=True)} beside {what}"
        for t, what in beside.items()
        if t != kept
    )
    link = (
        ", the one to keep" + (", which has " if held else "")
        if kept == gold.best
        else "; the one to keep has "
    )
    return f"Held to {_title(gold)} on {gold.prompt_set}, which had no say: its best is iteration {at[gold.best]}{link}{held}."


def lacking(metric: str, share: float, what: str) -> str:
    """Why a metric has no number of some images."""
    return f"{100 * share:.1f} % of {what} have no {metrics.load(metric).scorer}, and the limit is {100 * most_missing(metric):.0f} %"


def _title(series: Series) -> str:
    return f"{series.role} ({metrics.load(series.metric).title})"


def _table_of(found: Curve, question: str) -> str:
    columns = found.of(question, *ROLES)
    several = len({s.prompt_set for s in columns}) > 1
    head = ["iteration", "KL to the base, nats"]
    for s in columns:
        gain_in = heading(metrics.load(s.metric)).rstrip(" ↑↓")
        head.append(f"{s.role}: gain in {gain_in}" + (f", {s.prompt_set}" if several else ""))
    lines = [[*head, ""]]
    for t, point in enumerate(found.points):
        kl = point.kl
        known = t > 0 and not math.isnan(kl.low)
        nats = _nats(kl.value) + (f" [{_nats(kl.low)}, {_nats(kl.high)}]" if known else "")
        cells = [_cell(s, t) for s in columns]
        lines.append([str(point.iteration), nats, *cells, _marks(found, question, t)])
    return f"## {question}\n\n{markdown_table(lines, padded=True)}"


def _cell(series: Series, t: int) -> str:
    if series.is_refused(t):
        return "refused"
    below = " ▼" if _is_below(series, t) else ""
    return interval(metrics.load(series.metric), series.gain_T[t], signed=True) + below


def _is_below(series: Series, t: int) -> bool:
    return series.difference(t, series.best).high < 0


def _marks(found: Curve, question: str, t: int) -> str:
    apart = any(
        t in p.apart for p in found.partings if p.proxy.question == question and p.against.role == "judge"
    )
    kept = found.choice is not None and t == found.choice.kept
    alike = found.choice is not None and t in found.choice.alike
    return ", ".join(word for word, holds in (("keep", kept), ("≈ keep", alike), ("apart", apart)) if holds)


def _nats(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def notes(found: Curve) -> list[str]:
    """What a reader has to know about the numbers."""
    told = [
        "Gains are differences to the base on the same prompts and noise, turned such that more is better, with 95 % intervals of a bootstrap over "
        "prompts; of a win rate that is 0 or 100 % in every prompt, Wilson's. They speak of this one run.",
        "▼ below the best of its column. This, what is not distinguished, and where two part, go by intervals that hold for all pairs of checkpoints at "
        "once (95 %), since the best of several is partly the luckiest.",
        "Proxy and judge part at the first checkpoint after the judge's best at which the judge is below its best and the proxy above where it was then.",
        "The checkpoint to keep is the judges' best; neither the reward that was trained on nor gold has a say in it.",
        "KL is the exact divergence of the checkpoint's sampler from the base's along its own pictures, summed over latent dimensions and denoising steps.",
    ]
    told += [*strata_notes(found.strata), *found.remarks]
    lost = [f"{_title(s)} on {s.prompt_set}: {s.left_out}" for s in found.series if s.left_out]
    if lost:
        told.append(
            f"Prompts left out, since some checkpoint has nothing applicable there: {'; '.join(lost)}."
        )
    told += [
        f"Refused on {s.prompt_set}: {lacking(s.metric, s.missing_T[t], f'the images of iteration {point.iteration}')}; it is nobody's best, and nothing is seen to part there."
        for s in found.series
        for t, point in enumerate(found.points)
        if s.is_refused(t)
    ]
    return told


def tidy(found: Curve) -> pd.DataFrame:
    """One row per series and checkpoint, ready to plot.

    iteration, experiment, images, denoiser_evaluations: the checkpoint and what training had taken. kl, kl_low, kl_high: nats. question, role (proxy,
    judge, gold), metric, prompt_set: the series. value (as the metric has it), gain (over the base, more is better), each with _low and _high:
    intervals of each checkpoint by itself, empty where it is refused. missing: share of its images that have no value. from_best: gain less that of the series' best, with the simultaneous interval. kept: 1 for the checkpoint
    to keep, alike: 1 for one not distinguished from it. apart: 1 where a proxy and this judge, or gold, have parted.
    """
    records: list[dict[str, Any]] = []
    for s in found.series:
        apart = {t for p in found.partings if p.against is s for t in p.apart}
        for t, point in enumerate(found.points):
            record: dict[str, Any] = {
                "iteration": point.iteration,
                "experiment": point.experiment,
                "images": point.images,
                "denoiser_evaluations": point.denoiser_evaluations,
                **_columns("kl", point.kl),
                "question": s.question,
                "role": s.role,
                "metric": s.metric,
                "prompt_set": s.prompt_set,
                **_columns("value", s.value_T[t]),
                **_columns("gain", s.gain_T[t]),
                "missing": s.missing_T[t],
                **_columns("from_best", s.difference(t, s.best)),
                "kept": int(found.choice is not None and t == found.choice.kept),
                "alike": int(found.choice is not None and t in found.choice.alike),
                "apart": int(t in apart),
            }
            records.append(record)
    return pd.DataFrame(records)


def _columns(name: str, value: Interval) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


# ------------------------------------------------------------------------------------------------------ scoring a run's snapshots


def write(
    run: Path,
    out: Path,
    command: str,
    suite: str | None = None,
    every: int = 1,
    kl_prompts: int = 16,
    kl_images: int = 1,
    resamples: int = stats.RESAMPLES,
) -> Curve:
    """Score a run's snapshots, its end and its base, and write the table at `out` (.md) and beside it (.csv).

    Score files go to `curves/` beside the table, pictures to `images/`. What is there of the same weights and suite is taken as it is.

    Args:
        run: run directory.
        out: the table.
        command: for its head.
        suite: its name; None takes that of the domain of the run.
        every: takes only iterations that it divides.
        kl_prompts: prompts of each part of the suite on which the divergence from the base is taken, evenly spread over the part.
        kl_images: images of each of them.
        resamples: of the bootstrap.

    Raises:
        ValueError: one sentence, for whatever the user can mend.
    """
    from evals import suites
    from evals.checkpoints import resolve

    targets = _targets(run, every)
    checkpoints = [resolve(target) for target in targets]
    name = suite or suites.of_domain(checkpoints[-1].domain, str(run))
    folder = out.parent / FOLDER
    files = [scored(*pair, name, folder) for pair in zip(targets, checkpoints, strict=True)]
    rows = score_rows.read(files)
    resampler = Resampler(resamples, 0, strata_of(rows).of)
    kls = divergences(checkpoints, suites.load(name), folder, kl_prompts, kl_images, resampler)
    points = [_point(run, *pair) for pair in zip(checkpoints, kls, strict=True)]
    found = curve(rows, points, resamples)
    write_text(markdown(found, checkpoints[-1].name, command), out)
    text = tidy(found).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(text, out.with_suffix(".csv"))
    return found


def _targets(run: Path, every: int) -> list[str]:
    """What `evals.checkpoints.resolve` takes for the base, the snapshots and the end of a run.

    Raises:
        ValueError: where it is no finished run with snapshots.
    """
    from evals.checkpoints import resolve, snapshots_of

    last = resolve(str(run)).iterations if (run / "run.json").is_file() else None
    if last is None:
        raise ValueError(
            f"{run} is no finished run of this project (it has no run.json): give the directory of one that has snapshots, or train it to its end"
        )
    there = [n for n in snapshots_of(run) if n % every == 0 and n < last]
    if not there:
        of = f" of every {every} iterations" if every > 1 else ""
        raise ValueError(
            f"{run} has no snapshots{of}: `--set snapshots_every={max(every, 10)}` keeps them while a run is trained"
        )
    return [f"{run}@0", *(f"{run}@{n}" for n in there), str(run)]


def scored(
    target: str, checkpoint: Checkpoint, suite: str, folder: Path, prompt_sets: Sequence[str] = ()
) -> Path:
    """The score file of a checkpoint, made where there is none of these weights, prompts and scorers; of all parts of the suite, or of some."""
    from evals import harness, scorers, suites

    chosen = suites.only(suites.load(suite), prompt_sets)
    source = {
        "weights": checkpoint.digest(),
        "base": checkpoint.its_base().digest(),
        "rewards": list(checkpoint.rewards),
        "suite": repr(chosen),
        "prompts": {part.prompt_set: prompts.digest(prompts.load(part.prompt_set)) for part in chosen.parts},
        "versions": {
            name: scorers.load(name, domain=chosen.domain).version
            for part in chosen.parts
            for name in part.scorers
        },
    }
    file = folder / f"{checkpoint.name}.csv"
    if file.is_file() and _kept_of(file.with_suffix(".source.json"), source) is not None:
        return file
    harness.score(target, file, suite, prompt_sets=prompt_sets)
    _keep(file.with_suffix(".source.json"), source, {})
    return file


def _kept_of(path: Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `_keep` has written for the same source, or None.

    Raises:
        ValueError: where the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dict(record["kept"]) if record["source"] == source else None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and it is made again") from None


def _keep(path: Path, source: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    write_text(json.dumps({"source": source, "kept": kept}, indent=1) + "\n", path)


def divergences(
    checkpoints: Sequence[Checkpoint],
    suite: Suite,
    folder: Path,
    n_prompts: int,
    n_images: int,
    resampler: Resampler,
) -> list[Interval]:
    """KL divergence of every checkpoint from the base, the first of them: mean over prompts of each part, and over parts.

    Args:
        checkpoints: the base first.
        suite: whose prompts, sampler and noise are taken, so that the pictures are among those that are scored.
        folder: where `<name>.kl.json` keeps what was found.
        n_prompts: of each part, evenly spread over it.
        n_images: of each prompt.
        resampler: of the prompts, inside their strata where a set has some.

    Returns:
        nats, the base's exactly 0.
    """
    found = nats_to_base(checkpoints, suite, folder, n_prompts, n_images)
    ids = {
        part.prompt_set: [prompt.id for prompt in _spread(part.prompt_set, n_prompts)] for part in suite.parts
    }
    return [Interval(0.0, 0.0, 0.0), *(_mean_over_parts(nats, ids, resampler) for nats in found)]


def nats_to_base(
    checkpoints: Sequence[Checkpoint], suite: Suite, folder: Path, n_prompts: int, n_images: int
) -> list[dict[str, list[list[float]]]]:
    """KL divergence of every checkpoint but the first, the base, from it: by prompt set, of each prompt those of its images.

    See `divergences`; what `folder` keeps of the same weights and prompts is taken as it is.
    """
    from evals import divergence

    asked = {part.prompt_set: _spread(part.prompt_set, n_prompts) for part in suite.parts}
    base, painter = checkpoints[0], None
    found = []
    for checkpoint in tqdm(checkpoints[1:], desc="divergence from the base", file=sys.stderr):
        source = {
            "weights": checkpoint.digest(),
            "base": base.digest(),
            "sampling": repr(suite.sampling),
            "seed": suite.seed,
            "code": divergence.version(),
            "images": n_images,
            "prompts": {name: [[prompt.id, prompt.text] for prompt in some] for name, some in asked.items()},
        }
        path = folder / f"{checkpoint.name}.kl.json"
        kept = _kept_of(path, source)
        if kept is None:
            painter = painter or _painter(base, suite)
            kept = _divergence(_painter(checkpoint, suite), painter, suite, asked, n_images)
            _keep(path, source, kept)
        found.append(kept)
    return found


def _spread(prompt_set: str, count: int) -> list[Prompt]:
    """So many prompts of a set at even distances, or all."""
    there = prompts.load(prompt_set)
    number = min(count, len(there))
    return [there[i * len(there) // number] for i in range(number)]


def _painter(checkpoint: Checkpoint, suite: Suite) -> Painter:
    from evals.arithmetic import exact_device
    from evals.diffusion import Painter

    return Painter.of(checkpoint.pipeline().to(exact_device()), suite.sampling)


def _divergence(
    painter: Painter, base: Painter, suite: Suite, asked: Mapping[str, Sequence[Prompt]], images: int
) -> dict[str, list[list[float]]]:
    """Nats by prompt set: of each prompt those of its images."""
    from evals.divergence import kl_to_base

    found = {}
    for prompt_set, some in asked.items():
        texts = [prompt.text for prompt in some for _ in range(images)]
        nats_B = kl_to_base(painter, base, texts, [*range(images)] * len(some), suite.seed)
        found[prompt_set] = nats_B.reshape(len(some), images).tolist()
    return found


def _mean_over_parts(
    nats: Mapping[str, Sequence[Sequence[float]]], ids: Mapping[str, Sequence[str]], resampler: Resampler
) -> Interval:
    """Every prompt set counts the same; prompts are resampled in each. No ends where a set has a single prompt, which says nothing of others."""
    value, draws_N, influences, strata = 0.0, np.zeros(resampler.resamples), list[Array](), list[str]()
    for prompt_set, of_prompts in nats.items():
        mean_P = np.asarray(of_prompts, dtype=np.float64).mean(axis=1)
        sample = resampler.prompts(prompt_set, ids[prompt_set])
        of_set = float(mean_P.mean())
        value += of_set / len(nats)
        draws_N += sample.weight_NP @ mean_P / len(nats)
        influences.append((mean_P - of_set) / (len(mean_P) * len(nats)))
        strata += [f"{prompt_set}, {of}" for of in sample.strata or [""] * len(mean_P)]
    if any(len(influence_P) < 2 for influence_P in influences):
        return Interval(value, math.nan, math.nan)
    found = stats.interval(Resampled(value, draws_N, np.concatenate(influences)[None], strata))
    return found._replace(low=max(found.low, 0.0))  # Student's tails may reach below what it can be


def _point(run: Path, checkpoint: Checkpoint, kl: Interval) -> Point:
    """A checkpoint of a run, with what its card says of its cost."""
    from evals.checkpoints import SNAPSHOT_CARD, snapshot_folder

    if checkpoint.experiment == BASE:
        return Point(0, BASE, 0, 0, kl)
    assert checkpoint.iterations is not None
    snapshot = snapshot_folder(run, checkpoint.iterations) / SNAPSHOT_CARD
    card = snapshot if "@" in checkpoint.experiment else run / "run.json"
    try:
        cost = json.loads(card.read_text(encoding="utf-8"))["cost"]
        images, evaluations = int(cost["images"]), int(cost["denoiser_evaluations"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{card} is damaged ({error}): it does not say what training had taken") from None
    return Point(checkpoint.iterations, checkpoint.experiment, images, evaluations, kl)
