"""From the cells' files to the numbers of the table.

A *track* is a method on a reward, all its seeds together. A gain is a metric less that of the base on the same prompts and noise, turned such that more is better,
with an interval over prompts and training seeds. Between two checkpoints a track is taken to be straight, in evaluations as in seconds: of each seed by itself, as
seeds differ in their seconds.

- *Equal evaluations* are shares of what every run of the reward has taken at its end, that of the paper's method in full aside.
- *Equal wall time* are shares of the shortest training of any of them, so that no track is asked beyond its end.
- A method *reaches* the gain that the paper's method ends at, in full, where the mean of its seeds first does. Before the first checkpoint, and before one that comes after
  one without a number, nothing is known: then it is at most that. Where the interval of that gain has 0 in it there is nothing to race to: whoever stands still is there.
- It *over-optimises* from where held-out or gold is below its best and the proxy has risen since, both with intervals that hold for all pairs of checkpoints
  at once (`evals.curve`).
- Two methods are *told apart* by the interval and p of their difference on the same prompts and seeds, after Holm's correction over all pairs. That two intervals of gains
  overlap says nothing of it: what prompts and noise do to both is in both.

Shape suffixes: T checkpoints, the base first; R training seeds; P prompts; S sufficient statistics of a metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from bench.methods.cells import IN_FULL, Cell, Refusal, in_order, own_budget_of
from bench.methods.questions import BESIDE, Question
from bench.methods.work import DONE, SCORES, record_of, refuse_other_scores, stopped_of
from evals import metrics, rows, stats
from evals.compare import refuses
from evals.curve import Parting, Point, curve, missing_shares, per_prompt
from evals.metrics import first
from evals.stats import Array, Interval, Resampled, Sample
from train import methods

At = Literal["checkpoint", "evaluations", "seconds"]
SHARES = (0.1, 0.25, 0.5, 1.0)
NOTHING = Interval(float("nan"), float("nan"), float("nan"))
KL = "kl"


@dataclass(frozen=True)
class Track:
    """A method on a reward."""

    question: Question
    label: str
    """The method's name, and that of the paper's `in full` where it is that."""
    budget: int
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    experiments: tuple[str, ...]
    """Of its checkpoints, as score rows call them."""
    iteration_T: tuple[int, ...]
    images_T: tuple[int, ...]
    evaluations_RT: Array
    """Denoiser evaluations that training had taken: not the same for every seed where a method draws how many it takes."""
    seconds_RT: Array
    statistics: dict[str, Array]
    """By metric, [T, R, P, S]."""
    nats_TRP: Array
    """Divergence from the base, mean over the images of a prompt."""
    rows: pd.DataFrame
    missing: dict[str, tuple[float, ...]]
    """Share of a checkpoint's pictures without a value, by metric, of the seed that has most of them; above its `most_missing` a checkpoint has no number."""
    pictures: dict[str, int]
    """Pictures of a checkpoint and seed behind each metric."""
    records: tuple[dict[str, Any], ...]
    """Of its cells."""
    trainings: tuple[dict[str, Any], ...]

    def at_evaluations(self, evaluations: float) -> Array:
        """Where a number of evaluations lies among the checkpoints, of every seed [R]."""
        return places(evaluations, self.evaluations_RT)

    def at_seconds(self, seconds: float) -> Array:
        """Where a wall time of training lies among the checkpoints, of every seed [R]."""
        return places(seconds, self.seconds_RT)

    def machines(self) -> frozenset[str]:
        """On which its seeds were trained: seconds of different ones say nothing of each other."""
        return frozenset(record["machine"]["name"] for record in self.records)

    def cpu_share(self) -> float:
        """Which part of its threads' time the trainer was on a processor."""
        wall = sum(s["seconds"] * s["threads"] for s in self.trainings)
        return sum(s["cpu_seconds"] for s in self.trainings) / wall if wall else float("nan")


def places(at: float, axis_RT: Array) -> Array:
    """Where something lies among the checkpoints, of every seed on an axis of its own [R]."""
    return np.array([np.interp(at, axis_T, np.arange(len(axis_T))) for axis_T in axis_RT])


class Number(NamedTuple):
    """One number of the table, and what it is of."""

    reward: str
    label: str
    """Of the track."""
    at: At
    share: float
    """Of the axis that is equal; of the run's own evaluations at a checkpoint."""
    evaluations: float
    """Mean over seeds."""
    seconds: float
    """Mean over seeds."""
    role: str
    metric: str
    prompt_set: str
    value: Interval
    gain: Interval
    seeds: int
    prompts: int
    images: int
    """Of all prompts of a seed."""


class Contrast(NamedTuple):
    """One method less another in the goal, more being better."""

    label: str
    other: str
    difference: Interval
    p: float
    """NaN where nothing is tested: no seed that both have, no number, or the same difference in every resample."""
    p_holm: float
    """After Holm's correction over all pairs of the reward."""
    seeds: tuple[int, ...]
    """That both have: compared seed by seed, which share prompts and noise."""
    prompts: int

    @property
    def told(self) -> bool:
        """Whether the two are told apart."""
        return self.p_holm <= 1 - stats.LEVEL

    @property
    def told_alone(self) -> bool:
        """Whether they would be if nobody had looked at the other pairs."""
        return self.p <= 1 - stats.LEVEL


class Reach(NamedTuple):
    """When a track reaches the paper method's final gain."""

    evaluations: float
    """NaN where it does not."""
    seconds: float
    at_most: bool
    """It is there at the first checkpoint already, or the one before has no number: no more is known."""
    seeds: tuple[float, ...]
    """Evaluations of each seed by itself, NaN where it does not; in these a bound is not marked."""


@dataclass(frozen=True)
class Standing:
    """A reward's part of the table."""

    question: Question
    budget: int
    """Of those that race."""
    papers: str
    """Label of the track that is raced to: the paper's method, in full where the others have less."""
    tracks: tuple[Track, ...]
    refusals: tuple[Refusal, ...]
    stopped: tuple[tuple[Cell, str], ...]
    missing: tuple[Cell, ...]
    numbers: tuple[Number, ...]
    evaluations: float
    """That every run of those that race has taken."""
    seconds: float
    """Of the shortest training of all."""
    contrasts: tuple[Contrast, ...]
    """Of every pair, each once."""
    reaches: dict[str, Reach]
    partings: dict[str, tuple[Parting, ...]]

    @property
    def target(self) -> Interval:
        """The paper method's final gain in the goal, NaN where it has not been run."""
        end = self.of(self.papers, "checkpoint", 1.0, self.question.goal)
        return NOTHING if end is None else end.gain

    @property
    def is_race(self) -> bool:
        """Whether what the paper's method gains is told apart from nothing."""
        return self.target.low > 0

    @property
    def machines(self) -> frozenset[str]:
        """On which its runs were trained."""
        return frozenset().union(*(track.machines() for track in self.tracks))

    def stopped_seeds(self, label: str) -> int:
        """How many trainings of a method stopped by themselves: they are in none of its means."""
        return sum(cell.label == label for cell, _ in self.stopped)

    def goal_track(self) -> Track | None:
        """The track that is raced to; None where it has not been run."""
        return next((track for track in self.tracks if track.label == self.papers), None)

    def of(self, label: str, at: At, share: float, role: str) -> Number | None:
        """One number."""
        found = [
            n for n in self.numbers if (n.label, n.at, n.share, n.role) == (label, at, round(share, 6), role)
        ]
        return found[0] if found else None


# -------------------------------------------------------------------------------------------------------------------- reading


def tracks_of(question: Question, cells: Iterable[Cell], root: Path) -> list[Track]:
    """The tracks of all cells that are done, the paper's method first."""
    by_label: dict[str, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell in cells:
        if (record := record_of(cell, root)) is not None:
            by_label.setdefault(cell.label, []).append((cell, record))
    return [read(question, by_label[label], root) for label in in_order(list(by_label))]


def read(question: Question, done: Sequence[tuple[Cell, dict[str, Any]]], root: Path) -> Track:
    """A track from its cells' files.

    Raises:
        ValueError: for a file that is damaged or gone, or cells that are not of one kind.
    """
    done = sorted(done, key=lambda pair: pair[0].seed)
    for cell, record in done:
        refuse_other_scores(cell, record, root)
    cells, records = [cell for cell, _ in done], [record for _, record in done]
    points: list[list[dict[str, Any]]] = [record["points"] for record in records]
    iterations = [[p["iteration"] for p in of] for of in points]
    if any(one != iterations[0] for one in iterations):
        raise ValueError(
            f"{root / cells[0].key / DONE}: the seeds of this method were not scored after the same iterations"
        )
    experiments = [p["experiment"] for p in points[0]]
    try:
        scores = _scores(
            {cell.seed: root / cell.key / SCORES for cell in cells}, experiments[0], cells[0].prompt_set
        )
        statistics, missing = {}, {}
        for name, metric in _metrics(question).items():
            mine = scores[scores["scorer"] == metric.scorer]
            missing[name] = missing_shares(mine, experiments)
            values_TRPS = per_prompt(metric, mine, experiments).statistics_TRPS
            values_TRPS[refuses(name, missing[name])] = np.nan
            statistics[name] = values_TRPS
        nats_TRP = _nats(points)
    except (ValueError, OSError) as error:
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        which = ", ".join(str(root / cell.key) for cell in cells)
        raise ValueError(
            f"what was scored is no longer whole ({told}): delete the folder that it is of, and it is made again ({which})"
        ) from error
    of_one = scores[(scores["experiment"] == experiments[0]) & (scores["seed"] == cells[0].seed)]
    pictures = {
        name: int((of_one["scorer"] == metric.scorer).sum()) for name, metric in _metrics(question).items()
    }
    return Track(
        question=question,
        label=cells[0].label,
        budget=cells[0].budget,
        seeds=tuple(cell.seed for cell in cells),
        settings=cells[0].settings,
        experiments=tuple(experiments),
        iteration_T=tuple(p["iteration"] for p in points[0]),
        images_T=tuple(p["images"] for p in points[0]),
        evaluations_RT=np.array([[p["denoiser_evaluations"] for p in of] for of in points], dtype=np.float64),
        seconds_RT=np.array([[p["seconds"] for p in of] for of in points], dtype=np.float64),
        statistics=statistics,
        missing=missing,
        nats_TRP=nats_TRP,
        rows=scores,
        pictures=pictures,
        records=tuple(records),
        trainings=tuple(training for record in records for training in record["trainings"]),
    )


def _metrics(question: Question) -> dict[str, metrics.Metric]:
    """All that is asked of a track, by name."""
    return {name: metrics.load(name) for name in (*question.roles().values(), *BESIDE.values())}


def _scores(files: Mapping[int, Path], base: str, prompt_set: str) -> pd.DataFrame:
    """Score rows of all checkpoints, each training seed's beside those of the base that were drawn with it: another machine rounds otherwise.

    Args:
        files: of each training seed.
        base: experiment of the base, whose rows get the training seed that they stand beside.
        prompt_set: whose rows.

    Raises:
        ValueError: they are of another suite, other prompts or other scorers.
    """
    found = [(seed, rows.read([file])) for seed, file in files.items()]
    scores = pd.concat(
        [of.assign(seed=of["seed"].where(of["experiment"] != base, seed)) for seed, of in found],
        ignore_index=True,
    )
    rows.refuse_unlike(scores)
    return scores[scores["prompt_set"] == prompt_set]


def _nats(points: Sequence[Sequence[dict[str, Any]]]) -> Array:
    """Divergence from the base of every checkpoint, seed and prompt, the base's own first."""
    found_RTP = [[p["nats"] for p in of] for of in points]
    if len({len(nats_P) for of in found_RTP for nats_P in of}) != 1:
        raise ValueError("the divergences are not of one number of prompts")
    return np.array(found_RTP, dtype=np.float64).transpose(1, 0, 2)


# ------------------------------------------------------------------------------------------------------------------ estimates


def at_places(values_TRPS: Array, place_R: Array) -> Array:
    """Statistics [R, P, S] between two checkpoints, each seed at a place of its own: 2.25 is a quarter of the way from 2 to 3.

    A mean of statistics is linear in them, so this is the straight line between two gains where the metric is linear in that mean, as all here are.
    """
    found = []
    for r, place in enumerate(place_R):
        before = int(np.floor(place))
        part = float(place - before)
        values_PS = values_TRPS[before, r]
        found.append(values_PS if part == 0 else (1 - part) * values_PS + part * values_TRPS[before + 1, r])
    return np.stack(found)


def both_have(one_RPS: Array, other_RPS: Array) -> tuple[Array, Array]:
    """Two sides of a difference without what either lacks: whoever loses its worst prompts has gained nothing by it."""
    lost_RP1 = (np.isnan(one_RPS) | np.isnan(other_RPS)).any(axis=2, keepdims=True)
    return np.where(lost_RP1, np.nan, one_RPS), np.where(lost_RP1, np.nan, other_RPS)


@dataclass
class Estimator:
    """Intervals of a track's numbers; weights of seeds and prompts are made once, and the same for every track."""

    resamples: int = stats.RESAMPLES
    made: dict[tuple[int, str], Array] = field(default_factory=dict)

    def weights(self, units: int, stream: str) -> Array:
        """Resampling weights, the same for a name."""
        if (units, stream) not in self.made:
            self.made[units, stream] = stats.weights(units, self.resamples, 0, stream)
        return self.made[units, stream]

    def gain(self, track: Track, name: str, place_R: Array) -> tuple[Interval, Interval]:
        """A metric's value and its gain over the base, more being better where the metric says so."""
        metric, values_TRPS = metrics.load(name), track.statistics[name]
        here_RPS, base_RPS, prompts = (
            at_places(values_TRPS, place_R),
            values_TRPS[0],
            track.question.prompt_set,
        )
        run = self._resampled(here_RPS, metric.finish, prompts)
        upwards = metric.higher_is_better is not False
        if metric.needs_base:
            reference = stats.point(base_RPS, metric.finish)
            net = stats.beside_constant(run, reference, metric.unit == "share")
            return Interval(run.value, reference + net.low, reference + net.high), turned(net, upwards)
        value = stats.interval(run, metric.unit == "share")
        own, theirs = (
            self._resampled(side_RPS, metric.finish, prompts) for side_RPS in both_have(here_RPS, base_RPS)
        )
        return value, turned(stats.interval(own.less(theirs)), upwards)

    def contrast(self, one: Contestant, other: Contestant, name: str) -> Contrast:
        """A metric's difference between two, more being better; `p_holm` is left for `contrasts`. What is the same in every resample, but nothing, has no interval and no p."""
        metric, seeds = metrics.load(name), tuple(s for s in one.track.seeds if s in other.track.seeds)
        if not seeds:
            return Contrast(one.label, other.label, NOTHING, math.nan, math.nan, seeds, 0)
        sides = both_have(one.statistics(name, seeds), other.statistics(name, seeds))
        own, theirs = (
            self._resampled(side_RPS, metric.finish, one.track.question.prompt_set) for side_RPS in sides
        )
        found = own.less(theirs)
        difference = turned(stats.interval(found), metric.higher_is_better is not False)
        p = stats.resampled_p(found) if math.isfinite(difference.value) else math.nan
        if difference.value and difference.low == difference.high:
            difference, p = Interval(difference.value, math.nan, math.nan), math.nan
        prompts = int((~np.isnan(sides[0]).any(axis=2)).any(axis=0).sum())
        return Contrast(one.label, other.label, difference, p, math.nan, seeds, prompts)

    def nats(self, track: Track, place_R: Array) -> Interval:
        """Exact KL divergence from the base."""
        here_RPS = at_places(track.nats_TRP[..., None], place_R)
        found = stats.interval(
            self._resampled(here_RPS, first, f"{track.question.prompt_set} for divergence")
        )
        return found._replace(low=max(found.low, 0.0))  # Student's tails may reach below what it can be

    def _resampled(self, values_RPS: Array, finish: Callable[[Array], Array], prompts: str) -> Resampled:
        seeds, number, _ = values_RPS.shape
        sample = Sample(self.weights(number, f"prompts of {prompts}"), None)
        return stats.resampled(values_RPS, finish, self.weights(seeds, "training seeds"), sample)

    def numbers(self, track: Track, at: At, share: float, place_R: Array) -> list[Number]:
        """Everything that is said of a track at a place."""
        place = float(place_R.mean())
        order = np.arange(len(track.iteration_T))
        evaluations, seconds = (
            float(np.mean([np.interp(p, order, of) for p, of in zip(place_R, axis_RT, strict=True)]))
            for axis_RT in (track.evaluations_RT, track.seconds_RT)
        )
        assert 0 <= place <= order[-1], "no track is asked beyond its end"
        told = (track.question.reward, track.label, at, round(share, 6), evaluations, seconds)
        prompt_set, seeds = track.question.prompt_set, len(track.seeds)
        found = []
        for role, name in (track.question.roles() | BESIDE).items():
            value, gain = self.gain(track, name, place_R)
            gain = gain if role != "drift" else NOTHING
            prompts = track.statistics[name].shape[2]
            found.append(
                Number(*told, role, name, prompt_set, value, gain, seeds, prompts, track.pictures[name])
            )
        nats, prompts = self.nats(track, place_R), track.nats_TRP.shape[2]
        return [*found, Number(*told, KL, KL, prompt_set, nats, NOTHING, seeds, prompts, prompts)]


AT_ITS_END = " at its end"
"""Beside the label of the paper's method in full, which there has had more evaluations than those that race."""


class Contestant(NamedTuple):
    """A track at one place of it."""

    label: str
    track: Track
    place_R: Array

    def statistics(self, name: str, seeds: Sequence[int]) -> Array:
        """Of a metric and some of its seeds, [R, P, S]."""
        there = [self.track.seeds.index(seed) for seed in seeds]
        return at_places(self.track.statistics[name], self.place_R)[there]


def contrasts(tracks: Sequence[Track], evaluations: float, estimate: Estimator) -> tuple[Contrast, ...]:
    """Every pair of those that race, at equal evaluations, and of the paper's method in full at its end, in the goal."""
    found = [
        Contestant(track.label, track, track.at_evaluations(evaluations))
        if track.label != IN_FULL
        else Contestant(
            track.label + AT_ITS_END, track, np.full(len(track.seeds), len(track.iteration_T) - 1.0)
        )
        for track in tracks
    ]
    pairs = [
        estimate.contrast(one, other, goal_of(one.track.question)) for one, other in combinations(found, 2)
    ]
    tested = [i for i, pair in enumerate(pairs) if not math.isnan(pair.p)]
    for i, p in zip(tested, stats.holm([pairs[i].p for i in tested]), strict=True):
        pairs[i] = pairs[i]._replace(p_holm=p)
    return tuple(pairs)


def turned(difference: Interval, upwards: bool) -> Interval:
    """A difference such that more is better."""
    return difference if upwards else Interval(-difference.value, -difference.high, -difference.low)


def gains_T(track: Track, name: str, seeds: slice = slice(None)) -> Array:
    """Gain of some seeds together at every checkpoint, in a metric, more being better: of the prompts that it and the base have, as in `Estimator.gain`."""
    metric, values_TRPS = metrics.load(name), track.statistics[name][:, seeds]
    sign = -1.0 if metric.higher_is_better is False else 1.0
    pairs = [both_have(values_RPS, values_TRPS[0]) for values_RPS in values_TRPS]
    gains = [stats.point(own, metric.finish) - stats.point(base, metric.finish) for own, base in pairs]
    return sign * np.array(gains, dtype=np.float64)


def gains_RT(track: Track, name: str) -> Array:
    """Those of every seed by itself."""
    return np.stack([gains_T(track, name, slice(r, r + 1)) for r in range(len(track.seeds))])


def goal_of(question: Question) -> str:
    """The metric by which methods race."""
    return question.roles()[question.goal]


def crossing(gain_T: Array, axis_T: Array, target: float) -> float:
    """Where a line through the checkpoints first reaches a gain, the first of them or one after one without a number there itself; NaN where it does not. The base comes before all."""
    for t in range(1, len(gain_T)):
        if gain_T[t] >= target:
            low, high = gain_T[t - 1], gain_T[t]
            if is_bound(gain_T, target):
                return float(axis_T[t])
            part = 1.0 if high == low else min(max((target - low) / (high - low), 0.0), 1.0)
            return float(axis_T[t - 1] + part * (axis_T[t] - axis_T[t - 1]))
    return float("nan")


def is_bound(gain_T: Array, target: float) -> bool:
    """Whether nothing is known of a line before the checkpoint at which it first reaches a gain."""
    t = next((t for t in range(1, len(gain_T)) if gain_T[t] >= target), 0)
    return t == 1 or (t > 1 and math.isnan(gain_T[t - 1]))


LAST_BITS = 1e-9
"""What two ways to one mean differ in: over seeds and then prompts, over prompts and then seeds."""


def reach(track: Track, target: float) -> Reach:
    """When a track reaches a gain in the goal, but for its last bits."""
    target -= LAST_BITS
    goal = goal_of(track.question)
    gain_RT, gain_T = gains_RT(track, goal), gains_T(track, goal)
    evaluations_T, seconds_T = track.evaluations_RT.mean(axis=0), track.seconds_RT.mean(axis=0)
    each = tuple(
        crossing(own_T, axis_T, target) for own_T, axis_T in zip(gain_RT, track.evaluations_RT, strict=True)
    )
    evaluations, seconds = (crossing(gain_T, axis_T, target) for axis_T in (evaluations_T, seconds_T))
    return Reach(evaluations, seconds, is_bound(gain_T, target), each)


def partings(track: Track, resamples: int) -> tuple[Parting, ...]:
    """Proxy held against held-out and gold over a track's checkpoints."""
    evaluations_T = track.evaluations_RT.mean(axis=0)
    points = [
        Point(iteration, experiment, images, int(evaluations), NOTHING)
        for iteration, experiment, images, evaluations in zip(
            track.iteration_T, track.experiments, track.images_T, evaluations_T, strict=True
        )
    ]
    return curve(track.rows, points, resamples, track.question.chosen()).partings


def standing(
    question: Question,
    cells: Sequence[Cell],
    refusals: Sequence[Refusal],
    root: Path,
    resamples: int = stats.RESAMPLES,
) -> Standing:
    """A reward's part of the table, of whatever is done of its cells."""
    tracks, estimate = tracks_of(question, cells, root), Estimator(resamples)
    racing = [track for track in tracks if track.label != IN_FULL] or tracks
    evaluations = min((float(track.evaluations_RT[:, -1].min()) for track in racing), default=float("nan"))
    seconds = min((float(track.seconds_RT[:, -1].min()) for track in tracks), default=float("nan"))
    numbers: list[Number] = []
    for track in tracks:
        for share in SHARES:
            numbers += estimate.numbers(
                track, "evaluations", share, track.at_evaluations(share * evaluations)
            )
            numbers += estimate.numbers(track, "seconds", share, track.at_seconds(share * seconds))
        mean_T = track.evaluations_RT.mean(axis=0)
        for t in range(1, len(mean_T)):
            share = float(mean_T[t] / mean_T[-1])
            numbers += estimate.numbers(track, "checkpoint", share, np.full(len(track.seeds), float(t)))
    # by their length, not by what is there: a short run of the paper's method is no stand-in for the one in full that has not been run
    own = own_budget_of(question.reward)
    papers = IN_FULL if any(cell.in_full or cell.budget < own for cell in cells) else methods.PAPERS
    stopped = [(cell, sentence) for cell in cells if (sentence := stopped_of(cell, root)) is not None]
    found = Standing(
        question=question,
        budget=min((of.budget for of in racing or cells), default=0),
        papers=papers,
        tracks=tuple(tracks),
        refusals=tuple(refusals),
        stopped=tuple(stopped),
        missing=tuple(
            cell for cell in cells if record_of(cell, root) is None and stopped_of(cell, root) is None
        ),
        numbers=tuple(numbers),
        evaluations=evaluations,
        seconds=seconds,
        contrasts=contrasts(tracks, evaluations, estimate),
        reaches={},
        partings={track.label: partings(track, resamples) for track in tracks},
    )
    return (
        replace(found, reaches={track.label: reach(track, found.target.value) for track in tracks})
        if found.is_race
        else found
    )
