"""The report: one self-contained HTML page per comparison, from score rows, pictures and run directories.

Numbers come from `evals.compare`, pictures from `<images>/<run>/<prompt set>/<prompt id>/<index>.png`, curves, cost and gates
from the run directories; a run's name is `<experiment>-<model>-<seed>`. What is not there is said on the page. The template is
report.html.j2, autoescaped: prompts and names may hold anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

import prompts
from evals import compare, metrics, stats, svg, tables
from evals import rows as score_rows
from evals.compare import BASE, Comparison, Estimate
from evals.files import write_text
from evals.metrics._parity import GROUPS

SAMPLE = 6
"""Random pictures per prompt set."""
EXTREMES = 3
"""Biggest wins, and biggest losses, per experiment and prompt set."""
STRIPS = 3
"""Occupations whose portraits are all shown."""
DECIDING = ("gold_utility", "clip_judge", "imagereward", "objects")
"""Wins and losses are chosen by the first of these that was scored: the gold measure before anyone's reward."""
SMALL, SHRUNK = 128, 256
"""Pictures up to SMALL pixels are embedded as they are; larger ones are shrunk to SHRUNK, so that the page stays light."""


class Picture(NamedTuple):
    """One picture of the page; `data` is None where the file is missing."""

    data: str | None
    alt: str


@dataclass
class Pictures:
    """Reads pictures, and remembers which were missing."""

    folder: Path
    missing: dict[str, int] = field(default_factory=dict)

    def get(self, run: str, prompt_set: str, prompt_id: str, index: int, text: str) -> Picture:
        """A picture as a data URI."""
        path = self.folder / run / prompt_set / prompt_id / f"{index}.png"
        inside = path.resolve().is_relative_to(self.folder.resolve())
        if not inside or not path.is_file():
            self.missing[run] = self.missing.get(run, 0) + 1
            return Picture(None, f"{run}: {text}, image {index} (no file)")
        return Picture(_data_uri(path), f"{run}: {text}, image {index}")


def _data_uri(path: Path) -> str:
    from PIL import Image

    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) > SMALL:
            small = picture.convert("RGB")
            small.thumbnail((SHRUNK, SHRUNK))
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=85)
            content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class Run(NamedTuple):
    """What a run directory tells."""

    name: str
    experiment: str
    seed: int
    card: dict[str, Any]
    log: list[dict[str, Any]]
    problems: list[str]


def write(
    paths: Sequence[Path | str],
    runs: Path,
    images: Path,
    out: Path,
    command: str,
    resamples: int = stats.RESAMPLES,
) -> None:
    """Read the score files, compare, and write the page.

    Raises:
        ValueError: as `evals.rows.read` and `evals.compare.compare`.
    """
    rows = score_rows.read(paths)
    comparison = compare.compare(rows, resamples)
    write_text(render(rows, comparison, runs, images, command), out)


def render(rows: pd.DataFrame, comparison: Comparison, runs: Path, images: Path, command: str) -> str:
    """The page of a comparison."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _model(model, rows[rows["model"] == model], comparison, runs, images) for model in comparison.models()
    ]
    return environment.get_template("report.html.j2").render(
        models=sections,
        command=command,
        method=tables.method_notes(comparison),
        counted=tables.count_notes(comparison),
        versions=sorted(comparison.versions.items()),
        extremes=EXTREMES,
        sample=SAMPLE,
    )


def _model(name: str, rows: pd.DataFrame, comparison: Comparison, runs: Path, images: Path) -> dict[str, Any]:
    """Everything that the template shows of one model."""
    experiments = list(dict.fromkeys(e.experiment for e in comparison.of(model=name)))
    colours = {experiment: f"c{index % 8}" for index, experiment in enumerate(experiments)}
    pictures = Pictures(images)
    texts = {str(prompt_set): _texts(str(prompt_set)) for prompt_set in rows["prompt_set"].unique()}
    cards = [_run(runs, *key) for key in _run_keys(rows)]
    tuned = [experiment for experiment in experiments if experiment != BASE]
    section = {
        "name": name,
        "experiments": experiments,
        "tuned": tuned,
        "colours": colours,
        "headline": headline(comparison, name),
        "sentences": [(e, gain(comparison, name, e), cost(comparison, name, e)) for e in tuned],
        "facts": _facts(comparison, name),
        "goals": [_figure(comparison, name, *column, colours) for column in _goal_columns(comparison, name)],
        "tables": _tables(comparison, name, colours),
        "retentions": [_kept(r) for r in comparison.retentions if r.model == name],
        "samples": _samples(rows, experiments, pictures, texts),
        "strips": _strips(rows, experiments, pictures, texts),
        "extremes": [_extremes(rows, experiment, pictures, texts) for experiment in tuned],
        "tones": _tones(rows, experiments),
        "tax": _tax(comparison, name, tuned),
        "curves": _curves(cards, colours),
        "cost": [_cost(run) for run in cards],
        "gates": [_gates(run) for run in cards if run.experiment != BASE],
        "problems": [problem for run in cards for problem in run.problems],
    }
    return {**section, "missing": sorted(pictures.missing.items())}


def _texts(prompt_set: str) -> dict[str, str]:
    """Prompt texts by id; none where the set cannot be read, and then the ids are shown."""
    try:
        return {prompt.id: prompt.text for prompt in prompts.load(prompt_set)}
    except ValueError:
        return {}


# ------------------------------------------------------------------------------------------------- sentences


def headline(comparison: Comparison, model: str) -> dict[str, str]:
    """What improved and what it cost, of the run with the most rewards (the joint one, where there is one)."""
    rewards: dict[str, set[str]] = {}
    for e in comparison.of(model=model):
        if e.experiment != BASE:
            rewards.setdefault(e.experiment, set())
            rewards[e.experiment] |= {metrics.load(e.metric).scorer} if e.trained_on else set()
    if not rewards:
        return {
            "experiment": BASE,
            "gain": "is all that was scored: there is nothing to compare.",
            "cost": "",
        }
    lead = max(rewards, key=lambda experiment: len(rewards[experiment]))
    return {"experiment": lead, "gain": gain(comparison, model, lead), "cost": cost(comparison, model, lead)}


def gain(comparison: Comparison, model: str, experiment: str) -> str:
    """The goals that an experiment distinguishably reaches, in a sentence; held-out measures where there are any."""
    better = [_change(e) for e in _goals_of(comparison, model, experiment) if e.mark == "better"]
    return f"improves {_list(better)}." if better else "improves no goal distinguishably."


def cost(comparison: Comparison, model: str, experiment: str) -> str:
    """Everything that got distinguishably worse, in a sentence; of each metric the prompt set that lost most clearly."""
    worse = [e for e in comparison.of(model=model, experiment=experiment) if e.mark == "worse"]
    worst = {e.metric: e for e in sorted(worse, key=_strength)}
    if not worst:
        return "Nothing that was measured got distinguishably worse."
    return f"It cost {_list([f'{_change(e)} on {e.prompt_set}' for e in worst.values()])}."


def _goals_of(comparison: Comparison, model: str, experiment: str) -> list[Estimate]:
    """The headline cell of each specialist's goal: the first that the run was not trained on, or else the first."""
    cells = sorted(
        comparison.of(model=model, experiment=experiment, headline=True),
        key=lambda e: tables.metric_order(e.metric),
    )
    chosen: dict[tuple[str | None, str], Estimate] = {}
    for e in sorted(cells, key=lambda e: e.trained_on):  # stable: the goals keep their order
        chosen.setdefault((metrics.load(e.metric).specialist, e.prompt_set), e)
    return sorted(chosen.values(), key=lambda e: tables.metric_order(e.metric))


def _change(e: Estimate) -> str:
    metric = metrics.load(e.metric)
    after = tables.number(metric, e.value.value) + (" %" if metric.unit == "share" else "")
    before = tables.number(metric, e.value.value - e.difference.value)
    return f"{metric.title} {f'to {after}' if metric.needs_base else f'from {before} to {after}'}{tables.dagger(e)}"


def _strength(e: Estimate) -> float:
    """How many half-widths the difference is from 0."""
    half = (e.difference.high - e.difference.low) / 2
    return abs(e.difference.value) / half if half else math.inf


def _list(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _facts(comparison: Comparison, model: str) -> list[tuple[str, str]]:
    """How much stands behind the numbers."""
    cells = comparison.of(model=model)
    tuned = [e for e in cells if e.experiment != BASE]
    seeds = sorted({e.seeds for e in tuned}) or [0]
    sets = {e.prompt_set: max(c.prompts for c in cells if c.prompt_set == e.prompt_set) for e in cells}
    images = {(e.experiment, e.prompt_set): e.seeds * e.images for e in cells}
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
    comparison: Comparison, model: str, name: str, prompt_set: str, colours: dict[str, str]
) -> dict[str, Any]:
    """One metric on one prompt set: a line with an interval bar for every experiment, on one scale."""
    found = comparison.of(model=model, metric=name, prompt_set=prompt_set)
    metric = metrics.load(name)
    ends = [end for e in found for end in e.value]
    bases = [e.value.value for e in found if e.experiment == BASE]
    base = bases[0] if bases else (metric.reference if metric.reference is not None else math.nan)
    scale = svg.scale_of([*ends, base])
    return {
        "title": tables.heading(metric),
        "prompt_set": prompt_set,
        "about": (getattr(metric, "__doc__", None) or "").split("\n\n")[0],
        "low": tables.number(metric, scale.low),
        "high": tables.number(metric, scale.high),
        "lines": [_line(e, base, scale, colours[e.experiment]) for e in found],
    }


def _line(e: Estimate, base: float, scale: svg.Scale, colour: str) -> dict[str, Any]:
    metric = metrics.load(e.metric)
    value = tables.interval(metric, e.value)
    ratio = "" if math.isnan(e.ratio.value) or e.experiment == BASE else f"× {e.ratio.value:.2f}"
    return {
        "experiment": e.experiment,
        "colour": colour,
        "bar": svg.interval_bar(*e.value, base, scale, colour, f"{e.experiment}: {value}"),
        "value": tables.number(metric, e.value.value),
        "ends": value.partition(" ")[2],
        "difference": tables.interval(metric, e.difference, signed=True) if e.experiment != BASE else "",
        "ratio": ratio,
        "mark": e.mark,
        "sign": tables.SIGNS[e.mark],
        "dagger": tables.dagger(e),
        "n": f"{e.seeds} × {e.prompts} × {e.images / e.prompts:g}",
    }


def _tables(comparison: Comparison, model: str, colours: dict[str, str]) -> list[dict[str, Any]]:
    """All metrics, a table for each prompt set."""
    found = []
    for prompt_set in dict.fromkeys(e.prompt_set for e in comparison.of(model=model)):
        names = sorted(
            {e.metric for e in comparison.of(model=model, prompt_set=prompt_set)}, key=tables.metric_order
        )
        figures = [_figure(comparison, model, name, prompt_set, colours) for name in names]
        found.append({"prompt_set": prompt_set, "figures": figures})
    return found


def _kept(r: compare.Retention) -> dict[str, str]:
    return {
        "experiment": r.experiment,
        "specialist": r.specialist,
        "metric": metrics.load(r.metric).title,
        "raw": tables.percent(r.raw),
        "gain": tables.percent(r.gain),
    }


def _tax(comparison: Comparison, model: str, tuned: Sequence[str]) -> list[dict[str, Any]]:
    """Every metric's change for every run; the depth of a colour is the change over the largest of its line."""
    cells = {
        (e.metric, e.prompt_set, e.experiment): e for e in comparison.of(model=model) if e.experiment != BASE
    }
    keys = sorted({(m, s) for m, s, _ in cells}, key=lambda key: (key[1], *tables.metric_order(key[0])))
    lines = []
    for name, prompt_set in keys:
        found = [cells.get((name, prompt_set, experiment)) for experiment in tuned]
        largest = max(abs(e.difference.value) for e in found if e) or 1.0
        metric = metrics.load(name)
        lines.append(
            {
                "title": tables.heading(metric),
                "prompt_set": prompt_set,
                "cells": [_tax_cell(metric, e, largest) if e else None for e in found],
            }
        )
    return lines


def _tax_cell(metric: metrics.Metric, e: Estimate, largest: float) -> dict[str, Any]:
    depth = abs(e.difference.value) / largest if e.mark in ("better", "worse", "changed") else 0.0
    return {
        "text": tables.number(metric, e.difference.value, signed=True),
        "full": f"{e.experiment}: {tables.interval(metric, e.difference, signed=True)}, {e.mark}",
        "mark": e.mark.replace(" ", "-"),
        "sign": tables.SIGNS[e.mark],
        "dagger": tables.dagger(e),
        "depth": round(15 + 65 * depth) if depth else 0,
    }


# ------------------------------------------------------------------------------------------------- pictures


def _order(*parts: object) -> str:
    """A fixed random order: the hash of the names, so that no one can choose."""
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()


def _seed_of(rows: pd.DataFrame, experiment: str) -> int:
    """The training seed whose pictures are shown: the lowest."""
    return int(rows.loc[rows["experiment"] == experiment, "seed"].min())


def _run_name(rows: pd.DataFrame, experiment: str) -> str:
    return f"{experiment}-{rows['model'].iloc[0]}-{_seed_of(rows, experiment)}"


def _portrait_sets(rows: pd.DataFrame) -> list[str]:
    """The prompt sets with a tone on some picture."""
    tones = rows[(rows["scorer"] == "skin_tone") & rows["value"].notna()]
    return sorted(tones["prompt_set"].unique())


def _samples(
    rows: pd.DataFrame, experiments: Sequence[str], pictures: Pictures, texts: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """A fixed random sample of each prompt set (of portraits `_strips` shows more), every experiment from the same noise."""
    samples = []
    for prompt_set, part in rows[~rows["prompt_set"].isin(_portrait_sets(rows))].groupby(
        "prompt_set", sort=False
    ):
        keys = part[["prompt_id", "image"]].drop_duplicates().itertuples(index=False, name=None)
        chosen = sorted(keys, key=lambda key: _order(prompt_set, *key))
        one_each = list({prompt_id: (prompt_id, image) for prompt_id, image in reversed(chosen)}.values())[
            ::-1
        ]
        lines = []
        for prompt_id, image in one_each[:SAMPLE]:
            text = texts[str(prompt_set)].get(prompt_id, prompt_id)
            shown = [
                (
                    experiment,
                    pictures.get(_run_name(rows, experiment), str(prompt_set), prompt_id, image, text),
                )
                for experiment in experiments
            ]
            lines.append({"text": text, "image": image, "pictures": shown})
        samples.append({"prompt_set": prompt_set, "lines": lines})
    return samples


def _strips(
    rows: pd.DataFrame, experiments: Sequence[str], pictures: Pictures, texts: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """All portraits of a few occupations, chosen by the fixed random order, a line for each experiment."""
    strips = []
    for prompt_set in _portrait_sets(rows):
        part = rows[rows["prompt_set"] == prompt_set]
        for prompt_id in sorted(part["prompt_id"].unique(), key=lambda name: _order(prompt_set, name))[
            :STRIPS
        ]:
            text = texts[prompt_set].get(prompt_id, prompt_id)
            indices = sorted(part.loc[part["prompt_id"] == prompt_id, "image"].unique())
            lines = [
                (
                    experiment,
                    [
                        pictures.get(_run_name(rows, experiment), prompt_set, prompt_id, i, text)
                        for i in indices
                    ],
                )
                for experiment in experiments
            ]
            strips.append({"text": text, "lines": lines})
    return strips


def _extremes(
    rows: pd.DataFrame, experiment: str, pictures: Pictures, texts: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """The biggest wins and losses of an experiment, by the deciding scorer of each prompt set."""
    groups = []
    seed = _seed_of(rows, experiment)
    mine = rows[(rows["experiment"] == experiment) & (rows["seed"] == seed)]
    for prompt_set, part in mine.groupby("prompt_set", sort=False):
        scorer = next((name for name in DECIDING if (part["scorer"] == name).any()), None)
        if scorer is None:
            continue
        part = part[part["scorer"] == scorer]
        base = score_rows.same_images(part, rows[(rows["experiment"] == BASE) & (rows["scorer"] == scorer)])
        ranked = part.assign(gain=part["value"] - base["value"]).dropna(subset=["gain"])
        ranked = ranked.sort_values(["gain", "prompt_id", "image"], ascending=[False, True, True])
        half = min(EXTREMES, len(ranked) // 2)
        for title, chosen in (
            ("biggest wins", ranked.head(half)),
            ("biggest losses", ranked.tail(half)[::-1]),
        ):
            pairs = [
                _pair(row, experiment, rows, pictures, texts[str(prompt_set)]) for row in chosen.itertuples()
            ]
            groups.append({"prompt_set": prompt_set, "title": title, "scorer": scorer, "pairs": pairs})
    return {"experiment": experiment, "seed": seed, "groups": groups}


def _pair(
    row: Any, experiment: str, rows: pd.DataFrame, pictures: Pictures, texts: dict[str, str]
) -> dict[str, Any]:
    text = texts.get(row.prompt_id, row.prompt_id)
    place = (row.prompt_set, row.prompt_id, row.image, text)
    return {
        "text": text,
        "gain": f"{row.gain:+.2f}".replace("-", "−"),
        "base": pictures.get(_run_name(rows, BASE), *place),
        "tuned": pictures.get(_run_name(rows, experiment), *place),
    }


# ---------------------------------------------------------------------------------------------------- tones


def _tones(rows: pd.DataFrame, experiments: Sequence[str]) -> list[dict[str, Any]]:
    """For each portrait set and experiment, the four bins of all usable images, and each occupation's own bar."""
    is_base = rows["experiment"] == BASE
    rows = pd.concat([rows[~is_base], score_rows.without_copies(rows[is_base])])
    found = []
    for prompt_set in _portrait_sets(rows):
        part = rows[(rows["scorer"] == "skin_tone") & (rows["prompt_set"] == prompt_set)]
        of_all = [(e, part[part["experiment"] == e]) for e in experiments]
        shown = [
            (e, score_rows.without_copies(of_e) if e == BASE else of_e) for e, of_e in of_all if len(of_e)
        ]
        top = max(max(_tone_shares(of_run)) for _, of_run in shown)
        columns = [_tone_column(of_run, e, max(top, 2 / GROUPS)) for e, of_run in shown]
        found.append({"prompt_set": prompt_set, "columns": columns})
    return found


def _tone_shares(rows: pd.DataFrame) -> list[float]:
    """Share of each tone group among the usable images."""
    return [
        float((rows["value"] == group).sum() / max(rows["value"].notna().sum(), 1)) for group in range(GROUPS)
    ]


def _tone_column(rows: pd.DataFrame, experiment: str, top: float) -> dict[str, Any]:
    shares = _tone_shares(rows)
    told = ", ".join(f"{100 * share:.0f} %" for share in shares)
    return {
        "experiment": experiment,
        "histogram": svg.tone_histogram(shares, top, f"{experiment}: tone groups from light to dark {told}"),
        "unusable": f"{100 * rows['value'].isna().mean():.1f}",
        "strips": [
            _tone_strip(str(prompt_id), part["value"]) for prompt_id, part in rows.groupby("prompt_id")
        ],
    }


def _tone_strip(prompt_id: str, values: pd.Series[float]) -> Markup:
    counts = [int((values == group).sum()) for group in range(GROUPS)]
    unusable = int(values.isna().sum())
    return svg.tone_strip(counts, unusable, f"{prompt_id}: {counts} by tone group, {unusable} unusable")


# ----------------------------------------------------------------------------------------------------- runs


def _run_keys(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    keys = rows[["experiment", "model", "seed"]].drop_duplicates()
    return [(str(e), str(m), int(s)) for e, m, s in keys.itertuples(index=False, name=None)]


def _run(folder: Path, experiment: str, model: str, seed: int) -> Run:
    """What is in a run directory; what is missing or broken there becomes a sentence for the page."""
    name = f"{experiment}-{model}-{seed}"
    problems: list[str] = []
    card = _json(folder / name / "run.json", problems)
    log = _json_lines(folder / name / "metrics.jsonl", problems) if experiment != BASE else []
    return Run(name, experiment, seed, card, log, problems)


def _json(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        problems.append(
            f"{path.parent.name}/{path.name}: not there, so the cost and the gates of this run are not shown"
        )
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        problems.append(
            f"{path.parent.name}/{path.name}: is not a JSON object, so the cost and the gates of this run are not shown"
        )
        return {}
    return content


def _json_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        problems.append(f"{path.parent.name}/{path.name}: not there, so the curves of this run are not shown")
        return []
    records, broken = [], 0
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and "iteration" in record and "task" in record:
            records.append(record)
        else:
            broken += 1
    if broken:
        problems.append(
            f"{path.parent.name}/{path.name}: {broken} lines are not records of an iteration and are left out"
        )
    return records


def _curves(runs: Iterable[Run], colours: dict[str, str]) -> list[dict[str, Any]]:
    """For each experiment and task, its reward and its monitors (the gold measure) over the images drawn."""
    groups: dict[str, dict[str, list[list[dict[str, Any]]]]] = {}
    for run in runs:
        for task in dict.fromkeys(str(record["task"]) for record in run.log):
            of_task = [record for record in run.log if str(record["task"]) == task]
            groups.setdefault(run.experiment, {}).setdefault(task, []).append(of_task)
    return [
        {
            "experiment": experiment,
            "colour": colours[experiment],
            "tasks": [_task_curves(task, logs) for task, logs in tasks.items()],
        }
        for experiment, tasks in groups.items()
    ]


def _task_curves(task: str, logs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    monitors = sorted({name for log in logs for record in log for name in record.get("monitors") or {}})
    charts = [
        (
            "reward",
            _chart([[_number(r.get("reward_mean")) for r in log] for log in logs], logs, "reward", "proxy"),
        )
    ]
    for name in monitors:
        values = [[_number((r.get("monitors") or {}).get(name)) for r in log] for log in logs]
        charts.append((name, _chart(values, logs, name, "gold")))
    return {"task": task, "seeds": len(logs), "charts": [pair for pair in charts if pair[1]]}


def _chart(values: list[list[float]], logs: list[list[dict[str, Any]]], title: str, css: str) -> Markup:
    """Every seed thin, their mean bold where there are several."""
    counted = all("images" in record for log in logs for record in log)
    unit = "images" if counted else "iteration"
    across = [[_number(record[unit]) for record in log] for log in logs]
    lines = [svg.Line(x, y, f"{css} seed") for x, y in zip(across, values, strict=True)]
    shortest = min(len(y) for y in values)
    mean = np.mean([y[:shortest] for y in values], axis=0)
    lines.append(svg.Line(across[0][:shortest], mean.tolist(), f"{css} mean"))
    return svg.chart(lines, f"{title} over {unit}", unit if counted else "iterations")


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _cost(run: Run) -> dict[str, str]:
    cost = run.card.get("cost") or {}
    commit = str(run.card.get("commit") or "")[:10]
    return {
        "run": run.name,
        "images": _count(cost.get("images")),
        "evaluations": _count(cost.get("denoiser_evaluations")),
        "minutes": f"{_number(cost.get('seconds')) / 60:.1f}" if cost.get("seconds") is not None else "–",
        "gpu_hours": f"{_number(cost.get('gpu_hours')):.2f}" if cost.get("gpu_hours") is not None else "–",
        "hardware": _short(run.card.get("hardware")),
        "commit": f"{commit} + changes" if run.card.get("dirty") else commit or "–",
    }


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else "–"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {_short(item)}" for key, item in value.items() if item not in (None, "", [], {})
        )
    return "–" if value is None else str(value)


def _gates(run: Run) -> dict[str, Any]:
    gates = run.card.get("gates")
    return {"run": run.name, "gates": list(_flat(gates)) if isinstance(gates, dict) else []}


def _flat(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str, str]]:
    """(name, value, state) of every leaf; the state of a yes or no is pass or fail."""
    for key, item in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(item, dict):
            yield from _flat(item, f"{name} · ")
        elif isinstance(item, bool):
            yield name, "yes" if item else "no", "pass" if item else "fail"
        else:
            yield name, f"{item:.3g}" if isinstance(item, float) else str(item), ""
