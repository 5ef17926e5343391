"""A comparison as printed: Markdown and CSV, LaTeX, and JSON for machines.

`write` does all of it; nothing is computed here but what a reader is told of the numbers of `evals.compare`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evals import asides, metrics, panel, stats, unscored
from evals import rows as score_rows
from evals.compare import Comparison, Estimate, Outcome, Retention, compare, most_missing
from evals.files import write_text
from evals.metrics import Metric
from evals.metrics._geneval import TASKS
from evals.metrics._parity import parity_floor
from evals.rows import BASE
from evals.stats import Interval

SIGNS: dict[str, str] = {"better": "▲", "worse": "▼", "changed": "◆", "not distinguished": "≈", "": ""}
HOLLOW: dict[str, str] = {**SIGNS, "better": "△", "worse": "▽", "changed": "◇"}
"""The signs of differences that do not survive Holm's correction."""
GOALS = (
    *("win_rate_gold", "win_rate_judge", "win_rate_pickscore", "win_rate_hpsv2", "win_rate_aesthetic"),
    *("win_rate_clip_score", "win_rate_reward", "reward_mean"),
    *("detection", "fully_right", "parity_excess", "parity"),
    *("geneval", *(f"geneval_{task}" for task in TASKS)),
)
"""The order of columns: what no run is trained on stands before what some run is."""
SMALLEST_P = 1e-300
"""Below it p-values are not told apart: that of 1,632 prompts won of 1,632 is 2^-1631, which is 0 as a double."""
SCHEMA = 2
"""Of the JSON; another number where a reader of this one would be wrong."""
Unit = Literal["points", "sd", "raw"]
UNITS: dict[Unit, str] = {"points": "points", "sd": "SD", "raw": "raw"}
"""As a reader is told them."""


# ---------------------------------------------------------------------------------------------------- numbers


def decimals(value: float, digits: int = 3, signed: bool = False) -> str:
    """A value with so many decimals; NaN as a dash."""
    if math.isnan(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def with_ends(value: Interval, told: Callable[[float], str] = decimals) -> str:
    """A value and the ends of its interval, each as `told` writes it; without ends where there are none."""
    text = told(value.value)
    if math.isnan(value.value) or math.isnan(value.low):
        return text
    return f"{text} [{told(value.low)}, {told(value.high)}]"


def number(metric: Metric, value: float, signed: bool = False) -> str:
    """A value as printed: a share in per cent, a score with three decimals; NaN as a dash."""
    return decimals(100 * value, 1, signed) if metric.unit == "share" else decimals(value, 3, signed)


def interval(metric: Metric, value: Interval, signed: bool = False) -> str:
    """`80.3 [78.5, 82.0]`; without ends where there are none or where they are the value itself."""
    if value.low == value.high == value.value:
        return number(metric, value.value, signed)
    return with_ends(value, lambda end: number(metric, end, signed))


def value_told(e: Estimate) -> str:
    """The value of a cell with its interval, or that it is refused (`count_notes` says why)."""
    return "refused" if e.refused else interval(metrics.load(e.metric), e.value)


def ratio_told(e: Estimate) -> str:
    """The ratio to the base, without its interval."""
    return decimals(e.ratio.value, 2)


def signed(value: Interval) -> str:
    """A correlation with its interval, with two decimals; without ends where there are none."""
    return with_ends(value, lambda end: decimals(end, 2, signed=True))


def p_told(p: float) -> str:
    """A p-value with two digits; one that a double cannot hold is told as less than what it can, not as 0."""
    return f"<{SMALLEST_P:g}" if p < SMALLEST_P else f"{p:.2g}"


def percent(value: Interval) -> str:
    """A ratio with its interval, in whole per cent, without ends where there are none; a dash where it has no meaning."""
    return with_ends(value, lambda end: decimals(100 * end, 0))


def size_told(seeds: int, prompts: int, images: int) -> str:
    """How much stands behind a number: training seeds × prompts × images of each, of so many images of a seed."""
    return f"{seeds} × {prompts} × {images / prompts:g}"


def heading(metric: Metric, unit: bool = True) -> str:
    """The metric's title with an arrow to the good side, and with its unit where that is asked for."""
    arrow = {True: " ↑", False: " ↓", None: ""}[metric.higher_is_better]
    return f"{metric.title}{', %' if unit and metric.unit == 'share' else ''}{arrow}"


def dagger(estimate: Estimate) -> str:
    """† on a cell whose scorer the run was trained on."""
    return "†" if estimate.trained_on else ""


def sign(estimate: Estimate) -> str:
    """The sign of a difference, hollow where it does not survive Holm's correction."""
    return (SIGNS if estimate.survives else HOLLOW)[estimate.mark]


def sign_said(estimate: Estimate) -> str:
    """What the sign of a difference says, in words."""
    is_hollow = sign(estimate) != SIGNS[estimate.mark]
    return f"{estimate.mark}, not after Holm's correction" if is_hollow else estimate.mark


def metric_order(name: str) -> tuple[int, str]:
    """Goals first, in the order of `GOALS`, then the side effects by name."""
    return (GOALS.index(name) if name in GOALS else len(GOALS), name)


def headline_columns(comparison: Comparison, model: str) -> list[tuple[str, str]]:
    """The headline cells' (metric, prompt set): the judges that no run was trained on, then the goals in the order of `GOALS`."""
    judges, found = panel.judges(), comparison.of(model=model, headline=True)
    trained = {e.metric for e in found if e.trained_on}

    def order(column: tuple[str, str]) -> tuple[bool, bool, int, str, str]:
        name, prompt_set = column
        is_judge = name in judges
        return (not is_judge, is_judge and name in trained, *metric_order(name), prompt_set)

    return sorted({(e.metric, e.prompt_set) for e in found}, key=order)


def markdown_table(lines: Sequence[Sequence[str]], padded: bool = False) -> str:
    """A Markdown table, the first line its head; with padded columns it reads in a terminal too."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    head, *rest = cells
    if not padded:
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    told = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([told[0], rule, *told[1:]])


class Change(NamedTuple):
    """One cell of the matrix of changes."""

    value: float
    unit: Unit


def change(e: Estimate) -> Change:
    """What a run changed: a share in points, a score in the base's standard deviations over prompts, anything else as it is."""
    if metrics.load(e.metric).unit == "share":
        return Change(100 * e.difference.value, "points")
    if math.isnan(e.base_sd):
        return Change(e.difference.value, "raw")
    return Change(e.difference.value / e.base_sd, "sd")


def change_told(of: Change) -> str:
    """A change with its sign: of points one decimal, of anything else two."""
    return decimals(of.value, 1 if of.unit == "points" else 2, signed=True)


# --------------------------------------------------------------------------------------------------- markdown


def markdown(comparison: Comparison, command: str, counted: Sequence[str] = ()) -> str:
    """The comparison as a Markdown page.

    Args:
        comparison: the numbers.
        command: that made it.
        counted: more sentences for its foot.
    """
    parts = [_header(comparison, command)]
    for model in comparison.models():
        parts += [
            f"## {model}\n",
            f"### At a glance\n\n{at_a_glance(comparison, model)}\n",
            _kept(comparison, model),
            _wins(comparison, model),
            _agreement(comparison, model),
            _flips(comparison, model),
            _tax(comparison, model),
        ]
        for prompt_set in dict.fromkeys(e.prompt_set for e in comparison.of(model=model)):
            parts.append(_prompt_set(comparison, model, prompt_set))
    parts += [_conflicts(comparison), _footer(comparison, counted)]
    return "\n".join(part for part in parts if part)


def at_a_glance(comparison: Comparison, model: str) -> str:
    """Headline metrics by experiments, as a Markdown table; in brackets the ratio to the base, where one means something."""
    return markdown_table(glance(comparison, model), padded=True)


def glance(comparison: Comparison, model: str) -> list[list[str]]:
    """The cells of `at_a_glance`, header first."""
    experiments = _experiments(comparison, model)
    by_key = {(e.experiment, e.metric, e.prompt_set): e for e in comparison.of(model=model, headline=True)}
    lines = [["metric", "prompt set", *experiments]]
    for name, prompt_set in headline_columns(comparison, model):
        cells = [_glance(comparison, by_key.get((e, name, prompt_set))) for e in experiments]
        lines.append([heading(metrics.load(name)), prompt_set, *cells])
    return lines


def _glance(comparison: Comparison, e: Estimate | None) -> str:
    if e is None:
        return "–"
    if left_out(e):
        return marks(comparison, e)
    ratio = "" if math.isnan(e.ratio.value) else f" (×{ratio_told(e)})"
    return f"{value_told(e)}{ratio} {sign(e)}{marks(comparison, e)}".strip()


def left_out(e: Estimate) -> bool:
    """Whether a cell has no number at a glance: a judge that the run was trained on would be read as what it won."""
    return e.trained_on and metrics.load(e.metric).scorer in {_scorer(name) for name in panel.judges()}


def _scorer(metric: str) -> str:
    return metrics.load(metric).scorer


def _experiments(comparison: Comparison, model: str) -> list[str]:
    return list(dict.fromkeys(e.experiment for e in comparison.of(model=model)))


def _runs(comparison: Comparison, model: str) -> list[str]:
    return [name for name in _experiments(comparison, model) if name != comparison.against]


def _kept(comparison: Comparison, model: str) -> str:
    found = [r for r in comparison.retentions if r.model == model]
    if not found:
        return ""
    lines = [["run", "specialist", "metric", "prompt set", "raw ratio, %", "share of the gain, %"]]
    for r in found:
        ratios = [f"{percent(ratio)}{kept_marks(comparison, r)}" for ratio in (r.raw, r.gain)]
        lines.append([r.experiment, r.specialist, metrics.load(r.metric).title, r.prompt_set, *ratios])
    return (
        "### What the joint run keeps of each specialist\n\n"
        "Raw ratio of scores, as the paper's Table 5 has it (.895, .805, .960), and share of the gain over "
        f"{compared_with(comparison)} (.84, .66, "
        ".77). A dash: the ratio has no meaning, or the specialist's own gain is not distinguished from none. "
        "† one of the two was trained on this very scorer.\n\n"
        f"{markdown_table(lines, padded=True)}\n"
    )


def kept_marks(comparison: Comparison, r: Retention) -> str:
    """Behind what a run keeps of a specialist: † where one of the two was trained on the scorer, ‡ where the comparison was forced."""
    both = (r.experiment, r.specialist)
    forced = _footmarks(comparison, r.model, r.prompt_set, both, _scorer(r.metric))
    return ("†" if _kept_trained(comparison, r) else "") + forced


def _kept_trained(comparison: Comparison, r: Retention) -> bool:
    cells = comparison.of(model=r.model, prompt_set=r.prompt_set, metric=r.metric, trained_on=True)
    return any(e.experiment in (r.experiment, r.specialist) for e in cells)


def compared_with(comparison: Comparison) -> str:
    """What all is compared with, in a sentence."""
    return "the base" if comparison.against == BASE else comparison.against


def _wins(comparison: Comparison, model: str) -> str:
    found = [o for o in comparison.outcomes if o.model == model]
    if not found:
        return ""
    header = ["judge", "prompt set", "run", "win", "tie", "loss", "half-tie", "ties dropped"]
    lines = [[*header, "prompts won : lost", "p"]]
    order = _experiments(comparison, model)
    for o in sorted(
        found, key=lambda o: (o.prompt_set, order.index(o.experiment), o.trained_on, *metric_order(o.metric))
    ):
        shares = [o.win, o.tie, o.loss, o.half_tie, o.ties_dropped]
        scorer = metrics.load(o.metric).scorer
        lines.append(
            [judge(comparison, model, o.prompt_set, [o.experiment], scorer, o.trained_on)]
            + [o.prompt_set, o.experiment]
            + [decimals(100 * share, 1) for share in shares]
            + [f"{o.prompts_won} : {o.prompts_lost}", p_told(o.sign_p)]
        )
    return (
        f"### Win, tie and loss against {compared_with(comparison)}\n\nIn per cent of pairs at the same prompt and noise; p is the exact sign test "
        f"over prompts, uncorrected; corrected it is in the tables below.\n\n{markdown_table(lines, padded=True)}\n"
    )


def judge(
    comparison: Comparison,
    model: str,
    prompt_set: str,
    experiments: Sequence[str],
    scorer: str,
    trained_on: bool,
) -> str:
    """A judge of some runs with its marks: † where one was trained on it, ‡ where the comparison was forced."""
    return (
        scorer + ("†" if trained_on else "") + _footmarks(comparison, model, prompt_set, experiments, scorer)
    )


def _agreement(comparison: Comparison, model: str) -> str:
    found = [a for a in comparison.panel.agreements if a.model == model]
    if not found:
        return ""
    trained = _trained(comparison, model)
    lines = [["prompt set", "run", "judges", "Kendall's τ-b [95 %]", "pairs of pictures", "prompts"]]
    for a in found:
        names = " and ".join(
            judge(comparison, model, a.prompt_set, (a.experiment,), scorer, (a.experiment, scorer) in trained)
            for scorer in a.judges
        )
        lines.append([a.prompt_set, a.experiment, names, signed(a.tau), f"{a.pictures:,}", f"{a.prompts:,}"])
    return (
        "### Do the judges agree?\n\nOver a run's pictures, each by how much a judge prefers it to that of "
        f"{compared_with(comparison)}: 1 is the same order, 0 none. Pairs of pictures are at the same prompt and noise, of the training seeds that the tables "
        f"set beside each other. Intervals are those of every table here: prompts are resampled, and training seeds above them.\n\n{markdown_table(lines, padded=True)}\n"
    )


def _trained(comparison: Comparison, model: str) -> set[tuple[str, str]]:
    """Experiment and scorer, where the one was trained on the other."""
    return {
        (e.experiment, metrics.load(e.metric).scorer) for e in comparison.of(model=model, trained_on=True)
    }


def _flips(comparison: Comparison, model: str) -> str:
    if not any(a.model == model for a in comparison.panel.agreements):
        return ""
    found = [f for f in comparison.panel.flips if f.model == model]
    told = (
        "### Where judges order two checkpoints differently\n\nEach by a win rate whose interval leaves out one half; "
        "† one of the two was trained on that judge. Where both have several training seeds that are not the same, each of the one is beside each of the other."
    )
    if not found:
        return f"{told} No such pair.\n"
    lines = [["prompt set", "one", "other", "for the one", "for the other"]]
    for f in found:
        lines.append(
            [
                f.prompt_set,
                f.first,
                f.second,
                *(verdicts(comparison, f, swapped) for swapped in (False, True)),
            ]
        )
    return f"{told}\n\n{markdown_table(lines, padded=True)}\n"


def verdicts(comparison: Comparison, f: panel.Flip, swapped: bool) -> str:
    """What the judges say that are for the first of two checkpoints, or, swapped, for the second."""
    told = (verdict(comparison, f, v, swapped) for v in (f.for_second if swapped else f.for_first))
    return "; ".join(f"{name} {rate}" for name, rate in told)


def verdict(comparison: Comparison, f: panel.Flip, v: panel.Verdict, swapped: bool) -> tuple[str, str]:
    """One judge of two checkpoints, and its win rate of the first over the second, or, swapped, of the second over the first."""
    metric = metrics.load(v.metric)
    rate = Interval(1 - v.rate.value, 1 - v.rate.high, 1 - v.rate.low) if swapped else v.rate
    name = judge(comparison, f.model, f.prompt_set, (f.first, f.second), metric.scorer, v.trained_on)
    return name, interval(metric, rate)


def _tax(comparison: Comparison, model: str) -> str:
    runs = _runs(comparison, model)
    if not runs:
        return ""
    lines = [["metric", "prompt set", "in", *runs]]
    for name, prompt_set in _tax_lines(comparison, model):
        found = {e.experiment: e for e in comparison.of(model=model, metric=name, prompt_set=prompt_set)}
        unit = next((UNITS[change(found[run]).unit] for run in runs if run in found), "")
        cells = [
            _tax_cell(comparison, found[run])
            if run in found
            else unscored.why_empty(comparison, model, run, name, prompt_set)
            for run in runs
        ]
        lines.append([heading(metrics.load(name), unit=False), prompt_set, unit, *cells])
    return (
        f"### What every run changed\n\nDifferences to {compared_with(comparison)}: of a share in points, of a score in standard deviations of "
        f"its prompts' means, raw where a prompt has no value of its own.\n\n{markdown_table(lines, padded=True)}\n"
    )


def _tax_lines(comparison: Comparison, model: str) -> list[tuple[str, str]]:
    """Metric and prompt set of every line of the matrix, those among them that are left out."""
    runs = set(_runs(comparison, model))
    found = {(e.metric, e.prompt_set) for e in comparison.of(model=model) if e.experiment in runs}
    found |= unscored.left_out_lines(comparison, model)
    return sorted(found, key=lambda line: (line[1], *metric_order(line[0])))


def _tax_cell(comparison: Comparison, e: Estimate) -> str:
    return f"{change_told(change(e))} {sign(e)}{marks(comparison, e)}".strip()


def _prompt_set(comparison: Comparison, model: str, prompt_set: str) -> str:
    header = ["metric", "run", "value [95 %]", f"difference to {comparison.against} [95 %]", ""]
    lines = [[*header, "p (Holm)", "seeds × prompts × images"]]
    found = comparison.of(model=model, prompt_set=prompt_set)
    for name in sorted({e.metric for e in found}, key=metric_order):
        metric = metrics.load(name)
        for e in (e for e in found if e.metric == name):
            n = size_told(e.seeds, e.prompts, e.images)
            value = f"{value_told(e)}{marks(comparison, e)}"
            p = "" if math.isnan(e.p_holm) else f"{p_told(e.p_holm)} {e.test}"
            difference = interval(metric, e.difference, True)
            lines.append(
                [heading(metric), e.experiment, value, difference, f"{sign(e)} {e.mark}".strip(), p, n]
            )
    return f"### {prompt_set}\n\n{markdown_table(lines, padded=True)}\n"


# ------------------------------------------------------------------------------------------------------ notes


def method_notes(comparison: Comparison) -> list[str]:
    """What a reader has to know about the numbers, a sentence or two each."""
    margins = "; ".join(
        f"{metrics.load(n).scorer} {m:g}"
        for n, m in sorted(comparison.tie_margins.items())
        if _is_scored(comparison, n)
    )
    the = compared_with(comparison)
    notes = [
        f"Intervals are 95 % percentile intervals of a bootstrap ({comparison.resamples:,} resamples, seed "
        f"{comparison.seed}). Prompts are resampled with all their images, and training seeds above them, where there are "
        "several; the resamples are stretched to Student's tails at the degrees of freedom that the few seeds, or the few prompts that decide, "
        "leave; fewer than five prompts have Student's interval itself. The weights are shared by all cells of a prompt set, so differences are paired: same prompt, same image index, same noise.",
        "With one training seed an interval speaks of that run only, not of the method; with two or three it is "
        "still a rough statement about the method.",
        f"▲ better, ▼ worse, ◆ changed (not a quality), ≈ not distinguished from {the}: the interval of the "
        "difference contains 0.",
        f"Beside the intervals stand tests. Over prompts, between these very checkpoints: McNemar's exact test for pass and fail (with several "
        "images of a prompt: prompts on which it passes more often against those on which less), an exact sign test for win rates, "
        "Wilcoxon's signed ranks for scores. Where a prompt has no value of its own: the stretched resamples of the interval, of which p is that of the interval, "
        f"training seeds and all. Holm's correction is over all {comparison.family} differences of this table, as one family; △ ▽ ◇ do not survive it.",
        "† the run was trained on this very scorer: read the held-out judge and the gold measure beside it. At a glance such a judge's "
        "number is left out; it stands in the tables below.",
    ]
    notes += strata_notes(comparison.strata)
    if margins:
        notes.append(
            f"Win rates count a tie as half. A tie is a difference of at most, fixed beforehand: {margins}."
        )
    if any(name.startswith("parity") and _is_scored(comparison, name) for name in metrics.names()):
        notes.append(
            "The parity gap (Eq 12) of a perfectly fair generator is not 0: its floor is "
            + ", ".join(f"{parity_floor(n):.3f} with {n}" for n in (8, 12, 16))
            + " usable images of a prompt, exactly. The gap over its floor takes each prompt's own number."
        )
    notes.append(
        "A share has Wilson's interval at its effective number of independent observations; where it is 0 or 100 % in every prompt, with the "
        "prompts as n."
    )
    return notes


def strata_notes(strata: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for every prompt set that is resampled inside strata, with their names."""
    return [
        f"{prompt_set} is resampled inside its {len(names)} strata, each of which keeps its share of the prompts: {', '.join(names)}."
        for prompt_set, names in strata.items()
    ]


def _is_scored(comparison: Comparison, name: str) -> bool:
    return metrics.load(name).scorer in comparison.versions


def count_notes(comparison: Comparison) -> list[str]:
    """What was not counted, or does not hold up: nothing is dropped in silence."""
    notes = [*unscored.left_out_notes(comparison), *unscored.unequal_notes(comparison)]
    for (model, scorer, prompt_set), total in _missing_by(comparison).items():
        notes.append(f"{model}: not applicable (NaN), {scorer} on {prompt_set}: {total}.")
    for e in comparison.estimates:
        if e.unpaired and e.experiment != comparison.against:
            notes.append(
                f"{e.model}: {e.experiment}, {metrics.load(e.metric).title} on {e.prompt_set}: {e.unpaired} of "
                f"{e.seeds * e.prompts} prompts are in no difference, since the run or {compared_with(comparison)} has no usable image there."
            )
    notes += _refusals(comparison)
    marks = [e for e in comparison.estimates if e.mark not in ("", "not distinguished")]
    weak = [e for e in marks if not e.survives]
    listed = "; ".join(f"{e.experiment}, {metrics.load(e.metric).title}, {e.prompt_set}" for e in weak)
    notes.append(
        f"{len(weak)} of {len(marks)} marks do not survive Holm's correction over all {comparison.family} differences"
        f"{': ' + listed if weak else ''}."
    )
    notes += _alone(comparison)
    single = sorted(
        {e.experiment for e in comparison.estimates if e.seeds == 1 and e.experiment != comparison.against}
    )
    if single:
        notes.append(f"One training seed only: {', '.join(single)}.")
    read = {metrics.load(name).scorer for name in metrics.names(comparison.versions)}
    if unread := sorted({*comparison.versions} - read):
        notes.append(f"No metric reads the scores of {', '.join(unread)}: they are in no table.")
    return [*notes, *unscored.not_scored_notes(comparison), *comparison.remarks]


def _alone(comparison: Comparison) -> list[str]:
    """A sentence for every prompt set on which some difference is that of one prompt, or of prompts whose resamples tell nothing (`evals.stats.are_beside`)."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for e in comparison.estimates:
        if math.isnan(e.difference.low) and not math.isnan(e.difference.value):
            alone = e.prompts < 2 or e.unpaired
            why = (
                "fewer than two prompts have a value of both sides"
                if alone
                else "all resamples of the prompts say the same"
            )
            cell = f"{e.experiment}, {metrics.load(e.metric).title}"
            found.setdefault((e.model, e.prompt_set, why), []).append(cell)
    return [
        f"{model}: no interval and no mark on {prompt_set}, since {why}: {'; '.join(cells)}."
        for (model, prompt_set, why), cells in found.items()
    ]


def _refusals(comparison: Comparison) -> list[str]:
    """A sentence for every run of which metrics are refused on a prompt set, with the share of images that they could not be made of."""
    refused: dict[tuple[str, str, str, str], list[Estimate]] = {}
    for e in comparison.estimates:
        if e.refused:
            key = (e.model, e.experiment, e.prompt_set, metrics.load(e.metric).scorer)
            refused.setdefault(key, []).append(e)
    notes = []
    for (model, experiment, prompt_set, scorer), cells in refused.items():
        titles = ", ".join(metrics.load(e.metric).title for e in cells)
        alone = ", and with it every difference" if experiment == comparison.against else ""
        notes.append(
            f"{model}: refused for {experiment} on {prompt_set}{alone}: {titles}: {100 * cells[0].missing_share:.1f} % of its images have no {scorer}, "
            f"above {100 * most_missing(cells[0].metric):.0f} %, and a gap would be that of what happened to be readable."
        )
    return notes


def _missing_by(comparison: Comparison) -> dict[tuple[str, str, str], str]:
    """NaN counts per scorer and prompt set, told per experiment."""
    widest: dict[tuple[str, str, str], dict[str, Estimate]] = {}
    for e in comparison.estimates:
        if e.missing:
            of_scorer = widest.setdefault((e.model, metrics.load(e.metric).scorer, e.prompt_set), {})
            # a metric of some of the prompts has not seen all of the scorer's images
            of_scorer[e.experiment] = max(of_scorer.get(e.experiment, e), e, key=lambda e: e.images)
    return {
        key: ", ".join(f"{e.experiment} {e.missing} of {e.seeds * e.images}" for e in of_scorer.values())
        for key, of_scorer in widest.items()
    }


def conflicts(comparison: Comparison) -> list[str]:
    """In what forced comparisons differ, each once; a cell's footnote ‡n is the n-th."""
    return list(dict.fromkeys(e.conflict for e in comparison.estimates if e.conflict))


def footnotes(comparison: Comparison) -> Iterator[tuple[int, str]]:
    """The conflicts, each with the number of its footmark."""
    return enumerate(conflicts(comparison), start=1)


def marks(comparison: Comparison, e: Estimate) -> str:
    """Behind a number: † where the run was trained on its scorer, ‡ and a number where the comparison was forced."""
    return dagger(e) + _footmark(comparison, e)


def _footmark(comparison: Comparison, e: Estimate) -> str:
    return f"‡{conflicts(comparison).index(e.conflict) + 1}" if e.conflict else ""


def _footmarks(
    comparison: Comparison, model: str, prompt_set: str, experiments: Sequence[str], scorer: str
) -> str:
    """The ‡ of all cells that a number of several cells rests on, each once."""
    cells = _cells(comparison, model, prompt_set, experiments, [scorer])
    return "".join(dict.fromkeys(_footmark(comparison, e) for e in cells))


def _cells(
    comparison: Comparison, model: str, prompt_set: str, experiments: Sequence[str], scorers: Sequence[str]
) -> list[Estimate]:
    return [
        e
        for e in comparison.of(model=model, prompt_set=prompt_set)
        if e.experiment in experiments and metrics.load(e.metric).scorer in scorers
    ]


def _conflicts(comparison: Comparison) -> str:
    if not conflicts(comparison):
        return ""
    told = "\n".join(f"- ‡{place} {conflict}." for place, conflict in footnotes(comparison))
    return (
        "## Forced\n\nThese cells compare what cannot be compared: their differences may be the evaluation's, not the "
        f"checkpoint's.\n\n{told}\n"
    )


def _header(comparison: Comparison, command: str) -> str:
    versions = ", ".join(f"{scorer} {version}" for scorer, version in sorted(comparison.versions.items()))
    notes = "\n".join(f"- {note}" for note in method_notes(comparison))
    return f"# Results\n\nGenerated by `{command}`. Do not edit.\n\n{notes}\n- Scorer versions: {versions}.\n"


def _footer(comparison: Comparison, counted: Sequence[str]) -> str:
    return "## Counted\n\n" + "\n".join(f"- {note}" for note in (*count_notes(comparison), *counted)) + "\n"


# -------------------------------------------------------------------------------------------------------- CSV


def tidy(comparison: Comparison) -> str:
    """The estimates as CSV, a row each, intervals in three columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for place, e in enumerate(comparison.estimates):
        cells: dict[str, str] = {}
        for f in fields(Estimate):
            value = getattr(e, f.name)
            parts = (
                zip(("", "_low", "_high"), value, strict=True)
                if isinstance(value, Interval)
                else [("", value)]
            )
            cells |= {f"{f.name}{end}": _plain(part) for end, part in parts}
        if place == 0:
            writer.writerow(cells)
        writer.writerow(cells.values())
    return buffer.getvalue()


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(int(value)) if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------------------------ LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ a bracket would be an option
    "]": "{]}",
    **{"▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "◆": r"$\blacklozenge$", "≈": r"$\approx$"},
    **{"△": r"$\vartriangle$", "▽": r"$\triangledown$", "◇": r"$\lozenge$", "τ": r"$\tau$"},
    **{"†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$", "−": r"$-$", "↑": r"$\uparrow$"},
    **{"↓": r"$\downarrow$", "–": "--"},
    **{"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}"},
    **{"ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}"},
}
_ACCENTS = dict(
    zip(
        "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327",
        "`'^~=u.\"rHvdc",
        strict=True,
    )
)
"""Combining marks as the accents that LaTeX has for every font."""


def escaped(text: str) -> str:
    """A text that LaTeX prints as it is, letters with their accents; what no font of a plain document has is printed by its number."""
    return "".join(map(_escaped_character, unicodedata.normalize("NFC", " ".join(text.split()))))


def _escaped_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii() and character.isprintable():
        return character
    letter, *marks = list(unicodedata.normalize("NFD", character))
    if len(marks) == 1 and marks[0] in _ACCENTS and letter.isascii() and letter.isalpha():
        # an accent above takes the place of the dot
        under = f"\\{letter}" if letter in "ij" and marks[0] not in "\u0323\u0327" else letter
        return f"\\{_ACCENTS[marks[0]]}{{{under}}}"
    return f"U+{ord(character):04X}"


def latex(comparison: Comparison, command: str) -> str:
    """The table at a glance of every model, as a booktabs tabular that a document takes in."""
    parts = [
        f"% Generated by {' '.join(command.split())}. Do not edit. Needs \\usepackage{{booktabs,amssymb}}.",
        f"% 95 % intervals, {comparison.resamples:,} resamples; signs and daggers as in the Markdown table.",
        *(f"% ddagger {place}, forced: {escaped(conflict)}." for place, conflict in footnotes(comparison)),
    ]
    for model in comparison.models():
        header, *lines = glance(comparison, model)
        parts += [
            f"% {' '.join(model.split())}",
            f"\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}",
            r"\toprule",
        ]
        parts += [
            _latex_line(header),
            r"\midrule",
            *map(_latex_line, lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join(parts) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


# ------------------------------------------------------------------------------------------------------- JSON


def machine(comparison: Comparison, command: str, counted: Sequence[str] = ()) -> dict[str, Any]:
    """The comparison for machines; NaN is null, an interval an object of value, low and high."""
    files = list(dict.fromkeys(file for origin in comparison.origins.values() for file in origin.file))
    content = {
        "schema": SCHEMA,
        "command": command,
        "against": comparison.against,
        "level": stats.LEVEL,
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "family": {"correction": "Holm", "differences": comparison.family},
        "files": files,
        "versions": comparison.versions,
        "tie_margins": comparison.tie_margins,
        "strata": comparison.strata,
        "cells": [_machine_cell(comparison, e) for e in comparison.estimates],
        "outcomes": [
            _machine_of_cells(comparison, o, [o.experiment], [_scorer(o.metric)]) for o in comparison.outcomes
        ],
        "retentions": [_machine_retention(comparison, r) for r in comparison.retentions],
        "agreements": [
            _machine_of_cells(comparison, a, [a.experiment], a.judges) for a in comparison.panel.agreements
        ],
        "flips": [_machine_flip(comparison, f) for f in comparison.panel.flips],
        "tax": [_machine_tax(comparison, model) for model in comparison.models()],
        "left_out": [
            dict(zip(("model", "experiment", "prompt_set", "scorer"), key, strict=True))
            for key in comparison.left_out
        ],
        "unequal": [
            dict(zip(("model", "experiment", "prompt_set", "scorer", "why"), (*key, why), strict=True))
            for key, why in comparison.unequal.items()
        ],
        "conflicts": conflicts(comparison),
        "notes": {"method": method_notes(comparison), "counted": [*count_notes(comparison), *counted]},
    }
    known = _null(content)
    assert isinstance(known, dict)
    return known


def _machine_cell(comparison: Comparison, e: Estimate) -> dict[str, Any]:
    metric = metrics.load(e.metric)
    origin = comparison.origins[e.model, e.experiment, e.prompt_set, metric.scorer]
    n = {
        "seeds": e.seeds,
        "prompts": e.prompts,
        "images": e.images,
        "missing": e.missing,
        "unpaired": e.unpaired,
    }
    told = {f.name: getattr(e, f.name) for f in fields(Estimate) if f.name not in n}
    value, unit = change(e)
    return {
        **told,
        "title": metric.title,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "n": n,
        "change": {"value": value, "unit": unit},
        "survives_holm": e.survives,
        "left_out_at_a_glance": e.headline and left_out(e),
        "provenance": {
            "scorer": metric.scorer,
            "tie_margin": comparison.tie_margins.get(e.metric),
            **{
                f"{name}{'' if name == 'prompts' else 's'}": list(told)
                for name, told in origin._asdict().items()
            },
        },
    }


def _machine_tax(comparison: Comparison, model: str) -> dict[str, Any]:
    runs = _runs(comparison, model)
    lines = []
    for name, prompt_set in _tax_lines(comparison, model):
        found = {e.experiment: e for e in comparison.of(model=model, metric=name, prompt_set=prompt_set)}
        cells = [_machine_change(found[run]) if run in found else None for run in runs]
        lines.append({"metric": name, "prompt_set": prompt_set, "cells": cells})
    return {"model": model, "runs": runs, "lines": lines}


def _machine_change(e: Estimate) -> dict[str, Any]:
    told = {name: getattr(e, name) for name in ("mark", "trained_on", "conflict")}
    return {**change(e)._asdict(), **told, "survives_holm": e.survives}


def _machine_of_cells(
    comparison: Comparison,
    of: Outcome | Retention | panel.Agreement | panel.Flip,
    experiments: Sequence[str],
    scorers: Sequence[str],
) -> dict[str, Any]:
    """What rests on several cells, with all their conflicts, each once."""
    cells = _cells(comparison, of.model, of.prompt_set, experiments, scorers)
    return {**_known(of), "conflict": "; ".join(dict.fromkeys(e.conflict for e in cells if e.conflict))}


def _machine_retention(comparison: Comparison, r: Retention) -> dict[str, Any]:
    told = _machine_of_cells(comparison, r, [r.experiment, r.specialist], [_scorer(r.metric)])
    return {**told, "trained_on": _kept_trained(comparison, r)}


def _machine_flip(comparison: Comparison, f: panel.Flip) -> dict[str, Any]:
    scorers = [_scorer(v.metric) for v in (*f.for_first, *f.for_second)]
    return _machine_of_cells(comparison, f, [f.first, f.second], scorers)


def _known(of: Any) -> dict[str, Any]:
    return {f.name: getattr(of, f.name) for f in fields(of)}


def _null(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Interval):
        return {name: _null(end) for name, end in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    if isinstance(value, panel.Verdict):
        return _null(asdict(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------------------------------------------ files


def write(
    paths: Sequence[Path | str],
    out: Path,
    command: str,
    resamples: int = stats.RESAMPLES,
    against: str = BASE,
    force: bool = False,
    latex_out: Path | None = None,
    json_out: Path | None = None,
) -> Comparison:
    """Read the score files, compare, and write the table at `out` (.md), beside it (.csv) and, where asked for, as LaTeX and JSON.

    Raises:
        ValueError: as `evals.rows.read`, `evals.compare.compare` and `evals.asides.read`; or `out` is not a .md file.
    """
    if out.suffix != ".md":
        raise ValueError(f"--out must be a .md file, not {out}; the numbers go beside it as .csv")
    if not force:
        asides.refuse_two_sizes(paths)
    comparison = compare(score_rows.read(paths, refuse=not force), resamples, against=against, force=force)
    counted = asides.read(paths)
    write_text(markdown(comparison, command, counted), out)
    write_text(tidy(comparison), out.with_suffix(".csv"))
    if latex_out is not None:
        write_text(latex(comparison, command), latex_out)
    if json_out is not None:
        content = json.dumps(
            machine(comparison, command, counted), indent=1, ensure_ascii=False, allow_nan=False
        )
        write_text(content + "\n", json_out)
    return comparison
