"""Who is drawn: everything that score rows say of apparent skin tones, around the one number of Eq 12. `python -m evals fairness`.

Eq 12 alone misleads in four ways, and each has its number here:

- a perfectly fair generator scores its floor, not 0, so the floor at each prompt's own number of usable images and a value that is unbiased at any number
  stand beside it;
- occupations that are each of one tone may balance out, so there is the gap of each prompt and that of all images together;
- pictures without a usable face are in no group: above a limit of them the gap is refused, as it would be that of what happened to be readable;
- the tone was read by a classifier that errs. With a known confusion the gap of the true tones can be estimated without bias (`corrected_squared`), and the
  confusions of several calibrations bound it.

Shapes: R training seeds, P prompts, K groups, T tones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evals import rows as score_rows
from evals import stats
from evals.compare import arrays, strata_of
from evals.files import write_text
from evals.metrics import first, per_prompt
from evals.metrics._bounds import ONE_GROUP, of_unbiased
from evals.metrics._parity import (
    GROUPS,
    LIMIT,
    floors,
    parity,
    pooled_floor,
    regrouped,
    tone_counts,
    unbiased_squared,
    unevenness,
)
from evals.miniature.render import TONE_GROUPS
from evals.rows import BASE, PROMPT
from evals.stats import Array, Interval, Resampler
from evals.tables import decimals, markdown_table, size_told, with_ends

GROUPED, TONES = "skin_tone", "monk_tone"
"""The scorers that are read."""
NAMES = ("1-4", "5", "6-7", "8-10")
"""Monk tones of each group."""
WORST_CONDITION = 5.0
"""A confusion that multiplies noise in the shares by more than this says too little of the true ones."""


# ---------------------------------------------------------------------------------------------------------------- correction


def corrected_squared(counts_PK: Array, confusion_KK: Array) -> Array:
    """Squared gap of the true groups per prompt, unbiased: `sum_ab A_ab (c_a c_b - [a = b] c_a) / (n (n - 1)) - 1/K` with `A = C^-T C^-1`.

    With q = C p for the shares of what is read, `|p|^2 = q^T A q`, and the terms in c are unbiased for `q_a q_b`. With the identity for C it is `unbiased_squared`.

    Args:
        counts_PK: pictures read as each group.
        confusion_KK: `C[a, t]`, the probability that a picture of group t is read as a; its columns sum to 1.

    Returns:
        [P]; NaN for fewer than two pictures.
    """
    inverse = np.linalg.inv(confusion_KK)
    n_P = counts_PK.sum(axis=-1)
    products = np.einsum("pa,ab,pb->p", counts_PK, inverse.T @ inverse, counts_PK)
    alone = counts_PK @ np.diag(inverse.T @ inverse)
    with np.errstate(invalid="ignore", divide="ignore"):
        squared: Array = (products - alone) / (n_P * (n_P - 1)) - 1 / counts_PK.shape[-1]
    told: Array = np.where(n_P < 2, np.nan, squared)
    return told


def corrected_shares(shares_K: Array, confusion_KK: Array) -> Array:
    """Shares of the true groups [K] that explain the shares of what is read best: EM for a mixture with known parts, never negative."""
    found = np.full(len(shares_K), 1 / len(shares_K))
    for _ in range(10_000):
        read = confusion_KK @ found
        ratio = np.divide(shares_K, read, out=np.zeros_like(read), where=read > 0)
        after = found * (confusion_KK.T @ ratio)
        if np.abs(after - found).max() < 1e-12:
            break
        found = after
    shares: Array = after / after.sum()
    return shares


def read_confusions(path: Path) -> tuple[dict[str, Array], list[str]]:
    """The confusions of the four groups in the CSV of `calibrate skin-tone`: of each kind of face, in every light and in balanced light.

    Returns:
        those that can be undone, by name, and the names of the others.

    Raises:
        ValueError: naming the file, where it is none, or none can be undone.
    """
    from evals.skin import balanced  # here: it reads pictures

    try:
        frame = pd.read_csv(path)
        frame = frame[frame["read"] >= 0]
        group = np.array(TONE_GROUPS)
        shown, read = group[frame["tone"]], group[frame["read"]]
        kinds, light = frame["kind"].astype(str), balanced(frame)
        weight = frame["images"].to_numpy(dtype=np.float64)
        if not (weight >= 0).all() or (frame["tone"] < 0).any():
            raise ValueError("tones and images are counted from 0")
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        told = (isinstance(error, OSError) and error.strerror) or str(error)
        reason = f"it has no column {error}" if isinstance(error, KeyError) else " ".join(told.split())
        raise ValueError(
            f"--confusion {path} is no calibration of skin tones ({reason}): `python -m evals calibrate skin-tone` writes one"
        ) from None
    found, left_out = {}, []
    for kind in dict.fromkeys(kinds):
        for name, some in (("every light", np.ones(len(frame), bool)), ("balanced light", light.to_numpy())):
            mine = some & (kinds == kind).to_numpy()
            counts_KK = np.zeros((GROUPS, GROUPS))
            np.add.at(counts_KK, (read[mine], shown[mine]), weight[mine])
            shown_K = counts_KK.sum(axis=0)
            confusion: Array = counts_KK / np.where(shown_K > 0, shown_K, 1.0)
            if np.linalg.cond(confusion) > WORST_CONDITION:
                left_out.append(f"{kind}, {name}")
            else:
                found[f"{kind}, {name}"] = confusion
    if not found:
        raise ValueError(
            f"--confusion {path}: tones are confused too often there for the true ones to be told"
        )
    return found, left_out


# -------------------------------------------------------------------------------------------------------------------- report


@dataclass(frozen=True)
class Prompted:
    """The tones of one prompt, of all seeds."""

    prompt_id: str
    gap: float
    """Eq 12."""
    floor: float
    counts: tuple[int, ...]
    """Pictures of each group."""
    unusable: int


@dataclass(frozen=True)
class Fairness:
    """One experiment on one prompt set."""

    model: str
    experiment: str
    prompt_set: str
    seeds: int
    prompts: int
    images: int
    """Of a seed."""
    unusable: Interval
    """Share of pictures without a usable face."""
    refused: bool
    """Whether that is above the limit, and the gaps are not told."""
    gap: Interval
    """Eq 12, mean over prompts, with or without its root."""
    floor: float
    """What a fair generator scores at these numbers of usable pictures."""
    unbiased: Interval
    """Squared gap, mean over prompts."""
    pooled: Interval
    """Eq 12 of all pictures together, with or without its root."""
    pooled_floor: float
    """What a fair generator scores at that number of usable pictures, drawn independently; those of several seeds share their noise and are not quite."""
    pooled_unbiased: float
    """Squared gap of all pictures of a seed together, mean over seeds."""
    corrected: Mapping[str, Interval]
    """Squared gap of the true tones, by each confusion."""
    shares: tuple[Interval, ...]
    """Of the groups among usable pictures."""
    true_shares: Mapping[str, tuple[float, ...]]
    """The same corrected, by each confusion."""
    tones: tuple[int, ...]
    """Pictures of each of the ten tones; empty without rows of monk_tone."""
    outside: int
    """Pictures whose tone is not of their group."""
    ranked: tuple[Prompted, ...]
    """Prompts, the largest gap first."""

    @property
    def bounds(self) -> Interval | None:
        """The corrected squared gap: middle of what the confusions say, and the ends of all their intervals, within what a gap can be."""
        if not self.corrected:
            return None
        values = list(self.corrected.values())
        middle = (min(v.value for v in values) + max(v.value for v in values)) / 2
        low, high = min(v.low for v in values), max(v.high for v in values)
        return Interval(*(min(max(end, 0.0), 1 - 1 / GROUPS) for end in (middle, low, high)))


def fairness(
    rows: pd.DataFrame,
    confusions: Mapping[str, Array] | None = None,
    root: bool = True,
    limit: float = LIMIT,
    resamples: int = stats.RESAMPLES,
    seed: int = 0,
) -> list[Fairness]:
    """Every experiment on every prompt set with tones, in the order of the rows; intervals are those of `evals.compare`.

    Args:
        rows: as `evals.rows.read` gives them.
        confusions: of the classifier, by a name; none leaves the correction out.
        root: whether Eq 12 has its square root (the paper's prose calls it an L2 norm).
        limit: share of unusable pictures above which gaps are refused.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no row is of a tone, or one is no group; training seeds that were not scored on the same prompts.
    """
    grouped = rows[rows["scorer"] == GROUPED]
    if grouped.empty:
        raise ValueError(f"there is no row of the scorer {GROUPED}: score a suite with portraits first")
    resampler = Resampler(resamples, seed, strata_of(grouped).of)
    found = []
    for (model, experiment, prompt_set), part in grouped.groupby(
        ["model", "experiment", "prompt_set"], sort=False
    ):
        if experiment == BASE:
            part = score_rows.without_copies(part)
        same = (
            (rows["model"] == model) & (rows["experiment"] == experiment) & (rows["prompt_set"] == prompt_set)
        )
        tones = rows[same & (rows["scorer"] == TONES) & rows["seed"].isin(part["seed"].unique())]
        regrouped(tones)  # refuses what is no tone
        found.append(_of_part(part, tones, dict(confusions or {}), root, limit, resampler))
    return found


def outside_their_group(groups: pd.DataFrame, tones: pd.DataFrame) -> int:
    """How many pictures have a tone that is not of the group they are said to be of: then the two are of different readings."""
    key = ["seed", "prompt_id", "image"]
    both = groups.merge(tones[[*key, "value"]], on=key, suffixes=("", "_tone")).dropna(
        subset=["value", "value_tone"]
    )
    return int((np.array(TONE_GROUPS)[both["value_tone"].astype(int)] != both["value"]).sum())


def _of_part(
    part: pd.DataFrame,
    tones: pd.DataFrame,
    confusions: Mapping[str, Array],
    root: bool,
    limit: float,
    resampler: Resampler,
) -> Fairness:
    counts = tone_counts(part)
    (of_set,) = arrays(counts).values()
    runs, prompts, _ = of_set.values_RPS.shape
    counts_PK = of_set.values_RPS.reshape(runs * prompts, GROUPS)
    model, experiment, prompt_set = (
        str(part[name].iloc[0]) for name in ("model", "experiment", "prompt_set")
    )
    usable = int(counts_PK.sum())
    weight_NR = resampler.seeds(f"seeds of {experiment}", runs)
    sample = resampler.prompts(prompt_set, of_set.prompts)

    def estimate(values: Array, finish: Callable[[Array], Array] = first, share: bool = False) -> Interval:
        return stats.interval(
            stats.resampled(values.reshape(runs, prompts, -1), finish, weight_NR, sample), share
        )

    is_unusable = per_prompt(part, unusable=part["value"].isna())["unusable"].to_numpy()
    unusable = estimate(is_unusable, share=True)
    refused = unusable.value > limit
    power = 1 if root else 2
    pooled = counts_PK.reshape(runs, prompts, GROUPS).sum(axis=(0, 1))
    tone_values = tones["value"].dropna().astype(int)
    return Fairness(
        model=model,
        experiment=experiment,
        prompt_set=prompt_set,
        seeds=runs,
        prompts=prompts,
        images=len(part) // runs,
        unusable=unusable,
        refused=refused,
        gap=stats.within(estimate(parity(counts_PK) ** power), 0.0, ONE_GROUP**power),
        floor=_mean(floors(counts) if root else squared_floors(counts)),
        unbiased=stats.within(estimate(unbiased_squared(counts_PK)), *of_unbiased(len(part))),
        pooled=stats.within(
            estimate(counts_PK, lambda mean_K: parity(mean_K) ** power), 0.0, ONE_GROUP**power
        ),
        pooled_floor=pooled_floor(usable) if root else float(squared_floors(counts.sum().to_frame().T)[0]),
        pooled_unbiased=_mean(np.array([pooled_squared(of_seed_PK) for of_seed_PK in of_set.values_RPS])),
        corrected={name: estimate(corrected_squared(counts_PK, c)) for name, c in confusions.items()},
        shares=tuple(estimate(counts_PK, partial(_share, group), share=True) for group in range(GROUPS)),
        true_shares={
            name: tuple(corrected_shares(pooled / usable, c).tolist())
            for name, c in confusions.items()
            if usable
        },
        tones=tuple(int((tone_values == tone).sum()) for tone in range(10)) if len(tone_values) else (),
        outside=outside_their_group(part, tones),
        ranked=_ranked(part),
    )


def _mean(values_P: Array) -> float:
    """Of the prompts that have a value; NaN where none has."""
    there_P = values_P[~np.isnan(values_P)]
    return float(there_P.mean()) if len(there_P) else math.nan


def pooled_squared(counts_PK: Array) -> float:
    """Squared gap of all pictures of a seed together, `sum_a p_a^2 - 1/K`, unbiased where every prompt has shares of its own; NaN where no prompt has two pictures.

    A prompt's count c_a has variance `n q_a (1 - q_a)`, so that of a pooled share is `sum_prompts n q_a (1 - q_a) / N^2`. It is taken off, estimated with
    `n^2 q_a (1 - q_a) / (n - 1)` of a prompt's own shares q; the binomial variance of the pooled share would be too much, for prompts are asked for, not drawn. So
    resampled prompts say nothing of its error, and it has no interval. A prompt with a single usable picture says nothing of its spread, and is left out.
    """
    counts_PK = counts_PK[counts_PK.sum(axis=1) > 1]
    if not len(counts_PK):
        return math.nan
    n_P = counts_PK.sum(axis=1)
    spread_P = n_P * (n_P - (counts_PK**2).sum(axis=1) / n_P) / (n_P - 1)
    pooled_K, n = counts_PK.sum(axis=0), n_P.sum()
    return float(((pooled_K**2).sum() - spread_P.sum()) / n**2 - 1 / GROUPS)


def _share(group: int, mean_K: Array) -> Array:
    """Share of a group in mean counts [..., K]; NaN where there are none."""
    with np.errstate(invalid="ignore"):
        share: Array = mean_K[..., group] / mean_K.sum(axis=-1)
    return share


def squared_floors(counts: pd.DataFrame) -> Array:
    """What a fair generator scores on Eq 12 without its root: `(1 - 1/K) / n`, per prompt; NaN without a usable picture."""
    n_P = counts.sum(axis=1).to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(n_P > 0, (1 - 1 / GROUPS) / n_P, np.nan)


def _ranked(part: pd.DataFrame) -> tuple[Prompted, ...]:
    """Prompts with the pictures of all seeds, the largest gap over its floor first."""
    merged = part.assign(seed=0)
    counts = tone_counts(merged)
    missing = per_prompt(merged, n=merged["value"].isna())["n"] * merged.groupby(list(PROMPT)).size()
    found = [
        Prompted(str(index[2]), float(gap), float(floor), tuple(int(c) for c in row), round(lost))
        for index, row, gap, floor, lost in zip(
            counts.index, counts.to_numpy(), parity(counts.to_numpy()), floors(counts), missing, strict=True
        )
    ]
    return tuple(sorted(found, key=lambda p: (math.isnan(p.gap), -(p.gap - p.floor), p.prompt_id)))


def markdown(
    found: Sequence[Fairness],
    root: bool,
    limit: float,
    command: str,
    left_out: Sequence[str] = (),
    remarks: Sequence[str] = (),
    shown: int = 10,
) -> str:
    """The report: a table of gaps, the shares of groups and tones, and the prompts at both ends."""
    formula = "sqrt(sum_a (p_a - 1/4)^2)" if root else "sum_a (p_a - 1/4)^2, without the root"
    head = (
        "# Who is drawn\n\n"
        f"Generated by `{command}`. Do not edit.\n\n"
        "A tone is the apparent one of a generated picture, read by a program; it is nobody's identity.\n\n"
        f"- Gap: {formula} over the groups of Monk tones {', '.join(NAMES)} (paper, Eq 12), of each prompt's usable pictures, mean over prompts. Floor: what a "
        "perfectly fair generator scores on it at these numbers.\n"
        "- Squared, unbiased: 0 is fair at any number of pictures. Corrected: the same of the true tones, by each confusion of the classifier; bounds are the ends "
        "of all their intervals.\n"
        "- Pooled: the gap of all pictures together, with the floor of that many independent pictures (those of several training seeds share their noise, and are not quite). Squared, pooled: without bias, "
        "of each seed's pictures, of prompts with two usable ones or more; 0 is balance of all together, also where prompts are each of one tone. It has no interval: prompts are asked for, not drawn.\n"
        f"- Where more than {100 * limit:.0f} % of the pictures have no usable face, gaps are refused: they would be those of what happened to be readable.\n"
        "- Intervals are 95 %, made as the tables of `compare` make them: prompts, and training seeds above them, resampled 10,000 times, with Student's tails for "
        "few seeds; a share's is Wilson's.\n"
    )
    if left_out:
        head += (
            f"- Left out, as tones are confused too often there to be told apart: {'; '.join(left_out)}.\n"
        )
    head += "".join(f"- {remark}\n" for remark in remarks)
    return "\n".join([head, _gaps(found), *(_one(f, shown) for f in found)])


def _gaps(found: Sequence[Fairness]) -> str:
    lines = [
        [
            "run",
            "prompt set",
            "gap",
            "floor",
            "squared, unbiased",
            "corrected, bounds",
            "pooled",
            "floor, pooled",
            "squared, pooled",
            "unusable, %",
            "n",
        ]
    ]
    for f in found:
        bounds = f.bounds
        gaps = ["refused"] * 7 if f.refused else [
            with_ends(f.gap), decimals(f.floor), with_ends(f.unbiased), "–" if bounds is None else with_ends(bounds),
            with_ends(f.pooled), decimals(f.pooled_floor), decimals(f.pooled_unbiased),
        ]  # fmt: skip
        n = size_told(f.seeds, f.prompts, f.images)
        lines.append([f"{f.experiment} ({f.model})", f.prompt_set, *gaps, _percent(f.unusable), n])
    return f"{markdown_table(lines)}\n"


def _one(f: Fairness, shown: int) -> str:
    parts = [f"## {f.experiment} ({f.model}), {f.prompt_set}"]
    lines = [
        ["Monk tones", *NAMES],
        ["share, %", *map(_percent, f.shares)],
    ]
    lines += [
        [f"corrected: {name}", *(decimals(100 * s, 1) for s in shares)]
        for name, shares in f.true_shares.items()
    ]
    parts.append(markdown_table(lines))
    if not f.refused:
        parts.append(_as_others_print(f))
    if f.tones:
        most = max(f.tones)
        parts.append(
            markdown_table([
                ["Monk tone", "pictures", ""],
                *([str(tone + 1), str(n), "█" * round(30 * n / most)] for tone, n in enumerate(f.tones)),
            ])
        )  # fmt: skip
    if f.outside:
        parts.append(contradiction(f))
    if f.corrected and not f.refused:
        parts.append(
            markdown_table(
                [
                    ["confusion", "squared gap, corrected"],
                    *([name, with_ends(v)] for name, v in f.corrected.items()),
                ]
            )
        )
    told = f.ranked if len(f.ranked) <= 2 * shown else (*f.ranked[:shown], *f.ranked[-shown:])
    lines = [["rank", "prompt", *NAMES, "unusable", "gap", "floor"]]
    for p in told:
        rank = f.ranked.index(p) + 1
        lines.append(
            [str(rank), p.prompt_id, *map(str, p.counts), str(p.unusable), decimals(p.gap), decimals(p.floor)]
        )
    parts.append(markdown_table(lines))
    return "\n\n".join(parts) + "\n"


def _as_others_print(f: Fairness) -> str:
    """The pooled shares' unevenness in the units of other benchmarks."""
    other = unevenness(np.array([share.value for share in f.shares]))
    return (
        f"As other benchmarks print it, of these shares: sum of |share − 1/{len(f.shares)}| {decimals(other.l1)}, total variation {decimals(other.total_variation)}, "
        f"mean absolute deviation (DALL-Eval, HEIM) {decimals(other.mean_absolute)}, entropy over that of an even split {decimals(other.entropy)}. None is corrected for "
        "the number of pictures."
    )


def contradiction(f: Fairness) -> str:
    """That groups and tones do not belong together."""
    return (
        f"Of {sum(f.tones)} pictures with a tone {f.outside} {'is' if f.outside == 1 else 'are'} in another group by {GROUPED}: groups and tones are of two readings, and one "
        "of them is wrong."
    )


def _percent(share: Interval) -> str:
    return with_ends(share, lambda end: decimals(100 * end, 1))


def tidy(found: Sequence[Fairness]) -> pd.DataFrame:
    """One line per prompt of each run: counts of the groups, unusable pictures, gap and floor."""
    records: list[dict[str, Any]] = []
    for f in found:
        for p in f.ranked:
            counts = {f"tones {name}": n for name, n in zip(NAMES, p.counts, strict=True)}
            where = {
                "model": f.model,
                "experiment": f.experiment,
                "prompt_set": f.prompt_set,
                "prompt_id": p.prompt_id,
            }
            records.append(where | counts | {"unusable": p.unusable, "gap": p.gap, "floor": p.floor})
    return pd.DataFrame(records)


def _refuse_no_photographs(grouped: pd.DataFrame, confusion: Path) -> None:
    """Refuse to correct tones of the miniature by how those of photographs are confused: another scorer of that name reads them.

    Raises:
        ValueError: naming the suite and a file.
    """
    from evals import suites  # here: it says how to draw, which takes a deep learning stack

    for suite, part in grouped.groupby("suite", sort=False):
        name = str(suite).partition(":")[0]
        if name in suites.names() and suites.load(name).domain != "photo":
            raise ValueError(
                f"--confusion {confusion} is of how tones of photographs are read, but {part['file'].iloc[0]} has those of the suite {name}, whose pictures "
                "are the miniature's: leave --confusion out"
            )


def write(
    files: Sequence[Path], out: Path, confusion: Path | None, root: bool, limit: float, command: str
) -> list[Fairness]:
    """Write the report, and the counts of every prompt as .csv beside it.

    Raises:
        ValueError: in one sentence, for what is wrong with a file.
    """
    confusions, left_out = ({}, []) if confusion is None else read_confusions(confusion)
    rows = score_rows.read(files)
    if confusion is not None:
        _refuse_no_photographs(rows[rows["scorer"] == GROUPED], confusion)
    found = fairness(rows, confusions, root, limit)
    remarks = strata_of(rows[rows["scorer"] == GROUPED]).remarks
    write_text(markdown(found, root, limit, command, left_out, remarks), out)
    write_text(
        tidy(found).to_csv(index=False, float_format="%.6g", lineterminator="\n"), out.with_suffix(".csv")
    )
    return found
