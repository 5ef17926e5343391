"""Compare checkpoints: from score rows to a table in which every cell and every difference has an interval.

The numbers are made by `compare`, printed by `markdown` and `tidy`, and written by `write`; nothing else is read but the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from evals import metrics, stats
from evals import rows as score_rows
from evals.files import write_text
from evals.metrics import Metric
from evals.metrics._parity import parity_floor
from evals.metrics._wins import half_tie_rate, ties_dropped_rate
from evals.rows import PROMPT, without_copies
from evals.stats import Array, Interval

BASE = "base"
Mark = Literal["better", "worse", "changed", "not distinguished", ""]
SIGNS: dict[str, str] = {"better": "▲", "worse": "▼", "changed": "◆", "not distinguished": "≈", "": ""}
GOALS = (
    *("win_rate_gold", "win_rate_judge", "win_rate_reward", "reward_mean"),
    *("detection", "fully_right", "parity_excess", "parity"),
)
"""The order of columns: what no run is trained on stands before what some run is."""
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Estimate:
    """One cell: an experiment (all its seeds) under one metric on one prompt set, and its difference to the base."""

    model: str
    prompt_set: str
    metric: str
    experiment: str
    value: Interval
    difference: Interval
    """Run less base on the same prompts and noise; NaN for the base itself."""
    ratio: Interval
    """Run over base, where the metric has a meaningful zero."""
    p: float
    p_holm: float
    """p after Holm's correction over the metrics of this experiment on this prompt set."""
    mark: Mark
    trained_on: bool
    """The metric's scorer was a reward of this experiment."""
    headline: bool
    seeds: int
    prompts: int
    images: int
    missing: int
    """Images, of all seeds, to which the scorer does not apply (NaN)."""
    unpaired: int
    """Prompts, of all seeds, left out of the difference because run or base has nothing applicable there."""


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


@dataclass(frozen=True)
class Retention:
    """What a run trained on several rewards keeps of a specialist's gain (paper, Table 5)."""

    model: str
    prompt_set: str
    metric: str
    experiment: str
    specialist: str
    raw: Interval
    """Ratio of the scores (specialist over joint where lower is better): the paper's "over 80 %"."""
    gain: Interval
    """Ratio of the gains over the base; NaN where the specialist's own gain is not distinguished from none."""


@dataclass(frozen=True)
class Comparison:
    """Everything a table or a report needs."""

    estimates: tuple[Estimate, ...]
    outcomes: tuple[Outcome, ...]
    retentions: tuple[Retention, ...]
    versions: dict[str, str]
    tie_margins: dict[str, float]
    resamples: int
    seed: int

    def models(self) -> list[str]:
        """In the order of the files."""
        return list(dict.fromkeys(e.model for e in self.estimates))

    def of(self, **wanted: object) -> list[Estimate]:
        """The estimates whose fields have the given values."""
        return [e for e in self.estimates if all(getattr(e, name) == value for name, value in wanted.items())]


@dataclass(frozen=True)
class _Cell:
    """An estimate with the resamples that it was made of, and the base's at the same prompts."""

    estimate: Estimate
    draws_N: Array
    base_draws_N: Array


class _Paired(NamedTuple):
    """Run and base on the prompts that both have, with their resamples."""

    value: float
    draws_N: Array
    base: float
    base_N: Array


@dataclass
class _Resampler:
    """The weights, made once for each prompt set and experiment, so that everything compared shares them."""

    resamples: int
    seed: int
    made: dict[tuple[str, int], Array] = field(default_factory=dict)

    def weights(self, stream: str, units: int) -> Array:
        if (stream, units) not in self.made:
            self.made[stream, units] = stats.weights(units, self.resamples, self.seed, stream)
        return self.made[stream, units]


def compare(rows: pd.DataFrame, resamples: int = stats.RESAMPLES, seed: int = 0) -> Comparison:
    """Every experiment x metric x prompt set of the rows (as `evals.rows.read` gives them), each model against its own base.

    Raises:
        ValueError: a model without base rows; pairs that are missing on a side; scorer versions that differ.
    """
    versions = score_rows.versions(rows)
    resampler = _Resampler(resamples, seed)
    cells: list[_Cell] = []
    outcomes: list[Outcome] = []
    retentions: list[Retention] = []
    for model, part in rows.groupby("model", sort=False):
        found, won = _compare_model(str(model), part, resampler)
        found = _with_holm(_with_headlines(found))
        cells += found
        outcomes += won
        retentions += _retentions(found, part)
    margins = {name: getattr(metrics.load(name), "tie_margin", None) for name in metrics.names()}
    return Comparison(
        estimates=tuple(cell.estimate for cell in cells),
        outcomes=tuple(outcomes),
        retentions=tuple(retentions),
        versions=versions,
        tie_margins={name: margin for name, margin in margins.items() if margin is not None},
        resamples=resamples,
        seed=seed,
    )


def _compare_model(
    model: str, rows: pd.DataFrame, resampler: _Resampler
) -> tuple[list[_Cell], list[Outcome]]:
    base = rows[rows["experiment"] == BASE]
    if base.empty:
        others = ", ".join(sorted(rows["experiment"].unique()))
        raise ValueError(
            f"there are no base scores for the model {model} (only {others}): every number is a difference to the base, "
            f"so score the base of {model} on the same prompts and give its file too"
        )
    experiments = sorted(rows["experiment"].unique(), key=lambda name: (name != BASE, _first_row(rows, name)))
    by_scorer: dict[str, list[str]] = {}
    for name in metrics.names():
        by_scorer.setdefault(metrics.load(name).scorer, []).append(name)
    made: list[tuple[_Cell, Outcome | None]] = []
    for experiment in experiments:
        of_experiment = rows[rows["experiment"] == experiment]
        if experiment == BASE:
            of_experiment = without_copies(of_experiment)
        for scorer, names in by_scorer.items():
            mine = of_experiment[of_experiment["scorer"] == scorer]
            if len(mine):
                made += _scorer_cells(names, mine, base, resampler)
    return [cell for cell, _ in made], [outcome for _, outcome in made if outcome is not None]


def _first_row(rows: pd.DataFrame, experiment: str) -> int:
    return int((rows["experiment"] == experiment).to_numpy().argmax())


def _scorer_cells(
    names: list[str], rows: pd.DataFrame, base: pd.DataFrame, resampler: _Resampler
) -> list[tuple[_Cell, Outcome | None]]:
    """The cells of one experiment under the metrics that read one scorer."""
    by_definition = all(metrics.load(name).reference is not None for name in names)
    base_rows = rows if by_definition else _base_beside(rows, base, str(rows["scorer"].iloc[0]))
    made = [_metric_cells(name, metrics.load(name), rows, base_rows, resampler) for name in names]
    return [pair for pairs in made for pair in pairs]


def _metric_cells(
    name: str, metric: Metric, rows: pd.DataFrame, base_rows: pd.DataFrame, resampler: _Resampler
) -> list[tuple[_Cell, Outcome | None]]:
    """The cells of one experiment under one metric, a cell for each prompt set to which the metric applies."""
    applies = (rows["value"].notna() | base_rows["value"].notna()).groupby(rows["prompt_set"]).any()
    sets = [str(name) for name, some in applies.items() if some]
    rows, base_rows = rows[rows["prompt_set"].isin(sets)], base_rows[rows["prompt_set"].isin(sets)]
    if rows.empty:
        return []
    mine = metric.statistics(rows, base_rows)
    theirs = metric.statistics(base_rows, base_rows) if metric.reference is None else None
    made: list[tuple[_Cell, Outcome | None]] = []
    for prompt_set in sets:
        of_set = rows[rows["prompt_set"] == prompt_set]
        values_RPS = _array(mine, prompt_set)
        base_RPS = None if theirs is None else _array(theirs, prompt_set)
        cell = _cell(name, metric, of_set, values_RPS, base_RPS, resampler)
        is_run = cell.estimate.experiment != BASE
        is_win_rate = list(mine.columns) == ["win", "tie", "loss"]
        made.append((cell, _outcome(cell.estimate, values_RPS) if is_run and is_win_rate else None))
    return made


def _base_beside(rows: pd.DataFrame, base: pd.DataFrame, scorer: str) -> pd.DataFrame:
    scored = base[base["scorer"] == scorer]
    if scored.empty:
        raise ValueError(
            f"base has no {scorer} scores but {rows['experiment'].iloc[0]} has: score the base again with the same scorers"
        )
    return score_rows.same_images(rows, scored)


def _array(statistics: pd.DataFrame, prompt_set: str) -> Array:
    """Statistics of one prompt set as [R, P, S]; every seed has every prompt, in the same order."""
    part = statistics.xs(prompt_set, level=PROMPT[1])
    seeds = part.index.get_level_values("seed").unique()
    prompts = part.index.get_level_values("prompt_id").unique()
    if len(part) != len(seeds) * len(prompts):
        raise ValueError(
            f"{prompt_set}: the training seeds were not scored on the same prompts; score them again"
        )
    order_RP = part.index.get_level_values("prompt_id").to_numpy().reshape(len(seeds), len(prompts))
    assert (order_RP == order_RP[0]).all(), "a metric's statistics are sorted by seed and prompt"
    return np.asarray(part.to_numpy(), dtype=np.float64).reshape(len(seeds), len(prompts), -1)


def _cell(
    name: str,
    metric: Metric,
    rows: pd.DataFrame,
    values_RPS: Array,
    base_RPS: Array | None,
    resampler: _Resampler,
) -> _Cell:
    experiment, prompt_set = str(rows["experiment"].iloc[0]), str(rows["prompt_set"].iloc[0])
    runs, prompts, _ = values_RPS.shape
    weight_NR = resampler.weights(f"seeds of {experiment}", runs)
    weight_NP = resampler.weights(f"prompts of {prompt_set}", prompts)

    def resample(array_RPS: Array) -> tuple[float, Array]:
        draws_N = metric.finish(stats.mean_statistics(array_RPS, weight_NR, weight_NP))
        return stats.point(array_RPS, metric.finish), draws_N

    value, draws_N = resample(values_RPS)
    own = _interval(metric, value, draws_N, prompts)
    if base_RPS is None:
        assert metric.reference is not None
        lost_RP = np.zeros((runs, prompts), dtype=np.bool_)
        both = _Paired(value, draws_N, metric.reference, np.full_like(draws_N, metric.reference))
    else:
        lost_RP = np.asarray((np.isnan(values_RPS) | np.isnan(base_RPS)).any(axis=2))
        both = _Paired(*resample(_without(values_RPS, lost_RP)), *resample(_without(base_RPS, lost_RP)))
    is_base = experiment == BASE
    difference = NOTHING if is_base else _difference(metric, own, both)
    p = math.nan if is_base else stats.p_value(both.draws_N - both.base_N)
    estimate = Estimate(
        model=str(rows["model"].iloc[0]),
        prompt_set=prompt_set,
        metric=name,
        experiment=experiment,
        value=own,
        difference=difference,
        ratio=NOTHING if is_base or not metric.ratio_to_base else _ratio(*both),
        p=p,
        p_holm=p,
        mark=_mark(metric, difference),
        trained_on=bool(rows["trained_on"].any()),
        headline=False,
        seeds=runs,
        prompts=prompts,
        images=len(rows) // runs,
        missing=int(rows["value"].isna().sum()),
        unpaired=int(lost_RP.sum()),
    )
    return _Cell(estimate, both.draws_N, both.base_N)


def _without(array_RPS: Array, lost_RP: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
    return np.where(lost_RP[:, :, None], np.nan, array_RPS)


def _interval(metric: Metric, value: float, draws_N: Array, prompts: int) -> Interval:
    """Percentile interval; Wilson's with the prompts as n for a share that is 0 or 1 everywhere and so cannot be resampled."""
    if metric.unit == "share" and value in (0.0, 1.0) and bool(np.all(draws_N == value)):
        return stats.wilson(value * prompts, prompts)
    return stats.percentile_interval(value, draws_N)


def _difference(metric: Metric, own: Interval, both: _Paired) -> Interval:
    """Interval of the paired difference; where the base is a constant by definition, the run's own interval, shifted."""
    if metric.needs_base or metric.reference is not None:
        return Interval(*(end - both.base for end in own))
    return stats.percentile_interval(both.value - both.base, both.draws_N - both.base_N)


def _ratio(value: float, draws_N: Array, base_value: float, base_N: Array) -> Interval:
    """Interval of value / base; nothing where the base may be 0, since a ratio has no meaning there."""
    if not (base_value > 0 and bool(np.all(base_N > 0))):
        return NOTHING
    return stats.percentile_interval(value / base_value, draws_N / base_N)


def _mark(metric: Metric, difference: Interval) -> Mark:
    if math.isnan(difference.low) or difference.low <= 0 <= difference.high:
        return "not distinguished" if not math.isnan(difference.value) else ""
    if metric.higher_is_better is None:
        return "changed"
    return "better" if (difference.value > 0) == metric.higher_is_better else "worse"


def _with_headlines(cells: list[_Cell]) -> list[_Cell]:
    """Mark the cells of a specialist's metric on its home prompt sets, or on all sets where none of them is its home."""
    marked = []
    for cell in cells:
        e = cell.estimate
        metric = metrics.load(e.metric)
        sets = {c.estimate.prompt_set for c in cells if c.estimate.metric == e.metric}
        home = {name for name in sets if metric.home in name} or sets
        headline = metric.specialist is not None and e.prompt_set in home
        marked.append(_replace(cell, headline=headline))
    return marked


def _with_holm(cells: list[_Cell]) -> list[_Cell]:
    """Holm's correction over the metrics of each experiment on each prompt set."""
    families: dict[tuple[str, str], list[int]] = {}
    for index, cell in enumerate(cells):
        if not math.isnan(cell.estimate.p):
            families.setdefault((cell.estimate.experiment, cell.estimate.prompt_set), []).append(index)
    corrected = list(cells)
    for indices in families.values():
        for index, p in zip(indices, stats.holm([cells[i].estimate.p for i in indices]), strict=True):
            corrected[index] = _replace(cells[index], p_holm=p)
    return corrected


def _replace(cell: _Cell, **changes: object) -> _Cell:
    kept = {f.name: getattr(cell.estimate, f.name) for f in fields(Estimate)}
    return _Cell(Estimate(**{**kept, **changes}), cell.draws_N, cell.base_draws_N)


def _outcome(estimate: Estimate, values_RPS: Array) -> Outcome:
    def whole(finish: Any) -> float:
        return stats.point(values_RPS, finish)

    net_P = np.nansum(values_RPS[:, :, 0] - values_RPS[:, :, 2], axis=0)
    won, lost = int((net_P > 0).sum()), int((net_P < 0).sum())
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
    gain = NOTHING
    if single.estimate.mark == "better":
        gain = stats.percentile_interval(
            (joint.estimate.difference.value) / (single.estimate.difference.value),
            (joint.draws_N - joint.base_draws_N) / (single.draws_N - single.base_draws_N),
        )
    return Retention(
        model=joint.estimate.model,
        prompt_set=joint.estimate.prompt_set,
        metric=joint.estimate.metric,
        experiment=joint.estimate.experiment,
        specialist=single.estimate.experiment,
        raw=_ratio(top.estimate.value.value, top.draws_N, bottom.estimate.value.value, bottom.draws_N),
        gain=gain,
    )


# ---------------------------------------------------------------------------------------------------- printing


def number(metric: Metric, value: float, signed: bool = False) -> str:
    """A value as printed: a share in per cent, a score with three decimals; NaN as a dash."""
    if math.isnan(value):
        return "–"
    sign = "+" if signed else ""
    text = f"{100 * value:{sign}.1f}" if metric.unit == "share" else f"{value:{sign}.3f}"
    return text.replace("-", "−")


def interval(metric: Metric, value: Interval, signed: bool = False) -> str:
    """`80.3 [78.5, 82.0]`; without ends where there are none or where they are the value itself."""
    text = number(metric, value.value, signed)
    if math.isnan(value.low) or value.low == value.high == value.value:
        return text
    return f"{text} [{number(metric, value.low, signed)}, {number(metric, value.high, signed)}]"


def heading(metric: Metric) -> str:
    """The metric's title with its unit and an arrow to the good side."""
    arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
    return f"{metric.title}{', %' if metric.unit == 'share' else ''}{arrow}"


def markdown(comparison: Comparison, command: str) -> str:
    """The table as a Markdown page."""
    parts = [_header(comparison, command)]
    for model in comparison.models():
        parts += [
            f"## {model}\n",
            f"### At a glance\n\n{at_a_glance(comparison, model)}\n",
            _kept(comparison, model),
        ]
        parts += [_wins(comparison, model)]
        for prompt_set in dict.fromkeys(e.prompt_set for e in comparison.of(model=model)):
            parts.append(_prompt_set(comparison, model, prompt_set))
    parts.append(_footer(comparison))
    return "\n".join(part for part in parts if part)


def tidy(comparison: Comparison) -> pd.DataFrame:
    """One row per estimate, intervals in three columns each."""
    records = []
    for e in comparison.estimates:
        record: dict[str, Any] = {}
        for f in fields(Estimate):
            value = getattr(e, f.name)
            if isinstance(value, Interval):
                record |= {f.name: value.value, f"{f.name}_low": value.low, f"{f.name}_high": value.high}
            else:
                record[f.name] = int(value) if isinstance(value, bool) else value
        records.append(record)
    return pd.DataFrame(records)


def write(
    paths: Sequence[Path | str], out: Path, command: str, resamples: int = stats.RESAMPLES
) -> Comparison:
    """Read the score files, compare, and write the table at `out` (.md) and beside it (.csv).

    Raises:
        ValueError: as `evals.rows.read` and `compare`; or `out` is not a .md file.
    """
    if out.suffix != ".md":
        raise ValueError(f"--out must be a .md file, not {out}; the numbers go beside it as .csv")
    comparison = compare(score_rows.read(paths), resamples)
    write_text(markdown(comparison, command), out)
    text = tidy(comparison).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(text, out.with_suffix(".csv"))
    return comparison


def method_notes(comparison: Comparison) -> list[str]:
    """What a reader has to know about the numbers, a sentence or two each."""
    margins = "; ".join(f"{metrics.load(n).scorer} {m:g}" for n, m in sorted(comparison.tie_margins.items()))
    return [
        f"Intervals are 95 % percentile intervals of a bootstrap ({comparison.resamples:,} resamples, seed "
        f"{comparison.seed}). Prompts are resampled with all their images, and training seeds above them, where there are "
        "several. The weights are shared by all cells of a prompt set, so differences are paired: same prompt, same image "
        "index, same noise.",
        "With one training seed an interval speaks of that run only, not of the method; with two or three it is "
        "still a rough statement about the method.",
        "▲ better, ▼ worse, ◆ changed (not a quality), ≈ not distinguished from the base: the interval of the "
        "difference contains 0.",
        "† the run was trained on this very scorer: read the held-out judge and the gold measure beside it.",
        f"Win rates count a tie as half. A tie is a difference of at most, fixed beforehand: {margins}.",
        "The parity gap (Eq 12) of a perfectly fair generator is not 0: its floor is "
        + ", ".join(f"{parity_floor(n):.3f} with {n}" for n in (8, 12, 16))
        + " usable images of a prompt, exactly. The gap over its floor takes each prompt's own number.",
        "A share that is 0 or 100 % in every prompt has Wilson's interval with the prompts as n.",
    ]


def count_notes(comparison: Comparison) -> list[str]:
    """What was not counted, or does not hold up: nothing is dropped in silence."""
    notes = []
    for (model, scorer, prompt_set), total in _missing_by(comparison).items():
        notes.append(f"{model}: not applicable (NaN), {scorer} on {prompt_set}: {total}.")
    for e in comparison.estimates:
        if e.unpaired:
            notes.append(
                f"{e.model}: {e.experiment}, {metrics.load(e.metric).title} on {e.prompt_set}: {e.unpaired} of "
                f"{e.seeds * e.prompts} prompts are in no difference, since the run or the base has no usable image there."
            )
    marks = [e for e in comparison.estimates if e.mark not in ("", "not distinguished")]
    weak = [e for e in marks if e.p_holm > 1 - stats.LEVEL]
    listed = "; ".join(f"{e.experiment}, {metrics.load(e.metric).title}, {e.prompt_set}" for e in weak)
    notes.append(
        f"{len(weak)} of {len(marks)} marks do not survive Holm's correction over the metrics of their experiment and "
        f"prompt set{': ' + listed if weak else ''}."
    )
    single = sorted({e.experiment for e in comparison.estimates if e.seeds == 1 and e.experiment != BASE})
    if single:
        notes.append(f"One training seed only: {', '.join(single)}.")
    notes += _not_scored(comparison)
    return notes


def _missing_by(comparison: Comparison) -> dict[tuple[str, str, str], str]:
    """NaN counts per scorer and prompt set, told per experiment."""
    counts: dict[tuple[str, str, str], dict[str, str]] = {}
    for e in comparison.estimates:
        if e.missing:
            key = (e.model, metrics.load(e.metric).scorer, e.prompt_set)
            counts.setdefault(key, {})[e.experiment] = f"{e.experiment} {e.missing} of {e.seeds * e.images}"
    return {key: ", ".join(found.values()) for key, found in counts.items()}


def _not_scored(comparison: Comparison) -> list[str]:
    notes = []
    for model in comparison.models():
        cells = {(e.experiment, e.metric, e.prompt_set) for e in comparison.of(model=model)}
        for experiment in dict.fromkeys(e.experiment for e in comparison.of(model=model)):
            absent = [
                f"{metrics.load(metric).title} on {prompt_set}"
                for metric, prompt_set in sorted({(m, s) for _, m, s in cells})
                if (experiment, metric, prompt_set) not in cells
                and not (experiment == BASE and metrics.load(metric).reference is not None)
            ]
            if absent:
                notes.append(f"{model}: not scored for {experiment}: {'; '.join(absent)}.")
    return notes


def _header(comparison: Comparison, command: str) -> str:
    versions = ", ".join(f"{scorer} {version}" for scorer, version in sorted(comparison.versions.items()))
    notes = "\n".join(f"- {note}" for note in method_notes(comparison))
    return f"# Results\n\nGenerated by `{command}`. Do not edit.\n\n{notes}\n- Scorer versions: {versions}.\n"


def _footer(comparison: Comparison) -> str:
    return "## Counted\n\n" + "\n".join(f"- {note}" for note in count_notes(comparison)) + "\n"


def dagger(estimate: Estimate) -> str:
    """† on a cell whose scorer the run was trained on."""
    return "†" if estimate.trained_on else ""


def at_a_glance(comparison: Comparison, model: str) -> str:
    """Headline metrics by experiments, as a Markdown table; in brackets the ratio to the base, where one means something."""
    experiments = list(dict.fromkeys(e.experiment for e in comparison.of(model=model)))
    by_key = {(e.experiment, e.metric, e.prompt_set): e for e in comparison.of(model=model, headline=True)}
    lines = [["metric", "prompt set", *experiments]]
    for name, prompt_set in headline_columns(comparison, model):
        cells = [_glance(by_key.get((experiment, name, prompt_set))) for experiment in experiments]
        lines.append([heading(metrics.load(name)), prompt_set, *cells])
    return _table(lines)


def headline_columns(comparison: Comparison, model: str) -> list[tuple[str, str]]:
    """The headline cells' (metric, prompt set), the goals in the order of `GOALS`."""
    found = {(e.metric, e.prompt_set) for e in comparison.of(model=model, headline=True)}
    return sorted(found, key=lambda column: (*metric_order(column[0]), column[1]))


def metric_order(name: str) -> tuple[int, str]:
    """Goals first, in the order of `GOALS`, then the side effects by name."""
    return (GOALS.index(name) if name in GOALS else len(GOALS), name)


def _glance(e: Estimate | None) -> str:
    if e is None:
        return "–"
    metric = metrics.load(e.metric)
    ratio = "" if math.isnan(e.ratio.value) else f" (×{e.ratio.value:.2f})"
    return f"{interval(metric, e.value)}{ratio} {SIGNS[e.mark]}{dagger(e)}".strip()


def _kept(comparison: Comparison, model: str) -> str:
    found = [r for r in comparison.retentions if r.model == model]
    if not found:
        return ""
    lines = [["run", "specialist", "metric", "prompt set", "raw ratio, %", "share of the gain, %"]]
    for r in found:
        ratios = [percent(r.raw), percent(r.gain)]
        lines.append([r.experiment, r.specialist, metrics.load(r.metric).title, r.prompt_set, *ratios])
    return (
        "### What the joint run keeps of each specialist\n\n"
        "Raw ratio of scores, as the paper's Table 5 has it (.895, .805, .960), and share of the gain over the base (.84, .66, "
        ".77). A dash: the ratio has no meaning, or the specialist's own gain is not distinguished from none.\n\n"
        f"{_table(lines)}\n"
    )


def percent(value: Interval) -> str:
    """A ratio with its interval, in whole per cent; a dash where it has no meaning."""
    if math.isnan(value.value):
        return "–"
    return f"{100 * value.value:.0f} [{100 * value.low:.0f}, {100 * value.high:.0f}]".replace("-", "−")


def _wins(comparison: Comparison, model: str) -> str:
    headlines = {(e.metric, e.prompt_set) for e in comparison.of(model=model, headline=True)}
    found = [o for o in comparison.outcomes if o.model == model and (o.metric, o.prompt_set) in headlines]
    if not found:
        return ""
    lines = [
        [
            "judge",
            "prompt set",
            "run",
            "win",
            "tie",
            "loss",
            "half-tie",
            "ties dropped",
            "prompts won : lost",
            "p",
        ]
    ]
    for o in found:
        shares = [o.win, o.tie, o.loss, o.half_tie, o.ties_dropped]
        lines.append(
            [metrics.load(o.metric).scorer, o.prompt_set, o.experiment]
            + ["–" if math.isnan(share) else f"{100 * share:.1f}" for share in shares]
            + [f"{o.prompts_won} : {o.prompts_lost}", f"{o.sign_p:.2g}"]
        )
    return (
        "### Win, tie and loss against the base\n\nIn per cent of pairs at the same prompt and noise; p is the exact sign test "
        f"over prompts.\n\n{_table(lines)}\n"
    )


def _prompt_set(comparison: Comparison, model: str, prompt_set: str) -> str:
    lines = [["metric", "run", "value [95 %]", "difference to base [95 %]", "", "seeds × prompts × images"]]
    found = comparison.of(model=model, prompt_set=prompt_set)
    for name in sorted({e.metric for e in found}, key=metric_order):
        metric = metrics.load(name)
        for e in (e for e in found if e.metric == name):
            n = f"{e.seeds} × {e.prompts} × {e.images / e.prompts:g}"
            mark = f"{SIGNS[e.mark]} {e.mark}".strip()
            value = f"{interval(metric, e.value)}{dagger(e)}"
            lines.append(
                [heading(metric), e.experiment, value, interval(metric, e.difference, True), mark, n]
            )
    return f"### {prompt_set}\n\n{_table(lines)}\n"


def _table(lines: list[list[str]]) -> str:
    """A Markdown table whose columns are padded, so that it reads in a terminal too."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    padded = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])
