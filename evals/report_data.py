"""What the report holds of the rows behind its numbers: every row, and each cell's value prompt by prompt.

One JSON object, compressed, as text in the page; report.js unpacks it when a number is asked for its rows. A number costs about four
bytes there, so that 100,000 rows are half a megabyte. `rows` and `pictures` are strings of what the score file has, comma by comma, in
the order of `slots` (prompt and image): "" for a score that does not apply, "-" for a row that is not there.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from evals import metrics, tables
from evals import rows as score_rows
from evals.compare import Comparison, Estimate, Retention
from evals.metrics import Metric
from evals.rows import BASE
from prompts import Prompt

ROWS = 1_000_000
"""Rows up to which they are all in the page; above, its values by prompt are, and it names the files."""
OF_ROW = ("prompt_id", "image", "picture", "value")
"""The columns that differ within a scoring: one run, prompt set and scorer."""


def cell_id(e: Estimate | Retention) -> str:
    """The name of a cell in the page and in links to it."""
    return "cell/" + "/".join(
        quote(name, safe="@+") for name in (e.model, e.prompt_set, e.metric, e.experiment)
    )


def packed(content: Mapping[str, Any]) -> str:
    """JSON, compressed, as text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def content(
    rows: pd.DataFrame, comparison: Comparison, sets: Mapping[str, Mapping[str, Prompt]]
) -> dict[str, Any]:
    """Everything that is behind the numbers of a comparison.

    Args:
        rows: that it was made of.
        comparison: the numbers.
        sets: the prompts of each prompt set by id; a prompt that is not there has no text and no tags.
    """
    places: dict[str, Any] = {}
    scorings: list[dict[str, Any]] = []
    pictures: dict[str, int] = {}
    for (model, prompt_set), part in rows.groupby(["model", "prompt_set"], sort=False):
        known = sets.get(str(prompt_set), {})
        ids = sorted(map(str, part["prompt_id"].unique()))
        place = {"ids": ids, **_told(ids, known)}
        if len(rows) <= ROWS:
            slot, slots = pd.factorize(pd.MultiIndex.from_frame(part[["prompt_id", "image"]]), sort=True)
            number = {prompt_id: n for n, prompt_id in enumerate(ids)}
            place["slots"] = [[number[str(prompt_id)], int(image)] for prompt_id, image in slots]
            scorings += _scorings(part.assign(slot=slot), len(slots), pictures)
        places[f"{model}/{prompt_set}"] = place
    cells = {
        cell_id(e): _cell(e, comparison, values)
        for model in comparison.models()
        for e, values in by_prompt(rows[rows["model"] == model], comparison, model)
    }
    return {
        "columns": list(score_rows.COLUMNS),
        "against": comparison.against,
        "whole": len(rows) <= ROWS,
        "sets": places,
        "cells": cells,
        "scorings": scorings,
        "pictures": list(pictures),
    }


def _told(ids: Sequence[str], known: Mapping[str, Prompt]) -> dict[str, Any]:
    found = [known.get(prompt_id, Prompt(prompt_id, prompt_id)) for prompt_id in ids]
    return {"texts": [prompt.text for prompt in found], "tags": [list(prompt.tags) for prompt in found]}


def _scorings(rows: pd.DataFrame, slots: int, pictures: dict[str, int]) -> Iterator[dict[str, Any]]:
    """The rows of one prompt set, a scoring at a time; `pictures` numbers the lists of pictures, which scorers share."""
    fixed = [name for name in score_rows.COLUMNS if name not in OF_ROW]
    for _, part in rows.groupby(fixed, sort=False):
        first = part.iloc[0]
        values, shown = np.full((2, slots), "-", dtype=object)
        values[part["slot"]] = ["" if math.isnan(value) else f"{value:.6g}" for value in part["value"]]
        shown[part["slot"]] = part["picture"].to_numpy()
        told = {name: first[name].item() if hasattr(first[name], "item") else first[name] for name in fixed}
        number = pictures.setdefault(",".join(shown), len(pictures))
        yield {**told, "values": ",".join(values), "pictures": number}


# ------------------------------------------------------------------------------------------------- by prompt


def by_prompt(
    rows: pd.DataFrame, comparison: Comparison, model: str
) -> Iterator[tuple[Estimate, pd.DataFrame]]:
    """Every cell of a model with its metric taken of each prompt alone, over all images and training seeds.

    Yields:
        the estimate, and `run` and `base` (what it is compared with) indexed by prompt id; NaN where there is nothing applicable.
    """
    against = comparison.against
    base = score_rows.without_copies(rows[rows["experiment"] == against])
    base_of = {str(scorer): part for scorer, part in base.groupby("scorer", sort=False)}
    cells: dict[tuple[str, str], list[Estimate]] = {}
    for e in comparison.of(model=model):
        cells.setdefault((e.experiment, e.metric), []).append(e)
    parts = dict(list(rows.groupby(["experiment", "scorer"], sort=False)))
    bases: dict[str, pd.Series] = {}
    for (experiment, name), found in cells.items():
        metric = metrics.load(name)
        theirs = base_of.get(metric.scorer)
        mine = theirs if experiment == against else parts[experiment, metric.scorer]
        assert mine is not None
        values = _alone(metric, mine, theirs)
        if name not in bases:
            bases[name] = (
                _alone(metric, theirs, theirs) if theirs is not None else pd.Series(dtype=np.float64)
            )
        for e in found:
            run = values.loc[[e.prompt_set]].droplevel(0)
            yield e, pd.DataFrame({"run": run, "base": _base_of(metric, bases[name], e, run, against)})


def _base_of(metric: Metric, bases: pd.Series, e: Estimate, run: pd.Series, against: str) -> pd.Series:
    """What a prompt's value is compared with: a constant where the metric has one by definition."""
    if metric.reference is not None and against == BASE:
        return pd.Series(metric.reference, index=run.index)
    return bases.loc[[e.prompt_set]].droplevel(0).reindex(run.index)


def _alone(metric: Metric, rows: pd.DataFrame, base: pd.DataFrame | None) -> pd.Series:
    """A metric of every prompt by itself, indexed by prompt set and id: its statistics averaged over training seeds, and finished."""
    beside = rows
    if metric.needs_base and base is not None:
        if (
            rows["seed"].nunique() == 1 and base["seed"].nunique() > 1
        ):  # as `compare` pairs them: each with each
            rows = pd.concat(
                [rows.assign(seed=seed) for seed in sorted(base["seed"].unique())], ignore_index=True
            )
        beside = score_rows.same_images(rows, base)
    statistics = metric.statistics(rows, beside).groupby(level=["prompt_set", "prompt_id"]).mean()
    return pd.Series(metric.finish(statistics.to_numpy(dtype=np.float64)), index=statistics.index)


def _cell(e: Estimate, comparison: Comparison, values: pd.DataFrame) -> dict[str, Any]:
    metric = metrics.load(e.metric)
    origin = comparison.origins[e.model, e.experiment, e.prompt_set, metric.scorer]
    mean = float(values["run"].mean())
    return {
        "model": e.model,
        "set": e.prompt_set,
        "metric": e.metric,
        "run": e.experiment,
        "title": tables.heading(metric),
        "unit": metric.unit,
        "scorer": metric.scorer,
        "told": told(e),
        # else the number is of all prompts together, and no mean over some of them is the same number of those
        "mean": not e.refused
        and (math.isnan(e.value.value) or math.isclose(mean, e.value.value, rel_tol=1e-6, abs_tol=1e-9)),
        "from": origin._asdict(),
        "conflict": e.conflict,
        "ids": list(values.index),
        "values": [_number(value) for value in values["run"]],
        "base": [_number(value) for value in values["base"]],
    }


def told(e: Estimate) -> str:
    """A cell in a sentence: value, difference, test, and how much stands behind it."""
    metric = metrics.load(e.metric)
    parts = [f"{tables.value_told(e)}{tables.dagger(e)}"]
    if not math.isnan(e.difference.value):
        parts.append(
            f"difference {tables.interval(metric, e.difference, signed=True)} {tables.sign(e)} {e.mark}"
        )
    if not math.isnan(e.p_holm):
        parts.append(f"p {tables.p_told(e.p_holm)} ({e.test}, after Holm)")
    parts.append(f"{tables.size_told(e.seeds, e.prompts, e.images)} seeds, prompts, images")
    parts += [f"{e.missing} images not applicable"] if e.missing else []
    parts += [f"{e.unpaired} prompts in no difference"] if e.unpaired else []
    return "; ".join(parts) + "."


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
