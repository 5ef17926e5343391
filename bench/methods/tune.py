"""The settings that a method's file has under `TUNING`, tried at an equal budget on prompts of which nothing is reported.

Each is trained with a training seed that the table has not and scored, once, at its end. The held-out metric of the reward decides (`questions`), neither the proxy nor gold. First all are tried with
five eighths of the table's evaluations, then the best two with all of them (successive halving, arXiv 1502.07943): the rate that is best in a short run is too high for a longer one. On a further reward there may be the last round
alone, with the settings that were in it on another (`finals_of`). A method may have as many of its own for one reward, its second try (`second`). The winner then stands in the method's file as `BEST`, and what all of its settings reached in results/methods-tuning.csv. Where a method got other settings for a second time, results/README.md tells what
the first had come to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.methods.cells import TUNING_SUITE, Cell, Refusal, cells
from bench.methods.questions import QUESTIONS
from bench.methods.table import KL, Estimator, read
from bench.methods.work import record_of, stopped_of
from evals import stats
from evals.files import write_text
from prompts.lock import locked
from train import methods

SEED = 11
"""Of training, as everything that was tried before (results/README.md): the table has others."""
FINALISTS = 2
"""Of the settings, that are tried at full length."""
KEY = ("reward", "method", "settings", "budget", "seed")


def tries(method: str, reward: str, budget: int) -> list[Cell]:
    """A cell for each of a method's settings, in their order.

    Raises:
        ValueError: where the method cannot train on the reward, has not its number of settings, or one of them is none.
    """
    return _cells_of(methods.tuning(method), method, reward, budget)


def second(method: str, reward: str, budget: int) -> list[Cell]:
    """A cell for each of the settings that a method has for this reward alone.

    Raises:
        ValueError: where it has not `FINALISTS` of them, or one of them is none.
    """
    settings = methods.second_try(method, reward)
    if len(settings) != FINALISTS:
        raise ValueError(
            f"--again: train/methods/{method}.py has {len(settings)} settings in AGAIN for {reward}, but a second try is {FINALISTS}: "
            f'AGAIN = {{"{reward}": (("update.lr=3e-5",), ("update.lr=1e-5",))}}'
        )
    if len(_told(settings) - _told(methods.tuning(method))) < FINALISTS:
        raise ValueError(
            f"--again: train/methods/{method}.py has a setting twice in AGAIN for {reward}, or one that is in TUNING already"
        )
    return _cells_of(settings, method, reward, budget)


def _cells_of(
    settings_of_each: Sequence[tuple[str, ...]], method: str, reward: str, budget: int
) -> list[Cell]:
    """A cell for each, all of one seed and with one checkpoint.

    Raises:
        ValueError: where the method cannot train on the reward, or one of the settings is none.
    """
    found = []
    for settings in settings_of_each:
        made = cells(reward, method, [SEED], budget, 1, (*methods.SHORT, *settings), TUNING_SUITE)
        if isinstance(made, Refusal):
            raise ValueError(f"{method} cannot train on {reward}: {made.sentence}")
        found += made
    return found


def finals(first: Sequence[Cell], found: pd.DataFrame, budget: int) -> list[Cell]:
    """The best of the first tries, at another length.

    Args:
        first: the cells of the first tries.
        found: `found_of` them.
        budget: denoiser evaluations of each.

    Raises:
        ValueError: where none of them has a held-out gain.
    """
    ranked = found.dropna(subset=["held_out"]).sort_values("held_out", ascending=False, kind="stable")
    if ranked.empty:
        raise ValueError(
            f"none of the settings of {first[0].method} on {first[0].reward} has a held-out gain, so there is no best to try at full length: give its file of train/methods others in TUNING"
        )
    wanted = set(ranked["settings"].head(FINALISTS))
    made: list[Cell] = []
    for cell in first:
        if " ".join(cell.settings) in wanted:
            again = cells(cell.reward, cell.method, [cell.seed], budget, 1, cell.settings, cell.suite)
            assert not isinstance(again, Refusal), "it was tried before"
            made += again
    return made


def check_tries(path: Path) -> None:
    """Refuse a file that is there and no table of tries, before hours have gone.

    Raises:
        ValueError: naming it.
    """
    _held(path)


def finals_of(method: str, reward: str, other: str, budget: int, path: Path) -> list[Cell]:
    """The settings that went into the last round of another reward, on this one: what a rate or a batch does is much the same, and rounds take hours.

    Args:
        method: whose settings.
        reward: to try them on.
        other: the reward that they were tried on at full length.
        budget: denoiser evaluations of each.
        path: the file of all tries.

    Raises:
        ValueError: the file does not have them, or they are no longer settings of the method.
    """
    held = _held(path)
    mine = held[held["method"] == method]
    if (rounds := mine.loc[mine["reward"] == reward, "budget"].nunique()) > 1:
        raise ValueError(
            f"{path} has {rounds} rounds of {method} on {reward} already, of which this would replace the last alone: leave --finalists-of out"
        )
    last = (mine["reward"] == other) & (mine["budget"] == methods.EVALUATIONS[other])
    wanted = {*mine.loc[last, "settings"]} - _told(methods.second_try(method, other))
    found = [cell for cell in tries(method, reward, budget) if " ".join(cell.settings) in wanted]
    if not found or len(found) < len(wanted):
        raise ValueError(
            f"{path} has {len(wanted)} settings of {method} at full length on {other}, of which its file has {len(found)} today: "
            f"`python -m bench.methods tune {method} --reward {other}` first"
        )
    return found


def found_of(done: Sequence[Cell], root: Path, resamples: int = stats.RESAMPLES) -> pd.DataFrame:
    """One row a try: what it reached on the tuning prompts. `best`: 1 for the largest held-out gain among them; a try that stopped by itself has none."""
    estimate = Estimator(resamples)
    records: list[dict[str, Any]] = []
    for cell in done:
        question = QUESTIONS[cell.reward]
        key = dict(
            zip(KEY, (cell.reward, cell.method, " ".join(cell.settings), cell.budget, cell.seed), strict=True)
        )
        record = record_of(cell, root)
        if record is None:
            records.append(key | {"note": f"stopped by itself: {stopped_of(cell, root)}"})
            continue
        track = read(question, [(cell, record)], root)
        end = np.array([float(len(track.iteration_T) - 1)])
        for number in estimate.numbers(track, "checkpoint", 1.0, end):
            role = number.role.replace("-", "_")
            one = number.value if number.role in (KL, "drift") else number.gain
            key |= {role: one.value, f"{role}_low": one.low, f"{role}_high": one.high}
        key |= {
            "iterations": cell.experiment.iterations,
            "evaluations": track.evaluations_RT[0, -1],
            "seconds": track.seconds_RT[0, -1],
            "prompt_set": cell.prompt_set,
            "prompts": track.statistics[question.held_out].shape[2],
            "images": track.pictures[question.held_out],
            "command": record["command"],
            "machine": record["machine"]["name"],
            "date": record["date"],
        }
        records.append(key)
    table = pd.DataFrame(records).reindex(columns=list(COLUMNS))
    held_out = pd.to_numeric(table["held_out"])
    table["best"] = (held_out == held_out.max()).astype(int)
    return table


COLUMNS = (
    *KEY,
    "best",
    *(
        f"{role}{end}"
        for role in ("held_out", "gold", "proxy", "diversity", "drift", KL)
        for end in ("", "_low", "_high")
    ),
    *(
        "iterations",
        "evaluations",
        "seconds",
        "prompt_set",
        "prompts",
        "images",
        "note",
        "command",
        "machine",
        "date",
    ),
)


def keep(found: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Put the tries of one method and reward into the file of all, in place of earlier ones at the same budget; a second try stands beside the first.

    One process at a time: of two that had read the same file the later one would write the earlier one's tries away.

    Returns:
        them, with `best` among all that stand beside each other.

    Raises:
        ValueError: where the file is there and no such table.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        return _kept(found, _held(path), path)


def _kept(found: pd.DataFrame, before: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write tries and what is left of those before them. Returns the tries, with `best` among all that stand beside each other."""
    of = found.iloc[0]
    again = _told(methods.second_try(of["method"], of["reward"]))
    mine, theirs = {*found["settings"]}, before["settings"]
    beside = ~theirs.isin(mine) & (theirs.isin(again) if not mine <= again else True)
    same = (before[["reward", "method", "budget"]] == of[["reward", "method", "budget"]]).all(axis=1)
    rest = before[~same | beside]
    kept = pd.concat([rest, found], ignore_index=True) if len(rest) else found.copy()
    among = (kept[["reward", "method", "budget"]] == of[["reward", "method", "budget"]]).all(axis=1)
    reached = pd.to_numeric(kept.loc[among, "held_out"])
    kept.loc[among, "best"] = (reached == reached.max()).astype(int)
    ordered = kept.sort_values(["reward", "method", "budget"], kind="stable")
    write_text(ordered.to_csv(index=False, float_format="%.6g", lineterminator="\n"), path)
    return kept[among & kept["settings"].isin(mine)]


def _told(settings_of_each: Sequence[tuple[str, ...]]) -> set[str]:
    """Settings as the file of tries has them."""
    return {" ".join((*methods.SHORT, *settings)) for settings in settings_of_each}


def _held(path: Path) -> pd.DataFrame:
    """The tries that a file has; none where there is no file.

    Raises:
        ValueError: where it is there and no such table.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(KEY))
    try:
        held = pd.read_csv(path, dtype={"settings": str}, keep_default_na=True)
    except (UnicodeDecodeError, pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(
            f"{path} is no table of tries ({str(error).strip()}): choose another --out"
        ) from None
    if not {*KEY} <= {*held.columns}:
        raise ValueError(f"{path} is no table of tries (it lacks {', '.join(KEY)}): choose another --out")
    return held.fillna({"settings": ""})
