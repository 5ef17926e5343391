"""What the numbers look like: of each reward a page, results/methods-<reward>.md, with its numbers (.csv) and its picture (.svg) beside it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.methods.cells import IN_FULL, KL_PROMPTS, SUITE, Cell, Refusal, own_budget_of, seeds_told
from bench.methods.code import Trained, recorded, unlike
from bench.methods.questions import BESIDE, QUESTIONS
from bench.methods.table import (
    AT_ITS_END,
    KL,
    LAST_BITS,
    SHARES,
    At,
    Contrast,
    Number,
    Reach,
    Standing,
    Track,
    gains_RT,
    goal_of,
)
from evals import metrics, suites, svg
from evals.compare import refuses
from evals.curve import lacking
from evals.files import write_text
from evals.stats import LEVEL, Array, Interval
from evals.tables import heading, interval
from train import methods

GOAL = 0.1
"""Share of the paper method's denoiser evaluations that the fastest method may take to its final gain: what the project set itself."""
BUSY = 0.9
"""Share of its threads' time that a trainer gets on an idle machine, or more: with less its seconds are marked."""
PAPERS_COLOUR, OWN_COLOUR = "#888888", "#1663b0"
CAPTION, LINE = 34, 12
"""Of the picture's captions: letters that a panel is wide, and the height of a line."""
DRAWN = ("gold", "held-out", "proxy")
"""Roles that the picture shows over evaluations."""


def page_of(folder: Path, reward: str) -> Path:
    """Where a reward's page goes: each by itself, so that one can be made anew without the runs of the others."""
    return folder / f"methods-{reward}.md"


def write(standing: Standing, page: Path, command: str) -> list[Path]:
    """Write the page (.md), the numbers beside it (.csv), and the picture (.svg) where there is a run. Returns what was written.

    Raises:
        ValueError: see `refuse_loss`.
    """
    refuse_loss(runs_of(standing), page, "are not among those that are done in --root")
    texts = {
        page: markdown(standing, command, page.stem),
        page.with_suffix(".csv"): tidy(standing).to_csv(
            index=False, float_format="%.6g", lineterminator="\n"
        ),
    }
    if standing.tracks:
        texts[page.with_suffix(".svg")] = picture(standing) + "\n"
    # the page last: it is what tells that the rest is there
    for path in reversed(texts):
        write_text(texts[path], path)
    return [*texts]


class Run(NamedTuple):
    """One of a page."""

    reward: str
    label: str
    seed: int


class Extent(NamedTuple):
    """How much there is of a run."""

    budget: int
    checkpoints: int


STOPPED_BY_ITSELF = Extent(-1, 0)
"""Of a run that is told of, and has no checkpoints."""


def planned_runs(cells: Sequence[Cell]) -> dict[Run, Extent]:
    """What a page of these cells will have."""
    return {Run(c.reward, c.label, c.seed): Extent(c.budget, c.points) for c in cells}


def runs_of(standing: Standing) -> dict[Run, Extent]:
    """What a page has."""
    found = {
        Run(standing.question.reward, track.label, seed): Extent(track.budget, len(track.iteration_T) - 1)
        for track in standing.tracks
        for seed in track.seeds
    }
    return found | {Run(c.reward, c.label, c.seed): STOPPED_BY_ITSELF for c, _ in standing.stopped}


def refuse_loss(runs: Mapping[Run, Extent], page: Path, why: str) -> None:
    """Refuse to write a page over one that has more, or numbers over somebody's.

    Args:
        runs: that the page may have.
        page: where it goes.
        why: what is the matter with others.

    Raises:
        ValueError: naming the file.
    """
    path = page.with_suffix(".csv")
    if page.is_file() and not path.is_file():
        raise ValueError(
            f"{page} is there without {path.name}, which says what runs it has: choose another --out, or remove it"
        )
    lost: dict[str, list[int]] = {}
    for run, extent in _held_runs(path).items():
        now = runs.get(run)
        if now is None or (now != STOPPED_BY_ITSELF and not _as_much(now, extent)):
            of = (
                ""
                if now is None
                else f" of {extent.budget:,} evaluations and {extent.checkpoints} checkpoints"
            )
            lost.setdefault(f"{run.label} on {run.reward}{of}", []).append(run.seed)
    if lost:
        which = "; ".join(f"{what}, {seeds_told(seeds)}" for what, seeds in lost.items())
        raise ValueError(
            f"{page} and {path.name} have runs that {why} ({which}): choose another --out, or remove the two"
        )


def _as_much(now: Extent, before: Extent) -> bool:
    """Whether it is the same run, scored as often."""
    return before == STOPPED_BY_ITSELF or (
        now.budget == before.budget and now.checkpoints >= before.checkpoints
    )


def _held_runs(path: Path) -> dict[Run, Extent]:
    """The runs whose numbers a file has.

    Raises:
        ValueError: it is there and no such file.
    """
    if not path.is_file():
        return {}
    wanted = ["reward", "method", "at", "seeds", "budget", "evaluations"]
    try:
        held = pd.read_csv(path, dtype=str, keep_default_na=False)
        if not {*wanted, "gain_by_seed"} <= {*held.columns}:
            raise ValueError("it has other columns")
        found: dict[Run, Extent] = {}
        for key, of in held.groupby(wanted[:-1], sort=False):
            reward, label, at, seeds, budget = map(str, key)
            if at not in ("checkpoint", "stopped"):
                continue
            how = (
                Extent(int(float(budget)), of["evaluations"].nunique())
                if at == "checkpoint"
                else STOPPED_BY_ITSELF
            )
            found |= {Run(reward, label, int(seed)): how for seed in seeds.split()}
    except (ValueError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(
            f"{path}, where the numbers go, holds something else ({str(error).strip()}): choose another --out"
        ) from None
    return found


# -------------------------------------------------------------------------------------------------------------------- the page


def markdown(standing: Standing, command: str, stem: str) -> str:
    """The page.

    Args:
        standing: what it tells.
        command: that made it.
        stem: of the files of its numbers (.csv) and its picture (.svg).
    """
    question = standing.question
    parts = [
        f"# Training methods at equal compute: {question.reward}, on the miniature",
        f"Made by `{command}`. Do not edit. The tables' numbers, with interval, n, date and machine of each, are in `{stem}.csv` beside this file.",
        f"{question.why} Scored on {question.prompt_set}. Methods race by {question.goal}.",
    ]
    parts += [
        f"{standing.budget:,} denoiser evaluations a run, or up to an iteration less, on average where a method draws how many it takes{_in_full(standing)}; equal evaluations are shares of "
        f"{standing.evaluations:,.0f}{_equal_seconds(standing)}."
        if standing.tracks
        else "Nothing has been run yet."
    ]
    if standing.tracks:
        parts += [verdict(standing), f"![Curves]({stem}.svg)"]
        parts.append("## To the paper method's final gain\n\n" + _table(race(standing)))
        at_equal: tuple[tuple[At, str], ...] = (
            ("evaluations", "denoiser evaluations"),
            ("seconds", "wall time"),
        )
        for at, what in at_equal:
            if at == "seconds" and len(standing.machines) > 1:
                parts.append(
                    f"## At equal {what}\n\nNot shown: the runs were trained on different machines ({', '.join(sorted(standing.machines))}), whose seconds are not alike."
                )
                continue
            for share, how_much in ((1.0, ""), (SHARES[1], ", after a quarter")):
                parts.append(f"## At equal {what}{how_much}\n\n{_table(grid(standing, at, share))}")
        if standing.contrasts:
            parts += [
                f"## Method against method\n\n{told_apart(standing)}",
                _table(against(standing)),
            ]
    parts += ["\n".join(f"- {sentence}" for sentence in left(standing))] if left(standing) else []
    parts.append("## How to read this\n\n" + "\n".join(f"- {note}" for note in notes(standing)))
    return "\n\n".join(parts) + "\n"


def _in_full(standing: Standing) -> str:
    """How long the paper's method in full is, where it is that."""
    track = standing.goal_track()
    return f" ({track.label}: {track.budget:,})" if track is not None and track.label == IN_FULL else ""


def _equal_seconds(standing: Standing) -> str:
    """Of what equal wall time is shares, where seconds are of one machine."""
    one = len(standing.machines) == 1
    return f", equal wall time of {standing.seconds:,.0f} s, the shortest training" if one else ""


def verdict(standing: Standing) -> str:
    """Whether the goal is reached, in a sentence."""
    goal_track = standing.goal_track()
    if goal_track is None:
        return f"The paper's method, {standing.papers}, has no finished run, so there is no gain to reach."
    metric = metrics.load(goal_of(standing.question))
    whole = _mean_end(goal_track.evaluations_RT)
    others = {
        m: r for m, r in standing.reaches.items() if m != standing.papers and not math.isnan(r.evaluations)
    }
    target = interval(metric, Interval(standing.target.value, math.nan, math.nan), signed=True)
    if not standing.is_race:
        what = "a loss" if standing.target.high < 0 else "not told apart from no gain"
        return f"The paper's method ends at {target} in {metric.title} (95 % interval in the table below), which is {what}, so there is nothing to race to."
    if len(standing.tracks) == 1:
        return f"The paper's method ends at {target} in {metric.title}; no other method has been run."
    if not others:
        return f"The paper's method ends at {target} in {metric.title} (95 % interval in the table below); no other method reaches that."
    best = min(others, key=lambda m: others[m].evaluations)
    share = others[best].evaluations / whole
    outcome = "reached" if share <= GOAL else "not known" if others[best].at_most else "missed"
    return (
        f"The paper's method ends at {target} in {metric.title}. The first to reach that is **{best}**, after {_most(others[best])}{share:.2f} of its evaluations "
        f"(goal: {GOAL:g}, {outcome}), in {_by_themselves(standing, best, others[best])} seeds by themselves."
    )


def _mean_end(axis_RT: Array) -> float:
    """What a track has taken at its end, mean over seeds."""
    return float(axis_RT[:, -1].mean())


def _by_themselves(standing: Standing, label: str, reach: Reach) -> str:
    """How many seeds reach it, of those that were trained: one that stopped by itself has reached nothing."""
    reached, trained = sum(not math.isnan(e) for e in reach.seeds), len(reach.seeds)
    return f"{reached} of {trained + standing.stopped_seeds(label)}"


def _most(reach: Reach) -> str:
    return "at most " if reach.at_most else ""


def race(standing: Standing) -> list[list[str]]:
    """Evaluations and seconds of each method to the paper method's final gain, and where it over-optimises."""
    head = [
        "method",
        "final gain",
        "evaluations",
        "of the paper's",
        "seconds",
        "of the paper's",
        "seeds that reach it",
        "over-optimises",
    ]
    lines = [head]
    metric = metrics.load(goal_of(standing.question))
    goal_track = standing.goal_track()
    for track in standing.tracks:
        last = standing.of(track.label, "checkpoint", 1.0, standing.question.goal)
        assert last is not None, "every track has an end"
        line = [_named(standing, track), interval(metric, last.gain, signed=True)]
        reach = standing.reaches.get(track.label)
        if reach is None or goal_track is None or math.isnan(reach.evaluations):
            line += ["–"] * 4
        else:
            at_most = "≤ " if reach.at_most else ""
            line += [
                f"{at_most}{reach.evaluations:,.0f}",
                f"{at_most}{reach.evaluations / _mean_end(goal_track.evaluations_RT):.2f}",
            ]
            alike = len(track.machines() | goal_track.machines()) == 1
            line += [
                f"{at_most}{reach.seconds:,.0f}{_busy(track)}",
                f"{at_most}{reach.seconds / _mean_end(goal_track.seconds_RT):.2f}" if alike else "–",
            ]
        line.append("–" if reach is None else _by_themselves(standing, track.label, reach))
        lines.append([*line, over_optimises(standing, track)])
    return lines


def over_optimises(standing: Standing, track: Track) -> str:
    """From which evaluations on held-out and gold are below their best while the proxy has risen since."""
    told = []
    for parting in standing.partings[track.label]:
        name = {"judge": "held-out", "gold": "gold"}[parting.against.role]
        metric = metrics.load(parting.against.metric)
        if parting.apart or parting.fallen:
            t = (parting.apart or parting.fallen)[0]
            loss = interval(metric, parting.against.difference(t, parting.against.best), signed=True)
            rises = "" if parting.apart else ", the proxy no higher"
            told.append(f"{name} from {track.evaluations_RT[:, t].mean():,.0f} ({loss}{rises})")
        else:
            told.append(f"{name} not seen to")
    return "; ".join(told)


def grid(standing: Standing, at: At, share: float) -> list[list[str]]:
    """Every method at one place of the equal axis."""
    question = standing.question
    head = ["method"]
    for role, name in (question.roles() | BESIDE).items():
        arrowless = heading(metrics.load(name)).rstrip(" ↑↓")
        gained = role not in BESIDE
        head.append(f"{role}: gain in {arrowless}{'†' if role == 'proxy' else ''}" if gained else arrowless)
    head += ["exact KL, nats", "denoiser evaluations" if at == "seconds" else "seconds"]
    lines = [head]
    for track in standing.tracks:
        line = [_named(standing, track)]
        for role in (*question.roles(), *BESIDE, KL):
            number = standing.of(track.label, at, share, role)
            assert number is not None, "every track has every number"
            line.append(_cell(number))
        number = standing.of(track.label, at, share, KL)
        assert number is not None
        line.append(f"{number.evaluations if at == 'seconds' else number.seconds:,.0f}{_busy(track)}")
        lines.append(line)
    return lines


def told_apart(standing: Standing) -> str:
    """What the pairs say, in a few sentences."""
    metric, pairs = metrics.load(goal_of(standing.question)), standing.contrasts
    known = [pair for pair in pairs if not math.isnan(pair.p)]
    told = (
        f"What the row has more than the column in {metric.title}, at equal evaluations{_its_end(standing)}: ▲ ▼ told apart, △ ▽ not after Holm's correction over all pairs, which are compared prompt by "
        f"prompt and seed by seed. Told apart: {sum(pair.told for pair in known)} of {len(known)}; what the others differ by may be nothing. "
        f"Every difference has its interval, p and n in the numbers (`difference`)."
    )
    leaders, rest = _leaders(standing)
    if not leaders or not rest:
        return told
    of_leader = {
        pair.other if pair.label == leaders[0] else pair.label: pair
        for pair in pairs
        if leaders[0] in pair[:2]
    }
    level = [label for label in rest if not math.isnan(of_leader[label].p) and not of_leader[label].told]
    told_labels = [label for label in rest if of_leader[label].told]
    # the leader has most over all its seeds, and pairs are of the seeds that both have
    above = [
        label
        for label in told_labels
        if (of_leader[label].difference.value > 0) == (of_leader[label].label == label)
    ]
    below = [label for label in told_labels if label not in above]
    unknown = [label for label in rest if math.isnan(of_leader[label].p)]
    has = "has" if len(leaders) == 1 else "have"
    sentences = [
        f"Of those that race {' and '.join(leaders)} {has} most",
        *([f"not told from it: {', '.join(level)}"] if level else []),
        *([f"told to have less: {', '.join(below)}"] if below else []),
        *([f"told to have more on the seeds that both have: {', '.join(above)}"] if above else []),
        *([f"without a difference that could be tested: {', '.join(unknown)}"] if unknown else []),
    ]
    return f"{told} {'; '.join(sentences)}."


def _leaders(standing: Standing) -> tuple[list[str], list[str]]:
    """Of those that race, who has the largest gain at equal evaluations, ties included, and all others."""
    racing = [track.label for track in standing.tracks if track.label != IN_FULL]
    gains = {
        label: number.gain.value
        for label in racing
        if (number := standing.of(label, "evaluations", 1.0, standing.question.goal)) is not None
        and math.isfinite(number.gain.value)
    }
    most = max(gains.values(), default=math.nan)
    leaders = [label for label, gain in gains.items() if gain >= most - LAST_BITS]
    return leaders, [label for label in racing if label not in leaders]


def _its_end(standing: Standing) -> str:
    """That one of those that are compared is farther than the others."""
    label = next((track.label for track in standing.tracks if track.label == IN_FULL), None)
    return "" if label is None else f" ({label} at its end, after more of them)"


def against(standing: Standing) -> list[list[str]]:
    """Every method less every other."""
    metric = metrics.load(goal_of(standing.question))
    by_pair = {(pair.label, pair.other): pair for pair in standing.contrasts}
    labels = list(dict.fromkeys(label for pair in by_pair for label in pair))
    return [
        ["row less column", *labels],
        *([row, *(_difference(metric, by_pair, row, column) for column in labels)] for row in labels),
    ]


def _difference(
    metric: metrics.Metric, by_pair: Mapping[tuple[str, str], Contrast], row: str, column: str
) -> str:
    """One cell: the difference without its interval, for which there is no room."""
    if row == column:
        return ""
    pair = by_pair.get((row, column)) or by_pair[column, row]
    value = pair.difference.value if pair.label == row else -pair.difference.value
    if math.isnan(value):
        return "–"
    up, down = ("▲ ", "▼ ") if pair.told else ("△ ", "▽ ") if pair.told_alone else ("", "")
    # + 0.0: without it what is equal would be -0 from the other side
    return (up if value > 0 else down) + interval(
        metric, Interval(value + 0.0, math.nan, math.nan), signed=True
    )


def _cell(number: Number) -> str:
    if number.role == KL:
        return "{} [{}, {}]".format(*(f"{value:.3g}" for value in number.value))
    metric = metrics.load(number.metric)
    if number.role not in BESIDE:
        sign = "▲ " if number.gain.low > 0 else "▼ " if number.gain.high < 0 else ""
        return sign + interval(metric, number.gain, signed=True)
    value = interval(metric, number.value)
    return value if number.role == "drift" else f"{value} ({interval(metric, number.gain, signed=True)})"


def _named(standing: Standing, track: Track) -> str:
    few = f"{len(track.seeds)} seed{'s' if len(track.seeds) > 1 else ''}"
    stopped = standing.stopped_seeds(track.label)
    return f"{track.label} ({few}{f', {stopped} stopped' if stopped else ''})"


def _busy(track: Track) -> str:
    return " ⚠" if track.cpu_share() < BUSY else ""


def left(standing: Standing) -> list[str]:
    """What has no number, and why."""
    told = _cannot(standing.refusals)
    told += [
        f"{cell.label}, seed {cell.seed}: training stopped by itself: {sentence}"
        for cell, sentence in standing.stopped
    ]
    by_label: dict[str, list[int]] = {}
    for cell in standing.missing:
        by_label.setdefault(cell.label, []).append(cell.seed)
    return told + [
        f"{label}: not run with seed {', '.join(map(str, seeds))}." for label, seeds in by_label.items()
    ]


def _cannot(refusals: Sequence[Refusal]) -> list[str]:
    """Which methods cannot train on a reward; those that say the same of it together."""
    by_why: dict[str, list[str]] = {}
    for refusal in refusals:
        why = refusal.sentence.replace(f"the method {refusal.method} ", "the method ")
        by_why.setdefault(why, []).append(refusal.method)
    return [f"{', '.join(names)} cannot: {why}." for why, names in by_why.items()]


def notes(standing: Standing) -> list[str]:
    """What a reader has to know."""
    told = [
        "Every method starts from the same base, trains on the same prompts and reward, and may take the same number of "
        "denoiser evaluations: of one latent, with or without a gradient, guided branches and comparisons with other weights included.",
        *_settings(standing.tracks),
        f"{IN_FULL} is the paper's method with the length and the settings of its experiment: what it ends at is the gain to be reached."
        if standing.papers == IN_FULL
        else f"The gain to be reached is what {standing.papers}, the paper's method, ends at with the evaluations that all have.",
        f"Gains are differences to the base on the same prompts and noise (suite {SUITE}, prompts that no training holds), turned such that more is better, with {LEVEL:.0%} intervals over prompts and "
        "training seeds, stretched to Student's tails: with three seeds they are wide, and a rough statement about the method. ▲ ▼ the interval leaves 0 out. † what the run was trained on.".replace(
            "%", " %"
        ),
        "Between two checkpoints a curve is taken to be straight. Rates that fall do so over the whole budget, so that a run of a tenth of the length would stand elsewhere than this one after a tenth.",
        "A method reaches that gain where the mean of its seeds first does; ≤: at its first checkpoint already. The seeds beside it are counted each by itself, and the noise of scoring "
        "helps the lucky.",
        "It over-optimises from where held-out or gold is below its best while the proxy has risen since, both with intervals that hold for all pairs of checkpoints at once (`evals curve`).",
        "Diversity is the Vendi score of the pictures of a prompt, at "
        + ", ".join(f"{part.images_per_prompt} of {part.prompt_set}" for part in suites.load(SUITE).parts)
        + f" (its change to the base in brackets); drift is 1000 × KID to the base's pictures; KL is exact, of the sampler's trajectories, on {KL_PROMPTS} prompts.",
    ]
    return [
        *told,
        *_without(standing),
        *_paired(standing),
        *_refused(standing.tracks),
        *_by_which_code(standing.tracks),
        *_measured(standing.tracks),
    ]


def _without(standing: Standing) -> list[str]:
    """Whose means lack a seed that stopped by itself."""
    lacking_some = [track.label for track in standing.tracks if standing.stopped_seeds(track.label)]
    if not lacking_some:
        return []
    return [
        f"Numbers of {', '.join(lacking_some)} are of the seeds that were trained to their end, and so too good; one whose training stopped by itself counts among those that reach nothing."
    ]


def _paired(standing: Standing) -> list[str]:
    """How far the marks of method against method are to be trusted."""
    if not standing.contrasts:
        return []
    if min(len(pair.seeds) for pair in standing.contrasts) < 2:
        return [
            "With one seed marks of method against method speak of these runs and not of the methods: another seed may turn them round."
        ]
    return [
        "Marks of method against method rest on few seeds. In simulation (three seeds, 50 prompts, no difference) .3, 1.3, 2.9, 6 and 9 % of pairs have p below .05 where the seeds make up nothing, a third, two thirds, nine tenths and all of the "
        "variance, and none, none, none, 1 and 1.5 % below .001, where .1 % should: ▲ ▼ are rough where seeds decide and happen to agree."
    ]


def _refused(tracks: Sequence[Track]) -> list[str]:
    """Which checkpoints have no number in what, as too few of their pictures have a value."""
    return [
        f"{track.label} has no {metrics.load(name).title} after {evaluations:,.0f} evaluations: {lacking(name, share, 'the pictures there')}. "
        "Nothing reaches a gain there, and what is first reached at the next is ≤ as well."
        for track in tracks
        for name, shares in track.missing.items()
        for share, evaluations in zip(shares, track.evaluations_RT.mean(axis=0), strict=True)
        if refuses(name, share)
    ]


def _by_which_code(tracks: Sequence[Track]) -> list[str]:
    """That not all were trained by one code, as far as that is known."""
    return unlike(
        [
            Trained(track.label, seed, recorded(record["trainings"]))
            for track in tracks
            for seed, record in zip(track.seeds, track.records, strict=True)
        ]
    )


def _settings(tracks: Sequence[Track]) -> list[str]:
    """Whence the settings are that the methods race with."""
    racing = [track for track in tracks if track.label != IN_FULL and not _has_its_own(track)]
    chosen = [track.label for track in racing if track.settings]
    own = [track.label for track in racing if not track.settings]
    told = []
    if chosen:
        whose = "Each" if not own else f"Each but {', '.join(own)}"
        told.append(
            f"{whose} has the best of an equal number of settings that were tried on other prompts, with another seed and by the held-out metric "
            "(`methods-tuning.csv`; `BEST` in its file of `train/methods`). Whose settings were exchanged on the way, and what was explored beside, is in README.md."
        )
    if again := [t.label for t in racing if t.settings and methods.second_try(t.label, t.question.reward)]:
        told.append(
            f"{', '.join(again)} {'has' if len(again) == 1 else 'have'} the best of these and of two settings more (`AGAIN`)."
        )
    if own:
        told.append(
            f"No settings have been tried for {', '.join(own)}: there the method has those that it starts from."
        )
    return told


def _has_its_own(track: Track) -> bool:
    """Whether it is the paper's method at the length of its experiment, whose settings it then has."""
    return track.label == methods.PAPERS and track.budget == own_budget_of(track.question.reward)


def _measured(tracks: Sequence[Track]) -> list[str]:
    """On what machine, when, and with what beside."""
    trainings = [training for track in tracks for training in track.trainings]
    if not trainings:
        return []
    names = _on_which(tracks)
    dates = _ends([training["date"][:10] for training in trainings])
    jobs, threads, cpus = (
        _ends([training[key] for training in trainings]) for key in ("jobs", "threads", "cpus")
    )
    timed = [_of_track(track) for track in tracks if track.trainings]
    load = _ends([round(of["load"], 1) for of in timed])
    shares = _ends([round(100 * of["cpu_share"]) for of in timed if not math.isnan(of["cpu_share"])])
    return [
        f"Seconds are those of training, as `metrics.jsonl` counts them (saving and the checks before it included, scoring not), on {names}, {dates}: "
        f"{jobs} at a time, threads of each: {threads}, processors: {cpus}. By method, the load average of its runs and everything else was {load}, and its trainers were on a processor {shares} % of "
        f"their threads' time. ⚠ below {100 * BUSY:.0f} %: something else ran, and the seconds are too many."
    ]


def _on_which(tracks: Sequence[Track]) -> str:
    """The machine, or which method was trained on which."""
    by_machine: dict[str, list[str]] = {}
    for track in tracks:
        for name in sorted(track.machines()):
            by_machine.setdefault(name, []).append(track.label)
    if len(by_machine) == 1:
        return next(iter(by_machine))
    return "; ".join(f"{name} ({', '.join(labels)})" for name, labels in by_machine.items())


def _ends(values: Sequence[Any]) -> str:
    """The least and the largest, or the one that there is."""
    least, largest = min(values), max(values)
    return f"{least}" if least == largest else f"{least} to {largest}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


# ---------------------------------------------------------------------------------------------------------------------- the numbers


def tidy(standing: Standing) -> pd.DataFrame:
    """One row a number, with everything that it depends on.

    at: checkpoint, evaluations or seconds (equal ones), reach (the paper method's final gain, in the goal), difference (of `method` less `against`, in gain, with its p and
    that after Holm's correction), refused or stopped (then `note` says why).
    value, gain: each with _low and _high. gain_by_seed: of the seeds in `seeds`, at checkpoints and separated by spaces; of a reach the evaluations of each.
    prompts, images: n of a seed. threads, jobs, load, cpu_share: under which the seconds were measured.
    """
    question, tracks = standing.question, {track.label: track for track in standing.tracks}
    records = [_record(number, tracks[number.label]) for number in standing.numbers]
    for method, reach in standing.reaches.items():
        records.append(
            _key(question.reward, method, "reach")
            | {"role": question.goal, "metric": goal_of(question), "prompt_set": question.prompt_set}
            | {"evaluations": reach.evaluations, "seconds": reach.seconds, "gain": standing.target.value}
            | {
                "gain_by_seed": " ".join(f"{evaluations:.6g}" for evaluations in reach.seeds),
                "note": "at most: nothing is known of it before" if reach.at_most else "",
            }
            | _of_track(tracks[method])
        )
    records += [
        _key(question.reward, pair.label, "difference")
        | {"against": pair.other, "p": pair.p, "p_holm": pair.p_holm}
        | {"role": question.goal, "metric": goal_of(question), "prompt_set": question.prompt_set}
        | {"evaluations": math.nan if AT_ITS_END in pair.label + pair.other else standing.evaluations}
        | _columns("gain", pair.difference)
        | {"seeds": " ".join(map(str, pair.seeds)), "prompts": pair.prompts}
        for pair in standing.contrasts
    ]
    records += [_key(r.reward, r.method, "refused") | {"note": r.sentence} for r in standing.refusals]
    records += [
        _key(c.reward, c.label, "stopped") | {"seeds": str(c.seed), "note": sentence}
        for c, sentence in standing.stopped
    ]
    # whole: six digits of a large one would be another run's
    return pd.DataFrame(records, columns=COLUMNS).astype({"budget": "Int64"})


COLUMNS = (
    *("reward", "method", "at", "share", "evaluations", "seconds", "role", "metric", "prompt_set"),
    *("value", "value_low", "value_high", "gain", "gain_low", "gain_high", "gain_by_seed"),
    *("against", "p", "p_holm"),
    *("seeds", "prompts", "images", "budget", "note"),
    *("command", "machine", "date", "threads", "jobs", "load", "cpu_share"),
)


def _key(reward: str, method: str, at: str) -> dict[str, Any]:
    return {"reward": reward, "method": method, "at": at}


def _record(number: Number, track: Track) -> dict[str, Any]:
    each = ""
    if number.at == "checkpoint" and number.role in track.question.roles():
        t = int(np.argmin(np.abs(track.evaluations_RT.mean(axis=0) - number.evaluations)))
        each = " ".join(f"{gain:.6g}" for gain in gains_RT(track, number.metric)[:, t])
    return {
        **_key(number.reward, number.label, number.at),
        "share": number.share,
        "evaluations": number.evaluations,
        "seconds": number.seconds,
        "role": number.role,
        "metric": number.metric,
        "prompt_set": number.prompt_set,
        **_columns("value", number.value),
        **_columns("gain", number.gain),
        "gain_by_seed": each,
        "prompts": number.prompts,
        "images": number.images,
        **_of_track(track),
    }


def _columns(name: str, value: Interval) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _of_track(track: Track) -> dict[str, Any]:
    trainings = track.trainings
    return {
        "seeds": " ".join(map(str, track.seeds)),
        "budget": track.budget,
        "command": track.records[0]["command"],
        "machine": track.records[0]["machine"]["name"],
        "date": max(record["date"] for record in track.records),
        "threads": max((s["threads"] for s in trainings), default=math.nan),
        "jobs": max((s["jobs"] for s in trainings), default=math.nan),
        "load": float(np.mean([s["load"] for s in trainings])) if trainings else math.nan,
        "cpu_share": track.cpu_share(),
    }


# ------------------------------------------------------------------------------------------------------------------------ the picture


def picture(standing: Standing) -> str:
    """A row of panels a method: what it gains in gold, held-out and proxy over evaluations, and in the goal over seconds.

    Behind each stands the paper's method within the same budget, in grey; a dashed line is what it ends at in full, which has an axis of its own.
    """
    question, tracks = standing.question, standing.tracks
    columns: list[tuple[str, str, Callable[[Track], Array]]] = [
        *((role, "evaluations", lambda track: track.evaluations_RT.mean(axis=0)) for role in DRAWN),
        (question.goal, "s", lambda track: track.seconds_RT.mean(axis=0)),
    ]
    units = [heading(metrics.load(question.roles()[role])).rstrip(" ↑↓") for role, *_ in columns]
    captions = [textwrap.wrap(f"gain in {unit}", CAPTION) for unit in units]
    top = 24 + LINE * max(map(len, captions))
    panels = []
    for column, (role, x_title, axis) in enumerate(columns):
        metric = metrics.load(question.roles()[role])
        ribbons = {track.label: _ribbon(standing, track, role, axis(track)) for track in tracks}
        ends = [
            end for ribbon in ribbons.values() for end in (*ribbon.low, *ribbon.high) if math.isfinite(end)
        ]
        y_ends = (min(0.0, *ends), max(0.0, *ends))
        racing = [ribbon.x[-1] for label, ribbon in ribbons.items() if label != IN_FULL]
        target = (
            _scale(metric) * standing.target.value if role == question.goal and standing.is_race else math.nan
        )
        for row, (label, ribbon) in enumerate(ribbons.items()):
            x_end = ribbon.x[-1] if label == IN_FULL else max(racing)
            papers = ribbons.get(methods.PAPERS)
            behind = [papers._replace(colour=PAPERS_COLOUR)] if papers and label != IN_FULL else []
            drawn = behind if label == methods.PAPERS else [*behind, ribbon]
            corner = svg.Corner(svg.PANEL_WIDTH * column, top + svg.PANEL_HEIGHT * row)
            panels.append(svg.panel(drawn, (0.0, x_end), y_ends, f"{label}: {role}", x_title, corner, target))
        for line, words in enumerate(captions[column]):
            corner = svg.Corner(svg.PANEL_WIDTH * column + 44, 24 + LINE * line)
            panels.append(svg.caption(words, corner))
    dashed = ", dashed: what it ends at in full" if standing.is_race else ""
    title = f"Methods on {question.reward}: mean of the seeds, each seed, 95 % interval; grey: the paper's{dashed}"
    panels.append(svg.caption(title, svg.Corner(8, 11)))
    return str(svg.sheet(panels, svg.PANEL_WIDTH * len(columns), top + svg.PANEL_HEIGHT * len(tracks), title))


def _scale(metric: metrics.Metric) -> float:
    return 100.0 if metric.unit == "share" else 1.0


def _ribbon(standing: Standing, track: Track, role: str, axis_T: Array) -> svg.Ribbon:
    found = [n for n in standing.numbers if (n.label, n.at, n.role) == (track.label, "checkpoint", role)]
    scale = _scale(metrics.load(found[0].metric))
    gains = [Interval(0.0, 0.0, 0.0), *(number.gain for number in found)]
    # the line passes over a checkpoint that has no number
    there = [t for t, gain in enumerate(gains) if math.isfinite(gain.value)]
    return svg.Ribbon(
        x=axis_T[there].tolist(),
        y=[scale * gains[t].value for t in there],
        low=[scale * gains[t].low for t in there],
        high=[scale * gains[t].high for t in there],
        each=(scale * gains_RT(track, found[0].metric)[:, there]).tolist(),
        colour=OWN_COLOUR,
    )


# -------------------------------------------------------------------------------------------------------------------------- the plan


def _label(one: Any) -> str:
    return one.method if isinstance(one, Refusal) else str(one.label)


def planned(
    cells_and_refusals: Sequence[Any], done: Callable[[Any], bool], seconds_each: dict[str, float], jobs: int
) -> str:
    """What would be run and what it costs.

    Args:
        cells_and_refusals: of `cells.plan`.
        done: whether nothing is left to do of a cell.
        seconds_each: seconds of a denoiser evaluation by method, as measured by cells that are done on this machine; may be empty.
        jobs: cells at a time.
    """
    lines = [
        [
            "reward",
            "method",
            "seeds",
            "iterations",
            "evaluations a run",
            "to score them",
            "checkpoints",
            "left to do",
            "hours",
        ]
    ]
    total_evaluations, total_seconds, unknown, refused = 0, 0.0, False, list[Refusal]()
    for reward in QUESTIONS:
        mine = [c for c in cells_and_refusals if c.reward == reward]
        for label in dict.fromkeys(_label(c) for c in mine):
            of = [c for c in mine if _label(c) == label]
            if isinstance(of[0], Refusal):
                refused.append(of[0])
                continue
            cell, todo = of[0], [c for c in of if not done(c)]
            evaluations = len(todo) * (cell.evaluations + cell.scoring_evaluations)
            each = seconds_each.get(cell.method, seconds_each.get(""))
            total_evaluations += evaluations
            total_seconds += evaluations * (each or 0.0)
            unknown |= each is None and bool(todo)
            lines.append(
                [
                    reward,
                    label,
                    ", ".join(str(c.seed) for c in of),
                    f"{cell.experiment.iterations:,}",
                    f"{cell.evaluations:,}",
                    f"{cell.scoring_evaluations:,}",
                    str(cell.points),
                    f"{len(todo)} of {len(of)}",
                    "" if each is None else f"{evaluations * each / 3600:.1f}",
                ]
            )
    time = (
        "no cell is done here, so how long that takes is not known"
        if unknown
        else f"about {total_seconds / 3600 / jobs:.1f} hours, {jobs} at a time"
    )
    parts = [_table(lines), "\n".join(f"- {sentence}" for sentence in _cannot(refused))]
    parts.append(f"{total_evaluations:,} denoiser evaluations are left to do; {time}.")
    return "\n\n".join(filter(None, parts))
