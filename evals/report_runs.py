"""What run directories tell the report: training curves, cost and gates of the runs that were scored, and of no others.

A directory is looked for by the run's name, `<experiment>-<model>-<seed>`, which another run may have too: of another folder, or trained again since. So it is held to
what was scored: by the name and the rewards in its run.json, and by its weights where the score file says which ones drew the pictures (`evals.asides.weights`).
What is of another run is left out, and said. Tables of `python -m evals curve` are held to the score files in `curves/` beside them in the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from evals import asides, metrics, svg
from evals.curve import FOLDER, ROLES
from evals.rows import BASE
from evals.tables import decimals

CURVE = (
    *("iteration", "experiment", "kl", "role", "metric", "prompt_set"),
    *("gain", "gain_low", "gain_high", "kept", "apart"),
)
"""Columns that are read of a table of `python -m evals curve`."""


class Run(NamedTuple):
    """What a run directory tells."""

    name: str
    experiment: str
    card: dict[str, Any]
    log: list[dict[str, Any]]
    problems: list[str]
    other: str = ""
    """Why it is another run than the one that was scored: then nothing is told of it. Empty where nothing says so."""
    is_proven: bool = False
    """Whether its weights are those that drew what was scored."""


def read(folder: Path, rows: pd.DataFrame, weights: Mapping[str, Collection[str]]) -> list[Run]:
    """The directories of the runs that rows are of, in the order of the rows.

    Args:
        folder: of run directories.
        rows: the scored.
        weights: which ones drew the scored pictures (`evals.asides.weights`).
    """
    return [
        _run(folder / f"{experiment}-{model}-{seed}", str(experiment), part, weights)
        for (experiment, model, seed), part in rows.groupby(["experiment", "model", "seed"], sort=False)
    ]


def _run(path: Path, experiment: str, rows: pd.DataFrame, weights: Mapping[str, Collection[str]]) -> Run:
    """What is in a run directory; what is missing or broken there becomes a sentence for the page."""
    problems: list[str] = []
    card = _json(path / "run.json", problems)
    log = _json_lines(path / "metrics.jsonl", problems) if experiment != BASE else []
    scored = weights.get(path.name, ())
    mine = _digest(path, scored) if scored and card else None
    other = _why_another(path, card, rows) or _other_weights(mine, scored)
    if other:
        told = f"{path} is another run than the {path.name} that was scored, so nothing of it is shown: {other}; --runs names the folder of the right one"
        return Run(path.name, experiment, {}, [], [], told)
    return Run(path.name, experiment, card, log, problems, is_proven=mine is not None)


def _why_another(path: Path, card: Mapping[str, Any], rows: pd.DataFrame) -> str:
    """In what a directory's own words are not those of the rows of the run that it is called as."""
    if (path / "state").is_dir() and not (path / "run.json").exists():
        return "it has not finished, and what is scored has"
    if card.get("name", path.name) != path.name:
        return f"its run.json is that of {card['name']}"
    rewards = card.get("rewards")
    if not isinstance(rewards, list):
        return ""
    stated = {*map(str, rewards)} & {*rows["scorer"]}
    trained = {*rows.loc[rows["trained_on"] == 1, "scorer"]}
    if stated == trained:
        return ""
    ours, theirs = (", ".join(sorted(some)) or "none of the scorers" for some in (stated, trained))
    return f"by its run.json it was trained on {ours}, and by its rows the one that was scored on {theirs}"


def _other_weights(mine: str | None, scored: Collection[str]) -> str:
    if mine is None or mine in scored:
        return ""
    return f"its weights are {mine}, and those that were scored {' and '.join(sorted(scored))}"


def _digest(path: Path, scored: Collection[str]) -> str | None:
    """The weights of a run as score files name them; None where they, or the base of a LoRA, are not on this machine, unless its name alone is what was scored."""
    from evals.checkpoints import LORA_FILE, resolve  # here: it takes a deep learning stack

    if not any((path / name).is_file() for name in ("model_index.json", LORA_FILE)):
        return None
    try:
        run = resolve(str(path))
        mine = run.digest()
        return mine if mine in scored or run.is_known() else None
    except ValueError:  # its base has gone: nothing is known, and nothing is proven
        return None


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


# ------------------------------------------------------------------------------------------------- curves of training


def curves(runs: Iterable[Run], colours: dict[str, str]) -> list[dict[str, Any]]:
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
    x, mean = across[0][:shortest], np.mean([y[:shortest] for y in values], axis=0).tolist()
    lines.append(svg.Line(x, mean, f"{css} mean"))
    x_title = unit if counted else "iterations"
    told = f"{title} over {unit}{_in_words(x, mean, x_title)}"
    return svg.chart(lines, told, x_title)


def _in_words(x: Sequence[float], y: Sequence[float], x_title: str) -> str:
    """Where a curve begins, is highest and ends, for who does not see it."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a + b)]
    if not points:
        return ""
    places = {"begins": points[0], "is highest": max(points, key=lambda point: point[1]), "ends": points[-1]}
    told = ", ".join(f"{what} with {svg.written(b)} at {_place(a)}" for what, (a, b) in places.items())
    return f": {told} {x_title}"


def _place(x: float) -> str:
    return f"{x:,.0f}" if x == round(x) else svg.written(x)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


# ------------------------------------------------------------------------------------------------------ cost and gates


def cost(run: Run) -> dict[str, str]:
    """A line of the table of costs; a dash for what its run.json does not say."""
    told = run.card.get("cost")
    spent = told if isinstance(told, dict) else {}
    commit = str(run.card.get("commit") or "")[:10]
    return {
        "run": run.name,
        "experiment": run.experiment,
        "images": _count(spent.get("images")),
        "evaluations": _count(spent.get("denoiser_evaluations")),
        "minutes": decimals(_number(spent.get("seconds")) / 60, 1),
        "gpu_hours": decimals(_number(spent.get("gpu_hours")), 2),
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


def gates(run: Run) -> dict[str, Any]:
    """What a run held itself to, and how much of it does not hold."""
    told = run.card.get("gates")
    found = list(_flat(told)) if isinstance(told, dict) else []
    states = [state for _, _, state in found if state]
    return {
        "run": run.name,
        "experiment": run.experiment,
        "gates": found,
        "held": len(states),
        "failed": states.count("fail"),
    }


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


# ---------------------------------------------------------------------------------------------- over-optimisation


class Over(NamedTuple):
    """What tables of `python -m evals curve` tell."""

    curves: list[dict[str, Any]]
    problems: list[str]
    """What is wrong with their files."""
    others: list[tuple[str, str]]
    """Experiment, and why a table is of another run than the one that was scored."""


def over_optimisation(folder: Path, runs: Sequence[Run], weights: Mapping[str, Collection[str]]) -> Over:
    """The curves of `python -m evals curve` of the runs that were scored.

    Args:
        folder: of run directories.
        runs: those that were scored.
        weights: which ones drew the scored pictures (`evals.asides.weights`).
    """
    experiments = {run.experiment for run in runs}
    folders = [folder.parent, *dict.fromkeys(folder / run.name for run in runs if not run.other)]
    found = Over([], [], [])
    for path in (path for place in folders for path in sorted(place.glob("*.csv"))):
        try:
            with path.open(encoding="utf-8") as file:
                if not file.readline().startswith("iteration,experiment,"):
                    continue
            table = pd.read_csv(path)
            lacks = next((name for name in CURVE if name not in table), None)
            if lacks is not None:
                found.problems.append(f"{path}: lacks the column {lacks}, so its curves are not shown")
                continue
            table = table.sort_values("iteration")
            last = table["experiment"].iloc[-1].split("@")[0]
            if last not in experiments:
                continue
            if other := _of_another(path, last, runs, weights):
                found.others.append((last, f"{path} {other}, so its curves are not shown"))
            else:
                found.curves.append(_over(path, last, table))
        except (OSError, ValueError, AttributeError, IndexError) as error:
            found.problems.append(f"{path}: is no table of curves ({str(error).splitlines()[0]})")
    return found


def _of_another(
    path: Path, experiment: str, runs: Sequence[Run], weights: Mapping[str, Collection[str]]
) -> str:
    """Why a table of curves is of another run than those that were scored, by the score files that it was made of; empty where nothing says so."""
    told = asides.weights(sorted((path.parent / FOLDER).glob(f"{experiment}-*.csv")))
    known = {run.name for run in runs} & {*told}
    if told and not known:
        return f"is of {' and '.join(sorted(told))}, and what was scored of {experiment} is another run"
    for name in sorted(known & {*weights}):
        if told[name].isdisjoint(weights[name]):
            return f"is of {name} with the weights {' and '.join(sorted(told[name]))}, and those that were scored are {' and '.join(sorted(weights[name]))}"
    return ""


def _over(path: Path, experiment: str, table: pd.DataFrame) -> dict[str, Any]:
    """Proxy, judge and gold of one run, each over iterations and over KL."""
    series = []
    keys = [
        (str(r), str(m), str(p))
        for r, m, p in table[["role", "metric", "prompt_set"]].drop_duplicates().to_numpy()
    ]
    for role, name, prompt_set in sorted(
        keys, key=lambda key: (ROLES.index(key[0]) if key[0] in ROLES else 3, key)
    ):
        of = (table["role"] == role) & (table["metric"] == name) & (table["prompt_set"] == prompt_set)
        part = table[of & table["gain"].notna()]  # one that is refused has none
        metric = metrics.load(name)
        scale = 100.0 if metric.unit == "share" else 1.0
        gain, low, high = (
            (scale * part[column].astype(float)).tolist() for column in ("gain", "gain_low", "gain_high")
        )
        marks = svg.Marks(
            kept=_first(part["kept"].to_numpy() == 1),
            apart=tuple(np.flatnonzero(part["apart"].to_numpy() == 1)),
        )
        title = f"{role} ({metric.title}) gained over the base{', points' if scale == 100 else ''}"
        charts = [
            svg.banded(
                part[column].astype(float).tolist(),
                gain,
                low,
                high,
                marks,
                f"{title}, by {x}{_in_words(part[column].astype(float).tolist(), gain, x)}",
                x,
                f"band {role}",
            )
            for column, x in (("iteration", "iterations"), ("kl", "nats of KL"))
        ]
        series.append({"title": title, "metric": name, "prompt_set": prompt_set, "charts": charts})
    kept = table.loc[table["kept"] == 1, "iteration"]
    return {
        "experiment": experiment,
        "file": str(path),
        "kept": "" if kept.empty else f"{int(kept.iloc[0]):,}",
        "apart": _apart(table),
        "series": series,
    }


def _apart(table: pd.DataFrame) -> str:
    """Where each role and the proxy have parted: gold has no say in what is kept, so a judge is never told of by it."""
    told = []
    for role in (role for role in ROLES if role in set(table["role"]) - {"proxy"}):
        at = table.loc[(table["role"] == role) & (table["apart"] == 1), "iteration"]
        places = ", ".join(f"{int(n):,}" for n in sorted(at.unique()))
        told.append(
            f"{'a judge' if role == 'judge' else role} {f'at iteration {places}' if places else 'nowhere'}"
        )
    return ", ".join(told)


def _first(flags: np.ndarray[Any, np.dtype[np.bool_]]) -> int | None:
    """The place of the first that is true."""
    places = np.flatnonzero(flags)
    return int(places[0]) if len(places) else None
