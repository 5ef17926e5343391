"""The report: one self-contained HTML page per comparison, from score rows, pictures and run directories.

Numbers come from `evals.compare`, tones from `evals.fairness`, pictures from `<images>/<run>/<prompt set>/<prompt id>/<index>.png`, curves,
cost and gates from the run directories (`evals.report_runs`); a run's name is `<experiment>-<model>-<seed>`. Tables of `python -m evals curve` are taken
from the folder that holds the run directories and from these. What is not there is said on the page.

The template is report.html.j2, autoescaped: prompts and names may hold anything. report.js filters what is shown and opens the rows behind a
number (`evals.report_data`); the page's policy allows that script alone, by its hash, and no request. Without scripts everything is shown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image

import prompts
from evals import (
    asides,
    compare,
    fairness,
    layout,
    metrics,
    panel,
    report_data,
    report_runs,
    stats,
    svg,
    tables,
    unscored,
)
from evals import rows as score_rows
from evals.compare import Comparison, Estimate
from evals.fairness import Fairness
from evals.files import write_text
from evals.report_data import cell_id
from evals.rgb import as_png, as_rgb
from evals.rows import BASE
from prompts import Prompt

SAMPLE = 6
"""Random pictures per prompt set."""
EXTREMES = 4
"""Biggest wins, biggest losses, and pictures drawn at random, per experiment and prompt set."""
STRIPS = 3
"""Occupations whose portraits are all shown."""
DECIDING = (
    *("gold_utility", "clip_judge", "pickscore", "hpsv2", "clip_score", "aesthetic", "imagereward"),
    *("geneval", "objects_grounding_dino", "objects"),
)
"""Wins and losses are chosen by the first of these that was scored and that the run was not trained on: gold before the panel's judges."""
SMALL, SHRUNK, MANY = 128, 256, 16
"""Pictures up to SMALL pixels are embedded as they are; larger ones are shrunk to SHRUNK, or to SMALL where there are more than MANY
experiments times prompt sets, so that the page stays light."""


DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no picture, or none to be shown."""


class Picture(NamedTuple):
    """One picture of the page; `data` is None where the file is missing, damaged or another than was scored."""

    data: str | None
    alt: str


@dataclass
class Pictures:
    """Reads pictures, and remembers how many of each run cannot be shown."""

    folder: Path
    side: int = SHRUNK
    """Of larger ones, in pixels."""
    missing: dict[str, int] = field(default_factory=dict)
    given: Mapping[str, Path] = field(default_factory=dict)
    """Folders of pictures that were given, by run."""
    scored: Mapping[tuple[str, str, str, int], set[str]] = field(default_factory=dict)
    """What `evals.rows.picture_hash` the rows have, by run, prompt set, prompt id and index; none where it is not known."""
    index: layout.Index = field(default_factory=layout.Index)

    def get(self, run: str, prompt_set: str, prompt_id: str, index: int, text: str) -> Picture:
        """A picture as a data URI."""
        folder = self.given.get(run, self.folder / run)
        try:
            path = self.index.path_of(folder, prompt_set, prompt_id, index)
        except ValueError:
            # in no layout any more: the page is of the scores, and says how many pictures it has not
            path = folder
        # by name: a folder of pictures may be a link to another disk
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.given.get(run, self.folder)))
        if not inside or not path.is_file():
            self.missing[run] = self.missing.get(run, 0) + 1
            return Picture(None, f"{run}: {text}, image {index} (no file)")
        try:
            data, found = _shown(path, self.side)
        except DAMAGE:
            self.missing[run] = self.missing.get(run, 0) + 1
            return Picture(None, f"{run}: {text}, image {index} (cannot be opened)")
        if found not in self.scored.get((run, prompt_set, prompt_id, index), {found}):
            self.missing[run] = self.missing.get(run, 0) + 1
            return Picture(None, f"{run}: {text}, image {index} (another picture than the one scored)")
        return Picture(data, f"{run}: {text}, image {index}")


def _shown(path: Path, side: int) -> tuple[str, str]:
    """A picture as a data URI, and the hash that its score rows have."""
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as picture:
        rgb, converted = as_rgb(picture)
        found = score_rows.picture_hash(rgb.size, rgb.tobytes())
        if max(rgb.size) > SMALL:
            small = rgb.copy()
            small.thumbnail((side, side))
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=85)
            content, kind = buffer.getvalue(), "webp"
        # the page has another ground than white, and a browser turns a photograph as its file says
        elif converted or picture.format != "PNG":
            content = as_png(np.asarray(rgb))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", found


def write(
    paths: Sequence[Path | str],
    runs: Path,
    images: Path,
    out: Path,
    command: str,
    resamples: int = stats.RESAMPLES,
    against: str = BASE,
    force: bool = False,
) -> None:
    """Read the score files, compare (see `evals.compare.compare` for `against` and `force`), and write the page.

    Raises:
        ValueError: as `evals.rows.read` and `evals.compare.compare`.
    """
    if not force:
        asides.refuse_two_sizes(paths)
    rows = score_rows.read(paths, refuse=not force)
    comparison = compare.compare(rows, resamples, against=against, force=force)
    counted, given, weights = asides.read(paths), asides.folders(paths), asides.weights(paths)
    write_text(render(rows, comparison, runs, images, command, counted, given, weights), out)


def render(
    rows: pd.DataFrame,
    comparison: Comparison,
    runs: Path,
    images: Path,
    command: str,
    counted: Sequence[str] = (),
    given: Mapping[str, Path] | None = None,
    weights: Mapping[str, Collection[str]] | None = None,
) -> str:
    """The page of a comparison.

    Args:
        rows: that it was made of.
        comparison: the numbers.
        runs: folder of run directories.
        images: folder of the scored pictures.
        command: that makes the page.
        counted: more sentences for its foot.
        given: folders of pictures that were given, by run.
        weights: which ones drew the scored pictures, by run (`evals.asides.weights`).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = comparison.compared(rows)
    asked, untold = _asked(rows)
    sections = [
        _model(
            model, rows[rows["model"] == model], comparison, runs, images, asked, given or {}, weights or {}
        )
        for model in comparison.models()
    ]
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        models=sections,
        untold=untold,
        command=command,
        method=tables.method_notes(comparison),
        against=comparison.against,
        the=tables.compared_with(comparison),
        conflicts=tables.conflicts(comparison),
        counted=[*_forced(comparison), *tables.count_notes(comparison), *counted],
        versions=sorted(comparison.versions.items()),
        extremes=EXTREMES,
        sample=SAMPLE,
        facets=_facets(rows, comparison, asked),
        files=_files(rows),
        data=report_data.packed(report_data.content(rows, comparison, asked)),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


class Facet(NamedTuple):
    """Something to filter by: its choices are (value, how it is shown, prompt sets that it stands for)."""

    name: str
    title: str
    choices: list[tuple[str, str, list[str]]]


def _facets(rows: pd.DataFrame, comparison: Comparison, asked: dict[str, dict[str, Prompt]]) -> list[Facet]:
    """What can be filtered by; a facet with one choice is none."""

    def same(values: Iterable[str]) -> list[tuple[str, str, list[str]]]:
        return [(value, value, []) for value in dict.fromkeys(values)]

    names = sorted({e.metric for e in comparison.estimates}, key=tables.metric_order)
    suites: dict[str, list[str]] = {}
    for suite, prompt_set in rows[["suite", "prompt_set"]].drop_duplicates().to_numpy():
        suites.setdefault(str(suite), []).append(str(prompt_set))
    tags = sorted({tag for some in asked.values() for prompt in some.values() for tag in prompt.tags})
    found = [
        Facet("model", "Model", same(comparison.models())),
        Facet("suite", "Suite", [(suite, suite, sets) for suite, sets in suites.items()]),
        Facet("set", "Prompt set", same(map(str, rows["prompt_set"].unique()))),
        Facet("metric", "Metric", [(name, metrics.load(name).title, []) for name in names]),
        Facet("run", "Run", same(e.experiment for e in comparison.estimates)),
        Facet("tag", "Tag of the prompts", same(tags)),
    ]
    return [facet for facet in found if len(facet.choices) > 1]


def _files(rows: pd.DataFrame) -> list[tuple[str, int]]:
    """The score files, and how many rows are of each."""
    if "file" not in rows:
        return []
    return [(str(file), int(count)) for file, count in rows["file"].value_counts(sort=False).items()]


def _model(
    name: str,
    rows: pd.DataFrame,
    comparison: Comparison,
    runs: Path,
    images: Path,
    asked: dict[str, dict[str, Prompt]],
    given: Mapping[str, Path],
    weights: Mapping[str, Collection[str]],
) -> dict[str, Any]:
    """Everything that the template shows of one model."""
    experiments = list(dict.fromkeys(e.experiment for e in comparison.of(model=name)))
    colours = {experiment: f"c{index % 8}" for index, experiment in enumerate(experiments)}
    many = len(experiments) * rows["prompt_set"].nunique() > MANY
    pictures = Pictures(images, SMALL if many else SHRUNK, given=given, scored=_scored(rows))
    tags = {s: sorted({tag for prompt in some.values() for tag in prompt.tags}) for s, some in asked.items()}
    found = report_runs.read(runs, rows[rows["experiment"].isin(experiments)], weights)
    shown = [run for run in found if not run.other]
    tuned = [experiment for experiment in experiments if experiment != comparison.against]
    over = report_runs.over_optimisation(runs, found, weights)
    section = {
        "name": name,
        "experiments": experiments,
        "tuned": tuned,
        "colours": colours,
        "headline": headline(comparison, name),
        "sentences": [(e, gain(comparison, name, e), cost(comparison, name, e)) for e in tuned],
        "facts": _facts(comparison, name),
        "goals": [
            _figure(comparison, name, *column, colours, glance=True)
            for column in _goal_columns(comparison, name)
        ],
        "tables": _tables(comparison, name, colours, list(asked)),
        "retentions": [_kept(comparison, r) for r in comparison.retentions if r.model == name],
        "tags": tags,
        "samples": _samples(rows, experiments, pictures, asked),
        "strips": _strips(rows, experiments, pictures, asked),
        "extremes": [_extremes(rows, experiment, pictures, asked, comparison) for experiment in tuned],
        "tones": _tones(rows, comparison, asked),
        "tax": _tax(comparison, name, tuned),
        "judges": _judges(comparison, name),
        "curves": report_runs.curves(shown, colours),
        "over": over.curves,
        "cost": [report_runs.cost(run) for run in shown],
        "gates": [report_runs.gates(run) for run in shown if run.experiment != BASE],
        "others": [*((run.experiment, run.other) for run in found if run.other), *over.others],
        "unproven": [run.name for run in shown if (run.card or run.log) and not run.is_proven],
        "problems": [*(problem for run in shown for problem in run.problems), *over.problems],
    }
    return {**section, "missing": sorted(pictures.missing.items())}


def _asked(rows: pd.DataFrame) -> tuple[dict[str, dict[str, Prompt]], dict[str, str]]:
    """The prompts of every set by id, and a sentence for each set of which they cannot be told: ids stand for its texts, and it has no tags."""
    asked: dict[str, dict[str, Prompt]] = {}
    untold: dict[str, str] = {}
    for name, scored in rows.groupby("prompt_set", sort=False)["prompts"].unique().items():
        try:
            asked[str(name)] = _prompts(str(name), scored)
        except ValueError as error:
            asked[str(name)] = {}
            untold[str(name)] = (
                f"{name}: ids stand for the texts of its prompts, and none has a tag: {error}."
            )
    return asked, untold


def _prompts(prompt_set: str, scored: Iterable[str]) -> dict[str, Prompt]:
    """Prompts by id.

    Raises:
        ValueError: the set cannot be read, or is not the prompts whose hashes the rows have: an id may now be that of another text.
    """
    found = prompts.load(prompt_set)
    now = prompts.digest(found)
    if others := sorted({*scored} - {now}):
        raise ValueError(f"the set is the prompts {now} now, and those scored were {' and '.join(others)}")
    return {prompt.id: prompt for prompt in found}


def _prompt(some: dict[str, Prompt], prompt_id: str) -> Prompt:
    return some.get(prompt_id) or Prompt(prompt_id, prompt_id)


# ------------------------------------------------------------------------------------------------- sentences


def headline(comparison: Comparison, model: str) -> dict[str, str]:
    """What improved and what it cost, of the run with the most rewards (the joint one, where there is one)."""
    rewards: dict[str, set[str]] = {}
    for e in comparison.of(model=model):
        if e.experiment != comparison.against:
            rewards.setdefault(e.experiment, set())
            rewards[e.experiment] |= {metrics.load(e.metric).scorer} if e.trained_on else set()
    if not rewards:
        return {
            "experiment": comparison.against,
            "gain": "is all that was scored: there is nothing to compare.",
            "cost": "",
        }
    lead = max(rewards, key=lambda experiment: len(rewards[experiment]))
    return {"experiment": lead, "gain": gain(comparison, model, lead), "cost": cost(comparison, model, lead)}


def gain(comparison: Comparison, model: str, experiment: str) -> str:
    """The goals that an experiment reaches, after Holm's correction, in a sentence; held-out measures where there are any."""
    better = [e for e in _goals_of(comparison, model, experiment) if e.mark == "better"]
    told = _list([_change(comparison, e) for e in better if e.survives])
    if not told:
        headlines = comparison.of(model=model, experiment=experiment, headline=True)
        told = Markup("no goal distinguishably")
        told += " by a judge that it was not trained on" if any(map(tables.left_out, headlines)) else ""
        told += ", after Holm's correction" if better else ""
    if comparison.against != BASE:  # which it did not come from: it has improved nothing
        return Markup("is better than {} in {}.").format(comparison.against, told)
    return Markup("improves {}.").format(told)


def cost(comparison: Comparison, model: str, experiment: str) -> str:
    """Everything that got distinguishably worse, in a sentence; of each metric the prompt set that lost most clearly."""
    worse = [e for e in comparison.of(model=model, experiment=experiment) if e.mark == "worse"]
    worst = {e.metric: e for e in sorted(worse, key=_strength)}
    told = _list([_change(comparison, e) for e in worst.values()])
    if comparison.against != BASE:
        return Markup("It is worse in {}.").format(told or "nothing that was measured, distinguishably")
    return (
        Markup("It cost {}.").format(told) if told else "Nothing that was measured got distinguishably worse."
    )


def _goals_of(comparison: Comparison, model: str, experiment: str) -> list[Estimate]:
    """The headline cell of each specialist's goal: the first that the run was not trained on, or else the first that is no judge."""
    cells = sorted(
        (
            e
            for e in comparison.of(model=model, experiment=experiment, headline=True)
            if not tables.left_out(e)
        ),
        key=lambda e: tables.metric_order(e.metric),
    )
    chosen: dict[tuple[str | None, str], Estimate] = {}
    for e in sorted(cells, key=lambda e: e.trained_on):  # stable: the goals keep their order
        chosen.setdefault((metrics.load(e.metric).specialist, e.prompt_set), e)
    return sorted(chosen.values(), key=lambda e: tables.metric_order(e.metric))


def _forced(comparison: Comparison) -> list[str]:
    """In what forced comparisons differ, by the number of their footmark."""
    return [
        f"‡{place} Forced, what cannot be compared: {conflict}."
        for place, conflict in tables.footnotes(comparison)
    ]


def _change(comparison: Comparison, e: Estimate) -> Markup:
    metric = metrics.load(e.metric)
    after = tables.number(metric, e.value.value) + (" %" if metric.unit == "share" else "")
    before = tables.number(metric, e.value.value - e.difference.value)
    if comparison.against != BASE:
        told = after if metric.needs_base else f"{after} against {before}"
    else:
        told = f"to {after}" if metric.needs_base else f"from {before} to {after}"
    return Markup('{} <a class="cell" href="#{}">{}</a> {} on {}').format(
        metric.title, cell_id(e), told, tables.sign(e) + tables.marks(comparison, e), e.prompt_set
    )


def _strength(e: Estimate) -> float:
    """How many half-widths the difference is from 0."""
    half = (e.difference.high - e.difference.low) / 2
    return abs(e.difference.value) / half if half else math.inf


def _list(parts: Sequence[Markup]) -> Markup:
    if len(parts) < 2:
        return Markup("").join(parts)
    return Markup("{} and {}").format(Markup(", ").join(parts[:-1]), parts[-1])


def _facts(comparison: Comparison, model: str) -> list[tuple[str, str]]:
    """How much stands behind the numbers."""
    cells = comparison.of(model=model)
    tuned = [e for e in cells if e.experiment != comparison.against]
    seeds = sorted({e.seeds for e in tuned}) or [0]
    sets = {e.prompt_set: max(c.prompts for c in cells if c.prompt_set == e.prompt_set) for e in cells}
    images: dict[tuple[str, str], int] = {}
    for e in cells:  # a metric of some of the prompts has not seen all of a set's images
        key = (e.experiment, e.prompt_set)
        images[key] = max(images.get(key, 0), e.seeds * e.images)
    return [
        (f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}", "training seeds per experiment"),
        (f"{sum(sets.values()):,}", f"prompts in {len(sets)} prompt set{'s' if len(sets) != 1 else ''}"),
        (f"{sum(images.values()):,}", "pictures scored"),
        (f"{comparison.resamples:,}", "paired bootstrap resamples"),
    ]


# --------------------------------------------------------------------------------------------------- tables


def _goal_columns(comparison: Comparison, model: str) -> list[tuple[str, str]]:
    """The first two headline columns of each specialist, in the order of the goals."""
    seen: dict[str | None, int] = {}
    chosen = []
    for name, prompt_set in tables.headline_columns(comparison, model):
        specialist = metrics.load(name).specialist
        seen[specialist] = seen.get(specialist, 0) + 1
        if seen[specialist] <= 2:
            chosen.append((name, prompt_set))
    return chosen


def _figure(
    comparison: Comparison,
    model: str,
    name: str,
    prompt_set: str,
    colours: dict[str, str],
    glance: bool = False,
) -> dict[str, Any]:
    """One metric on one prompt set: a line with an interval bar for every experiment, on one scale; at a glance some have no number."""
    found = comparison.of(model=model, metric=name, prompt_set=prompt_set)
    metric = metrics.load(name)
    left_out = {e.experiment for e in found if glance and tables.left_out(e)}
    ends = [end for e in found if e.experiment not in left_out for end in e.value]
    bases = [e.value.value for e in found if e.experiment == comparison.against]
    base = bases[0] if bases else (metric.reference if metric.reference is not None else math.nan)
    scale = svg.scale_of([*ends, base])
    lines = [_line(comparison, e, base, scale, colours[e.experiment]) for e in found]
    return {
        "title": tables.heading(metric),
        "metric": name,
        "prompt_set": prompt_set,
        "about": (getattr(metric, "__doc__", None) or "").split("\n\n")[0],
        "low": tables.number(metric, scale.low),
        "high": tables.number(metric, scale.high),
        "lines": [_without_number(line) if line["experiment"] in left_out else line for line in lines],
    }


def _without_number(line: dict[str, Any]) -> dict[str, Any]:
    """As the table at a glance has a judge that the run was trained on: the † is the link to its number."""
    nothing = dict.fromkeys(("bar", "ends", "mark", "sign", "said"), "")
    return {**line, **nothing, "value": "†", "dagger": line["dagger"].removeprefix("†")}


def _line(comparison: Comparison, e: Estimate, base: float, scale: svg.Scale, colour: str) -> dict[str, Any]:
    metric = metrics.load(e.metric)
    itself = e.experiment == comparison.against
    value = tables.value_told(e)
    ratio = "" if math.isnan(e.ratio.value) or itself else f"× {tables.ratio_told(e)}"
    return {
        "id": cell_id(e),
        "experiment": e.experiment,
        "colour": colour,
        "bar": svg.interval_bar(*e.value, base, scale, colour, f"{e.experiment}: {value}"),
        "value": value.partition(" ")[0],
        "ends": value.partition(" ")[2],
        "difference": tables.interval(metric, e.difference, signed=True) if not itself else "",
        "ratio": ratio,
        "mark": e.mark,
        "sign": tables.sign(e),
        "said": tables.sign_said(e),
        "dagger": tables.marks(comparison, e),
        "p": "" if math.isnan(e.p_holm) else tables.p_told(e.p_holm),
        "test": e.test,
        "n": tables.size_told(e.seeds, e.prompts, e.images),
    }


def _tables(
    comparison: Comparison, model: str, colours: dict[str, str], sets: Sequence[str]
) -> list[dict[str, Any]]:
    """All metrics, a table for each prompt set."""
    found = []
    for prompt_set in (name for name in sets if comparison.of(model=model, prompt_set=name)):
        names = sorted(
            {e.metric for e in comparison.of(model=model, prompt_set=prompt_set)}, key=tables.metric_order
        )
        figures = [_figure(comparison, model, name, prompt_set, colours) for name in names]
        found.append({"prompt_set": prompt_set, "figures": figures})
    return found


def _kept(comparison: Comparison, r: compare.Retention) -> dict[str, str]:
    return {
        "experiment": r.experiment,
        "specialist": r.specialist,
        "name": r.metric,
        "prompt_set": r.prompt_set,
        "id": cell_id(r),
        "metric": metrics.load(r.metric).title,
        "raw": tables.percent(r.raw),
        "gain": tables.percent(r.gain),
        "marks": tables.kept_marks(comparison, r),
    }


def _tax(comparison: Comparison, model: str, tuned: Sequence[str]) -> list[dict[str, Any]]:
    """Every metric's change for every run; the depth of a colour is the change over the largest of its line."""
    cells = {(e.metric, e.prompt_set, e.experiment): e for e in comparison.of(model=model)}
    keys = {(m, s) for m, s, experiment in cells if experiment in tuned}
    keys |= unscored.left_out_lines(comparison, model)
    lines = []
    for name, prompt_set in sorted(keys, key=lambda key: (key[1], *tables.metric_order(key[0]))):
        found = [cells.get((name, prompt_set, experiment)) for experiment in tuned]
        sizes = [abs(tables.change(e).value) for e in found if e]
        largest = max((size for size in sizes if size > 0), default=1.0)
        metric = metrics.load(name)
        unit = next((tables.change(e).unit for e in found if e), None)
        lines.append(
            {
                "title": tables.heading(metric, unit=False),
                "unit": "" if unit is None else tables.UNITS[unit],
                "metric": name,
                "prompt_set": prompt_set,
                "cells": [
                    _tax_cell(comparison, metric, e, largest)
                    if e
                    else {
                        "experiment": x,
                        "id": "",
                        "text": unscored.why_empty(comparison, model, x, name, prompt_set),
                    }
                    for x, e in zip(tuned, found, strict=True)
                ],
            }
        )
    return lines


def _tax_cell(comparison: Comparison, metric: metrics.Metric, e: Estimate, largest: float) -> dict[str, Any]:
    change = tables.change(e)
    depth = abs(change.value) / largest if e.mark in ("better", "worse", "changed") else 0.0
    return {
        "id": cell_id(e),
        "experiment": e.experiment,
        "text": tables.change_told(change),
        "full": f"{e.experiment}, {metric.title}: {tables.interval(metric, e.difference, signed=True)}, {e.mark or 'no difference'}",
        "mark": e.mark.replace(" ", "-"),
        "sign": tables.sign(e),
        "said": tables.sign_said(e),
        "dagger": tables.marks(comparison, e),
        "depth": round(15 + 65 * depth) if depth else 0,
    }


# --------------------------------------------------------------------------------------------------- judges


def _judges(comparison: Comparison, model: str) -> dict[str, Any]:
    """Win, tie and loss by each judge, how far judges agree, and what they order differently."""
    ids = {(e.experiment, e.metric, e.prompt_set): cell_id(e) for e in comparison.of(model=model)}
    trained = {(e.experiment, e.metric) for e in comparison.of(model=model, trained_on=True)}
    metric_of = {metrics.load(name).scorer: name for name in panel.judges()}
    marked = partial(tables.judge, comparison, model)
    outcomes = [
        {
            "id": ids[o.experiment, o.metric, o.prompt_set],
            "judge": marked(o.prompt_set, [o.experiment], metrics.load(o.metric).scorer, o.trained_on),
            "metric": o.metric,
            "prompt_set": o.prompt_set,
            "experiment": o.experiment,
            "bar": svg.win_bar(o.win, o.tie, o.loss, f"{o.experiment}, {metrics.load(o.metric).title}"),
            "shares": [
                tables.decimals(100 * share, 1)
                for share in (o.win, o.tie, o.loss, o.half_tie, o.ties_dropped)
            ],
            "prompts": f"{o.prompts_won} : {o.prompts_lost}",
            "p": tables.p_told(o.sign_p),
        }
        for o in sorted(
            (o for o in comparison.outcomes if o.model == model),
            key=lambda o: (o.prompt_set, o.trained_on, *tables.metric_order(o.metric)),
        )
    ]
    agreements = [
        {
            "prompt_set": a.prompt_set,
            "experiment": a.experiment,
            "metrics": [metric_of[judge] for judge in a.judges],
            "judges": [
                (
                    marked(a.prompt_set, [a.experiment], judge, (a.experiment, metric_of[judge]) in trained),
                    ids.get((a.experiment, metric_of[judge], a.prompt_set), ""),
                )
                for judge in a.judges
            ],
            "tau": tables.signed(a.tau),
            "bar": svg.interval_bar(
                *a.tau, 0.0, svg.Scale(-1.0, 1.0), "", f"Kendall's tau {tables.signed(a.tau)}"
            ),
            "n": f"{a.pictures:,} of {a.prompts:,} prompts",
        }
        for a in comparison.panel.agreements
        if a.model == model
    ]
    flips = [
        {
            "prompt_set": f.prompt_set,
            "runs": [f.first, f.second],
            "verdicts": [_verdicts(comparison, f, ids, swapped) for swapped in (False, True)],
        }
        for f in comparison.panel.flips
        if f.model == model
    ]
    return {"outcomes": outcomes, "agreements": agreements, "flips": flips}


def _verdicts(
    comparison: Comparison, f: panel.Flip, ids: Mapping[tuple[str, str, str], str], swapped: bool
) -> list[tuple[str, str, str]]:
    """Each judge that is for one of two checkpoints, its win rate, and the cell in which it speaks of that one; of what all is compared with the other's, as its own is one half."""
    favoured, other, told = (f.second, f.first, f.for_second) if swapped else (f.first, f.second, f.for_first)
    if favoured == comparison.against:
        favoured = other
    return [
        (*tables.verdict(comparison, f, v, swapped), ids.get((favoured, v.metric, f.prompt_set), ""))
        for v in told
    ]


# ------------------------------------------------------------------------------------------------- pictures


def _order(*parts: object) -> str:
    """A fixed random order: the hash of the names, so that no one can choose."""
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()


def _lowest_seeds(rows: pd.DataFrame) -> dict[str, int]:
    """The training seed of each experiment whose pictures are shown."""
    return {str(name): int(seed) for name, seed in rows.groupby("experiment")["seed"].min().items()}


def _run_names(rows: pd.DataFrame) -> dict[str, str]:
    """The run of each experiment whose pictures are shown."""
    model = rows["model"].iloc[0]
    return {name: f"{name}-{model}-{seed}" for name, seed in _lowest_seeds(rows).items()}


def _scored(rows: pd.DataFrame) -> dict[tuple[str, str, str, int], set[str]]:
    """The hashes of the pictures that were scored; see `Pictures.scored`."""
    columns = ["experiment", "model", "seed", "prompt_set", "prompt_id", "image", "picture"]
    known = rows.loc[rows["picture"] != "", columns].drop_duplicates()
    found: dict[tuple[str, str, str, int], set[str]] = {}
    for experiment, model, seed, *place, picture in known.itertuples(index=False, name=None):
        found.setdefault((f"{experiment}-{model}-{seed}", *place), set()).add(picture)
    return found


def _portrait_sets(rows: pd.DataFrame) -> list[str]:
    """The prompt sets whose pictures were looked at for a tone, also where none has a face."""
    return sorted(rows.loc[rows["scorer"] == "skin_tone", "prompt_set"].unique())


def _samples(
    rows: pd.DataFrame,
    experiments: Sequence[str],
    pictures: Pictures,
    asked: dict[str, dict[str, Prompt]],
) -> list[dict[str, Any]]:
    """A fixed random sample of each prompt set (of portraits `_strips` shows more), every experiment from the same noise."""
    samples = []
    names, seeds = _run_names(rows), _lowest_seeds(rows)
    for prompt_set, part in rows[~rows["prompt_set"].isin(_portrait_sets(rows))].groupby(
        "prompt_set", sort=False
    ):
        keys = part[["prompt_id", "image"]].drop_duplicates().itertuples(index=False, name=None)
        chosen = sorted(keys, key=lambda key: _order(prompt_set, *key))
        one_each = list({prompt_id: (prompt_id, image) for prompt_id, image in reversed(chosen)}.values())[
            ::-1
        ]
        scorer = _deciding(part, trained=frozenset())
        lines = []
        for prompt_id, image in one_each[:SAMPLE]:
            prompt = _prompt(asked[str(prompt_set)], prompt_id)
            shown = [
                {
                    "experiment": e,
                    "picture": pictures.get(names[e], str(prompt_set), prompt_id, image, prompt.text),
                    "value": _value_of(part, e, seeds[e], prompt_id, image, scorer),
                }
                for e in experiments
            ]
            lines.append({"text": prompt.text, "tags": prompt.tags, "image": image, "pictures": shown})
        samples.append({"prompt_set": prompt_set, "scorer": scorer or "", "lines": lines})
    return samples


def _value_of(
    rows: pd.DataFrame, experiment: str, seed: int, prompt_id: str, image: int, scorer: str | None
) -> str:
    of = (rows["experiment"] == experiment) & (rows["seed"] == seed) & (rows["scorer"] == scorer)
    found = rows.loc[of & (rows["prompt_id"] == prompt_id) & (rows["image"] == image), "value"]
    return tables.decimals(float(found.iloc[0]), 2) if len(found) else "–"


def _strips(
    rows: pd.DataFrame,
    experiments: Sequence[str],
    pictures: Pictures,
    asked: dict[str, dict[str, Prompt]],
) -> list[dict[str, Any]]:
    """All portraits of a few occupations, chosen by the fixed random order, a line for each experiment."""
    strips = []
    names = _run_names(rows)
    for prompt_set in _portrait_sets(rows):
        part = rows[rows["prompt_set"] == prompt_set]
        for prompt_id in sorted(part["prompt_id"].unique(), key=lambda name: _order(prompt_set, name))[
            :STRIPS
        ]:
            prompt = _prompt(asked[prompt_set], prompt_id)
            indices = sorted(part.loc[part["prompt_id"] == prompt_id, "image"].unique())
            lines = [
                (
                    e,
                    [pictures.get(names[e], prompt_set, prompt_id, i, prompt.text) for i in indices],
                )
                for e in experiments
            ]
            strips.append(
                {"text": prompt.text, "tags": prompt.tags, "prompt_set": prompt_set, "lines": lines}
            )
    return strips


def _deciding(rows: pd.DataFrame, trained: frozenset[str]) -> str | None:
    """The first of `DECIDING` that was scored, of those that the run was not trained on if there is one."""
    scored = set(rows["scorer"])
    found = [name for name in DECIDING if name in scored]
    return next((name for name in found if name not in trained), found[0] if found else None)


def _extremes(
    rows: pd.DataFrame,
    experiment: str,
    pictures: Pictures,
    asked: dict[str, dict[str, Prompt]],
    comparison: Comparison,
) -> dict[str, Any]:
    """The biggest wins and losses of an experiment, by the deciding scorer of each prompt set, and pictures that nobody chose."""
    groups = []
    against = comparison.against
    names, seed = _run_names(rows), _lowest_seeds(rows)[experiment]
    mine = rows[(rows["experiment"] == experiment) & (rows["seed"] == seed)]
    trained = frozenset(mine.loc[mine["trained_on"] == 1, "scorer"])
    margins = {metrics.load(name).scorer: margin for name, margin in comparison.tie_margins.items()}
    for prompt_set, part in mine.groupby("prompt_set", sort=False):
        scorer = _deciding(part, trained)
        if scorer is None:
            continue
        part = part[part["scorer"] == scorer]
        theirs = rows[(rows["experiment"] == against) & (rows["scorer"] == scorer)]
        # the seed of which the scores are set beside these
        beside = seed if seed in set(theirs["seed"]) else int(theirs["seed"].min())
        base_run = f"{against}-{part['model'].iloc[0]}-{beside}"
        base = score_rows.same_images(part, theirs)
        both = part.assign(base=base["value"], gain=part["value"] - base["value"])
        ranked = both.dropna(subset=["gain"]).sort_values(
            ["gain", "prompt_id", "image"], ascending=[False, True, True]
        )
        margin = margins.get(scorer, 0.0)
        won, lost = ranked[ranked["gain"] > margin], ranked[ranked["gain"] < -margin]
        drawn = ranked.assign(
            order=[
                _order(prompt_set, p, i) for p, i in zip(ranked["prompt_id"], ranked["image"], strict=True)
            ]
        ).sort_values("order")
        parts = [
            {
                "title": title,
                "pairs": [
                    _pair(row, names[experiment], base_run, pictures, asked[str(prompt_set)])
                    for row in chosen.itertuples()
                ],
            }
            for title, chosen in (
                ("biggest wins", won.head(EXTREMES)),
                ("biggest losses", lost.tail(EXTREMES)[::-1]),
                ("drawn at random", drawn.head(EXTREMES)),
            )
        ]
        counts = {"lost": len(lost), "tied": len(ranked) - len(won) - len(lost)}
        if len(ranked) < len(both):
            counts["without a score"] = len(both) - len(ranked)
        groups.append(
            {
                "prompt_set": prompt_set,
                "scorer": tables.judge(
                    comparison,
                    str(part["model"].iloc[0]),
                    str(prompt_set),
                    [experiment],
                    scorer,
                    scorer in trained,
                ),
                "counts": f"{len(won):,} of {len(both):,} pictures won, "
                + ", ".join(f"{n:,} {name}" for name, n in counts.items())
                + (f"; a difference of at most {margin:g} is a tie" if margin else "")
                + ".",
                "parts": parts,
            }
        )
    return {"experiment": experiment, "seed": seed, "groups": groups}


def _pair(row: Any, run: str, base: str, pictures: Pictures, some: dict[str, Prompt]) -> dict[str, Any]:
    prompt = _prompt(some, row.prompt_id)
    place = (row.prompt_set, row.prompt_id, row.image, prompt.text)
    return {
        "text": prompt.text,
        "tags": prompt.tags,
        "gain": tables.decimals(row.gain, 2, signed=True),
        "scores": f"{tables.decimals(row.base, 2)} → {tables.decimals(row.value, 2)}",
        "base": pictures.get(base, *place),
        "tuned": pictures.get(run, *place),
    }


# ---------------------------------------------------------------------------------------------------- tones


def _tones(
    rows: pd.DataFrame, comparison: Comparison, asked: dict[str, dict[str, Prompt]]
) -> list[dict[str, Any]]:
    """For each portrait set, what `evals.fairness` says of every experiment."""
    if not _portrait_sets(rows):
        return []
    told = fairness.fairness(rows, resamples=comparison.resamples)
    found = []
    for prompt_set in dict.fromkeys(f.prompt_set for f in told):
        runs = [f for f in told if f.prompt_set == prompt_set]
        shares = [share.value for f in runs for share in f.shares if math.isfinite(share.value)]
        top = max(shares, default=0.0)
        most = max((n / sum(f.tones) for f in runs for n in f.tones), default=0.0)
        columns = []
        for f in runs:
            cells = comparison.of(model=f.model, prompt_set=prompt_set, experiment=f.experiment)
            ids = {e.metric: cell_id(e) for e in cells}
            columns.append(_tone_column(f, max(top, 0.5), max(most, 0.2), asked[prompt_set], ids))
        found.append({"prompt_set": prompt_set, "columns": columns})
    return found


def _tone_column(
    f: Fairness, top: float, most: float, some: dict[str, Prompt], ids: dict[str, str]
) -> dict[str, Any]:
    shares = [share.value for share in f.shares]
    groups = ", ".join(f"{100 * share:.0f} %" for share in shares)
    tones = ", ".join(map(str, f.tones))
    return {
        "experiment": f.experiment,
        "refused": f.refused,
        "gap": (tables.with_ends(f.gap), ids.get("parity", "")),
        "floor": tables.decimals(f.floor),
        "unbiased": (tables.with_ends(f.unbiased), ids.get("parity_unbiased", "")),
        "pooled": (tables.with_ends(f.pooled), ids.get("parity_pooled", "")),
        "contradiction": fairness.contradiction(f) if f.outside else "",
        "pooled_floor": tables.decimals(f.pooled_floor),
        "pooled_unbiased": tables.decimals(f.pooled_unbiased),
        "unusable": (tables.decimals(100 * f.unusable.value, 1), ids.get("unusable", "")),
        "n": tables.size_told(f.seeds, f.prompts, f.images),
        # of nobody there is nothing to draw
        "histogram": svg.tone_histogram(
            shares, top, f"{f.experiment}: tone groups from light to dark {groups}"
        )
        if math.isfinite(shares[0])
        else "",
        "tones": svg.monk_histogram(
            f.tones, most, f"{f.experiment}: pictures of Monk tones 1 to 10: {tones}"
        ),
        "ranked": [
            {
                "id": p.prompt_id,
                "text": _prompt(some, p.prompt_id).text,
                "tags": _prompt(some, p.prompt_id).tags,
                "strip": svg.tone_strip(
                    p.counts,
                    p.unusable,
                    f"{p.prompt_id}: {list(p.counts)} by tone group, {p.unusable} unusable",
                ),
                "counts": " · ".join(map(str, p.counts)),
                "unusable": p.unusable,
                "gap": tables.decimals(p.gap),
                "floor": tables.decimals(p.floor),
            }
            for p in f.ranked
        ],
    }
